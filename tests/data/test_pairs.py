"""Pairs: crops and their partners, whole images, and the degradations."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import composed, save_picture
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch.nn.functional import interpolate

from ganforge.data.base import Batch
from ganforge.data.counterparts import match_names
from ganforge.data.pairs import Pairs, flip_and_rotate
from ganforge.data.ragged import RaggedImages
from ganforge.degradations import Bicubic, BlurBicubic, Degradation, GaussianNoise, Grayscale
from ganforge.experiment.build import build
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8, to_unit_range


class Recording(LightningModule):
    """Keeps the batches it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.batches: list[Batch] = []
        self.validated: list[tuple[int, Batch]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.batches.append(batch)
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        progress.increment_ready()
        progress.increment_completed()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.validated.append((dataloader_idx, batch))

    def configure_optimizers(self) -> None:
        return None


def recorded(folder: Path, data: Pairs, steps: int = 2) -> Recording:
    module = Recording()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0 if data.sets["valid"] else 0,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return module


def pairs(root: Path, degradation: Degradation | None = None, **options: Any) -> Pairs:
    defaults: dict[str, Any] = {"image_size": 24, "shape": (3, 24, 24), "batch_size": 8}
    return Pairs(root=str(root), degradation=degradation, **{**defaults, **options})


def test_crops_are_what_slicing_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(256, (h, w, 3), generator=generator, dtype=torch.uint8) for h, w in ((9, 7), (5, 8), (6, 6))
    ]
    photographs = RaggedImages(torch.cat([image.flatten() for image in images]), [tuple(i.shape) for i in images])
    rows, corners = torch.tensor([2, 0, 1, 1]), torch.tensor([[1, 1], [4, 2], [0, 3], [0, 0]])
    crops = photographs.crops(rows, corners, 5)
    for crop, row, (y, x) in zip(crops, rows, corners, strict=True):
        assert torch.equal(crop, images[row][y : y + 5, x : x + 5].permute(2, 0, 1))
    assert torch.equal(photographs[1], images[1].permute(2, 0, 1))


def test_partners_belong_to_their_crops(pictures: Path, tmp_path: Path) -> None:
    degradation = Bicubic(2)
    batches = recorded(tmp_path / "run", pairs(pictures, degradation)).batches
    assert [batch.real.shape for batch in batches] == [(8, 3, 24, 24)] * 2
    assert not torch.equal(batches[0].real, batches[1].real)
    for batch in batches:
        assert batch.condition is not None
        assert batch.condition.shape == (8, 3, 12, 12)
        assert torch.equal(batch.condition, degradation(batch.real, lambda shape: torch.zeros(*shape)))
        assert -1 <= batch.real.min() < batch.real.max() <= 1
    again = recorded(tmp_path / "again", pairs(pictures, degradation)).batches
    assert torch.equal(again[1].real, batches[1].real), "crops are a function of the step"


def test_ranks_share_out_the_crops(pictures: Path) -> None:
    data = pairs(pictures, GaussianNoise(25), batch_size=4)
    data.setup()

    def raw(rank: int, world_size: int) -> list[Batch]:
        model = SimpleNamespace(discriminator_steps=2)
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            lightning_module=model, global_rank=rank, world_size=world_size, global_step=0
        )
        return data.train_dataloader().batch(1).split(2)

    whole, *ranks = raw(0, 1), raw(0, 2), raw(1, 2)
    for part in range(2):
        assert torch.equal(torch.cat([rank[part].real for rank in ranks]), whole[part].real)


def test_crops_reach_every_border(tmp_path: Path) -> None:
    Image.fromarray(np.arange(32 * 32, dtype=np.uint32).view(np.uint8).reshape(32, 32, 4)[..., :3].copy()).save(
        tmp_path / "numbered.png"
    )
    root = tmp_path / "one"
    root.mkdir()
    (tmp_path / "numbered.png").rename(root / "numbered.png")
    module = recorded(tmp_path / "run", pairs(root, Bicubic(4), batch_size=1, turn=False), steps=60)
    corners = [to_uint8(batch.real[0, :2, 0, 0]).tolist() for batch in module.batches]
    places = {divmod(low + 256 * high, 32) for low, high in corners}
    assert {y for y, _ in places} == {0, 4, 8}
    assert {x for _, x in places} == {0, 4, 8}


def test_eight_positions() -> None:
    square = torch.arange(9.0).view(1, 1, 3, 3)
    positions = torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    results = flip_and_rotate(square.expand(8, 1, 3, 3), positions)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 8
    quarter = torch.rot90(square[0], 1, (-2, -1))
    assert any(torch.equal(result, quarter) for result in results)


