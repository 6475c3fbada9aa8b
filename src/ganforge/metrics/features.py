"""Numbers made of features: how far generated samples are from real ones, how good and how varied they are.

To add one: a class here, a line in `conf/metrics/`. torchmetrics' own need the line only.
"""

import logging
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ganforge.data.base import TensorData
from ganforge.metrics.extractors import Extractor, StackedDigits
from ganforge.metrics.scores import Better
from ganforge.metrics.statistics import Statistics

log = logging.getLogger(__name__)


class FeatureMetric:
    """A number, or several, made of the statistics of generated samples, and of real ones."""

    scores: ClassVar[Mapping[str, Better]] = {}
    """The names of the numbers, and which are better: higher ones (True), lower ones (False), those nearer to 1.0."""
    needs_samples: ClassVar[bool] = True
    """Whether single features are looked at, or mean and covariance are enough."""
    extractor: ClassVar[type[Extractor]] = Extractor
    """Whose features it is made of."""

    def sizes(self, data: TensorData) -> list[int | None]:
        """Sizes that images are made smaller to before their features are made; None: as they are."""
        return [None]

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        """The numbers by name; none where the samples lack what they are made of, such as labels."""
        raise NotImplementedError


class FrechetDistance(FeatureMetric):
    """The distance of two Gaussians with the means and covariances of the features: FID (Heusel et al., 2017)."""

    scores: ClassVar = {"fid": False}
    needs_samples = False

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        size = len(fake.mean)
        if min(fake.size, real.size) <= size:
            log.warning(
                "fid: %d generated and %d real samples are too few for %d features, so the number is too high, and to "
                "be compared at these counts only",
                fake.size,
                real.size,
                size,
            )
        return {"fid": frechet_distance(fake.mean, fake.covariance, real.mean, real.covariance)}


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with means (D,) and covariances (D, D) in float64.

    With S = R R^T the last trace is the sum of the singular values of R1^T R2: no root of a matrix, whose rounding
    errors would be roots as well, and nothing that singular covariances break.
    """
    shared = torch.linalg.svdvals(_root(covariance).T @ _root(other_covariance)).sum()
    spread = covariance.trace() + other_covariance.trace()
    distance = (mean - other_mean).square().sum() + spread - 2 * shared
    rounding = len(mean) * torch.finfo(mean.dtype).eps * spread
    return distance.item() if distance > rounding else 0.0


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance, which may be singular."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, positive] * values[positive].sqrt()


class KernelDistance(FeatureMetric):
    """The squared maximum mean discrepancy with a cubic kernel, unbiased, over subsets: KID (Binkowski et al., 2018).

    By torch-fidelity, which draws the subsets from a seed of its own.
    """

    scores: ClassVar = {"kid": False}

    def __init__(self, subsets: int = 100, subset_size: int = 1000):
        self.subsets = subsets
        self.subset_size = subset_size

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

        size = min(self.subset_size, len(fake.features), len(real.features))
        if size < 2:
            return {}
        found = kid_features_to_metric(
            fake.features, real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        return {"kid": found[KEY_METRIC_KID_MEAN]}


class InceptionScore(FeatureMetric):
    """exp of the mean divergence of a sample's classes from those of all, over splits: IS (Salimans et al., 2016).

    By torch-fidelity, which shuffles the samples before it splits them.
    """

    scores: ClassVar = {"is": True}

    def __init__(self, splits: int = 10, shuffle: bool = True):
        self.splits = splits
        self.shuffle = shuffle

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric

        if fake.logits is None or len(fake.logits) < self.splits:
            return {}
        return {"is": isc_features_to_metric(fake.logits, self.splits, self.shuffle)[KEY_METRIC_ISC_MEAN]}


class Neighbourhoods(FeatureMetric):
    """Whether generated and real samples lie among each other; a ball reaches from a sample to its k-th neighbour.

    precision: share of generated samples in some real sample's ball, k = 3 (Kynkaanniemi et al., 2019)
    recall: share of real samples in some generated sample's ball, k = 3
    density: how many real balls a generated sample lies in, of k = 5 expected (Naeem et al., 2020)
    coverage: share of real balls, k = 5, that a generated sample lies in; outliers move these two less

    On at most `samples` of each. Precision and recall are torch-fidelity's, in a fifth of the time.
    """

    scores: ClassVar = {"precision": True, "recall": True, "density": True, "coverage": True}

    neighbours = (3, 5)

    def __init__(self, samples: int = 10_000):
        self.samples = samples

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        fakes, reals = spread(fake.features, self.samples), spread(real.features, self.samples)
        if min(len(fakes), len(reals)) <= max(self.neighbours):
            return {}
        fake_radii = _radii(fakes, self.neighbours)[:, 0]
        real_radii = _radii(reals, self.neighbours)
        precise, inside = torch.zeros(len(fakes), dtype=torch.bool), torch.zeros(len(fakes))
        recalled, covered = [], []
        for rows in torch.arange(len(reals)).split(BLOCK):
            distances = torch.cdist(reals[rows], fakes)
            small, large = real_radii[rows].unsqueeze(2).unbind(1)
            precise |= (distances <= small).any(0)
            recalled.append((distances <= fake_radii).any(1))
            within = distances < large
            inside += within.sum(0)
            covered.append(within.any(1))
        return {
            "precision": precise.double().mean().item(),
            "recall": torch.cat(recalled).double().mean().item(),
            "density": inside.double().mean().item() / self.neighbours[1],
            "coverage": torch.cat(covered).double().mean().item(),
        }


BLOCK = 1000
"""Rows of a matrix of distances that are in memory at once."""


def _radii(features: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """Distances (N, len(neighbours)) to the k-th neighbours; the nearest sample is the sample itself."""
    farthest = max(neighbours) + 1
    found = [torch.cdist(rows, features).topk(farthest, largest=False).values for rows in features.split(BLOCK)]
    return torch.cat(found)[:, list(neighbours)]


def spread(rows: Tensor, count: int) -> Tensor:
    """At most `count` rows, evenly spread."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]


