"""SNGAN's networks and conditional BatchNorm."""

import pytest
import torch
from torch import Tensor, nn

from ganforge.networks.resnet import ConditionalBatchNorm2d, Discriminator, Generator, level_widths


@pytest.mark.parametrize("size", [28, 32, 40, 48, 64, 96, 128, 224, 256])
@pytest.mark.parametrize("condition", [None, torch.tensor([2, 0]), torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])])
def test_shapes(size: int, condition: Tensor | None) -> None:
    size_of_condition = None if condition is None else 3
    fake = Generator(5, size, 3, width=1, condition_size=size_of_condition)(torch.randn(2, 5), condition)
    assert fake.shape == (2, 3, size, size)
    assert fake.abs().max() <= 1
    assert fake.is_contiguous(memory_format=torch.channels_last)
    assert Discriminator(size, 3, width=1, condition_size=size_of_condition)(fake, condition).shape == (2,)


def test_widths_are_the_papers() -> None:
    assert level_widths(32, 256) == [256] * 4
    assert level_widths(128, 64) == [64, 128, 256, 512, 1024, 1024]
    halvings = [(32, [True, True, False, False]), (128, [True] * 5 + [False])]
    for size, expected in halvings:
        blocks = Discriminator(size, 1, width=1).blocks
        assert [any(isinstance(layer, nn.AvgPool2d) for layer in block.layers) for block in blocks] == expected
    with pytest.raises(ValueError, match=r"image_size=30: must be .* choose one with data\.image_size"):
        Generator(5, 30, 1)
    with pytest.raises(ValueError, match="width=0"):
        Generator(5, 32, 1, width=0)


@pytest.mark.parametrize("attributes", [False, True])
def test_conditional_batch_norm_is_batch_norm_with_chosen_gains(attributes: bool) -> None:
    torch.manual_seed(0)
    layer = ConditionalBatchNorm2d(3, condition_size=4).double()
    nn.init.normal_(layer.gain.weight)
    nn.init.normal_(layer.bias.weight)
    features = 2 + 3 * torch.randn(8, 3, 5, 6, dtype=torch.double)
    condition = torch.randint(2, (8, 4)) if attributes else torch.randint(4, (8,))
    gains, biases = layer.gain.weight, layer.bias.weight
    mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
    made = layer(features, condition)
    running = layer.normalization.running_mean, layer.normalization.running_var
    evaluated = layer.eval()(features, condition)
    for image, chosen, trained, tested in zip(features, condition, made, evaluated, strict=True):
        rows = chosen.nonzero().flatten() if attributes else chosen[None]
        for c in range(3):
            gain, bias = 1 + sum(gains[r, c] for r in rows), sum(biases[r, c] for r in rows)
            torch.testing.assert_close(trained[c], (image[c] - mean[c]) / (variance[c] + 1e-5).sqrt() * gain + bias)
            torch.testing.assert_close(
                tested[c], (image[c] - running[0][c]) / (running[1][c] + 1e-5).sqrt() * gain + bias
            )
