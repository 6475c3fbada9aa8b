"""Time of an FID: evaluate.py, compared with the commands of torch-fidelity and pytorch-fid.

    python benchmarks/evaluation.py [images=200] [rounds=2]

All run in turn on the same images, with the same random Inception weights. Cold runs extract features of both sets;
cached runs reuse the statistics of the real one. Ratios are of shortest times. Then the Fréchet distance of 2048
features, compared with scipy.linalg.sqrtm.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ganforge.metrics.features import frechet_distance

ROOT = Path(__file__).resolve().parent.parent


def options(**defaults: int) -> dict[str, int]:
    """Integer arguments of the form name=value, with defaults."""
    return defaults | {name: int(value) for name, _, value in (argument.partition("=") for argument in sys.argv[1:])}


def write_images(folder: Path, count: int, seed: int) -> Path:
    """Write synthetic images of 64 pixels: noise at several scales, mixed in proportions that depend on the seed."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for i in range(count):
        scales = [generator.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (2, 4, 8, 16, 32)]
        layers = [np.asarray(Image.fromarray(s).resize((64, 64), Image.Resampling.BICUBIC), float) for s in scales]
        weights = generator.dirichlet(np.linspace(1, 2 + seed, len(layers)))
        image = sum(weight * layer for weight, layer in zip(weights, layers, strict=True))
        Image.fromarray(np.asarray(image).round().astype(np.uint8)).save(folder / f"{i:05d}.png")
    return folder


def write_weights(folder: Path) -> Path:
    """Write random Inception weights, scaled to features of order one, in the format that all three programs read."""
    checkpoints = folder / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    path = checkpoints / "pt_inception-2015-12-05-6726825d.pth"  # where pytorch-fid looks
    torch.save({}, path)
    load, FeatureExtractorInceptionV3.load_state_dict = FeatureExtractorInceptionV3.load_state_dict, _skip
    torch.manual_seed(0)
    network = FeatureExtractorInceptionV3("random", ["2048"], str(path))
    FeatureExtractorInceptionV3.load_state_dict = load
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    nn.init.normal_(network.fc.weight, std=0.02)
    torch.save(network.state_dict(), path)
    return path


def _skip(*_: object) -> None: ...


def seconds(command: list[str], **environment: str) -> float:
    start = time.perf_counter()
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr}")
    return time.perf_counter() - start


def programs(folder: Path, count: int) -> dict[str, Callable[[], float]]:
    """The compared programs; each call runs one and returns its seconds."""
    weights = write_weights(folder / "torch")
    fake, real = (str(write_images(folder / name, count, i)) for i, name in enumerate(("fake", "real")))
    ours = [sys.executable, str(ROOT / "evaluate.py"), f"folder={fake}", f"against={real}", "metrics=fid"]
    ours += ["extractor=inception", f"extractor.weights={weights}", "trainer=cpu"]
    fidelity = [str(Path(sys.executable).with_name("fidelity")), "--fid", "--cpu", "--no-cache", "--silent"]
    fidelity += ["--input1", fake, "--input2", real, "--feature-extractor-weights-path", str(weights)]
    other = [sys.executable, "-m", "pytorch_fid", fake, real, "--device", "cpu"]

    def cold() -> float:
        with tempfile.TemporaryDirectory() as cache:
            return seconds([*ours, f"cache_dir={cache}"])

    return {
        "cold": cold,
        "cached": lambda: seconds([*ours, f"cache_dir={folder / 'cache'}"]),
        "torch_fidelity": lambda: seconds(fidelity),
        "pytorch_fid": lambda: seconds(other, TORCH_HOME=str(folder / "torch")),
    }


def frechet_vs_scipy(rounds: int) -> float:
    """scipy's time over ours; asserts that the distances agree."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(2048, 2048, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -3, 2048, dtype=torch.float64)
    first, second = (
        torch.cov(((torch.randn(count, 2048, generator=generator, dtype=torch.float64) @ mix) * scale).T)
        for count in (3000, 4000)
    )
    zero = torch.zeros(2048, dtype=torch.float64)

    def by_root(first: Tensor, second: Tensor) -> float:
        root = scipy.linalg.sqrtm((first @ second).numpy())
        return float(first.trace() + second.trace() - 2 * np.trace(root).real)

    times: dict[str, list[float]] = {"ours": [], "scipy": []}
    for _ in range(rounds):
        start = time.perf_counter()
        ours = frechet_distance(zero, first, zero, second)
        times["ours"].append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = by_root(first, second)
        times["scipy"].append(time.perf_counter() - start)
        assert abs(ours - theirs) <= 1e-6 * theirs, (ours, theirs)
    return min(times["scipy"]) / min(times["ours"])


def main() -> None:
    given = options(images=200, rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        compared = programs(Path(folder), given["images"])
        compared["cached"]()  # fills the cache
        times: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(given["rounds"]):
            for name, run in compared.items():
                times[name].append(run())
    shortest = {name: min(values) for name, values in times.items()}
    table = Table("program", "seconds", title=f"FID of {given['images']} against {given['images']} images")
    for name, value in shortest.items():
        table.add_row({"cold": "evaluate.py", "cached": "evaluate.py, cached"}.get(name, name), f"{value:.1f}")
    Console().print(table)
    for name in ("cold", "cached"):
        for other in ("torch_fidelity", "pytorch_fid"):
            print(f"{name}_vs_{other}: {shortest[other] / shortest[name]:.3f}")
    print(f"frechet_vs_scipy: {frechet_vs_scipy(given['rounds']):.3f}")


if __name__ == "__main__":
    main()
