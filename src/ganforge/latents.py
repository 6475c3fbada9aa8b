"""Distributions that the generator's input is drawn from."""

import torch
from torch import Tensor


class Latent:
    """A distribution over vectors of `size` independent numbers. Called as `latent(count, generator)`."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size={size}: a latent vector needs at least one number")
        self.size = size

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw (count, size)."""
        raise NotImplementedError


class Normal(Latent):
    """Standard normal."""

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, self.size, generator=generator)


class Uniform(Latent):
    """Uniform on [-1, 1), as in the first GAN papers (Goodfellow et al., 2014; Radford et al., 2016)."""

    def __call__(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, self.size, generator=generator).mul_(2).sub_(1)
