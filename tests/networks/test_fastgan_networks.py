"""FastGAN's networks: shapes, and what they compute against naive versions."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ganforge.networks import fastgan
from ganforge.networks.fastgan import Discriminator, Generator, Noise, SkipExcitation, SpectralNorm, pooled, quarter


@pytest.mark.parametrize(
    ("size", "skips", "patches"), [(28, 1, 32), (32, 1, 50), (48, 1, 162), (64, 1, 50), (256, 3, 50)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(size: int, skips: int, patches: int, channels: int) -> None:
    generator, discriminator = Generator(5, size, channels, width=2), Discriminator(size, channels, width=2)
    fake = generator(torch.randn(2, 5))
    assert fake.shape == (2, channels, size, size)
    assert fake.abs().max() <= 1
    output = discriminator(fake)
    assert output.logits.shape == (2, patches)
    made = discriminator.reconstruct(output, torch.tensor([0, 3]))
    assert {image.shape for image in made} == {(2, channels, size // 2, size // 2)}
    assert len(generator.excitations) == len(discriminator.excitations) == skips


def test_widths_are_the_papers() -> None:
    generator, discriminator = Generator(8, 256, 3, width=4), Discriminator(256, 3, width=4)
    doubled = [layer[1].out_channels for layer in generator.layers]  # twice the channels, for the GLU
    assert doubled == [2 * 8 * 4, 2 * 4 * 4, 2 * 2 * 4, 2 * 2 * 4, 2 * 4, 4]
    assert [layer.direct[1].out_channels for layer in discriminator.layers] == [2, 4, 8, 16, 32]
    noisy = [sum(isinstance(module, Noise) for module in layer) for layer in generator.layers]
    assert noisy == [2, 0, 2, 0, 2, 0]


def test_images_that_are_too_large_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size=448: FastGAN makes images of up to 256"):
        Generator(8, 448, 3, width=4)
    with pytest.raises(ValueError, match="image_size=448: FastGAN makes images of up to 256"):
        Discriminator(448, 3, width=4)


@pytest.mark.parametrize("sides", [(5, 6), (7, 14), (28, 32)])
def test_pooling_is_the_same_if_deterministic(sides: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.randn(2, 3, *sides, dtype=torch.float64)
    expected = pooled(maps)
    monkeypatch.setattr("torch.are_deterministic_algorithms_enabled", lambda: True)
    torch.testing.assert_close(pooled(maps), expected)


def test_skip_excitation() -> None:
    excitation = SkipExcitation(6, 4)
    distant, maps = torch.randn(2, 6, 8, 8), torch.randn(2, 4, 10, 10)
    pooled = distant.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    expected = torch.empty_like(maps)
    for sample in range(2):
        squeezed = (excitation.first.weight * pooled[sample]).sum((1, 2, 3))
        factors = excitation.second.weight[..., 0, 0] @ (squeezed * torch.sigmoid(squeezed))
        for channel in range(4):
            expected[sample, channel] = maps[sample, channel] / (1 + torch.exp(-factors[channel]))
    torch.testing.assert_close(excitation(distant, maps), expected)


def test_quarters() -> None:
    images = torch.arange(4 * 2 * 6 * 8.0).view(4, 2, 6, 8)
    parts = quarter(images, torch.tensor([0, 1, 2, 3]))
    expected = [images[0, :, :3, :4], images[1, :, :3, 4:], images[2, :, 3:, :4], images[3, :, 3:, 4:]]
    assert torch.equal(parts, torch.stack(expected))


def test_weights_have_spectral_norm_one() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Conv2d(5, 7, 3), SpectralNorm(7)
    for _ in range(200):
        normalized = norm(layer.weight)
    assert torch.linalg.matrix_norm(normalized.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(normalized, spectral_norm(layer, n_power_iterations=200).weight, rtol=1e-3, atol=1e-4)
    before = norm.vector.clone()
    norm.eval()
    norm.vector.mul_(0.5)  # as in a moving average
    torch.testing.assert_close(norm(normalized), normalized, rtol=1e-3, atol=1e-4)
    assert torch.equal(norm.vector, before / 2)  # evaluation changes nothing


def test_noise_differs_in_training_and_is_fixed_in_evaluation() -> None:
    generator = Generator(4, 28, 1, width=2)
    for module in generator.modules():
        if isinstance(module, Noise):
            nn.init.ones_(module.strength)
    latent = torch.randn(1, 4).expand(2, 4)
    first, second = generator(latent)
    assert not torch.allclose(first, second)
    images = generator.eval()(latent)
    torch.testing.assert_close(images[0], images[1])
    torch.testing.assert_close(generator(latent), images)


def test_gradients_reach_every_parameter() -> None:
    torch.manual_seed(0)
    generator, discriminator = Generator(4, 64, 3, width=2), Discriminator(64, 3, width=2)
    output = discriminator(generator(torch.randn(4, 4)))
    made = discriminator.reconstruct(output, torch.tensor([0, 1, 2, 3]))
    (output.logits.sum() + sum(image.square().sum() for image in made)).backward()
    for name, parameter in [*generator.named_parameters(), *discriminator.named_parameters()]:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_spectral_normalization_is_optional() -> None:
    discriminator = Discriminator(28, 1, width=2, normalization=None, spectral=False)
    assert not any(isinstance(module, SpectralNorm | nn.BatchNorm2d) for module in discriminator.layers.modules())
    assert any(isinstance(module, SpectralNorm) for module in Discriminator(28, 1, width=2).modules())
    assert fastgan.scaled(1, 0.5) == 1
