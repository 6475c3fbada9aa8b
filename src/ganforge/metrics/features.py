"""Metrics computed from features: the distance of generated to real samples, their quality and their diversity.

To add one: a class here and an entry in a file of `conf/metrics/`. A metric of torchmetrics needs only the entry.
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
    """One or more scores from the statistics of generated and real samples."""

    scores: ClassVar[Mapping[str, Better]] = {}
    """The names of the scores, and which values are better (see `Better`)."""
    needs_samples: ClassVar[bool] = True
    """Whether `compute` uses the features of single samples, beyond their mean and covariance."""
    extractor: ClassVar[type[Extractor]] = Extractor
    """The kind of extractor that the metric needs."""

    def sizes(self, data: TensorData) -> list[int | None]:
        """The sizes to which images are downsampled before extraction; None is full size."""
        return [None]

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        """The scores by name; empty if the samples lack something, such as labels or enough samples."""
        raise NotImplementedError


class FrechetDistance(FeatureMetric):
    """FID: the Fréchet distance between two Gaussians fitted to the features (Heusel et al., 2017)."""

    scores: ClassVar = {"fid": False}
    needs_samples = False

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        dimension = len(fake.mean)
        if min(fake.size, real.size) <= dimension:
            log.warning(
                "fid: %d generated and %d real samples are too few for %d features, so the value is too high. Compare "
                "it only with values from equally many samples",
                fake.size,
                real.size,
                dimension,
            )
        return {"fid": frechet_distance(fake.mean, fake.covariance, real.mean, real.covariance)}


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), with means (D,) and covariances (D, D) in float64.

    With S = R R^T the last trace is the sum of the singular values of R1^T R2. This avoids the square root of a matrix,
    which amplifies rounding errors, and works for singular covariances.
    """
    cross = torch.linalg.svdvals(_root(covariance).T @ _root(other_covariance)).sum()
    variance = covariance.trace() + other_covariance.trace()
    distance = (mean - other_mean).square().sum() + variance - 2 * cross
    rounding = len(mean) * torch.finfo(mean.dtype).eps * variance
    return distance.item() if distance > rounding else 0.0


def _root(covariance: Tensor) -> Tensor:
    """R with R R^T = covariance; the covariance may be singular."""
    root, failed = torch.linalg.cholesky_ex(covariance)
    if not failed:
        return root
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors[:, positive] * values[positive].sqrt()


class KernelDistance(FeatureMetric):
    """KID: unbiased squared maximum mean discrepancy, cubic kernel, averaged over subsets (Bińkowski et al., 2018).

    Computed by torch-fidelity, which draws the subsets from a seed of its own.
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
        result = kid_features_to_metric(
            fake.features, real.features, kid_subsets=self.subsets, kid_subset_size=size, verbose=False
        )
        return {"kid": result[KEY_METRIC_KID_MEAN]}


class InceptionScore(FeatureMetric):
    """IS: exp of the mean KL divergence between conditional and marginal class distributions (Salimans et al., 2016).

    Computed by torch-fidelity as the mean over splits of the shuffled samples.
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
    """Precision, recall, density and coverage. The ball of a sample extends to its k-th nearest neighbour.

    precision: the fraction of generated samples in a real ball, k = 3 (Kynkäänniemi et al., 2019)
    recall: the fraction of real samples in a generated ball, k = 3
    density: the mean number of real balls around a generated sample, divided by k = 5 (Naeem et al., 2020)
    coverage: the fraction of real balls that contain a generated sample, k = 5

    Density and coverage are less sensitive to outliers. At most `samples` of each side are used. Precision and recall
    equal torch-fidelity's in a fifth of the time.
    """

    scores: ClassVar = {"precision": True, "recall": True, "density": True, "coverage": True}

    neighbours = (3, 5)

    def __init__(self, samples: int = 10_000):
        self.samples = samples

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        fakes, reals = subsample(fake.features, self.samples), subsample(real.features, self.samples)
        if min(len(fakes), len(reals)) <= max(self.neighbours):
            return {}
        fake_radii = _radii(fakes, self.neighbours)[:, 0]
        real_radii = _radii(reals, self.neighbours)
        is_precise, balls = torch.zeros(len(fakes), dtype=torch.bool), torch.zeros(len(fakes))
        is_recalled, is_covered = [], []
        for rows in torch.arange(len(reals)).split(DISTANCE_ROWS):
            distances = torch.cdist(reals[rows], fakes)
            small, large = real_radii[rows].unsqueeze(2).unbind(1)
            is_precise |= (distances <= small).any(0)
            is_recalled.append((distances <= fake_radii).any(1))
            within = distances < large
            balls += within.sum(0)
            is_covered.append(within.any(1))
        return {
            "precision": is_precise.double().mean().item(),
            "recall": torch.cat(is_recalled).double().mean().item(),
            "density": balls.double().mean().item() / self.neighbours[1],
            "coverage": torch.cat(is_covered).double().mean().item(),
        }


