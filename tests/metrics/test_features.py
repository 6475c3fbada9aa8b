"""Numbers made of features, on distributions where the answer is known, and against the reference implementations."""

from math import log

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from ganforge.data.points import Grid, Quadratic
from ganforge.metrics.features import (
    ClassAccuracy,
    Classes,
    ClassFrechetDistance,
    Diversity,
    FrechetDistance,
    InceptionScore,
    KernelDistance,
    Neighbourhoods,
    StackedModes,
    frechet_distance,
    subsample,
)
from ganforge.metrics.points import Modes, SlicedWasserstein, wasserstein
from ganforge.metrics.statistics import Statistics

POINTS = Quadratic(size=10, batch_size=1, shape=[2])


def statistics(features: Tensor, logits: Tensor | None = None, labels: Tensor | None = None) -> Statistics:
    exact = features.double()
    return Statistics(len(features), exact.mean(0), torch.cov(exact.T), features, logits, labels)


def normal(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def covariance(size: int, count: int, seed: int) -> Tensor:
    """Of correlated samples, with a spectrum over four decades; singular where there are few."""
    mix = normal(size, size, seed + 100).double() * torch.logspace(0, -2, size, dtype=torch.float64)
    return torch.cov((normal(count, size, seed).double() @ mix).T)


def by_scipy(mean: Tensor, first: Tensor, other: Tensor, second: Tensor) -> float:
    root = scipy.linalg.sqrtm((first @ second).numpy())
    return float((mean - other).square().sum() + first.trace() + second.trace() - 2 * np.trace(root).real)


def test_the_frechet_distance_is_that_of_the_matrix_root() -> None:
    first, second = covariance(96, 500, 0), covariance(96, 400, 1)
    mean, other = normal(2, 96, 2).double()
    expected = by_scipy(mean, first, other, second)
    assert frechet_distance(mean, first, other, second) == pytest.approx(expected, rel=1e-6)


def test_the_frechet_distance_of_gaussians_that_a_formula_gives() -> None:
    size, shift = 8, torch.full((8,), 0.5, dtype=torch.float64)
    identity, zero = torch.eye(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    assert frechet_distance(zero, identity, shift, identity) == pytest.approx(size * 0.25, rel=1e-12)
    assert frechet_distance(zero, identity, zero, 9 * identity) == pytest.approx(size * 4.0, rel=1e-12)


@pytest.mark.parametrize("count", [5, 40, 500])
def test_the_frechet_distance_bears_singular_covariances(count: int) -> None:
    single, other = covariance(64, count, 0), covariance(64, 300, 1)
    zero = torch.zeros(64, dtype=torch.float64)
    # a little noise makes the other method bear them, too
    eye = 1e-10 * torch.eye(64, dtype=torch.float64)
    expected = by_scipy(zero, single + eye, zero, other + eye)
    assert frechet_distance(zero, single, zero, other) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(zero, single, zero, single) == 0
    assert frechet_distance(zero, single, zero, torch.zeros_like(single)) == pytest.approx(single.trace().item())


def test_fid_agrees_with_torch_fidelity_and_warns_of_too_few_samples(caplog: pytest.LogCaptureFixture) -> None:
    first, second = normal(3000, 128, 0) + 3, normal(2500, 128, 1) * 1.1 + 3
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(first.double()), fid_features_to_statistics(second.double()), verbose=False
    )
    ours = FrechetDistance().compute(statistics(first), statistics(second), POINTS)["fid"]
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert not caplog.messages
    FrechetDistance().compute(statistics(first[:100]), statistics(second), POINTS)
    assert "100 generated and 2500 real samples are too few for 128 features" in caplog.text


@pytest.mark.parametrize(("shift", "size"), [(0.1, 64), (0.0, 300)])
def test_precision_and_recall_are_those_of_torch_fidelity(shift: float, size: int) -> None:
    fake, real = normal(2300, size, 0) + shift, normal(1700, size, 1)
    found = Neighbourhoods().compute(statistics(fake), statistics(real), POINTS)
    theirs = prc_features_to_metric(fake, real, verbose=False)
    assert found["precision"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(theirs["recall"], abs=1e-6)


def test_neighbourhoods_of_equal_disjoint_and_one_sided_sets() -> None:
    real = statistics(normal(2000, 16, 0))
    same = Neighbourhoods().compute(statistics(normal(2000, 16, 1)), real, POINTS)
    assert all(0.9 < same[name] <= 1.1 for name in ("density", "coverage"))
    assert min(same["precision"], same["recall"]) > 0.7
    far = Neighbourhoods().compute(statistics(normal(2000, 16, 1) + 100), real, POINTS)
    assert set(far.values()) == {0.0}
    two_modes = real.features + 20 * torch.eye(16)[0] * torch.tensor([-1, 1]).repeat(1000)[:, None]
    one_mode = normal(2000, 16, 1) + 20 * torch.eye(16)[0]
    dropped = Neighbourhoods().compute(statistics(one_mode), statistics(two_modes), POINTS)
    assert dropped["precision"] > 0.7
    assert dropped["recall"] < 0.5
    assert dropped["coverage"] == pytest.approx(0.5, abs=0.02)
    assert Neighbourhoods().compute(statistics(one_mode[:5]), real, POINTS) == {}


def test_kid_is_zero_on_average_for_equal_distributions_and_grows_with_a_shift() -> None:
    real = statistics(normal(2000, 32, 0))
    same = KernelDistance().compute(statistics(normal(2000, 32, 1)), real, POINTS)["kid"]
    shifted = KernelDistance().compute(statistics(normal(2000, 32, 1) + 0.5), real, POINTS)["kid"]
    assert abs(same) < 0.02
    assert shifted > 0.2
    assert KernelDistance().compute(statistics(normal(20, 32, 1)), real, POINTS)["kid"] != same  # fewer than a subset


def test_the_inception_score_is_the_number_of_classes_that_are_drawn_evenly_and_surely() -> None:
    logits = 100 * torch.eye(10).repeat(100, 1)
    real = statistics(normal(10, 2, 0))
    split = InceptionScore().compute(statistics(logits, logits), real, POINTS)
    assert 9 < split["is"] < 10  # a split of a hundred does not have ten of each
    unsplit = InceptionScore(splits=1).compute(statistics(logits, logits), real, POINTS)
    assert unsplit["is"] == pytest.approx(10, rel=1e-9)
    unsure = InceptionScore().compute(statistics(logits, 0 * logits), real, POINTS)
    assert unsure["is"] == pytest.approx(1)
    by_class = 100 * torch.eye(10).repeat_interleave(100, 0)  # as in a folder: not to be split in this order
    assert InceptionScore().compute(statistics(by_class, by_class), real, POINTS)["is"] > 9
    assert InceptionScore(shuffle=False).compute(statistics(by_class, by_class), real, POINTS)["is"] == pytest.approx(1)
    assert InceptionScore().compute(statistics(logits), real, POINTS) == {}


def test_numbers_of_conditional_samples() -> None:
    data = Quadratic(size=10, batch_size=1, shape=[2], num_classes=4)
    labels = torch.arange(4).repeat(500)
    centres = 10 * torch.eye(4)[labels]
    logits = torch.eye(4)[labels]
    real = statistics(centres + normal(2000, 4, 0), logits, labels)
    good = statistics(centres + normal(2000, 4, 1), logits, labels)
    swapped = statistics(centres + normal(2000, 4, 1), logits, labels.flip(0))
    assert ClassAccuracy().compute(good, real, data) == {"class_accuracy": 1.0}
    assert ClassAccuracy().compute(swapped, real, data) == {"class_accuracy": 0.0}
    found = ClassFrechetDistance().compute(good, real, data)
    assert set(found) == {"class_fid", "class_fid/0", "class_fid/1", "class_fid/2", "class_fid/3"}
    assert found["class_fid"] < 0.2
    assert ClassFrechetDistance().compute(swapped, real, data)["class_fid"] > 100
    assert FrechetDistance().compute(swapped, real, data)["fid"] < 0.2  # which is why there is one within classes
    unconditional = statistics(good.features, logits)
    assert ClassAccuracy().compute(unconditional, real, data) == {}
    assert ClassFrechetDistance().compute(unconditional, real, data) == {}


def test_diversity_and_classes_are_parts_of_those_of_real_samples() -> None:
    features, labels = normal(1000, 8, 0), torch.arange(1000) % 10
    real = statistics(features, torch.eye(10)[labels])
    alike = statistics(features / 4 + 3, torch.eye(10)[labels % 2])
    assert Diversity().compute(real, real, POINTS) == {"diversity": pytest.approx(1)}
    assert Diversity().compute(alike, real, POINTS) == {"diversity": pytest.approx(1 / 4)}
    assert Classes().compute(real, real, POINTS) == {"classes": pytest.approx(1)}
    assert Classes().compute(alike, real, POINTS) == {"classes": pytest.approx(2 / 10)}
    uneven = statistics(features, torch.eye(10)[(labels == 0).long()])  # a tenth is of the other class
    entropy = -(0.1 * log(0.1) + 0.9 * log(0.9))
    assert Classes().compute(uneven, real, POINTS) == {"classes": pytest.approx(np.exp(entropy) / 10)}
    assert Classes().compute(statistics(features), real, POINTS) == {}


def test_stacked_modes_count_triples_of_digits() -> None:
    triples = torch.cartesian_prod(*3 * [torch.arange(10)])
    real = statistics(normal(1000, 2, 0), torch.eye(10)[triples].flatten(1))
    assert StackedModes().compute(real, real, POINTS) == {"modes": 1000, "kl": 0.0, "classes": pytest.approx(1)}
    few = statistics(normal(1000, 2, 0), torch.eye(10)[triples[:250].repeat(4, 1)].flatten(1))
    found = StackedModes().compute(few, real, POINTS)
    assert found["modes"] == 250
    assert found["kl"] == pytest.approx(log(4))
    assert found["classes"] == pytest.approx(1 / 4)


def test_modes_of_a_mixture() -> None:
    data = Grid(size=5000, std=0.05, batch_size=1, shape=[2])
    real, _ = data.load("train")
    found = Modes().compute(statistics(real), statistics(real), data)
    assert found["modes"] == 25
    assert found["high_quality"] == pytest.approx(1 - np.exp(-4.5), abs=0.005)  # within three standard deviations
    kept = real[(real[:, 0] - 4).abs() > 1]  # a column of five modes is dropped
    found = Modes().compute(statistics(kept), statistics(real), data)
    assert found["modes"] == 20
    assert found["classes"] == pytest.approx(20 / 25, abs=0.01)
    found = Modes().compute(statistics(kept + 1), statistics(real), data)
    assert (found["modes"], found["high_quality"]) == (0, 0.0)
    assert Modes().compute(statistics(real), statistics(real), POINTS) == {}


def test_the_sliced_wasserstein_distance_of_a_shift() -> None:
    real, other = normal(3000, 2, 0), normal(2000, 2, 1)
    same = SlicedWasserstein().compute(statistics(real), statistics(real), POINTS)["sliced_wasserstein"]
    assert same == pytest.approx(0, abs=1e-9)
    shifted = SlicedWasserstein().compute(statistics(other + torch.tensor([5.0, 0.0])), statistics(real), POINTS)
    assert shifted["sliced_wasserstein"] == pytest.approx(5 * 2 / np.pi, rel=0.02)  # the mean of |5 cos(angle)|
    expected = scipy.stats.wasserstein_distance(real[:, 0].numpy(), other[:, 1].numpy())
    assert wasserstein(real[:, :1].double(), other[:, 1:].double()).item() == pytest.approx(expected)


def test_rows_are_spread_evenly() -> None:
    assert subsample(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert subsample(torch.arange(3), 4).tolist() == [0, 1, 2]
