"""The callback that turns what a validation generates into numbers."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import ceil, isnan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric

from ganforge.data.base import Batch, TensorData, to_uint8
from ganforge.data.pairs import Pairs
from ganforge.errors import UserError
from ganforge.metrics.extractors import Extractor, frozen, suitable
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.metrics.reference import real_statistics
from ganforge.metrics.statistics import Collector, Statistics, over_ranks
from ganforge.randomness import CHUNK, chunk_rows
from ganforge.run_folder import update_metrics, versions

log = logging.getLogger(__name__)

SLOTS = ("against_real", "on_fakes", "paired")


class Evaluation(Callback):
    """Measures the samples of every validation: on the console, in TensorBoard and in the run's `metrics.json`.

    `metrics` has three slots, because the calls differ. They hold this package's metrics, or torchmetrics' own:
    against_real: of generated and real samples; torchmetrics by `update(uint8 images, real=...)`
    on_fakes: of generated samples; torchmetrics by `update(uint8 images)`
    paired: of images and what they should be; torchmetrics by `update(made, right)` in [0, 1]
    Its `monitor` names the metric whose best checkpoint is kept.

    `extractor` makes the features, once for all metrics; null: digits for 28-pixel grey images, else Inception.
    `reference` is the split that samples are compared with. `standing_statistics` estimates the generator's BatchNorm
    buffers anew for each validation. `cache_dir` keeps the statistics of real samples; null: ~/.cache/ganforge.
    """

    def __init__(
        self,
        metrics: Mapping[str, Any],
        extractor: Extractor | None = None,
        reference: str = "train",
        standing_statistics: bool = False,
        cache_dir: str | None = None,
    ):
        unknown = set(metrics) - {*SLOTS, "monitor"}
        if unknown:
            raise ValueError(f"metrics: has {', '.join(SLOTS)} and monitor, not {', '.join(sorted(unknown))}")
        named = ((slot, key, metric) for slot in SLOTS for key, metric in (metrics.get(slot) or {}).items())
        self.metrics = {(slot, key): metric for slot, key, metric in named if metric is not None}
        self.monitor = metrics.get("monitor")
        self.extractor = extractor or None  # an empty config group is a dict
        self.reference = reference
        self.standing_statistics = standing_statistics
        self.cache_dir = cache_dir
        self.scores: dict[str, dict[str, Any]] = {}
        """The last and the best value of each metric, with their steps."""
        self.values: dict[str, float] = {}
        """Of the latest validation."""
        self._real: Statistics | None = None
        self._has_reals = False
        self._undo = ExitStack()

    # Before a run ------------------------------------------------------------------------------------------------

    def attach(self, data: TensorData) -> bool:
        """Choose what suits the data. Returns whether there is anything to measure. Raises UserError."""
        for slot, key in self.metrics:
            if (slot == "paired") != isinstance(data, Pairs):
                right = "pairs" if isinstance(data, Pairs) else "images"
                raise UserError(f"metrics.{slot}.{key} has nothing to compare in these data: use metrics={right}")
        if self._of(FeatureMetric):
            self.extractor = self.extractor or suitable(data.shape)
            if self.extractor is not None:
                frozen(self.extractor)
        self.metrics = {key: metric for key, metric in self.metrics.items() if self._is_available(metric)}
        names = self.names()
        if self.monitor and names:
            full = next((name for name in (self.monitor, self._full(self.monitor)) if name in names), None)
            if full is None:
                raise UserError(f"metrics.monitor={self.monitor}: no such metric. There are {', '.join(names)}")
            self.monitor = full
        return bool(names)

    def _is_available(self, metric: Any) -> bool:
        return (
            metric.is_available
            if isinstance(metric, PairMetric)
            else bool(self.extractor or not isinstance(metric, FeatureMetric))
        )

    def names(self) -> dict[str, bool]:
        """The names of the numbers, and whether higher ones are better."""
        found: dict[str, bool] = {}
        for (_, key), metric in self.metrics.items():
            if isinstance(metric, FeatureMetric):
                found |= {self._full(name): higher for name, higher in metric.scores.items()}
            else:
                found[key] = bool(metric.higher_is_better)
        return found

    def _full(self, name: str) -> str:
        """The name with the extractor that the number depends on: class_fid/3 is class_fid_digits/3."""
        base, slash, rest = name.partition("/")
        extractor = self.extractor.name if self.extractor else ""
        return (f"{base}_{extractor}" if extractor else base) + slash + rest

    def _of(self, kind: type, *slots: str) -> dict[str, Any]:
        return {
            key: metric
            for (slot, key), metric in self.metrics.items()
            if isinstance(metric, kind) and slot in (slots or SLOTS)
        }

    # Reals -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_reals(trainer)

    def _measure_reals(self, trainer: Trainer) -> None:
        """Once for all validations."""
        if self._has_reals:
            return
        self._has_reals = True
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.extractor is not None:
            self.extractor.to(trainer.strategy.root_device)
        if self.extractor is not None and self._of(FeatureMetric):
            self._real = real_statistics(data, self.reference, self.extractor, trainer, self.cache_dir)
        for metric in self._of(Metric).values():
            metric.to(trainer.strategy.root_device)
        for metric in self._of(Metric, "against_real").values():
            metric.reset_real_features = False
            samples, _ = data.samples(self.reference)
            for chunk in range(trainer.global_rank, ceil(len(samples) / CHUNK), trainer.world_size):
                metric.update(samples[chunk_rows(chunk, len(samples))].to(metric.device), real=True)

    # A validation ------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._measure_reals(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._collector = Collector(data.num_samples, trainer)
        self._pairs = {
            (key, i): torch.zeros(len(images), dtype=torch.float64)
            for key in self._of(PairMetric)
            for i, images in enumerate(data.evaluated)
        }
        if self.standing_statistics:
            self._undo.enter_context(pl_module.standing_statistics())

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if isinstance(batch, Batch):
            self._add_pair(trainer, as_uint8(outputs), as_uint8(batch.real), batch_idx, dataloader_idx)
        else:
            self._add_samples(trainer, outputs, batch)

    def _add_samples(self, trainer: Trainer, samples: Batch, chunk: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        fakes = as_uint8(samples.real)
        if self.extractor is not None and self._of(FeatureMetric):
            found = self.extractor.features_of(fakes, trainer.strategy.root_device)
            self._collector.update(chunk, found, samples.condition)
        counted = fakes[: max(0, data.num_samples - chunk * CHUNK)]
        if len(counted):
            for metric in self._of(Metric, "on_fakes").values():
                metric.update(counted)
            for metric in self._of(Metric, "against_real").values():
                metric.update(counted, real=False)

    def _add_pair(self, trainer: Trainer, made: Tensor, right: Tensor, batch_idx: int, dataset: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        index = batch_idx * trainer.world_size + trainer.global_rank
        images = data.evaluated[dataset]
        if index >= len(images):
            return  # only there so that all ranks have as many
        for key, metric in self._of(PairMetric).items():
            self._pairs[key, dataset][index] = metric(made, right).item()
        for metric in self._of(Metric).values():
            metric.update(made.float() / 255, right.float() / 255)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._undo.close()
        if trainer.sanity_checking:
            return
        self.values = values = dict(self._results(trainer))
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        if trainer.state.fn == "fit":
            self._report(trainer, pl_module, values)

    def _results(self, trainer: Trainer) -> Iterator[tuple[str, float]]:
        """The numbers, on all ranks the same."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self._of(FeatureMetric):
            fake = self._collector.result()
            found: dict[str, float] = {}
            if self._real is not None:  # on rank 0
                for metric in self._of(FeatureMetric).values():
                    found |= metric.compute(fake, self._real, data)
            for name, value in trainer.strategy.broadcast(found).items():
                yield self._full(name), value
        for key in self._of(PairMetric):
            sets = [over_ranks(self._pairs[key, i], trainer) for i in range(len(data.evaluated))]
            yield key, torch.cat(sets).mean().item()
            if len(sets) > 1:
                for images, values in zip(data.evaluated, sets, strict=True):
                    yield f"{key}/{images.name}", values.mean().item()
        for key, metric in self._of(Metric).items():
            value = metric.compute()
            metric.reset()
            # some return a mean and a standard deviation
            yield key, float(value[0] if isinstance(value, tuple) else value)

    # Records -----------------------------------------------------------------------------------------------------

    def _report(self, trainer: Trainer, pl_module: Any, values: dict[str, float]) -> None:
        for name, value in values.items():
            now = {"value": value, "step": trainer.global_step}
            score = self.scores.setdefault(name, {"higher_is_better": self.is_better_higher(name), "best": now})
            score["last"] = now
            sign = 1 if score["higher_is_better"] else -1
            if isnan(score["best"]["value"]) or sign * value > sign * score["best"]["value"]:
                score["best"] = now
        for logger in trainer.loggers:
            logger.log_metrics({f"metrics/{name}": value for name, value in values.items()}, step=trainer.global_step)
        if trainer.is_global_zero:
            log.info("step %d: %s", trainer.global_step, line(values))
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, pl_module: Any) -> None:
        how = self.provenance(trainer, pl_module)
        entries = {name: {**score, "provenance": how} for name, score in self.scores.items()}
        update_metrics(Path(trainer.default_root_dir, "metrics.json"), entries)

    def is_better_higher(self, name: str) -> bool:
        names = self.names()
        return names.get(name, names.get(name.partition("/")[0], True))

    def improved(self, step: int) -> bool:
        """Whether the monitored metric was at its best at this step."""
        return self.monitor in self.scores and self.scores[self.monitor]["best"]["step"] == step

    def provenance(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """How the numbers were made."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        found: dict[str, Any] = {}
        if hasattr(pl_module, "average"):
            weights = "raw" if pl_module.average is None else "moving average"
            batchnorm = "re-estimated" if self.standing_statistics else f"running statistics, {weights}"
            found = {"seed": pl_module.seed, "weights": weights, "batchnorm": batchnorm}
        if self.extractor is not None and self._of(FeatureMetric):
            found |= {
                "extractor": self.extractor.name or "points",
                "extractor_digest": self.extractor.digest,
                "resize": self.extractor.resize,
                "split": self.reference,
                "real_samples": self._real.size if self._real else None,
            }
        found["fake_samples"] = sum(map(len, data.evaluated)) if isinstance(data, Pairs) else data.num_samples
        return {**found, "versions": versions()}

    def state_dict(self) -> dict[str, Any]:
        return self.scores

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if self.scores and trainer.is_global_zero:  # without what a killed run measured after its last checkpoint
            self._write(trainer, pl_module)


def as_uint8(samples: Any) -> Any:
    """Images in [-1, 1] as uint8; points, and what is uint8 already, as they are."""
    is_float = isinstance(samples, Tensor) and samples.is_floating_point() and samples.ndim == 4
    return to_uint8(samples) if is_float else samples


def line(values: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if "/" not in name)
