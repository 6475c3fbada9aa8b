"""R3GAN's networks: shapes, initial weights, and what they compute against naive versions."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ganforge.networks import r3gan
from ganforge.networks.r3gan import Discriminator, Downsample, Generator, Pointwise, Resample, ResidualBlock


@pytest.mark.parametrize("size", [28, 32, 40, 64, 256])
@pytest.mark.parametrize(("channels", "patch_size", "condition_size"), [(1, 1, None), (3, 2, 5)])
def test_shapes(size: int, channels: int, patch_size: int, condition_size: int | None) -> None:
    options: dict[str, Any] = {"width": 8, "blocks": 1, "patch_size": patch_size, "condition_size": condition_size}
    condition = None if condition_size is None else torch.tensor([1, 4])
    fake = Generator(3, size, channels, **options)(torch.randn(2, 3), condition)
    assert fake.shape == (2, channels, size, size)
    assert Discriminator(size, channels, **options)(fake, condition).shape == (2,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 36}, "data.image_size"),
        ({"patch_size": 3}, "patch_size=3"),
        ({"patch_size": 8}, "patch_size=8"),
        ({"width": 0}, "width=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"group_size": 0}, "group_size=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    for network in (lambda **all_options: Generator(8, **all_options), Discriminator):
        with pytest.raises(ValueError, match=message):
            network(**{"image_size": 28, "channels": 1, "width": 8, **options})


def test_widths_are_the_papers() -> None:
    assert r3gan.stage_widths([4, 8, 16, 32, 64, 128, 256], 768, 32) == [768, 768, 768, 768, 384, 192, 96]
    assert r3gan.stage_widths([7, 14, 28], 96, 7) == [96, 48, 24]
    for network in (Generator(64, 64, 3, width=48), Discriminator(64, 3, width=48)):
        grouped = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
        assert len(grouped) == 10
        assert {(layer.in_channels, layer.groups) for layer in grouped} == {(96, 6), (48, 3)}


@pytest.mark.parametrize(("width", "groups"), [(4, 1), (12, 2), (28, 4), (48, 6)])
def test_groups_divide_any_width(width: int, groups: int) -> None:
    grouped = ResidualBlock(width, 16, 1).branch[2]
    assert grouped.groups == groups
    assert grouped.in_channels // groups <= 16


def test_blocks_start_as_the_identity_with_the_papers_variance() -> None:
    torch.manual_seed(0)
    depth = 16
    blocks = [ResidualBlock(64, 64, depth) for _ in range(16)]
    maps = torch.randn(8, 64, 6, 6).contiguous(memory_format=torch.channels_last)
    assert torch.equal(blocks[0](maps), maps)
    first = torch.stack([block.branch[:2](maps) for block in blocks])
    second = torch.stack([block.branch[:4](maps) for block in blocks])[..., 1:-1, 1:-1]  # without the padded border
    # a leaky ReLU cancels the gain of the convolution before it; a factor of depth^(-1/2) remains of each
    assert first.square().mean().item() == pytest.approx(depth**-0.5, rel=0.03)
    assert second.square().mean().item() == pytest.approx(depth**-1, rel=0.03)


def test_networks_start_with_moderate_outputs() -> None:
    torch.manual_seed(0)
    images = Generator(64, 28, 1, width=64)(torch.randn(64, 64))
    assert 0.1 < images.var().item() < 1.5  # interpolation smooths
    logits = [Discriminator(28, 1, width=16)(images).square().mean().item() for _ in range(8)]
    assert 0.01 < sum(logits) / 8 < 2


def test_pointwise_is_a_convolution() -> None:
    layer, maps = Pointwise(6, 4), torch.randn(2, 6, 3, 5)
    expected = nn.functional.conv2d(maps, layer.weight[..., None, None], layer.bias)
    torch.testing.assert_close(layer(maps), expected)


def naive_smooth(row: Tensor) -> Tensor:
    """[1, 2, 1] / 4 on (..., n) between zeros."""
    padded = nn.functional.pad(row, (1, 1))
    return (padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]) / 4


def test_resampling_is_the_papers_filter() -> None:
    maps = torch.randn(2, 3, 6, 8, dtype=torch.double)
    down, up = maps, maps
    for _ in range(2):  # columns, then rows
        padded = nn.functional.pad(down, (1, 1))
        pairs = (padded[..., :-1] + padded[..., 1:]) / 2
        down = naive_smooth(pairs)[..., 1::2].transpose(2, 3)
        up = naive_smooth(up.repeat_interleave(2, -1)).transpose(2, 3)
    torch.testing.assert_close(Downsample().double()(maps), down)
    # bilinear interpolation repeats the border, where the filter has zeros
    enlarged = nn.Upsample(scale_factor=2.0, mode="bilinear")(maps)
    torch.testing.assert_close(enlarged[..., 1:-1, 1:-1], up[..., 1:-1, 1:-1])


def test_resampling_can_be_differentiated_twice() -> None:
    kernel = torch.rand(4, 4, dtype=torch.double)
    maps = torch.randn(1, 2, 4, 6, dtype=torch.double, requires_grad=True)
    for transposed in (False, True):
        assert torch.autograd.gradcheck(lambda maps: Resample.apply(maps, kernel, transposed), maps)  # noqa: B023
        assert torch.autograd.gradgradcheck(lambda maps: Resample.apply(maps, kernel, transposed), maps)  # noqa: B023


def test_the_end_of_the_discriminator_is_a_depthwise_convolution() -> None:
    discriminator, images = Discriminator(28, 1, width=8), torch.randn(3, 1, 28, 28)
    maps = discriminator.layers(discriminator.patches(images))
    features = nn.functional.conv2d(maps, discriminator.basis.transpose(0, 1), groups=8).flatten(1)
    torch.testing.assert_close(discriminator(images), discriminator.head(features).flatten())


@pytest.mark.parametrize("condition_size", [None, 3])
def test_gradients_reach_every_parameter(condition_size: int | None) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"width": 8, "blocks": 1, "condition_size": condition_size}
    generator, discriminator = Generator(4, 28, 1, **options), Discriminator(28, 1, **options)
    for module in (*generator.modules(), *discriminator.modules()):
        if isinstance(module, ResidualBlock):  # zero weights keep gradients from those before them
            nn.init.normal_(module.branch[-1].weight)
    condition = None if condition_size is None else torch.tensor([0, 1, 2, 0])
    images = generator(torch.randn(4, 4), condition).requires_grad_()
    logits = discriminator(images, condition)
    (slopes,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (softplus(logits).mean() + slopes.square().sum()).backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_maps_stay_in_channels_last() -> None:
    generator, discriminator = Generator(4, 32, 3, width=8), Discriminator(32, 3, width=8)
    maps = generator.layers[:-2](torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last))
    assert maps.is_contiguous(memory_format=torch.channels_last)
    assert discriminator.layers(discriminator.patches(torch.randn(2, 3, 32, 32))).is_contiguous(
        memory_format=torch.channels_last
    )


def test_conditions_change_samples_and_logits() -> None:
    generator, discriminator = Generator(4, 28, 1, 8, condition_size=3), Discriminator(28, 1, 8, condition_size=3)
    latent, labels = torch.randn(1, 4).expand(3, 4), torch.arange(3)
    images = generator(latent, labels)
    scores = discriminator(images[:1].expand(3, -1, -1, -1), labels)
    for results in (images.flatten(1), scores[:, None]):
        assert all(not torch.allclose(one, other) for one, other in pairwise(results))
    one_hot = nn.functional.one_hot(labels, 3)  # attributes, of which each sample has one
    torch.testing.assert_close(generator(latent, one_hot), images)
