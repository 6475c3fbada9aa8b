"""StyleGAN2's layers against naive implementations, and what its generator does in training and in evaluation."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate

from ganforge.networks.equalized import Conv, Linear, LowPass
from ganforge.networks.stylegan2 import Generator, ModulatedConv, ToImage
from ganforge.networks.stylegan2_discriminator import Discriminator, MinibatchStd

SMALL = {"width": 4, "max_width": 8}


def generator(**options: object) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"latent_size": 6, "image_size": 28, "channels": 1, "w_size": 5, **SMALL, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [28, 32, 40, 64, 96, 256])
def test_shapes(size: int) -> None:
    fake = generator(image_size=size, channels=3, width=1)(torch.randn(2, 6))
    assert fake.shape == (2, 3, size, size)
    assert Discriminator(size, 3, width=1, max_width=4)(fake).shape == (2,)


@pytest.mark.parametrize("size", [4, 27, 30, 100])
def test_sizes_that_it_cannot_make_are_refused(size: int) -> None:
    for make in (lambda: generator(image_size=size), lambda: Discriminator(size, 1)):
        with pytest.raises(ValueError, match=r"image_size=.*: must be .* data\.image_size"):
            make()


@pytest.mark.parametrize("upsample", [True, False])
def test_modulation_scales_the_weights_of_each_sample(upsample: bool) -> None:
    torch.manual_seed(0)
    layer = ModulatedConv(5, 4, 3, upsample).double()
    maps, w = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 5).double()
    maps.requires_grad_()
    offset = torch.randn(2, 1, 1, 1).double()
    found = layer(maps, w, offset) - offset

    def naive(single: Tensor, style: Tensor) -> Tensor:
        weight = layer.weight * layer.weight_gain * style[None, :, None, None]
        weight = 2**0.5 * weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if not upsample:
            return conv2d(single, weight, padding=1)
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double()
        kernel = 4 * torch.outer(taps, taps) / 64
        grown = conv_transpose2d(single, weight.transpose(0, 1), stride=2)
        return torch.stack([conv2d(channel[:, None], kernel[None, None], padding=1)[:, 0] for channel in grown])

    styles = w @ layer.style.weight.t() / 5**0.5 + 1
    expected = torch.cat([naive(*pair) for pair in zip(maps.split(1), styles, strict=True)])
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(out.square().sum(), maps, retain_graph=True)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_image_layers_modulate_without_demodulation() -> None:
    torch.manual_seed(0)
    layer = ToImage(5, 4, 3).double()
    nn.init.normal_(layer.bias)
    maps, w = torch.randn(2, 4, 6, 6).double(), torch.randn(2, 5).double()
    for row, style in enumerate(w @ layer.style.weight.t() / 5**0.5 + 1):
        weight = layer.weight * style / 2
        expected = conv2d(maps[row], weight[:, :, None, None]) + layer.bias
        torch.testing.assert_close(layer(maps, w)[row], expected)


def test_demodulation_keeps_the_variance() -> None:
    torch.manual_seed(0)
    maps = ModulatedConv(5, 64, 64)(torch.randn(4, 64, 16, 16), 10 * torch.randn(4, 5), torch.zeros(1))
    assert maps[:, :, 1:-1, 1:-1].std().item() == pytest.approx(2**0.5, rel=0.1), "the activation's gain is in"


def test_resampling_is_bilinear_and_its_transpose() -> None:
    """Away from the border, where bilinear interpolation repeats pixels and the filter sees zeros."""
    maps = torch.randn(2, 3, 8, 8)
    grown = maps.new_zeros(2, 3, 16, 16)
    grown[:, :, ::2, ::2] = maps
    padded = nn.functional.pad(grown, (1, 0, 1, 0))
    found = LowPass(padding=1, gain=4.0)(nn.functional.pad(padded, (0, 1, 0, 1)))[:, :, :16, :16]
    torch.testing.assert_close(
        found[:, :, 2:-2, 2:-2], interpolate(maps, scale_factor=2, mode="bilinear")[:, :, 2:-2, 2:-2]
    )
    constant = LowPass(padding=1, stride=2)(torch.ones(1, 2, 8, 8))
    assert constant.shape == (1, 2, 4, 4)
    torch.testing.assert_close(constant[:, :, 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_learning_rates_are_equalized() -> None:
    """Weights are N(0, 1) / rate, and outputs of unit variance; an update of Adam moves an output by `rate` as much."""
    torch.manual_seed(0)
    for rate in (1.0, 0.01):
        layer = Linear(400, 300, rate=rate)
        assert layer.weight.std().item() * rate == pytest.approx(1, rel=0.02)
        features = torch.randn(200, 400)
        before = layer(features)
        assert before.std().item() == pytest.approx(1, rel=0.05)
        with torch.no_grad():
            layer.weight.add_(0.1)
        moved = (layer(features) - before).std().item()
        assert moved == pytest.approx(0.1 * rate * features.sum(1).std().item() / 20, rel=0.05)
    assert Linear(3, 2, bias=1.0, rate=0.01)(torch.zeros(1, 3)).tolist() == [[1.0, 1.0]]
    convolved = Conv(50, 40, 3, gain=2.0)(torch.randn(4, 50, 16, 16))
    assert convolved[:, :, 1:-1, 1:-1].std().item() == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("count", "group"), [(8, 4), (4, 4), (6, 3), (3, 3), (2, 2), (5, 5), (10, 2), (1, 1)])
def test_minibatch_std_of_groups(count: int, group: int) -> None:
    maps = torch.randn(count, 3, 2, 2).double()
    found = MinibatchStd(4)(maps)
    assert torch.equal(found[:, :3], maps)
    for row in range(count):
        members = maps[row % (count // group) :: count // group]
        assert len(members) == group
        expected = (members.std(0, correction=0) ** 2 + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[row, 3], expected.expand(2, 2))


def test_noise_is_drawn_in_training_and_constant_in_evaluation() -> None:
    network, latent = generator(style_mixing=0.0), torch.randn(3, 6)
    assert torch.equal(network(latent), network(latent)), "noise has no strength at first"
    for layer in network.synthesis.layers:
        nn.init.ones_(layer.noise_strength)
    first, second = network(latent), network(latent)
    assert not torch.allclose(first, second)
    torch.manual_seed(1)
    third = network(latent)
    torch.manual_seed(1)
    assert torch.equal(network(latent), third)
    network.eval()
    state = torch.get_rng_state()
    fixed = network(latent)
    assert torch.equal(network(latent), fixed)
    torch.testing.assert_close(network(latent[1:2]), fixed[1:2])
    assert torch.equal(torch.get_rng_state(), state)


def test_mixing_changes_the_later_layers_of_a_fraction_of_the_samples() -> None:
    network, latent = generator(style_mixing=0.5), torch.randn(400, 6)
    w = network.mapping(latent)
    mixed = network.mixed(w, latent, None)
    assert mixed.shape == (400, network.synthesis.num_layers, 5)
    changed = (mixed != w[:, None]).any(2)
    assert not changed[:, 0].any(), "the first layer is always the sample's own"
    assert (changed[:, 1:] >= changed[:, :-1]).all(), "once mixed, always mixed"
    assert changed.any(1).float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert changed.sum(1).unique().tolist() == list(range(network.synthesis.num_layers))
    assert torch.equal(generator(style_mixing=0.0).mixed(w, latent, None), w[:, None].expand_as(mixed))


def test_w_avg_follows_the_mean_of_w_and_truncation_moves_towards_it() -> None:
    network = generator()
    latent = torch.randn(8, 6)
    for _ in range(2):
        before = network.w_avg.clone()
        network(latent)
        expected = 0.998 * before + 0.002 * network.mapping(latent).mean(0)
        torch.testing.assert_close(network.w_avg, expected)
    nn.init.normal_(network.w_avg)
    network.eval()
    latent = torch.randn(3, 6)
    w, whole = network.mapping(latent), network(latent)
    network.truncation = 0.0
    torch.testing.assert_close(network(latent), network.synthesis(network.w_avg.expand(3, -1)))
    network.truncation = 0.5
    torch.testing.assert_close(network(latent), network.synthesis((w + network.w_avg) / 2))
    network.truncation = 1.0
    assert torch.equal(network(latent), whole)


def test_the_output_can_be_bounded() -> None:
    latent = 10 * torch.randn(4, 6)
    unbounded = generator().eval()(latent)
    assert unbounded.abs().max() > 1
    torch.testing.assert_close(generator(output=nn.Tanh).eval()(latent), unbounded.tanh())


def test_styles_of_each_layer() -> None:
    network = generator(image_size=64).eval()
    groups = network.layer_groups()
    assert groups == {"coarse": range(3), "middle": range(3, 7), "fine": range(7, 10)}
    assert list(generator().layer_groups().values()) == [range(1), range(1, 3), range(3, 6)]
    w = torch.randn(2, network.synthesis.num_layers, 5)
    images = network.synthesis(w)
    for layer in range(network.synthesis.num_layers):
        other = w.clone()
        other[:, layer] += 1
        assert not torch.allclose(network.synthesis(other), images), f"no layer uses style {layer}"


@pytest.mark.parametrize("kind", ["labels", "attributes"])
def test_conditions(kind: str) -> None:
    torch.manual_seed(0)
    network, judge = generator(condition_size=3).eval(), Discriminator(28, 1, condition_size=3, **SMALL)
    conditions = {"labels": torch.tensor([0, 2]), "attributes": torch.tensor([[0.0, 1, 1], [0, 0, 0]])}[kind]
    latent = torch.randn(1, 6).expand(2, -1)
    images = network(latent, conditions)
    assert not torch.allclose(images[0], images[1])
    same = images[:1].expand(2, -1, -1, -1)
    logits = judge(same, conditions)
    assert logits.shape == (2,)
    assert not torch.allclose(logits[0], logits[1])


def test_memory_format_changes_no_numbers() -> None:
    network, judge = generator().double().eval(), Discriminator(28, 1, **SMALL).double()
    latent = torch.randn(2, 6).double()
    images = network(latent)
    assert images.is_contiguous(memory_format=torch.channels_last)
    logits = judge(images)
    for part in (network, judge):
        part.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(network(latent), images)
    torch.testing.assert_close(judge(images), logits)


def test_bfloat16_agrees_with_float32() -> None:
    torch.manual_seed(0)
    network, judge = generator(channels=3, width=16, max_width=64).eval(), Discriminator(28, 3, width=16)
    latent = torch.randn(16, 6)
    images = network(latent)
    logits = judge(images)
    with torch.autocast("cpu", torch.bfloat16):
        w, coarse = network.mapping(latent), network(latent)
        judged = judge(images)
    assert torch.equal(w, network.mapping(latent))
    assert coarse.dtype == judged.dtype == torch.float32
    assert (coarse - images).std() < 0.01 * images.std()
    assert (judged - logits).std() < 0.03 * logits.std()
