"""Pairs of a good and a low-quality image: random crops for training, whole images for validation and test."""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ganforge.data.base import Batch, TensorData, to_unit_range
from ganforge.data.images import cache_folder, check_on_error, open_image, upright
from ganforge.data.packing import pack, refuse_bad
from ganforge.data.sources import open_source
from ganforge.degradations import Degradation, Noise
from ganforge.randomness import Stream, generator, rank_indices
from ganforge.runtime.errors import UserError

log = logging.getLogger(__name__)


class PhotoSet:
    """Images of varying sizes, (H, W, C) one after the other in `bytes`; `sizes` are their (H, W)."""

    def __init__(self, data: Tensor, shapes: Sequence[tuple[int, ...]]):
        self.bytes = data
        self.channels = shapes[0][2]
        self.sizes = torch.tensor(shapes)[:, :2]
        lengths = self.sizes.prod(1) * self.channels
        self.starts = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Tensor:
        """A whole image (C, H, W)."""
        height, width = self.sizes[index].tolist()
        start = int(self.starts[index])
        pixels = self.bytes[start : start + height * width * self.channels]
        return pixels.view(height, width, self.channels).permute(2, 0, 1)

    def ordered(self, order: Tensor) -> "PhotoSet":
        other = copy(self)
        other.sizes, other.starts = self.sizes[order], self.starts[order]
        return other

    def crops(self, rows: Tensor, corners: Tensor, side: int) -> Tensor:
        """Squares (N, C, side, side) of the images `rows`: one gather of their lines. `corners` (N, 2): top, left."""
        line = side * self.channels
        stride = self.sizes[rows, 1] * self.channels
        first = self.starts[rows] + corners[:, 0] * stride + corners[:, 1] * self.channels
        starts = first[:, None] + torch.arange(side) * stride[:, None]
        windows = self.bytes.as_strided((len(self.bytes) - line + 1, line), (1, 1))  # what begins at each byte
        return windows[starts.flatten()].view(len(rows), side, side, self.channels).permute(0, 3, 1, 2)


