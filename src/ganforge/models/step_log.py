"""What a step logs: the losses, the gradients, and what tells how a game goes."""

import time

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ganforge.losses import Loss
from ganforge.models.game import Game, LossTerms


class StepLog(LightningModule):
    """Gathers values in a step that logs, and writes their means over the ranks at its end."""

    loss: Loss

    def __init__(self) -> None:
        super().__init__()
        self.terms: LossTerms = {}
        """The loss terms of the latest step."""
        self.logged: dict[str, float] = {}
        """What was logged last, averaged over the ranks."""
        self.step_number = 0
        """The number of the step being played, from 1."""
        self.is_logging = False
        self._records: LossTerms = {}
        self._spreads: LossTerms = {}
        """Of fakes and of reals (2,), of which all ranks together make the ratio."""
        self._clock: tuple[int, float] | None = None

    def start_step(self) -> None:
        self.step_number = self.trainer.global_step + 1
        self.is_logging = self.step_number % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self.terms, self._records, self._spreads = {}, {}, {}
        if self._clock is None:
            self._clock = self.step_number - 1, time.perf_counter()

    def record(self, game: Game, name: str, value: Tensor) -> None:
        """Log the mean of a value, if this step is one that logs."""
        if self.is_logging:
            self._records[game.tag(name)] = value.detach().mean().float().to(self.device)

    def log_game(self, game: Game, real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor) -> None:
        """Log what tells how a game goes."""
        self.record(game, "logits/real", real_logits)
        self.record(game, "logits/fake", fake_logits)
        if self.loss.boundary is not None:
            self.record(game, "accuracy/real", (real_logits > self.loss.boundary).float())
            self.record(game, "accuracy/fake", (fake_logits < self.loss.boundary).float())
        if len(fake) * self.trainer.world_size > 1:
            self._spreads[game.tag("diversity")] = torch.stack([self._spread(fake), self._spread(real)])

    def _spread(self, samples: Tensor) -> Tensor:
        """Mean square, over all values of this rank's samples, of the distance from the mean of the whole batch."""
        samples = samples.detach().flatten(1).float()
        mean = self.trainer.strategy.reduce(samples.mean(0), reduce_op="mean")
        return (samples - mean).square().mean()

    def log_loss_sensitivity(self, game: Game, fake_logits: Tensor, real_logits: Tensor | None) -> None:
        """Log how much G's loss changes with D's output, which is 1 for a Wasserstein loss."""
        logits = fake_logits.detach().requires_grad_()
        loss = self.loss.generator(logits, None if real_logits is None else real_logits.detach())
        self.record(game, "slope", torch.autograd.grad(loss, logits)[0].abs().sum())

    def log_update(self, game: Game, player: str, network: nn.Module, optimizer: Optimizer, terms: LossTerms) -> None:
        """Log the loss of an update, and the gradients that it made."""
        for name, term in terms.items():
            self.terms[game.tag(f"loss_{player}/{name}")] = term.detach()
            self.record(game, f"loss_{player}/{name}", term)
        if self.is_logging:
            norm = nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
            self.record(game, f"gradient_norm/{player}", norm)
            self.record(game, f"weight_norm/{player}", nn.utils.get_total_norm(network.parameters()))
            if "initial_lr" in optimizer.param_groups[0]:  # there is a schedule
                self.record(game, f"learning_rate/{player}", torch.tensor(optimizer.param_groups[0]["lr"]))

    def write(self, images: int) -> None:
        """Write what this step recorded; `images` are those of the whole batch.

        Not by `self.log`, which costs a tenth of a small step, and numbers the steps from 0.
        """
        count = len(self._records)
        values = torch.cat([torch.stack(list(self._records.values())), *self._spreads.values()])
        means = self.trainer.strategy.reduce(values, reduce_op="mean")
        self.logged = dict(zip(self._records, means[:count].tolist(), strict=True))
        # a mean of the ranks' ratios would be another number
        for name, (of_fakes, of_reals) in zip(self._spreads, means[count:].view(-1, 2), strict=True):
            self.logged[name] = (of_fakes / of_reals).sqrt().item()
        assert self._clock is not None
        step, then = self._clock
        now = time.perf_counter()
        self.logged["time/images_per_second"] = images * (self.step_number - step) / (now - then)
        self._clock = self.step_number, now
        for logger in self.loggers:
            logger.log_metrics(self.logged, step=self.step_number)

    def on_validation_end(self) -> None:
        self._clock = None  # images per second are those of training
