"""Agreement of a GPU with the CPU: part `right` of benchmarks/gpu.py."""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import torch
from gpu_report import Case
from gpu_setup import DROPOUT, MODELS, Setting, configured, fit, precision, ready
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ganforge.data.base import Batch
from ganforge.experiment.build import make_trainer
from ganforge.experiment.resolve import resolve_config
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.extractors import EfficientNetLite0, freeze
from ganforge.metrics.pairs import PSNR, SSIM
from ganforge.randomness import chunk_rows

TRACE_TOLERANCE = {"64-true": 1e-4, "32-true": 5e-3}
"""Largest difference of a logged value over 20 steps, relative to its largest magnitude. In float64 it equals that of
the golden traces; in float32 rounding errors grow with each step, because Adam makes full steps of tiny gradients."""

METRIC_TOLERANCE = 1e-4
FAKES = 2048

FEW = ("gan", "lapgan_conditional", "srgan_adversarial", "wgan_gp")
"""One model of each kind, for small settings."""


def cases(setting: Setting) -> Iterator[Case]:
    models = FEW if setting.is_small else MODELS
    for exactness in TRACE_TOLERANCE:
        for name in models:
            yield Case(f"the device against the CPU, 20 steps, {exactness}", name, partial(_trace, name, exactness))
    yield from _metric_cases()
    for name in models:
        yield Case("bf16-mixed, 200 steps", name, partial(_bfloat16, name))
    for name in models:
        yield Case("killed and resumed, deterministic=true, bit for bit", name, partial(_resumed, name))


def _metric_cases() -> Iterator[Case]:
    exact = {"TF32 off": False, "torch's default (TF32 in convolutions)": True}
    for how, uses_tf32 in exact.items():
        yield Case(f"metrics on the device against the CPU, {how}", "digits", partial(_metrics, uses_tf32))
    yield Case("metrics of pairs on the device against the CPU", "pairs", _pair_metrics)
    yield Case("features on the device against the CPU, TF32 off", "efficientnet_lite0", _efficientnet)


# The same steps --------------------------------------------------------------------------------------------------


