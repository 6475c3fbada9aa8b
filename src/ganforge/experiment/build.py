"""From a config to a run: the data, the model, the callbacks and loggers, and the trainer."""

from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ganforge.callbacks.checkpoints import AtomicCheckpointIO, latest_checkpoint, read_checkpoint
from ganforge.callbacks.shutdown import GracefulShutdown
from ganforge.data.base import TensorData
from ganforge.experiment.compatibility import (
    check_augment,
    check_counterparts,
    check_devices,
    check_loss,
    check_optimizers,
    check_pack,
    check_regularizers,
    has_validations,
)
from ganforge.experiment.profilers import make_profiler
from ganforge.experiment.resolve import resolve_config
from ganforge.experiment.validate import check_groups, check_seeds, check_values
from ganforge.metrics.callback import Evaluation
from ganforge.models.gan import GAN
from ganforge.runs.schemas import WEIGHTS
from ganforge.runtime.devices import strategy
from ganforge.runtime.errors import UserError


class Experiment(NamedTuple):
    data: TensorData
    model: GAN
    trainer: Trainer
    stopping: GracefulShutdown


def build(config: DictConfig, folder: Path, is_new: bool = True) -> Experiment:
    """Make everything that a config describes. Mistakes in it are found here, before any training.

    `is_new`: whether training begins, rather than resumes from a checkpoint.
    """
    prepare_config(config)
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    model = make_model(config, data, is_new)
    stopping = GracefulShutdown()
    callbacks = [stopping, *make_callbacks(config, data, model)]
    loggers = make_loggers(config.logger, folder)
    evaluates = any(isinstance(callback, Evaluation) for callback in callbacks)
    limits = {"limit_val_batches": 1.0 if evaluates else 0}
    trainer = make_trainer(config.trainer, folder, callbacks, logger=loggers, **limits)
    return Experiment(data, model, trainer, stopping)


def prepare_config(config: DictConfig) -> None:
    """Resolve a composed config, and check what can be checked before anything is made of it."""
    check_groups(config)
    check_seeds(config)
    resolve_config(config, "data", "model", "trainer", "callbacks", "logger")
    check_values(config)


def make_model(config: DictConfig, data: TensorData, is_new: bool) -> GAN:
    """The model, ready to train on the data; one that is new starts from the weights of model.init_from."""
    model = instantiate(config.model, _convert_="all")
    check_counterparts(data, model)
    check_optimizers(model)
    check_loss(model.loss)
    check_augment(config, model)
    check_pack(model)
    check_regularizers(model)
    check_devices(config, model)
    model.prepare()
    if model.init_from and is_new:
        start_from(model, model.init_from)
    return model


def make_callbacks(config: DictConfig, data: TensorData, model: GAN) -> list[Callback]:
    """The callbacks, without those that would do nothing."""
    parts = dict(config.callbacks)
    if not has_validations(config, data, model):  # what it needs, such as weights, may not be there
        parts.pop("evaluation", None)
    callbacks = [instantiate(callback, _convert_="all") for callback in parts.values()]
    return [callback for callback in callbacks if _has_work(callback, config, data)]


def _has_work(callback: Callback, config: DictConfig, data: TensorData) -> bool:
    if isinstance(callback, Evaluation):
        return callback.setup_metrics(data)
    return config.trainer.enable_progress_bar or not isinstance(callback, ProgressBar)


def make_loggers(config: DictConfig, folder: Path) -> list[Logger]:
    """The loggers, which all write into the run's folder."""
    return [instantiate(logger, save_dir=str(folder), _partial_=False) for logger in config.values()]


def make_trainer(config: DictConfig, folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    """A trainer as configured; `options` override the config."""
    interval = config.val_check_interval
    fixed = {
        "val_check_interval": interval or 1.0,
        "check_val_every_n_epoch": None if interval else 1,  # intervals are in steps, whatever an epoch is
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module shards batches itself
    }
    return instantiate(
        {**config, **fixed, **options},
        default_root_dir=str(folder),
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        strategy=strategy(config),
        profiler=make_profiler(config.profiler, folder),
        _convert_="all",
    )


def start_from(model: GAN, run: str) -> None:
    """Give a model the weights of another run's last checkpoint, and nothing else of it."""
    try:
        path = latest_checkpoint(Path(run).expanduser())
        model.start_from(read_checkpoint(path, WEIGHTS)["state_dict"])
    except UserError as error:
        raise UserError(f"model.init_from={run}: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"model.init_from={run}: that run has different networks. Use the model= from its .hydra/config.yaml"
        ) from error
