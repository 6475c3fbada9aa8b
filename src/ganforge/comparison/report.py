"""The comparison as a self-contained HTML page: tables, curves and samples."""

import logging
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from omegaconf import DictConfig
from PIL import Image

from ganforge.comparison.records import Curve, Run, is_regular_file
from ganforge.comparison.tables import Column, split_by_group
from ganforge.experiment.load import load_data, load_run
from ganforge.export.interface import interface_of
from ganforge.models.gan import GAN
from ganforge.pictures import picture
from ganforge.runtime.errors import explanation
from ganforge.runtime.text import printable

log = logging.getLogger(__name__)

LOSSES = ("loss_d/total", "loss_g/total")
MAX_POINTS = 200
"""Maximum number of points of a curve. Longer curves are averaged in as many bins."""
MAX_STEPS, MAX_PICTURES = 8, 80
"""Limits on the slider of training pictures."""
MAX_SIDE = {"samples": 640, "training": 360}
"""Maximum side in pixels. Larger pictures are shrunk."""
MAX_PIXELS = 2**26
"""Maximum number of pixels. Larger pictures are left out, as shrinking them takes much memory."""
MISSING = "no picture"
GREY = "#808080"
"""Legible on white and on black."""


def report(
    runs: Sequence[Run],
    tables: dict[str, list[Column]],
    metrics: Sequence[str],
    notes: Sequence[str],
    config: DictConfig,
) -> str:
    """The page. It escapes all text from the runs and loads nothing."""
    environment = Environment(loader=PackageLoader("ganforge.comparison"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        tables={title: split_by_group(columns) for title, columns in tables.items()},
        notes=notes,
        names=[printable(run.name) for run in runs],
        colours=colours(len(runs)),
        curves=curves(runs, metrics),
        samples=[samples(run, config) for run in runs],
        slider_pictures=slider_pictures(runs),
        seed=config.seed,
        checkpoint=config.checkpoint,
    )


# Curves ----------------------------------------------------------------------------------------------------------


def colours(count: int) -> list[str]:
    """A hex colour for each run."""
    palette = colormaps["tab10"].colors if count <= 10 else colormaps["turbo"](np.linspace(0.05, 0.95, count))  # type: ignore[attr-defined]
    return [to_hex(colour) for colour in palette[:count]]


def curves(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, str]:
    """Plots of each game's losses and of the metrics over steps, as SVG data URIs by title."""
    losses = dict.fromkeys(tag for run in runs for tag in run.curves if tag.endswith(LOSSES))
    tags = {**{tag: tag for tag in losses}, **{metric: f"metrics/{metric}" for metric in metrics}}
    return {printable(title): _plot([run.curves.get(tag) for run in runs]) for title, tag in tags.items()}


def _plot(lines: Sequence[Curve | None]) -> str:
    style: Any = {"xtick.color": GREY, "ytick.color": GREY, "axes.edgecolor": GREY, "svg.fonttype": "none"}
    with rc_context({**style, "svg.hashsalt": "ganforge"}):  # a fixed salt makes the page reproducible
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
        for line, colour in zip(lines, colours(len(lines)), strict=True):
            if line is not None:
                axes.plot(*_binned(*line), color=colour, linewidth=1.3, marker="." if len(line[0]) < 30 else None)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _uri("svg+xml", buffer)


def _binned(steps: np.ndarray, values: np.ndarray) -> Curve:
    bins = min(MAX_POINTS, len(steps))
    return tuple(np.array([part.mean() for part in np.array_split(curve, bins)]) for curve in (steps, values))  # type: ignore[return-value]


# Pictures --------------------------------------------------------------------------------------------------------


def samples(run: Run, config: DictConfig) -> str:
    """A data URI of new samples, of the last training picture for image-to-image models, or why there is none."""
    if not run.has_checkpoint:
        return MISSING
    try:
        record, model, *_ = load_run(run.folder, config.checkpoint)
        if model.from_images:
            pictures = training_pictures(run)
            return _shrunk(pictures[max(pictures)], MAX_SIDE["samples"]) if pictures else MISSING
        return _encoded(_sampled(record, model, config), MAX_SIDE["samples"])
    except Exception as error:  # such as a run of other code
        message = explanation(error) or f"{type(error).__name__}: {error}"
        log.warning("%s", printable(f"No samples of {run.name}: {message}"))
        return printable(message)


def _sampled(record: DictConfig, model: GAN, config: DictConfig) -> Image.Image:
    conditions = None if model.condition_size is None else interface_of(model, record).conditions(None)
    fake, columns = model.sample_grid(config.num_samples, config.seed, conditions)
    real = None
    if fake.ndim == 2:
        data = load_data(record)
        data.setup()
        real = data.real  # sets the limits of the axes
    return picture(fake, real, columns)


def slider_pictures(runs: Sequence[Run]) -> dict[int, list[str]]:
    """By training step, a picture of each run as a data URI."""
    pictures = [training_pictures(run) for run in runs]
    steps = sorted(set.intersection(*(set(found) for found in pictures if found))) if any(pictures) else []
    if len(steps) < 2:
        steps = sorted(set().union(*pictures))
    count = min(len(steps), MAX_STEPS, max(2, MAX_PICTURES // len(runs)))
    chosen = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, count)]
    side = MAX_SIDE["training"]
    return {step: [_shrunk(found[step], side) if step in found else MISSING for found in pictures] for step in chosen}


def training_pictures(run: Run) -> dict[int, Path]:
    """The pictures in `samples/`, by step."""
    folder = run.folder / "samples"
    paths = [] if folder.is_symlink() else folder.glob("step-*.png")
    return {int(path.stem[5:]): path for path in paths if path.stem[5:].isdecimal() and is_regular_file(path)}


def _shrunk(path: Path, side: int) -> str:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return _encoded(image, side) if image.width * image.height <= MAX_PIXELS else MISSING
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's errors for damaged files
        return MISSING


def _encoded(image: Image.Image, side: int) -> str:
    """A data URI of at most `side` pixels: PNG, or JPEG if that is much smaller."""
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.thumbnail((side, side))
    png, jpeg = BytesIO(), BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=85)
    return _uri("png", png) if png.tell() < 1.5 * jpeg.tell() else _uri("jpeg", jpeg)


def _uri(kind: str, content: BytesIO) -> str:
    return f"data:image/{kind};base64,{b64encode(content.getbuffer()).decode()}"
