"""Makes a composed config ready for building: resolves it, completes it for this machine, checks its types."""

import logging
import os
import warnings

import torch
from omegaconf import DictConfig, OmegaConf

from ganforge.experiment.validate import check_types
from ganforge.runtime.devices import uses_sync_batchnorm

EXPECTED_WARNINGS = (
    "does not have many workers",
    "is smaller than the logging interval",
    "`find_unused_parameters=True` was specified",
    "find_unused_parameters=True was specified in DDP constructor",
    "`torch.jit.load` is deprecated",
    "Experiment logs directory",  # the run folder: its rows are kept
    "`isinstance.treespec, LeafSpec.` is deprecated",
)
"""Beginnings of warnings about settings that are intended."""


def resolve_config(config: DictConfig, *parts: str) -> None:
    """Resolve these parts of a config, fill in what depends on the machine, and check the types of all values."""
    silence_warnings()
    for part in parts:
        OmegaConf.resolve(config[part])
    config.trainer.sync_batchnorm = uses_sync_batchnorm(config.trainer)
    check_types(OmegaConf.to_container(config))


def silence_warnings() -> None:
    """Silence Lightning's warnings about settings that are intended."""
    if not torch.cuda.is_available():
        # Lightning sets this to 1: every optimizer call then asks the driver for GPUs, which takes 0.1 ms
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", f".*{message}")
