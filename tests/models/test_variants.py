"""What sets the variants apart: conditions, levels, and images made of images."""

import json
import shutil
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
import torch
from conftest import composed, equal, fitted, png_header, recorded, run, save_picture, tiny
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torchvision.models.vgg import make_layers

from ganforge.commands.sample import sample
from ganforge.commands.translate import translate
from ganforge.content import VGG16, Pixels
from ganforge.data.base import Batch
from ganforge.experiment.build import build, start_from
from ganforge.experiment.compatibility import check_scale
from ganforge.experiment.load import load_data
from ganforge.latents import Levels, Normal, Uniform
from ganforge.metrics.extractors import Digits, freeze
from ganforge.metrics.features import ClassAccuracy, frechet_distance
from ganforge.metrics.levels import Downsampled
from ganforge.metrics.statistics import Statistics
from ganforge.models.tiling import in_tiles
from ganforge.networks import lapgan, srresnet, unet
from ganforge.networks.lapgan import gaussian_pyramid, level_sizes, resized
from ganforge.regularizers import Critic
from ganforge.runs.record import read_record
from ganforge.runtime.errors import UserError

# Conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("cgan", "cgan_conv", "cgan_projection", "lapgan_conditional"),
        *("compact_conditional", "sngan_conditional", "r3gan_conditional", "stylegan2_conditional"),
    ],
)
def test_conditions_matter_and_are_learnt(tmp_path: Path, fake_mnist: Path, name: str) -> None:
    options = tiny(name, f"data.root={fake_mnist}")
    if name == "sngan_conditional":
        options.append("model.discriminator.spectral=false")  # the spectral norm depends on the vectors of all labels
    model = build(composed(*options), tmp_path).model
    latents = model.latents(4, seed=0)
    model.average = None
    threes, fours = (model.sample_all(latents, torch.full((4,), label)) for label in (3, 4))
    assert not any(torch.equal(three, four) for three, four in zip(threes, fours, strict=True))
    model.train()
    labels = torch.tensor([3, 3, 4, 4])
    for game in model.games:
        seen = model.prepare_batch(game, Batch(threes, labels))
        fake = model.generate(game, model.draw_latent(game, 4), seen.condition)
        real, detached, scored = (
            model.critic(game)(samples, seen.condition) for samples in (seen.real, fake.detach(), fake)
        )
        sum(model.discriminator_loss(game, seen, real, detached).values()).backward()  # type: ignore[union-attr]
        model.generator_loss(game, seen, scored, model.critic(game)(seen.real, seen.condition))[
            "adversarial"
        ].backward()
        for network in (game.generator, game.discriminator):
            rows = [m.weight.grad for m in network.modules() if type(m).__name__ == "Embedding"]
            assert rows, f"{type(network).__name__} has no embedding"
            for grad in rows:
                learns = grad.abs().sum(1) > 0
                assert learns.tolist() == [label in (3, 4) for label in range(10)]


def test_rows_of_a_grid_have_one_label_and_columns_one_latent(tmp_path: Path, fake_mnist: Path) -> None:
    experiment = build(composed(*tiny("cgan_conv"), f"data.root={fake_mnist}"), tmp_path)
    samples, columns = experiment.model.preview(experiment.data, 64)
    assert columns == 7
    assert len(samples) == 70
    model = experiment.model
    again = model.sample_all(model.latents(7, 0), torch.full((7,), 3))
    torch.testing.assert_close(samples[21:28], again)


