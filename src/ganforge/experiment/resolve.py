"""A composed config made ready for building: resolved, completed for this machine, its types checked."""

import logging
import os
import warnings

import torch
from omegaconf import DictConfig, OmegaConf

from ganforge.experiment.validate import check_types
from ganforge.runtime.devices import uses_sync_batchnorm

RIGHT_HERE = (
    "does not have many workers",
    "is smaller than the logging interval",
    "Detected call of `lr_scheduler.step",  # of D's, which the first stage of SRGAN does not train
    "`find_unused_parameters=True` was specified",
    "find_unused_parameters=True was specified in DDP constructor",
    "`torch.jit.load` is deprecated",
    "Experiment logs directory",  # which is the run's folder, or whose rows are kept
    "`isinstance.treespec, LeafSpec.` is deprecated",
)
"""Warnings about settings that are right here."""


def resolve_config(config: DictConfig, *parts: str) -> None:
    """Resolve these parts of a config, fill in what depends on the machine, and check the types of all values."""
    silence_warnings()
    for part in parts:
        OmegaConf.resolve(config[part])
    config.trainer.sync_batchnorm = uses_sync_batchnorm(config.trainer)
    check_types(OmegaConf.to_container(config))


def silence_warnings() -> None:
    """Silence what Lightning says about settings that are right here."""
    if not torch.cuda.is_available():
        # Lightning makes torch ask the driver for GPUs, and every optimizer call asks: 0.1 ms each, for none
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in RIGHT_HERE:
        warnings.filterwarnings("ignore", f".*{message}")
