"""Metrics for points, whose distribution is known."""

from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from ganforge.data.base import TensorData
from ganforge.data.points import Mixture
from ganforge.metrics.extractors import Points
from ganforge.metrics.features import FeatureMetric, effective_number
from ganforge.metrics.statistics import Statistics


class Modes(FeatureMetric):
    """Mode coverage of mixtures (Srivastava et al., 2017).

    high_quality: the fraction of samples within `radius` standard deviations of a mode
    modes: the number of modes with a high-quality sample
    classes: the effective number of nearest modes, divided by the number of modes
    """

    scores: ClassVar = {"modes": True, "high_quality": True, "classes": 1.0}
    extractor = Points

    def __init__(self, radius: float = 3.0):
        self.radius = radius

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if not isinstance(data, Mixture):
            return {}
        distance, mode = torch.cdist(fake.features, data.centres()).min(1)
        is_high_quality = distance <= self.radius * data.std
        counts = torch.bincount(mode, minlength=len(data.centres()))
        return {
            "modes": len(mode[is_high_quality].unique()),
            "high_quality": is_high_quality.double().mean().item(),
            "classes": effective_number(counts) / len(counts),
        }


class SlicedWasserstein(FeatureMetric):
    """The Wasserstein-1 distance of the points projected onto a line, averaged over directions (Rabin et al., 2011)."""

    scores: ClassVar = {"sliced_wasserstein": False}
    extractor = Points

    def __init__(self, directions: int = 64):
        self.directions = directions

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        angle = torch.arange(self.directions, dtype=torch.float64) * pi / self.directions
        lines = torch.stack([angle.cos(), angle.sin()])
        distance = wasserstein(fake.features.double() @ lines, real.features.double() @ lines)
        return {"sliced_wasserstein": distance.mean().item()}


def wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """The Wasserstein-1 distance (K,) of each column of (n, K) and (m, K): the area between their CDFs."""
    values, order = torch.cat([first, second]).sort(0)
    steps = torch.cat([torch.full((len(first),), 1 / len(first)), torch.full((len(second),), -1 / len(second))])
    between = steps.to(values)[order].cumsum(0)[:-1].abs()
    return (between * values.diff(dim=0)).sum(0)