class Diversity(FeatureMetric):
    """Root mean square distance of two generated samples' features, as a part of that of real ones: 0 is all alike."""

    scores: ClassVar = {"diversity": 1.0}
    needs_samples = False

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        return {"diversity": (fake.covariance.trace() / real.covariance.trace()).sqrt().item()}


class Classes(FeatureMetric):
    """Effective number of the classes that the extractor's classifier sees in generated samples, as a part of that in
    real ones."""

    scores: ClassVar = {"classes": 1.0}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.logits is None or real.logits is None:
            return {}
        drawn, given = (effective_number(logits.argmax(1).bincount()) for logits in (fake.logits, real.logits))
        return {"classes": drawn / given}


def effective_number(counts: Tensor) -> float:
    """exp of the entropy: how many classes there would be, were they even."""
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp().item()


# Where samples have labels ---------------------------------------------------------------------------------------


class ClassAccuracy(FeatureMetric):
    """Share of conditional samples that the extractor's classifier takes for what they were asked to be."""

    scores: ClassVar = {"class_accuracy": True}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.labels is None or _accuracy(real, data) < 0.5:  # the classifier knows other classes than these
            return {}
        return {"class_accuracy": _accuracy(fake, data)}


def _accuracy(samples: Statistics, data: TensorData) -> float:
    """Share of samples that the extractor's classifier takes for what their labels say; 0 where it has others."""
    if samples.logits is None or samples.labels is None or samples.logits.shape[1] != data.num_classes:
        return 0.0
    return (samples.logits.argmax(1) == samples.labels).double().mean().item()


class ClassFrechetDistance(FeatureMetric):
    """The Fréchet distance within each of at most 100 classes, and their mean."""

    scores: ClassVar = {"class_fid": False}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.labels is None or real.labels is None or not 1 < (data.num_classes or 0) <= 100:
            return {}
        found = {}
        for label in range(data.num_classes or 0):
            sets = [side.features[side.labels == label].double() for side in (fake, real)]
            if min(map(len, sets)) > 1:
                moments = [moment for features in sets for moment in (features.mean(0), torch.cov(features.T))]
                found[f"class_fid/{label}"] = frechet_distance(*moments)
        return {"class_fid": sum(found.values()) / len(found), **found} if found else {}


class StackedModes(FeatureMetric):
    """How many of the thousand triples of digits were drawn, and the divergence of their frequencies from the real
    ones in nats (Metz et al., 2017)."""

    scores: ClassVar = {"modes": True, "kl": False, "classes": 1.0}
    extractor = StackedDigits

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        drawn, given = (_frequencies(side.logits) for side in (fake, real))
        seen = drawn > 0
        # a mode that real samples lack counts as if it had been seen half a time
        given = given.clamp_min(0.5 / real.size)
        return {
            "modes": int(seen.sum()),
            "kl": (drawn[seen] * (drawn[seen] / given[seen]).log()).sum().item(),
            "classes": effective_number(drawn) / effective_number(given),
        }


def _frequencies(logits: Tensor | None) -> Tensor:
    assert logits is not None
    digits = logits.unflatten(1, (3, 10)).argmax(2)
    triples = (digits * torch.tensor([100, 10, 1])).sum(1)
    return one_hot(triples, 1000).sum(0).double() / len(triples)
