"""What every entry point does before and after its work: compose the config, resume, report mistakes."""

import errno
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ganforge import sweeps
from ganforge.errors import UserError
from ganforge.sweeps import quoted

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


Task = Callable[[DictConfig], int | None]
"""Does an entry point's work and returns its exit status, None for success."""


def entry_point(config_name: str) -> Callable[[Task], Callable[[], None]]:
    """Make a script's `main(config)` a command: `conf/<config_name>.yaml` beside the script, overridden by arguments.

    A mistake of the person who calls ends in one message and exit status 2; inside a sweep it fails its job only.
    """

    def decorate(task: Task) -> Callable[[], None]:
        script = Path(task.__code__.co_filename).resolve()
        conf = script.parent / "conf"

        def run(config: DictConfig) -> float | None:
            sys.argv[1:] = original  # Lightning starts the other ranks with these
            in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            folder = Path(HydraConfig.get().runtime.output_dir)
            status: int | None
            try:
                if in_sweep:
                    sweeps.begin_job(folder)
                    if os.getpid() != process:  # a launcher's
                        sweeps.end_with_parent()
                if in_sweep and str(config.get("trainer", {}).get("devices", 1)) != "1":
                    status = sweeps.run_in_process(script)
                else:
                    is_requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
                    if (config.get("sweep") or is_requeued) and (folder / "checkpoints").exists():
                        config.resume = str(folder)
                    status = task(config)
            except KeyboardInterrupt:
                status = INTERRUPTED
            except SystemExit as error:  # what Lightning makes of a second Ctrl-C
                if not isinstance(error.__context__, KeyboardInterrupt):
                    raise
                status = INTERRUPTED
            except Exception as error:
                message = explanation(error)
                if in_sweep or sweeps.IN_PROCESS in os.environ:
                    sweeps.note_failure(folder, error, message)
                if message is None or os.environ.get("HYDRA_FULL_ERROR"):
                    raise
                if in_sweep:
                    raise CompactHydraException(message) from error
                status = _complain(message)
            if status:
                sys.exit(status)
            return sweeps.objective(folder) if in_sweep else None

        original, process = sys.argv[1:], os.getpid()

        def main() -> None:
            register_resolvers()
            if {sweeps.IN_PROCESS, "LOCAL_RANK"} & set(os.environ):  # a job of a sweep, or a rank
                sweeps.end_with_parent()
            with tempfile.TemporaryDirectory() as scratch:
                try:
                    sys.argv[1:] = _resolved_arguments(original, conf, config_name, Path(scratch))
                except UserError as error:
                    sys.exit(_complain(str(error)))
                is_complete = False
                try:
                    hydra.main(version_base="1.3", config_path=str(conf), config_name=config_name)(run)()
                    is_complete = True
                except KeyboardInterrupt:  # while a launcher waits for its jobs
                    sys.exit(INTERRUPTED)
                finally:
                    sweeps.report(script.name, is_complete)

        return main

    return decorate


def explanation(error: BaseException) -> str | None:
    """What to tell the person about an error of theirs; None for one of ours."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, InstantiationException):
        cause = error.__cause__
        key = re.search(r"full_key: (\S+)", str(error))
        if cause is None:
            return str(error)
        return f"{key.group(1)}: {cause}" if key else str(cause)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has to be given: {error.full_key}=..."
    if isinstance(error, OmegaConfBaseException):
        missing = re.search(r"Interpolation key '(data\.\w+)' not found", str(error))
        if missing:
            needs = f"{error.full_key or 'The model'} needs {missing.group(1)}"
            return f"{needs}, which this dataset does not state: choose another data=..."
        return str(error).removeprefix("UserError raised while resolving interpolation: ")
    if isinstance(error, RuntimeError) and "loading state_dict" in str(error):
        difference = str(error).splitlines()[1].strip()
        return (
            f"The weights of the checkpoint are not those of this model: leave its networks as they were. {difference}"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return f"{error.strerror} while writing {error.filename or 'the run folder'}: make room, then resume the run"
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, imported only if it was raised
        return str(error)
    return None


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def _complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


# Resuming --------------------------------------------------------------------------------------------------------


def _resolved_arguments(arguments: list[str], conf: Path, config_name: str, scratch: Path) -> list[str]:
    """Turn `resume=<run folder>` into a composition from that run's record, in that folder; `run=` of evaluate.py into
    one on top of the record.

    Hydra gets a bare copy of the record: another file beside it could steer Hydra itself.
    """
    arguments = [_literal(argument) for argument in arguments]
    if (sweep := _folder(arguments, "sweep")) and sweeps.IN_PROCESS not in os.environ:
        arguments = sweeps.with_record(arguments, sweep)
    arguments = sweeps.with_search(arguments)
    sweeps.remember(arguments)
    for key, _, value in map(_parts, arguments):
        if value == "null" and (conf / key).is_dir():
            options = ", ".join(sorted(path.stem for path in (conf / key).glob("*.yaml")))
            raise UserError(f"{key}=null: choose one of {options}")
    if config_name == "evaluate" and (run := _folder(arguments, "run")):
        return _on_record(arguments, run, scratch)
    folder = _folder(arguments, "resume")
    if folder is None:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError("resume= goes on with one run: leave out -m")
    record = OmegaConf.load(check_record(folder))
    given = [argument for argument in arguments if _parts(argument)[0] != "resume"]
    for group in (key for key, _, _ in map(_parts, given) if (conf / key).is_dir()):
        raise UserError(
            f"{group}= chooses anew what the run's record has settled: set single values, such as {group}.<key>=..., "
            "or start a new run"
        )
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
    value = next((value for key, _, value in map(_parts, arguments) if key == option), None)
    return None if value in (None, "''", "null") else Path(_unquoted(value)).expanduser().resolve()


def _on_record(arguments: list[str], run: Path, scratch: Path) -> list[str]:
    """The arguments of evaluate.py, with the run's record brought into the composition."""
    record: Any = OmegaConf.load(check_record(run))
    kept = OmegaConf.masked_copy(record, parts_of(record, arguments))
    anew = [f"  - override /{group}: {empty}" for group, empty in (("metrics", "none"), ("extractor", "auto"))]
    text = ["# @package _global_", "defaults:", *anew, "  - _self_", OmegaConf.to_yaml(kept)]
    (scratch / "recorded").mkdir()
    (scratch / "recorded" / "run.yaml").write_text("\n".join(text))
    rest = [argument for argument in arguments if _parts(argument)[0] != "recorded"]  # which the job of a sweep has
    return [*rest, "recorded=run", f"hydra.searchpath=[{quoted(f'file://{scratch}')}]"]


