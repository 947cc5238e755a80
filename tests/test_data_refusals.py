"""What the data room refuses, and in which words."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalejax.data import SOURCES, Facts, Split, arrays, describe, land, load
from scalejax.errors import SweepError
from scalejax.spec import DataSpec

MNIST = DataSpec("mnist1d", train_examples=(20, 200), validation_examples=50, test_examples=60)
LAND = DataSpec("land", train_examples=(500,), validation_examples=50, test_examples=60)
DIGITS = DataSpec("digits", fractions=(0.1, 1.0))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (lambda: replace(MNIST, source="mnist-1d"), ["[data] source", "mnist-1d", *SOURCES, "did you mean mnist1d?"]),
        (lambda: replace(MNIST, source="zzz"), ["[data] source", *SOURCES]),
        (lambda: DataSpec("mnist1d", fractions=(0.5,)), ["[data] examples: missing", "for instance"]),
        (lambda: DataSpec("land", fractions=(0.5,)), ["[data] examples: missing"]),
        (lambda: DataSpec("mnist1d", fractions=(0.001,), examples=100), ["[data] fractions", "0.001", "0.01"]),
        (lambda: replace(MNIST, fourier_features=8), ["[data] fourier_features", '"land"', "drop it"]),
        (lambda: replace(DIGITS, fourier_scale=0.5), ["[data] fourier_scale", '"land"', "drop it"]),
        (lambda: replace(LAND, fourier_features=7), ["[data] fourier_features: ", "even", "found 7", "write 8"]),
        (lambda: replace(LAND, fourier_scale=1.0), ["[data] fourier_scale", "fourier_features as well"]),
        (lambda: replace(DIGITS, examples=1_198), ["[data] examples", "1197", "lower"]),
        (lambda: DataSpec("digits", train_examples=(10, 2_000)), ["[data] train_examples: 2000", "1197"]),
        (lambda: replace(DIGITS, test_examples=1_600), ["[data] validation_examples", "1797", "lower"]),
    ],
)
def test_refusals_say_what_where_and_what_to_do(spec: Callable[[], DataSpec], parts: list[str], cache: Path):
    for ask in (describe, load):
        with pytest.raises(SweepError) as refusal:
            ask(spec())
        message = str(refusal.value)
        assert all(part in message for part in parts), message
        assert "\n" not in message
    assert not cache.exists()


ROWS = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("x", "y", "part"),
    [
        (ROWS, [0, 1, 0, 1, 0], "found (6, 2) for (5,)"),
        (ROWS[:, 0], np.arange(6.0), "an example a row"),
        (ROWS, ROWS, "one target an example"),
        (np.where(ROWS > 8, np.nan, ROWS), np.arange(6.0), "3 of the inputs are NaN or infinite"),
        (ROWS, [0, 1, 2, 3, 4, np.inf], "1 of the targets are NaN or infinite"),
        (ROWS, ["a"] * 6, "expected targets that are numbers"),
        (ROWS.astype(object), np.arange(6), "expected inputs that are numbers"),
        (ROWS, [0, 1, -1, 1, 0, 1], "expected classes from 0 on, found -1"),
        (ROWS, [0, 1, 3, 1, 0, 1], "class 2 of 0 to 3 has no example"),
        (ROWS[:2], [0, 1], "at least three examples"),
        (np.empty((6, 0)), [0, 1, 0, 1, 0, 1], "at least three examples with inputs"),
    ],
)
def test_arrays_that_cannot_be_learned_from_are_refused(x, y, part: str):
    with pytest.raises(SweepError) as refusal:
        arrays(x, y)
    assert part in str(refusal.value)
    assert "[data] source" in str(refusal.value)


def test_a_source_that_makes_something_else_than_it_says_is_refused():
    class Liar:
        def facts(self) -> Facts:
            return Facts(shape=(2,), classes=2)

        def splits(self, seed: int, sizes):
            del seed
            return {
                name: Split(np.zeros((size, 3), np.float32), np.zeros(size, np.int32)) for name, size in sizes.items()
            }

    with pytest.raises(SweepError, match=r'train inputs of "Liar" are float32\[5, 3\], not float32\[5, 2\]'):
        load(DataSpec(Liar(), train_examples=(5,)))
    with pytest.raises(SweepError, match="methods facts and splits"):
        DataSpec(3, train_examples=(5,))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SweepError, match="fourier: unknown key"):
        DataSpec(Liar(), train_examples=(5,), options={"fourier": 3})


@pytest.mark.parametrize(
    ("spec", "package", "remedy"),
    [
        (LAND, "global_land_mask", 'pip install "scalejax[land]"'),
        (DIGITS, "sklearn", 'pip install "scalejax[digits]"'),
    ],
)
def test_a_missing_extra_is_named(spec: DataSpec, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    for ask in (describe, load):
        with pytest.raises(SweepError, match="which is not installed: run ") as refusal:
            ask(spec)
        assert remedy in str(refusal.value)


def test_a_package_without_the_mask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "global_land_mask"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "global_land_mask", raising=False)
    with pytest.raises(SweepError, match="force-reinstall"):
        describe(LAND)
    (package / land._FILE).write_bytes(b"not an archive")
    with pytest.raises(SweepError, match="force-reinstall"):
        describe(LAND)
    np.savez(package / land._FILE, mask=np.zeros((3, 8), bool))
    with pytest.raises(SweepError, match="force-reinstall"):
        land._pack()
