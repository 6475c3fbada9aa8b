"""Large images in tiles, because a network's memory grows with the image."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(enlarge: Callable[[Tensor], Tensor], images: Tensor, tile: int, margin: int) -> Tensor:
    """`enlarge(images)` of images (N, C, H, W), computed on tiles of at most `tile` pixels a side plus a `margin`.

    Seamless if no output pixel depends on input pixels more than `margin` away.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= tile:
        return enlarge(images)
    rows = []
    for top in range(0, height, tile):
        row = []
        for left in range(0, width, tile):
            above, before = min(margin, top), min(margin, left)
            part = images[..., top - above : top + tile + margin, left - before : left + tile + margin]
            enlarged = enlarge(part)
            scale = enlarged.shape[-1] // part.shape[-1]
            inside = [slice(skip * scale, (skip + tile) * scale) for skip in (above, before)]
            row.append(enlarged[..., inside[0], inside[1]])
        rows.append(torch.cat(row, -1))
    return torch.cat(rows, -2)
