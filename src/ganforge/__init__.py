"""ganforge: train, measure and compare generative adversarial networks."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ganforge.export.trained import TrainedGenerator

__version__ = "0.1.0"


def load_generator(path: "str | Path") -> "TrainedGenerator":
    """Load the generator of a run folder, or of an `.onnx`, `.pt2` or `.safetensors` file that `export.py` wrote.

        generator = ganforge.load_generator("logs/runs/cgan-mnist/<time>")
        images = generator(16, seed=0, labels=[3, 7])  # (16, C, H, W) in [-1, 1]

    Run folders, `.onnx` and `.safetensors` files cannot run code: weights are loaded as tensors, and configs may
    instantiate only known classes. A `.pt2` can, as torch unpickles parts of it and evaluates others: load only those
    that you trust. Raises UserError.
    """
    from ganforge.export import trained

    return trained.load_generator(path)
