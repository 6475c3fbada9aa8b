"""Samples drawn during training, always from the same latents."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ganforge.pictures import animate, picture, save_picture
from ganforge.runs.loggers import log_image

MOST = 10_000
"""Maximum number of samples in one picture."""


class Samples(Callback):
    """Draws about `count` samples before training, every `every` steps and at the end, into `samples/` and the loggers.

    At the end `samples/training.gif` shows them in motion.
    """

    def __init__(self, every: int, count: int = 64):
        if every < 1:
            raise ValueError(f"sample_every={every}: must be at least 1")
        if not 1 <= count <= MOST:
            raise ValueError(
                f"callbacks.samples.count={count}: must be from 1 to {MOST:,}, because one image shows them all"
            )
        self.every = every
        self.count = count

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:  # else it was drawn before the checkpoint
            self.draw(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        if not picture_path(trainer).exists():
            self.draw(trainer, pl_module)
        animate(
            sorted(picture_path(trainer).parent.glob("step-*.png")), picture_path(trainer).with_name("training.gif")
        )

    def draw(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        samples, columns = pl_module.preview(data, self.count)
        image = picture(samples, data.real, columns)
        save_picture(image, picture_path(trainer))
        log_image(trainer.loggers, "samples", image, trainer.global_step)


def picture_path(trainer: Trainer) -> Path:
    """Where the picture of the current step belongs."""
    return Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:08d}.png"
