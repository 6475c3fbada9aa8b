"""The callback that turns what a validation generates into numbers."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torchmetrics import Metric

from ganforge.data.base import Batch, TensorData, to_uint8
from ganforge.data.pairs import Pairs
from ganforge.metrics.extractors import Extractor
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.metrics.reference import real_statistics
from ganforge.metrics.scores import Scores
from ganforge.metrics.selection import SLOTS, MetricSelection
from ganforge.metrics.statistics import Collector, Statistics, all_reduce_sum, check_all_seen
from ganforge.models.ema import standing_statistics
from ganforge.randomness import CHUNK, chunk_rows
from ganforge.runs.folder import versions
from ganforge.runtime.errors import UserError
from ganforge.runtime.trainers import steps_of

log = logging.getLogger(__name__)


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
            raise UserError(f"metrics: has {', '.join(SLOTS)} and monitor, not {', '.join(sorted(unknown))}")
        self.metrics = metrics
        self.extractor = extractor or None  # an empty config group is a dict
        self.reference = reference
        self.standing_statistics = standing_statistics
        self.cache_dir = cache_dir
        self.scores = Scores()
        self.values: dict[str, float] = {}
        """Of the latest validation."""
        self._real: dict[int | None, Statistics] = {}  # on rank 0
        self._has_reals = False
        self._undo = ExitStack()

    @property
    def state_key(self) -> str:
        return Evaluation.__name__  # of subclasses as well, for those who read checkpoints

    def setup_metrics(self, data: TensorData) -> bool:
        """Choose what suits the data. Returns whether there is anything to measure. Raises UserError."""
        self.data: Any = data
        if self.standing_statistics and isinstance(data, Pairs):
            raise UserError("standing_statistics=true: is for models that draw samples from noise")
        self.chosen = MetricSelection(self.metrics, self.extractor, data)
        self.extractor = self.chosen.extractor
        return bool(self.chosen.names)

    # Reals -------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_reals(trainer)

    def _measure_reals(self, trainer: Trainer) -> None:
        """Once for all validations."""
        if self._has_reals:
            return
        self._has_reals = True
        for size, extractor in self.chosen.extractors.items():
            extractor.to(trainer.strategy.root_device)
            keeps = self._needs_samples(size)
            real = real_statistics(self.data, self.reference, extractor, trainer, self.cache_dir, keeps)
            if real is not None:
                self._real[size] = real
        for metric in self.chosen.of(Metric).values():
            metric.to(trainer.strategy.root_device)
        for metric in self.chosen.of(Metric, "against_real").values():
            metric.reset_real_features = False
            samples, _ = self.data.samples(self.reference)
            for chunk in range(trainer.global_rank, -(-len(samples) // CHUNK), trainer.world_size):
                metric.update(samples[chunk_rows(chunk, len(samples))].to(metric.device), real=True)

    def _needs_samples(self, size: int | None) -> bool:
        metrics = self.chosen.of(FeatureMetric).values()
        return any(metric.needs_samples for metric in metrics if size in metric.sizes(self.data))

    # A validation ------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._end:
            trainer.should_stop = True  # has Lightning validate once more, so that the last weights are measured

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._measure_reals(trainer)
        self._collectors = {
            size: Collector(self.data.num_samples, trainer, self._needs_samples(size))
            for size in self.chosen.extractors
        }
        self._seen = 0
        self._pairs = {
            (key, i): torch.zeros(len(images), dtype=torch.float64)
            for key in self.chosen.of(PairMetric)
            for i, images in enumerate(self.data.evaluated)
        }
        if self.standing_statistics:
            self._undo.enter_context(standing_statistics(pl_module))

    @torch.no_grad()
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking:
            return
        if not isinstance(batch, Batch):
            self._add_samples(trainer, outputs, batch)
            return
        index = batch_idx * trainer.world_size + trainer.global_rank
        if index < len(self.data.evaluated[dataloader_idx]):  # others are there so that all ranks have as many
            self._add_pair(as_uint8(outputs), as_uint8(batch.real), index, dataloader_idx)

    def _add_samples(self, trainer: Trainer, samples: Batch, chunk: int) -> None:
        fakes = as_uint8(samples.real)
        for size, extractor in self.chosen.extractors.items():
            found = extractor.features_of(fakes, trainer.strategy.root_device)
            self._collectors[size].update(chunk, found, samples.condition)
        if self.chosen.of(Metric) and not isinstance(fakes, Tensor):
            raise UserError("Metrics of torchmetrics need images of one size")
        counted = fakes[: max(0, self.data.num_samples - chunk * CHUNK)]
        if len(counted):
            for metric in self.chosen.of(Metric, "on_fakes").values():
                metric.update(counted)
            for metric in self.chosen.of(Metric, "against_real").values():
                metric.update(counted, real=False)

    def _add_pair(self, made: Tensor, right: Tensor, index: int, dataset: int) -> None:
        if made.device.type == "mps":  # which has no float64
            made, right = made.cpu(), right.cpu()
        self._seen += 1
        for key, metric in self.chosen.of(PairMetric).items():
            scale = self.data.evaluated[dataset].scale
            self._pairs[key, dataset][index] = metric(made, right, scale).item()
        for metric in self.chosen.of(Metric).values():
            metric.update(made.float() / 255, right.float() / 255)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._undo.close()
        if trainer.sanity_checking:
            return
        # rank 0's, as a decision that follows from them has to be the same on all ranks
        self.values = trainer.strategy.broadcast(dict(self._results(trainer)))
        del self._collectors
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.values.items()})
        if trainer.state.fn == "fit":
            self._report(trainer, pl_module)

    def _results(self, trainer: Trainer) -> Iterator[tuple[str, float]]:
        for size, collector in self._collectors.items():
            fake = collector.result()
            for key, metric in self.chosen.of(FeatureMetric).items():
                if fake is not None and size in self._real and size in metric.sizes(self.data):
                    values = metric.compute(fake, self._real[size], self.data)
                    yield from self.chosen.named(key, metric, values, size).items()
        if isinstance(self.data, Pairs):
            check_all_seen(int(all_reduce_sum(torch.tensor(self._seen), trainer)), sum(map(len, self.data.evaluated)))
        for key in self.chosen.of(PairMetric):
            sets = [all_reduce_sum(self._pairs[key, i], trainer) for i in range(len(self.data.evaluated))]
            yield key, torch.cat(sets).mean().item()
            if len(sets) > 1:
                for images, values in zip(self.data.evaluated, sets, strict=True):
                    yield f"{key}/{images.name}", values.mean().item()
        for key, metric in self.chosen.of(Metric).items():
            value = metric.compute()
            metric.reset()
            # some return a mean and a standard deviation
            yield key, float(value[0] if isinstance(value, tuple) else value)

    # Records -----------------------------------------------------------------------------------------------------

    def _report(self, trainer: Trainer, pl_module: Any) -> None:
        how = trainer.strategy.broadcast(self.provenance(pl_module))  # only rank 0 has the real samples
        for name, value in self.values.items():
            better = self.chosen.names.get(name, self.chosen.names.get(name.partition("/")[0], True))
            self.scores.add(name, better, name == self.chosen.monitor, trainer.global_step, value, how)
        for logger in trainer.loggers:
            values = {f"metrics/{name}": value for name, value in self.values.items()}
            values |= {f"best/{name}": self.scores[name]["best"]["value"] for name in self.values if "/" not in name}
            logger.log_metrics(values, step=trainer.global_step)
        if trainer.is_global_zero:
            # the parts of a number that is there as well, such as those of each class, are left out
            parts = {name for name in self.values if "/" in name and name.partition("/")[0] in self.values}
            shown = [f"{name} {value:.4g}" for name, value in self.values.items() if name not in parts]
            log.info("step %d: %s", trainer.global_step, "  ".join(shown))
            self.scores.write(Path(trainer.default_root_dir, "metrics.json"))

    def provenance(self, pl_module: Any) -> dict[str, Any]:
        """How the numbers are made."""
        found: dict[str, Any] = {}
        if hasattr(pl_module, "average"):
            weights = "raw" if pl_module.average is None else "moving average"
            batchnorm = "re-estimated" if self.standing_statistics else f"running statistics, {weights}"
            found = {"seed": pl_module.seed, "weights": weights, "batchnorm": batchnorm}
        if self.extractor is not None:
            found |= {
                "extractor": self.extractor.name or "points",
                "extractor_digest": self.extractor.digest,
                "resize": self.extractor.resize,
                "split": self.reference,
                "real_samples": next((real.size for real in self._real.values()), None),
            }
        if isinstance(self.data, Pairs):
            found |= {"degradation": str(self.data.degradation or "ready partners")}
            found["fake_samples"] = sum(map(len, self.data.evaluated))
        else:
            found["fake_samples"] = self.data.num_samples
        return {**found, "versions": versions()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scores)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = Scores(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = steps_of(trainer)
        if trainer.is_global_zero and trainer.global_step:  # without what a killed run measured after its checkpoint
            self.scores.write(Path(trainer.default_root_dir, "metrics.json"))


def as_uint8(samples: Any) -> Any:
    """Images in [-1, 1] as uint8; points, and what is uint8 already, as they are."""
    is_float = isinstance(samples, Tensor) and samples.is_floating_point() and samples.ndim == 4
    return to_uint8(samples) if is_float else samples
