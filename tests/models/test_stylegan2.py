"""StyleGAN2's path length regularization, and what sample.py does with its styles."""

from pathlib import Path

import pytest
import torch
from conftest import TINY_POINTS, composed, fitted, recorded, scalars, tiny
from PIL import Image
from torch import nn

from ganforge.commands.sample import sample
from ganforge.commands.styles import mix_styles
from ganforge.experiment.build import build
from ganforge.models.stylegan2 import path_lengths
from ganforge.networks.stylegan2 import Generator
from ganforge.runtime.errors import UserError


def test_path_lengths_are_those_of_the_jacobian() -> None:
    """Of a numerical one, in double precision."""
    torch.manual_seed(0)
    generator = Generator(4, 28, 1, width=2, max_width=4, w_size=3).double()
    latent = torch.randn(2, 4, dtype=torch.double)
    torch.manual_seed(1)
    found = path_lengths(generator, latent, None)
    torch.manual_seed(1)
    generator.synthesis(generator.mapping(latent))  # draws its noise, which has no strength yet
    noise = torch.randn(2, 1, 28, 28, dtype=torch.double) / 28
    layers = generator.synthesis.num_layers
    steps = 1e-6 * torch.eye(layers * 3, dtype=torch.double).view(-1, layers, 3)
    for row, w in enumerate(generator.mapping(latent)):
        with torch.no_grad():
            forth, back = (generator.synthesis(w.expand(layers, -1) + sign * steps) for sign in (1, -1))
        projected = ((forth - back) / 2e-6 * noise[row]).sum((1, 2, 3)).view(layers, 3)
        torch.testing.assert_close(found[row], projected.square().sum(1).mean().sqrt(), rtol=1e-5, atol=0)
    found.sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in generator.named_parameters() if n.endswith("conv.weight"))  # type: ignore[union-attr]


def test_path_lengths_are_penalized_lazily(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("stylegan2"), f"data.root={fake_mnist}", "data.batch_size=8", "trainer.log_every_n_steps=1"]
    options += ["model.path_length_weight=2", "model.path_length_every=2", "trainer.max_steps=4"]
    model = fitted(tmp_path, *options).model
    logged = scalars(tmp_path)
    assert [step for step, _ in logged["loss_g/path_length"]] == [2, 4]
    total, parts = dict(logged["loss_g/total"]), (logged["loss_g/path_length"], logged["loss_g/adversarial"])
    assert total[4] == pytest.approx(sum(value for part in parts for step, value in part if step == 4), rel=1e-5)
    mean = model.path_length_mean.item()
    assert mean > 0
    # the first penalty is (lengths - 0.01 * their mean)^2, so that its root is about the length
    assert mean == pytest.approx(0.01 * 2 * (logged["loss_g/path_length"][0][1] / 4) ** 0.5, rel=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.path_length_weight=-1"], "path_length_weight=-1"),
        (["model.path_length_every=0"], "path_length_every=0"),
        (["model.generator.style_mixing=2"], "style_mixing=2"),
        (["model.generator.mapping_layers=0"], "mapping_layers=0"),
        (["model.generator.w_size=0"], "w_size=0"),
        (["model.discriminator.std_group_size=1"], "group_size=1"),
        (["model.discriminator.width=0"], "width=0"),
    ],
)
def test_options_are_checked(options: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message):
        build(composed(*tiny("stylegan2"), *options), Path("unused"))


@pytest.mark.slow
def test_the_average_has_the_mean_w_and_the_noise_of_its_generator(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("stylegan2"), f"data.root={fake_mnist}", "data.batch_size=8", "trainer.max_steps=40"]
    model = fitted(tmp_path, *options, "model.moving_average_every=1").model
    average: Generator = model.sampling_generator  # type: ignore[assignment]
    assert torch.equal(average.synthesis.layers[2].noise, model.generator.synthesis.layers[2].noise)  # type: ignore[attr-defined, index]
    assert 0 < average.w_avg.norm() < 2 * model.generator.w_avg.norm()  # type: ignore[operator]
    before = average.w_avg.clone()
    first = model.samples(70, seed=3)
    assert torch.equal(first[:3], model.samples(3, seed=3))
    assert torch.equal(average.w_avg, before)


