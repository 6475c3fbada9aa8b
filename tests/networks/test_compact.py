"""The small residual networks on patches."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ganforge.networks.compact import Discriminator, Generator, ResidualBlock


@pytest.mark.parametrize("size", [28, 32, 48, 64, 96, 256])
@pytest.mark.parametrize(("channels", "condition"), [(1, None), (3, torch.tensor([2, 0])), (3, torch.ones(2, 3))])
def test_shapes(size: int, channels: int, condition: Tensor | None) -> None:
    options: dict[str, Any] = {"width": 2, "condition_size": None if condition is None else 3}
    fake = Generator(5, size, channels, **options)(torch.randn(2, 5), condition)
    assert fake.shape == (2, channels, size, size)
    assert fake.abs().max() <= 1
    assert fake.is_contiguous(memory_format=torch.channels_last)
    assert Discriminator(size, channels, **options)(fake, condition).shape == (2,)


@pytest.mark.parametrize(("patch_size", "sides"), [(4, [4, 8, 16]), (8, [4, 8]), (16, [4])])
def test_maps_have_a_pixel_per_patch_and_channels_double(patch_size: int, sides: list[int]) -> None:
    networks = [Generator(5, 64, 1, width=3, patch_size=patch_size), Discriminator(64, 1, 3, patch_size=patch_size)]
    seen: list[tuple[int, int]] = []
    for block in (module for network in networks for module in network.modules() if isinstance(module, ResidualBlock)):
        block.register_forward_hook(lambda *passed: seen.append((passed[2].shape[2], passed[2].shape[1])))
    networks[1](networks[0](torch.randn(2, 5)))
    expected = [(side, 3 * sides[-1] // side) for side in sides]
    assert seen == [*expected, *reversed(expected)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "image_size=28: must be patch_size=5 times 4, 5, 6 or 7 times a power of 2"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"patch_size": 14}, "patch_size=14"),
        ({"width": 0}, "width=0"),
        ({"blocks": 0}, "blocks=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, int], message: str) -> None:
    for network in (lambda **all_options: Generator(8, **all_options), Discriminator):
        with pytest.raises(ValueError, match=message):
            network(**{"image_size": 28, "channels": 1, **options})


def test_a_block_without_normalization_starts_as_the_identity() -> None:
    maps = torch.randn(2, 4, 7, 7)
    assert torch.equal(ResidualBlock(4, nn.ReLU(), None)(maps), maps)
    assert not torch.equal(ResidualBlock(4, nn.ReLU(), nn.BatchNorm2d)(maps), maps)
