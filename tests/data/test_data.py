"""Batches as a function of the step, and finding and downloading MNIST."""

import gzip
import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ganforge.data import mnist
from ganforge.data.base import Batch, StepLoader, TensorData
from ganforge.data.mnist import MNIST, FashionMNIST
from ganforge.data.mnist_sources import FILES, MNIST_SHA256, _ArraysOnly, idx_files
from ganforge.data.points import Grid, Quadratic, Ring
from ganforge.randomness import Shard, ShardedDraw, Stream, generator
from ganforge.runtime.errors import UserError
from ganforge.runtime.pixels import to_uint8, to_unit_range


def steps(size: int, batch_size: int, parts: int = 1, rank: int = 0, world: int = 1, start: int = 0) -> StepLoader:
    return StepLoader(
        lambda rows, _: Batch(rows, rows * 10), size, batch_size, 0, Shard(parts, rank, world), lambda: start
    )


def test_incomplete_batches_are_completed_from_the_next_permutation() -> None:
    loader = steps(10, 4)
    rows = torch.cat([loader.rows(step) for step in range(5)])  # 20 rows: two permutations without a gap
    assert Counter(rows.tolist()) == Counter(dict.fromkeys(range(10), 2))
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert len(loader) == 3


def test_every_step_takes_its_rows_once_even_if_they_span_several_epochs() -> None:
    rows = steps(3, 2, parts=4).rows(1)
    assert len(rows) == 8
    assert Counter(torch.cat([steps(3, 2, parts=4).rows(step) for step in range(3)]).tolist()) == {0: 8, 1: 8, 2: 8}


def test_order_is_a_function_of_the_step() -> None:
    whole = list(steps(10, 4))
    assert [b.real.tolist() for b in steps(10, 4, start=2)] == [whole[2].real.tolist()]
    assert all((batch.condition == batch.real * 10).all() for batch in whole)
    second_epoch = list(steps(10, 4, start=3))
    assert len(second_epoch) == 3
    assert torch.equal(second_epoch[0].real, steps(10, 4).batch(3).real)


