"""The arguments of a command as Hydra composes them: checked, with `resume=`, `run=` and `sweep=` resolved."""

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ganforge.cli.spelling import check_spelling
from ganforge.runs.record import evaluation_sections, read_record
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import key_of, literal, parts, quoted, unquoted
from ganforge.sweeps import job, sweep
from ganforge.sweeps.resume import with_record

CHECKED_WITH = ("-m", "--multirun", "--cfg", "--resolve")
"""Flags of Hydra's that do not turn the check of the spelling off."""


def resolve_arguments(arguments: list[str], conf: Path, config_name: str, scratch: Path) -> list[str]:
    """Turn `resume=<run folder>` into a composition from that run's record, in that folder, and `run=` of evaluate.py
    into one on top of the record.

    Hydra gets a bare copy of the record: another file beside it could steer Hydra itself.
    """
    _check_values(arguments)
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    arguments = [literal(argument, is_sweep) for argument in arguments]
    if (sweep_folder := _folder(arguments, "sweep")) and not job.is_job():
        arguments = with_record(arguments, sweep_folder, conf)
    _check_sweep(arguments)
    sweep.remember_swept_keys(arguments)
    _check_groups(arguments, conf)
    if config_name == "evaluate" and (run := _folder(arguments, "run")):
        arguments = _on_record(arguments, run, scratch)
    if (folder := _folder(arguments, "resume")) is not None:
        return _resuming(arguments, folder, conf, scratch)
    if config_name == "train" and not any(argument.startswith("-") for argument in arguments):
        _check_place(dict(map(parts, arguments)).get("hydra.run.dir", "logs").strip("'\""))
    _check_spelling(arguments, conf, config_name)
    return arguments


def _check_values(arguments: list[str]) -> None:
    for key, value in map(parts, arguments):
        if f"{key}=" in arguments:  # a variable of the shell that is not set
            raise UserError(f"{key}= has no value: give it one; null stands for none")
        if key == "name" and ".." in Path(value.strip("'\"")).parts:
            raise UserError(f"{key}={value}: must not lead out of logs/: hydra.run.dir= takes any folder")
    for argument in arguments:
        if re.match(r"--(?!config-|cfg|package|info|experimental).*=", argument):
            raise UserError(f"{argument}: leave out the --")


def _check_sweep(arguments: list[str]) -> None:
    if "name" in sweep.swept_keys(arguments):
        raise UserError("name= is the name of the whole sweep: its jobs are named by what differs")
    for word in ("basic", "joblib"):
        if f"hydra/launcher={word}" in arguments:
            raise UserError(f"hydra/launcher={word}: leave it out. hydra.launcher.n_jobs=2 runs two jobs at a time")


def _check_groups(arguments: list[str], conf: Path) -> None:
    for key, value in map(parts, arguments):
        if value in ("null", "[]") and (conf / key).is_dir():
            options = ", ".join(sorted(path.stem for path in (conf / key).glob("*.yaml")))
            raise UserError(f"{key}={value}: choose one of {options}")


def _check_spelling(arguments: list[str], conf: Path, config_name: str, record: DictConfig | None = None) -> None:
    is_checked = os.environ.get("LOCAL_RANK", "0") != "0" or job.is_job()  # by another process
    if not is_checked and not any(option.startswith("-") and option not in CHECKED_WITH for option in arguments):
        check_spelling(arguments, conf, config_name, record)


def _resuming(arguments: list[str], folder: Path, conf: Path, scratch: Path) -> list[str]:
    """The arguments that resume the run in a folder: its record, and what is given now."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("resume= resumes one run: leave out -m")
    given = [argument for argument in arguments if key_of(argument) != "resume"]
    record = read_record(folder, given)
    if not os.access(folder, os.W_OK):
        raise UserError(f"resume={folder} cannot be written to: make it writable, or copy it elsewhere")
    placed = {"name"} if "LOCAL_RANK" in os.environ else {"name", "hydra.run.dir"}  # Lightning gives ranks theirs
    for key in placed & set(map(key_of, given)):
        raise UserError(f"{key}=: a run resumes in its own folder, which resume= names: leave it out")
    for group in (key for key in map(key_of, given) if (conf / key.partition("@")[0]).is_dir()):
        raise UserError(
            f"{group}=: the run's record has settled that. Set single values instead, such as {group}.<key>=..., "
            "or start a new run"
        )
    _check_spelling(given, conf, "train", record)
    OmegaConf.save(record, scratch / "record.yaml")
    return [
        f"--config-path={scratch}",
        "--config-name=record",
        *given,
        f"resume={quoted(folder)}",
        f"hydra.searchpath=[{quoted(f'file://{conf}')}]",
        "hydra/job_logging=ganforge",
        f"hydra.run.dir={quoted(folder)}",
        "hydra.output_subdir=null",
    ]


def _folder(arguments: list[str], option: str) -> Path | None:
    """The folder that an option names, if it is given."""
    value = next((value for key, value in map(parts, arguments) if key == option), None)
    return None if value in (None, "", "''", "null") else Path(unquoted(value)).expanduser().resolve()


def _check_place(name: str) -> None:
    """Raise UserError where Hydra, which writes into a run's folder first of all, would fail."""
    folder = Path(name).absolute()
    # False also for what may not be looked at, where Path.exists raises
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "cannot be written to" if there.is_dir() else "is no folder"
        raise UserError(f"{there} {problem}, so there is no place for {folder}: hydra.run.dir= takes another")


def _on_record(arguments: list[str], run: Path, scratch: Path) -> list[str]:
    """The arguments of evaluate.py, with the run's record in the composition."""
    record = read_record(run)
    kept = OmegaConf.masked_copy(record, evaluation_sections(record, arguments))
    anew = [f"  - override /{group}: {empty}" for group, empty in (("metrics", "none"), ("extractor", "auto"))]
    text = ["# @package _global_", "defaults:", *anew, "  - _self_", OmegaConf.to_yaml(kept)]
    (scratch / "recorded").mkdir()
    (scratch / "recorded" / "run.yaml").write_text("\n".join(text))
    rest = [argument for argument in arguments if key_of(argument) != "recorded"]  # the job of a sweep has one
    return [*rest, "recorded=run", f"hydra.searchpath=[{quoted(f'file://{scratch}')}]"]
