"""Measure a run, a model without weights, or a folder of images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from ganforge.commands.image_files import FakeFiles, ImageFiles, RealFiles
from ganforge.data.base import TensorData
from ganforge.data.pairs import Pairs
from ganforge.experiment.build import make_trainer
from ganforge.experiment.compatibility import check_pairs
from ganforge.experiment.load import checkpoint_path, load_model
from ganforge.experiment.resolve import resolve_config
from ganforge.experiment.trust import validate_untrusted
from ganforge.experiment.validate import MAX_SAMPLES, check_count, check_flag, check_seeds
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.scores import check_writable, write_evaluated
from ganforge.models.gan import GAN
from ganforge.runs.folder_contents import check_caches
from ganforge.runs.record import evaluation_sections, read_record
from ganforge.runtime.errors import UserError
from ganforge.runtime.overrides import as_typed
from ganforge.runtime.progress import progress_bar


class Measured(NamedTuple):
    """The data and model to measure, and their entries in the provenance."""

    data: TensorData
    model: LightningModule
    provenance: dict[str, Any]


def evaluate(config: DictConfig) -> dict[str, float]:
    """Print the values with their provenance, write them to `output`, and return them by metric name."""
    output = _check_options(config)
    if config.run:
        _validate_record(config)
    resolve_config(config, *({"data", "model", "metrics", "extractor", "trainer"} & set(config)))
    measured = _from_folders(config) if config.folder or config.against else _from_model(config)
    evaluation = Evaluation(
        instantiate(config.metrics, _convert_="all"),
        instantiate(config.extractor, _convert_="all"),
        config.reference,
        config.standing_statistics,
        config.cache_dir,
    )
    if not evaluation.setup_metrics(measured.data):
        raise UserError(
            "metrics=: none of the chosen metrics applies to this data. Choose another metrics= or extractor="
        )
    trainer = _validate(config, evaluation, measured)
    if trainer.is_global_zero:
        provenance = {**evaluation.provenance(measured.model), **measured.provenance}
        print(values_table(evaluation.values, provenance))
        if output:
            write_evaluated(output, evaluation.values, provenance)
            print(f"Written to {output}")
    return evaluation.values


def _check_options(config: DictConfig) -> Path | None:
    """The file to write, None to write none."""
    check_count("num_samples", config.num_samples, MAX_SAMPLES)
    for option in ("moving_average", "standing_statistics"):
        check_flag(option, config[option])
    check_seeds(config)
    output = config.output or (Path(config.run, "metrics.json") if config.run else None)
    if output is None:
        return None
    path = Path(output).expanduser()
    check_writable(path)
    return path


def _validate_record(config: DictConfig) -> None:
    """Check the parts of the config that come from the run's record."""
    overrides = as_typed(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    for section in evaluation_sections(read_record(Path(config.run).expanduser()), overrides):
        if OmegaConf.is_config(config.get(section)):
            config[section] = validate_untrusted(config[section])
            check_caches(OmegaConf.to_container(config[section]), overrides, section)


def _from_model(config: DictConfig) -> Measured:
    """The model and data of a run, or of the command line."""
    if "model" not in config or "data" not in config:
        raise UserError("Say what to measure: run=<run folder>, folder=<images> against=<images>, or model= and data=")
    if "num_samples" in config.data:
        config.data.num_samples = config.num_samples
    data = instantiate(config.data, _convert_="all")
    if isinstance(data, Pairs):
        data.for_training = False
        if not data.sets[data.eval_split]:
            raise UserError("data.test is missing: add data.test=[<folder or zip of whole images>]")
    provenance: dict[str, Any] = {}
    if config.run:
        path = checkpoint_path(Path(config.run).expanduser(), config.checkpoint)
        model, step = load_model(config.model, path)
        if not config.moving_average:
            model.average = None
        provenance = {"run": config.run, "checkpoint": path.name, "step": step}
    else:
        model = instantiate(config.model, _convert_="all")
        if isinstance(model, GAN):
            raise UserError("model= is untrained: pass run=<run folder>")
    check_pairs(data, model)
    if isinstance(data, Pairs):
        provenance |= {"model": type(model).__name__, "scale": data.scale}
        provenance["sets"] = [str(entry) for entry in data.sets[data.eval_split]]
    return Measured(data, model, provenance)


def _from_folders(config: DictConfig) -> Measured:
    """Two folders or zips of images, one in place of generated samples."""
    if not config.folder or not config.against or config.run:
        raise UserError("folder=<images> and against=<images> go together, without run=")
    fakes, reals = ImageFiles(config.folder, "folder"), ImageFiles(config.against, "against")
    provenance = {"folder": config.folder, "against": config.against, "split": None}
    return Measured(RealFiles(reals, len(fakes)), FakeFiles(fakes), provenance)


def _validate(config: DictConfig, evaluation: Evaluation, measured: Measured) -> Trainer:
    """Run the evaluation by Lightning's validation loop."""
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callbacks = [evaluation, EvaluationProgress()] if config.trainer.enable_progress_bar else [evaluation]
    trainer = make_trainer(config.trainer, Path(), callbacks, **options)
    if trainer.is_global_zero:  # validate starts the other ranks, which need prepared data
        measured.data.prepare_data()
        measured.data.setup()
    trainer.validate(measured.model, datamodule=measured.data, verbose=False)
    return trainer


def values_table(values: Mapping[str, float], provenance: Mapping[str, Any]) -> str:
    """Lines of the provenance, then a line for each metric. Raises UserError if there are no values."""
    if not values:
        raise UserError("num_samples= is too small for any of the metrics: raise it")
    shown = {key: value for key, value in provenance.items() if key != "versions" and value is not None}
    lines = [f"{key.replace('_', ' ')}: {value}" for key, value in shown.items()]
    width = max(map(len, values))
    return "\n".join([*lines, "", *(f"{name:{width}}  {value:.6g}" for name, value in values.items())])


class EvaluationProgress(Callback):
    """A progress bar over the batches of an evaluation."""

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
