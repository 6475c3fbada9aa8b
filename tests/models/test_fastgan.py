"""FastGAN: the reconstructions of the discriminator."""

from pathlib import Path

import pytest
import torch
from conftest import composed, fitted, tiny

from ganforge.content import Pixels
from ganforge.data.base import Batch
from ganforge.experiment.build import build
from ganforge.models.fastgan import FastGAN
from ganforge.randomness import start_step
from ganforge.regularizers import Critic


@pytest.fixture
def model(tmp_path: Path, fake_mnist: Path) -> FastGAN:
    return build(composed(*tiny("fastgan"), "data=mnist", f"data.root={fake_mnist}"), tmp_path).model  # type: ignore[return-value]


def test_reconstructions_improve(model: FastGAN) -> None:
    torch.manual_seed(0)
    discriminator, (game,) = model.discriminator, model.games
    images = torch.rand(8, 1, 4, 4).mul(2).sub(1).repeat_interleave(7, 2).repeat_interleave(7, 3)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    errors = []
    for step in range(30):
        start_step(0, step, 0, 1, torch.device("cpu"))
        error = model.reconstruction_error(game, Critic(discriminator)(images))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.6 * errors[0]


def test_the_error_is_that_of_three_reconstructions(model: FastGAN) -> None:
    images = torch.rand(8, 1, 28, 28).mul(2).sub(1)
    real = Critic(model.discriminator)(images)
    start_step(0, 1, 0, 1, torch.device("cpu"))
    drawn: list[torch.Tensor] = []
    reconstruct = model.discriminator.reconstruct

    def recorded(output: object, numbers: torch.Tensor) -> object:
        drawn.append(numbers)
        return reconstruct(output, numbers)

    model.discriminator.reconstruct = recorded  # type: ignore[assignment]
    error = model.reconstruction_error(model.games[0], real)
    (numbers,) = drawn
    assert len(set(numbers.tolist())) > 1
    made = reconstruct(real.output, numbers)
    half = images.unflatten(3, (14, 2)).unflatten(2, (14, 2)).mean((3, 5))
    corners = [(14 * (int(n) // 2), 14 * (int(n) % 2)) for n in numbers]
    crops = torch.stack([image[:, y : y + 14, x : x + 14] for image, (y, x) in zip(images, corners, strict=True)])
    expected = sum((image - target).abs().mean() for image, target in zip(made, (half, half, crops), strict=True))
    torch.testing.assert_close(error, expected)


def test_only_real_samples_are_reconstructed_and_only_the_discriminator_learns_it(model: FastGAN) -> None:
    model.content_weight = 2.0
    images = torch.rand(4, 1, 28, 28)
    fake = torch.rand(4, 1, 28, 28, requires_grad=True)
    start_step(0, 1, 0, 1, torch.device("cpu"))
    scored = [Critic(model.discriminator)(samples) for samples in (images, fake)]
    terms = model.discriminator_loss(model.games[0], Batch(images), *scored)
    assert set(terms) == {"adversarial", "content"}
    (gradient,) = torch.autograd.grad(terms["content"], fake, allow_unused=True)
    assert gradient is None
    assert set(model.generator_loss(model.games[0], Batch(images), scored[1])) == {"adversarial"}


def test_packs_are_compared_one_image_at_a_time(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("fastgan"), f"data.root={fake_mnist}", "model.pack=2"]
    model = build(composed(*options), tmp_path).model
    shapes = []

    def content(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        shapes.extend([made.shape, target.shape])
        return (made - target).abs().mean()

    model.content = content  # type: ignore[assignment]
    start_step(0, 1, 0, 1, torch.device("cpu"))
    model.reconstruction_error(model.games[0], Critic(model.discriminator, pack=2)(torch.rand(4, 1, 28, 28)))  # type: ignore[operator]
    assert shapes == 6 * [(4, 1, 14, 14)]


def test_content_weight_must_not_be_negative(tmp_path: Path, fake_mnist: Path) -> None:
    with pytest.raises(Exception, match="content_weight=-1"):
        build(composed(*tiny("fastgan"), f"data.root={fake_mnist}", "model.content_weight=-1"), tmp_path)


def test_it_trains_with_other_games(tmp_path: Path, fake_mnist: Path) -> None:
    options = [
        "loss=relativistic",
        "regularizer=[r1,r2]",
        "model.discriminator.normalization=null",
        "data.batch_size=8",
    ]
    model = fitted(tmp_path, *tiny("fastgan"), f"data.root={fake_mnist}", *options).model
    assert isinstance(model.content, Pixels)
