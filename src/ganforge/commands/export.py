"""Export a run's generator: a file whose output is compared with PyTorch's, and a model card."""

import hashlib
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from ganforge.experiment.load import Trained, load_run
from ganforge.export.formats import FORMATS, Format, check_installed
from ganforge.export.interface import ExportModule, Interface, interface_of, split_inputs
from ganforge.export.model_card import ExportedFile, model_card
from ganforge.export.trained import TrainedGenerator
from ganforge.models.gan import GAN
from ganforge.runtime.errors import UserError
from ganforge.runtime.files import write_atomic

TOLERANCE = 1e-4
"""Largest absolute difference between a file's samples and PyTorch's."""


def export(config: DictConfig) -> Path:
    """Write a run's generator and its model card, print their paths, and return the generator's. Raises UserError."""
    kind = FORMATS.get(config.format)
    if kind is None:
        raise UserError(f"format={config.format}: must be {', '.join(FORMATS)}")
    check_installed(f"format={config.format}", kind.writes_with)
    run, folder = Path(config.run).expanduser(), Path(config.output).expanduser()
    trained = load_run(run, config.checkpoint)
    interface = interface_of(trained.model, trained.config)
    network = ExportModule(trained.model.sampling_generator, len(interface.latents)).eval()
    content = kind.write(network, interface)
    difference, shape = verify(content, kind, trained.model)
    path, card_path = folder / f"generator{kind.suffix}", folder / "README.md"
    card = _card(path.name, run, content, trained, interface, difference, shape)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content)
        write_atomic(card_path, card.encode())
    except OSError as error:
        raise UserError(f"output={folder} cannot be written: {error.strerror}") from error
    print(f"{path}: {len(content) / 1e6:.3g} MB, largest difference to PyTorch {difference:.1g}")
    print(card_path)
    return path


def _card(
    name: str, run: Path, content: bytes, trained: Trained, interface: Interface, difference: float, shape: list[int]
) -> str:
    digest = hashlib.sha256(content).hexdigest()
    exported = ExportedFile(name, run, trained.checkpoint.name, trained.step, difference, digest, shape)
    return model_card(exported, trained.config, trained.model, interface)


def verify(content: bytes, kind: Format, model: GAN) -> tuple[float, list[int]]:
    """Read the file back and compare its samples with the model's.

    Returns the largest absolute difference and the shape of one sample. Raises UserError above `TOLERANCE`.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, f"generator{kind.suffix}")
        path.write_bytes(content)
        generator = TrainedGenerator(*kind.read(path))
    interface, differences = generator.interface, []
    for count, height, width in ((1, 24, 20), (3, 17, 35)):  # not the sizes that the export was traced with
        inputs = split_inputs(interface.examples(count, height, width, seed=count), len(interface.latents))
        expected, found = model.sample(*inputs), generator.sample(*inputs)
        difference = (found - expected).abs().max().item() if found.shape == expected.shape else inf
        if not difference <= TOLERANCE:  # also true of NaN
            raise UserError(
                f"Nothing was written: the file's samples differ from PyTorch's by {difference:.3g}. Report this as a "
                "bug, or try another format="
            )
        differences.append(difference)
    return max(differences), list(found.shape[1:])
