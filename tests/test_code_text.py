"""What Python code reads is part of its digest, wherever it stands; a digest is the same every time."""

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from scalejax.code_text import ADDRESS, _literal, code_digest

SHIFT = 0.0


class Tools:
    def centre(self, x: np.ndarray) -> np.ndarray:
        return x.mean(0)


TOOLS = Tools()
MODULE = types.ModuleType("mine")
MODULE.__dict__["inner"] = types.ModuleType("mine.inner")
MODULE.__dict__["inner"].__dict__["scale"] = 1.0


def helper(x: np.ndarray) -> np.ndarray:
    return TOOLS.centre(x) + SHIFT


@functools.cache
def remembered() -> float:
    return 1.0


@dataclass(frozen=True)
class Base:
    factor: float = 1.0
    weight = 2.0

    def fit(self, inputs: np.ndarray) -> np.ndarray:
        return helper(inputs) * self.weight * self.half(1.0) * MODULE.inner.scale * remembered()

    @staticmethod
    def half(x: float) -> float:
        return x / 2

    @property
    def twice(self) -> float:
        return 2 * self.factor


class Sub(Base):
    pass


CHANGES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a number that a helper reads": lambda patch: patch.setitem(globals(), "SHIFT", 5.0),
    "a helper": lambda patch: patch.setitem(globals(), "helper", lambda x: x.mean(0)),
    "a method of the base class": lambda patch: patch.setattr(Base, "fit", lambda _, inputs: inputs.mean(0)),
    "a constant of the base class": lambda patch: patch.setattr(Base, "weight", 3.0),
    "a static method": lambda patch: patch.setattr(Base, "half", staticmethod(lambda x: x / 3)),
    "a property": lambda patch: patch.setattr(Base, "twice", property(lambda self: 3 * self.factor)),
    "a method of an object that a helper uses": lambda patch: patch.setattr(Tools, "centre", lambda _, x: x.max(0)),
    "a number in a module": lambda patch: patch.setitem(MODULE.__dict__["inner"].__dict__, "scale", 2.0),
    "a function that is remembered": lambda patch: patch.setitem(globals(), "remembered", functools.cache(lambda: 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_class_reads_is_part_of_its_digest(change: str, monkeypatch: pytest.MonkeyPatch):
    before = code_digest(Sub)
    assert code_digest(Sub) == before
    CHANGES[change](monkeypatch)
    assert code_digest(Sub) != before


def test_a_library_is_told_by_its_names(monkeypatch: pytest.MonkeyPatch):
    before = code_digest(lambda x: np.linalg.svd(x))
    monkeypatch.setattr(np.linalg, "svd", lambda x: x)
    assert code_digest(lambda x: np.linalg.svd(x)) == before


def test_the_order_of_a_set_and_an_address_are_no_part_of_a_digest():
    assert _literal((1, frozenset({"c", "a", "b"}))) == "(1, frozenset({'a', 'b', 'c'}))"
    assert ADDRESS.sub("", "Generator(PCG64) at 0x7F3B2C0A1E40") == "Generator(PCG64)"
