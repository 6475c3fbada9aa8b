"""The comparison of runs as one page that needs nothing else: tables, curves, samples."""

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

from ganforge.comparison.records import Curve, Run, is_file
from ganforge.comparison.tables import Column, parts, plain
from ganforge.experiment.load import load_data, load_run
from ganforge.export.interface import conditions_of
from ganforge.models.gan import GAN
from ganforge.pictures import picture
from ganforge.runtime.errors import explanation

log = logging.getLogger(__name__)

LOSSES = ("loss_d/total", "loss_g/total")
POINTS = 200
"""Of a curve; more are averaged, in bins."""
STEPS, PICTURES = 8, 80
"""At most so many steps of the trainings are shown, and so many of their pictures."""
SIDE = {"samples": 640, "training": 360}
"""Pixels; larger pictures are made smaller."""
PIXELS = 2**26
"""Larger pictures would take much memory to be made smaller."""
MISSING = "no picture"
GREY = "#808080"
"""Can be read on white and on black."""


def report(
    runs: Sequence[Run],
    tables: dict[str, list[Column]],
    metrics: Sequence[str],
    notes: Sequence[str],
    config: DictConfig,
) -> str:
    """The page. What comes from the runs is escaped, and the page may load nothing. Raises UserError."""
    environment = Environment(loader=PackageLoader("ganforge.comparison"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html").render(
        tables={title: parts(columns) for title, columns in tables.items()},
        notes=notes,
        names=[plain(run.name) for run in runs],
        colours=colours(len(runs)),
        curves=curves(runs, metrics),
        samples=[samples(run, config) for run in runs],
        trainings=trainings(runs),
        seed=config.seed,
        checkpoint=config.checkpoint,
    )


# Curves ----------------------------------------------------------------------------------------------------------


def colours(count: int) -> list[str]:
    """One for each run."""
    palette = colormaps["tab10"].colors if count <= 10 else colormaps["turbo"](np.linspace(0.05, 0.95, count))  # type: ignore[attr-defined]
    return [to_hex(colour) for colour in palette[:count]]


def curves(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, str]:
    """The losses of each game and the metrics over steps: SVGs, as data URIs, by their titles."""
    losses = dict.fromkeys(tag for run in runs for tag in run.curves if tag.endswith(LOSSES))
    tags = {**{tag: tag for tag in losses}, **{metric: f"metrics/{metric}" for metric in metrics}}
    return {plain(title): _plot([run.curves.get(tag) for run in runs]) for title, tag in tags.items()}


def _plot(lines: Sequence[Curve | None]) -> str:
    style: Any = {"xtick.color": GREY, "ytick.color": GREY, "axes.edgecolor": GREY, "svg.fonttype": "none"}
    with rc_context({**style, "svg.hashsalt": "ganforge"}):  # the same runs make the same bytes
        figure = Figure(figsize=(4.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(useOffset=False)
        axes.spines[["top", "right"]].set_visible(False)
        for line, colour in zip(lines, colours(len(lines)), strict=True):
            if line is not None:
                axes.plot(*_thinned(*line), color=colour, linewidth=1.3, marker="." if len(line[0]) < 30 else None)
        buffer = BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _uri("svg+xml", buffer)


def _thinned(steps: np.ndarray, values: np.ndarray) -> Curve:
    bins = min(POINTS, len(steps))
    return tuple(np.array([part.mean() for part in np.array_split(of, bins)]) for of in (steps, values))  # type: ignore[return-value]


# Pictures --------------------------------------------------------------------------------------------------------


def samples(run: Run, config: DictConfig) -> str:
    """Samples of a seed; of a model that makes images of images, its training's last picture. Or why there are none."""
    if not run.has_checkpoint:
        return MISSING
    try:
        record, model, *_ = load_run(run.folder, config.checkpoint)
        if model.from_images:
            pictures = pictures_of(run)
            return _reduced(pictures[max(pictures)], SIDE["samples"]) if pictures else MISSING
        return _shown(_drawn(record, model, config), SIDE["samples"])
    except Exception as error:  # such as of a run that other code made
        message = explanation(error) or f"{type(error).__name__}: {error}"
        log.warning("%s", plain(f"No samples of {run.name}: {message}"))
        return plain(message)


def _drawn(record: DictConfig, model: GAN, config: DictConfig) -> Image.Image:
    conditions = conditions_of(model, record, None)
    drawn, columns = model.sample_grid(config.num_samples, config.seed, conditions)
    real = None
    if drawn.ndim == 2:
        data = load_data(record)
        data.setup()
        real = data.real  # whose extent sets the axes
    return picture(drawn, real, columns)


def trainings(runs: Sequence[Run]) -> dict[int, list[str]]:
    """Pictures of the runs at the same steps of their trainings."""
    pictures = [pictures_of(run) for run in runs]
    steps = sorted(set.intersection(*(set(found) for found in pictures if found))) if any(pictures) else []
    if len(steps) < 2:
        steps = sorted(set().union(*pictures))
    count = min(len(steps), STEPS, max(2, PICTURES // len(runs)))
    chosen = [steps[round(i)] for i in np.linspace(0, len(steps) - 1, count)]
    side = SIDE["training"]
    return {step: [_reduced(found[step], side) if step in found else MISSING for found in pictures] for step in chosen}


def pictures_of(run: Run) -> dict[int, Path]:
    """What `samples/` holds, by step."""
    folder = run.folder / "samples"
    paths = [] if folder.is_symlink() else folder.glob("step-*.png")
    return {int(path.stem[5:]): path for path in paths if path.stem[5:].isdecimal() and is_file(path)}


def _reduced(path: Path, side: int) -> str:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return _shown(image, side) if image.width * image.height <= PIXELS else MISSING
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises on a damaged file
        return MISSING


def _shown(image: Image.Image, side: int) -> str:
    """As PNG, or as JPEG where that is much smaller."""
    image = image.convert("L" if image.mode == "L" else "RGB")
    image.thumbnail((side, side))
    png, jpeg = BytesIO(), BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(jpeg, "JPEG", quality=85)
    return _uri("png", png) if png.tell() < 1.5 * jpeg.tell() else _uri("jpeg", jpeg)


def _uri(kind: str, content: BytesIO) -> str:
    return f"data:image/{kind};base64,{b64encode(content.getbuffer()).decode()}"