DISTANCE_ROWS = 1000
"""Rows of a distance matrix that are in memory at once."""


def _radii(features: Tensor, neighbours: tuple[int, ...]) -> Tensor:
    """Distances (N, len(neighbours)) to the k-th nearest neighbours, not counting the sample itself."""
    nearest = [
        torch.cdist(rows, features).topk(max(neighbours) + 1, largest=False).values
        for rows in features.split(DISTANCE_ROWS)
    ]
    return torch.cat(nearest)[:, list(neighbours)]  # column 0 is the sample itself


def subsample(rows: Tensor, count: int) -> Tensor:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, dtype=torch.float64).round().long()]


class Diversity(FeatureMetric):
    """Root mean square distance between generated samples' features, relative to real samples: 0 if all are alike."""

    scores: ClassVar = {"diversity": 1.0}
    needs_samples = False

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        return {"diversity": (fake.covariance.trace() / real.covariance.trace()).sqrt().item()}


class Classes(FeatureMetric):
    """Effective number of classes that the extractor predicts for generated samples, relative to real samples."""

    scores: ClassVar = {"classes": 1.0}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.logits is None or real.logits is None:
            return {}
        fakes, reals = (effective_number(logits.argmax(1).bincount()) for logits in (fake.logits, real.logits))
        return {"classes": fakes / reals}


def effective_number(counts: Tensor) -> float:
    """exp of the entropy of a histogram: the number of classes if all were equally frequent."""
    frequencies = counts.double() / counts.sum()
    return torch.special.entr(frequencies).sum().exp().item()


# Samples with labels ---------------------------------------------------------------------------------------------


class ClassAccuracy(FeatureMetric):
    """The fraction of conditional samples that the extractor's classifier assigns to their label."""

    scores: ClassVar = {"class_accuracy": True}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.labels is None or _accuracy(real, data) < 0.5:  # the classifier has other classes than the data
            return {}
        return {"class_accuracy": _accuracy(fake, data)}


def _accuracy(samples: Statistics, data: TensorData) -> float:
    """The fraction of samples that the classifier assigns to their label; 0 if it has another number of classes."""
    if samples.logits is None or samples.labels is None or samples.logits.shape[1] != data.num_classes:
        return 0.0
    return (samples.logits.argmax(1) == samples.labels).double().mean().item()


class ClassFrechetDistance(FeatureMetric):
    """The Fréchet distance within each class, and the mean over classes; for at most 100 classes."""

    scores: ClassVar = {"class_fid": False}

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        if fake.labels is None or real.labels is None or not 1 < (data.num_classes or 0) <= 100:
            return {}
        distances = {}
        for label in range(data.num_classes or 0):
            sets = [side.features[side.labels == label].double() for side in (fake, real)]
            if min(map(len, sets)) > 1:
                moments = [moment for features in sets for moment in (features.mean(0), torch.cov(features.T))]
                distances[f"class_fid/{label}"] = frechet_distance(*moments)
        return {"class_fid": sum(distances.values()) / len(distances), **distances} if distances else {}


class StackedModes(FeatureMetric):
    """Modes of stacked MNIST (Metz et al., 2017).

    modes: the number of generated digit triples, of 1000
    kl: the KL divergence of their frequencies from those of real samples, in nats
    classes: the effective number of triples, relative to real samples
    """

    scores: ClassVar = {"modes": True, "kl": False, "classes": 1.0}
    extractor = StackedDigits

    def compute(self, fake: Statistics, real: Statistics, data: TensorData) -> dict[str, float]:
        fakes, reals = (_frequencies(side.logits) for side in (fake, real))
        is_generated = fakes > 0
        # a mode that no real sample has counts as half a sample
        reals = reals.clamp_min(0.5 / real.size)
        return {
            "modes": int(is_generated.sum()),
            "kl": (fakes[is_generated] * (fakes[is_generated] / reals[is_generated]).log()).sum().item(),
            "classes": effective_number(fakes) / effective_number(reals),
        }


def _frequencies(logits: Tensor | None) -> Tensor:
    """The frequencies (1000,) of the predicted digit triples."""
    assert logits is not None
    digits = logits.unflatten(1, (3, 10)).argmax(2)
    triples = (digits * torch.tensor([100, 10, 1])).sum(1)
    return one_hot(triples, 1000).sum(0).double() / len(triples)
