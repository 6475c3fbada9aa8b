"""Adversarial losses against values computed by hand."""

from math import exp, log

import pytest
import torch

from ganforge import losses

REAL = torch.tensor([2.0, -1.0])
FAKE = torch.tensor([0.5, -3.0])


def sigmoid(logit: float) -> float:
    return 1 / (1 + exp(-logit))


D_CROSS_ENTROPY = -(log(sigmoid(2)) + log(sigmoid(-1))) / 2 - (log(1 - sigmoid(0.5)) + log(1 - sigmoid(-3))) / 2

CASES = [
    (losses.Minimax, D_CROSS_ENTROPY, (log(1 - sigmoid(0.5)) + log(1 - sigmoid(-3))) / 2),
    (losses.NonSaturating, D_CROSS_ENTROPY, -(log(sigmoid(0.5)) + log(sigmoid(-3))) / 2),
    (losses.LeastSquares, 0.5 * ((1 + 4) / 2 + (0.25 + 9) / 2), 0.5 * (0.25 + 16) / 2),
    (losses.Hinge, (0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
    (losses.Wasserstein, -1.25 - 0.5, 1.25),
    (losses.Relativistic, -(log(sigmoid(1.5)) + log(sigmoid(2))) / 2, -(log(sigmoid(-1.5)) + log(sigmoid(-2))) / 2),
    (
        losses.RelativisticAverage,  # the means are 0.5 of real, and -1.25 of fake logits
        -(log(sigmoid(3.25)) + log(sigmoid(0.25))) / 2 - (log(1 - sigmoid(0)) + log(1 - sigmoid(-3.5))) / 2,
        -(log(1 - sigmoid(3.25)) + log(1 - sigmoid(0.25))) / 2 - (log(sigmoid(0)) + log(sigmoid(-3.5))) / 2,
    ),
]


@pytest.mark.parametrize(("loss", "discriminator", "generator"), CASES)
def test_value(loss: type[losses.Loss], discriminator: float, generator: float) -> None:
    assert loss().discriminator(REAL, FAKE).item() == pytest.approx(discriminator, rel=1e-6)
    halves = 1 if loss is losses.Relativistic else 2
    assert loss(average_halves=True).discriminator(REAL, FAKE).item() == pytest.approx(discriminator / halves, rel=1e-6)
    assert loss().generator(FAKE, REAL).item() == pytest.approx(generator, rel=1e-6)


@pytest.mark.parametrize("loss", [case[0] for case in CASES])
def test_finite_at_extreme_logits_and_on_maps(loss: type[losses.Loss]) -> None:
    extreme = torch.tensor([[-1e4, 1e4]]).expand(3, 1, 2, 2).requires_grad_()
    for value in (loss().discriminator(extreme, extreme), loss().generator(extreme, extreme.flip(-1))):
        assert value.shape == ()
        (gradient,) = torch.autograd.grad(value, extreme)
        assert gradient.isfinite().all()


def test_label_smoothing_lowers_the_target_of_real_samples() -> None:
    smooth = losses.NonSaturating(label_smoothing=0.1).discriminator(REAL, FAKE).item()
    real = sum(0.9 * log(sigmoid(logit)) + 0.1 * log(1 - sigmoid(logit)) for logit in REAL.tolist()) / 2
    fake = sum(log(1 - sigmoid(logit)) for logit in FAKE.tolist()) / 2
    assert smooth == pytest.approx(-real - fake, rel=1e-6)
    squares = losses.LeastSquares(label_smoothing=0.1).discriminator(REAL, FAKE).item()
    assert squares == pytest.approx(0.5 * ((1.1**2 + 1.9**2) / 2 + (0.25 + 9) / 2), rel=1e-6)
    with pytest.raises(ValueError, match=r"label_smoothing=1\.5: must be from 0 to 1"):
        losses.Minimax(label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1: Hinge has no labels"):
        losses.Hinge(label_smoothing=0.1)


def test_non_saturating_gradient_survives_a_winning_discriminator() -> None:
    lost = torch.tensor([-20.0], requires_grad=True)
    (strong,) = torch.autograd.grad(losses.NonSaturating().generator(lost), lost)
    (weak,) = torch.autograd.grad(losses.Minimax().generator(lost), lost)
    assert strong.item() == pytest.approx(-1, abs=1e-6)
    assert abs(weak.item()) < 1e-8
