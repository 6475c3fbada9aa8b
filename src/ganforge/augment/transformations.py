"""The random transformations of adaptive discriminator augmentation (Karras et al., 2020a).

`draw` draws their parameters, `geometry` and `colours` turn them into a matrix and an offset per image, `warp` and
`mix_channels` apply these to the whole batch at once. All are differentiable twice with respect to the images.
"""

from functools import cache
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

PARAMETERS = (  # transformation, distribution, its bound or standard deviation; in the order in which they apply
    ("xflip", "uniform", 1),
    ("rotate90", "uniform", 2),
    ("xint", "uniform", 1 / 8),
    ("xint", "uniform", 1 / 8),
    ("scale", "normal", 0.2),
    ("rotate", "uniform", pi),
    ("rotate", "uniform", pi),
    ("aniso", "normal", 0.2),
    ("xfrac", "normal", 1 / 8),
    ("xfrac", "normal", 1 / 8),
    ("brightness", "normal", 0.2),
    ("contrast", "normal", 0.5),
    ("lumaflip", "uniform", 1),
    ("hue", "uniform", pi),
    ("saturation", "normal", 1),
)
"""The random numbers of an image. A number of 0 leaves it as it is."""
NAMES = tuple(name for name, _, _ in PARAMETERS)
GEOMETRY, COLOURS = NAMES[:10], NAMES[10:]

_IS_NORMAL = torch.tensor([distribution == "normal" for _, distribution, _ in PARAMETERS])
_SPREADS = torch.tensor([spread for _, _, spread in PARAMETERS])

LANCZOS = 4
"""Half the support of the interpolation kernel, in pixels."""


def draw(count: int, generator: torch.Generator) -> Tensor:
    """(count, 2, len(PARAMETERS)): uniform numbers that decide whether a parameter applies, and the parameters."""
    shape = count, len(PARAMETERS)
    chances = torch.rand(shape, generator=generator)
    for name in ("xint", "xfrac"):  # both directions of a translation together
        first = NAMES.index(name)
        chances[:, first + 1] = chances[:, first]
    uniform = torch.rand(shape, generator=generator) * 2 - 1
    normal = torch.randn(shape, generator=generator)
    return torch.stack([chances, torch.where(_IS_NORMAL, normal, uniform) * _SPREADS], 1)


