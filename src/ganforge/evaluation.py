"""The numbers of a run, of an upscaler, or of a folder of images."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from ganforge.data.base import Batch, TensorData
from ganforge.data.images import upright
from ganforge.data.packing import cores
from ganforge.data.pairs import Pairs
from ganforge.data.sources import open_source
from ganforge.errors import UserError
from ganforge.experiment import checkpoint_path, make_trainer, settle
from ganforge.metrics.evaluation import Evaluation
from ganforge.models.gan import GAN
from ganforge.randomness import chunk_rows
from ganforge.run_folder import update_metrics
from ganforge.targets import check_targets

log = logging.getLogger(__name__)


def evaluate(config: DictConfig) -> dict[str, float]:
    """Print a table of numbers, write them with their provenance, and return them."""
    settle(config, *({"data", "model", "metrics", "extractor", "trainer"} & set(config)))
    data, model, subject = _folders(config) if config.folder or config.against else _model(config)
    evaluation = Evaluation(
        instantiate(config.metrics, _convert_="all"),
        instantiate(config.extractor, _convert_="all"),
        config.reference,
        config.standing_statistics,
        config.cache_dir,
    )
    if not evaluation.attach(data):
        raise UserError("There is nothing to measure: choose metrics=... and extractor=...")
    options = {"val_check_interval": 1.0, "check_val_every_n_epoch": 1, "enable_progress_bar": False}
    trainer = make_trainer(config.trainer, Path(), [evaluation], logger=False, enable_checkpointing=False, **options)
    if trainer.is_global_zero:  # other ranks start once this one has what all of them need
        data.prepare_data()
        data.setup()
    trainer.validate(model, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        provenance = {**evaluation.provenance(trainer, model), **subject}
        print(table(evaluation.values, provenance))
        output = config.output or (Path(config.run, "metrics.json") if config.run else None)
        if output:
            entries = {name: {"evaluated": {"value": v, **provenance}} for name, v in evaluation.values.items()}
            update_metrics(Path(output).expanduser(), entries)
            print(f"Written to {output}")
    return evaluation.values


def table(values: Mapping[str, float], provenance: Mapping[str, Any]) -> str:
    """Names and values, under how they were made."""
    how = [f"{key.replace('_', ' ')}: {value}" for key, value in provenance.items() if key != "versions"]
    width = max(map(len, values))
    return "\n".join([*how, "", *(f"{name:{width}}  {value:.6g}" for name, value in values.items())])


def _model(config: DictConfig) -> tuple[TensorData, LightningModule, dict[str, Any]]:
    """The model and data of a run, or of the command line."""
    if "model" not in config or "data" not in config:
        raise UserError("Say what to measure: run=<run folder>, folder=<images> against=<images>, or model= and data=")
    if config.run:
        check_targets(config)
    if "num_samples" in config.data:
        config.data.num_samples = config.num_samples
    data = instantiate(config.data, _convert_="all")
    if isinstance(data, Pairs):
        data.trains = False
        if not data.sets[data.evaluated_split]:
            raise UserError("Say what to measure on: data.test=[<folder or zip of whole images>]")
    model = instantiate({**config.model, **({"compile": False} if "compile" in config.model else {})}, _convert_="all")
    if isinstance(model, GAN) == isinstance(data, Pairs):
        raise UserError("Pairs are for models that make images of images, and those need data=pairs")
    if not config.run:
        if isinstance(model, GAN):
            raise UserError("This model has to be trained first: name a run, with run=<run folder>")
        return data, model, {}
    path = checkpoint_path(Path(config.run).expanduser(), config.checkpoint)
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["state_dict"])
    if not config.moving_average:
        model.average = None
    return data, model, {"checkpoint": path.name, "step": state["global_step"]}


# Folders of images -----------------------------------------------------------------------------------------------


class Files:
    """The images of a folder or zip, as they are."""

    def __init__(self, path: str, option: str):
        self.source = open_source(Path(path).expanduser(), option)
        self.names = self.source.images()
        self.pool = ThreadPoolExecutor(cores())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> list[Tensor]:
        """RGB images (3, H, W) uint8 of any sizes."""
        return list(self.pool.map(self._decoded, [self.names[i] for i in rows.tolist()]))

    def _decoded(self, name: str) -> Tensor:
        try:
            with self.source.open(name) as file, Image.open(file) as image:
                return torch.from_numpy(np.array(upright(image, 3))).permute(2, 0, 1)
        except Exception as error:  # broken files make libraries raise all kinds of errors
            raise UserError(f"{self.source.path / name} cannot be read: {error}") from error


class RealFiles(TensorData):
    """Files as the reference of others."""

    def __init__(self, files: Files, num_samples: int):
        super().__init__(batch_size=1, shape=(3, 0, 0), num_samples=num_samples)
        self.files = files

    def setup(self, stage: str | None = None) -> None: ...

    def samples(self, split: str) -> tuple[Files, None]:
        return self.files, None

    def fingerprint(self, split: str) -> str:
        return self.files.source.fingerprint(self.files.names)


class FakeFiles(LightningModule):
    """Files in the place of samples."""

    def __init__(self, files: Files):
        super().__init__()
        self.files = files

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        return Batch(self.files[chunk_rows(chunk, len(self.files))])  # type: ignore[arg-type]


def _folders(config: DictConfig) -> tuple[TensorData, LightningModule, dict[str, Any]]:
    if not config.folder or not config.against or config.run:
        raise UserError("folder=<images> and against=<images> go together, without run=")
    fakes, reals = Files(config.folder, "folder"), Files(config.against, "against")
    subject = {"folder": config.folder, "against": config.against}
    return RealFiles(reals, len(fakes)), FakeFiles(fakes), subject
