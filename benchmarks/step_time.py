"""What a step costs: `Trainer.fit` as a user gets it, against a bare loop and against the usual tutorial loop.

    python benchmarks/step_time.py data.root=<folder with MNIST>

All train networks of their own of the same size, in one process, in alternating windows of steps, so that a
noisy machine disturbs them alike. Ratios are of neighbouring windows, and the median of all: over several trainings,
for two loops that do the same differ by up to 5%, by where in memory their weights happen to lie. Arguments are
overrides of conf/train.yaml.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from operator import truediv
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from hydra import compose, initialize_config_dir
from loops import Windows, bare_loop
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn.functional import binary_cross_entropy_with_logits

from ganforge.cli.resolvers import register_resolvers
from ganforge.experiment.build import build

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "dcgan": (16, ["model=dcgan"]),
    "mlp": (32, ["model=gan"]),
    "r1": (16, ["model=dcgan", "regularizer=r1"]),
}
"""Steps in a window, and options. Each window logs as often as the others: log_every_n_steps is 16."""
WITH_TUTORIAL = ("dcgan", "mlp")
TRAININGS, WINDOWS = 4, 12


def tutorial_loop(model: Any, data: Any) -> Callable[[], None]:
    """The loop of most tutorials: PIL transforms, two generator forwards, D's gradients computed in G's step."""
    contiguous = torch.contiguous_format
    generator = deepcopy(model.generator).to(memory_format=contiguous)
    discriminator = deepcopy(model.discriminator).to(memory_format=contiguous)
    optimizer_g = torch.optim.Adam(generator.parameters(), 2e-4, betas=(0.5, 0.999))
    optimizer_d = torch.optim.Adam(discriminator.parameters(), 2e-4, betas=(0.5, 0.999))
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.ToTensor(), torchvision.transforms.Normalize(0.5, 0.5)]
    )

    class Pictures(torch.utils.data.Dataset):  # torchvision.datasets.MNIST, without its rules for folders
        def __len__(self) -> int:
            return len(data.real)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.fromarray(data.real[index, 0].numpy())), int(data.condition[index])

    def batches() -> Iterator[torch.Tensor]:
        while True:
            for real, _ in torch.utils.data.DataLoader(Pictures(), data.batch_size, shuffle=True, drop_last=True):
                yield real

    stream = batches()

    def step() -> None:
        real = next(stream)
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        optimizer_d.zero_grad()
        fake = generator(torch.randn(len(real), model.latent.size)).detach()
        loss_real = binary_cross_entropy_with_logits(discriminator(real), ones)
        loss_fake = binary_cross_entropy_with_logits(discriminator(fake), zeros)
        (loss_real + loss_fake).backward()
        optimizer_d.step()
        optimizer_g.zero_grad()
        fake = generator(torch.randn(len(real), model.latent.size))
        binary_cross_entropy_with_logits(discriminator(fake), ones).backward()
        optimizer_g.step()

    return step


def measure(name: str, seed: int, overrides: list[str]) -> dict[str, list[float]]:
    """Seconds per step of `Trainer.fit` and the other loops, in each window of one training."""
    length, options = CASES[name]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*options, "data.batch_size=64", f"seed={seed}", *overrides])
    config.trainer.max_steps = length * (WINDOWS + 2)
    config.sample_every = config.checkpoint_every = 10**6
    with tempfile.TemporaryDirectory() as folder:
        data, network, trainer, _ = build(config, Path(folder))
        data.prepare_data()
        data.setup()
        others = {"bare": bare_loop(network, data)}
        if name in WITH_TUTORIAL:
            others["tutorial"] = tutorial_loop(network, data)
        callback = Windows(length, others)
        trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        trainer.fit(network, datamodule=data)
    return {loop: times[-WINDOWS:] for loop, times in callback.times.items()}  # after a warm-up


def startup() -> float:
    """From `python train.py` to the end of its first step, over the time of the imports alone."""

    def seconds(*command: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        train = ["train.py", "model=gan", "data=ring", "trainer.max_steps=1", f"hydra.run.dir={folder}/run"]
        imports = ["-c", "import torch, lightning, torchmetrics, torchvision"]
        pairs = []
        for i in range(4):
            command = [argument if "hydra" not in argument else f"{argument}{i}" for argument in train]
            pairs.append((seconds(*command), seconds(*imports)))
    return median(run for run, _ in pairs[1:]) / median(bare for _, bare in pairs[1:])


def main() -> None:
    register_resolvers()
    table = Table("networks", "Trainer.fit", "bare loop", "tutorial loop", title="milliseconds per step, batch 64")
    ratios = {}
    for name in CASES:
        trainings = [measure(name, seed, sys.argv[1:]) for seed in range(TRAININGS)]
        times = {loop: [time for training in trainings for time in training[loop]] for loop in trainings[0]}
        table.add_row(name, *(f"{1000 * median(found):.2f}" for found in times.values()))
        ratios[f"{name}_vs_bare"] = median(map(truediv, times["fit"], times["bare"]))
        if name in WITH_TUTORIAL:
            ratios[f"{name}_vs_tutorial"] = median(map(truediv, times["tutorial"], times["fit"]))
    ratios["startup_vs_imports"] = startup()
    Console().print(table)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
