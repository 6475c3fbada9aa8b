"""Augmentations against naive ones, one image at a time, and against the distributions in their papers."""

from collections.abc import Callable
from math import pi

import pytest
import torch
from torch import Tensor

from ganforge import randomness
from ganforge.augment import ADA, Augmentation, DiffAugment, Fixed, InstanceNoise
from ganforge.augment.transformations import PARAMETERS, colours, draw, geometry, mix_channels, warp
from ganforge.runtime.errors import UserError

CPU = torch.device("cpu")
ALL: dict[str, Callable[[], Augmentation]] = {
    "diffaugment": DiffAugment,
    "instance_noise": lambda: InstanceNoise(0.1),
    "fixed": lambda: Fixed(0.7),
}
each = pytest.mark.parametrize("make", ALL.values(), ids=ALL.keys())


@pytest.fixture(autouse=True)
def _step() -> None:
    randomness.start_step(seed=0, step=1, rank=0, world_size=1, device=CPU)


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def both_interpolations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.use_deterministic_algorithms imports the compiler, which takes seconds
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: request.param)


def noise(*shape: int, seed: int = 0, **options: torch.dtype) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), **options) * 2 - 1


# What holds for all of them ------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_type_and_layout_stay(
    make: Callable[[], Augmentation], channels: int, size: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    images = noise(4, channels, size, size).to(dtype, memory_format=layout)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        augmented = make()(images)
    assert augmented.shape == images.shape
    assert augmented.dtype == dtype
    assert augmented.is_contiguous(memory_format=layout)
    assert not torch.equal(augmented, images)
    _step_again()
    exact = make()(images.float()).to(dtype)
    assert torch.equal(augmented, exact), "computed in float32 whatever the precision"


def _step_again() -> None:
    randomness.start_step(0, 1, 0, 1, CPU)


@each
def test_two_ranks_see_what_one_process_sees(make: Callable[[], Augmentation]) -> None:
    images = noise(6, 3, 16, 16)
    joint = make()(images)
    halves = []
    for rank in range(2):
        randomness.start_step(0, 1, rank, 2, CPU)
        halves.append(make()(images.chunk(2)[rank]))
    torch.testing.assert_close(torch.cat(halves), joint)


