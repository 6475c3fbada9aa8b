"""Normalizations by word, and spectral normalization."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import composed, tiny
from torch import Tensor, nn

from ganforge.experiment.build import build
from ganforge.networks import conditional, dcgan, lapgan, mlp, resnet, srresnet, unet
from ganforge.networks.layers import FOR_VECTORS, normalization_layer

IMAGE = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2])
DISCRIMINATORS: dict[str, tuple[Callable[..., nn.Module], Any]] = {
    "mlp": (lambda **options: mlp.Discriminator((1, 28, 28), [8, 8], **options), None),
    "cgan": (lambda **options: conditional.Discriminator(3, (1, 28, 28), 8, 8, 8, 0.0, **options), LABELS),
    "dcgan": (lambda **options: dcgan.Discriminator(28, 1, width=4, **options), None),
    "cgan_conv": (lambda **options: conditional.ConvDiscriminator(28, 1, 3, width=4, **options), LABELS),
    "cgan_projection": (lambda **options: conditional.ProjectionDiscriminator(28, 1, 3, width=4, **options), LABELS),
    "sngan_conditional": (
        lambda **options: resnet.Discriminator(28, 1, 4, 3, **{"spectral": False, **options}),
        LABELS,
    ),
    "srgan": (lambda **options: srresnet.Discriminator(28, 1, width=4, hidden=8, **options), None),
    "pix2pix": (lambda **options: unet.PatchDiscriminator(1, 28, 1, width=4, layers=2, **options), IMAGE),
    "lapgan_conditional": (lambda **options: lapgan.Discriminator(28, 1, None, 3, 8, 4, 0.0, **options), LABELS),
}


# Words -----------------------------------------------------------------------------------------------------------


def test_words_are_normalizations() -> None:
    features = 3 + 2 * torch.randn(4, 32, 5, 5)
    axes = {"batch": (0, 2, 3), "instance": (2, 3), "layer": (1, 2, 3)}
    for word, normalized in axes.items():
        layer = normalization_layer(word)
        assert layer is not None
        mean = features.mean(normalized, keepdim=True)
        variance = features.var(normalized, unbiased=False, keepdim=True)
        torch.testing.assert_close(layer(32)(features), (features - mean) / (variance + 1e-5).sqrt())
    group = normalization_layer("group")
    assert group is not None
    assert [group(channels).num_groups for channels in (8, 16, 24, 32, 64)] == [1, 1, 2, 2, 4]
    vectors = 3 + 2 * torch.randn(64, 8)
    for word, axis in {"batch": 0, "layer": 1}.items():
        layer = normalization_layer(word, FOR_VECTORS)
        assert layer is not None
        assert layer(8)(vectors).mean(axis).abs().max() < 1e-5
    assert normalization_layer("none") is normalization_layer(None) is None
    assert normalization_layer(nn.Identity) is nn.Identity


@pytest.mark.parametrize("name", [name for name in DISCRIMINATORS if name != "lapgan_conditional"])
def test_every_discriminator_takes_words(name: str) -> None:
    make, condition = DISCRIMINATORS[name]
    linear = name in ("mlp", "cgan")
    for word, kind in {
        "batch": nn.modules.batchnorm._BatchNorm,
        "layer": nn.LayerNorm if linear else nn.GroupNorm,
    }.items():
        network = make(normalization=word)
        assert any(isinstance(module, kind) for module in network.modules())
        assert network(IMAGE, condition).isfinite().all()
    unnormalized = [type(module) for module in make(normalization="none").modules()]
    assert unnormalized == [type(module) for module in make(normalization=None).modules()]
    with pytest.raises(ValueError, match=r"normalization=bach: this network takes none, batch, .*layer.*_partial_"):
        make(normalization="bach")
    if linear:
        with pytest.raises(ValueError, match=r"normalization=instance: this network takes none, batch, layer, or"):
            make(normalization="instance")


PARTIAL = "{_target_: torch.nn.InstanceNorm2d, _partial_: true}"


@pytest.mark.parametrize(
    ("given", "kind"), [([PARTIAL], "InstanceNorm2d"), ([PARTIAL, "group"], "GroupNorm"), (["null"], None)]
)
def test_words_and_partials_replace_each_other(tmp_path: Path, given: list[str], kind: str | None) -> None:
    options = [f"model.discriminator.normalization={value}" for value in given]
    discriminator = build(composed(*tiny("dcgan"), *options), tmp_path).model.discriminator
    found = {type(module).__name__ for module in discriminator.modules()}
    assert found & {"BatchNorm2d", "InstanceNorm2d", "GroupNorm"} == ({kind} if kind else set())


# Spectral normalization ------------------------------------------------------------------------------------------


def weights(network: nn.Module) -> list[Tensor]:
    """All weights but vectors, as matrices."""
    found = [getattr(module, "weight", None) for module in network.modules()]
    return [weight.detach().flatten(1) for weight in found if isinstance(weight, Tensor) and weight.ndim > 1]


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_spectral_norms_are_one(name: str) -> None:
    torch.manual_seed(0)
    make, condition = DISCRIMINATORS[name]
    plain = make()
    torch.manual_seed(0)
    network = make(spectral=True).double()
    originals = [value for key, value in network.state_dict().items() if key.endswith("weight.original")]
    assert len(originals) == len(weights(plain))
    assert all(torch.equal(o.flatten(1), w.double()) for o, w in zip(originals, weights(plain), strict=True)), "initial"
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        for level, images in _inputs(network):
            level(images, condition if level is network else lapgan.LevelCondition(None, LABELS)).mean().backward()
        optimizer.step()
    for _ in range(100):
        weights(network)  # reading them does a power iteration
    network.eval()
    norms = [torch.linalg.matrix_norm(weight, 2).item() for weight in weights(network)]
    assert norms == pytest.approx([1] * len(originals), abs=0.01)


def _inputs(network: nn.Module) -> list[tuple[nn.Module, Tensor]]:
    """The network, or each of its levels, and images for it."""
    if isinstance(network, lapgan.Discriminator):
        sized = zip(network.levels, network.sizes, strict=True)
        return [(level, IMAGE[..., :size, :size].double()) for level, size in sized]
    return [(network, IMAGE.double())]


@pytest.mark.parametrize("name", ["mlp", "sngan_conditional"])
def test_spectral_vectors_are_state(name: str) -> None:
    make, condition = DISCRIMINATORS[name]
    network, fresh = make(spectral=True), make(spectral=True)
    network(IMAGE, condition)
    state = deepcopy(network.state_dict())
    network.eval()
    logits = network(IMAGE, condition)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items()), "evaluation changes none"
    fresh.load_state_dict(state)
    assert torch.equal(fresh.eval()(IMAGE, condition), logits)
    assert torch.equal(deepcopy(network)(IMAGE, condition), logits)
    contiguous = deepcopy(network).to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(contiguous(IMAGE, condition), logits)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(network.train()(IMAGE, condition).float(), logits, rtol=0.1, atol=0.1)