def test_labels_of_data(fake_celeba: Path, fake_mnist: Path, tmp_path: Path) -> None:
    options = ["data.condition=attributes", "data.attributes=[Smiling,Male]", f"data.root={fake_celeba}"]
    faces = build(composed("model=cgan", "data=celeba", *options, "extractor=digits"), tmp_path).data
    assert faces.conditions(["Smiling", "Male+Smiling", "none"]).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert faces.conditions().tolist() == [[0, 0], [1, 0], [0, 1]]
    with pytest.raises(UserError, match=r"labels=Happy: must be Smiling, Male"):
        faces.conditions(["Happy"])
    alone = [options[0], "data.attributes=Smiling", options[2], "extractor=digits"]
    assert build(composed("model=cgan", "data=celeba", *alone), tmp_path).data.conditions().tolist() == [[0], [1]]
    with pytest.raises(Exception, match=r"data\.condition=attribute: must be none, labels"):
        build(composed("model=cgan", "data=celeba", *options, "data.condition=attribute"), tmp_path)
    for wrong, message in (
        (
            ["data=celeba", "data.condition=identity"],
            r"identity: needs the number of identities, data\.num_classes=10177",
        ),
        (["data=folder", "data.condition=labels"], r"data\.root is missing"),
        (["data=folder", "data.condition=labels", "data.root=nowhere"], r"data\.root=nowhere: there is no such"),
        (["data=folder", "data.num_classes=3", "data.root=nowhere"], "which this dataset lacks"),
        (["data=pairs", f"data.root={fake_celeba}"], "which this dataset lacks"),
    ):
        with pytest.raises(Exception, match=message):
            build(composed("model=cgan", *wrong), tmp_path)
    digits = build(composed(*tiny("cgan"), f"data.root={fake_mnist}"), tmp_path).data
    assert digits.conditions([7, 0]).tolist() == [7, 0]
    for wrong in ([10], [-1], ["Smiling"], [1.0], [True], []):
        with pytest.raises(UserError, match=r"labels=.*: must be numbers from 0 to 9"):
            digits.conditions(wrong)
    assert (
        len(build(composed("model=cgan", "data=stacked_mnist", f"data.root={fake_mnist}"), tmp_path).data.conditions())
        == 10
    )


def test_accuracy_is_of_classes_that_the_classifier_knows() -> None:
    data: Any = SimpleNamespace(num_classes=10)
    label = torch.arange(10)
    logits = torch.eye(10)
    known, other = (Statistics(10, label, label, logits, given, label) for given in (logits, logits.roll(1, 0)))
    assert ClassAccuracy().compute(other, known, data) == {"class_accuracy": 0}
    assert ClassAccuracy().compute(known, other, data) == {}


def test_walks_stay_where_latents_are() -> None:
    generator = torch.Generator().manual_seed(0)
    position = torch.linspace(0, 1, 9)[:, None]
    start, end = Uniform(50)(2, generator)
    assert Uniform(50).between(start, end, position).abs().max() < 1
    start, end = Normal(50)(2, generator)
    way = Normal(50).between(start, end, position).norm(dim=1)
    assert start.norm().item() == pytest.approx(way[0].item())
    assert way.min() >= min(start.norm(), end.norm()) - 1e-5
    levels = Levels([Uniform(3), Uniform(5)])
    first, second = levels(2, generator)
    coarse, noise = levels.between((first[:1], second[:1]), (first[1:], second[1:]), position)
    torch.testing.assert_close(coarse, torch.lerp(first[:1], first[1:], position))
    assert noise.shape == (9, 5)
    assert (noise == second[0]).all()


# The Laplacian pyramid ---------------------------------------------------------------------------------------------


