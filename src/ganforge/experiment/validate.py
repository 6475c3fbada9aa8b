"""Check a config before anything is built: its groups, the types of its values, and their ranges.

Each check raises UserError for what would fail late, or with a library's message.
"""

import logging
from collections import ChainMap
from inspect import Parameter, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer

from ganforge.cli.trainer_options import check_trainer
from ganforge.runs.record import read_record
from ganforge.runtime.devices import requested_devices
from ganforge.runtime.errors import UserError
from ganforge.schedules import Schedule

log = logging.getLogger(__name__)

MAX_SAMPLES = 10_000_000
"""Maximum number of samples to generate for an evaluation: 1000 times the usual number."""

TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    NoneType: "null",
    Schedule: "a schedule",
}


# Groups ----------------------------------------------------------------------------------------------------------


def check_groups(config: DictConfig) -> None:
    """Check that nothing is left out that a run needs, and that callbacks and loggers can be instantiated."""
    trains = "loss" in config.get("model", {})  # bicubic has neither loss nor regularizer
    for group in ("data", "model", "trainer", *(("loss", "regularizer", "augment") if trains else ())):
        # without a _target_, only other options have set keys in it
        if not isinstance(config.get(group), DictConfig) or (
            group not in ("regularizer", "augment") and "_target_" not in config[group]
        ):
            raise UserError(f"{group} is missing: add {group}=<option>")
    advice_on = {"callbacks": "~callbacks.samples leaves out a single one", "logger": "logger=none trains without"}
    for group, advice in advice_on.items():
        if not isinstance(config.get(group), DictConfig):
            raise UserError(f"{group} is missing: {advice}")
    for group in ("schedule", "metrics", "extractor"):
        if group not in config:
            instead = "auto chooses one" if group == "extractor" else "none disables it"
            raise UserError(f"{group} is missing: {group}={instead}")
    for name, callback in config.callbacks.items():
        if not isinstance(callback, DictConfig) or "_target_" not in callback:
            raise UserError(
                f"callbacks.{name} is not a callback: it needs a _target_, or ~callbacks.{name} leaves it out"
            )
    for name, logger in config.logger.items():
        if not isinstance(logger, DictConfig) or "_target_" not in logger:
            raise UserError(f"logger.{name} is not a logger: it needs a _target_, or ~logger.{name} leaves it out")


def check_networks(model: DictConfig) -> None:
    """Check that each network's class takes its arguments: a yaml may inherit those of another model's network."""
    for option in ("generator", "discriminator"):
        network = model.get(option)
        if not isinstance(network, DictConfig) or "_target_" not in network:
            raise UserError(f"model.{option} is missing: it needs a _target_, the network's class")
        yaml = ", or start its yaml from defaults: [base/gan@_here_, _self_], so that it inherits no networks"
        _check_arguments(f"model.{option}", network, yaml)


def _check_arguments(key: str, node: DictConfig, alternative: str = "") -> None:
    """Raise UserError if a class does not take all arguments: another class's are left when only _target_ is set."""
    target = str(node["_target_"])
    try:
        parameters = signature(get_class(target)).parameters
    except Exception:  # instantiating it will report the error
        return
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = [str(name) for name in node if not str(name).startswith("_") and name not in parameters]
    if unknown:
        raise UserError(
            f"{key}.{unknown[0]}: {target} has no argument {', '.join(unknown)}. Replace {key} as a whole: ~{key} "
            f"'+{key}={{_target_: {target}}}'{alternative}"
        )


# Types -----------------------------------------------------------------------------------------------------------


def check_types(node: Any, key: str = "") -> None:
    """Check each value below a node against the annotation of the argument that it is for."""
    if not isinstance(node, dict):
        return
    types = _argument_types(str(node["_target_"])) if "_target_" in node else {}
    for name, value in node.items():
        path = f"{key}.{name}".lstrip(".")
        allowed = types.get(name, ())
        if allowed and not any(_has_type(value, kind) for kind in allowed):
            raise UserError(f"{path}={value}: must be {' or '.join(TYPE_NAMES[kind] for kind in allowed)}")
        check_types(value, path)


