"""Numbers for points, where the truth is known."""

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
    """For mixtures: the modes that have a sample of high quality, one within `radius` standard deviations, and the
    share of such samples (Srivastava et al., 2017).

    classes: effective number of the modes that samples are next to, as a part of all
    """

    scores: ClassVar = {"modes": True, "high_quality": True, "classes": 1.0}
    extractor = Points

    def __init__(self, radius: float = 3.0):
        self.radius = radius

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if not isinstance(data, Mixture):
            return {}
        distance, mode = torch.cdist(fake.features, data.centres()).min(1)
        good = distance <= self.radius * data.std
        counts = torch.bincount(mode, minlength=len(data.centres()))
        return {
            "modes": len(mode[good].unique()),
            "high_quality": good.double().mean().item(),
            "classes": effective_number(counts) / len(counts),
        }


class SlicedWasserstein(FeatureMetric):
    """The Wasserstein-1 distance of two sets of points, projected on a line, averaged over directions (Rabin et al.,
    2011)."""

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
    """The Wasserstein-1 distances between the columns of (n, K) and (m, K): the area between their distributions."""
    values, order = torch.cat([first, second]).sort(0)
    steps = torch.cat([torch.full((len(first),), 1 / len(first)), torch.full((len(second),), -1 / len(second))])
    between = steps.to(values)[order].cumsum(0)[:-1].abs()
    return (between * values.diff(dim=0)).sum(0)
