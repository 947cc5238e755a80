"""What the data room keeps on disk: read again, checked, healed, and safe when several do it at once."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scalejax.data import MNIST1D, DataSet, load, storage
from scalejax.spec import DataSpec

MNIST = DataSpec("mnist1d", train_examples=(20, 200), validation_examples=50, test_examples=60)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    return tmp_path / "data"


def same(one: DataSet, other: DataSet) -> bool:
    splits = ((one.train, other.train), (one.validation, other.validation), (one.test, other.test))
    return all(np.array_equal(a.inputs, b.inputs) and np.array_equal(a.targets, b.targets) for a, b in splits)


@pytest.mark.usefixtures("cache")
def test_splits_are_disjoint_and_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = load(MNIST)
    rows = [{row.tobytes() for row in split.inputs} for split in (data.train, data.validation, data.test)]
    assert [len(part) for part in rows] == [200, 50, 60]
    assert len(set.union(*rows)) == 310
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path / "another"))
    assert same(data, load(MNIST))


def test_the_second_load_reads_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch):
    data = load(MNIST)
    monkeypatch.setattr(MNIST1D, "splits", None)
    assert same(data, load(MNIST))
    assert len(list(cache.iterdir())) == 1


def damage_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: damage_byte(path, -1),
        lambda path: damage_byte(path, 1_000),
        lambda path: damage_byte(path, 0),
        lambda path: damage_byte(path, 20),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"[1]"),
    ],
    ids=["last byte", "first bytes", "brace", "checksum", "cut", "cut header", "longer", "empty", "other JSON"],
)
def test_damage_is_noticed_and_healed(cache: Path, damage):
    data = load(MNIST)
    damage(next(cache.iterdir()))
    with pytest.warns(UserWarning, match=r"The cached data in .* are damaged \(.*\); they are made again\.$"):
        assert same(data, load(MNIST))
    assert same(data, load(MNIST))  # healed: no warning, which would be an error


def test_a_missing_file_is_made_again_in_silence(cache: Path):
    data = load(MNIST)
    next(cache.iterdir()).unlink()
    assert same(data, load(MNIST))


def test_mapped_arrays_are_checked_too(tmp_path: Path):
    path, array = tmp_path / "mask.bin", np.arange(10_000, dtype=np.uint8)
    storage.recall(path, lambda: {"mask": array})
    assert isinstance(storage.recall(path, dict, mapped=True)["mask"], np.memmap)
    damage_byte(path, -1)
    with pytest.warns(UserWarning, match="damaged"):
        storage.recall(path, lambda: {"mask": array}, mapped=True)
    assert np.array_equal(storage.recall(path, dict, mapped=True)["mask"], array)


def test_a_failed_write_leaves_nothing_and_the_data_arrive(cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.warns(UserWarning, match=r"could not be kept .*SCALEJAX_CACHE"):
            data = load(MNIST)
    assert list(cache.iterdir()) == []
    assert same(data, load(MNIST))


def test_many_at_once(tmp_path: Path):
    path = tmp_path / "arrays.bin"
    arrays = {"a": np.arange(100_000, dtype=np.float32), "none": np.empty((0, 3), np.int32)}
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: storage.recall(path, lambda: arrays), range(40)))
    for result in results:
        assert np.array_equal(result["a"], arrays["a"])
        assert result["none"].shape == (0, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["arrays.bin"]


def test_what_a_killed_process_has_left_is_cleared_once_it_is_old(cache: Path):
    load(MNIST)
    (kept,) = cache.iterdir()
    old, young = (kept.with_name(f".{kept.name}.{name}.part") for name in ("old", "young"))
    for path in (old, young):
        path.touch()
    os.utime(old, (0, 0))
    kept.unlink()
    load(MNIST)
    assert set(cache.iterdir()) == {kept, young}  # the young one may be another process's
