"""From a run's folder back to its model and its data."""

import logging
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ganforge.callbacks.checkpoints import latest_checkpoint, read_checkpoint
from ganforge.experiment.trust import validate_untrusted
from ganforge.models.gan import GAN
from ganforge.runs.record import read_record
from ganforge.runs.schemas import WEIGHTS
from ganforge.runtime.downloads import first_line
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import is_intact

log = logging.getLogger(__name__)


class Trained(NamedTuple):
    """A run's config and model, and the checkpoint and step that its weights are of."""

    config: DictConfig
    model: GAN
    checkpoint: Path
    step: int


def load_run(folder: str | Path, checkpoint: str = "last") -> Trained:
    """Rebuild a run's config and its model, in eval mode, from its folder.

    `checkpoint` is last, best, or a file. Nothing in the folder can run code: weights are loaded as tensors only, and
    only classes of known kinds from known packages are made (see `validate_untrusted`). Raises UserError.
    """
    folder = Path(folder).expanduser()
    config = read_record(folder)
    if not isinstance(config.get("model"), DictConfig) or "_target_" not in config.model:
        raise UserError(f"{folder}: its recorded config describes no model")
    path = checkpoint_path(folder, checkpoint)
    try:
        model, step = load_model(validate_untrusted(config.model), path)
    except (OmegaConfBaseException, AttributeError, TypeError) as error:
        raise UserError(f"{folder}: its recorded config is inconsistent: {first_line(error)}") from error
    return Trained(config, model, path, step)


def load_data(record: DictConfig) -> Any:
    """The dataset of a run, not yet loaded. Raises UserError if the config is not allowed to instantiate it."""
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
            log.warning("No metric was monitored, so checkpoint=best uses the last checkpoint.")
        return best[-1] if best else latest_checkpoint(folder)
    path = Path(checkpoint).expanduser()
    if not is_intact(path):
        raise UserError(f"checkpoint={checkpoint}: must be last, best, or the file of a checkpoint")
    return path
