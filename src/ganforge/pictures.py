"""Pictures of samples: a grid of images, or a scatter plot of points."""

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

from ganforge.runtime.downloads import first_line
from ganforge.runtime.files import write_atomic
from ganforge.runtime.pixels import to_uint8

log = logging.getLogger(__name__)

MAX_FRAMES = 100
"""Most frames in an animation."""


def picture(samples: Tensor, real: Tensor | None = None, columns: int | None = None, padding: int = 2) -> Image.Image:
    """A grid of images (N, C, H, W) in [-1, 1], by default as square as possible; or a plot of points (N, 2) over the
    real ones, where each `columns` points are connected."""
    if samples.ndim == 2:
        return scatter(samples, real, columns)
    grid = make_grid(to_uint8(samples.cpu()), nrow=columns or ceil(sqrt(len(samples))), padding=padding)
    return to_pil_image(grid)


def scatter(points: Tensor, real: Tensor | None = None, path_length: int | None = None) -> Image.Image:
    """Generated points over real ones. The real ones set the axes, so that pictures are comparable.

    Lines connect each `path_length` consecutive points.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only points need it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100)
    axes = figure.add_axes((0.1, 0.06, 0.88, 0.92))  # Matplotlib's layout engines take longer than drawing
    if real is not None:
        x, y = real[:2000].cpu().T
        axes.scatter(x, y, s=12, color="darkgrey", linewidths=0, label="data")
        low, high = real.min(0).values.cpu(), real.max(0).values.cpu()
        margin = 0.15 * (high - low)
        axes.set_xlim(float((low - margin)[0]), float((high + margin)[0]))
        axes.set_ylim(float((low - margin)[1]), float((high + margin)[1]))
    x, y = points.float().cpu().T  # NumPy has no bfloat16
    axes.scatter(x, y, s=6, color="tab:blue", linewidths=0, label="generated")
    if path_length:
        axes.plot(x.view(-1, path_length).T, y.view(-1, path_length).T, linewidth=0.5, color="tab:blue")
    axes.legend(loc="upper center", ncols=2, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a PNG atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    write_atomic(path, buffer.getbuffer())


def animate(pictures: list[Path], path: Path) -> None:
    """Write at most MAX_FRAMES evenly spaced pictures as a GIF that pauses on the last; leaves out unreadable ones."""
    indices = torch.linspace(0, len(pictures) - 1, min(MAX_FRAMES, len(pictures))).round().int().tolist()
    frames = [frame for i in indices if (frame := _frame(pictures[i])) is not None]
    if not frames:
        return
    durations = [100] * (len(frames) - 1) + [2000]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def _frame(path: Path) -> Image.Image | None:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow on a damaged file
        log.warning("%s cannot be read (%s), so the animation leaves it out", path, first_line(error))
        return None