class WholeImages(Dataset):
    """A set of whole images: item i is (i, image (1, C, H, W) uint8, its ready partner or None)."""

    def __init__(self, name: str, high: PhotoSet, low: PhotoSet | None, scale: int):
        self.name = name
        self.high, self.low = high, low
        self.scale = scale

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor | None]:
        image = self.high[index]
        # sides that the scale does not divide are cut, as in published evaluations
        height, width = (side // self.scale * self.scale for side in image.shape[1:])
        return index, image[None, :, :height, :width], None if self.low is None else self.low[index][None]


class Pairs(TensorData):
    """Photographs below `root`, a folder or zip, with partners that `degradation` makes, or ready ones of `low_root`.

    Training takes random crops (N, channels, image_size, image_size), with `turn` in one of eight positions; `valid`
    and `test` are sets of whole images, one at a time: paths, or names under `root`. Where partners are ready, such a
    set is a pair of paths. Conditions are images in [-1, 1].
    """

    def __init__(
        self,
        root: str | None,
        image_size: int,
        degradation: Degradation | None = None,
        low_root: str | None = None,
        valid: Sequence[Any] = (),
        test: Sequence[Any] = (),
        channels: int = 3,
        turn: bool = True,
        cache_dir: str | None = None,
        on_error: str = "stop",
        **options: Any,
    ):
        super().__init__(**options)
        check_on_error(on_error)
        if bool(degradation) == bool(low_root):
            raise ValueError(
                "partners are made by degradation=bicubic, or ready in data.low_root with degradation=none"
            )
        if self.flip or self.num_classes is not None:
            raise ValueError("pairs have no classes, and are mirrored by data.turn: leave out data.flip")
        if degradation and degradation.needs_colours and channels == 1:
            raise UserError("data.channels=1: grey images have no colours to be taken: use data.channels=3")
        self.root = Path(root).expanduser() if root else None
        self.low_root = Path(low_root).expanduser() if low_root else None
        self.degradation = degradation or None
        self.scale = degradation.scale if degradation else 1
        self.image_size = image_size
        self.sets = {"valid": valid, "test": test}
        self.channels = channels
        self.turn = turn
        self.cache_dir = cache_dir
        self.on_error = on_error
        self.low: PhotoSet | None = None
        self._whole: dict[str, list[WholeImages]] = {}
        self.trains = True
        """Whether crops of photographs are needed; otherwise the whole images of `test`, or else `valid`, are all."""
        self._check_scale()

    def prepare_data(self) -> None:
        self.setup()
        for split in self.sets if self.trains else [self.evaluated_split]:
            self.whole_images(split)

    def setup(self, stage: str | None = None) -> None:
        if self.real is not None or not self.trains:
            return
        if self.root is None:
            raise UserError("data.root has to be given: a folder or zip of photographs to train on")
        inside = [path for sets in self.sets.values() for entry in sets for path in self._paths(entry)]
        high, self.low = self._pairs(self.root, self.low_root, inside, self.image_size)
        self.real = high  # type: ignore[assignment]
        if self.low is not None:
            self.scale = scale_of(high, self.low, None, self.root)
            self._check_scale()
        count = len(self.real)  # type: ignore[arg-type]
        if count < self.batch_size:
            raise UserError(f"data.batch_size={self.batch_size} is more than the {count} images there are: lower it")

    @property
    def evaluated_split(self) -> str:
        return "valid" if self.trains or not self.sets["test"] else "test"

    def whole_images(self, split: str) -> list[WholeImages]:
        """The sets of a split: valid or test."""
        if split in self._whole:
            return self._whole[split]
        found = []
        for entry in self.sets[split]:
            high, *low = self._paths(entry)
            images, partners = self._pairs(high, low[0] if low else None, [], 1)
            expected = self.scale if self.trains or self.degradation else None
            scale = self.scale if partners is None else scale_of(images, partners, expected, high)
            found.append(WholeImages(high.stem, images, partners, scale))
        self._whole[split] = found
        return found

    def _check_scale(self) -> None:
        if self.image_size % self.scale:
            raise UserError(f"data.image_size={self.image_size}: must be a multiple of the scale, {self.scale}")

    def _paths(self, entry: Any) -> list[Path]:
        """A set as paths: of the images, and of ready partners."""
        entries = entry if isinstance(entry, list | tuple) else [entry]
        if len(entries) != (1 if self.low_root is None else 2):
            raise UserError(f"data.test or data.valid: {entry} must be a path, or with data.low_root two: [high,low]")
        return [self._path(str(name)) for name in entries]

    def _path(self, name: str) -> Path:
        folder = self.root or Path()
        folder = folder if folder.is_dir() else folder.parent
        candidates = [Path(name).expanduser(), folder / name, folder / f"{name}.zip"]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            raise UserError(f"data.test or data.valid: {name} is no path, and no folder or zip in {folder}")
        return path

    def _pairs(
        self, high: Path, low: Path | None, without: Sequence[Path], smallest: int
    ) -> tuple[PhotoSet, PhotoSet | None]:
        names, photographs = self._photographs(high, without, smallest)
        if low is None:
            return photographs, None
        low_names, partners = self._photographs(low, (), 1)
        position = partner_positions(names, low_names)
        lonely = [name for name, i in zip(names, position, strict=True) if i is None]
        if lonely and (self.on_error == "stop" or len(lonely) == len(names)):
            raise UserError(f"{low} has no partner for {len(lonely)} images of {high}, such as {lonely[0]}")
        if lonely:
            log.warning("%d images of %s have no partner and are left out.", len(lonely), high)
        kept = torch.tensor([i for i, partner in enumerate(position) if partner is not None])
        return photographs.ordered(kept), partners.ordered(torch.tensor([i for i in position if i is not None]))

    def _photographs(self, path: Path, without: Sequence[Path], smallest: int) -> tuple[list[str], PhotoSet]:
        source = open_source(path)
        inside = path.resolve()
        outside = [o.resolve().relative_to(inside).as_posix() for o in without if o.resolve().is_relative_to(inside)]
        names = [name for name in source.images() if not name.startswith(tuple(f"{other}/" for other in outside))]
        if not names:
            raise UserError(f"{path} holds no images besides those of data.valid and data.test")

        def decode(name: str) -> np.ndarray:
            with source.open(name) as file, open_image(file) as image:
                pixels = np.asarray(upright(image, self.channels))
            return pixels.reshape(*pixels.shape[:2], self.channels)

        def measure(name: str) -> int:
            with source.open(name) as file, open_image(file) as image:  # which reads no more than its header
                return image.width * image.height * self.channels

        title = f"photographs-{source.fingerprint(names, channels=self.channels)}"
        packed = pack(names, decode, cache_folder(path, self.cache_dir), title, measure=measure)
        readable = packed.good(len(names)).tolist()
        small = {
            i: f"{width} x {height} pixels are less than data.image_size={smallest}"
            for i, (height, width, _) in zip(readable, packed.shapes, strict=True)
            if min(height, width) < smallest
        }
        refuse_bad(packed._replace(bad=packed.bad | small), names, self.on_error, path)
        if path in (self.root, self.low_root) and title not in self.identity:
            self.identity = f"{self.identity} {title}".strip()
        kept = [position for position, i in enumerate(readable) if i not in small]
        photographs = PhotoSet(packed.bytes, packed.shapes).ordered(torch.tensor(kept))
        return [names[readable[position]] for position in kept], photographs

    # Batches -----------------------------------------------------------------------------------------------------

    def take(self, rows: Tensor, step: int) -> Batch:
        photographs: Any = self.real
        draw = self.draws(Stream.PLACES, step)
        place = draw(lambda count, generator: torch.rand(count, 2, generator=generator), len(rows))
        side = self.image_size // self.scale
        # places are multiples of the scale, so that partners are cut where the crops are
        corners = (place * (photographs.sizes[rows] // self.scale - side + 1)).long()
        crops = photographs.crops(rows, corners * self.scale, self.image_size)
        return Batch(crops, None if self.low is None else self.low.crops(rows, corners, side))

    def val_dataloader(self) -> list[DataLoader]:  # type: ignore[override]
        """One loader a set; each rank takes its share of the images."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.evaluated = self.whole_images(self.evaluated_split)
        shares = []
        for images in self.evaluated:
            rows = [i % len(images) for i in rank_indices(len(images), rank, world_size)]
            shares.append(torch.utils.data.Subset(images, rows))
        return [DataLoader(share, batch_size=None) for share in shares]

    def examples(self, count: int) -> Batch:
        """Crops of the middle to be looked at, of images for validation where they are large enough, else of others."""
        if self.overfit_batches:  # the very pairs that are to be learnt by heart
            crops = self.train_dataloader().batch(0)
            return Batch(*(part[:count].float() for part in self.on_after_batch_transfer(crops, 0)))
        sets: list[Any] = [images.high for images in self.whole_images("valid")] if self.low is None else []
        photographs: Any = next((found for found in sets if found.sizes.min() >= self.image_size), self.real)
        rows = torch.arange(min(count, len(photographs)))
        corners = (photographs.sizes[rows] - self.image_size) // 2 // self.scale
        crops = photographs.crops(rows, corners * self.scale, self.image_size)
        low = None if self.low is None else self.low.crops(rows, corners, self.image_size // self.scale)
        return self._finish(crops, low, self._noise(), torch.float32)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        assert self.trainer is not None
        dtype: Any = self.trainer.lightning_module.dtype
        if not isinstance(batch, Batch):
            index, real, condition = batch
            return self._finish(real, condition, self._noise(dataloader_idx, index), dtype)
        draw = self.draws(Stream.AUGMENT, self.trainer.global_step)
        real, condition = batch
        if self.turn:
            position = draw(lambda count, generator: torch.rand(count, 3, generator=generator) < 0.5, len(real))
            real, condition = turned(real, position), None if condition is None else turned(condition, position)
        return self._finish(
            real,
            condition,
            lambda shape: draw(lambda count, generator: torch.randn(count, *shape[1:], generator=generator), shape[0]),
            dtype,
        )

    def _noise(self, *place: int) -> Noise:
        """The noise of an image that is not of a training batch."""
        random = generator(self.seed, Stream.SAMPLES, *place)
        return lambda shape: torch.randn(tuple(shape), generator=random)

    def _finish(self, real: Tensor, condition: Tensor | None, noise: Noise, dtype: torch.dtype) -> Batch:
        real = to_unit_range(real)
        if self.degradation is not None:
            condition = self.degradation(real, noise)
        elif condition is not None:
            condition = to_unit_range(condition)
        return Batch(real.to(dtype), condition.to(dtype))  # type: ignore[union-attr]


def turned(squares: Tensor, position: Tensor) -> Tensor:
    """Squares (N, C, S, S) in one of eight positions each: `position` (N, 3): whether to mirror, flip, transpose."""
    mirror, flip, transpose = position.to(squares.device).T[..., None, None, None]
    squares = torch.where(mirror, squares.flip(-1), squares)
    squares = torch.where(flip, squares.flip(-2), squares)
    return torch.where(transpose, squares.mT, squares)


def scale_of(high: PhotoSet, low: PhotoSet, expected: int | None, path: Path) -> int:
    """How many times images are as large as their partners. Raises UserError where some are not, or not as expected."""
    scale = expected or max(1, int(high.sizes[0, 0] // low.sizes[0, 0]))
    odd = (low.sizes * scale != high.sizes).any(1).sum().item()
    if odd:
        raise UserError(f"{odd} images of {path} are not {scale} times as large as their partners")
    return scale


def partner_positions(names: Sequence[str], low_names: Sequence[str]) -> list[int | None]:
    """Where the partner of each image is: the same name, or with the scale at its end as in DIV2K (0001x4.png)."""
    stems = [name.rpartition(".")[0] for name in names]
    low_stems = [name.rpartition(".")[0] for name in low_names]
    if not set(stems) & set(low_stems):
        low_stems = [re.sub(r"x\d+$", "", stem) for stem in low_stems]
    for found in (stems, low_stems):
        stem, count = Counter(found).most_common(1)[0]
        if count > 1:
            raise UserError(f"data.low_root: several images are called {stem}, so partners cannot be told")
    position = {stem: i for i, stem in enumerate(low_stems)}
    return [position.get(stem) for stem in stems]
