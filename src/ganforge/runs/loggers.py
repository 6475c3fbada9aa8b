"""What loggers get besides numbers: images, texts and the config, as far as they can show them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from ganforge.models.gan import Game
from ganforge.runs.folder import hyperparameters
from ganforge.runs.logs import continue_csv, event_files, truncate_logs

CHARTS = {
    "losses of D and G": ("loss_d/total", "loss_g/total"),
    "D's output on real and fake": ("logits/real", "logits/fake"),
    "D's accuracy on real and fake": ("accuracy/real", "accuracy/fake"),
    "gradient norms of D and G": ("gradient_norm/d", "gradient_norm/g"),
}
"""The charts of TensorBoard's Custom Scalars tab, for each game."""


def log_image(loggers: Iterable[Logger], name: str, image: Image.Image, step: int) -> None:
    """Log an image to every logger that shows images."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # Weights & Biases, and others with Lightning's signature
            logger.log_image(name, [image], step=step)


def log_text(loggers: Iterable[Logger], name: str, text: str, step: int) -> None:
    """Log a text to every logger that shows texts."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["text"], data=[[text]], step=step)


def describe_run(loggers: Iterable[Logger], config: DictConfig, folder: Path, games: Sequence[Game]) -> None:
    """Log the config of a new run to every logger, in the form that the logger shows."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _describe_to_tensorboard(logger, config, folder, games)
        elif not isinstance(logger, CSVLogger):  # its file is beside .hydra/config.yaml
            logger.log_hyperparams(_resolved(config))


def resume_logs(loggers: Iterable[Logger], config: DictConfig, folder: Path, games: Sequence[Game], step: int) -> None:
    """Have every logger continue after the step that a run resumes from, without a gap or a repeated step.

    Weights & Biases cannot remove rows. It gets a row `resumed_from` that marks where the repeated steps begin.
    """
    truncate_logs(folder, step)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue_csv(logger, step)
        elif not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({**_resolved(config), "resumed_from": step})
            logger.log_metrics({"resumed_from": step}, step)
        elif not event_files(folder):  # the run had no TensorBoard before
            _describe_to_tensorboard(logger, config, folder, games)


def _resolved(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def _describe_to_tensorboard(
    logger: TensorBoardLogger, config: DictConfig, folder: Path, games: Sequence[Game]
) -> None:
    from torch.utils.tensorboard.summary import hparams  # slow to import

    text = OmegaConf.to_yaml(config)
    logger.experiment.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))
    # without the columns that torch adds: TensorBoard would take those of one run for all runs
    _, session, _ = hparams(hyperparameters(folder), {})
    logger.experiment._get_file_writer().add_summary(session)
    logger.experiment.add_custom_scalars({game.name or "game": _charts(game) for game in games})


def _charts(game: Game) -> dict[str, list[Any]]:
    return {title: ["Multiline", [game.tag(value) for value in values]] for title, values in CHARTS.items()}
