"""From a config to a run: the data, the model and the trainer, and back from a run's folder."""

import logging
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.utils import instantiate
from lightning.fabric.utilities import rank_zero
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ganforge.callbacks.checkpoints import AtomicCheckpointIO, latest_checkpoint
from ganforge.callbacks.stopping import Diverged, Stopping
from ganforge.cli import INTERRUPTED, check_record
from ganforge.data.base import TensorData
from ganforge.errors import UserError
from ganforge.models.gan import GAN
from ganforge.run_folder import describe, drop_events_after, finish_message
from ganforge.targets import check_targets

log = logging.getLogger(__name__)


class Experiment(NamedTuple):
    data: TensorData
    model: GAN
    trainer: Trainer
    stopping: Stopping


def build(config: DictConfig, folder: Path) -> Experiment:
    """Make everything that a config describes. Mistakes in it are found here, before any training."""
    for part in ("data", "model", "trainer", "callbacks", "logger"):
        OmegaConf.resolve(config[part])
    _quiet()
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    model = instantiate(config.model, _convert_="all")
    _check_devices(config, model)
    stopping = Stopping()
    callbacks = [stopping, *instantiate(config.callbacks, _convert_="all").values()]
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    no_validation = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "limit_val_batches": 0}
    trainer = instantiate(
        config.trainer if config.trainer.val_check_interval else {**config.trainer, **no_validation},
        default_root_dir=str(folder),
        logger=[instantiate(logger)(save_dir=str(folder)) for logger in config.logger.values()],
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        strategy=strategy(config.trainer),
        _convert_="all",
    )
    return Experiment(data, model, trainer, stopping)


def train(config: DictConfig, folder: Path) -> int:
    """Train, or go on with, the run in a folder. Returns the exit status: 0, or 130 after Ctrl-C."""
    checkpoint = None
    if config.resume:
        check_targets(config)
        checkpoint = latest_checkpoint(folder)
    elif _rank() == 0 and (folder / "checkpoints").exists():
        raise UserError(f"{folder} holds a run already: go on with it by resume={folder}, or use another hydra.run.dir")
    experiment = build(config, folder)
    data, model, trainer, _ = experiment
    if trainer.is_global_zero:  # other ranks start once this one has what all of them need
        data.prepare_data()
        data.setup()
        if checkpoint is None:
            describe(config, folder, trainer)
        else:
            step = torch.load(checkpoint, weights_only=True, map_location="cpu", mmap=True)["global_step"]
            if -1 < trainer.max_steps <= step:
                log.info("This run is finished: its %d steps are done. Raise trainer.max_steps to go on.", step)
                return 0
            log.info("Going on after step %d.", step)
            drop_events_after(folder, step)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Diverged as error:
        raise Diverged(f"{error}\nThe run is in {folder}") from error
    interrupted = experiment.stopping.interrupted
    if trainer.is_global_zero:
        log.info(finish_message(folder, interrupted, trainer.global_step))
    return INTERRUPTED if interrupted else 0


def load_run(folder: str | Path, checkpoint: str = "last") -> tuple[DictConfig, GAN]:
    """Rebuild a run's config and its model, in eval mode, from its folder.

    `checkpoint` is last, best, or a file. Nothing in the folder can run code: weights are loaded as tensors only, and
    only classes of known kinds from known packages are made (see `check_targets`). Raises UserError.
    """
    folder = Path(folder).expanduser()
    config = OmegaConf.load(check_record(folder))
    assert isinstance(config, DictConfig)
    check_targets(config)
    OmegaConf.resolve(config.model)
    config.model.compile = False  # not worth its time for a few samples
    model = instantiate(config.model, _convert_="all")
    state = torch.load(checkpoint_path(folder, checkpoint), weights_only=True, map_location="cpu")
    model.load_state_dict(state["state_dict"])
    return config, model.eval()


def checkpoint_path(folder: Path, checkpoint: str) -> Path:
    if checkpoint == "last":
        return latest_checkpoint(folder)
    if checkpoint == "best":
        best = sorted((folder / "checkpoints").glob("best-*.ckpt"))
        if not best:
            log.warning("This run monitored no metric, so `best` is `last`.")
        return best[-1] if best else latest_checkpoint(folder)
    if not Path(checkpoint).is_file():
        raise UserError(f"checkpoint={checkpoint}: must be last, best, or a file, and this is no file")
    return Path(checkpoint)


def _rank() -> int:
    """The rank of this process, also before training, when only the environment tells."""
    return rank_zero._get_rank() or 0


def device_count(trainer: DictConfig) -> int:
    """How many processes a trainer's config asks for, on all nodes."""
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        count = max(1, torch.cuda.device_count()) if trainer.accelerator in ("auto", "gpu", "cuda") else 1
    else:
        count = int(devices) if str(devices).isdigit() else len(str(devices).split(","))
    return count * trainer.num_nodes


def strategy(trainer: DictConfig) -> str:
    """The strategy as configured; for several devices, `auto` is DDP that bears one network's gradients at a time."""
    if trainer.strategy != "auto" or device_count(trainer) == 1:
        return trainer.strategy
    return "ddp_find_unused_parameters_true"


def _check_devices(config: DictConfig, model: nn.Module) -> None:
    devices = device_count(config.trainer)
    if config.data.batch_size % devices:
        raise UserError(
            f"data.batch_size={config.data.batch_size} does not divide by {devices} devices, which share it out: "
            f"use {config.data.batch_size // devices * devices or devices}"
        )
    on_cpu = config.trainer.accelerator == "cpu" or not torch.cuda.is_available()
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if devices > 1 and on_cpu and batch_norm and _rank() == 0:
        log.warning(
            "BatchNorm on %d CPU processes: each normalises its own %d rows, as torch cannot synchronise it on CPUs. "
            "The run differs from one on a single process.",
            devices,
            config.data.batch_size // devices,
        )


def _quiet() -> None:
    """Silence what Lightning says about settings that are right here."""
    if not torch.cuda.is_available():
        # Lightning makes torch ask the driver for GPUs, and every optimizer call asks: 0.1 ms each, for none
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "is smaller than the logging interval",
        "`find_unused_parameters=True` was specified",
        "find_unused_parameters=True was specified in DDP constructor",
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{message}")
