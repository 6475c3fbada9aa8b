"""Images of all kinds are decoded once, whatever happens meanwhile."""

import os
import shutil
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import png_header, run, save_picture, start
from omegaconf import OmegaConf
from PIL import Image

from ganforge.data import packing, sources
from ganforge.data.classes import class_folders, save_classes
from ganforge.data.conditions import class_labels
from ganforge.data.images import ImageFolder, to_8bit
from ganforge.data.sources import open_source
from ganforge.runtime.errors import UserError

SMALL: dict[str, Any] = {"image_size": 16, "shape": (3, 16, 16), "batch_size": 4}


def loaded(root: Path, **options: Any) -> ImageFolder:
    data = ImageFolder(root=str(root), **{**SMALL, **options})
    data.prepare_data()
    data.setup()
    return data


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_are_cropped_resized_and_kept(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(pictures)
    data = loaded(pictures)
    assert data.real is not None
    assert data.real.shape == (24, 3, 16, 16)
    first = sorted(pictures.rglob("*.*"))[0]
    image = Image.open(first).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(square).transpose(2, 0, 1) - data.real[0].numpy().astype(int)).max() <= 3
    assert files(pictures) == before, "nothing is written among the images"
    monkeypatch.setattr(packing, "_write", None)  # a second run decodes nothing
    assert torch.equal(loaded(pictures).real, data.real)  # type: ignore[arg-type]


def test_another_preparation_or_file_is_packed_anew(pictures: Path) -> None:
    first = loaded(pictures).real
    assert not torch.equal(loaded(pictures, crop=0.5).real, first)  # type: ignore[arg-type]
    assert loaded(pictures, channels=1, shape=(1, 16, 16)).real.shape == (24, 1, 16, 16)  # type: ignore[union-attr]
    shutil.copy(pictures / "a" / "00.jpg", pictures / "b" / "new.jpg")
    assert len(loaded(pictures).real) == 25  # type: ignore[arg-type]


