"""Gradient penalties against the closed form of a linear discriminator, whose gradient is its weight everywhere."""

import pytest
import torch
from torch import Tensor, nn

from ganforge.regularizers import R1, R2, GradientPenalty, Regularizer, score


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


def penalty_of(regularizer: Regularizer, discriminator: nn.Module, fake: Tensor = FAKE) -> Tensor:
    """As a step computes it, from D's forward passes on real and fake samples."""
    passes = {"real": REAL, "fake": fake}
    return regularizer(
        discriminator,
        *(score(discriminator, x, None, regularizer.differentiates == name) for name, x in passes.items()),
    )


@pytest.mark.parametrize(
    ("regularizer", "expected"), [(R1(10), 0.5 * 25), (R2(10), 0.5 * 25), (GradientPenalty(10), (5 - 1) ** 2)]
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
    penalties = {penalty_of(GradientPenalty(1), Square()).item() for _ in range(5)}
    assert len(penalties) == 5, "the place between real and fake is random"
    low, high = (2**0.5 - 1) ** 2, (18**0.5 - 1) ** 2
    assert all(low < penalty < high for penalty in penalties)


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
