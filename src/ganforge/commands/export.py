"""Handing a run's generator over: a file that was checked against PyTorch, and a card that says what it is."""

import hashlib
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from ganforge.experiment.load import load_run
from ganforge.export.formats import FORMATS, Format, check_installed
from ganforge.export.interface import ExportModule, interface_of, split
from ganforge.export.model_card import Subject, model_card
from ganforge.export.trained import TrainedGenerator
from ganforge.models.gan import GAN
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic

TOLERANCE = 1e-4
"""How far, absolutely, what a file makes may be from what PyTorch makes."""


def export(config: DictConfig) -> Path:
    """Write a run's generator and its card, print what was written, and return the file. Raises UserError."""
    kind = FORMATS.get(config.format)
    if kind is None:
        raise UserError(f"format={config.format}: must be {', '.join(FORMATS)}")
    check_installed(f"format={config.format}", kind.writes_with)
    run, folder = Path(config.run).expanduser(), Path(config.output).expanduser()
    record, model, checkpoint, step = load_run(run, config.checkpoint)
    interface = interface_of(model, record)
    content = kind.write(ExportModule(model.sampling_generator, len(interface.latents)).eval(), interface)
    difference, shape = verified(content, kind, model)
    path = folder / f"generator{kind.suffix}"
    digest = hashlib.sha256(content).hexdigest()
    subject = Subject(path.name, run, checkpoint.name, step, difference, digest, shape)
    card = model_card(subject, record, model, interface)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        write_atomic(folder / "README.md", card.encode())
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror}") from error
    print(f"{path}: {len(content) / 1e6:.3g} MB, largest difference to PyTorch {difference:.1g}")
    print(folder / "README.md")
    return path


def verified(content: bytes, kind: Format, model: GAN) -> tuple[float, list[int]]:
    """The largest difference of what a file makes to what the model makes, and the shape of one sample.

    Raises UserError where that is more than `TOLERANCE`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, f"generator{kind.suffix}")
        path.write_bytes(content)
        generator = TrainedGenerator(*kind.read(path))
    differences = []
    for count, height, width in ((1, 24, 20), (3, 17, 35)):  # others than those that it was traced with
        inputs = split(generator.interface.examples(count, height, width, seed=count), len(generator.interface.latents))
        expected, found = model.sample(*inputs), generator.sample(*inputs)
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else inf
        if not difference <= TOLERANCE:  # or is no number
            raise UserError(
                f"Nothing was written: the file makes samples that differ from PyTorch's by {difference:.3g}"
            )
        differences.append(difference)
    return max(differences), list(found.shape[1:])