@each
@pytest.mark.usefixtures("both_interpolations")
def test_differentiable_twice(make: Callable[[], Augmentation]) -> None:
    augmentation = make()

    def augmented(images: Tensor) -> Tensor:
        _step_again()
        return augmentation(images)

    images = noise(2, 3, 6, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(augmented, images, fast_mode=True)
    assert torch.autograd.gradgradcheck(augmented, images, fast_mode=True)
    cube = augmented(images).pow(3).sum()
    (gradient,) = torch.autograd.grad(cube, images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("augmentation", [DiffAugment(), Fixed(0.5), ADA()])
def test_points_are_refused(augmentation: Augmentation) -> None:
    with pytest.raises(UserError, match="transforms images, not points: use augment=none"):
        augmentation.check_shape([2])


def test_senseless_options_are_refused() -> None:
    for make, message in (
        (lambda: Fixed(1.5), "probability=1.5"),
        (lambda: Fixed(0.5, ["xflip", "flip"]), "transforms: flip is unknown; choose from xflip"),
        (lambda: DiffAugment(["color"]), "policy: color is unknown; choose from colour"),
        (lambda: InstanceNoise(-1), "std=-1"),
        (lambda: ADA(every=0), "every=0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_images_without_colours() -> None:
    with pytest.raises(UserError, match="2 channels"):
        Fixed(0.5).check_shape([2, 8, 8])
    Fixed(0.5, ["xflip"]).check_shape([2, 8, 8])
    images = noise(4, 2, 8, 8)
    assert Fixed(0.5, ["xflip"])(images).shape == images.shape


def test_instance_noise() -> None:
    points = torch.zeros(20_000, 2)
    augmentation = InstanceNoise(0.3)
    assert augmentation(points).std().item() == pytest.approx(0.3, rel=0.02)
    augmentation.std = 0.1  # as a schedule does
    assert augmentation(points).std().item() == pytest.approx(0.1, rel=0.02)


# The transformations of ADA ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("both_interpolations")
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64)])
def test_a_probability_of_zero_changes_nothing(channels: int, size: int) -> None:
    images = noise(4, channels, size, size)
    assert torch.equal(Fixed(0.0)(images), images)
    assert torch.equal(ADA()(images), images)


SHARES = {"xflip": 0.25, "rotate90": 0.375, "lumaflip": 0.25}


@pytest.mark.parametrize("name", Fixed.TRANSFORMS)
def test_share_of_images_that_change(name: str) -> None:
    images = noise(1, 3, 16, 16).expand(1000, -1, -1, -1)
    changed = (Fixed(0.5, [name])(images) != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(SHARES.get(name, 0.5), abs=0.06)  # four standard errors


def test_parameters_have_the_distributions_of_the_paper() -> None:
    _, parameters = draw(20_000, torch.Generator().manual_seed(0)).unbind(1)
    for values, (name, distribution, spread) in zip(parameters.T, PARAMETERS, strict=True):
        std = spread if distribution == "normal" else spread / 3**0.5
        assert values.std().item() == pytest.approx(std, rel=0.03), name
        assert values.mean().item() == pytest.approx(0, abs=0.04 * std), name
        assert distribution == "normal" or values.abs().max() <= spread


def test_integer_translation_moves_a_pixel() -> None:
    images = torch.zeros(500, 1, 32, 32)
    images[:, :, 16, 16] = 1
    moved = Fixed(1.0, ["xint"])(images)
    torch.testing.assert_close(moved.flatten(1).amax(1), torch.ones(500))
    row, column = moved.flatten(1).argmax(1).div(32, rounding_mode="floor"), moved.flatten(1).argmax(1) % 32
    for position in (row, column):
        assert {*position.tolist()} == {*range(12, 21)}, "all shifts up to an eighth of the size"
        assert position.float().mean().item() == pytest.approx(16, abs=0.5)


def test_flips_and_quarter_turns_keep_the_pixels() -> None:
    image = noise(1, 1, 9, 9)
    turned = [image.rot90(k, (2, 3)) for k in range(4)]
    images = image.expand(200, -1, -1, -1)
    for transforms, expected in ((["xflip"], [image, image.flip(3)]), (["rotate90"], turned)):
        augmented = Fixed(1.0, transforms)(images)
        errors = torch.cat([(augmented - case).flatten(1).abs().amax(1, keepdim=True) for case in expected], 1)
        assert errors.min(1).values.max() < 1e-5
        assert (errors.argmin(1).bincount(minlength=len(expected)) > 200 / len(expected) / 2).all()


def _drawn(count: int) -> tuple[Tensor, ...]:
    return draw(count, torch.Generator().manual_seed(3))[:, 1].double().unbind(1)


def _forward(parameters: list[float], size: int) -> Tensor:
    """The matrix from input to output positions, as in the paper: one transformation after the other."""
    flip, turns, shift_x, shift_y, scale, before, after, aniso, move_x, move_y = parameters

    def matrix(*rows: list[float]) -> Tensor:
        return torch.tensor(rows, dtype=torch.float64)

    def rotation(angle: float) -> Tensor:
        a = torch.tensor(angle, dtype=torch.float64)
        return matrix([a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0], [0, 0, 1])

    steps = [
        matrix([-1 if flip < 0 else 1, 0, 0], [0, 1, 0], [0, 0, 1]),
        rotation(pi / 2 * (turns // 1)),
        matrix([1, 0, round(shift_x * size)], [0, 1, round(shift_y * size)], [0, 0, 1]),
        matrix([2**scale, 0, 0], [0, 2**scale, 0], [0, 0, 1]),
        rotation(before),
        matrix([2**aniso, 0, 0], [0, 2**-aniso, 0], [0, 0, 1]),
        rotation(after),
        matrix([1, 0, move_x * size], [0, 1, move_y * size], [0, 0, 1]),
    ]
    whole = torch.eye(3, dtype=torch.float64)
    for step in steps:
        whole = step @ whole
    return whole


@pytest.mark.usefixtures("both_interpolations")
def test_geometry_against_an_image_that_is_known_everywhere() -> None:
    size, count = 32, 20
    parameters = _drawn(count)[:10]
    grid = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64) - (size - 1) / 2] * 2).flip(1)  # (x, y)

    def picture(position: Tensor) -> Tensor:
        """Waves that are their own reflections at the border."""
        x, y = ((position + (size - 1) / 2) * pi / (size - 1)).unbind(-1)
        return (5 * x).cos() * (3 * y).cos() + 0.5 * (4 * x).cos()

    images = picture(grid).view(1, 1, size, size).expand(count, -1, -1, -1)
    warped = warp(images, *geometry(parameters, size, size))
    for image, values in zip(warped, torch.stack(parameters, 1).tolist(), strict=True):
        inverse = torch.linalg.inv(_forward(values, size))
        expected = picture(grid @ inverse[:2, :2].T + inverse[:2, 2]).view(1, size, size)
        torch.testing.assert_close(image, expected, atol=0.04, rtol=0)


def test_both_interpolations_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(8, 3, 20, 20)
    parameters = tuple(parameter.float() for parameter in _drawn(8)[:10])
    fast = warp(images, *geometry(parameters, 20, 20))
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    torch.testing.assert_close(warp(images, *geometry(parameters, 20, 20)), fast, atol=1e-4, rtol=0)


def _recoloured(image: Tensor, brightness: float, contrast: float, lumaflip: float, hue: float, saturation: float):
    """One RGB image (3, H, W), one step after the other."""
    image = (image + brightness) * 2**contrast
    grey = image.mean(0, keepdim=True)
    if lumaflip < 0:
        image = image - 2 * grey
    axis = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / 3**0.5
    image = torch.einsum("dc,chw->dhw", torch.linalg.matrix_exp(hue * axis), image)
    grey = image.mean(0, keepdim=True)
    return grey + (image - grey) * 2**saturation


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_against_one_step_after_the_other(channels: int) -> None:
    parameters = _drawn(20)[10:]
    images = noise(20, channels, 4, 4, dtype=torch.float64)
    result = mix_channels(images, *colours(parameters, channels))
    expected = [
        _recoloured(image.expand(3, -1, -1), *values)[:channels]
        for image, values in zip(images, torch.stack(parameters, 1).tolist(), strict=True)
    ]
    torch.testing.assert_close(result, torch.stack(expected))


def test_grey_stays_grey() -> None:
    grey = noise(50, 1, 8, 8).expand(-1, 3, -1, -1)
    torch.testing.assert_close(Fixed(1.0, ["hue", "saturation"])(grey), grey)
    augmented = Fixed(1.0)(grey)
    torch.testing.assert_close(augmented, augmented[:, :1].expand(-1, 3, -1, -1))


# ADA's controller ----------------------------------------------------------------------------------------------------


def test_probability_follows_the_sign_of_real_logits() -> None:
    ada = ADA(ramp_images=1000)
    changes = []
    for share in (1.0, 0.9, 0.7, 0.8, 0.1):  # of real samples that D classifies as real; their mean sign is 2 share - 1
        before = ada.probability.item()
        for _ in range(4):
            assert ada.probability.item() == before, "it changes with every fourth update only"
            ada.observe(torch.where(torch.arange(20) < 20 * share, 1.5, 0.3), boundary=0.5)
        changes.append(ada.probability.item() - before)
    assert changes == pytest.approx([0.08, 0.08, -0.08, 0, -0.08], abs=1e-6)


def test_probability_stays_between_0_and_1() -> None:
    ada = ADA(ramp_images=100, every=1)
    for logit, expected in ((-1.0, 0.0), (1.0, 0.6), (1.0, 1.0), (1.0, 1.0), (-1.0, 0.4)):
        ada.observe(torch.full((60,), logit), boundary=0.0)
        assert ada.probability.item() == pytest.approx(expected)


@pytest.mark.parametrize("pack", [1, 2])
def test_probability_counts_images_not_patches_or_packs(pack: int) -> None:
    ada = ADA(ramp_images=1000, every=1)
    ada.observe(torch.ones(10 // pack, 1, 4, 4), boundary=0.0, pack=pack)
    assert ada.logged()["probability"].item() == pytest.approx(0.01)


def test_small_steps_add_up_in_every_precision() -> None:
    ada = ADA(every=1, ramp_images=50_000).bfloat16()
    for _ in range(200):
        ada.observe(torch.ones(64, dtype=torch.bfloat16), boundary=0.0)
    assert ada.probability.item() == pytest.approx(200 * 64 / 50_000, rel=1e-5)
    copy = ADA()
    copy.load_state_dict(ada.state_dict())
    assert torch.equal(copy.probability, ada.probability)


def test_ranks_agree_on_the_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.tensor([1.0] * 8 + [-1.0] * 2), torch.tensor([1.0] * 9 + [-1.0])
    joint = ADA(ramp_images=1000, every=1)
    joint.observe(torch.cat(real), boundary=0.0)
    counts: list[Tensor] = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: counts.append(tensor.clone()))
    for logits in real:
        ADA().observe(logits, boundary=0.0)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.copy_(sum(counts)))
    rank = ADA(ramp_images=1000, every=1)
    rank.observe(real[0], boundary=0.0)
    assert rank.probability.item() == joint.probability.item() == pytest.approx(0.02)


# DiffAugment ---------------------------------------------------------------------------------------------------------


def test_diffaugment_colours_against_one_step_after_the_other() -> None:
    images = noise(8, 3, 4, 4)
    result = DiffAugment(["colour"])(images)
    _step_again()
    draws = randomness.for_batch(lambda count, generator: torch.rand(count, 7, generator=generator), 8)
    for image, augmented, (brightness, saturation, contrast, *_) in zip(images, result, draws.tolist(), strict=True):
        expected = image + brightness - 0.5
        grey = expected.mean(0)
        expected = grey + (expected - grey) * 2 * saturation
        expected = expected.mean() + (expected - expected.mean()) * (contrast + 0.5)
        torch.testing.assert_close(augmented, expected)


def test_diffaugment_translation() -> None:
    images = torch.zeros(500, 3, 24, 24)
    images[:, :, 10, 12] = 1
    moved = DiffAugment(["translation"])(images)
    assert torch.equal(moved.sum((2, 3)), torch.ones(500, 3))
    position = moved[:, 0].flatten(1).argmax(1)
    assert {*position.div(24, rounding_mode="floor").tolist()} == {*range(7, 14)}
    assert {*(position % 24).tolist()} == {*range(9, 16)}
    filled = DiffAugment(["translation"])(torch.ones(500, 1, 24, 24))
    assert filled[filled != 1].unique().tolist() == [0], "what moves in is 0"


@pytest.mark.parametrize("size", [28, 30])  # the sides of the square are even and odd
def test_diffaugment_cutout(size: int) -> None:
    cut = DiffAugment(["cutout"])(torch.ones(2000, 1, size, size))[:, 0] == 0
    for sides in (cut.any(1).sum(1), cut.any(2).sum(1)):
        assert (sides.min(), sides.max()) == ((size // 2 + 1) // 2, size // 2), "half of it may be outside"
    assert torch.equal(cut.flatten(1).sum(1), cut.any(1).sum(1) * cut.any(2).sum(1)), "a rectangle"
    torch.testing.assert_close(cut.float().mean(0), cut.float().mean(0).flip(0, 1), atol=0.06, rtol=0)