def test_ranks_draw_their_rows_of_the_whole_draw() -> None:
    def draw(rank: int, world: int) -> torch.Tensor:
        rows = ShardedDraw(generator(0, Stream.AUGMENT, 5), Shard(3, rank, world))
        return rows(lambda count, generator: torch.rand(count, 2, generator=generator), 12 // world).view(3, -1, 2)

    assert torch.equal(torch.cat([draw(0, 2), draw(1, 2)], dim=1), draw(0, 1))


@pytest.mark.parametrize("parts", [1, 3])
def test_ranks_share_out_each_batch(parts: int) -> None:
    whole = steps(100, 6, parts).batch(2).split(parts)
    shares = [steps(100, 6, parts, rank, 2).batch(2).split(parts) for rank in range(2)]
    for part in range(parts):
        together = torch.cat([shares[0][part].real, shares[1][part].real])
        assert torch.equal(together, whole[part].real)


def test_scaling_is_exact_and_reversible() -> None:
    grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scaled = to_unit_range(grey)
    assert scaled.min() == -1
    assert scaled.max() == 1
    assert torch.equal(to_uint8(scaled), grey)
    assert to_uint8(torch.tensor([-1.5, 1.5])).tolist() == [0, 255]


def loaded(data: TensorData) -> TensorData:
    data.prepare_data()
    data.setup()
    return data


OPTIONS: dict[str, Any] = {"batch_size": 16, "shape": (1, 28, 28), "num_classes": 10}


@pytest.mark.parametrize("layout", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_found_where_people_have_it(fake_mnist: Path, tmp_path: Path, layout: str, packed: bool) -> None:
    root = tmp_path / "root"
    (root / layout).mkdir(parents=True)
    for name in FILES:
        content = (fake_mnist / name).read_bytes()
        target = root / layout / (f"{name}.gz" if packed else name)
        target.write_bytes(gzip.compress(content) if packed else content)
    data = loaded(MNIST(str(root), **OPTIONS))
    assert data.real is not None
    assert data.real.shape == (256, 1, 28, 28)
    assert data.real.dtype == torch.uint8
    assert data.real.flatten()[:5].tolist() == list((fake_mnist / FILES[0]).read_bytes()[16:21])
    assert data.condition is not None
    assert data.condition[:10].tolist() == list(range(10))


def test_mnist_in_another_size_and_in_three_channels(fake_mnist: Path) -> None:
    data = loaded(MNIST(str(fake_mnist), image_size=32, channels=3, **{**OPTIONS, "shape": (3, 32, 32)}))
    assert data.real is not None
    assert data.real.shape == (256, 3, 32, 32)
    assert torch.equal(data.real[:, 0], data.real[:, 2])


def test_facts_that_do_not_fit_are_refused(fake_mnist: Path) -> None:
    with pytest.raises(UserError, match="num_classes"):
        loaded(MNIST(str(fake_mnist), **{**OPTIONS, "num_classes": 7}))
    with pytest.raises(UserError, match=r"data\.batch_size=300 is more than the 256"):
        loaded(MNIST(str(fake_mnist), **{**OPTIONS, "batch_size": 300}))


def test_damaged_file_is_named(fake_mnist: Path) -> None:
    whole = (fake_mnist / FILES[0]).read_bytes()
    (fake_mnist / FILES[0]).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train-images.*damaged"):
        loaded(MNIST(str(fake_mnist), **OPTIONS))
    (fake_mnist / FILES[0]).unlink()
    packed = gzip.compress(whole)
    for damaged in (packed[:-9], b"\0" + packed[1:], packed[:2000] + bytes(8) + packed[2008:]):
        (fake_mnist / f"{FILES[0]}.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"train-images.*gz is damaged"):
            loaded(MNIST(str(fake_mnist), **OPTIONS))


def test_files_that_hold_something_else_are_refused(fake_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = (fake_mnist / FILES[1]).read_bytes()
    for name in FILES[:2]:
        whole = (fake_mnist / name).read_bytes()
        (fake_mnist / name).write_bytes(labels[:4] + (255).to_bytes(4, "big") + labels[8:-1])
        with pytest.raises(UserError, match=r"do not hold images \(N, h, w\) and their labels"):
            loaded(MNIST(str(fake_mnist), **OPTIONS))
        (fake_mnist / name).write_bytes(whole)
    monkeypatch.setattr(mnist, "MAX_FILE_BYTES", 1000)
    (fake_mnist / FILES[0]).unlink()
    (fake_mnist / f"{FILES[0]}.gz").write_bytes(gzip.compress(bytes(2000)))
    with pytest.raises(UserError, match=r"gz is damaged \(larger than 0 MiB\)"):
        loaded(MNIST(str(fake_mnist), **OPTIONS))


def test_sources_are_tried_in_turn_and_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def broken(_dataset: str) -> dict[str, bytes]:
        """a broken source"""
        asked.append(_dataset)
        raise OSError("no route")

    def good(_dataset: str) -> dict[str, bytes]:
        """a good source"""
        return dict.fromkeys(FILES, b"x")

    monkeypatch.setattr(MNIST, "sources", (broken, good))
    MNIST(str(tmp_path), **OPTIONS).prepare_data()
    assert asked == ["MNIST"]
    assert sorted(p.name for p in (tmp_path / "MNIST" / "raw").iterdir() if p.name != ".lock") == sorted(FILES)


def test_message_when_nothing_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_dataset: str) -> dict[str, bytes]:
        """a broken source"""
        raise OSError("no route")

    for dataset in (MNIST, FashionMNIST):
        monkeypatch.setattr(dataset, "sources", (broken,))
        monkeypatch.setattr(dataset, "system_folder", None)
        with pytest.raises(UserError) as error:
            dataset(str(tmp_path), **OPTIONS).prepare_data()
        assert all(f"  {n}. " in str(error.value) for n in (1, 2, 3))
        assert "a broken source: no route" in str(error.value)


def test_pickle_admits_arrays_only() -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return print, ("ran",)

    with pytest.raises(pickle.UnpicklingError, match="not allowed"):
        _ArraysOnly(io.BytesIO(pickle.dumps(Evil()))).load()


@pytest.mark.slow  # a mirror that is seldom needed
def test_wheel_gives_the_very_files(test_data: Any) -> None:
    raw = test_data("mnist/MNIST/raw")
    images = [np.frombuffer(gzip.decompress((raw / f"{n}.gz").read_bytes()), np.uint8) for n in FILES]
    train = images[0][16:].reshape(-1, 784).astype(np.float32) / 256
    test = images[2][16:].reshape(-1, 784).astype(np.float32) / 256
    labels, test_labels = images[1][8:], images[3][8:]
    files = idx_files(((train[:50000], labels[:50000]), (train[50000:], labels[50000:]), (test, test_labels)))
    assert [files[name] == images[i].tobytes() for i, name in enumerate(FILES)] == [True] * 4
    with pytest.raises(OSError, match="digest"):
        idx_files(((train[:50000] * 0, labels[:50000]), (train[50000:], labels[50000:]), (test, test_labels)))
    assert len(set(MNIST_SHA256)) == 4


def test_real_mnist(test_data: Any) -> None:
    data = loaded(MNIST(str(test_data("mnist")), **OPTIONS))
    assert data.condition is not None
    assert data.condition[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(data.condition).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_points() -> None:
    options: dict[str, Any] = {"batch_size": 10, "shape": (2,), "size": 5000}
    parabola = loaded(Quadratic(**options)).real
    assert parabola is not None
    torch.testing.assert_close(parabola[:, 1], parabola[:, 0].square() + 5)
    assert parabola[:, 0].min() < -4.9
    assert parabola[:, 0].max() > 4.9
    for data, modes in ((Ring(std=0.02, **options), 8), (Grid(std=0.05, **options), 25)):
        points = loaded(data).real
        assert points is not None
        distances = torch.cdist(points, data.centres())
        assert distances.min(1).values.max() < 6 * data.std
        assert torch.bincount(distances.argmin(1), minlength=modes).min() > 0.8 * 5000 / modes
    assert torch.equal(loaded(Quadratic(seed=1, **options)).real, loaded(Quadratic(seed=1, **options)).real)
    assert not torch.equal(parabola, loaded(Quadratic(seed=1, **options)).real)


def test_batch_split_keeps_conditions_with_their_samples() -> None:
    parts = Batch(torch.arange(6), torch.arange(6) + 1).split(3)
    assert [part.size for part in parts] == [2, 2, 2]
    assert all(torch.equal(part.condition, part.real + 1) for part in parts)  # type: ignore[arg-type]
