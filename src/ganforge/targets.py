"""What a recorded config may instantiate: classes of known kinds from known packages, never functions."""

import os
import sys
from collections.abc import Iterator
from typing import Any, cast

from hydra.utils import get_class
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ganforge.content import Content
from ganforge.degradations import Degradation
from ganforge.errors import UserError
from ganforge.latents import Latent
from ganforge.losses import Loss
from ganforge.metrics.extractors import File
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.regularizers import Regularizer

PACKAGES = ("ganforge", "torch.nn", "torch.optim", "lightning.pytorch")
FOREIGN = {*sys.stdlib_module_names, "torch", "lightning", "hydra", "omegaconf", "numpy"}
"""Packages that are nobody's own: what is made of them is not to be trusted by name."""
PARTS = (nn.Module, Optimizer, LRScheduler, Loss, Regularizer, Latent, Degradation, Content, FeatureMetric, PairMetric)
BASES = (*PARTS, LightningDataModule, Callback, Logger, Trainer)


def checked(config: DictConfig) -> DictConfig:
    """What may be made of a config that a stranger wrote: its values, resolved.

    Raises UserError where it names a target that a run folder must not make. Make what this returns, not what it was
    given: an interpolation may become something else the next time. Packages of one's own are admitted by naming them
    in the environment: GANFORGE_TRUST=my_package,other.
    """
    values = OmegaConf.to_container(config, resolve=True)
    for text in _texts(values):
        if "${" in text:  # escaped; whoever resolves it once more could get a target
            raise UserError(f"This run holds {text}, which is computed only later: it may run code, so it is refused")
    trusted = [name for name in os.environ.get("GANFORGE_TRUST", "").split(",") if name]
    for target in _targets(values):
        if _within(target, trusted):
            continue
        if not _within(target, PACKAGES):
            package = target.partition(".")[0]
            advice = f". If it is yours, and you trust the run folder, set GANFORGE_TRUST={package} in the environment"
            raise UserError(
                f"This run makes {target}, which is not of {', '.join(PACKAGES)}{'' if package in FOREIGN else advice}"
            )
        try:
            cls = get_class(target)
        except Exception as error:
            raise UserError(f"This run makes {target}, which is no class") from error
        if not _within(f"{cls.__module__}.", PACKAGES):  # a package may hold a name of another one's
            raise UserError(f"This run makes {target}, which is of {cls.__module__}")
        if issubclass(cls, File):
            raise UserError(
                f"This run makes {target}, which loads code from a file. If you trust the run folder, set "
                f"GANFORGE_TRUST={File.__module__} in the environment"
            )
        if not issubclass(cls, BASES):
            raise UserError(
                f"This run makes {target}, which is no network, optimizer, loss, dataset, metric or callback"
            )
    return cast(DictConfig, OmegaConf.create(values))


def _within(target: str, packages: Any) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


def _texts(node: Any) -> Iterator[str]:
    """All texts in a config, names of keys included."""
    if isinstance(node, dict):
        node = [*node, *node.values()]
    if isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)
