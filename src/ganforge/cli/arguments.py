"""The arguments of a command as Hydra composes them: checked, with `resume=`, `run=` and `sweep=` resolved."""

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ganforge.cli.spelling import check_spelling, options_of
from ganforge.runs.record import evaluation_sections, read_record
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import is_group, key_of, literal, parts, quoted, unquoted
from ganforge.sweeps import job, sweep
from ganforge.sweeps.resume import with_record

CHECKED_WITH = ("-m", "--multirun", "--cfg", "--resolve")
"""Hydra flags that do not disable the spelling check."""


def resolve_arguments(arguments: list[str], conf: Path, config_name: str, scratch: Path) -> list[str]:
    """Replace `resume=` and `sweep=` by what their folders record, and put the record of evaluate.py's `run=` in place.

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
        if f"{key}=" in arguments:  # such as an unset shell variable
            raise UserError(f"{key}= has no value: add one, or use {key}=null for none")
        if key == "name" and ".." in Path(value.strip("'\"")).parts:
            raise UserError(f"{key}={value}: must not lead out of logs/. hydra.run.dir= takes any folder")
    for argument in arguments:
        if re.match(r"--(?!config-|cfg|package|info|experimental).*=", argument):
            raise UserError(f"{argument}: leave out the --")


def _check_sweep(arguments: list[str]) -> None:
    if "name" in sweep.swept_keys(arguments):
        raise UserError("name= names the whole sweep, so it cannot be swept")
    for argument in arguments:
        if "interval(" in parts(argument)[1] and "hydra/sweeper=optuna" not in arguments:
            raise UserError(f"{argument}: only a search takes an interval: add hydra/sweeper=optuna, or list values")
    for word in ("basic", "joblib"):
        if f"hydra/launcher={word}" in arguments:
            raise UserError(f"hydra/launcher={word}: leave it out. hydra.launcher.n_jobs=2 runs two jobs at a time")


def _check_groups(arguments: list[str], conf: Path) -> None:
    for key, value in map(parts, arguments):
        if value in ("null", "[]") and (conf / key).is_dir():
            raise UserError(f"{key}={value}: choose one of {', '.join(options_of(conf / key))}")


def _check_spelling(arguments: list[str], conf: Path, config_name: str, record: DictConfig | None = None) -> None:
    is_checked = os.environ.get("LOCAL_RANK", "0") != "0" or job.is_job()  # rank 0, or the sweep, has checked
    if not is_checked and not any(option.startswith("-") and option not in CHECKED_WITH for option in arguments):
        check_spelling(arguments, conf, config_name, record)


def _resuming(arguments: list[str], folder: Path, conf: Path, scratch: Path) -> list[str]:
    """The arguments that resume a run: its record as the config, with this command's overrides on top."""
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("resume= resumes a single run: leave out -m")
    given = [argument for argument in arguments if key_of(argument) != "resume"]
    record = read_record(folder, given)
    if not os.access(folder, os.W_OK):
        raise UserError(f"resume={folder}: the folder is not writable. Make it writable, or copy the run elsewhere")
    fixed = {"name"} if "LOCAL_RANK" in os.environ else {"name", "hydra.run.dir"}  # Lightning sets it for other ranks
    for key in fixed & set(map(key_of, given)):
        raise UserError(f"{key}= cannot be set when resuming: leave it out")
    loggers = [argument for argument in given if argument.startswith("logger=")]
    for group in (key_of(each) for each in given if each not in loggers and is_group(each, conf)):
        raise UserError(
            f"{group}= cannot change when resuming. Set single values, such as {group}.<key>=..., or start a new run"
        )
    of_loggers = [argument for argument in given if loggers and key_of(argument).startswith("logger.")]
    _check_spelling([argument for argument in given if argument not in of_loggers], conf, "train", record)
    if loggers:  # of this command, in place of the record's
        record.logger = {}
        given = [f"+{argument}" if argument in loggers else argument for argument in given]
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
    """The folder that an option names; None if it is not given."""
    value = next((value for key, value in map(parts, arguments) if key == option), None)
    return None if value in (None, "", "''", "null") else Path(unquoted(value)).expanduser().resolve()


def _check_place(name: str) -> None:
    """Raise UserError if the run folder cannot be created. Hydra would fail with a traceback."""
    folder = Path(name).absolute()
    # unlike Path.exists, it does not raise without permission
    there = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "cannot be written to" if there.is_dir() else "is not a folder"
        raise UserError(f"{there} {problem}, so {folder} cannot be created: set hydra.run.dir=")


def _on_record(arguments: list[str], run: Path, scratch: Path) -> list[str]:
    """The arguments of evaluate.py that add the run's record to the composition, as the option `recorded=run`."""
    record = read_record(run)
    kept = OmegaConf.masked_copy(record, evaluation_sections(record, arguments))
    defaults = [f"  - override /{group}: {empty}" for group, empty in (("metrics", "none"), ("extractor", "auto"))]
    text = ["# @package _global_", "defaults:", *defaults, "  - _self_", OmegaConf.to_yaml(kept)]
    (scratch / "recorded").mkdir()
    (scratch / "recorded" / "run.yaml").write_text("\n".join(text))
    rest = [argument for argument in arguments if key_of(argument) != "recorded"]  # a job of a sweep has it already
    return [*rest, "recorded=run", f"hydra.searchpath=[{quoted(f'file://{scratch}')}]"]
