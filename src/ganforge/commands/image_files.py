"""Images measured as they are, without a model: evaluate.py's `folder=` against `against=`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ganforge.data.base import Batch, TensorData
from ganforge.data.images import open_image, to_8bit
from ganforge.data.sources import open_source
from ganforge.randomness import chunk_rows
from ganforge.runtime.devices import cpu_count
from ganforge.runtime.errors import UserError


class ImageFiles:
    """The images of a folder or zip, at their own sizes. `option` names the folder in messages."""

    def __init__(self, path: str, option: str):
        self.source = open_source(Path(path).expanduser(), option)
        self.names = self.source.images()
        self.pool = ThreadPoolExecutor(cpu_count())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor) -> Tensor | list[Tensor]:
        """RGB images uint8 (N, 3, H, W), or a list of (3, H, W) if their sizes differ."""
        images = list(self.pool.map(self._decode, [self.names[i] for i in rows.tolist()]))
        return torch.stack(images) if len({image.shape for image in images}) == 1 else images

    def _decode(self, name: str) -> Tensor:
        try:
            with self.source.open(name) as file, open_image(file) as image:
                return torch.from_numpy(np.array(to_8bit(image, 3))).permute(2, 0, 1)
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            raise UserError(f"{self.source.path / name} cannot be read: {error}") from error


class RealFiles(TensorData):
    """Image files as the reference set."""

    def __init__(self, files: ImageFiles, num_samples: int):
        super().__init__(batch_size=1, shape=(3, 0, 0), num_samples=num_samples)
        self.files = files

    def setup(self, stage: str | None = None) -> None: ...

    def samples(self, split: str) -> tuple[ImageFiles, None]:
        return self.files, None

    def fingerprint(self, split: str) -> str:
        return self.files.source.fingerprint(self.files.names)


class FakeFiles(LightningModule):
    """Image files in place of generated samples."""

    def __init__(self, files: ImageFiles):
        super().__init__()
        self.files = files

    def validation_step(self, chunk: int, batch_idx: int) -> Batch:  # type: ignore[override]
        return Batch(self.files[chunk_rows(chunk, len(self.files))])  # type: ignore[arg-type]
