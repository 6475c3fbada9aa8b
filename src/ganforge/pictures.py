"""Samples as pictures: a grid of images, or a scatter plot of points."""

import logging
from io import BytesIO
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from torchvision.utils import make_grid

from ganforge.data.base import to_uint8
from ganforge.runtime.downloads import first_line
from ganforge.runtime.files import write_atomic

log = logging.getLogger(__name__)

FRAMES = 100
"""An animation of a training shows at most so many of its pictures."""


def picture(samples: Tensor, real: Tensor | None = None, columns: int | None = None, padding: int = 2) -> Image.Image:
    """Images (N, C, H, W) in [-1, 1] as a grid, as square as can be; points (N, 2) as a plot over the real ones."""
    if samples.ndim == 2:
        return scatter(samples, real, columns)
    grid = make_grid(to_uint8(samples.cpu()), nrow=columns or ceil(sqrt(len(samples))), padding=padding)
    return to_pil_image(grid)  # make_grid repeats grey thrice


def scatter(points: Tensor, real: Tensor | None = None, joined: int | None = None) -> Image.Image:
    """Generated points over real ones, on axes that the real ones set, so that pictures can be compared.

    Lines join each `joined` points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only needed for points
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100)
    axes = figure.add_axes((0.1, 0.06, 0.88, 0.92))  # a layout that Matplotlib computes takes longer than the drawing
    if real is not None:
        x, y = real[:2000].cpu().T
        axes.scatter(x, y, s=12, color="darkgrey", linewidths=0, label="data")
        low, high = real.min(0).values.cpu(), real.max(0).values.cpu()
        margin = 0.15 * (high - low)
        axes.set_xlim(float((low - margin)[0]), float((high + margin)[0]))
        axes.set_ylim(float((low - margin)[1]), float((high + margin)[1]))
    x, y = points.float().cpu().T  # numpy has no bfloat16
    axes.scatter(x, y, s=6, color="tab:blue", linewidths=0, label="generated")
    if joined:
        axes.plot(x.view(-1, joined).T, y.view(-1, joined).T, linewidth=0.5, color="tab:blue")
    axes.legend(loc="upper center", ncols=2, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG that appears under its name complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    write_atomic(path, buffer.getbuffer())


def animate(pictures: list[Path], path: Path) -> None:
    """Write pictures as a GIF of a few seconds that rests on the last one; those that cannot be read are left out."""
    chosen = torch.linspace(0, len(pictures) - 1, min(FRAMES, len(pictures))).round().int().tolist()
    frames = [frame for i in chosen if (frame := _frame(pictures[i])) is not None]
    if not frames:
        return
    durations = [100] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _frame(path: Path) -> Image.Image | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's on a damaged file
        log.warning("%s is left out of the animation: it cannot be read (%s)", path, first_line(error))
        return None
