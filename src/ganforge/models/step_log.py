"""What a training step logs: losses, gradient norms, and values that show how training is going."""

import time
from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from ganforge.augment import Augmentation
from ganforge.losses import Loss
from ganforge.regularizers import Scored

Tag = Callable[[str], str]
"""Turns the name of a value into its name in the log: `Game.tag`."""


class StepLog:
    """Collects values in the steps that log, and writes their means over all ranks at the end of the step.

    It writes to the loggers directly: `LightningModule.log` costs a tenth of a small step and counts steps from 0.
    """

    def __init__(self) -> None:
        self.terms: dict[str, Tensor] = {}
        """The loss terms of the latest step."""
        self.values: dict[str, float] = {}
        """The latest values that were written, averaged over the ranks."""
        self.is_due = False
        """Whether the current step logs."""
        self._step = 0
        self._collected: dict[str, Tensor] = {}
        self._spreads: dict[str, Tensor] = {}  # of fake and real samples, (2,)
        self._clock: tuple[int, float] | None = None  # step and time at which the rate is measured from

    def start(self, trainer: Trainer, step: int) -> None:
        """Start a step, counted from 1."""
        self._trainer, self._step = trainer, step
        self.is_due = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        self.terms, self._collected, self._spreads = {}, {}, {}
        if self._clock is None:
            self._clock = step - 1, time.perf_counter()

    def restart_clock(self) -> None:
        """Measure images per second from the next step on, without the validation that just ended."""
        self._clock = None

    def add(self, name: str, value: Tensor) -> None:
        """Log the mean of a value, if the current step logs."""
        if self.is_due:
            self._collected[name] = value.detach().mean().float().to(self._trainer.strategy.root_device)

    def add_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log the scheduled numbers of the step."""
        for name, number in numbers.items() if self.is_due else ():
            self.add(f"schedule/{name}", torch.tensor(float(number)))

    def add_augmentations(self, augmentations: Mapping[str, Augmentation]) -> None:
        """Log what augmentations adapt, such as ADA's probability."""
        if self.is_due:
            for name, augmentation in augmentations.items():
                for key, value in augmentation.logged().items():
                    self.add(f"augment/{name}.{key}", value.float())

    def add_scores(self, tag: Tag, real: Scored, fake: Scored, boundary: float | None) -> None:
        """Log D's logits, its accuracy at a decision `boundary`, and the diversity of the fakes."""
        if not self.is_due:
            return
        self.add(tag("logits/real"), real.logits)
        self.add(tag("logits/fake"), fake.logits)
        if boundary is not None:
            self.add(tag("accuracy/real"), (real.logits > boundary).float())
            self.add(tag("accuracy/fake"), (fake.logits < boundary).float())
        if len(fake.samples) * self._trainer.world_size > 1:
            spreads = [self._spread(scored.samples) for scored in (fake, real)]
            self._spreads[tag("diversity")] = torch.stack(spreads)

    def _spread(self, samples: Tensor) -> Tensor:
        """Mean squared distance of this rank's values from the mean over the whole batch."""
        samples = samples.detach().flatten(1).float()
        mean = self._trainer.strategy.reduce(samples.mean(0), reduce_op="mean")
        return (samples - mean).square().mean()

    def add_loss_sensitivity(self, tag: Tag, loss: Loss, fake: Scored, real: Scored | None) -> None:
        """Log how much G's loss changes with D's output: 1 for a Wasserstein loss, near 0 where it saturates."""
        if not self.is_due:
            return
        logits = fake.logits.detach().requires_grad_()
        value = loss.generator(logits, None if real is None else real.logits.detach())
        self.add(tag("slope"), torch.autograd.grad(value, logits)[0].abs().sum())

    def add_update(self, tag: Tag, player: str, network: nn.Module, terms: Mapping[str, Tensor]) -> None:
        """Log the loss terms of an update and the norms of its gradients and weights."""
        for name, term in terms.items():
            self.terms[tag(f"loss_{player}/{name}")] = term.detach()
            self.add(tag(f"loss_{player}/{name}"), term)
        if self.is_due:
            gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
            self.add(tag(f"gradient_norm/{player}"), nn.utils.get_total_norm(gradients))
            self.add(tag(f"weight_norm/{player}"), nn.utils.get_total_norm(network.parameters()))

    def write(self, images: int) -> None:
        """Write what this step collected; `images` is the size of the whole batch."""
        count = len(self._collected)
        values = torch.cat([torch.stack(list(self._collected.values())), *self._spreads.values()])
        means = self._trainer.strategy.reduce(values, reduce_op="mean")
        self.values = dict(zip(self._collected, means[:count].tolist(), strict=True))
        # the ratio of means: a mean of the ranks' ratios would depend on the number of devices
        for tag, (fake, real) in zip(self._spreads, means[count:].view(-1, 2), strict=True):
            self.values[tag] = (fake / real).sqrt().item()
        assert self._clock is not None
        step, then = self._clock
        now = time.perf_counter()
        self.values["time/images_per_second"] = images * (self._step - step) / (now - then)
        self._clock = self._step, now
        for logger in self._trainer.loggers:
            logger.log_metrics(self.values, step=self._step)