def parts_of(record: Any, arguments: list[str]) -> list[str]:
    """What evaluate.py takes from a run's record: the seed and the parts, but those that are given anew."""
    given = {"callbacks", "logger", "trainer", *(key for key, _, _ in map(_parts, arguments))}
    parts = {str(key) for key, value in record.items() if key == "seed" or isinstance(value, DictConfig)}
    return sorted(parts - given)


PATHS = ("run", "runs", "resume", "sweep", "checkpoint", "input", "output", "folder", "against", "model.init_from")
"""Options that are paths and nothing else, so that no character in them means anything to Hydra."""


def _parts(argument: str) -> tuple[str, str, str]:
    """Key, "=", and value of an override; resuming is meant however the key is written."""
    key, equals, value = argument.partition("=")
    return key.lstrip("+"), equals, value


def _literal(argument: str) -> str:
    """An override with its value quoted if it is a path, or has a "=" in it, as the folders of sweeps do."""
    key, equals, value = argument.partition("=")
    is_path = key.lstrip("+") in PATHS or ("=" in value and not set(value) & set("'\"[]{}(),"))
    if key.startswith("-") or not equals or not is_path or value == "null" or value[:1] in ("'", '"'):
        return argument
    if key == "runs" and value[:1] + value[-1:] == "[]":  # a list, whose names may need quotes
        names = ",".join(quoted(name.strip()) for name in value[1:-1].split(","))
        return argument if set(value) & set("'\"") else f"{key}=[{names}]"
    return f"{key}={quoted(value)}"


def _unquoted(value: str) -> str:
    return str(OverridesParser.create().parse_override(f"key={value}").value())


def check_record(folder: Path) -> Path:
    """The recorded config of a run folder, refused where it holds more than a config."""
    record = folder / ".hydra" / "config.yaml"
    if not record.is_file():
        raise UserError(f"{folder} is no run folder: it has no .hydra/config.yaml. Runs are in logs/runs/<name>/<time>")
    if {"hydra", "defaults"} & set(OmegaConf.load(record)):
        raise UserError(f"{record} sets `hydra` or `defaults`, which no record does: it may run code, so it is refused")
    return record


# Resolvers -------------------------------------------------------------------------------------------------------


def register_resolvers() -> None:
    """The resolvers that `conf/` uses."""
    OmegaConf.register_new_resolver("first", _first, replace=True)
    OmegaConf.register_new_resolver("swept", sweeps.swept, replace=True)
    OmegaConf.register_new_resolver("condition_size", _condition_size, replace=True)


def _first(*values: Any) -> Any:
    """The first value that is given."""
    return next((value for value in values if value is not None), None)


def _condition_size(data: Any) -> int:
    """How many classes or attributes the samples of these data have. Raises UserError where they have neither."""
    condition = data.get("condition")
    if condition not in (None, "none", "labels", "attributes", "identity"):
        raise UserError(f"data.condition={condition}: must be none, labels (folder), attributes or identity (celeba)")
    names = data.get("attributes") or ()
    size = len([names] if isinstance(names, str) else names) if condition == "attributes" else data.get("num_classes")
    if not size:
        raise UserError(
            "This model is conditioned on labels, which these data do not have. Choose others, such as data=mnist, or "
            "make some: data=celeba data.condition=attributes data.attributes=[Smiling], or data.condition=identity "
            "data.num_classes=10177; data=folder data.condition=labels data.num_classes=<n>"
        )
    return size