def test_a_folder_and_its_zip_give_the_same(pictures: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", pictures))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr("__MACOSX/a/._00.jpg", b"what macOS adds")
        file.writestr("notes.txt", b"no image")
    before = set(tmp_path.rglob("*"))
    options = {"condition": "labels", "num_classes": 3}
    zipped, unzipped = loaded(archive, **options), loaded(pictures, **options)
    assert torch.equal(zipped.real, unzipped.real)  # type: ignore[arg-type]
    assert torch.equal(zipped.condition, unzipped.condition)  # type: ignore[arg-type]
    made = {path.parent.name for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert made == {"archive.zip.packed", "pictures.packed"}


OUTSIDE = ["../../out.png", "a/../../out.png", "/out.png", "..\\out.png", "a\\out.png", "C:/out.png", "c:out.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_zip_that_may_lead_outside_is_refused(tmp_path: Path, name: str) -> None:
    archive = zipped(tmp_path / "inner" / "hostile.zip", {"good.png": b"", name: b""})
    with pytest.raises(UserError, match=r"^input=.*hostile\.zip holds .*out\.png, which is not a path inside a folder"):
        open_source(archive, "input")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["hostile.zip", "inner"]


def zipped(path: Path, contents: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", kind) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def test_no_more_is_read_of_a_zip_than_an_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ENTRY_BYTES", 2**20)
    swollen = zipped(tmp_path / "swollen.zip", {"a.png": bytes(2**20 + 1), "b.png": bytes(2**20), "c.png": b""})
    source = open_source(swollen)
    assert len(source.open("b.png").read()) == 2**20
    for name, message in (("a.png", "is larger than 1 MiB, the limit"), ("c.png", "is empty")):
        with pytest.raises(ValueError, match=message):
            source.open(name)
    lying = swollen.read_bytes().replace((2**20 + 1).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    (tmp_path / "lying.zip").write_bytes(lying)
    source = open_source(tmp_path / "lying.zip")
    tracemalloc.start()
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC-32"):
        source.open("a.png")
    assert tracemalloc.get_traced_memory()[1] < 2**19
    tracemalloc.stop()
    others = zipped(tmp_path / "others.zip", {"a.png": bytes(10)}, zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match="not compressed with deflate"):
        open_source(others).open("a.png")


@pytest.mark.parametrize(("place", "value"), [(6, 0xFF), (46, 0xFF)])  # a version, and no UTF-8
def test_a_zip_with_a_damaged_directory_is_refused(tmp_path: Path, place: int, value: int) -> None:
    archive = zipped(tmp_path / "x.zip", {"ü.png": b"x"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\1\2") + place] = value
    archive.write_bytes(content)
    with pytest.raises(UserError, match="neither a folder nor an intact zip"):
        open_source(archive).open("ü.png")


def test_labels_are_the_folders(pictures: Path) -> None:
    data = loaded(pictures, condition="labels", num_classes=3)
    assert data.condition is not None
    assert data.condition.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    counted = loaded(pictures, condition="labels")
    assert (counted.num_classes, counted.classes) == (3, ("a", "b", "c"))
    assert counted.conditions(["c", "a"]).tolist() == counted.conditions([2, 0]).tolist() == [2, 0]
    with pytest.raises(UserError, match=r"^labels=d: must be a, b, c, or numbers from 0 to 2$"):
        counted.conditions(["d"])
    with pytest.raises(UserError, match=r"data\.num_classes=4: there are 3 classes, a, b, c: leave it out"):
        loaded(pictures, condition="labels", num_classes=4)
    (pictures / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty in .* has no images"):
        loaded(pictures, condition="labels")
    (pictures / "empty").rmdir()
    save_picture(pictures / "lonely.png", 1)
    with pytest.raises(UserError, match=r"lonely\.png is in no sub-folder"):
        loaded(pictures, condition="labels", num_classes=3)


def test_classes_are_the_sub_folders_wherever_they_lie(pictures: Path, tmp_path: Path) -> None:
    save_picture(pictures / "a" / "deep" / "x.png", 1)
    (pictures / ".hidden").mkdir()
    (pictures / "loop").symlink_to(pictures)
    assert class_folders(pictures) == ("", ["a", "b", "c", "loop"])
    (pictures / "loop").unlink()
    archive = Path(shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path, "pictures"))
    assert class_folders(archive) == ("pictures/", ["a", "b", "c"])
    whole, inside = loaded(archive, condition="labels"), loaded(pictures, condition="labels")
    assert torch.equal(whole.condition, inside.condition)  # type: ignore[arg-type]
    assert inside.condition.bincount().tolist() == [9, 8, 8]  # type: ignore[union-attr]
    for path in (pictures / "b" / "01.png", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"^data\.root="):
            class_folders(path)
    with pytest.raises(UserError, match="has no sub-folders"):
        class_folders(pictures / "b")


def test_a_run_keeps_its_classes(pictures: Path, tmp_path: Path) -> None:
    known = ImageFolder(root="nowhere", condition="labels", classes=["b", "a", "c"], **SMALL)
    assert known.conditions(["a", "b"]).tolist() == [1, 0]
    known.root = pictures
    known.setup()
    assert known.condition.tolist() == [1] * 8 + [0] * 8 + [2] * 8  # type: ignore[union-attr]
    save_picture(pictures / "d" / "x.png", 1)
    with pytest.raises(UserError, match=r"has the sub-folders a, b, c, d, but the classes of this run are a, b, c"):
        loaded(pictures, condition="labels", classes=["a", "b", "c"])
    for wrong in ({"condition": "none"}, {"classes": ["a", "a"]}, {"num_classes": 2}):
        with pytest.raises(UserError, match=r"data\.(num_)?classes"):
            ImageFolder(root="nowhere", **{**SMALL, "condition": "labels", "classes": ["a", "b", "c"], **wrong})
    record = tmp_path / "run" / ".hydra" / "config.yaml"
    record.parent.mkdir(parents=True)
    record.write_text("data: {root: there, num_classes: null, shape: ['${data.channels}']}\nseed: 1\n")
    save_classes(known, tmp_path / "run")
    kept = OmegaConf.load(record)
    assert kept == {  # type: ignore[comparison-overlap]
        "data": {"root": "there", "num_classes": 3, "shape": ["${data.channels}"], "classes": ["b", "a", "c"]},
        "seed": 1,
    }


def test_numbers_are_names_where_names_are_numbers() -> None:
    names = ["1", "10", "2"]
    assert class_labels([10, "2"], 3, names).tolist() == [1, 2]
    with pytest.raises(UserError, match=r"^labels=0: must be 1, 10, 2$"):
        class_labels([0], 3, names)


ODD_ONES = {
    "one pixel": lambda path: Image.new("RGB", (1, 1), (255, 0, 0)).save(path / "pixel.png"),
    "grey": lambda path: save_picture(path / "grey.jpg", 1, mode="L"),
    "cmyk": lambda path: save_picture(path / "cmyk.jpg", 1, mode="CMYK"),
    "rgba": lambda path: save_picture(path / "rgba.png", 1, mode="RGBA"),
    "palette": lambda path: Image.new("P", (30, 30)).save(path / "palette.gif.png", format="PNG"),
    "name": lambda path: save_picture(path / "Größe 1, 写真 = 'x'.jpg", 1),
    "capitals": lambda path: save_picture(path / "CAPITALS.JPG", 1, format="JPEG"),
    "link": lambda path: (path / "link.jpg").symlink_to(path / "a" / "00.jpg"),
    "linked folder": lambda path: (path / "linked").symlink_to(path),
    "broken link": lambda path: (path / "nowhere.jpg").symlink_to(path / "nothing"),
    "fifo": lambda path: os.mkfifo(path / "fifo.jpg"),
    "link to a fifo": lambda path: (os.mkfifo(path / "fifo"), (path / "fifo.jpg").symlink_to(path / "fifo")),
    "link to a device": lambda path: (path / "zero.jpg").symlink_to("/dev/zero"),
    "link to itself": lambda path: (path / "self.jpg").symlink_to(path / "self.jpg"),
    "hidden": lambda path: (path / ".hidden.jpg").write_bytes(b"thumbnail"),
    "text": lambda path: (path / "readme.txt").write_text("no image"),
}
COUNTED = dict.fromkeys(ODD_ONES, 25) | dict.fromkeys(
    ("linked folder", "broken link", "link to itself", "hidden", "text", "fifo", "link to a fifo", "link to a device"),
    24,
)


@pytest.mark.parametrize("kind", ODD_ONES)
def test_odd_files(pictures: Path, kind: str) -> None:
    ODD_ONES[kind](pictures)
    assert len(loaded(pictures).real) == COUNTED[kind]  # type: ignore[arg-type]


def test_an_image_is_packed_as_one_sees_it() -> None:
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6  # a camera held upright
    assert to_8bit(turned, 3).size == (2, 4)
    ramp = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    assert np.asarray(to_8bit(ramp, 1)).tolist() == [[0, 100, 255]]
    clear = Image.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], dtype=np.uint8))
    assert np.asarray(to_8bit(clear, 3)).tolist() == [[[255, 255, 255], [10, 20, 30]]]
    ink = Image.new("CMYK", (1, 1), (255, 0, 0, 0))
    assert np.asarray(to_8bit(ink, 3)).tolist() == [[[0, 255, 255]]]


@pytest.mark.slow
def test_links_that_fan_out_are_no_hang(tmp_path: Path) -> None:
    folders = [tmp_path / "pictures" / str(i) for i in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    with pytest.raises(UserError, match=r"^input=.*: symbolic links lead to .* in more than 100 ways"):
        open_source(tmp_path / "pictures", "input")


def test_a_linked_folder_is_a_label_of_its_own(pictures: Path) -> None:
    (pictures / "d").symlink_to(pictures / "a")
    data = loaded(pictures, condition="labels", num_classes=4)
    assert data.condition is not None
    assert data.condition.bincount().tolist() == [8, 8, 8, 8]


def damage(folder: Path) -> list[str]:
    """Spoil some of the pictures, and return their names."""
    jpeg = (folder / "a" / "00.jpg").read_bytes()
    (folder / "b" / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "b" / "nonsense.jpg").write_bytes(b"no image at all")
    (folder / "c" / "empty.png").write_bytes(b"")
    whole = (folder / "b" / "01.png").read_bytes()
    (folder / "c" / "flipped.png").write_bytes(whole[:60] + bytes(20) + whole[80:])
    Image.new("F", (30, 30)).save(folder / "c" / "float.tif")
    (folder / "c" / "bomb.png").write_bytes(png_header(60_000, 60_000))
    (folder / "c" / "nothing.png").write_bytes(png_header(0, 0))
    Image.new("L", (30, 30)).save(folder / "c" / "postscript.png", format="EPS")
    bad = ["truncated.jpg", "nonsense.jpg", "empty.png", "flipped.png", "float.tif", "bomb.png", "nothing.png"]
    return [*bad, "postscript.png: is not an image"]


def test_all_bad_files_are_named_or_left_out(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = loaded(pictures, condition="labels", num_classes=3)
    names = damage(pictures)
    for _ in range(2):  # the second time nothing is decoded
        with pytest.raises(UserError, match="8 of 32 files") as error:
            loaded(pictures)
        assert all(name in str(error.value) for name in names)
        assert "data.on_error=skip" in str(error.value)
    data = loaded(pictures, on_error="skip", condition="labels", num_classes=3)
    assert torch.equal(data.real, good.real)  # type: ignore[arg-type]
    assert torch.equal(data.condition, good.condition)  # type: ignore[arg-type]
    assert "8 of 32 files" in caplog.text
    shutil.rmtree(pictures / "a")
    for name in (*"bc",):
        for path in (pictures / name).iterdir():
            path.write_bytes(b"x")
    with pytest.raises(UserError, match="24 of 24 files"):
        loaded(pictures, on_error="skip")


def test_bad_entries_of_a_zip_are_named(pictures: Path, tmp_path: Path) -> None:
    archive = tmp_path / "damaged.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(pictures.rglob("*.png")):
            file.write(path, path.name)
        entries = file.infolist()
    content = bytearray(archive.read_bytes())
    for entry in entries[:2]:
        start = entry.header_offset + 30 + len(entry.filename)
        content[start : start + 40] = b"\xff" * 40
    archive.write_bytes(content)
    with pytest.raises(UserError, match="2 of 12 files") as error:
        loaded(archive)
    assert all(entry.filename in str(error.value) for entry in entries[:2])


def test_what_a_crash_may_leave_is_no_cache(pictures: Path, tmp_path: Path) -> None:
    expected = loaded(pictures).real
    cache = tmp_path / "pictures.packed"
    (record,) = cache.glob("*.json")
    (data,) = cache.glob("*.uint8")
    record.write_text("")  # a crash of the machine
    assert torch.equal(loaded(pictures).real, expected)  # type: ignore[arg-type]
    # killed between the two last renames, and again before the first flush
    record.rename(record.with_suffix(".json.part"))
    data.unlink()
    data.with_suffix(".uint8.part").write_bytes(b"")
    assert torch.equal(loaded(pictures).real, expected)  # type: ignore[arg-type]


def test_a_run_is_told_that_its_data_have_changed(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = loaded(pictures).state_dict()
    loaded(pictures).load_state_dict(state)
    assert "changed" not in caplog.text
    (pictures / "a" / "00.jpg").unlink()
    loaded(pictures).load_state_dict(state)
    assert "The data have changed" in caplog.text


def test_mistakes_of_people(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no zip")
    for root, message in (
        ("nowhere", "no such folder or zip"),
        ("empty", "holds no images"),
        ("text.txt", "neither a folder nor an intact zip"),
    ):
        with pytest.raises(UserError, match=message):
            loaded(tmp_path / root)
    with pytest.raises(UserError, match=r"data\.batch_size=100 is more than the 24"):
        loaded(pictures, batch_size=100)
    with pytest.raises(UserError, match=r"text\.txt cannot be written .*data\.cache_dir"):
        loaded(pictures, cache_dir=str(tmp_path / "text.txt"))
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        loaded(pictures, crop=0.9)
    assert not list((tmp_path / "pictures.packed").glob("*.part")), "nothing was written"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_folders_without_rights(pictures: Path) -> None:
    (pictures / "a").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        loaded(pictures)
    (pictures / "a").chmod(0o700)
    pictures.parent.chmod(0o500)
    with pytest.raises(UserError, match=r"data\.cache_dir"):
        loaded(pictures)
    pictures.parent.chmod(0o700)


PACKING = """
import logging, sys, time
from ganforge.data import images, packing
logging.basicConfig(level=logging.INFO)
packing.FLUSH_BYTES = 4 * 768
whole = images.crop_and_resize
def slow(*arguments):
    time.sleep(float(sys.argv[2]))
    return whole(*arguments)
images.crop_and_resize = slow
data = images.ImageFolder(root=sys.argv[1], image_size=16, shape=(3, 16, 16), batch_size=4)
data.setup()
"""


def test_a_killed_packing_goes_on(pictures: Path, tmp_path: Path) -> None:
    expected = loaded(pictures, cache_dir=str(tmp_path / "other")).real
    script = tmp_path / "packing_script.py"
    script.write_text(PACKING)
    command = start(str(script), str(pictures), "0.3", cwd=tmp_path)
    cache = tmp_path / "pictures.packed"
    deadline = time.monotonic() + 60
    while not list(cache.glob("*.json.part")):
        assert time.monotonic() < deadline
        assert command.is_running()
        time.sleep(0.01)
    time.sleep(0.1)
    command.kill()
    assert not list(cache.glob("*.uint8"))
    (part,) = cache.glob("*.uint8.part")
    with part.open("ab") as file:
        file.write(b"what was not flushed")
    again = run(str(script), str(pictures), "0", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Packing resumes after" in again.stderr
    assert torch.equal(loaded(pictures).real, expected)  # type: ignore[arg-type]
    assert not list(cache.glob("*.part"))


@pytest.mark.slow
def test_processes_that_start_together_pack_once(pictures: Path, tmp_path: Path) -> None:
    script = tmp_path / "packing_script.py"
    script.write_text(PACKING)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(lambda _: run(str(script), str(pictures), "0.3", cwd=tmp_path), range(2)))
    said = "".join(result.stderr for result in results)
    assert [result.returncode for result in results] == [0, 0], said
    assert said.count("Packing 24 images") == 1
    assert said.count("Waiting for another process") == 1


MEMORY = """
import json, sys, torch
from pathlib import Path
from ganforge.data.base import StepLoader
from ganforge.data.packing import pack
from ganforge.data.images import ImageFolder
from ganforge.randomness import Shard

folder, count, shape = Path(sys.argv[1]), 200_000, (3, 64, 64)
size = count * 3 * 64 * 64
with (folder / "large.uint8").open("wb") as file:
    file.truncate(size)  # zeros that take no room on the disk
(folder / "large.json").write_text(json.dumps({"bytes": size, "shapes": [], "bad": {}}))
data = ImageFolder(root=".", image_size=64, shape=shape, batch_size=128)
data.real = pack(range(count), None, folder, "large", shape).bytes.view(-1, *shape)
steps = StepLoader(data.take, count, 128, 0, Shard(), lambda: 0)
assert sum(batch.real.sum().item() for batch in steps) == 0
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's account of memory")
def test_a_large_cache_needs_little_private_memory(tmp_path: Path) -> None:
    script = tmp_path / "memory.py"
    script.write_text(MEMORY)
    result = run(str(script), str(tmp_path), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 1_000_000, "kilobytes"
