"""Shapes, initial weights and the memory layout of the networks."""

import pytest
import torch
from torch import nn

from ganforge.networks import dcgan, mlp
from ganforge.networks.layers import map_sizes


@pytest.mark.parametrize("size", [28, 32, 40, 48, 56, 64, 80, 96, 112, 128])
@pytest.mark.parametrize("kernel_size", [4, 5])
@pytest.mark.parametrize("extra", [0, 1])
def test_dcgan_shapes(size: int, kernel_size: int, extra: int) -> None:
    layers = len(map_sizes(size)) - 1 + extra
    generator = dcgan.Generator(3, size, 3, width=2, layers=layers, kernel_size=kernel_size)
    discriminator = dcgan.Discriminator(size, 3, width=2, layers=layers, kernel_size=kernel_size)
    fake = generator(torch.randn(2, 3))
    assert fake.shape == (2, 3, size, size)
    assert fake.abs().max() <= 1
    assert discriminator(fake).shape == (2,)


@pytest.mark.parametrize("size", [4, 27, 30, 50, 100])
def test_dcgan_refuses_sizes_it_cannot_make(size: int) -> None:
    with pytest.raises(ValueError, match=r"such as 28, 32, .*data\.image_size"):
        dcgan.Generator(3, size, 1)


def test_dcgan_initial_weights() -> None:
    torch.manual_seed(0)
    for network in (dcgan.Generator(100, 32, 1), dcgan.Discriminator(32, 1)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1, abs=0.02)
                assert 0.01 < module.weight.std().item() < 0.03
                assert module.bias.abs().max() == 0


def test_dcgan_normalizes_neither_the_generators_output_nor_the_discriminators_input() -> None:
    generator, discriminator = list(dcgan.Generator(8, 28, 1).layers), list(dcgan.Discriminator(28, 1).features)
    assert isinstance(generator[-2], nn.ConvTranspose2d)
    assert isinstance(generator[-1], nn.Tanh)
    assert isinstance(discriminator[0], nn.Conv2d)
    assert not isinstance(discriminator[1], nn.BatchNorm2d)


def test_dcgan_5x5_is_the_tutorials() -> None:
    generator = dcgan.Generator(100, 28, 1, width=64, layers=3, kernel_size=5)
    shapes = [tuple(p.shape) for n, p in generator.named_parameters() if n.endswith("weight") and p.ndim == 4]
    assert [(s[-1], s) for s in shapes] == [(5, (128, 256, 5, 5)), (5, (128, 64, 5, 5)), (5, (64, 1, 5, 5))]


def test_channels_last_changes_no_numbers() -> None:
    torch.manual_seed(0)
    network = dcgan.Discriminator(28, 3, width=4).double()
    assert network.features[0].weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 28, 28, dtype=torch.double)
    reference = network(images)
    torch.testing.assert_close(network.to(memory_format=torch.contiguous_format)(images), reference)


def test_mlp() -> None:
    generator = mlp.Generator(3, (1, 4, 4), [8, 6], nn.ReLU, nn.BatchNorm1d)
    assert generator(torch.randn(5, 3)).shape == (5, 1, 4, 4)
    assert [type(layer) for layer in generator.layers[:3]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    points = mlp.Generator(2, (2,), [8], output=None)
    assert (points(torch.randn(100, 2) * 1000).abs() > 1).any()
    assert mlp.Discriminator((2,), [8])(torch.randn(7, 2)).shape == (7,)
