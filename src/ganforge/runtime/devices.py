"""The number of devices of a run, and the settings that depend on it."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from ganforge.runtime.errors import UserError
from ganforge.runtime.lightning_private import environment_rank
from ganforge.runtime.overrides import key_of


def rank() -> int:
    """The rank of this process; before training it comes from environment variables."""
    return environment_rank() or 0


def device_count(trainer: DictConfig) -> int:
    """How many processes a trainer's config asks for, on all nodes."""
    count = requested_devices(trainer.devices)
    if count is None:
        count = max(1, torch.cuda.device_count()) if trainer.accelerator in ("auto", "gpu", "cuda") else 1
    return count * trainer.num_nodes


def requested_devices(devices: Any) -> int | None:
    """How many devices a value such as 2, "2", "0,1" or [0, 1] asks for; None for all of them, "auto" or -1."""
    if isinstance(devices, list | ListConfig):
        return len(devices)
    try:
        count = None if devices == "auto" else int(devices)
    except (TypeError, ValueError, OverflowError):
        return len([device for device in str(devices).split(",") if device.strip()])
    return None if count == -1 else count


DDP = "ddp_find_unused_parameters_true"
"""DDP that accepts an update in which only one of the networks has gradients."""


def strategy(trainer: DictConfig) -> str:
    """The configured strategy. With several devices, `auto` is DDP that allows unused parameters, because each backward
    pass reaches only one of the networks."""
    if trainer.strategy != "auto" or device_count(trainer) == 1:
        return trainer.strategy
    return DDP


def uses_sync_batchnorm(trainer: DictConfig) -> bool:
    """Whether BatchNorm is synchronized: as configured, by default on several GPUs (torch has none for CPUs)."""
    if trainer.sync_batchnorm is not None:
        return trainer.sync_batchnorm
    return device_count(trainer) > 1 and not on_cpu(trainer)


def on_cpu(trainer: DictConfig) -> bool:
    return trainer.accelerator == "cpu" or not torch.cuda.is_available()


def max_processes(option: str) -> int:
    """The limit of an option that starts processes, unless the user typed it: the devices of this machine."""
    if option == "trainer.num_nodes":
        return int(os.environ.get("SLURM_NNODES", 1))
    return max(torch.cuda.device_count(), cpu_count() or 1)


def check_fits(trainer: DictConfig, overrides: Sequence[str]) -> None:
    """Raise UserError if a record asks for more processes than this machine has, and no override asks for them."""
    if not isinstance(trainer.num_nodes, int):
        return  # validation reports wrong types
    counts = {"trainer.devices": device_count(trainer) // trainer.num_nodes, "trainer.num_nodes": trainer.num_nodes}
    for option, count in counts.items():
        if count > max_processes(option) and not any(option == key_of(override) for override in overrides):
            raise UserError(
                f"This run's recorded config asks for {option}={count}, but this machine has only "
                f"{max_processes(option)}: pass {option}= explicitly"
            )


def cpu_count() -> int | None:
    """The number of CPU cores that this process may use; None if unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
