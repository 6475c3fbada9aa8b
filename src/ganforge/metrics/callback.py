"""The callback that computes metrics on the output of a validation."""

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

from ganforge.data.base import Batch, TensorData
from ganforge.data.pairs import Pairs
from ganforge.metrics.extractors import Extractor
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.pairs import PairMetric
from ganforge.metrics.reference import real_statistics
from ganforge.metrics.scores import Scores
from ganforge.metrics.selection import SLOTS, MetricSelection
from ganforge.metrics.statistics import Collector, Statistics, all_reduce_sum, check_complete
from ganforge.models.ema import standing_statistics
from ganforge.randomness import CHUNK, chunk_rows
from ganforge.runs.folder import versions
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8
from ganforge.runtime.trainers import total_steps

log = logging.getLogger(__name__)


class Evaluation(Callback):
    """Computes metrics in every validation and writes them to the console, the loggers and the run's `metrics.json`.

    `metrics` has three slots for metrics of this package or of torchmetrics, because their calls differ:
    against_real: of generated and real samples; torchmetrics get `update(uint8 images, real=...)`
    on_fakes: of generated samples; torchmetrics get `update(uint8 images)`
    paired: of generated images and their ground truth; torchmetrics get `update(generated, real)` in [0, 1]
    `monitor` names the metric that chooses the best checkpoint.

    `extractor` extracts the features for all metrics; None: points as they are, digits for 28-pixel grey images, else
    Inception.
    `reference` is the split of the real samples. `standing_statistics` re-estimates the generator's BatchNorm buffers
    for each validation (Brock et al., 2019). `cache_dir` holds the statistics of real samples; None: ~/.cache/ganforge.
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
            raise UserError(
                f"metrics: unknown keys {', '.join(sorted(unknown))}; expected {', '.join([*SLOTS, 'monitor'])}"
            )
        self.metrics = metrics
        self.extractor = extractor or None  # an empty config group is a dict
        self.reference = reference
        self.standing_statistics = standing_statistics
        self.cache_dir = cache_dir
        self.scores = Scores()
        self.values: dict[str, float] = {}
        """The metrics of the latest validation."""
        self._real: dict[int | None, Statistics] = {}  # on rank 0, by extractor size
        self._has_real = False
        self._exit_stack = ExitStack()

    @property
    def state_key(self) -> str:
        return Evaluation.__name__  # the same for subclasses, so that checkpoints are interchangeable

    def setup_metrics(self, data: TensorData) -> bool:
        """Select the metrics that apply to the data; returns whether there are any. Raises UserError."""
        self.data: Any = data
        if self.standing_statistics and isinstance(data, Pairs):
            raise UserError("standing_statistics=true: only for models that sample from noise: leave it out")
        self.selection = MetricSelection(self.metrics, self.extractor, data)
        self.extractor = self.selection.extractor
        return bool(self.selection.names)

    # Real samples ------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._measure_real(trainer)

    def _measure_real(self, trainer: Trainer) -> None:
        """Compute or load the statistics of the real samples, once for all validations."""
        if self._has_real:
            return
        self._has_real = True
        for size, extractor in self.selection.extractors.items():
            extractor.to(trainer.strategy.root_device)
            keep = self._needs_samples(size)
            real = real_statistics(self.data, self.reference, extractor, trainer, self.cache_dir, keep)
            if real is not None:
                self._real[size] = real
        for metric in self.selection.of_kind(Metric).values():
            metric.to(trainer.strategy.root_device)
        for metric in self.selection.of_kind(Metric, "against_real").values():
            metric.reset_real_features = False
            samples, _ = self.data.samples(self.reference)
            for chunk in range(trainer.global_rank, -(-len(samples) // CHUNK), trainer.world_size):
                metric.update(samples[chunk_rows(chunk, len(samples))].to(metric.device), real=True)

    def _needs_samples(self, size: int | None) -> bool:
        metrics = self.selection.of_kind(FeatureMetric).values()
        return any(metric.needs_samples for metric in metrics if size in metric.sizes(self.data))

    # Validation --------------------------------------------------------------------------------------------------

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self._end:
            trainer.should_stop = True  # makes Lightning validate once more, on the last weights

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._measure_real(trainer)
        self._collectors = {
            size: Collector(self.data.num_samples, trainer, self._needs_samples(size))
            for size in self.selection.extractors
        }
        self._pair_count = 0
        self._pairs = {
            (key, i): torch.zeros(len(images), dtype=torch.float64)
            for key in self.selection.of_kind(PairMetric)
            for i, images in enumerate(self.data.eval_sets)
        }
        if self.standing_statistics:
            self._exit_stack.enter_context(standing_statistics(pl_module))

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
        if index < len(self.data.eval_sets[dataloader_idx]):  # ranks are padded with images beyond the end
            self._add_pair(as_uint8(outputs), as_uint8(batch.real), index, dataloader_idx)

    def _add_samples(self, trainer: Trainer, samples: Batch, chunk: int) -> None:
        fakes = as_uint8(samples.real)
        for size, extractor in self.selection.extractors.items():
            features = extractor.extract(fakes, trainer.strategy.root_device)
            self._collectors[size].update(chunk, features, samples.condition)
        if self.selection.of_kind(Metric) and not isinstance(fakes, Tensor):
            raise UserError("metrics: torchmetrics metrics need equally sized images")
        fakes = fakes[: max(0, self.data.num_samples - chunk * CHUNK)]
        if len(fakes):
            for metric in self.selection.of_kind(Metric, "on_fakes").values():
                metric.update(fakes)
            for metric in self.selection.of_kind(Metric, "against_real").values():
                metric.update(fakes, real=False)

    def _add_pair(self, fake: Tensor, real: Tensor, index: int, dataset: int) -> None:
        if fake.device.type == "mps":  # MPS has no float64
            fake, real = fake.cpu(), real.cpu()
        self._pair_count += 1
        for key, metric in self.selection.of_kind(PairMetric).items():
            scale = self.data.eval_sets[dataset].scale
            self._pairs[key, dataset][index] = metric(fake, real, scale).item()
        for metric in self.selection.of_kind(Metric).values():
            metric.update(fake.float() / 255, real.float() / 255)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._exit_stack.close()
        if trainer.sanity_checking:
            return
        # broadcast, because all ranks must take the same decisions, to the bit
        self.values = trainer.strategy.broadcast(dict(self._results(trainer)))
        del self._collectors
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.values.items()})
        if trainer.state.fn == "fit":
            self._report(trainer, pl_module)

    def _results(self, trainer: Trainer) -> Iterator[tuple[str, float]]:
        for size, collector in self._collectors.items():
            fake = collector.result()
            for key, metric in self.selection.of_kind(FeatureMetric).items():
                if fake is not None and size in self._real and size in metric.sizes(self.data):
                    values = metric.compute(fake, self._real[size], self.data)
                    yield from self.selection.with_full_names(key, metric, values, size).items()
        if isinstance(self.data, Pairs):
            count = int(all_reduce_sum(torch.tensor(self._pair_count), trainer))
            check_complete(count, sum(map(len, self.data.eval_sets)))
        for key in self.selection.of_kind(PairMetric):
            sets = [all_reduce_sum(self._pairs[key, i], trainer) for i in range(len(self.data.eval_sets))]
            yield key, torch.cat(sets).mean().item()
            if len(sets) > 1:
                for images, values in zip(self.data.eval_sets, sets, strict=True):
                    yield f"{key}/{images.name}", values.mean().item()
        for key, metric in self.selection.of_kind(Metric).items():
            value = metric.compute()
            metric.reset()
            # a tuple is a mean and a standard deviation
            yield key, float(value[0] if isinstance(value, tuple) else value)

    # Reporting ---------------------------------------------------------------------------------------------------

    def _report(self, trainer: Trainer, pl_module: Any) -> None:
        provenance = trainer.strategy.broadcast(self.provenance(pl_module))  # only rank 0 has the real samples
        for name, value in self.values.items():
            better = self.selection.names.get(name, self.selection.names.get(name.partition("/")[0], True))
            self.scores.add(name, better, name == self.selection.monitor, trainer.global_step, value, provenance)
        for logger in trainer.loggers:
            values = {f"metrics/{name}": value for name, value in self.values.items()}
            values |= {f"best/{name}": self.scores[name]["best"]["value"] for name in self.values if "/" not in name}
            logger.log_metrics(values, step=trainer.global_step)
        if trainer.is_global_zero:
            # without the parts of a metric whose mean is shown, such as class_fid/3
            parts = {name for name in self.values if "/" in name and name.partition("/")[0] in self.values}
            shown = [f"{name} {value:.4g}" for name, value in self.values.items() if name not in parts]
            log.info("step %d: %s", trainer.global_step, "  ".join(shown))
            self.scores.write(Path(trainer.default_root_dir, "metrics.json"))

    def provenance(self, pl_module: Any) -> dict[str, Any]:
        """How the metrics are computed: weights, extractor, samples, versions. Only equal provenance is comparable."""
        provenance: dict[str, Any] = {}
        if hasattr(pl_module, "average"):
            weights = "raw weights (no EMA)" if pl_module.average is None else "moving average"
            batchnorm = "re-estimated" if self.standing_statistics else f"running statistics, {weights}"
            provenance = {"seed": pl_module.seed, "weights": weights, "batchnorm": batchnorm}
        if self.extractor is not None:
            provenance |= {
                "extractor": self.extractor.name or "points",
                "extractor_digest": self.extractor.digest,
                "resize": self.extractor.resize,
                "split": self.reference,
                "real_samples": next((real.size for real in self._real.values()), None),
            }
        if isinstance(self.data, Pairs):
            provenance["degradation"] = str(self.data.degradation or "stored counterparts")
            provenance["fake_samples"] = sum(map(len, self.data.eval_sets))
        else:
            provenance["fake_samples"] = self.data.num_samples
        return {**provenance, "versions": versions()}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.scores)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scores = Scores(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end = total_steps(trainer)
        if trainer.is_global_zero and trainer.global_step:  # drop what a killed run measured after this checkpoint
            self.scores.write(Path(trainer.default_root_dir, "metrics.json"))


def as_uint8(samples: Any) -> Any:
    """Images in [-1, 1] as uint8; points and uint8 images unchanged."""
    is_float = isinstance(samples, Tensor) and samples.is_floating_point() and samples.ndim == 4
    return to_uint8(samples) if is_float else samples
