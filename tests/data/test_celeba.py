"""CelebA: splits, attributes and identities, of made-up faces and of real ones."""

import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import fitted
from PIL import Image

from ganforge.data.celeba import CelebA
from ganforge.runtime.errors import UserError

SMALL: dict[str, Any] = {"image_size": 32, "shape": (3, 32, 32), "batch_size": 2}


def loaded(root: Path, **options: Any) -> CelebA:
    data = CelebA(root=str(root), **{**SMALL, **options})
    data.prepare_data()
    data.setup()
    return data


def test_splits(fake_celeba: Path) -> None:
    data = loaded(fake_celeba)
    assert [len(data.load(split)[0]) for split in ("train", "valid", "test")] == [24, 3, 3]
    data = loaded(fake_celeba, split="random")
    parts = [data.list_images(split).names for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [24, 3, 3]
    assert len({name for part in parts for name in part}) == 30
    other = loaded(fake_celeba, split="random", split_seed=1)
    assert other.list_images("train").names != parts[0]
    with pytest.raises(UserError, match="split=nonsense"):
        data.load("nonsense")


def test_conditions(fake_celeba: Path) -> None:
    data = loaded(fake_celeba, condition="attributes", attributes=["Male", "Smiling"])
    assert data.condition is not None
    assert data.condition[:4].tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]
    data = loaded(fake_celeba, condition="identity", num_classes=10177)
    assert data.condition is not None
    assert data.condition[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1]
    with pytest.raises(UserError, match=r"no Beautiful\. It has Smiling, Male"):
        loaded(fake_celeba, condition="attributes", attributes=["Beautiful"])


def test_a_zip_and_torchvisions_folder(fake_celeba: Path, tmp_path: Path) -> None:
    expected = loaded(fake_celeba).real
    root = tmp_path / "root" / "celeba"
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
        for path in (fake_celeba / "img_align_celeba").iterdir():
            archive.write(path, f"img_align_celeba/{path.name}")
    shutil.copy(fake_celeba / "list_eval_partition.txt", root)
    assert torch.equal(loaded(tmp_path / "root").real, expected)  # type: ignore[arg-type]


def test_what_is_missing_is_named(fake_celeba: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.download=true.*(\n.*)*mmlab"):
        loaded(tmp_path)
    partition = fake_celeba / "list_eval_partition.txt"
    partition.write_text(partition.read_text().replace(" 2\n", " 0\n"))
    data = loaded(fake_celeba)
    with pytest.raises(UserError, match=r"official test split: use data\.split=random"):
        data.load("test")
    partition.write_text("000001.jpg 0\n")
    with pytest.raises(UserError, match=r"no row for 29 of the images, such as 000002\.jpg"):
        loaded(fake_celeba)
    partition.unlink()
    with pytest.raises(UserError, match=r"list_eval_partition\.txt.*data\.split=random"):
        loaded(fake_celeba)
    assert len(loaded(fake_celeba, split="random").real) == 24  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("list_eval_partition.txt", "{} zero", {}),
        ("identity_CelebA.txt", "{} 0", {"condition": "identity", "num_classes": 7}),
        ("identity_CelebA.txt", "{} \x1b[2J", {"condition": "identity", "num_classes": 7}),
        ("list_attr_celeba.txt", "{} 1", {"condition": "attributes", "attributes": ["Smiling"]}),
        ("list_attr_celeba.txt", "{} 1 \udcff", {"condition": "attributes", "attributes": ["Smiling"]}),
    ],
)
def test_damaged_annotations_are_named(fake_celeba: Path, name: str, content: str, options: dict[str, Any]) -> None:
    rows = "\n".join(content.format(f"{i:06d}.jpg") for i in range(1, 31))
    head = "30\nSmiling Male\n" if "attr" in name else ""
    (fake_celeba / name).write_text(head + rows, errors="surrogateescape")
    with pytest.raises(UserError, match=rf"{name} (is damaged|cannot be read): ") as error:
        loaded(fake_celeba, **options)
    assert "\x1b" not in str(error.value)