def test_whole_images_for_validation(pictures: Path, tmp_path: Path) -> None:
    save_picture(pictures / "Set1" / "odd.png", 99, (33, 47))
    save_picture(tmp_path / "Set2" / "tiny.png", 98, (9, 9))
    data = pairs(pictures, GaussianNoise(25), valid=["Set1", str(tmp_path / "Set2")])
    module = recorded(tmp_path / "run", data)
    assert len(data.real) == 24, "a test set is no training data"  # type: ignore[arg-type]
    roundabout = pairs(pictures, GaussianNoise(25), valid=[str(pictures / "a" / ".." / "Set1")])
    roundabout.setup()
    assert len(roundabout.real) == 24  # type: ignore[arg-type]
    assert [i for i, _ in module.validated] == [0, 1]
    shapes = [tuple(batch.real.shape) for _, batch in module.validated]
    assert shapes == [(1, 3, 47, 33), (1, 3, 9, 9)]
    again = recorded(tmp_path / "again", pairs(pictures, GaussianNoise(25), valid=["Set1", str(tmp_path / "Set2")]))
    for (_, first), (_, second) in zip(module.validated, again.validated, strict=True):
        assert torch.equal(first.condition, second.condition)  # type: ignore[arg-type]
    (images,) = pairs(pictures, Bicubic(4), test=["Set1"]).whole_images("test")
    assert images[0][1].shape == (1, 3, 44, 32), "cut to multiples of the scale"
    with pytest.raises(UserError, match="Set3: neither a path"):
        pairs(pictures, Bicubic(4), test=["Set3"]).whole_images("test")


def test_validations_need_whole_images_and_a_model_for_them(pictures: Path, tmp_path: Path) -> None:
    options = ["data=pairs", f"data.root={pictures}", "data.image_size=28", "evaluate_every=1"]
    assert build(composed(*options), tmp_path).trainer.limit_val_batches == 0
    with pytest.raises(UserError, match=r"is not an image-to-image model"):
        build(composed(*options, "data.valid=[a]"), tmp_path)


def test_ready_pairs(tmp_path: Path) -> None:
    for i in range(8):
        save_picture(tmp_path / "high" / f"{i:04d}.png", i, (48, 60))
        image = Image.open(tmp_path / "high" / f"{i:04d}.png")
        (tmp_path / "low").mkdir(exist_ok=True)
        image.reduce(2).save(tmp_path / "low" / f"{i:04d}x2.png")
    data = pairs(tmp_path / "high", low_root=str(tmp_path / "low"))
    for batch in recorded(tmp_path / "run", data).batches:
        assert batch.condition is not None
        assert batch.condition.shape == (8, 3, 12, 12)
        reduced = torch.nn.functional.avg_pool2d(batch.real, 2)
        assert (reduced - batch.condition).abs().max() < 2 / 127.5
    (tmp_path / "low" / "0003x2.png").unlink()
    with pytest.raises(UserError, match=r"no counterpart for 1 images .* such as 0003\.png"):
        pairs(tmp_path / "high", low_root=str(tmp_path / "low")).setup()
    rest = pairs(tmp_path / "high", low_root=str(tmp_path / "low"), on_error="skip", batch_size=7)
    rest.setup()
    assert len(rest.real) == len(rest.low) == 7  # type: ignore[arg-type]
    same = [str(tmp_path / "high"), str(tmp_path / "high")]
    with pytest.raises(UserError, match="not 2 times as large"):
        pairs(
            tmp_path / "high", low_root=str(tmp_path / "low"), on_error="skip", batch_size=7, valid=[same]
        ).prepare_data()
    with pytest.raises(ValueError, match=r"degradation=none"):
        pairs(tmp_path / "high", Bicubic(2), low_root=str(tmp_path / "low"))


