"""Checkpoints that survive a kill at any moment: written atomically, verified by checksums, never only one."""

import logging
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from shutil import copyfile
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ganforge.callbacks.health import HEALTHY, Health, state_in
from ganforge.callbacks.shutdown import Diverged
from ganforge.metrics.callback import Evaluation
from ganforge.runs.schemas import CHECKPOINT, VERSION, fault
from ganforge.runtime.devices import rank
from ganforge.runtime.errors import Damaged, UserError
from ganforge.runtime.files import is_intact, write_atomic
from ganforge.runtime.lightning_private import correct_progress, is_last_step, validates_after_step
from ganforge.runtime.trainers import callback_of

log = logging.getLogger(__name__)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically; Lightning's own may be left half-written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()  # torch.save to a full disk raises an error that hides the reason
        torch.save(checkpoint, content)
        write_atomic(path, content.getbuffer())


class Checkpoints(Checkpoint):
    """Keeps `checkpoints/last.ckpt`, the one before as `previous.ckpt`, and `best-*.ckpt` by the monitored metric.

    Saves before the first step, every `every` steps and at the end. `healthy.ckpt` is kept only with
    `on_collapse=rewind`. A rewind returns to it: the latest checkpoint that was followed by another one without a sign
    of a collapse.
    """

    def __init__(self, every: int):
        if every < 1:
            raise ValueError(f"checkpoint_every={every}: must be at least 1")
        self.every = every
        self._optimizer_states: int | None = None  # their number in the checkpoint from which training resumes

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._optimizer_states = len(checkpoint["optimizer_states"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        found, expected = self._optimizer_states, len(trainer.optimizers)
        if found not in (None, expected):  # Lightning would silently skip the others
            raise Damaged(
                f"The checkpoint has the state of {found} optimizers, but this model has {expected}: resume with the "
                "model= it was trained with"
            )
        if trainer.global_step == 0:
            self.save(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        # Lightning assumes that a checkpoint from here includes the validation, and skips it on resuming
        if self._is_due(trainer) and not validates_after_step(trainer):
            self.save(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._keep_best(trainer)
        if self._is_due(trainer):
            self.save(trainer, pl_module)

    def _is_due(self, trainer: Trainer) -> bool:
        return is_last_step(trainer) or trainer.global_step % self.every == 0

    def save(self, trainer: Trainer, pl_module: Any) -> None:
        """Save `last.ckpt` on all ranks. Raises Diverged if a weight is not finite."""
        if not all(parameter.isfinite().all() for parameter in pl_module.parameters()):
            raise Diverged(
                f"A weight is NaN or infinite after step {trainer.global_step}, so training stopped. The last good "
                "checkpoint is in checkpoints/. A lower learning rate or model.gradient_clip=1 often helps."
            )
        pl_module.broadcast_buffers()
        for logger in trainer.loggers:  # resuming from this checkpoint must not lose buffered log entries
            logger.save()
        folder = Path(trainer.default_root_dir, "checkpoints")
        trainer.save_checkpoint(folder / "next.ckpt")
        health = callback_of(trainer, Health)
        is_healthy = health is not None and health.on_collapse == "rewind" and health.is_healthy
        if trainer.is_global_zero:
            if (folder / "last.ckpt").exists():
                (folder / "last.ckpt").replace(folder / "previous.ckpt")
            (folder / "next.ckpt").replace(folder / "last.ckpt")
            if is_healthy:
                # not the last one, because a collapse begins before it shows
                healthy = next(name for name in ("previous.ckpt", "last.ckpt") if (folder / name).exists())
                _link(folder / healthy, folder / HEALTHY)
        if health is not None:
            health.can_rewind |= is_healthy

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        correct_progress(checkpoint, trainer)

    def _keep_best(self, trainer: Trainer) -> None:
        evaluation = callback_of(trainer, Evaluation)
        monitor = evaluation.selection.monitor if evaluation else None
        if evaluation is None or not evaluation.scores.improved(monitor):
            return
        folder = Path(trainer.default_root_dir, "checkpoints")
        path = folder / f"best-{monitor}-step-{trainer.global_step:08d}.ckpt".replace("/", "_")
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            for other in folder.glob("best-*.ckpt"):
                if other != path:
                    other.unlink()


def _link(path: Path, link: Path) -> None:
    """Hard-link a file to another name, replacing a file of that name atomically."""
    part = link.with_name(f"{link.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(path)
    except OSError:  # a file system without hard links
        copyfile(path, part)
    part.replace(link)


def rewind(run: Path, step: int) -> int:
    """Replace the last checkpoint of a run that collapsed at `step` by the healthy one, with new random numbers.

    The history of signs, rewinds and best scores is kept. Returns the step of the healthy checkpoint.
    """
    folder = run / "checkpoints"
    collapsed, healthy = read_checkpoint(folder / "last.ckpt"), read_checkpoint(folder / HEALTHY)
    healthy["rewinds"] = collapsed["rewinds"] + 1
    history, health = state_in(collapsed), state_in(healthy)
    target = healthy["global_step"]
    noticed = [
        {**sign, "until": sign.get("until", step)} if sign["noticed"] > target else sign for sign in history["noticed"]
    ]
    health.update(noticed=noticed, rewinds=[*history["rewinds"], {"from": step, "to": target}])
    scores = healthy["callbacks"].get(Evaluation.__name__, {})
    for name, score in collapsed["callbacks"].get(Evaluation.__name__, {}).items():
        scores.setdefault(name, score)["best"] = score["best"]  # its checkpoint still exists
    AtomicCheckpointIO().save_checkpoint(healthy, folder / "last.ckpt")
    return target


def latest_checkpoint(run: Path) -> Path:
    """The newest intact checkpoint of a run folder; warns if the last one is damaged. Raises UserError if all are."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        raise UserError(f"{run} is not a run folder: it has no checkpoints. Runs are in logs/runs/<name>/<time>")
    last, previous = folder / "last.ckpt", folder / "previous.ckpt"
    if is_intact(last):
        return last
    if is_intact(previous):
        if rank() == 0:
            log.warning("%s is %s: using the one before", last, "damaged" if last.exists() else "missing")
        return previous
    raise UserError(f"{folder} holds no intact checkpoint: neither last.ckpt nor previous.ckpt can be read")


def read_checkpoint(path: Path, schema: Any = CHECKPOINT) -> dict[str, Any]:
    """Read a checkpoint to the CPU. Raises UserError if it holds more than tensors and plain values, and Damaged if it
    does not match the schema."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values: it may run code, so it is refused"
        ) from error
    except OSError as error:
        raise Damaged(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # torch raises errors of many kinds, with advice that is unsafe for untrusted files
        raise Damaged(f"{path} is not a ganforge checkpoint: it cannot be read as tensors and plain values") from error
    if wrong := fault(state, schema):
        raise Damaged(f"{path} is not a ganforge checkpoint: {wrong}{_version_note(state)}")
    return state


def _version_note(state: Any) -> str:
    found = state.get("pytorch-lightning_version") if isinstance(state, dict) else None
    if fault(found, VERSION) or found == lightning.__version__:
        return ""
    return f" (written by Lightning {found}; this is {lightning.__version__})"
