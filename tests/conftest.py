"""What the tests share: composing configs, training in process, and running the entry points.

The process that hands the tests out to workers loads this file as well, so functions import what is slow to import.
"""

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from forking import Command, Ranks, free_port
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from PIL import Image

if TYPE_CHECKING:
    from ganforge.experiment.build import Experiment

ROOT = Path(__file__).resolve().parent.parent

QUICK = ["trainer.max_steps=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false"]
TINY_POINTS = ["model=gan", "data=quadratic", "data.size=100", "data.batch_size=20", "callbacks.samples.count=4"]
TINY_POINTS += ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]
TINY_MLP = ["model.generator.hidden=[16]", "model.discriminator.hidden=[16]"]
TINY_DCGAN = ["model.generator.width=4", "model.discriminator.width=4"]
TINY_R3GAN = [
    f"model.{network}.{size}" for network in ("generator", "discriminator") for size in ("width=4", "blocks=1")
]
TINY = {
    "gan": [],
    "cgan": ["model.generator.hidden=8", "model.discriminator.hidden=8"],
    "lapgan": [*TINY_DCGAN, "model.generator.hidden=8", "model.discriminator.hidden=8"],
    "srgan": [*TINY_DCGAN, "model.generator.blocks=1", "model.stage=adversarial", "content=pixels"],
    "pix2pix": [*TINY_DCGAN, "model.generator.depth=2", "model.discriminator.layers=1"],
    "fastgan": ["model.generator.width=1", "model.discriminator.width=1"],
    "r3gan": [*TINY_R3GAN, "model.generator.patch_size=2", "model.discriminator.patch_size=2"],
    "r3gan_conditional": TINY_R3GAN,
}
TINY["lapgan_conditional"] = TINY["lapgan"]
TINY |= {name: [*TINY_DCGAN, "model.discriminator_steps=2"] for name in ("sngan", "sngan_conditional", "wgan_gp")}
TINY["stylegan2"] = [*TINY_DCGAN, "model.latent.size=8", "model.generator.w_size=8", "model.generator.max_width=8"]
TINY["stylegan2"].append("model.discriminator.max_width=8")
TINY["stylegan2_conditional"] = TINY["stylegan2"]


def tiny(model: str, *overrides: str) -> list[str]:
    """A model that is small enough for tests."""
    return [f"model={model}", *TINY.get(model, TINY_DCGAN), *overrides]


def slow(*values: Any) -> Any:
    """A case that only `make test-all` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """What Hydra composes: each choice of options once, and on a copy of it the values, by Hydra's own function."""
    from ganforge.cli.resolvers import register_resolvers

    register_resolvers()
    chosen, values = [], []
    for override in map(_parsed, overrides):
        key = override.key_or_group
        is_choice = (ROOT / "conf" / key).is_dir() and not isinstance(override.value(), dict)
        (chosen if is_choice or key.startswith("hydra") else values).append(override)  # compose takes hydra's out
    made = deepcopy(_chosen(config, *(str(override.input_line) for override in chosen)))
    ConfigLoaderImpl._apply_overrides_to_config(values, made)
    return made


@cache
def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


