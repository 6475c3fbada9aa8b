"""Pairs of a high- and a low-quality image: random crops for training, whole images for validation and test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ganforge.data.base import Batch, TensorData
from ganforge.data.counterparts import match_images, scale_between
from ganforge.data.images import check_on_error
from ganforge.data.ragged import RaggedImages, load_images
from ganforge.degradations import Degradation, Noise
from ganforge.randomness import Stream, generator, rank_indices
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_unit_range


class WholeImages(Dataset):
    """A named set of whole images. Item i is (i, image (1, C, H, W) uint8, stored counterpart or None)."""

    def __init__(self, name: str, high: RaggedImages, low: RaggedImages | None, scale: int):
        self.name = name
        self.high, self.low = high, low
        self.scale = scale

    def __len__(self) -> int:
        return len(self.high)

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor | None]:
        image = self.high[index]
        # cropped to multiples of the scale, as in published evaluations
        height, width = (side // self.scale * self.scale for side in image.shape[1:])
        return index, image[None, :, :height, :width], None if self.low is None else self.low[index][None]


class Pairs(TensorData):
    """Photographs in a folder or zip (`root`) with counterparts that `degradation` makes, or stored in `low_root`.

    Training uses random crops (N, channels, image_size, image_size); with `turn` they are flipped and rotated at
    random. `valid` and `test` are lists of sets of whole images, each set a path or a name below `root`; with
    `low_root` it is a pair of them. Conditions are images in [-1, 1].
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
                "low-quality images come from degradation=bicubic, or from data.low_root with degradation=none"
            )
        if self.flip or self.num_classes is not None:
            raise ValueError(
                "pairs have no classes, and data.turn mirrors them. Leave out data.num_classes and data.flip"
            )
        if degradation and degradation.needs_colours and channels == 1:
            raise UserError("data.channels=1: grey images have no colours to remove. Use data.channels=3")
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
        self.low: RaggedImages | None = None
        self._whole: dict[str, list[WholeImages]] = {}
        self.for_training = True
        """False skips loading the training images, and evaluates `test` if it is given, else `valid`."""
        self._check_scale()

    def prepare_data(self) -> None:
        self.setup()
        for split in self.sets if self.for_training else [self.eval_split]:
            self.whole_images(split)

    def setup(self, stage: str | None = None) -> None:
        if self.real is not None or not self.for_training:
            return
        if self.root is None:
            raise UserError("data.root is missing: give a folder or zip of photographs to train on")
        held_out = [path for sets in self.sets.values() for entry in sets for path in self._paths(entry)]
        high, self.low = self._load_pair(self.root, self.low_root, held_out, self.image_size)
        self.real = high  # type: ignore[assignment]
        if self.low is not None:
            self.scale = scale_between(high, self.low, None, self.root)
            self._check_scale()
        self.check_batch_size(len(high))

    @property
    def eval_split(self) -> str:
        return "valid" if self.for_training or not self.sets["test"] else "test"

    def whole_images(self, split: str) -> list[WholeImages]:
        """The sets of a split, "valid" or "test"; loaded once."""
        if split not in self._whole:
            self._whole[split] = [self._load_whole(entry) for entry in self.sets[split]]
        return self._whole[split]

    def _load_whole(self, entry: Any) -> WholeImages:
        path, *low_path = self._paths(entry)
        high, low = self._load_pair(path, low_path[0] if low_path else None, [], 1)
        expected = self.scale if self.for_training or self.degradation else None
        return WholeImages(
            path.stem, high, low, self.scale if low is None else scale_between(high, low, expected, path)
        )

    def _check_scale(self) -> None:
        if self.image_size % self.scale:
            raise UserError(f"data.image_size={self.image_size}: must be a multiple of the scale, {self.scale}")

    def _paths(self, entry: Any) -> list[Path]:
        """The path of a set, followed by that of its stored counterparts."""
        entries = entry if isinstance(entry, list | tuple) else [entry]
        if len(entries) != (1 if self.low_root is None else 2):
            raise UserError(
                f"data.valid/data.test entry {entry}: must be a path, or with data.low_root two: [high,low]"
            )
        return [self._path(str(name)) for name in entries]

    def _path(self, name: str) -> Path:
        folder = self.root or Path()
        folder = folder if folder.is_dir() else folder.parent
        candidates = [Path(name).expanduser(), folder / name, folder / f"{name}.zip"]
        path = next((path for path in candidates if path.exists()), None)
        if path is None:
            raise UserError(f"data.valid/data.test entry {name}: neither a path nor a folder or zip in {folder}")
        return path

    def _load_pair(
        self, high_path: Path, low_path: Path | None, exclude: Sequence[Path], min_side: int
    ) -> tuple[RaggedImages, RaggedImages | None]:
        options = (self.channels, self.cache_dir, self.on_error)
        high = load_images(high_path, exclude, min_side, *options)
        low = None if low_path is None else load_images(low_path, (), 1, *options)
        for path, loaded in ((high_path, high), (low_path, low)):
            if loaded and path in (self.root, self.low_root) and loaded.packed_name not in self.identity:
                self.identity = f"{self.identity} {loaded.packed_name}".strip()
        if low is None or low_path is None:
            return high.images, None
        return match_images(high, low, high_path, low_path, self.on_error)

    # Batches -----------------------------------------------------------------------------------------------------

    def take(self, rows: Tensor, step: int) -> Batch:
        images: Any = self.real
        draw = self.draws(Stream.CROPS, step)
        position = draw(lambda count, generator: torch.rand(count, 2, generator=generator), len(rows))
        side = self.image_size // self.scale
        # corners are multiples of the scale, so that the crops of the counterparts align
        corners = (position * (images.sizes[rows] // self.scale - side + 1)).long()
        crops = images.crops(rows, corners * self.scale, self.image_size)
        return Batch(crops, None if self.low is None else self.low.crops(rows, corners, side))

    def val_dataloader(self) -> list[DataLoader]:  # type: ignore[override]
        """One loader per set, with this rank's images."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.eval_sets = self.whole_images(self.eval_split)
        loaders = []
        for images in self.eval_sets:
            rows = [i % len(images) for i in rank_indices(len(images), rank, world_size)]
            loaders.append(DataLoader(Subset(images, rows), batch_size=None))
        return loaders

    def examples(self, count: int) -> Batch:
        """At most `count` central crops for sample grids, of validation images if they are large enough."""
        if self.overfit_batches:  # the pairs of the current step
            assert self.trainer is not None
            crops = self.train_dataloader().batch(self.trainer.global_step)
            return Batch(*(part[:count].float() for part in self.on_after_batch_transfer(crops, 0)))
        sets: list[Any] = [images.high for images in self.whole_images("valid")] if self.low is None else []
        images: Any = next((images for images in sets if images.sizes.min() >= self.image_size), self.real)
        rows = torch.arange(min(count, len(images)))
        corners = (images.sizes[rows] - self.image_size) // 2 // self.scale
        crops = images.crops(rows, corners * self.scale, self.image_size)
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
            choices = draw(lambda count, generator: torch.rand(count, 3, generator=generator) < 0.5, len(real))
            real = flip_and_rotate(real, choices)
            condition = None if condition is None else flip_and_rotate(condition, choices)
        return self._finish(
            real,
            condition,
            lambda shape: draw(lambda count, generator: torch.randn(count, *shape[1:], generator=generator), shape[0]),
            dtype,
        )

    def _noise(self, *key: int) -> Noise:
        """The noise of an image outside training, fixed by its key."""
        random = generator(self.seed, Stream.SAMPLES, *key)
        return lambda shape: torch.randn(tuple(shape), generator=random)

    def _finish(self, real: Tensor, condition: Tensor | None, noise: Noise, dtype: torch.dtype) -> Batch:
        """Scale a batch to [-1, 1], and degrade it unless it has stored counterparts."""
        real = to_unit_range(real)
        if self.degradation is not None:
            condition = self.degradation(real, noise)
        elif condition is not None:
            condition = to_unit_range(condition)
        return Batch(real.to(dtype), condition.to(dtype))  # type: ignore[union-attr]


def flip_and_rotate(squares: Tensor, choices: Tensor) -> Tensor:
    """Squares (N, C, S, S), each in one of eight orientations; `choices` (N, 3): mirror, flip, transpose."""
    mirror, flip, transpose = choices.to(squares.device).T[..., None, None, None]
    squares = torch.where(mirror, squares.flip(-1), squares)
    squares = torch.where(flip, squares.flip(-2), squares)
    return torch.where(transpose, squares.mT, squares)
