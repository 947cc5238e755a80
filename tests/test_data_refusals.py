"""What the data room refuses, and in which words."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalejax.data import SOURCES, describe, land, load
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
