"""The bare loop that `Trainer.fit` is measured against, and the windows in which loops take turns."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from itertools import cycle
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import softplus

from ganforge.models.scheduled import make_optimizer
from ganforge.runtime.pixels import to_unit_range

POOL = 256
"""Crops of photographs that the bare loop has ready."""


def stored(data: Any) -> Tensor:
    """The images of a dataset as uint8; of photographs as many crops as there is place for."""
    if isinstance(data.real, Tensor):
        return data.real
    rows = torch.arange(POOL) % len(data.real)
    corners = (torch.rand(POOL, 2) * (data.real.sizes[rows] - data.image_size + 1)).long()
    return data.real.crops(rows, corners, data.image_size)


class BareLoop:
    """The least that a step needs: the same networks, optimizers and memory format, data and noise on the device.

    One forward pass of D serves its loss, R1 and R2, as in the code of R3GAN's authors. There is no moving average.
    """

    def __init__(
        self, model: Any, data: Any, device: str = "cpu", precision: str = "32-true", is_compiled: bool = False
    ):
        self.model, self.data, self.device = model, data, device
        self.generator = deepcopy(model.generator).to(device)
        self.discriminator = deepcopy(model.discriminator).to(device)
        if is_compiled:
            self.generator.compile()
            self.discriminator.compile()
        self.parameters_g = list(self.generator.parameters())
        self.parameters_d = list(self.discriminator.parameters())
        self.optimizer_g = make_optimizer(model.generator_optimizer, self.parameters_g)
        self.optimizer_d = make_optimizer(model.discriminator_optimizer, self.parameters_d)
        self.images = stored(data).to(device)
        is_mixed = precision == "bf16-mixed"
        self.autocast: Any = torch.autocast(device, torch.bfloat16) if is_mixed else nullcontext()
        self.steps = 0

    def __call__(self) -> None:
        with self.autocast:
            self.step(*self.draw())

    def draw(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Real images, and the generator's inputs: latents or conditions."""
        rows = torch.randint(len(self.images), (self.data.batch_size,), device=self.device)
        real = to_unit_range(self.images.index_select(0, rows))
        if self.model.from_images:
            return real, None, self.data.degradation(real, lambda shape: torch.randn(tuple(shape), device=self.device))
        return real, torch.randn(len(real), self.model.latent.size, device=self.device), None

    def step(self, real: Tensor, latent: Tensor | None, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """One update of each network; returns their losses, D's first."""
        self.steps += 1
        fake = self.generator(latent, condition)
        for parameter in self.parameters_d:
            parameter.grad = None  # as optimizer.zero_grad(), which takes longer
        loss_d = self.discriminator_loss(real, fake.detach(), condition)
        loss_d.backward(inputs=self.parameters_d)
        self.optimizer_d.step()
        for parameter in self.parameters_d:
            parameter.requires_grad_(False)
        for parameter in self.parameters_g:
            parameter.grad = None
        loss_g = self.generator_loss(real, fake, condition)
        loss_g.backward()
        self.optimizer_g.step()
        for parameter in self.parameters_d:
            parameter.requires_grad_(True)
        return loss_d, loss_g

    def discriminator_loss(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        due = {name: part for name, part in self.model.regularizers.items() if self.steps % part.every == 0}
        real = real.detach().requires_grad_("r1" in due)
        fake.requires_grad_("r2" in due)
        real_logits, fake_logits = self.discriminator(real, condition), self.discriminator(fake, condition)
        if self.model.loss.needs_real:
            loss = softplus(fake_logits - real_logits).mean()
        else:
            loss = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        for name, samples, logits in (("r1", real, real_logits), ("r2", fake, fake_logits)):
            if name in due:  # shares the forward pass
                (gradients,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
                penalty = 0.5 * gradients.square().flatten(1).sum(1).mean()
                loss = loss + due[name].weight * due[name].every * penalty
        return loss

    def generator_loss(self, real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        logits = self.discriminator(fake, condition)
        if self.model.loss.needs_real:
            logits = logits - self.discriminator(real, condition)
        loss = softplus(-logits).mean()
        if self.model.from_images:
            loss = self.model.adversarial_weight * loss + self.model.content_weight * self.model.content(fake, real)
        return loss


class Windows(Callback):
    """Times windows of the training it is in, and of the other loops in between.

    `variants` change the training, one for each of its windows in turn. `finish` waits for the device, so that a window
    contains all the work that it launches.
    """

    def __init__(
        self,
        length: int,
        others: Mapping[str, Callable[[], Any]],
        finish: Callable[[], Any] = lambda: None,
        variants: Mapping[str, Callable[[], Any]] | None = None,
    ):
        variants = variants or {"fit": lambda: None}
        self.length = length
        self.order = list(others.items())
        self.finish = finish
        self.turns = cycle(variants.items())
        self.times: dict[str, list[float]] = {name: [] for name in (*variants, *others)}
        self.current = ""
        self.start = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.length:
            return
        self.finish()
        if self.current:
            self.times[self.current].append((time.perf_counter() - self.start) / self.length)
        self.order.reverse()  # or the same loop would always find the caches as the slowest one leaves them
        for name, play in self.order:
            start = time.perf_counter()
            for _step in range(self.length):
                play()
            self.finish()
            self.times[name].append((time.perf_counter() - start) / self.length)
        self.current, change = next(self.turns)
        change()
        self.start = time.perf_counter()
