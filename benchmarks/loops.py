"""The bare loop that `Trainer.fit` is measured against, and the windows in which loops take turns."""

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.functional import softplus

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


def bare_loop(
    model: Any, data: Any, device: str = "cpu", precision: str = "32-true", is_compiled: bool = False
) -> Callable[[], None]:
    """The least that a step needs: the same networks, optimizers and memory format, data and noise on the device."""
    generator, discriminator = deepcopy(model.generator).to(device), deepcopy(model.discriminator).to(device)
    if is_compiled:
        generator.compile()
        discriminator.compile()
    optimizer_g = model.generator_optimizer(generator.parameters())
    optimizer_d = model.discriminator_optimizer(discriminator.parameters())
    parameters_g, parameters_d = list(generator.parameters()), list(discriminator.parameters())
    images = stored(data).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bf16-mixed")

    def inputs(real: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if model.from_images:
            return None, data.degradation(real, lambda shape: torch.randn(tuple(shape), device=device))
        return torch.randn(len(real), model.latent.size, device=device), None

    def generator_loss(real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        loss = softplus(-discriminator(fake, condition)).mean()
        if model.from_images:
            loss = model.adversarial_weight * loss + model.content_weight * model.content(fake, real)
        return loss

    r1 = model.regularizers.get("r1")

    def discriminator_loss(real: Tensor, fake: Tensor, condition: Tensor | None) -> Tensor:
        real.requires_grad_(r1 is not None)
        real_logits, fake_logits = discriminator(real, condition), discriminator(fake.detach(), condition)
        loss = softplus(-real_logits).mean() + softplus(fake_logits).mean()
        if r1 is not None:  # shares the forward pass
            (gradients,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
            loss = loss + r1.weight * 0.5 * gradients.square().flatten(1).sum(1).mean()
        return loss

    def step() -> None:
        rows = torch.randint(len(images), (data.batch_size,), device=device)
        real = to_unit_range(images.index_select(0, rows))
        latent, condition = inputs(real)
        fake = generator(latent, condition)
        for parameter in parameters_d:
            parameter.grad = None  # as optimizer.zero_grad(), which takes longer
        discriminator_loss(real, fake, condition).backward(inputs=parameters_d)
        optimizer_d.step()
        for parameter in parameters_d:
            parameter.requires_grad_(False)
        for parameter in parameters_g:
            parameter.grad = None
        generator_loss(real, fake, condition).backward()
        optimizer_g.step()
        for parameter in parameters_d:
            parameter.requires_grad_(True)

    def cast() -> None:
        with autocast:
            step()

    return cast if precision == "bf16-mixed" else step


class Windows(Callback):
    """Times windows of the training it is in, and of the other loops in between.

    `finish` waits for the device: what it was told to do is part of the window.
    """

    def __init__(self, length: int, others: dict[str, Callable[[], None]], finish: Callable[[], Any] = lambda: None):
        self.length = length
        self.order = list(others.items())
        self.finish = finish
        self.times: dict[str, list[float]] = {name: [] for name in ("fit", *others)}
        self.start = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % self.length:
            return
        self.finish()
        if self.start:
            self.times["fit"].append((time.perf_counter() - self.start) / self.length)
        self.order.reverse()  # or the same loop would always find the caches as the slowest one leaves them
        for name, play in self.order:
            start = time.perf_counter()
            for _step in range(self.length):
                play()
            self.finish()
            self.times[name].append((time.perf_counter() - start) / self.length)
        self.start = time.perf_counter()