def test_seeds_differ_and_equal_seeds_do_not(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("stylegan2"), f"data.root={fake_mnist}", "data.batch_size=8"]
    first, again, other = (
        fitted(tmp_path / str(i), *options, f"seed={seed}").model.state_dict() for i, seed in enumerate((0, 0, 1))
    )
    name = "generator.synthesis.layers.0.conv.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_sample_py_truncates_and_mixes(tmp_path: Path, fake_mnist: Path, capsys: pytest.CaptureFixture) -> None:
    options = [*tiny("stylegan2_conditional"), f"data.root={fake_mnist}", "data.batch_size=8"]
    folder = recorded(tmp_path / "run", *options)

    def drawn(*given: str) -> Path:
        sample(composed(f"run={folder}", *given, f"output={tmp_path}", "labels=[3,7]", config="sample"))
        return Path(capsys.readouterr().out.strip())

    truncated = drawn("truncation=0.5")
    assert truncated.name == "samples-seed-0-truncation-0.5-labels-3-7.png"
    assert truncated.read_bytes() != drawn().read_bytes()
    assert Image.open(drawn("truncation=0", "interpolate=true", "num_samples=8")).size == (8 * 30 + 2, 30 + 2)
    mixed = drawn("style_mixing=true", "style_layers=fine", "num_samples=10")
    assert mixed.name == "mixed-fine-seed-0-labels-3-7.png"
    assert Image.open(mixed).size == (4 * 30 + 2, 4 * 30 + 2)
    for wrong, message in (
        (["truncation=much"], "truncation=much: must be a finite number"),
        (["truncation=nan"], "truncation=nan: must be a finite number"),
        (["truncation=true"], "truncation=True: must be a finite number"),
        (["style_mixing=1"], "style_mixing=1: must be true or false"),
        (["style_mixing=true", "style_layers=all"], "style_layers=all: must be coarse, middle, fine"),
        (["style_mixing=true", "separate=true"], "Leave out separate=true"),
        (["style_mixing=true", "interpolate=true"], "Leave out interpolate=true"),
    ):
        with pytest.raises(UserError, match=message):
            drawn(*wrong)


def test_other_models_refuse_truncation_and_mixing(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", *TINY_POINTS)
    for given, message in (
        ("truncation=0.7", "truncation=0.7: this model's generator has no mapping network"),
        ("style_mixing=true", "style_mixing=true: this model's generator has no styles"),
    ):
        with pytest.raises(UserError, match=message):
            sample(composed(f"run={folder}", given, config="sample"))


@pytest.mark.parametrize("layers", ["coarse", "middle", "fine"])
def test_a_mixed_sample_has_the_layers_of_its_column(tmp_path: Path, fake_mnist: Path, layers: str) -> None:
    model = build(composed(*tiny("stylegan2"), f"data.root={fake_mnist}"), tmp_path).model.eval()
    generator: Generator = model.sampling_generator  # type: ignore[assignment]
    nn.init.normal_(generator.w_avg)  # type: ignore[arg-type]
    generator.truncation = 0.7
    samples, columns = mix_styles(model, 15, 5, None, layers)
    assert (len(samples), columns) == (16, 4)
    grid = samples.view(4, 4, *samples.shape[1:])
    torch.testing.assert_close(torch.cat([grid[1:, 0], grid[0, 1:]]), model.samples(6, seed=5))
    w = generator.truncated(generator.mapping(model.latents(6, 5)))
    styles = w[1].repeat(generator.synthesis.num_layers, 1)  # row 1, column 2
    styles[generator.layer_groups()[layers]] = w[3 + 2]
    torch.testing.assert_close(grid[2, 3], generator.synthesis(styles[None])[0])
