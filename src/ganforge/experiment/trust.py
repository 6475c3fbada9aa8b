"""What a recorded config may instantiate: classes of known kinds from known packages, never functions."""

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
from torch.optim.lr_scheduler import LRScheduler

from ganforge.content import Content
from ganforge.degradations import Degradation
from ganforge.latents import Latent
from ganforge.losses import Loss
from ganforge.metrics.extractors import File
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.regularizers import Regularizer
from ganforge.runs.untrusted import check_config, texts
from ganforge.runtime.errors import UserError

PACKAGES = ("ganforge", "torch.nn", "torch.optim", "lightning.pytorch")
FOREIGN = {*sys.stdlib_module_names, "torch", "lightning", "hydra", "omegaconf", "numpy"}
"""Packages that are nobody's own: what is made of them is not to be trusted by name."""
PARTS = (nn.Module, Optimizer, LRScheduler, Loss, Regularizer, Latent, Degradation, Content, FeatureMetric, PairMetric)
BASES = (*PARTS, LightningDataModule, Callback, Logger, Trainer)

LOGGERS = (TensorBoardLogger, CSVLogger)
LIGHTNING: tuple[type, ...] = (
    *(Trainer, *LOGGERS, callbacks.EarlyStopping, callbacks.LearningRateMonitor, callbacks.DeviceStatsMonitor),
    *(callbacks.Timer, callbacks.ModelSummary, callbacks.RichModelSummary),
    *(callbacks.TQDMProgressBar, callbacks.RichProgressBar),
)
"""Of Lightning, what writes into the run folder only, and sends nothing anywhere."""

PLACES = ("name", "version", "sub_dir", "prefix")
SETTINGS = ("log_graph", "default_hp_metric", "max_queue", "flush_secs", "flush_logs_every_n_steps")
"""Arguments of a logger: where in the run's folder it writes, and others."""


class Untrusted(UserError):
    """A record makes something that has to be admitted by name."""

    def __init__(self, message: str, name: str):
        super().__init__(f"{message}, and you trust the run folder, set GANFORGE_TRUST={name} in the environment")
        self.name = name


def trust_prefix(config: DictConfig, exempt: Collection[str] = ()) -> str:
    """What a command has to begin with that reads the record of this config, which was typed: `GANFORGE_TRUST=my_lab `,
    or nothing. It makes nothing of the `exempt` sections."""
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
    """What may be made of a config that a stranger wrote: its values, resolved.

    Raises UserError where it names a target that a run folder must not make. Make what this returns, not what it was
    given: an interpolation may become something else the next time. Packages of one's own are admitted by naming them
    in the environment: GANFORGE_TRUST=my_package,other. `exempt` sections may name any target: nothing is made of
    them, or they are not of the record.
    """
    root = config._get_root()  # to which interpolations of a part may lead
    check_config(OmegaConf.to_container(root))
    values = OmegaConf.to_container(config, resolve=True)
    for text in texts(values):
        if "${" in text:  # escaped; whoever resolves it once more could get a target
            raise UserError(f"This run holds {text}, which is computed only later: it may run code, so it is refused")
    trusted = [name for name in os.environ.get("GANFORGE_TRUST", "").split(",") if name]
    for node in _with_targets(_without(values, exempt)):
        if not _within(target := str(node["_target_"]), trusted):
            _check_target(target, node)
    return cast(DictConfig, OmegaConf.create(values))


def _check_target(target: str, node: Mapping[str, Any]) -> None:
    """Raise UserError where a node of a record makes something that is not on the list."""
    if not _within(target, PACKAGES):
        package = target.partition(".")[0]
        problem = f"This run makes {target}, which is not of {', '.join(PACKAGES)}"
        raise UserError(problem) if package in FOREIGN else Untrusted(f"{problem}. If it is yours", package)
    try:
        cls = get_class(target)
    except Exception as error:
        raise UserError(f"This run makes {target}, which is no class") from error
    if not _within(f"{cls.__module__}.", PACKAGES):  # a package may hold a name of another one's
        raise UserError(f"This run makes {target}, which is of {cls.__module__}")
    if not issubclass(cls, BASES):
        raise UserError(f"This run makes {target}, which is no network, optimizer, loss, dataset, metric or callback")
    harm = ""
    if issubclass(cls, File):
        harm = "loads code from a file"
    elif issubclass(cls, Logger) and cls not in LOGGERS:
        harm = "may send what it logs elsewhere (logger=none resumes without it, logger=<another> with your own)"
    elif _within(f"{cls.__module__}.", ["lightning"]) and cls not in LIGHTNING:
        harm = "may write outside of the run folder, or send what it logs elsewhere"
    elif issubclass(cls, LOGGERS) and not _stays_inside(node):
        harm = f"has other settings than {', '.join((*PLACES, *SETTINGS))}, or writes outside of the run folder"
    if harm:
        raise Untrusted(f"This run makes {target}, which {harm}. If that is meant", target)


def _stays_inside(logger: Mapping[str, Any]) -> bool:
    """Whether a logger writes in the folder that it is given: names that lead nowhere, and no other arguments."""
    names = [logger.get(place, "") for place in PLACES]
    stay = all(isinstance(name, str | int | None) and re.fullmatch(r"([\w-][\w.-]*)?", str(name)) for name in names)
    return stay and logger.keys() <= {"_target_", "_partial_", *PLACES, *SETTINGS}


def _without(values: Any, sections: Collection[str]) -> Any:
    return {key: value for key, value in values.items() if key not in sections} if sections else values


def _within(target: str, packages: Any) -> bool:
    return any(f"{target}.".startswith(f"{package}.") for package in packages)


def _with_targets(node: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a config that something is made of."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from _with_targets(value)
