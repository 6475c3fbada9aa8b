"""What a run tells its loggers besides numbers: its config, pictures and texts, whatever the logger can show."""

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
"""Scalars that TensorBoard's Custom Scalars show in one chart, for each game."""


def log_image(loggers: Iterable[Logger], name: str, image: Image.Image, step: int) -> None:
    """Show a picture in every logger that has pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # Weights & Biases, and others with Lightning's signature
            logger.log_image(name, [image], step=step)


def log_text(loggers: Iterable[Logger], name: str, text: str, step: int) -> None:
    """Show a text in every logger that has texts."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, step)
        elif hasattr(logger, "log_text"):
            logger.log_text(name, columns=["text"], data=[[text]], step=step)


def describe_run(loggers: Iterable[Logger], config: DictConfig, folder: Path, games: Sequence[Game]) -> None:
    """Give every logger the config of a run that begins, in the form that it shows."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            _describe_to_tensorboard(logger, config, folder, games)
        elif not isinstance(logger, CSVLogger):  # whose file lies beside .hydra/config.yaml
            logger.log_hyperparams(_values(config))


def resume_logs(loggers: Iterable[Logger], config: DictConfig, folder: Path, games: Sequence[Game], step: int) -> None:
    """Have every logger continue after a step, without a gap and without a step twice where it can take rows back.

    Weights & Biases cannot: it gets a row `resumed_from`, after which the larger steps come again.
    """
    truncate_logs(folder, step)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue_csv(logger, step)
        elif not isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({**_values(config), "resumed_from": step})
            logger.log_metrics({"resumed_from": step}, step)
        elif not event_files(folder):  # this logger is new to the run
            _describe_to_tensorboard(logger, config, folder, games)


def _values(config: DictConfig) -> Any:
    return OmegaConf.to_container(config, resolve=True)


def _describe_to_tensorboard(
    logger: TensorBoardLogger, config: DictConfig, folder: Path, games: Sequence[Game]
) -> None:
    from torch.utils.tensorboard.summary import hparams  # slow to import, and needed at the start of a training only

    text = OmegaConf.to_yaml(config)
    logger.experiment.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))
    # without torch's list of all columns: TensorBoard would take one run's for those of all
    _, session, _ = hparams(hyperparameters(folder), {})
    logger.experiment._get_file_writer().add_summary(session)
    logger.experiment.add_custom_scalars({game.name or "game": _charts(game) for game in games})


def _charts(game: Game) -> dict[str, list[Any]]:
    return {title: ["Multiline", [game.tag(value) for value in values]] for title, values in CHARTS.items()}