def laplacian_pyramid(images: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """The coarsest image, and for each finer size what enlarging the coarser image misses."""
    levels = gaussian_pyramid(images, sizes)
    return [levels[0], *(fine - resized(coarse, fine.shape[-1]) for coarse, fine in pairwise(levels))]


def reconstructed(pyramid: Sequence[torch.Tensor]) -> torch.Tensor:
    return reduce(lambda image, residual: resized(image, residual.shape[-1]) + residual, pyramid)


@pytest.mark.parametrize("sizes", [(7, 14, 28), (8, 16, 32, 64), (8, 14, 28), (5, 33)])
def test_the_pyramid_is_linear_and_invertible(sizes: tuple[int, ...]) -> None:
    one, two = torch.rand(2, 3, 3, sizes[-1], sizes[-1]) * 2 - 1
    pyramid = laplacian_pyramid(one, sizes)
    assert [level.shape[-1] for level in pyramid] == list(sizes)
    torch.testing.assert_close(reconstructed(pyramid), one, rtol=0, atol=1e-5)
    both = laplacian_pyramid(one + 2 * two, sizes)
    for level, first, second in zip(both, pyramid, laplacian_pyramid(two, sizes), strict=True):
        torch.testing.assert_close(level, first + 2 * second, rtol=0, atol=1e-5)
    flat = laplacian_pyramid(torch.ones(1, 1, sizes[-1], sizes[-1]), sizes)
    assert all(level.abs().max() < 1e-5 for level in flat[1:]), "what is smooth has no detail"


def test_levels() -> None:
    assert level_sizes(28) == [7, 14, 28]
    assert level_sizes(64) == [8, 16, 32, 64]
    assert level_sizes(28, [8, 14, 28]) == [8, 14, 28]
    wrong: Any
    for wrong in ([14, 7, 28], [7, 14], [28], [1, 28], 28, [7.0, 28], ["seven", 28]):
        with pytest.raises(ValueError, match=r"levels=.* ascending"):
            level_sizes(28, wrong)


@pytest.mark.parametrize("size", [28, 32, 48, 64, 96])
@pytest.mark.parametrize("condition_size", [None, 3])
def test_lapgan_shapes(size: int, condition_size: int | None) -> None:
    generator = lapgan.Generator(5, size, 3, condition_size=condition_size, hidden=4, width=2)
    discriminator = lapgan.Discriminator(size, 3, condition_size=condition_size, hidden=4, width=2)
    label = torch.tensor([0, 2]) if condition_size else None
    latents = (torch.rand(2, 5), *(torch.rand(2, side**2) for side in generator.sizes[1:]))
    steps = generator.steps(latents, label)
    assert [tuple(images.shape) for images in steps] == [(2, 3, side, side) for side in generator.sizes]
    for level, images in zip(discriminator.levels, steps, strict=True):
        assert level(images, lapgan.LevelCondition(None, label)).shape == (2,)


def state_of(model: Any, size: int) -> dict[str, torch.Tensor]:
    index = model.sizes.index(size)
    return {name: value.clone() for name, value in model.state_dict().items() if f"levels.{index}." in name}


def test_levels_do_not_touch_each_other(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("lapgan"), f"data.root={fake_mnist}", "data.batch_size=8"]
    before = build(composed(*options), tmp_path).model
    after = fitted(tmp_path / "one", *options, "model.train_levels=[14]").model
    assert equal(state_of(before, 7), state_of(after, 7))
    assert equal(state_of(before, 28), state_of(after, 28))
    assert not equal(state_of(before, 14), state_of(after, 14))
    assert build(composed(*options, "model.train_levels=14"), tmp_path).model.train_levels == [14]
    for wrong, message in (
        ("model.train_levels=[13]", r"train_levels=\[13\]: the levels are \[7, 14, 28\]"),
        ("model.train_levels=[]", r"train_levels=\[\]: the levels are \[7, 14, 28\]"),
        ("model.discriminator.levels=[9,28]", r"levels of G and D differ: \(7, 14, 28\) and \(9, 28\)"),
    ):
        with pytest.raises(Exception, match=message):
            build(composed(*options, wrong), tmp_path)


def test_a_level_is_trained_again_alone(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("lapgan"), f"data.root={fake_mnist}", "data.batch_size=8"]
    first = fitted(tmp_path / "first", *options).model
    second = build(composed(*options, "model.train_levels=[28]"), tmp_path / "second").model
    start_from(second, str(tmp_path / "first"))
    average = first.average.module.state_dict()  # type: ignore[union-attr]
    start = second.generator.state_dict()
    freeze = {name: value for name, value in average.items() if not name.startswith("levels.2.")}
    assert equal(freeze, {name: start[name] for name in freeze})
    second = fitted(tmp_path / "third", *options, "model.train_levels=[28]").model
    second.start_from(first.state_dict())
    second.average.update_parameters(second.generator)  # type: ignore[union-attr]
    after = second.average.module.state_dict()  # type: ignore[union-attr]
    assert equal(freeze, {name: after[name] for name in freeze}), "what is not trained is sampled as before"


def test_levels_see_real_coarse_images(tmp_path: Path, fake_mnist: Path) -> None:
    model = build(composed(*tiny("lapgan"), f"data.root={fake_mnist}"), tmp_path).model
    images = torch.rand(2, 1, 28, 28)
    pyramid = laplacian_pyramid(images, (7, 14, 28))
    seen = [model.prepare_batch(game, Batch(images)) for game in model.games]
    torch.testing.assert_close(seen[0].real, pyramid[0])
    for (real, (coarse, _)), residual in zip(seen[1:], pyramid[1:], strict=True):  # type: ignore[misc]
        torch.testing.assert_close(real - coarse, residual)
    assert torch.equal(seen[-1].real, images)


def test_the_distance_of_a_level_does_not_see_finer_detail() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(60, 200, (128, 1, 7, 7), generator=generator).float()
    real = torch.nn.functional.interpolate(real, (28, 28), mode="bilinear")
    detail = 50 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(14, 14)
    shifted = real.flip(0).roll(8, dims=-1)
    extractor = freeze(Downsampled(Digits(), 7))
    sets = [extractor(images.byte()).features.double() for images in (real, real + detail, shifted)]
    (right, *moments) = [(features.mean(0), torch.cov(features.T)) for features in sets]
    finer, other = (frechet_distance(*right, *fake) for fake in moments)
    assert finer < 0.01 * other


def test_levels_that_are_measured_are_the_models(
    tmp_path: Path, fake_mnist: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="ganforge")
    options = [*tiny("lapgan"), f"data.root={fake_mnist}", "metrics=levels", "data.num_samples=70", "evaluate_every=2"]
    for sizes in ([9, 12],):
        trainer = fitted(tmp_path / f"{sizes}", *options, f"model.generator.levels={[*sizes, 28]}").trainer
        values = json.loads(Path(trainer.default_root_dir, "metrics.json").read_text())
        assert {name for name in values if "level" in name} == {f"level_fid_digits/{size}" for size in sizes}
        assert f"level_fid_digits/{sizes[0]} " in caplog.text, "and so on the console"
        assert "fid_digits" in values
    with pytest.raises(UserError, match="level_fid: levels="):
        build(composed(*options, "metrics.against_real.level_fid.sizes=[7]"), tmp_path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_levels_in_half_precision(tmp_path: Path, fake_mnist: Path, precision: str) -> None:
    options = [*tiny("lapgan"), f"data.root={fake_mnist}", "data.batch_size=8", f"trainer.precision={precision}"]
    fitted(tmp_path, *options, "evaluate_every=1", "data.num_samples=8")


@pytest.mark.slow  # importing torch's compiler takes seconds
def test_every_level_is_compiled(tmp_path: Path, fake_mnist: Path) -> None:
    model = build(composed(*tiny("lapgan"), f"data.root={fake_mnist}", "model.compile=true"), tmp_path).model
    for game in model.games:
        assert game.generator._compiled_call_impl is not None
        assert game.discriminator._compiled_call_impl is not None


# Images made of images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_srresnet_shapes(scale: int) -> None:
    generator = srresnet.Generator(scale, 3, width=4, blocks=1)
    assert generator(None, torch.rand(2, 3, 5, 7)).shape == (2, 3, 5 * scale, 7 * scale)
    discriminator = srresnet.Discriminator(24, 3, width=2, hidden=4)
    assert discriminator(torch.rand(2, 3, 24, 24), None).shape == (2,)


def test_srresnet_refuses_other_scales() -> None:
    with pytest.raises(ValueError, match=r"scale=5.*2, 3, 4 or 8.*degradation\.scale"):
        srresnet.Generator(5)


def test_pixels_are_shuffled_in_the_papers_order() -> None:
    generator = srresnet.Generator(2, 1, width=2, blocks=1, normalization=None)
    shuffle = next(m for m in generator.modules() if isinstance(m, nn.PixelShuffle))
    features = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 3, 3)
    made = shuffle(features)
    for channel in range(2):
        # row i and column j of a block of channel c come from feature 4 c + 2 i + j (Shi et al., 2016)
        for i in range(2):
            for j in range(2):
                assert (made[0, channel, i::2, j::2] == 4 * channel + 2 * i + j).all()


@pytest.mark.parametrize("shape", [(16, 16), (17, 30), (5, 3)])
@pytest.mark.parametrize("scale", [1, 4])
def test_unet_makes_any_size(shape: tuple[int, int], scale: int) -> None:
    generator = unet.Generator(1, 3, scale=scale, width=2, depth=3).eval()
    made = generator(None, torch.rand(2, 1, *shape))
    assert made.shape == (2, 3, shape[0] * scale, shape[1] * scale)
    assert made.abs().max() <= 1


def test_a_patch_discriminator_looks_at_seventy_pixels() -> None:
    network = unet.PatchDiscriminator(3, 256, width=2, normalization=None)
    images = torch.rand(1, 3, 256, 256, requires_grad=True)
    logits = network(images, torch.rand(1, 3, 64, 64))
    assert logits.shape == (1, 1, 30, 30)
    logits[0, 0, 15, 15].backward()
    assert images.grad is not None
    rows = images.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.max() - rows.min() + 1 == 70


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.manual_seed(0)
    torch.save({f"features.{k}": v.half() for k, v in make_layers([64, 64, "M", 128, 128]).state_dict().items()}, path)
    return path


def test_content_is_nothing_between_equal_images_and_trains_the_generator_only(
    tmp_path: Path, pictures: Path, vgg: Path
) -> None:
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28", "data.batch_size=2")
    options += ["content=vgg16", f"content.weights={vgg}", "content.layers=9"]
    model = fitted(tmp_path, *options).model
    content = model.content
    images = torch.rand(2, 3, 28, 28)
    assert content(images, images) == 0
    assert content(images, 1 - images) > 0
    assert not any(p.requires_grad for p in content.network.parameters())
    assert not content.network.training
    model.zero_grad()
    fake = model.generate(model.games[0], None, torch.rand(2, 3, 7, 7))
    content(fake, images).backward()
    assert all(p.grad is not None for p in model.generator.parameters())
    assert not any(p.grad is not None for p in (*model.discriminator.parameters(), *content.network.parameters()))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    networks = {name.partition(".")[0] for name in saved["state_dict"]}
    assert networks == {"generator", "discriminator", "average"}


def test_content_in_features_is_the_papers(vgg: Path) -> None:
    content = VGG16(layers=9, weights=str(vgg))
    fake, real = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    features = [content.network(((images + 1) / 2 - mean) / std) for images in (fake, real)]
    expected = (features[0] - features[1]).square().mean() * 0.006
    assert content(fake, real).item() == pytest.approx(expected.item(), rel=0.03)  # 1/12.75 squared is 0.00615


def test_content_weights_that_are_others(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"content\.weights=.*does not hold the features of vgg16"):
        VGG16(layers=9, weights=str(path)).prepare()


@pytest.mark.parametrize(("power", "expected"), [(1, 2.0), (2, 4.0)])
def test_content_of_pixels(power: int, expected: float) -> None:
    assert Pixels(power)(torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4)) == expected


