"""Large images in parts, as a network's memory grows with the image."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_tiles(enlarge: Callable[[Tensor], Tensor], images: Tensor, tile: int, margin: int) -> Tensor:
    """What `enlarge` makes of images (N, C, H, W), from tiles of at most `tile` pixels a side and `margin` around them.

    Without seams where no output pixel depends on input pixels farther than `margin` away.
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
            made = enlarge(part)
            scale = made.shape[-1] // part.shape[-1]
            inside = [slice(skip * scale, (skip + tile) * scale) for skip in (above, before)]
            row.append(made[..., inside[0], inside[1]])
        rows.append(torch.cat(row, -1))
    # the last tile's margin is beyond the image, so it is cut where the image ends
    return torch.cat(rows, -2)
