"""Two-dimensional sets, which need no file: a GAN on them trains in minutes and can be seen whole."""

from math import pi
from typing import Any

import torch
from torch import Tensor

from ganforge.data.base import TensorData
from ganforge.randomness import Stream, generator
from ganforge.runtime.errors import UserError


class Points(TensorData):
    """`size` points (N, 2), drawn from the seed; a subclass implements `draw`."""

    terms = "These points come from a formula, not from anybody's data."

    def __init__(self, size: int, **options: Any):
        super().__init__(**options)
        if size < 1:
            raise ValueError(f"size={size}: data.size must be at least 1")
        if self.flip:
            raise ValueError("flip=true: points have no mirror images: leave out data.flip")
        self.size = size

    def load(self, split: str = "train") -> tuple[Tensor, None]:
        if split not in ("train", "test"):
            raise UserError(f"split={split}: points have train and test")
        points = self.draw(generator(self.seed, Stream.DATA, *([1] if split == "test" else [])))
        if not points.isfinite().all():
            raise UserError(f"data: the points of {type(self).__name__.lower()} are not finite with these values")
        return points, None

    def draw(self, generator: torch.Generator) -> Tensor:
        raise NotImplementedError


class Quadratic(Points):
    """The parabola y = x^2 + 5 with x uniform on [-5, 5]."""

    def draw(self, generator: torch.Generator) -> Tensor:
        x = torch.rand(self.size, generator=generator) * 10 - 5
        return torch.stack([x, x.square() + 5], dim=1)


class Mixture(Points):
    """An even mixture of Gaussians with the given centres (K, 2) and one standard deviation."""

    def __init__(self, std: float, **options: Any):
        super().__init__(**options)
        if not std >= 0:
            raise ValueError(f"std={std}: must not be negative")
        self.std = std

    def centres(self) -> Tensor:
        raise NotImplementedError

    def draw(self, generator: torch.Generator) -> Tensor:
        centres = self.centres()
        mode = torch.randint(len(centres), (self.size,), generator=generator)
        return centres[mode] + self.std * torch.randn(self.size, 2, generator=generator)


class Ring(Mixture):
    """Eight Gaussians on a circle (Metz et al., 2017)."""

    def __init__(self, radius: float = 2.0, **options: Any):
        super().__init__(**options)
        self.radius = radius

    def centres(self) -> Tensor:
        angle = torch.arange(8) * (2 * pi / 8)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)


class Grid(Mixture):
    """Twenty-five Gaussians on a 5 x 5 grid with the given distance between neighbours (Dumoulin et al., 2017)."""

    def __init__(self, spacing: float = 2.0, **options: Any):
        super().__init__(**options)
        self.spacing = spacing

    def centres(self) -> Tensor:
        line = (torch.arange(5) - 2) * self.spacing
        return torch.cartesian_prod(line, line)
