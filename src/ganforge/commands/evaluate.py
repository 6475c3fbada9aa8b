"""The numbers of a run, of an upscaler, or of a folder of images."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress
from torch import Tensor

from ganforge.data.base import Batch, TensorData
from ganforge.data.images import open_image, to_8bit
from ganforge.data.pairs import Pairs
from ganforge.data.sources import open_source
from ganforge.experiment.build import make_trainer
from ganforge.experiment.load import checkpoint_path, load_model
from ganforge.experiment.resolve import resolve_config
from ganforge.experiment.trust import validate_untrusted
from ganforge.experiment.validate import MOST_SAMPLES, check_count, check_flag, check_pairs, check_seeds
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.scores import check_writable, write_evaluated
from ganforge.models.gan import GAN
from ganforge.randomness import chunk_rows
from ganforge.runs.record import evaluation_sections, read_record
from ganforge.runs.untrusted import check_caches
from ganforge.runtime.devices import cpu_count
from ganforge.runtime.errors import UserError
from ganforge.runtime.progress import progress_bar


def evaluate(config: DictConfig) -> dict[str, float]:
    """Print a table of numbers, write them with their provenance, and return them."""
    check_count("num_samples", config.num_samples, MOST_SAMPLES)
    for option in ("moving_average", "standing_statistics"):
        check_flag(option, config[option])
    check_seeds(config)
    output = config.output or (Path(config.run, "metrics.json") if config.run else None)
    if output:
        check_writable(Path(output).expanduser())
    if config.run:
        given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
        for part in evaluation_sections(read_record(Path(config.run).expanduser()), given):
            if OmegaConf.is_config(config.get(part)):
                config[part] = validate_untrusted(config[part])
                check_caches(OmegaConf.to_container(config[part]), given, part)
    resolve_config(config, *({"data", "model", "metrics", "extractor", "trainer"} & set(config)))
    data, model, subject = _folders(config) if config.folder or config.against else _model(config)
    evaluation = Evaluation(
        instantiate(config.metrics, _convert_="all"),
        instantiate(config.extractor, _convert_="all"),
        config.reference,
        config.standing_statistics,
        config.cache_dir,
    )
    if not evaluation.setup_metrics(data):
        raise UserError("None of these metrics can be had: choose others by metrics=..., or another extractor=...")
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [evaluation, EvaluationProgress()] if config.trainer.enable_progress_bar else [evaluation]
    trainer = make_trainer(config.trainer, Path(), callbacks, **options)
    if trainer.is_global_zero:  # other ranks start once this one has what all of them need
        data.prepare_data()
        data.setup()
    trainer.validate(model, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        provenance = {**evaluation.provenance(model), **subject}
        print(table(evaluation.values, provenance))
        if output:
            write_evaluated(Path(output).expanduser(), evaluation.values, provenance)
            print(f"Written to {output}")
    return evaluation.values


def table(values: Mapping[str, float], provenance: Mapping[str, Any]) -> str:
    """Names and values, under how they were made."""
    if not values:
        raise UserError("There are too few samples for any of these metrics")
    shown = {key: value for key, value in provenance.items() if key != "versions" and value is not None}
    how = [f"{key.replace('_', ' ')}: {value}" for key, value in shown.items()]
    width = max(map(len, values))
    return "\n".join([*how, "", *(f"{name:{width}}  {value:.6g}" for name, value in values.items())])


class EvaluationProgress(Callback):
    """A bar for a long evaluation."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._bar = progress_bar("measuring", int(sum(trainer.num_val_batches)))
            self._bar.start()

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _model(config: DictConfig) -> tuple[TensorData, LightningModule, dict[str, Any]]:
    """The model and data of a run, or of the command line."""
    if "model" not in config or "data" not in config:
        raise UserError("Say what to measure: run=<run folder>, folder=<images> against=<images>, or model= and data=")
    if "num_samples" in config.data:
        config.data.num_samples = config.num_samples
    data = instantiate(config.data, _convert_="all")
    if isinstance(data, Pairs):
        data.for_training = False
        if not data.sets[data.eval_split]:
            raise UserError("Say what to measure on: data.test=[<folder or zip of whole images>]")
    subject: dict[str, Any] = {}
    if config.run:
        path = checkpoint_path(Path(config.run).expanduser(), config.checkpoint)
        model, step = load_model(config.model, path)
        if not config.moving_average:
            model.average = None
        subject = {"run": config.run, "checkpoint": path.name, "step": step}
    else:
        model = instantiate(config.model, _convert_="all")
        if isinstance(model, GAN):
            raise UserError("This model has to be trained first: name a run, with run=<run folder>")
    check_pairs(data, model)
    if isinstance(data, Pairs):
        subject |= {"model": type(model).__name__, "scale": data.scale}
        subject["sets"] = [str(entry) for entry in data.sets[data.eval_split]]
    return data, model, subject


# Folders of images -----------------------------------------------------------------------------------------------


class Files:
    """The images of a folder or zip, as they are."""

    def __init__(self, path: str, option: str):
        self.source = open_source(Path(path).expanduser(), option)
        self.names = self.source.images()
        self.pool = ThreadPoolExecutor(cpu_count())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> Tensor | list[Tensor]:
        """RGB images uint8 (N, 3, H, W), or in a list where their sizes differ."""
        images = list(self.pool.map(self._decoded, [self.names[i] for i in rows.tolist()]))
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    def _decoded(self, name: str) -> Tensor:
        try:
            with self.source.open(name) as file, open_image(file) as image:
                return torch.from_numpy(np.array(to_8bit(image, 3))).permute(2, 0, 1)
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
    subject = {"folder": config.folder, "against": config.against, "split": None}
    return RealFiles(reals, len(fakes)), FakeFiles(fakes), subject
