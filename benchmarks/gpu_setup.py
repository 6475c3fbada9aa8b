"""Models, synthetic data and training runs that the parts of benchmarks/gpu.py share."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import Callback
from omegaconf import DictConfig
from PIL import Image

from ganforge.cli.resolvers import register_resolvers
from ganforge.data.mnist_sources import FILES, _idx
from ganforge.experiment.build import Experiment, build

ROOT = Path(__file__).resolve().parent.parent
NEVER = 10**6

MLP = ["model.generator.hidden=[16]", "model.discriminator.hidden=[16]"]
WIDTHS = ["model.generator.width=4", "model.discriminator.width=4"]
HIDDEN = ["model.generator.hidden=8", "model.discriminator.hidden=8"]
PAIRS = ["data=pairs", "data.image_size=28"]
SRGAN = ["model=srgan", *WIDTHS, "model.generator.blocks=1", "content=pixels", *PAIRS]
PLAYERS = ("generator", "discriminator")
BETAS = [f"model.{player}_optimizer.betas=[0.0,0.9]" for player in PLAYERS]
R3GAN = [f"model.{player}.{size}" for player in PLAYERS for size in ("width=16", "blocks=1", "group_size=8")]
NO_NORM = "model.discriminator.normalization=none"

MODELS: dict[str, list[str]] = {
    "gan": ["model=gan", *MLP],
    "dcgan": ["model=dcgan", *WIDTHS],
    "dcgan_5x5": ["model=dcgan_5x5", *WIDTHS],
    "cgan": ["model=cgan", *HIDDEN],
    "cgan_conv": ["model=cgan_conv", *WIDTHS],
    "cgan_projection": ["model=cgan_projection", *WIDTHS],
    "lapgan": ["model=lapgan", *WIDTHS, *HIDDEN],
    "lapgan_conditional": ["model=lapgan_conditional", *WIDTHS, *HIDDEN],
    "srgan_pretrain": [*SRGAN, "model.stage=pretrain"],
    "srgan_adversarial": [*SRGAN, "model.stage=adversarial"],
    "pix2pix": ["model=pix2pix", *WIDTHS, "model.generator.depth=2", "model.discriminator.layers=1", *PAIRS],
    "wgan_gp": [
        *("model=dcgan", "loss=wasserstein", "regularizer=gradient_penalty", "model.discriminator_steps=5"),
        *(NO_NORM, *BETAS, *WIDTHS),
    ],
    "dcgan_r1": ["model=dcgan", "regularizer=r1", NO_NORM, *WIDTHS],
    "dcgan_ada": ["model=dcgan", "augment=ada", *WIDTHS],
    "compact_conditional": ["model=compact_conditional", *WIDTHS],
    "sngan_conditional": ["model=sngan_conditional", *WIDTHS],
    "r3gan_conditional": ["model=r3gan_conditional", *R3GAN],
    "fastgan": ["model=fastgan", *WIDTHS],
    "stylegan2": ["model=stylegan2", "model.latent.size=16", "model.generator.w_size=16", *WIDTHS],
}
"""One model of each network, game and kind of condition, with tiny networks."""

DROPOUT = {
    "dcgan_5x5": ["model.discriminator.dropout=0"],
    "pix2pix": ["model.generator.dropout=0"],
}
"""Overrides that turn off dropout, whose random numbers differ between devices."""


class Setting(NamedTuple):
    """The device, folders and data of a measurement."""

    device: str
    folder: Path
    """For temporary files."""
    output: Path
    roots: "Roots"
    is_small: bool
    """Whether to check only that everything runs, with tiny sizes."""

    @property
    def is_gpu(self) -> bool:
        return self.device != "cpu"

    def finish(self) -> None:
        """Wait until the device has finished."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def new_folder(self, name: str) -> Path:
        """Create the folder of a run; an existing one belongs to a case that was aborted."""
        count = len(list(self.folder.glob(f"{name}-*")))
        path = self.folder / f"{name}-{count}"
        path.mkdir(parents=True)
        return path


class Roots:
    """Folders with data, synthetic unless given."""

    def __init__(self, folder: Path, mnist: str | None = None, faces: str | None = None):
        self.folder = folder
        self.given = {"mnist": mnist, "faces": faces}

    @cached_property
    def mnist(self) -> Path:
        return Path(self.given["mnist"] or _digits(self.folder / "digits", 2048))

    @cached_property
    def faces(self) -> Path:
        return Path(self.given["faces"] or _images(self.folder / "faces", 512, 64))

    @cached_property
    def photographs(self) -> Path:
        return _images(self.folder / "photographs", 64, 160)

    def overrides_for(self, overrides: Sequence[str]) -> list[str]:
        """The overrides that locate the data of an experiment and keep caches out of given folders."""
        if "data=pairs" in overrides:
            return [f"data.root={self.photographs}"]
        if "data=celeba" in overrides or "data=folder" in overrides:
            return [f"data.root={self.faces}", f"data.cache_dir={self.folder / 'packed'}"]
        return [f"data.root={self.mnist}"]

    @property
    def face_data(self) -> str:
        return "data=celeba" if self.given["faces"] else "data=folder"


def _digits(folder: Path, count: int) -> Path:
    """Noise in MNIST's format, with all ten labels."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for name in FILES:
        values = random.integers(0, 256, (count, 28, 28)) if "images" in name else np.arange(count) % 10
        (folder / name).write_bytes(_idx(values.astype(np.uint8)))
    return folder


def _images(folder: Path, count: int, size: int) -> Path:
    """Write smooth random images."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")
    return folder


def configured(setting: Setting, overrides: Sequence[str], steps: int) -> DictConfig:
    """The config of an experiment that only trains: no validations, checkpoints or samples."""
    register_resolvers()
    common = [f"trainer.accelerator={'gpu' if setting.is_gpu else 'cpu'}", f"trainer.max_steps={steps}"]
    common += ["evaluate_every=null", f"checkpoint_every={NEVER}", f"sample_every={NEVER}"]
    common += ["trainer.enable_progress_bar=false", *setting.roots.overrides_for(overrides)]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", [*common, *overrides])


def ready(
    setting: Setting, overrides: Sequence[str], steps: int, folder: Path, is_new: bool = True, logs: bool = False
) -> Experiment:
    """An experiment with its data loaded; without a logger unless it `logs`."""
    config = configured(setting, overrides, steps)
    if not logs:
        config.logger = {}
    experiment = build(config, folder, is_new)
    experiment.data.prepare_data()
    experiment.data.setup()
    return experiment


def fit(experiment: Experiment, callbacks: Sequence[Callback] = (), checkpoint: Path | None = None) -> Any:
    """Train with additional callbacks and return the model."""
    experiment.trainer.callbacks.extend(callbacks)  # type: ignore[attr-defined]
    experiment.trainer.fit(experiment.model, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
    return experiment.model


@contextmanager
def precision(matmul: str, convolutions: bool) -> Iterator[None]:
    """Set the precision of float32: `matmul` as in torch.set_float32_matmul_precision, and TF32 in convolutions, which
    is torch's default."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def redirect_caches(folder: Path) -> None:
    """Put the caches of all libraries below a folder instead of the home directory."""
    names = ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR")
    for name in names:
        os.environ[name] = str(folder / "cache" / name.lower())