def _has_type(value: Any, kind: Any) -> bool:
    if kind is Schedule:
        return isinstance(value, dict) or (isinstance(value, str) and value.startswith("${"))  # or no schedule: {}
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _argument_types(target: str) -> dict[str, tuple[Any, ...]]:
    """The types of a class's arguments, inherited ones included. Other annotations than TYPE_NAMES are left out."""
    try:
        cls = get_class(target)
        hints = [_annotations(vars(base)["__init__"]) for base in reversed(cls.__mro__) if "__init__" in vars(base)]
    except Exception:  # instantiating it will report the error
        return {}
    types = {
        name: get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for name, hint in ChainMap(*reversed(hints)).items()
    }
    known = {name: set(kinds) <= {*TYPE_NAMES, Tensor} for name, kinds in types.items()}
    if issubclass(cls, Optimizer):  # each number among its options may be scheduled
        types = {name: (*kinds, Schedule) if float in kinds else kinds for name, kinds in types.items()}
    return {name: tuple(kind for kind in kinds if kind in TYPE_NAMES) for name, kinds in types.items() if known[name]}


def _annotations(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except NameError:  # torch imports some types for type checkers only
        simple = {kind.__name__: kind for kind in TYPE_NAMES}
        return {name: simple.get(str(annotation), object) for name, annotation in function.__annotations__.items()}


# Values ----------------------------------------------------------------------------------------------------------


def check_values(config: DictConfig) -> None:
    """Check the ranges of values, and the trainer's options against this machine."""
    trainer = config.trainer
    if trainer.accelerator in ("gpu", "cuda") and not (torch.cuda.is_available() or torch.mps.is_available()):
        raise UserError(
            f"trainer.accelerator={trainer.accelerator}: torch finds no GPU here. Use trainer=cpu, or trainer=default "
            "for whatever device there is"
        )
    if (count := requested_devices(trainer.devices)) is not None and count < 1:
        raise UserError(f"trainer.devices={trainer.devices}: must be at least 1, or -1 for all")
    check_count("trainer.num_nodes", trainer.num_nodes)
    check_trainer(trainer)
    check_count("trainer.log_every_n_steps", trainer.log_every_n_steps)
    check_count("evaluate_every", config.trainer.val_check_interval or 1)
    check_count("data.num_samples", config.data.get("num_samples", 1), MAX_SAMPLES)
    if "generator_optimizer" in config.model:
        check_networks(config.model)
    if "_target_" in (config.model.get("loss") or {}):
        _check_arguments("loss", config.model.loss)


def check_count(option: str, value: Any, most: int | None = None) -> None:
    if not _has_type(value, int) or value < 1 or (most is not None and value > most):
        allowed = f"from 1 to {most:,}" if most else "of at least 1"
        raise UserError(f"{option}={value}: must be a whole number {allowed}")


def check_seed(seed: Any, option: str = "seed") -> None:
    if not _has_type(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"{option}={seed}: must be a whole number from 0 to {2**32 - 1}")


def check_seeds(config: DictConfig) -> None:
    """Check the run's seed, and those of the data and the model, which may differ from it."""
    for option in ("seed", "data.seed", "model.seed"):
        check_seed(OmegaConf.select(config, option, default=0), option)


def check_flag(option: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{option}={value}: must be true or false")


def warn_of_stretching(config: DictConfig, folder: Path) -> None:
    """Warn if a run is resumed with another length while a schedule spans the run: its numbers then jump."""
    before, now = (each.trainer.max_steps for each in (read_record(folder), config))
    if before != now and _spans_run(OmegaConf.to_container(config, resolve=True)):
        log.warning(
            "trainer.max_steps=%s: schedules that end with the run now span %s steps instead of %s, so their numbers "
            "jump. To leave one as it was, give it its length: schedule.steps=%s",
            *(now, now, before, before),
        )


def _spans_run(node: Any) -> bool:
    """Whether a config has a schedule without steps."""
    if isinstance(node, dict) and str(node.get("_target_")).startswith("ganforge.schedules."):
        return "milestones" not in node and node.get("steps") is None
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return any(map(_spans_run, children))
