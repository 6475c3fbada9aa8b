"""Gradient penalties against the closed form of a linear discriminator, whose gradient is its weight everywhere.

And of a quadratic one, whose gradient tells where the penalty is taken.
"""

import pytest
import torch
from torch import Tensor, nn

from ganforge.randomness import start_step
from ganforge.regularizers import (
    DRAGAN,
    R1,
    R2,
    Critic,
    GradientPenalty,
    Mismatch,
    Regularizer,
    WeightClipping,
    ZeroCentred,
)


class Linear(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return sample.flatten(1) @ self.weight


class Square(nn.Module):
    """Half the squared length, whose gradient is the sample itself: tells where a penalty was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.factor * sample.flatten(1).square().sum(1)


REAL = torch.full((4, 1, 1, 2), 3.0)
FAKE = torch.full((4, 1, 1, 2), 1.0)


def penalty_of(regularizer: Regularizer, discriminator: nn.Module, fake: Tensor = FAKE, real: Tensor = REAL) -> Tensor:
    """As a step computes it, from D's forward passes on real and fake samples."""
    critic = Critic(discriminator)
    passes = [critic(x, None, regularizer.differentiates == name) for name, x in {"real": real, "fake": fake}.items()]
    penalty = regularizer(critic, *passes)
    assert penalty is not None
    return penalty


@pytest.mark.parametrize(
    ("regularizer", "expected"),
    [
        (R1(10), 0.5 * 25),
        (R2(10), 0.5 * 25),
        (GradientPenalty(10), (5 - 1) ** 2),
        (ZeroCentred(10), 25),
        (DRAGAN(10), (5 - 1) ** 2),
    ],
)
def test_linear_discriminator(regularizer: Regularizer, expected: float) -> None:
    discriminator = Linear(torch.tensor([3.0, 4.0]))
    penalty = penalty_of(regularizer, discriminator)
    assert penalty.item() == pytest.approx(expected)
    penalty.backward()
    assert discriminator.weight.grad is not None
    assert discriminator.weight.grad.abs().sum() > 0


def test_where_the_penalty_is_taken() -> None:
    assert penalty_of(R1(1), Square()).item() == pytest.approx(0.5 * 18)
    assert penalty_of(R2(1), Square()).item() == pytest.approx(0.5 * 2)
    for regularizer, low, high in (
        (GradientPenalty(1), (2**0.5 - 1) ** 2, (18**0.5 - 1) ** 2),
        (ZeroCentred(1), 2, 18),
    ):
        penalties = {penalty_of(regularizer, Square()).item() for _ in range(5)}
        assert len(penalties) == 5, "the place between real and fake is random"
        assert all(low < penalty < high for penalty in penalties)


def test_dragan_perturbs_real_samples_by_up_to_half_their_spread() -> None:
    real = torch.cat([REAL - 1, REAL + 1])  # a standard deviation of 1
    points = DRAGAN(1).points(real, FAKE)
    assert (points >= real).all()
    assert 0.01 < (points - real).mean() < 0.3
    assert (points - real).max() < 0.5
    assert torch.equal(DRAGAN(1, scale=0).points(real, FAKE), real)


class Labelled(nn.Module):
    """Logits that are the products of the sums of the samples and their labels."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.0))

    def forward(self, sample: Tensor, condition: Tensor) -> Tensor:
        return self.factor * sample.flatten(1).sum(1) * condition


def test_mismatch_ranks_the_own_label_above_that_of_the_next_sample() -> None:
    critic = Critic(Labelled())
    samples, labels = torch.tensor([1.0, 2.0, 3.0])[:, None], torch.tensor([0, 1, 1])
    value = Mismatch(1)(critic, critic(samples, labels), critic(samples, labels))
    differences = torch.tensor([1.0, 0.0, -3.0])  # by sample: its value times (label of the next one - its own)
    torch.testing.assert_close(value, torch.log1p(differences.exp()).mean())


def test_weights_are_clipped() -> None:
    discriminator = Linear(torch.tensor([3.0, -0.005]))
    WeightClipping(0.01).constrain(discriminator)
    assert discriminator.weight.tolist() == pytest.approx([0.01, -0.005])


def test_the_weight_auto_is_that_of_stylegan2_ada() -> None:
    assert R1("auto", shape=[3, 64, 64], batch_size=32).weight == pytest.approx(0.0002 * 64**2 / 32)
    for options in ({"weight": "auto", "shape": [2], "batch_size": 4}, {"weight": "much"}):
        with pytest.raises(ValueError, match=r"weight=.*: must be a number, or for images auto"):
            R1(**options)


def test_the_penalty_of_a_pack_is_on_the_gradient_of_all_its_samples() -> None:
    critic = Critic(Linear(torch.tensor([3.0, 4.0, 0.0, 2.0])), pack=2)
    scored = critic(REAL, differentiable=True)
    assert scored.seen.shape == (2, 2, 1, 2)
    assert scored.logits.tolist() == [27.0, 27.0]
    assert scored.squared_gradient_norms().tolist() == [29.0, 29.0]


@pytest.mark.parametrize("regularizer", [R1(1), R2(1), GradientPenalty(1), ZeroCentred(1), DRAGAN(1)])
def test_gradients_with_respect_to_the_weights(regularizer: Regularizer) -> None:
    real, fake = torch.rand(3, 1, 1, 2, dtype=torch.float64), torch.rand(3, 1, 1, 2, dtype=torch.float64)
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.Softplus(), nn.Linear(4, 1), nn.Flatten(0)).double()
    names = list(dict(network.named_parameters()))

    class Functional(nn.Module):
        def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
            return torch.func.functional_call(network, dict(zip(names, self.weights, strict=True)), (sample,))

    def value(*weights: Tensor) -> Tensor:
        start_step(0, 1, 0, 1, torch.device("cpu"))  # the same places each time
        functional = Functional()
        functional.weights = weights  # type: ignore[assignment]
        functional.register_buffer("dtype", weights[0])
        functional.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
        return penalty_of(regularizer, functional, fake, real)

    assert torch.autograd.gradcheck(value, tuple(network.parameters()))


def test_a_gradient_of_zero_has_a_penalty_that_can_be_learnt_from() -> None:
    discriminator = Linear(torch.zeros(2))
    penalty = penalty_of(GradientPenalty(10), discriminator)
    penalty.backward()
    assert penalty.item() == pytest.approx(1)
    assert discriminator.weight.grad is not None
    assert discriminator.weight.grad.isfinite().all()


def test_penalty_does_not_reach_the_generator() -> None:
    fake = FAKE.clone().requires_grad_()
    penalty_of(R2(1), Linear(torch.ones(2)), fake).backward()
    assert fake.grad is None


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"weight": 1.0, "every": 0}])
def test_senseless_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        R1(**options)