class Trace(Callback):
    """Records the losses and gradient norms of every step."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        logged: dict[str, float] = pl_module.step_log.values  # type: ignore[assignment]
        for tag, value in logged.items():
            if "loss_" in tag or "gradient_norm/" in tag:
                self.values[tag].append(value)


def _batch(name: str, count: int = 16) -> str:
    return f"data.batch_size={4 if '=pairs' in ' '.join(MODELS[name]) else count}"


def _trace(name: str, exactness: str, setting: Setting) -> dict[str, Any]:
    steps = 2 if setting.is_small else 20
    options = [*MODELS[name], *DROPOUT.get(name, []), _batch(name), f"trainer.precision={exactness}"]
    traces = []
    with precision("highest", False):
        for place in (setting, setting._replace(device="cpu")):
            trace = Trace()
            folder = setting.new_folder(f"trace-{name}")
            fit(ready(place, [*options, "trainer.log_every_n_steps=1"], steps, folder), [trace])
            traces.append(trace.values)
    return compare_traces(traces[0], traces[1], TRACE_TOLERANCE[exactness])


def compare_traces(
    actual: dict[str, list[float]], expected: dict[str, list[float]], tolerance: float
) -> dict[str, Any]:
    """The largest difference between two traces, the loss that has it, and whether it is within the tolerance."""
    differences = {tag: difference(actual[tag], values) for tag, values in expected.items()}
    norms = {tag: differences.pop(tag) for tag in expected if "gradient_norm/" in tag}
    worst = max(differences, key=lambda tag: differences[tag])
    first = max(difference(actual[tag][:1], expected[tag][:1]) for tag in differences)
    return {
        "passes": differences[worst] <= tolerance and actual.keys() == expected.keys(),
        "difference": differences[worst],
        "tolerance": tolerance,
        "of": worst,
        "at the first step": first,
        "of gradient norms": max(norms.values(), default=None),
        "steps": len(expected[worst]),
    }


def difference(actual: list[float], expected: list[float]) -> float:
    """The largest difference, relative to the largest expected magnitude; infinite if a value is NaN."""
    one, other = torch.tensor([actual, expected], dtype=torch.float64)
    scale = other.abs().max().clamp_min(1e-12)
    largest = ((one - other).abs().max() / scale).item()
    return float("inf") if isnan(largest) else largest


# Half precision, resuming ----------------------------------------------------------------------------------------


def _bfloat16(name: str, setting: Setting) -> dict[str, Any]:
    steps = 2 if setting.is_small else 200
    options = [*MODELS[name], _batch(name), "trainer.precision=bf16-mixed"]
    model = fit(ready(setting, options, steps, setting.new_folder(f"bf16-{name}")))
    numbers = [*model.parameters(), *model.buffers(), *model.step_log.terms.values()]
    last = {tag: value for tag, value in model.step_log.values.items() if tag.endswith("/total")}
    return {"passes": all(bool(number.isfinite().all()) for number in numbers), "steps": steps, "losses": last}


class Killed(Exception):
    """Simulates a kill."""


class Kill(Callback):
    def __init__(self, step: int):
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


def _resumed(name: str, setting: Setting) -> dict[str, Any]:
    """Compares 20 uninterrupted steps with a run that is killed at step 13 and resumes from its checkpoint at 10."""
    saved, killed, steps = (2, 3, 4) if setting.is_small else (10, 13, 20)
    options = [*MODELS[name], _batch(name), "trainer.deterministic=true", f"checkpoint_every={saved}"]
    whole, broken = setting.new_folder(f"whole-{name}"), setting.new_folder(f"broken-{name}")
    try:
        fit(ready(setting, options, steps, whole))
        with suppress(Killed):
            fit(ready(setting, options, steps, broken), [Kill(killed)])
        last = broken / "checkpoints" / "last.ckpt"
        resumed_from = _read(last)["global_step"]
        fit(ready(setting, options, steps, broken, is_new=False), checkpoint=last)
    finally:
        torch.use_deterministic_algorithms(False)
    first, second = (_read(folder / "checkpoints" / "last.ckpt") for folder in (whole, broken))
    unequal = unequal_parts(first, second)
    passes = not unequal and resumed_from < killed and second["global_step"] == steps
    return {"passes": passes, "resumed from": resumed_from, "unequal": unequal or None}


def _read(path: Path) -> Any:
    return torch.load(path, weights_only=True, map_location="cpu")


def unequal_parts(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """The parts of two checkpoints (weights, optimizers) that differ, with the number of different tensors."""
    unequal = {}
    for part in ("state_dict", "optimizer_states"):
        pairs = list(zip(tree_leaves(first[part]), tree_leaves(second[part]), strict=True))
        tensors = [(one, other) for one, other in pairs if isinstance(one, Tensor)]
        different = sum(not torch.equal(one, other) for one, other in tensors)
        if different:
            unequal[part] = f"{different} of {len(tensors)}"
    return unequal


# Metrics ---------------------------------------------------------------------------------------------------------


class FixedSamples(LightningModule):
    """Validates given images instead of generated samples."""

    def __init__(self, images: Tensor, labels: Tensor):
        super().__init__()
        self.images, self.labels = images, labels

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        rows = chunk_rows(int(chunk), len(self.images))
        return Batch(self.images[rows].to(self.device), self.labels[rows].to(self.device))


def all_metrics(setting: Setting, count: int) -> dict[str, float]:
    """All metrics of noisy digits, computed on a device."""
    config = configured(setting, ["model=cgan", f"data.num_samples={count}"], 1)
    resolve_config(config, "data", "model", "trainer", "callbacks", "logger")
    data = instantiate(config.data, _convert_="all")
    data.prepare_data()
    data.setup()
    evaluation = Evaluation(
        instantiate(config.metrics, _convert_="all"),
        reference="test",
        cache_dir=str(setting.new_folder("statistics")),
    )
    evaluation.setup_metrics(data)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = make_trainer(config.trainer, setting.folder, [evaluation], **options)
    noise = torch.randint(0, 76, (count, 1, 28, 28), generator=torch.Generator().manual_seed(0))
    images = (data.real[:count] * 0.7 + noise).to(torch.uint8)
    trainer.validate(FixedSamples(images, data.condition[:count]), datamodule=data, verbose=False)
    return evaluation.values


def _metrics(uses_tf32: bool, setting: Setting) -> dict[str, Any]:
    count = 256 if setting.is_small else FAKES
    with precision("highest", uses_tf32):
        actual = all_metrics(setting, count)
    expected = all_metrics(setting._replace(device="cpu"), count)
    differences = {name: difference([actual[name]], [value]) for name, value in expected.items()}
    return _verdict(differences, expected)


def _verdict(differences: dict[str, float], expected: dict[str, float]) -> dict[str, Any]:
    worst = max(differences, key=lambda name: differences[name])
    whole = {name: value for name, value in differences.items() if "/" not in name}
    return {
        "passes": differences[worst] <= METRIC_TOLERANCE,
        "difference": differences[worst],
        "tolerance": METRIC_TOLERANCE,
        "of": worst,
        "differences": whole,
        "values": {name: expected[name] for name in whole},
    }


def _pair_metrics(setting: Setting) -> dict[str, Any]:
    random = torch.Generator().manual_seed(0)
    real = torch.randint(0, 256, (4, 3, 64, 48), generator=random, dtype=torch.uint8)
    noise = torch.randint(-20, 21, real.shape, generator=random)
    fake = (real + noise).clamp(0, 255).to(torch.uint8)
    values, differences = {}, {}
    for name, kind in {"psnr": PSNR, "ssim": SSIM}.items():
        for space in ("y", "rgb"):
            metric, key = kind(space), f"{name}_{space}"
            actual = metric(fake.to(setting.device), real.to(setting.device), 4).tolist()
            expected = metric(fake, real, 4).tolist()
            values[key], differences[key] = expected[0], difference(actual, expected)
    return _verdict(differences, values)


@torch.no_grad()
def _efficientnet(setting: Setting) -> dict[str, Any]:
    extractor = freeze(EfficientNetLite0())
    count = 2 if setting.is_small else 64
    images = torch.randint(0, 256, (count, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = extractor(images).features
    with precision("highest", False):
        actual = extractor.to(setting.device)(images.to(setting.device)).features.cpu()
    value = (actual - expected).norm().item() / expected.norm().item()
    return _verdict({"features": value}, {"features": expected.norm().item()})


def prepare() -> None:
    """Set what deterministic=true needs: Lightning sets it too late if cuBLAS has already been used."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
