"""Lightning's private names are where we look for them, and mean what we take them to mean."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ganforge.runtime import lightning_private as private


class TwoUpdates(LightningModule):
    """Counts a step for two optimizer calls, as a GAN does."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        optimizer = private.step_uncounted(self.optimizers())
        for _ in range(2):
            self.manual_backward(self.layer(batch).sum())
            optimizer.step()
        private.count_step(self.trainer)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class Watch(Callback):
    """Notes after each step what is known of the next."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.steps: list[int] = []
        self.validates: list[bool] = []
        self.is_last: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)
        self.validates.append(private.validates_after_step(trainer))
        if trainer.global_step == self.stop_at:
            private.stop_after_step(trainer)
        self.is_last.append(private.is_last_step(trainer))


def fit(folder: Path, callback: Callback, checkpoint: Path | None = None, **options: Any) -> Trainer:
    data = torch.utils.data.DataLoader(torch.ones(4, 1), batch_size=1)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[callback],
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, **options,
    )  # fmt: skip
    trainer.fit(TwoUpdates(), data, data, ckpt_path=checkpoint)
    return trainer


def test_steps_are_counted_by_us_alone(tmp_path: Path) -> None:
    watch = Watch()
    options = {"max_steps": 6, "val_check_interval": 3, "check_val_every_n_epoch": None}
    assert fit(tmp_path, watch, **options).global_step == 6
    assert watch.steps == [1, 2, 3, 4, 5, 6]
    assert watch.validates == [False, False, True, False, False, True]
    assert watch.is_last == [False] * 5 + [True]


def test_stopping_runs_no_validation(tmp_path: Path) -> None:
    watch = Watch(stop_at=2)
    options = {"max_steps": 6, "val_check_interval": 6, "check_val_every_n_epoch": None}
    trainer = fit(tmp_path, watch, **options)
    assert trainer.global_step == 2
    assert watch.is_last == [False, True]


class Save(Callback):
    """Saves a corrected checkpoint after each step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir, f"{trainer.global_step}.ckpt"))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        private.correct_progress(checkpoint, trainer)


def test_a_run_resumed_twice_has_as_many_epochs(tmp_path: Path) -> None:
    """Also from the end of an epoch, of four steps, after which Lightning alone trains one epoch too many."""
    fit(tmp_path, Save(), max_epochs=3)
    for step in (3, 4, 8):
        resumed = fit(tmp_path, Save(), tmp_path / f"{step}.ckpt", max_epochs=3)
        assert resumed.global_step == 12
        last, before = (torch.load(tmp_path / f"{n}.ckpt", weights_only=True) for n in (12, 11))
        assert private.is_finished(last, resumed)
        assert not private.is_finished(before, resumed)


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert private.environment_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert private.environment_rank() == 3


@pytest.mark.parametrize(
    ("steps", "epochs", "expected"), [(10, None, True), (11, -1, False), (-1, 2, True), (-1, 3, False)]
)
def test_a_finished_run(steps: int, epochs: int | None, expected: bool) -> None:
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"is_last_batch": True}}}
    checkpoint = {"global_step": 10, "epoch": 1, "loops": loops}
    trainer: Any = SimpleNamespace(max_steps=steps, max_epochs=epochs)
    assert private.is_finished(checkpoint, trainer) is expected