def test_the_second_stage_starts_with_the_weights_of_the_first(tmp_path: Path, pictures: Path) -> None:
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28", "data.batch_size=2")
    other = ["model.stage=pretrain", "model.discriminator.width=2"]  # as it would be with crops of another size
    first = fitted(tmp_path / "first", *options, *other).model
    second = build(composed(*options, f"model.init_from={tmp_path / 'first'}"), tmp_path / "second").model
    untrained = {name: value.clone() for name, value in second.discriminator.state_dict().items()}
    start_from(second, second.init_from)  # type: ignore[arg-type]
    assert equal(first.generator.state_dict(), second.generator.state_dict())
    assert equal(first.average.state_dict(), second.average.state_dict())  # type: ignore[union-attr]
    assert equal(untrained, second.discriminator.state_dict())
    low = torch.rand(1, 3, 9, 9)
    assert torch.equal(first.sample(None, low), second.sample(None, low))
    trained = fitted(tmp_path / "second", *options).model
    third = build(composed(*options), tmp_path / "third").model
    start_from(third, str(tmp_path / "second"))
    assert equal(trained.discriminator.state_dict(), third.discriminator.state_dict())


def test_weights_of_other_runs(tmp_path: Path, fake_mnist: Path) -> None:
    options = [*tiny("dcgan"), f"data.root={fake_mnist}", "data.batch_size=8"]
    first = fitted(tmp_path / "first", *options).model
    start = f"model.init_from={tmp_path / 'first'}"
    raw = build(composed(*options, start, "model.moving_average_decay=null"), tmp_path).model
    assert equal(first.generator.state_dict(), raw.generator.state_dict())
    bare = fitted(tmp_path / "bare", *options, "model.moving_average_decay=null").model
    averaged = build(composed(*options, f"model.init_from={tmp_path / 'bare'}"), tmp_path).model
    assert equal(bare.generator.state_dict(), averaged.sampling_generator.state_dict())
    with pytest.raises(UserError, match=r"model\.init_from=.*/first: that run has different networks"):
        build(composed(*tiny("cgan"), f"data.root={fake_mnist}", start), tmp_path)
    with pytest.raises(UserError, match=r"model\.init_from=.*: .* is not a run folder"):
        build(composed(*options, f"model.init_from={tmp_path}"), tmp_path)