@cache
def _chosen(config: str, *options: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose(config, list(options))


def fitted(
    folder: Path, *overrides: str, callbacks: list | None = None, checkpoint: Path | None = None
) -> "Experiment":
    """Train in this process; pictures are drawn only if `sample_every=` is among the overrides."""
    from ganforge.experiment.build import build

    draws = any(override.startswith("sample_every=") for override in overrides)
    experiment = build(composed(*QUICK, *overrides, *([] if draws else ["~callbacks.samples"])), folder)
    experiment.trainer.callbacks[:0] = callbacks or []
    experiment.trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
    return experiment


def fit(folder: Path, *overrides: str) -> None:
    """Train in a rank, from which no models come back."""
    fitted(folder, *overrides)


def recorded(folder: Path, *overrides: str) -> Path:
    """A trained run with its record, as train.py would leave it."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(composed(*QUICK, *overrides), folder / ".hydra" / "config.yaml")
    fitted(folder, *overrides)
    return folder


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar as it stands in the files, repeated steps included."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val and not value.tag.startswith("time/"):
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def start(script: str, *arguments: str, cwd: Path, **environment: str) -> Command:
    """Start an entry point as a user does, from a folder of its own."""
    return Command(ROOT / script, arguments, cwd, {**os.environ, **environment})


def run(
    script: str, *arguments: str, cwd: Path, timeout: float = 240, forked: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run an entry point to its end; `forked`, from a process that has the libraries."""
    if forked:
        return start(script, *arguments, cwd=cwd, **environment).wait(timeout)
    command = [sys.executable, str(ROOT / script), *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)


def start_ranks(count: int, script: str, *arguments: str, cwd: Path, **environment: str) -> list[Command]:
    """Start a script with `trainer.devices=` in as many forks, as torchrun starts them."""
    given = {**environment, "MASTER_PORT": str(free_port())}
    options = [*arguments, f"trainer.devices={count}"]
    return [start(script, *options, cwd=cwd, **given, LOCAL_RANK=str(rank)) for rank in range(count)]


def run_ranks(count: int, *arguments: str, cwd: Path, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    return [rank.wait() for rank in start_ranks(count, *arguments, cwd=cwd, **environment)]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests measure out of the developer's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.getbasetemp() / "cache")


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[Ranks]:
    """Two processes for all tests that need two."""
    ranks = Ranks(2)
    yield ranks
    ranks.end()


@pytest.fixture(scope="session")
def test_data() -> Callable[[str], Path]:
    """A file or folder of the real data that GANFORGE_TEST_DATA names; skips where it is absent."""

    def find(name: str) -> Path:
        folder = os.environ.get("GANFORGE_TEST_DATA")
        if not folder:
            pytest.skip("needs real data: set GANFORGE_TEST_DATA")
        path = Path(folder, name)
        if not path.exists():
            pytest.skip(f"needs {name} in GANFORGE_TEST_DATA")
        return path

    return find


@pytest.fixture
def fake_mnist(tmp_path: Path) -> Path:
    """A folder with 256 made-up digits in MNIST's format."""
    import torch

    from ganforge.data.mnist_sources import FILES, _idx

    folder = tmp_path / "made_up"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name in FILES:
        shape = (256, 28, 28) if "images" in name else (256,)
        high = 256 if "images" in name else 10
        values = torch.randint(high, shape, generator=generator, dtype=torch.uint8)
        if "labels" in name:
            values[:10] = torch.arange(10)
        (folder / name).write_bytes(_idx(values.numpy()))
    return folder


def save_picture(path: Path, seed: int, size: tuple[int, int] = (40, 50), mode: str = "RGB", **options: Any) -> None:
    """A smooth made-up picture: smooth, so that JPEG and resizing change it little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)  # four channels
    bands = dict(zip("RGBA", image.split(), strict=True))
    made = {
        "RGB": lambda: Image.merge("RGB", [bands[c] for c in "RGB"]),
        "RGBA": lambda: image,
        "CMYK": lambda: Image.merge("CMYK", list(bands.values())),
        "L": lambda: bands["R"],
    }[mode]()
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(path, **options)


def png_header(width: int, height: int) -> bytes:
    """What a PNG of this size begins with, and nothing of its pixels: a bomb, if it is large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with 24 made-up pictures of several sizes in three sub-folders."""
    folder = tmp_path / "pictures"
    for i in range(24):
        save_picture(folder / "abc"[i % 3] / f"{i:02d}.{('jpg', 'png')[i % 2]}", i, (40 + i, 64 - i))
    return folder


@pytest.fixture
def fake_celeba(tmp_path: Path) -> Path:
    """Thirty made-up pictures in CelebA's layout: 24 of the train, 3 of the valid and 3 of the test split."""
    folder = tmp_path / "faces"
    names = [f"{i:06d}.jpg" for i in range(1, 31)]
    for i, name in enumerate(names):
        save_picture(folder / "img_align_celeba" / name, i, (89, 109))
    splits = [0] * 24 + [1] * 3 + [2] * 3
    rows = "".join(f"{name} {split}\n" for name, split in zip(names, splits, strict=True))
    (folder / "list_eval_partition.txt").write_text(rows)
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {i % 7 + 1}\n" for i, name in enumerate(names)))
    values = "".join(f"{name} {'-1 ' if i % 2 else ' 1 '}{'-1' if i % 3 else ' 1'}\n" for i, name in enumerate(names))
    (folder / "list_attr_celeba.txt").write_text(f"30\nSmiling Male \n{values}")
    return folder


def equal(first: object, second: object) -> bool:
    """Whether two nested structures are the same to the bit."""
    import torch

    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict)
            and first.keys() == second.keys()
            and all(equal(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return first == second