def test_when_google_drive_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("Too many users have viewed or downloaded this file recently.\nTry later.")

    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="needs gdown"):
        loaded(tmp_path, download=True)
    monkeypatch.setitem(sys.modules, "gdown", ModuleType("gdown"))
    monkeypatch.setattr("torchvision.datasets.CelebA", refuse)
    with pytest.raises(UserError, match=r"Too many users[^\n]*To download it by hand, get img_align_celeba\.zip"):
        loaded(tmp_path, download=True)


def test_half_of_the_training_images_are_mirrored(fake_celeba: Path, tmp_path: Path) -> None:
    options = ["model=dcgan", "data=celeba", f"data.root={fake_celeba}", "data.image_size=32", "data.batch_size=24"]
    options += ["model.generator.width=4", "model.discriminator.width=4", "trainer.max_steps=1"]
    data = fitted(tmp_path / "run", *options).data
    # the same step gives the same flips, and each image is there once
    batches = []
    for _ in range(2):
        loader = data.train_dataloader()
        data.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.reset()  # type: ignore[union-attr]
        data.trainer.training = True  # type: ignore[union-attr]
        batches.append(data.on_after_batch_transfer(loader.batch(0), 0).real)
    assert torch.equal(*batches)
    plain = loader.batch(0).real.float() / 127.5 - 1
    mirrored = [torch.allclose(batch, image.flip(-1)) for batch, image in zip(batches[0], plain, strict=True)]
    straight = [torch.allclose(batch, image) for batch, image in zip(batches[0], plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, straight, strict=True))
    assert 4 < sum(mirrored) < 20


def test_real_faces(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = test_data("celeba")
    with zipfile.ZipFile(folder / "celeba_half_000001-008000.zip") as archive:
        archive.extractall(tmp_path, [f"img_align_celeba/{i:06d}.jpg" for i in range(1, 201)])
    with zipfile.ZipFile(folder / "annotations_000001-008000.zip") as archive:
        archive.extractall(tmp_path)
    options = {"condition": "attributes", "attributes": ["Male", "Smiling", "Eyeglasses"], "image_size": 64}
    data = loaded(tmp_path, **options, shape=(3, 64, 64))
    assert data.real is not None
    assert data.condition is not None
    assert len(data.real) == 200  # all of them in the official train split
    rows = [line.split() for line in (tmp_path / "list_attr_celeba.txt").read_text().splitlines()]
    columns = [rows[1].index(name) + 1 for name in ("Male", "Smiling", "Eyeglasses")]
    counted = [sum(row[column] == "1" for row in rows[2:202]) for column in columns]
    assert data.condition.sum(0).tolist() == counted
    image = Image.open(tmp_path / "img_align_celeba" / "000007.jpg")
    square = image.resize((64, 64), Image.Resampling.BICUBIC, box=(0, 10, 89, 99))
    assert np.array_equal(np.asarray(square).transpose(2, 0, 1), data.real[6].numpy())
    with pytest.raises(UserError, match="official test split"):
        data.load("test")


@pytest.mark.slow
def test_the_whole_cut_of_real_faces(test_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = test_data("celeba")
    with zipfile.ZipFile(folder / "annotations_000001-008000.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / "img_align_celeba.zip").symlink_to(folder / "celeba_half_000001-008000.zip")
    attributes = ["Male", "Smiling", "Young", "Eyeglasses", "Blond_Hair"]
    options: dict[str, Any] = {"condition": "attributes", "attributes": attributes, "image_size": 32}
    data = loaded(tmp_path, cache_dir=str(tmp_path / "cache"), **options)
    assert data.real is not None
    assert data.condition is not None
    assert len(data.real) == 8000
    assert data.condition.sum(0).tolist() == [3372, 3839, 6227, 546, 1166]
