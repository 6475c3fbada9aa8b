"""Graceful shutdown: at the end of the step on Ctrl-C or SIGTERM, at once when a loss became NaN or infinite."""

import logging
import signal
from contextlib import suppress
from math import isfinite
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ganforge.runtime.errors import UserError
from ganforge.runtime.lightning_private import stop_after_step
from ganforge.sweeps.job import ignore_parent_death

log = logging.getLogger(__name__)


class Diverged(UserError):
    """A loss or a weight became NaN or infinite."""


class GracefulShutdown(Callback):
    """Ends the run after the current step on Ctrl-C or SIGTERM, and raises `Diverged` on a loss that is not finite.

    `interrupted` is afterwards the number of the signal, or 0. All ranks stop at the same step, whichever noticed.
    """

    def __init__(self) -> None:
        self.interrupted = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here and not on_fit_start, after which Lightning puts a handler that stops on SIGTERM without saving
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, lambda number, _: self._interrupt(trainer, number))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore()

    def _interrupt(self, trainer: Trainer, number: int) -> None:
        is_first, self.interrupted = not self.interrupted, number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ignore_parent_death()
        if trainer.is_global_zero and is_first:
            with suppress(RuntimeError):  # the signal came while another line was written, which Python forbids
                log.warning("Stopping at the end of this step. Ctrl-C again stops at once.")

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        bad_term = self._bad_term(pl_module)
        # a signal that arrives during the reduction is for the next step: the other ranks do not know of it yet
        interrupted, diverged = self.interrupted, bad_term is not None
        if trainer.world_size > 1:
            if not self._is_checked(pl_module):
                return
            flags = torch.tensor([interrupted, diverged], dtype=torch.int32, device=pl_module.device)
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
            interrupted, diverged = flags.tolist()
        if diverged:
            raise Diverged(
                f"{bad_term or 'A loss'} is NaN or infinite at step {trainer.global_step}, so training stopped. The "
                "last good checkpoint is in checkpoints/. A lower learning rate (model.generator_optimizer.lr, "
                "model.discriminator_optimizer.lr) or model.gradient_clip=1 often helps."
            )
        if interrupted:
            self.interrupted = interrupted
            stop_after_step(trainer)

    @staticmethod
    def _is_checked(pl_module: Any) -> bool:
        # reading a value makes a GPU wait, so there only the steps that wait anyway are checked
        return pl_module.device.type == "cpu" or pl_module.step_log.is_due

    def _bad_term(self, pl_module: Any) -> str | None:
        if not self._is_checked(pl_module):
            return None
        return next((name for name, term in pl_module.step_log.terms.items() if not isfinite(term.item())), None)
