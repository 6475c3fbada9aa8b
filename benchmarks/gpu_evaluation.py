"""Throughput of samples, features and batches on a device: part `evaluation` of benchmarks/gpu.py."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_fast import WIDE
from gpu_report import Case
from gpu_setup import WIDTHS, Setting, configured, fit, ready
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer

from ganforge.experiment.build import build, make_trainer
from ganforge.metrics.callback import Evaluation
from ganforge.metrics.extractors import Digits, Extractor, Inception, freeze
from ganforge.metrics.statistics import Collector
from ganforge.randomness import CHUNK


def cases(setting: Setting) -> Iterator[Case]:
    faces = [setting.roots.face_data, "data.image_size=64", "data.batch_size=128"]
    samplers = {"dcgan, 28 pixels": ["model=dcgan"], "dcgan of width 64, 64 pixels": ["model=dcgan", *faces, *WIDE]}
    for name, overrides in samplers.items():
        yield Case("samples per second", name, partial(_samples, overrides))
    yield Case("features per second", "digits", partial(_features, _digits))
    yield Case("features per second", "inception, random weights", partial(_features, _inception))
    yield Case("a validation of 10,000 digits", "dcgan, fid", _validation)
    batches = {
        "MNIST, batch 64": ["data.batch_size=64"],
        "faces of 64 pixels, batch 128": faces,
        "crops of 96 pixels, batch 16": ["data=pairs", "model=srgan", "content=pixels", "data.batch_size=16"],
    }
    for name, overrides in batches.items():
        yield Case("batches per second, from the packed data to the device", name, partial(_batches, overrides))


def rate(setting: Setting, work: Callable[[], Any], count: int, seconds: float = 1.0) -> float:
    """Items per second, if each call of `work` handles `count` of them."""
    work()
    setting.finish()
    start, calls = time.perf_counter(), 0
    limit = 0.05 if setting.is_small else seconds
    while time.perf_counter() - start < limit:
        work()
        calls += 1
        if calls % 8 == 0:
            setting.finish()  # keeps the device's queue short
    setting.finish()
    return calls * count / (time.perf_counter() - start)


@torch.no_grad()
def _samples(overrides: list[str], setting: Setting) -> dict[str, Any]:
    """`sample_all`, in chunks of 64 from latents on the host, against the network alone."""
    small = WIDTHS if setting.is_small else []
    config = configured(setting, [*overrides, *small], 1)
    config.logger = {}
    model: Any = build(config, setting.new_folder("samples")).model.to(setting.device).eval()
    latents = model.latents(16 * CHUNK, seed=0)
    rates = {"sample_all": rate(setting, lambda: model.sample_all(latents), 16 * CHUNK)}
    for batch in (CHUNK, 16 * CHUNK):
        latent = latents[:batch].to(setting.device)
        rates[f"network alone, {batch} at once"] = rate(
            setting, partial(model.sampling_generator.eval(), latent), batch
        )
    return rates


def _digits(_folder: Path) -> tuple[Extractor, tuple[int, ...]]:
    return Digits(), (1, 28, 28)


def _inception(folder: Path) -> tuple[Extractor, tuple[int, ...]]:
    """Inception with random weights, which do not affect the speed."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    file = folder / "inception.pth"
    torch.save({}, file)
    load = FeatureExtractorInceptionV3.load_state_dict
    FeatureExtractorInceptionV3.load_state_dict = lambda *_, **__: None
    try:
        return Inception(str(file)), (3, 64, 64)
    finally:
        FeatureExtractorInceptionV3.load_state_dict = load


@torch.no_grad()
def _features(make: Callable[[Path], tuple[Extractor, tuple[int, ...]]], setting: Setting) -> dict[str, Any]:
    """Features as in a validation, in chunks of 64 with a collector, against the extractor alone."""
    if make is _inception and setting.is_small:
        return {"not run": "too slow on a CPU"}
    extractor, shape = make(setting.folder)
    freeze(extractor).to(setting.device)
    device = torch.device(setting.device)
    images = torch.randint(0, 256, (512, *shape), dtype=torch.uint8)
    trainer: Any = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    chunk, on_device = images[:CHUNK], images.to(device)
    rates: dict[str, Any] = {}
    for keep_samples in (True, False):
        collector = Collector(10**6, trainer, keep_samples)
        work = partial(_collect, collector, extractor, chunk, device)
        rates["with collector" + (", features kept" if keep_samples else "")] = rate(setting, work, CHUNK)
    for batch in (CHUNK, 512):
        rates[f"extractor alone, {batch} at once"] = rate(setting, partial(extractor, on_device[:batch]), batch)
    return rates


def _collect(collector: Collector, extractor: Extractor, chunk: torch.Tensor, device: torch.device) -> None:
    collector.update(0, extractor.extract(chunk, device))


def _validation(setting: Setting) -> dict[str, Any]:
    """Seconds of Trainer.validate, without and with cached statistics of the real digits."""
    count = 128 if setting.is_small else 10_000
    small = WIDTHS if setting.is_small else []
    overrides = ["model=dcgan", f"data.num_samples={count}", "metrics=fid", *small]
    experiment = ready(setting, overrides, 1, setting.new_folder("validation"))
    config, cache = configured(setting, overrides, 1), str(setting.new_folder("statistics"))
    seconds = {}
    for name in ("cold", "cached"):
        evaluation = Evaluation(instantiate(config.metrics, _convert_="all"), cache_dir=cache)
        evaluation.setup_metrics(experiment.data)
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        config.trainer.sync_batchnorm = False
        trainer = make_trainer(config.trainer, setting.folder, [evaluation], **options)
        start = time.perf_counter()
        trainer.validate(experiment.model, datamodule=experiment.data, verbose=False)
        seconds[f"seconds, {name}"] = time.perf_counter() - start
    return {**seconds, "samples/s, cached": count / seconds["seconds, cached"], **evaluation.values}


class Batches(Callback):
    """Loads batches after the first training step, and measures their rates."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.rates: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != 1:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader, step = data.train_dataloader(), iter(range(sys.maxsize))

        def gather() -> Any:
            return loader.batch(next(step))

        def prepare() -> Any:
            return data.on_after_batch_transfer(pl_module.transfer_batch_to_device(gather(), pl_module.device, 0), 0)

        self.rates["gathered on the host"] = rate(self.setting, gather, 1)
        self.rates["on the device, scaled and augmented"] = rate(self.setting, prepare, 1)


def _batches(overrides: list[str], setting: Setting) -> dict[str, Any]:
    small = [*WIDTHS, "data.batch_size=4"] if setting.is_small else []
    batches = Batches(setting)
    fit(ready(setting, [*overrides, *small], 1, setting.new_folder("batches")), [batches])
    return dict(batches.rates)
