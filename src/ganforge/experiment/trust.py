"""What the config of a run folder may instantiate: classes of known kinds from known packages, never functions.

What else the folder may hold is checked in `ganforge.runs.folder_contents`.
"""

import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, cast

from hydra.utils import get_class
from lightning.pytorch import Callback, LightningDataModule, Trainer, callbacks
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from ganforge.cli.resolvers import register_resolvers
from ganforge.content import Content
from ganforge.degradations import Degradation
from ganforge.latents import Latent
from ganforge.losses import Loss
from ganforge.metrics.extractors import File
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.regularizers import Regularizer
from ganforge.runs.folder_contents import check_config, strings
from ganforge.runtime.errors import UserError
from ganforge.schedules import Schedule

PACKAGES = ("ganforge", "torch.nn", "torch.optim", "lightning.pytorch")
NEVER_SUGGESTED = {*sys.stdlib_module_names, "torch", "lightning", "hydra", "omegaconf", "numpy"}
"""Packages that messages never suggest trusting."""
PARTS = (nn.Module, Optimizer, Schedule, Loss, Regularizer, Latent, Degradation, Content, FeatureMetric, PairMetric)
BASES = (*PARTS, LightningDataModule, Callback, Logger, Trainer)

LOGGERS = (TensorBoardLogger, CSVLogger)
LIGHTNING_CLASSES: tuple[type, ...] = (
    *(Trainer, *LOGGERS, callbacks.EarlyStopping, callbacks.LearningRateMonitor, callbacks.DeviceStatsMonitor),
    *(callbacks.Timer, callbacks.ModelSummary, callbacks.RichModelSummary),
    *(callbacks.TQDMProgressBar, callbacks.RichProgressBar),
)
"""Lightning's classes that write inside the run folder only, and send nothing over a network."""

LOGGER_PATHS = ("name", "version", "sub_dir", "prefix")
"""Arguments of a logger that say where in the run folder it writes."""
LOGGER_SETTINGS = ("log_graph", "default_hp_metric", "max_queue", "flush_secs", "flush_logs_every_n_steps")


class Untrusted(UserError):
    """A record instantiates a class that GANFORGE_TRUST may allow by `name`."""

    def __init__(self, message: str, name: str):
        super().__init__(f"{message}. If you trust this run folder, set GANFORGE_TRUST={name} in the environment")
        self.name = name


def trust_prefix(config: DictConfig, exempt: Collection[str] = ()) -> str:
    """The prefix of commands that read this config from a run folder: `GANFORGE_TRUST=my_lab `, or empty.

    exempt: sections that those commands do not instantiate
    """
    names = []
    for node in _with_targets(_without(OmegaConf.to_container(config, resolve=True), exempt)):
        try:
            _check_target(str(node["_target_"]), node)
        except Untrusted as error:
            names.append(error.name)
        except UserError:
            continue
    return f"GANFORGE_TRUST={','.join(dict.fromkeys(names))} " if names else ""


def validate_untrusted(config: DictConfig, exempt: Collection[str] = ()) -> DictConfig:
    """Resolve an untrusted config, and check what it would instantiate.

    Instantiate the returned config, not the argument: an interpolation may resolve to something else the next time.
    The environment variable GANFORGE_TRUST=my_package,other allows packages of your own. Raises UserError.

    exempt: sections that are not instantiated, or not from the record
    """
    register_resolvers()  # in a notebook, no command has
    root = config._get_root()  # interpolations of a section may refer to any other
    check_config(OmegaConf.to_container(root))
    values = OmegaConf.to_container(config, resolve=True)
    for text in strings(values):
        if "${" in text:  # escaped: resolving it once more could yield a target
            raise UserError(
                f"This run's config holds {text}, which would be resolved later. It may run code, so it is refused"
            )
    trusted = [name for name in os.environ.get("GANFORGE_TRUST", "").split(",") if name]
    for node in _with_targets(_without(values, exempt)):
        if not _within(target := str(node["_target_"]), trusted):
            _check_target(target, node)
    return cast(DictConfig, OmegaConf.create(values))


def _check_target(target: str, node: Mapping[str, Any]) -> None:
    """Raise UserError if a node instantiates anything but an allowed class."""
    if not _within(target, PACKAGES):
        package = target.partition(".")[0]
        problem = f"This run's config instantiates {target}, which is not from {', '.join(PACKAGES)}"
        raise UserError(problem) if package in NEVER_SUGGESTED else Untrusted(problem, package)
    try:
        cls = get_class(target)
    except Exception as error:
        raise UserError(f"This run's config instantiates {target}, which is not a class") from error
    if not _within(f"{cls.__module__}.", PACKAGES):  # a package may import names of another
        raise UserError(
            f"This run's config instantiates {target}, which is defined in {cls.__module__}, which is not allowed"
        )
    if not issubclass(cls, BASES):
        raise UserError(
            f"This run's config instantiates {target}, which is not a network, optimizer, loss, dataset, metric or "
            "callback"
        )
    harm = ""
    if issubclass(cls, File):
        harm = "loads code from a file"
    elif issubclass(cls, Logger) and cls not in LOGGERS:
        harm = "may send logs over a network, so resume with logger=none or a logger= of your own"
    elif _within(f"{cls.__module__}.", ["lightning"]) and cls not in LIGHTNING_CLASSES:
        harm = "may write outside of the run folder, or send logs over a network"
    elif issubclass(cls, LOGGERS) and not _stays_inside(node):
        known = ", ".join((*LOGGER_PATHS, *LOGGER_SETTINGS))
        harm = f"has settings other than {known}, or writes outside of the run folder"
    if harm:
        raise Untrusted(f"This run's config instantiates {target}, which {harm}", target)


def _stays_inside(logger: Mapping[str, Any]) -> bool:
    """Whether a logger writes only inside its folder: its names contain no paths, and it has no other arguments."""
    names = [logger.get(place, "") for place in LOGGER_PATHS]
    are_plain = all(
        isinstance(name, str | int | None) and re.fullmatch(r"([\w-][\w.-]*)?", str(name)) for name in names
    )
    return are_plain and logger.keys() <= {"_target_", "_partial_", *LOGGER_PATHS, *LOGGER_SETTINGS}


def _without(values: Any, sections: Collection[str]) -> Any:
    return {key: value for key, value in values.items() if key not in sections} if sections else values


def _within(target: str, packages: Any) -> bool:
    return any(f"{target}.".startswith(f"{package}.") for package in packages)


def _with_targets(node: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a config that are instantiated."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _with_targets(value)
