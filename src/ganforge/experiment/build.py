"""From a config to a run: the data, the model and the trainer, and back from a run's folder."""

import logging
import os
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ganforge.callbacks.checkpoints import AtomicCheckpointIO, latest_checkpoint, read_checkpoint
from ganforge.callbacks.shutdown import GracefulShutdown
from ganforge.cli.resolvers import register_resolvers
from ganforge.data.base import TensorData
from ganforge.experiment.compatibility import (
    check_counterparts,
    check_devices,
    check_loss,
    check_optimizers,
    has_validations,
)
from ganforge.experiment.trust import validate_untrusted
from ganforge.experiment.validate import check_groups, check_seeds, check_types, check_values
from ganforge.metrics.callback import Evaluation
from ganforge.models.gan import GAN
from ganforge.runs.record import read_record
from ganforge.runs.schemas import WEIGHTS
from ganforge.runtime.devices import strategy, uses_sync_batchnorm
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import is_intact

log = logging.getLogger(__name__)


class NullProfiler(PassThroughProfiler):
    """No profiler, for less: Lightning's enters a generator for each of the hundred hooks of a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._nothing


class Trained(NamedTuple):
    """A run's config and model, and the checkpoint and step that its weights are of."""

    config: DictConfig
    model: GAN
    checkpoint: Path
    step: int


class Experiment(NamedTuple):
    data: TensorData
    model: GAN
    trainer: Trainer
    stopping: GracefulShutdown


def build(config: DictConfig, folder: Path, is_new: bool = True) -> Experiment:
    """Make everything that a config describes. Mistakes in it are found here, before any training.

    `is_new`: whether training begins, rather than goes on from a checkpoint.
    """
    check_groups(config)
    check_seeds(config)
    resolve_config(config, "data", "model", "trainer", "callbacks", "logger")
    check_values(config)
    seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data, _convert_="all")
    model = instantiate(config.model, _convert_="all")
    check_counterparts(data, model)
    check_optimizers(model)
    check_loss(model.loss)
    check_devices(config, model)
    model.prepare()
    if model.init_from and is_new:
        start_from(model, model.init_from)
    parts = dict(config.callbacks)
    if not has_validations(config, data, model):  # what it needs, such as weights, may not be there
        parts.pop("evaluation", None)
    stopping = GracefulShutdown()
    callbacks = [stopping, *(instantiate(callback, _convert_="all") for callback in parts.values())]
    evaluates = any(callback.setup_metrics(data) for callback in callbacks if isinstance(callback, Evaluation))
    if not config.trainer.enable_progress_bar:
        callbacks = [callback for callback in callbacks if not isinstance(callback, ProgressBar)]
    loggers = [instantiate(logger)(save_dir=str(folder)) for logger in config.logger.values()]
    limit = 1.0 if evaluates else 0
    trainer = make_trainer(config.trainer, folder, callbacks, logger=loggers, limit_val_batches=limit)
    return Experiment(data, model, trainer, stopping)


def resolve_config(config: DictConfig, *parts: str) -> None:
    """Resolve these parts of a config, fill in what depends on the machine, and check the types of all values."""
    silence_warnings()
    for part in parts:
        OmegaConf.resolve(config[part])
    config.trainer.sync_batchnorm = uses_sync_batchnorm(config.trainer)
    check_types(OmegaConf.to_container(config))


def make_trainer(config: DictConfig, folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    """A trainer as configured; `options` override the config."""
    interval = config.val_check_interval
    fixed = {
        "val_check_interval": interval or 1.0,
        "check_val_every_n_epoch": None if interval else 1,  # intervals are in steps, whatever an epoch is
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data shares itself out
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


def make_profiler(kind: str | None, folder: Path) -> Profiler:
    """The profiler of trainer.profiler, which writes `fit-profile.txt` into a folder at the end of a training."""
    if kind is None:
        return NullProfiler()
    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    if kind not in kinds:
        raise UserError(f"trainer.profiler={kind}: must be null, {', '.join(kinds)}")
    return kinds[kind](dirpath=folder, filename="profile")


def start_from(model: GAN, run: str) -> None:
    """Give a model the weights of another run's last checkpoint, and nothing else of it."""
    try:
        path = latest_checkpoint(Path(run).expanduser())
        model.start_from(read_checkpoint(path, WEIGHTS)["state_dict"])
    except UserError as error:
        raise UserError(f"model.init_from={run}: {error}") from error
    except RuntimeError as error:
        raise UserError(
            f"model.init_from={run}: the networks of that run are others: model= has to be as in its .hydra/config.yaml"
        ) from error


def load_run(folder: str | Path, checkpoint: str = "last") -> Trained:
    """Rebuild a run's config and its model, in eval mode, from its folder.

    `checkpoint` is last, best, or a file. Nothing in the folder can run code: weights are loaded as tensors only, and
    only classes of known kinds from known packages are made (see `validate_untrusted`). Raises UserError.
    """
    folder = Path(folder).expanduser()
    register_resolvers()
    config = read_record(folder)
    if not isinstance(config.get("model"), DictConfig) or "_target_" not in config.model:
        raise UserError(f"{folder}: its record describes no model")
    path = checkpoint_path(folder, checkpoint)
    try:
        model, step = load_model(validate_untrusted(config.model), path)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"{folder}: its record does not hold together: {first_line(error)}") from error
    return Trained(config, model, path, step)


def load_data(record: DictConfig) -> Any:
    """The dataset of a run's record, not yet loaded. Raises UserError where it is none that may be made."""
    return instantiate(validate_untrusted(record.data), _convert_="all")


def load_model(config: DictConfig, path: Path) -> tuple[Any, int]:
    """The model of a config with a checkpoint's weights, in eval mode, and the checkpoint's step."""
    config.compile = False  # not worth its time for a few samples
    model = instantiate(config, _convert_="all")
    state = read_checkpoint(path, WEIGHTS)
    model.load_state_dict(state["state_dict"])
    return model.eval(), state["global_step"]


def checkpoint_path(folder: Path, checkpoint: str) -> Path:
    if checkpoint == "last":
        return latest_checkpoint(folder)
    if checkpoint == "best":
        best = sorted((folder / "checkpoints").glob("best-*.ckpt"))
        if not best:
            log.warning("This run monitored no metric, so `best` is `last`.")
        return best[-1] if best else latest_checkpoint(folder)
    path = Path(checkpoint).expanduser()
    if not is_intact(path):
        raise UserError(f"checkpoint={checkpoint}: must be last, best, or the file of a checkpoint")
    return path


def silence_warnings() -> None:
    """Silence what Lightning says about settings that are right here."""
    if not torch.cuda.is_available():
        # Lightning makes torch ask the driver for GPUs, and every optimizer call asks: 0.1 ms each, for none
        os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "0"
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "does not have many workers",
        "is smaller than the logging interval",
        "Detected call of `lr_scheduler.step",  # of D's, which the first stage of SRGAN does not train
        "`find_unused_parameters=True` was specified",
        "find_unused_parameters=True was specified in DDP constructor",
        "`torch.jit.load` is deprecated",
        "Experiment logs directory",  # which is the run's folder, or whose rows are kept
        "`isinstance.treespec, LeafSpec.` is deprecated",
    ):
        warnings.filterwarnings("ignore", f".*{message}")
