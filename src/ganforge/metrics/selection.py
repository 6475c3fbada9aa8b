"""The metrics of a config, checked against the data, with the full names of their scores."""

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from ganforge.data.base import TensorData
from ganforge.data.pairs import Pairs
from ganforge.metrics.extractors import Extractor, Points, default_extractor, freeze
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.levels import Downsampled
from ganforge.metrics.pairs import PairMetric
from ganforge.metrics.scores import Better
from ganforge.runtime.errors import UserError

SLOTS = ("against_real", "on_fakes", "paired")


class MetricSelection:
    """Metrics by slot and key, and the extractor that all feature metrics share.

    Raises UserError if data, metrics and extractor do not fit together.
    """

    def __init__(self, metrics: Mapping[str, Any], extractor: Extractor | None, data: TensorData):
        entries = ((slot, key, metric) for slot in SLOTS for key, metric in (metrics.get(slot) or {}).items())
        self.metrics = {(slot, key): metric for slot, key, metric in entries if metric is not None}
        for (slot, key), metric in self.metrics.items():
            if not isinstance(metric, FeatureMetric | PairMetric | Metric):
                raise UserError(f"metrics.{slot}.{key} is not a metric of ganforge or torchmetrics")
            if (slot == "paired") != isinstance(data, Pairs):
                suitable = "pairs" if isinstance(data, Pairs) else "images"
                raise UserError(f"metrics.{slot}.{key} does not apply to these data: use metrics={suitable}")
        self.extractor = (extractor or default_extractor(data.shape)) if self.of_kind(FeatureMetric) else None
        self.metrics = {name: metric for name, metric in self.metrics.items() if self._is_available(metric)}
        if self.extractor is not None:
            freeze(self.extractor)
            self._check_extractor(data)
        self.extractors: dict[int | None, Extractor] = {}
        """By the size to which images are downsampled first; None is full size."""
        if self.extractor is not None:
            sizes = {size for metric in self.of_kind(FeatureMetric).values() for size in metric.sizes(data)}
            self.extractors = {size: Downsampled(self.extractor, size) if size else self.extractor for size in sizes}
        self.names = self._names()
        """The full names of all scores, and which values are better."""
        self.monitor = self._monitor(metrics.get("monitor"))
        """The full name of the score that chooses the best checkpoint."""

    def of_kind(self, kind: type, *slots: str) -> dict[str, Any]:
        """The metrics of a class by key, in these slots; by default in all."""
        return {
            key: metric
            for (slot, key), metric in self.metrics.items()
            if isinstance(metric, kind) and slot in (slots or SLOTS)
        }

    def with_full_names(
        self, key: str, metric: FeatureMetric, values: Mapping[str, Any], size: int | None = None
    ) -> dict[str, Any]:
        """A metric's values by full name. A metric with a single score uses its config key as the name."""
        base = key if len(metric.scores) == 1 else None
        return {self._full_name(name, base) + (f"/{size}" if size else ""): value for name, value in values.items()}

    def _full_name(self, name: str, base: str | None = None) -> str:
        """Adds the extractor, which the score depends on: class_fid/3 becomes class_fid_digits/3."""
        prefix, slash, suffix = name.partition("/")
        extractor = self.extractor.name if self.extractor else ""
        return f"{base or prefix}_{extractor}".rstrip("_") + slash + suffix

    def _is_available(self, metric: Any) -> bool:
        if isinstance(metric, FeatureMetric):
            return self.extractor is not None
        return not isinstance(metric, PairMetric) or metric.is_available

    def _check_extractor(self, data: TensorData) -> None:
        if isinstance(self.extractor, Points) != (len(data.shape) == 1):
            name = (self.extractor and self.extractor.name) or "points"
            raise UserError(
                f"extractor={name} does not work with samples of shape {list(data.shape)}: use extractor=auto"
            )
        for (slot, key), metric in self.metrics.items():
            if isinstance(metric, FeatureMetric) and not isinstance(self.extractor, metric.extractor):
                name = metric.extractor.name
                needed = f"extractor={name}: choose it" if name else "points: choose other data="
                raise UserError(f"metrics.{slot}.{key} needs {needed}, or set metrics.{slot}.{key}=null")

    def _names(self) -> dict[str, Better]:
        names: dict[str, Better] = {}
        for (_, key), metric in self.metrics.items():
            if isinstance(metric, FeatureMetric):
                scores = self.with_full_names(key, metric, metric.scores)
            else:
                scores = {key: bool(metric.higher_is_better)}
            duplicates = ", ".join(scores.keys() & names.keys())
            if duplicates:
                raise UserError(f"metrics: two scores are called {duplicates}. Set one to null")
            names |= scores
        return names

    def _monitor(self, name: str | None) -> str | None:
        if not name or not self.names:
            return None
        full = next((known for known in (name, self._full_name(name)) if known in self.names), None)
        if full is None:
            raise UserError(f"metrics.monitor={name}: no such metric. Choose from {', '.join(self.names)}")
        return full
