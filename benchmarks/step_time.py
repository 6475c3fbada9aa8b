"""What a step costs: `Trainer.fit` as users get it, against a bare loop, the usual tutorial loop and steps without ADA.

    python benchmarks/step_time.py data.root=<folder with MNIST>

All loops train networks of their own of the same size, in one process, in alternating windows of steps, so that a noisy
machine disturbs them alike; steps with and without ADA train the same networks. Ratios are of neighbouring windows,
and the median of all: over several trainings, for two loops that do the same differ by up to 5%, by where in memory
their weights happen to lie. Arguments are overrides of conf/train.yaml.
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
from typing import Any, NamedTuple

import torch
import torchvision
from hydra import compose, initialize_config_dir
from loops import BareLoop, Windows
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.nn.functional import binary_cross_entropy_with_logits

from ganforge.cli.resolvers import register_resolvers
from ganforge.experiment.build import build

ROOT = Path(__file__).resolve().parent.parent
R3GAN_SIZE = {"width": 32, "full_width_up_to": 7, "blocks": 1, "group_size": 32, "patch_size": 2}


class Case(NamedTuple):
    """Overrides, steps in a window, and windows of each training that count."""

    options: list[str]
    length: int = 16
    windows: int = 12


CASES = {
    "dcgan": Case(["model=dcgan"]),
    "mlp": Case(["model=gan"], length=32),
    "r1": Case(["model=dcgan", "regularizer=r1"]),
    "r3gan": Case(
        ["model=r3gan", *(f"model.{n}.{k}={v}" for n in ("generator", "discriminator") for k, v in R3GAN_SIZE.items())],
        windows=6,
    ),
    "ada": Case(["model=dcgan", "augment=ada"]),
}
"""What is measured. Each window logs as often as the others: log_every_n_steps is 16."""
WITH_TUTORIAL = ("dcgan", "mlp")
LOOPS = {"fit": "Trainer.fit", "bare": "bare loop", "tutorial": "tutorial loop", "plain": "without augmentation"}
TRAININGS = 4


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


def with_and_without_augmentation(model: Any) -> dict[str, Callable[[], None]]:
    """Variants of a training with augment=ada, whose probability starts at 0.5."""
    augmentations = dict(model.augmentations)
    ada = augmentations["ada"]
    ada.level.fill_(round(0.5 / ada.UNIT))
    return {
        "fit": lambda: model.augmentations.update(augmentations),
        "plain": lambda: model.augmentations.clear(),
    }


def measure(name: str, seed: int, overrides: list[str]) -> dict[str, list[float]]:
    """Seconds per step of `Trainer.fit` and the other loops, in each window of one training."""
    options, length, windows = CASES[name]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*options, "data.batch_size=64", f"seed={seed}", *overrides])
    config.trainer.max_steps = length * (windows + 2)
    config.sample_every = config.checkpoint_every = 10**6
    with tempfile.TemporaryDirectory() as folder:
        data, network, trainer, _ = build(config, Path(folder))
        data.prepare_data()
        data.setup()
        variants = with_and_without_augmentation(network) if network.augmentations else {}
        others: dict[str, Callable[[], None]] = {} if variants else {"bare": BareLoop(network, data)}
        if name in WITH_TUTORIAL:
            others["tutorial"] = tutorial_loop(network, data)
        callback = Windows(length, others, variants=variants)
        trainer.callbacks.append(callback)  # type: ignore[attr-defined]
        trainer.fit(network, datamodule=data)
    count = windows // max(1, len(variants))
    return {loop: times[-count:] for loop, times in callback.times.items()}  # after a warm-up


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
    table = Table("networks", *LOOPS.values(), title="milliseconds per step, batch 64")
    ratios = {}
    for name in CASES:
        trainings = [measure(name, seed, sys.argv[1:]) for seed in range(TRAININGS)]
        times = {loop: [time for training in trainings for time in training[loop]] for loop in trainings[0]}
        table.add_row(name, *(f"{1000 * median(times[loop]):.2f}" if loop in times else "" for loop in LOOPS))
        if "plain" in times:
            ratios["augment_cost"] = median(map(truediv, times["fit"], times["plain"]))
        else:
            ratios[f"{name}_vs_bare"] = median(map(truediv, times["fit"], times["bare"]))
        if name in WITH_TUTORIAL:
            ratios[f"{name}_vs_tutorial"] = median(map(truediv, times["tutorial"], times["fit"]))
    ratios["startup_vs_imports"] = startup()
    Console().print(table)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f}")


if __name__ == "__main__":
    main()
