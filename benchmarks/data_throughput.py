"""Throughput of packed CelebA, compared with torchvision's ImageFolder and with what a DCGAN step consumes.

    python benchmarks/data_throughput.py data.root=<folder with img_align_celeba/ and the annotations>

All three run in one process, in alternating windows. Arguments are overrides of conf/train.yaml. Ratios are of medians
over windows.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from ganforge.cli.resolvers import register_resolvers
from ganforge.data.base import StepLoader
from ganforge.data.celeba import CelebA
from ganforge.experiment.build import build

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = 12
STEPS = {"packed": 200, "imagefolder": 20, "dcgan": 4}
"""Batches in a window."""


def image_folder(data: CelebA, images: Path, folder: Path) -> Iterator[Tensor]:
    """Endless batches of the same images, prepared in the same way by torchvision's ImageFolder with two workers."""
    (folder / "class").symlink_to(images)
    preparation = v2.Compose(
        [
            v2.Lambda(lambda image: v2.functional.center_crop(image, [min(image.size)])),
            v2.Resize([data.image_size, data.image_size], v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    dataset = datasets.ImageFolder(str(folder), preparation)
    loader = torch.utils.data.DataLoader(
        dataset, data.batch_size, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True
    )
    while True:
        for real, _ in loader:
            yield real


class Windows(Callback):
    """Times windows of training, and between them windows of the two ways to load batches."""

    def __init__(self, others: Iterator[Tensor]):
        self.others = others
        self.times: dict[str, list[float]] = {name: [] for name in STEPS}
        self.start = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step % STEPS["dcgan"]:
            return
        if self.start:
            self.times["dcgan"].append((time.perf_counter() - self.start) / STEPS["dcgan"])
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader: StepLoader = data.train_dataloader()
        start = time.perf_counter()
        for step in range(STEPS["packed"]):
            data.on_after_batch_transfer(loader.batch(step), 0)
        self.times["packed"].append((time.perf_counter() - start) / STEPS["packed"])
        start = time.perf_counter()
        for _step in range(STEPS["imagefolder"]):
            next(self.others)
        self.times["imagefolder"].append((time.perf_counter() - start) / STEPS["imagefolder"])
        self.start = time.perf_counter()


def main() -> None:
    register_resolvers()
    overrides = ["model=dcgan", "data=celeba", "data.image_size=64", "data.batch_size=128", *sys.argv[1:]]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", overrides)
    config.trainer.max_steps = STEPS["dcgan"] * (WINDOWS + 2)
    config.trainer.enable_progress_bar = False
    config.sample_every = config.checkpoint_every = 10**6
    with tempfile.TemporaryDirectory() as folder:
        experiment = build(config, Path(folder, "run"))
        data: Any = experiment.data
        data.prepare_data()
        images = data.list_images("train").source.path
        if not images.is_dir():
            sys.exit(f"{images}: ImageFolder needs a folder, so unpack the zip first")
        Path(folder, "images").mkdir()
        windows = Windows(image_folder(data, images.resolve(), Path(folder, "images")))
        experiment.trainer.callbacks.append(windows)  # type: ignore[attr-defined]
        experiment.trainer.fit(experiment.model, datamodule=data)
    times = {name: median(values[1:]) for name, values in windows.times.items()}  # the first window warms up
    table = Table("", "images/s", title=f"{data.image_size} pixels, batch {data.batch_size}")
    for name, seconds in times.items():
        table.add_row(name, f"{data.batch_size / seconds:,.0f}")
    Console().print(table)
    print(f"celeba_vs_imagefolder: {times['imagefolder'] / times['packed']:.1f}")
    print(f"celeba_vs_dcgan_step: {times['dcgan'] / times['packed']:.1f}")


if __name__ == "__main__":
    main()