def test_terms_of_the_second_stage(tmp_path: Path, pictures: Path) -> None:
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28", "data.batch_size=2")
    options += ["model.pixel_weight=2", "model.content_weight=3", "trainer.max_steps=2"]
    model = fitted(tmp_path, *options, "model.adversarial_weight=${linear:0,1e-3,4}").model
    terms, expected = model.step_log.terms, 0.25 * 1e-3
    assert terms["loss_g/pixels"].item() == pytest.approx(2 / 3 * terms["loss_g/content"].item())
    fake = model.generate(model.games[0], None, torch.rand(2, 3, 7, 7))
    batch = Batch(torch.rand(2, 3, 28, 28), torch.rand(2, 3, 7, 7))
    ramped = model.generator_loss(model.games[0], batch, Critic(model.discriminator)(fake))["adversarial"]
    whole = model.loss.generator(model.discriminator(fake, None))
    assert ramped.item() == pytest.approx(expected * whole.item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model=gan", "data=ring", "augment=ada"], "augment=ada: it transforms images, not points"),
        (["model=dcgan", "loss=relativistic", "augment=ada"], r"augment=ada follows the signs .* augment=fixed"),
        (["model=lapgan", "augment=diffaugment"], "augment=diffaugment would misalign images"),
        (["model=cgan", "model.pack=2"], r"model\.pack=2: only unconditional discriminators"),
        (["model=lapgan", "model.pack=2"], r"model\.pack=2: only unconditional discriminators"),
        (["model=dcgan", "regularizer=mismatch"], r"regularizer=mismatch is about labels: choose a model"),
        (["model=lapgan_conditional", "regularizer=mismatch"], r"regularizer=mismatch is about labels: choose a model"),
    ],
)
def test_choices_that_do_not_go_together(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(composed(*options, "data.root=unused") if "data=ring" not in options else composed(*options), tmp_path)


def test_the_first_stage_leaves_the_discriminator_alone(tmp_path: Path, pictures: Path) -> None:
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28", "data.batch_size=2")
    before = build(composed(*options), tmp_path / "x").model.discriminator.state_dict()
    model = fitted(tmp_path, *options, "model.stage=pretrain", "model.discriminator_steps=2").model
    assert equal(before, model.discriminator.state_dict())
    assert model.trainer.datamodule.shard.parts == 1, "no rows for updates that are not made"
    assert set(model.step_log.terms) == {"loss_g/pixels", "loss_g/total"}


def test_mistakes_with_pairs_are_found_before_training(tmp_path: Path, pictures: Path) -> None:
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28")
    with pytest.raises(UserError, match=r"model\.init_from=/nowhere: "):
        build(composed(*options, "model.init_from=/nowhere"), tmp_path)
    with pytest.raises(UserError, match="standing_statistics"):
        build(composed(*options, f"data.valid=[{pictures}]", "callbacks.evaluation.standing_statistics=true"), tmp_path)
    for wrong, message in (
        (
            "model.generator.scale=2",
            "scale=2.* are 4 times as large as their counterparts. Set model.generator.scale=4",
        ),
        ("degradation=noise", "scale=4.* 1 times as large as their counterparts. Use model=pix2pix"),
    ):
        experiment = build(composed(*options, wrong), tmp_path)
        with pytest.raises(UserError, match=rf"model\.generator\.{message}"):
            check_scale(experiment.data, experiment.model)
    for wrong, message in (
        ("degradation=grayscale", "data.channels=1: grey images have no colours"),
        ("data.image_size=20", r"image_size=20: 3 layers need at least 24 pixels"),
    ):
        with pytest.raises(Exception, match=message):
            build(composed("model=pix2pix", "data=pairs", f"data.root={pictures}", "data.channels=1", wrong), tmp_path)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("shape", [(40, 40), (33, 65), (16, 90)])
def test_tiles_show_no_seams(scale: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = srresnet.Generator(scale, 3, width=4, blocks=2, normalization=None).eval()
    image = torch.rand(1, 3, *shape)
    with torch.no_grad():
        whole = network(None, image)
        tiled = in_tiles(lambda part: network(None, part), image, tile=16, margin=12)
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().max() < 1 / 255
    assert whole.std() > 0.02, "a constant would have no seams either"


# sample.py ---------------------------------------------------------------------------------------------------------


def test_samples_of_labels(
    tmp_path: Path, fake_mnist: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = recorded(tmp_path / "run", *tiny("cgan"), f"data.root={fake_mnist}", "data.batch_size=8")
    result = run("sample.py", f"run={folder}", "labels=[3,1]", "num_samples=10", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    with Image.open(result.stdout.strip()) as grid:
        assert grid.size == (5 * 30 + 2, 2 * 30 + 2)
    monkeypatch.chdir(tmp_path)

    def drawn(*options: str) -> Path:
        sample(composed(f"run={folder}", *options, config="sample"))
        return Path(capsys.readouterr().out.strip())

    assert drawn("labels=3").name.endswith("labels-3.png")
    names = sorted(path.name for path in drawn("labels=[3,1]", "num_samples=4", "separate=true").iterdir())
    assert names == ["000000-3.png", "000001-3.png", "000002-1.png", "000003-1.png"]
    for wrong, message in (
        (["labels=[3,1]", "separate=true"], "already exists"),
        (["labels=Smiling"], "labels=Smiling: must be numbers from 0 to 9"),
        (["num_samples=abc"], "num_samples=abc: must be a whole number of at least 1"),
        (["seed=abc"], "seed=abc: must be a whole number from 0"),
        (["input=x.png"], "Leave out input="),
        (["labels=1.5"], "labels=1.5: must be numbers from 0 to 9"),
        (["separate=npz"], "separate=npz: must be true or false"),
        (["format=jpg"], "format=jpg: must be png or npz"),
        (["format=npz"], "format=npz: needs separate=true"),
        (["output=x.png"], "output=x.png: must be a folder"),
    ):
        with pytest.raises(UserError) as error:
            drawn(*wrong)
        assert message in str(error.value)


def test_images_made_of_images(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    folder, source, output = tmp_path / "run", tmp_path / "source", tmp_path / "made"
    options = tiny("srgan", "data=pairs", f"data.root={pictures}", "data.image_size=28", "data.batch_size=2")
    options += ["trainer=cpu", "trainer.max_steps=1"]
    result = run("train.py", *options, f"hydra.run.dir={folder}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"sample.py run={folder.name} input=<image or folder>" in result.stderr + result.stdout
    save_picture(source / "colours.png", 0, (20, 30))
    save_picture(source / "deep" / "grey.png", 1, (20, 30), "L")
    save_picture(source / "clear.png", 2, (20, 30), "RGBA")
    save_picture(source / "turned.jpg", 3, (20, 30), exif=_turned())
    result = run("sample.py", f"run={folder}", f"input={source}", f"output={output}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 4
    made = {path.stem: Image.open(path) for path in output.rglob("*.png")}
    assert {name: image.mode for name, image in made.items()} == {
        "colours": "RGB",
        "grey": "L",
        "clear": "RGBA",
        "turned": "RGB",
    }
    assert {name: image.size for name, image in made.items()} == {
        "colours": (80, 120),
        "grey": (80, 120),
        "clear": (80, 120),
        "turned": (120, 80),
    }

    def drawn(*options: str) -> list[str]:
        sample(composed(f"run={folder}", *options, config="sample"))
        return capsys.readouterr().out.splitlines()

    capsys.readouterr()
    assert drawn(f"input={source}/colours.png", f"output={tmp_path}/one") == [f"{tmp_path}/one/colours.png"]
    with pytest.raises(UserError, match="would overwrite an input"):
        drawn(f"input={source}/colours.png", f"output={source}")
    save_picture(source / "colours.jpg", 0)
    with pytest.raises(UserError, match="would both become"):
        drawn(f"input={source}", f"output={tmp_path}/two")
    assert not (tmp_path / "two").exists()
    with pytest.raises(UserError, match="pass input=<image or folder>"):
        drawn()
    with pytest.raises(UserError, match="there is no such file or folder"):
        drawn(f"input={source}/x.png")
    (source / "colours.png").write_text("no image")
    (source / "colours.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 4 cannot be read:\n  colours.png: is not an image$"):
        drawn(f"input={source}", f"output={tmp_path}/three")
    assert len(capsys.readouterr().out.splitlines()) == 3, "the others are made"


@pytest.fixture
def upscaler(tmp_path: Path) -> Any:
    options = tiny("srgan", "data=pairs", "data.root=somewhere", "data.image_size=28", "data.batch_size=2")
    return build(composed(*options), tmp_path / "run").model.eval()


def test_bad_images_do_not_stop_the_others(tmp_path: Path, upscaler: Any) -> None:
    source = tmp_path / "source"
    for i, name in enumerate(("a", "z")):
        save_picture(source / f"{name}.png", i, (20, 30))
    (source / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (source / "half.png").write_bytes((source / "a.png").read_bytes()[:200])
    (source / "steers\x1b[2J\nterminals.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"3 of 5 cannot be read:\n  bomb\.png: .*\n  half\.png: .*\n  steers") as error:
        list(translate(upscaler, source, tmp_path / "made"))
    assert str(error.value).splitlines()[-1] == r"  steers\x1b[2J\nterminals.png: is empty"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["a.png", "z.png"]
    with ZipFile(tmp_path / "damaged.zip", "w", ZIP_DEFLATED) as archive:
        archive.write(source / "a.png", "good.png")
        archive.writestr("later.png", bytes(1000))
    content = bytearray((tmp_path / "damaged.zip").read_bytes())
    content[content.index(b"PK\3\4", 1) + 6] |= 1
    content[content.rindex(b"PK\1\2") + 8] |= 1  # which means that it is encrypted
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"1 of 2 cannot be read:\n  later\.png: .*encrypted"):
        list(translate(upscaler, tmp_path / "damaged.zip", tmp_path / "more"))


def test_nothing_is_written_outside_of_the_output(tmp_path: Path, upscaler: Any) -> None:
    save_picture(tmp_path / "source" / "deep" / "x.png", 1, (20, 30))
    with ZipFile(tmp_path / "slip.zip", "w") as archive:
        archive.write(tmp_path / "source" / "deep" / "x.png", "../../SLIP.png")
    with pytest.raises(UserError, match=r"^input=.*slip\.zip holds \.\./\.\./SLIP\.png, which"):
        list(translate(upscaler, tmp_path / "slip.zip", tmp_path / "one" / "two"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "deep").symlink_to(tmp_path)
    with pytest.raises(UserError, match=r"^output=.*out: .*x\.png lies outside of it"):
        list(translate(upscaler, tmp_path / "source", tmp_path / "out"))
    for place in (Path("/proc/x"), tmp_path / "slip.zip" / "x"):
        with pytest.raises(UserError, match=rf"^output={place} cannot be written: "):
            list(translate(upscaler, tmp_path / "source", place))
    assert {path.name for path in tmp_path.iterdir()} <= {"source", "slip.zip", "out", "run"}


def test_samples_are_named_by_classes(tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["faces", "v1.5 /..", "写" * 200]
    options = [*tiny("cgan_conv"), "data=folder", f"data.root={pictures}", "data.image_size=28", "data.batch_size=8"]
    folder = recorded(tmp_path / "run", *options, "data.condition=labels")
    shutil.rmtree(pictures)

    def drawn(labels: list[Any], *more: str) -> Path:
        config = composed(f"run={folder}", "num_samples=3", f"output={tmp_path}", *more, config="sample")
        config.labels = labels
        sample(config)
        return Path(capsys.readouterr().out.strip())

    def record(classes: list[str]) -> None:
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        config.data.classes, config.data.num_classes = classes, len(classes)
        config.model.generator.condition_size = config.model.discriminator.condition_size = 3
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")

    with pytest.raises(UserError, match=r"data\.root=.*there is no such folder or zip"):
        load_data(read_record(folder)).conditions([0])
    record(names)
    assert drawn([1]).name == "samples-seed-0-labels-v1.5_...png"
    assert drawn(["faces", 0]).name == "samples-seed-0-labels-faces-faces.png"
    separate = sorted(path.name for path in drawn(names, "separate=true").iterdir())
    assert separate == ["000000-faces.png", "000001-v1.5_...png", f"000002-{'写' * 33}.png"]
    with pytest.raises(UserError, match=r"^output=/proc/x cannot be written"):
        drawn([0], "output=/proc/x")
    with pytest.raises(UserError, match="labels=voices: must be faces, ") as error:
        drawn(["voices"])
    assert "\x1b" not in str(error.value)
    record(names[:2])
    with pytest.raises(UserError, match="has 3 labels, but its data 2: its config does not match its checkpoint"):
        drawn([0])


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return exif
