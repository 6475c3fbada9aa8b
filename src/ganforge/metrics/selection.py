"""The metrics that a config chose, matched with the data: what there is, under which names, and which way is better."""

from collections.abc import Mapping
from typing import Any

from torchmetrics import Metric

from ganforge.data.base import TensorData
from ganforge.data.pairs import Pairs
from ganforge.metrics.extractors import Extractor, Points, frozen, suitable
from ganforge.metrics.features import FeatureMetric
from ganforge.metrics.levels import Coarse
from ganforge.metrics.pairs import PairMetric
from ganforge.metrics.scores import Better
from ganforge.runtime.errors import UserError

SLOTS = ("against_real", "on_fakes", "paired")


class MetricSelection:
    """Metrics by slot and key, and the extractor that makes the features of all of them, if any is made of features.

    Raises UserError where data, metrics and extractor do not go together.
    """

    def __init__(self, metrics: Mapping[str, Any], extractor: Extractor | None, data: TensorData):
        named = ((slot, key, metric) for slot in SLOTS for key, metric in (metrics.get(slot) or {}).items())
        self.metrics = {(slot, key): metric for slot, key, metric in named if metric is not None}
        for (slot, key), metric in self.metrics.items():
            if not isinstance(metric, FeatureMetric | PairMetric | Metric):
                raise UserError(f"metrics.{slot}.{key} is no metric of ganforge or torchmetrics")
            if (slot == "paired") != isinstance(data, Pairs):
                right = "pairs" if isinstance(data, Pairs) else "images"
                raise UserError(f"metrics.{slot}.{key} has nothing to compare in these data: use metrics={right}")
        self.extractor = (extractor or suitable(data.shape)) if self.of(FeatureMetric) else None
        self.metrics = {name: metric for name, metric in self.metrics.items() if self._is_available(metric)}
        if self.extractor is not None:
            frozen(self.extractor)
            self._check_extractor(data)
        self.extractors: dict[int | None, Extractor] = {}
        """By the size that images are made smaller to first, None for as they are."""
        if self.extractor is not None:
            sizes = {size for metric in self.of(FeatureMetric).values() for size in metric.sizes(data)}
            self.extractors = {size: Coarse(self.extractor, size) if size else self.extractor for size in sizes}
        self.names = self._names()
        """Of the numbers, and which are better."""
        self.monitor = self._monitor(metrics.get("monitor"))
        """The full name of the number whose best checkpoint is kept."""

    def of(self, kind: type, *slots: str) -> dict[str, Any]:
        """The metrics of a kind, in all slots unless some are named."""
        return {
            key: metric
            for (slot, key), metric in self.metrics.items()
            if isinstance(metric, kind) and slot in (slots or SLOTS)
        }

    def named(
        self, key: str, metric: FeatureMetric, values: Mapping[str, Any], size: int | None = None
    ) -> dict[str, Any]:
        """A metric's values under the numbers' full names. A metric that gives one number lends it its own key."""
        lent = key if len(metric.scores) == 1 else None
        return {self._full(name, lent) + (f"/{size}" if size else ""): value for name, value in values.items()}

    def _full(self, name: str, lent: str | None = None) -> str:
        """With the extractor that the number depends on: class_fid/3 is class_fid_digits/3."""
        base, slash, rest = name.partition("/")
        extractor = self.extractor.name if self.extractor else ""
        return f"{lent or base}_{extractor}".rstrip("_") + slash + rest

    def _is_available(self, metric: Any) -> bool:
        if isinstance(metric, FeatureMetric):
            return self.extractor is not None
        return not isinstance(metric, PairMetric) or metric.is_available

    def _check_extractor(self, data: TensorData) -> None:
        if isinstance(self.extractor, Points) != (len(data.shape) == 1):
            name = (self.extractor and self.extractor.name) or "points"
            raise UserError(f"extractor={name} does not suit data of shape {list(data.shape)}")
        for (slot, key), metric in self.metrics.items():
            if isinstance(metric, FeatureMetric) and not isinstance(self.extractor, metric.extractor):
                raise UserError(f"metrics.{slot}.{key} is made of {metric.extractor.__name__}, not of these data")

    def _names(self) -> dict[str, Better]:
        found: dict[str, Better] = {}
        for (_, key), metric in self.metrics.items():
            if isinstance(metric, FeatureMetric):
                scores = self.named(key, metric, metric.scores)
            else:
                scores = {key: bool(metric.higher_is_better)}
            twice = ", ".join(scores.keys() & found.keys())
            if twice:
                raise UserError(f"metrics: {twice} would be two numbers of one name: leave one of them out")
            found |= scores
        return found

    def _monitor(self, name: str | None) -> str | None:
        if not name or not self.names:
            return None
        full = next((known for known in (name, self._full(name)) if known in self.names), None)
        if full is None:
            raise UserError(f"metrics.monitor={name}: no such metric. There are {', '.join(self.names)}")
        return full