def geometry(parameters: tuple[Tensor, ...], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Matrices (N, 2, 2) and offsets (N, 2) from output to input positions: the inverse of the transformations."""
    flip, turns, shift_x, shift_y, scale, before, after, aniso, move_x, move_y = parameters
    flip, turns = 1 + 2 * flip.floor(), turns.floor()  # -1 or 1; -2 to 1 quarter turns
    cos, sin = 1 - turns.abs(), (turns + 1).abs() - 1  # exact, unlike those of multiples of pi / 2
    zero = torch.zeros_like(flip)
    blit = _matrices(flip * cos, flip * sin, -sin, cos)
    stretch = _matrices((-scale - aniso).exp2(), zero, zero, (aniso - scale).exp2())
    matrix = blit @ _rotations(-before) @ stretch @ _rotations(-after)
    size = torch.tensor([width, height], device=flip.device, dtype=flip.dtype)
    shift = blit @ (torch.stack([shift_x, shift_y], 1) * size).round().unsqueeze(2)
    move = matrix @ (torch.stack([move_x, move_y], 1) * size).unsqueeze(2)
    return matrix, -(shift + move).squeeze(2)


def _matrices(*entries: Tensor) -> Tensor:
    """(N, 2, 2) from four tensors (N,), row by row."""
    return torch.stack(entries, 1).view(-1, 2, 2)


def _rotations(angle: Tensor) -> Tensor:
    return _matrices(angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def colours(parameters: tuple[Tensor, ...], channels: int) -> tuple[Tensor, Tensor]:
    """Matrices (N, C, C) and offsets (N,) of the colours, for 3 channels or 1, which is that of grey.

    Brightness comes first. The others scale or rotate about the grey axis, so their order does not matter.
    """
    brightness, contrast, lumaflip, hue, saturation = (parameter.view(-1, 1, 1) for parameter in parameters)
    grey_gain = contrast.exp2() * (1 + 2 * lumaflip.floor())
    offset = (grey_gain * brightness).flatten()
    if channels == 1:
        return grey_gain, offset
    identity = torch.eye(3, device=hue.device, dtype=hue.dtype)
    grey = torch.full_like(identity, 1 / 3)  # the projection onto the grey axis
    turn = (identity.roll(1, 0) - identity.roll(-1, 0)) / 3**0.5  # the cross product with the grey axis
    colour_gain = (contrast + saturation).exp2()
    return grey_gain * grey + colour_gain * (hue.cos() * (identity - grey) + hue.sin() * turn), offset


def mix_channels(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """`matrix` (N, C, C) @ each pixel + `offset` (N,)."""
    return torch.baddbmm(offset.view(-1, 1, 1), matrix, images.flatten(2)).view(images.shape)


def warp(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Images (N, C, H, W), resampled at `matrix` (N, 2, 2) @ position + `offset` (N, 2) for each output position.

    Positions are (x, y) in pixels from the centre. Beyond its border an image continues as its reflection. An image
    whose transformation is the identity stays as it is to the bit.

    Bilinear interpolation between pixels would blur the images, so a Lanczos kernel adds half-pixels first. Faces of 64
    pixels then have a PSNR of 42 dB to exact resampling instead of 35. Half-pixels in the output as well, averaged
    afterwards (Karras et al., 2020a), give 45 dB at twice the cost.
    """
    height, width = images.shape[-2:]
    x, y = (torch.arange(size, device=images.device, dtype=images.dtype) - (size - 1) / 2 for size in (width, height))
    to_grid = 2 / torch.tensor([width - 1, height - 1], device=images.device, dtype=images.dtype)
    to_x, to_y, start = ((part * to_grid)[:, None, None] for part in (*matrix.unbind(2), offset))
    grid = x[:, None] * to_x + (y[:, None, None] * to_y + start)
    warped = _interpolate(_with_half_pixels(images), grid)
    is_identity = (matrix == torch.eye(2, device=images.device)).flatten(1).all(1) & (offset == 0).all(1)
    return torch.where(is_identity.view(-1, 1, 1, 1), images, warped)


def _with_half_pixels(images: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, 2H - 1, 2W - 1); every second row and column is the given one."""
    height, width = images.shape[-2:]
    vertical, horizontal = (_upsampling(size, images.device, images.dtype) for size in (height, width))
    # one column too many: matrix products with even rows are twice as fast on CPUs
    wide = (images.reshape(-1, width) @ horizontal.T).view(-1, height, 2 * width)
    # bmm: a matmul that broadcasts copies the matrix for each image
    return torch.bmm(vertical[:-1].expand(len(wide), -1, -1), wide).unflatten(0, images.shape[:2])[..., :-1]


@cache
@torch.inference_mode(False)  # else, first used under it, training could not use the matrix
def _upsampling(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The matrix (2 * size, size) that adds half-pixels to a signal which continues as its reflection."""
    position = torch.arange(2 * size, dtype=torch.float64)[:, None] / 2
    pixel = torch.arange(size, dtype=torch.float64)
    weights = _lanczos(position - pixel)
    weights[:, 1:] += _lanczos(position + pixel[1:])
    weights[:, :-1] += _lanczos(2 * (size - 1) - pixel[:-1] - position)
    return (weights / weights.sum(1, keepdim=True)).to(device, dtype)


def _lanczos(distance: Tensor) -> Tensor:
    return torch.sinc(distance) * torch.sinc(distance / LANCZOS) * (distance.abs() < LANCZOS)


def _interpolate(images: Tensor, grid: Tensor) -> Tensor:
    """Bilinear interpolation at (x, y) in grid (N, H, W, 2); -1 and 1 are the outermost pixels, reflected beyond."""
    if not torch.are_deterministic_algorithms_enabled():
        return grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    # on GPUs, the gradient of grid_sample is never deterministic; that of gather is in this mode
    channels, height, width = images.shape[1:]
    last = torch.tensor([width - 1, height - 1], device=grid.device, dtype=grid.dtype)
    position = ((grid + 1) / 2 * last).flatten(1, 2)
    position = last - (position.abs() % (2 * last) - last).abs()
    corner = position.floor().minimum(last - 1)
    x, y = (position - corner).unsqueeze(1).unbind(-1)
    index = (corner[..., 1] * width + corner[..., 0]).long().unsqueeze(1).expand(-1, channels, -1)
    pixels = images.flatten(2)
    upper = torch.lerp(pixels.gather(2, index), pixels.gather(2, index + 1), x)
    lower = torch.lerp(pixels.gather(2, index + width), pixels.gather(2, index + width + 1), x)
    return torch.lerp(upper, lower, y).unflatten(2, grid.shape[1:3])
