"""Augmentation of the samples that the discriminator sees, real and fake alike.

To add one: a class that derives from `Augmentation`, and a one-line file in `conf/augment/`. Several at once:
`augment=[diffaugment,instance_noise]`.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganforge.augment.transformations import COLOURS, GEOMETRY, NAMES, colours, draw, geometry, mix_channels, warp
from ganforge.randomness import for_batch
from ganforge.runtime.errors import UserError
from ganforge.schedules import Schedule, check_range


class Augmentation(nn.Module):
    """Transforms the samples that D scores, real and fake, in the updates of D and of G, with gradients.

    A subclass implements `augment`. It draws its random numbers with `randomness.for_batch`.
    """

    needs_images: ClassVar[bool] = True
    """Whether it cannot transform points (N, 2)."""
    needs_boundary: ClassVar[bool] = False
    """Whether the loss must have a decision boundary."""

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise UserError for samples of a shape, without the batch, that it cannot transform."""
        if self.needs_images and len(shape) != 3:
            raise UserError("it transforms images, not points: use augment=none or instance_noise")

    def forward(self, samples: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1], or points; dtype and memory format stay. Computes in float32 or float64."""
        is_channels_last = samples.ndim == 4 and samples.is_contiguous(memory_format=torch.channels_last)
        with torch.autocast(samples.device.type, enabled=False):
            precise = samples.to(torch.promote_types(samples.dtype, torch.float32))
            augmented = self.augment(precise).to(samples.dtype)
        return augmented.contiguous(memory_format=torch.channels_last) if is_channels_last else augmented

    def augment(self, samples: Tensor) -> Tensor:
        """The augmented samples, in float32 or float64 as given."""
        raise NotImplementedError

    def observe(self, real_logits: Tensor, boundary: float | None, pack: int = 1) -> None:
        """Called once per update of D, on every rank, with the logits of this rank's augmented real samples.

        Each row of the logits is that of `pack` samples.
        """

    def logged(self) -> dict[str, Tensor]:
        """Scalars to log, under their names."""
        return {}


class InstanceNoise(Augmentation):
    """Adds Gaussian noise with standard deviation `std` (Soenderby et al., 2016)."""

    needs_images = False

    def __init__(self, std: float | Schedule):
        super().__init__()
        self.std = check_range("std", std, 0)

    def augment(self, samples: Tensor) -> Tensor:
        shape = samples.shape[1:]
        noise = for_batch(lambda count, generator: torch.randn(count, *shape, generator=generator), len(samples))
        return samples + self.std * noise.to(samples)


class DiffAugment(Augmentation):
    """Differentiable augmentation (Zhao et al., 2020) of every image; `policy` lists what is applied.

    `colour`: brightness +-0.5, saturation times 0 to 2, contrast times 0.5 to 1.5. `translation`: up to 1/8 of the size
    in each direction, zeros move in. `cutout`: a square of half the size, anywhere, becomes 0.
    """

    POLICY = ("colour", "translation", "cutout")

    def __init__(self, policy: Collection[str] = POLICY):
        super().__init__()
        _check_names("policy", policy, self.POLICY)
        self.policy = tuple(policy)

    def augment(self, samples: Tensor) -> Tensor:
        draws = for_batch(lambda count, generator: torch.rand(count, 7, generator=generator), len(samples))
        draws = draws.to(samples)
        if "colour" in self.policy:
            samples = self._change_colours(samples, *draws[:, :3].unbind(1))
        if "translation" in self.policy:
            samples = self._translate(samples, draws[:, 3:5])
        if "cutout" in self.policy:
            samples = self._cut_out(samples, draws[:, 5:])
        return samples

    def _change_colours(self, samples: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
        """Brightness, then the distance to the pixel's mean, then the distance to the image's mean."""
        contrast = contrast + 0.5
        channels = samples.shape[1]
        identity = torch.eye(channels, device=samples.device, dtype=samples.dtype)
        matrix = torch.lerp(torch.full_like(identity, 1 / channels), identity, 2 * saturation.view(-1, 1, 1))
        mean = samples.mean((1, 2, 3))
        return mix_channels(samples, contrast.view(-1, 1, 1) * matrix, (1 - contrast) * mean + brightness - 0.5)

    def _translate(self, samples: Tensor, draws: Tensor) -> Tensor:
        rows, columns = (
            torch.arange(size, device=samples.device) - (draw[:, None] * (2 * (size // 8) + 1)).long() + size // 8
            for size, draw in zip(samples.shape[-2:], draws.unbind(1), strict=True)
        )
        height, width = samples.shape[-2:]
        inside = _outer_and((rows >= 0) & (rows < height), (columns >= 0) & (columns < width))
        index = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        index = index.flatten(1).unsqueeze(1).expand(-1, samples.shape[1], -1)
        return samples.flatten(2).gather(2, index).view(samples.shape) * inside

    def _cut_out(self, samples: Tensor, draws: Tensor) -> Tensor:
        rows, columns = (
            _between(size, (draw * (size + 1 - size // 2 % 2)).long() - size // 4, size // 2)
            for size, draw in zip(samples.shape[-2:], draws.unbind(1), strict=True)
        )
        return samples * ~_outer_and(rows, columns)


def _between(size: int, start: Tensor, length: int) -> Tensor:
    """Whether each of `size` positions is in [start, start + length): (N,) to (N, size)."""
    offset = torch.arange(size, device=start.device) - start[:, None]
    return (offset >= 0) & (offset < length)


def _outer_and(rows: Tensor, columns: Tensor) -> Tensor:
    """(N, H) and (N, W) to (N, 1, H, W)."""
    return (rows[:, :, None] & columns[:, None]).unsqueeze(1)


def _check_names(option: str, names: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{option}: {', '.join(unknown)} is unknown; choose from {', '.join(known)}")


class Pipeline(Augmentation):
    """The transformations of ADA (Karras et al., 2020a). Each applies to an image with the same `probability`.

    While the probability is below about 0.8, G's samples do not show the transformations: the untransformed image is
    then the most frequent one that D sees. `transforms` lists those in use, which apply in this order:

    | | |
    | --- | --- |
    | `xflip` | left and right swapped, in half of the images |
    | `rotate90` | rotation by 0, 90, 180 or 270 degrees |
    | `xint` | translation by whole pixels, up to 1/8 of the size |
    | `scale` | size times 2 to the power of N(0, 0.2^2) |
    | `rotate` | rotation by any angle, before or after `aniso` |
    | `aniso` | width times 2 to the power of N(0, 0.2^2), height divided by it |
    | `xfrac` | translation by N(0, 1/8^2) of the size |
    | `brightness` | plus N(0, 0.2^2) |
    | `contrast` | times 2 to the power of N(0, 0.5^2) |
    | `lumaflip` | dark and light swapped, in half of the images; hues stay |
    | `hue` | rotation of the colours about the grey axis by any angle; none with one channel |
    | `saturation` | times 2 to the power of N(0, 1); none with one channel |
    """

    TRANSFORMS = tuple(dict.fromkeys(NAMES))

    enabled: Tensor
    probability: float | Tensor

    def __init__(self, transforms: Collection[str] = TRANSFORMS):
        super().__init__()
        _check_names("transforms", transforms, self.TRANSFORMS)
        self.transforms = tuple(transforms)
        self.register_buffer("enabled", torch.tensor([name in transforms for name in NAMES]), persistent=False)

    def check_shape(self, shape: Sequence[int]) -> None:
        super().check_shape(shape)
        if shape[0] not in (1, 3) and not {*COLOURS}.isdisjoint(self.transforms):
            raise UserError(
                f"images with {shape[0]} channels have no colours: leave {', '.join(COLOURS)} out of its transforms"
            )

    def augment(self, samples: Tensor) -> Tensor:
        channels, height, width = samples.shape[1:]
        parameters = self._applied_parameters(samples)
        if not {*GEOMETRY}.isdisjoint(self.transforms):
            samples = warp(samples, *geometry(parameters[: len(GEOMETRY)], height, width))
        if not {*COLOURS}.isdisjoint(self.transforms):
            samples = mix_channels(samples, *colours(parameters[len(GEOMETRY) :], channels))
        return samples

    def _applied_parameters(self, samples: Tensor) -> tuple[Tensor, ...]:
        """One (N,) for each of PARAMETERS, 0 where it does not apply."""
        chances, parameters = for_batch(draw, len(samples)).to(samples).unbind(1)
        applies = chances < self.probability
        rotations = slice(NAMES.index("rotate"), NAMES.index("aniso"))
        # each with less, so that one of the two applies with the given probability
        applies[:, rotations] = chances[:, rotations] < 1 - (1 - self.probability) ** 0.5
        return (parameters * (applies & self.enabled)).unbind(1)


class Fixed(Pipeline):
    """The transformations of ADA with a constant `probability`, in [0, 1]."""

    def __init__(self, probability: float | Schedule, transforms: Collection[str] = Pipeline.TRANSFORMS):
        super().__init__(transforms)
        self.probability = check_range("probability", probability, 0, 1)


class ADA(Pipeline):
    """Adaptive discriminator augmentation (Karras et al., 2020a): the probability follows how far D overfits.

    D overfits if it classifies nearly all real samples as real: if the mean sign of their logits, relative to the
    decision boundary, is above `target`. Every `every` updates of D, the probability rises if so, and falls otherwise,
    by the number of images in these updates over `ramp_images`, within [0, 1].
    """

    needs_boundary = True
    UNIT = 2**-30

    level: Tensor
    """The probability in UNITs. An integer, because trainer.precision=bf16-true rounds all other buffers."""
    counts: Tensor
    """Since the last change of the probability: the sum of the signs, logits, images, updates."""

    def __init__(
        self,
        target: float = 0.6,
        every: int = 4,
        ramp_images: int = 500_000,
        transforms: Collection[str] = Pipeline.TRANSFORMS,
    ):
        super().__init__(transforms)
        self.target = check_range("target", target, -1, 1)
        self.every = check_range("every", every, 1)
        self.ramp_images = check_range("ramp_images", ramp_images, 1)
        self.register_buffer("level", torch.zeros((), dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(4, dtype=torch.int64))

    @property
    def probability(self) -> Tensor:  # type: ignore[override]
        return self.level * self.UNIT

    @torch.no_grad()
    def observe(self, real_logits: Tensor, boundary: float | None, pack: int = 1) -> None:
        assert boundary is not None  # needs_boundary
        signs = (real_logits > boundary).sum() - (real_logits < boundary).sum()
        sizes = real_logits.new_tensor([real_logits.numel(), pack * len(real_logits)], dtype=torch.int64)
        counts = torch.cat([signs.view(1), sizes])
        if dist.is_initialized():
            dist.all_reduce(counts)  # the same probability on every rank
        self.counts[:3] += counts
        self.counts[3] += 1
        signs, logits, images, updates = self.counts.unbind()
        is_due = updates >= self.every
        change = (signs - self.target * logits).sign() * images / (self.ramp_images * self.UNIT)
        self.level += torch.where(is_due, change, 0).round().long()
        self.level.clamp_(0, round(1 / self.UNIT))
        self.counts *= ~is_due

    def logged(self) -> dict[str, Tensor]:
        return {"probability": self.probability}