def test_nothing_left_for_training(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images other than those of data\.valid"):
        pairs(pictures, Bicubic(2), valid=["a", "b", "c"]).setup()
    save_picture(tmp_path / "low" / "other.png", 0)
    with pytest.raises(UserError, match="no counterpart for 24 images"):
        pairs(pictures, low_root=str(tmp_path / "low"), on_error="skip").setup()


def test_partners_are_told_by_their_names() -> None:
    boxes = [f"box{i}.png" for i in range(3)]
    assert match_names(boxes, boxes[::-1]) == [2, 1, 0]
    assert match_names(["0001.png", "0002.png"], ["0002x4.png", "0001x4.png"]) == [1, 0]
    assert match_names(["a.png", "b.png"], ["b.png"]) == [None, 0]
    with pytest.raises(UserError, match="2 images are called a"):
        match_names(["a.png", "a.jpg"], ["a.png"])
    with pytest.raises(UserError, match="2 images are called bo"):
        match_names(["1.png"], ["box1.png", "box2.png"])


def test_photographs_are_decoded_once_for_crops_of_any_size(pictures: Path) -> None:
    for size in (24, 32):
        data = pairs(pictures, Bicubic(4), image_size=size, shape=(3, size, size), on_error="skip")
        data.setup()
        assert data.real.sizes.min() >= size
    assert len(list(pictures.with_name("pictures.packed").glob("*.uint8"))) == 1


def test_small_photographs_are_named(pictures: Path) -> None:
    with pytest.raises(UserError, match=r"24 of 24 files(.*\n)*.*less than data\.image_size=96"):
        pairs(pictures, Bicubic(4), image_size=96, shape=(3, 96, 96)).setup()
    with pytest.raises(UserError, match="multiple of the scale, 5"):
        pairs(pictures, Bicubic(5))


def silence(shape: Sequence[int]) -> torch.Tensor:
    return torch.zeros(*shape)


def test_degradations() -> None:
    real = to_unit_range(torch.randint(256, (2, 3, 24, 24), dtype=torch.uint8))
    for degradation, shape in (
        (Bicubic(3), (2, 3, 8, 8)),
        (BlurBicubic(4, 1.6), (2, 3, 6, 6)),
        (Grayscale(), (2, 1, 24, 24)),
        (Grayscale(3), (2, 3, 24, 24)),
        (GaussianNoise(25), (2, 3, 24, 24)),
    ):
        result = degradation(real, silence)
        assert result.shape == shape
        steps = (result + 1) * 127.5
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    flat = to_unit_range(torch.full((1, 3, 24, 24), 77, dtype=torch.uint8))
    for degradation in (Bicubic(2), BlurBicubic(2, 2.0), Grayscale(3)):
        assert to_uint8(degradation(flat, silence)).unique().tolist() == [77]
    green = to_unit_range(torch.tensor([0, 255, 0], dtype=torch.uint8).view(1, 3, 1, 1))
    assert to_uint8(Grayscale()(green, silence)).item() == 150  # 0.587 * 255
    noisy = GaussianNoise(10)(flat.expand(50, 3, 24, 24), lambda shape: torch.randn(*shape))
    assert ((noisy - flat) * 127.5).std().item() == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(("scale", "published"), [(2, 33.66), (3, 30.39), (4, 28.42)])
def test_bicubic_gives_the_published_psnr_on_set5(
    test_data: Callable[[str], Path], scale: int, published: float, tmp_path: Path
) -> None:
    folder = test_data("sr")
    with zipfile.ZipFile(folder / "BSDS500_train.zip") as archive:
        archive.extractall(tmp_path, archive.namelist()[:8])
    data = pairs(tmp_path, Bicubic(scale), test=[str(folder / "Set5.zip")], cache_dir=str(tmp_path / "cache"))
    (set5,) = data.whole_images("test")
    values = []
    for index in range(len(set5)):
        real = to_unit_range(set5[index][1]).double()
        low = Bicubic(scale).degrade(real, silence)
        upscaled = interpolate(low, real.shape[-2:], mode="bicubic", antialias=True)
        error = (luma(upscaled.clamp(-1, 1)) - luma(real))[..., scale:-scale, scale:-scale]
        values.append(10 * torch.log10(255**2 / error.square().mean()).item())
    assert sum(values) / 5 == pytest.approx(published, abs=0.02)


def luma(images: torch.Tensor) -> torch.Tensor:
    """Y of YCbCr as MATLAB has it, 16 to 235, rounded as the published numbers have it."""
    weights = torch.tensor([65.481, 128.553, 24.966], dtype=images.dtype).view(3, 1, 1)
    return (16 + ((images + 1) / 2 * weights).sum(1)).round()


def test_real_photographs(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    data = pairs(test_data("sr") / "BSDS500_train.zip", Bicubic(4), cache_dir=str(tmp_path), test=["Set5"])
    data.setup()
    photographs: Any = data.real
    assert len(photographs) == 200
    assert set(map(tuple, photographs.sizes.tolist())) == {(321, 481), (481, 321)}
    assert [tuple(image.shape[2:]) for _, image, _ in data.whole_images("test")[0]] == [
        (512, 512),
        (288, 288),
        (256, 256),
        (280, 280),
        (344, 228),
    ]
