"""Data of the user's own: arrays, and a data set that follows the protocol, through public names alone."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

import scalejax as sx
from scalejax.data import describe, load
from scalejax.execute.probe import prober
from scalejax.planning.plan import make_plan


@dataclasses.dataclass(frozen=True)
class Rings:
    """Is a point inside a ring? As many points as one asks for."""

    radius: float = 1.0
    name: ClassVar[str] = "rings"

    def facts(self) -> sx.Facts:
        content = {"version": 1, "radius": self.radius}
        return sx.Facts((2,), 2, None, validation_examples=50, test_examples=60, content=content)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, sx.Split]:
        made = {}
        for stream, name in enumerate(("train", "validation", "test")):
            inputs = np.random.default_rng([seed, stream]).normal(size=(sizes[name], 2)).astype(np.float32)
            made[name] = sx.Split(inputs, (np.hypot(*inputs.T) < self.radius).astype(np.int32))
        return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    return tmp_path / "data"


def test_a_data_set_of_ones_own(cache):
    assert isinstance(Rings(), sx.Source)
    spec = sx.DataSpec(source=Rings(), train_examples=(20, 200), seed=3)
    card = describe(spec)
    assert (card.source, card.shape, card.classes, card.targets, card.target_shape) == ("rings", (2,), 2, "int32", ())
    assert (card.examples, card.validation_examples, card.test_examples) == (200, 50, 60)
    others = [dataclasses.replace(spec, source=Rings(0.5)), dataclasses.replace(spec, seed=4)]
    assert len({describe(other).fingerprint for other in [spec, *others]}) == 3
    data = load(spec)
    assert data.card == card
    assert data.train.inputs.shape == (200, 2)
    assert 0 < data.validation.targets.mean() < 1
    assert not list(cache.glob("*"))  # unless its facts say that it is kept
    grid = sx.ModelGrid("logistic")
    sweep = sx.Sweep("rings", spec, (grid,), sx.TrainSpec((1e-2,), (16,), steps=10))
    assert make_plan(sweep, probe=prober(sweep)).card == card
    assert hash(sweep) == hash(dataclasses.replace(sweep))


def test_it_is_kept_on_disk_if_it_asks_for_that(cache):
    class Kept(Rings):
        name = "rings/kept"  # names no folder

        def facts(self):
            return dataclasses.replace(super().facts(), kept=True)

    spec = sx.DataSpec(source=Kept(), train_examples=(20,))
    first, second = load(spec), load(spec)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    assert np.array_equal(first.train.inputs, second.train.inputs)


@dataclasses.dataclass(frozen=True)
class Odd(Rings):
    """Rings with another fact, or another array."""

    fact: Any = None
    array: Callable[[np.ndarray], Any] = np.asarray
    part: str = "inputs"

    def facts(self) -> Any:
        return dataclasses.replace(super().facts(), **self.fact) if isinstance(self.fact, dict) else super().facts()

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, sx.Split]:
        made = super().splits(seed, sizes)
        changes = {self.part: self.array(getattr(made["test"], self.part))}
        return {**made, "test": dataclasses.replace(made["test"], **changes)}


class NoFacts(Rings):
    """Forgets to return its facts."""

    def facts(self) -> Any:
        return None


class Taken(Rings):
    """Has the name of another source."""

    name = "land"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (Taken(), "[data] source: 'land' is the name of a source of scalejax; give your own another name"),
        (NoFacts(), "[data] source: facts() of rings must return Facts(shape=(...), ...), found nothing"),
        (
            Odd(fact={"shape": 2}),
            "[data] source: facts() of rings must return Facts(shape=(...), ...), found a va",
        ),
        (Odd(fact={"content": {"a": object()}}), "[data] source: the content in facts() of rings must be JSON, texts"),
        (
            Odd(fact={"examples": 100}),
            "[data] validation_examples: 50 and test_examples = 60 leave none of the 100",
        ),
        (
            Odd(fact={"examples": 120}),
            "[data] train_examples: 20 is more than the 10 examples that validation",
        ),
        (
            Odd(array=np.float64),
            "the source rings: inputs of test: expected float32 [60, 2], as facts() says, foun",
        ),
        (
            Odd(array=lambda inputs: inputs[1:]),
            "the source rings: inputs of test: expected float32 [60, 2], as fac",
        ),
        (Odd(array=lambda inputs: inputs * np.nan), "the source rings: inputs of test: expected finite numbers"),
        (
            Odd(array=lambda _: None),
            "the source rings: inputs of test: expected float32 [60, 2], as facts() say",
        ),
        (
            Odd(array=lambda y: y + 1, part="targets"),
            "the source rings: targets of test: expected classes from 0 to",
        ),
        (Odd(array=lambda y: y[:, None], part="targets"), "the source rings: targets of test: expected int32 [60], as"),
    ],
)
def test_a_data_set_that_does_not_follow_the_protocol(source: Any, says: str, cache):
    with pytest.raises(sx.SweepError) as caught:
        load(sx.DataSpec(source=source, train_examples=(20,)))
    assert str(caught.value).startswith(says)
    assert not list(cache.glob("*"))


# --- arrays

X = np.arange(40.0).reshape(20, 2)
Y = np.arange(20) % 3
FRACTIONS: Any = (0.5, 1.0)


def card_of(x: Any, y: Any, **spec: Any):
    return describe(sx.DataSpec(source=sx.arrays(x, y), fractions=FRACTIONS, **spec))


def test_arrays_are_divided_without_remainder_or_overlap(cache):
    data = load(sx.DataSpec(source=sx.arrays(X, Y), fractions=FRACTIONS))
    card = data.card
    assert (card.source, card.shape, card.classes, card.targets) == ("arrays", (2,), 3, "int32")
    assert (card.examples, card.validation_examples, card.test_examples) == (14, 3, 3)
    splits = (data.train, data.validation, data.test)
    assert {(split.inputs.dtype.name, split.targets.dtype.name) for split in splits} == {("float32", "int32")}
    inputs, targets = (np.concatenate([getattr(split, part) for split in splits]) for part in ("inputs", "targets"))
    order = np.argsort(inputs[:, 0])
    assert np.array_equal(inputs[order], X)
    assert np.array_equal(targets[order], Y)
    assert not np.array_equal(order, np.arange(20))
    assert not list(cache.glob("*"))


def test_fewer_training_examples_are_the_first_of_more_and_the_seed_draws_the_order():
    source = sx.arrays(X, Y)
    few, many = (load(sx.DataSpec(source=source, train_examples=(5,), examples=count)) for count in (5, 14))
    assert np.array_equal(few.train.inputs, many.train.inputs[:5])
    assert np.array_equal(few.test.inputs, many.test.inputs)
    other = load(sx.DataSpec(source=source, train_examples=(5,), examples=14, seed=1))
    assert not np.array_equal(other.train.inputs, many.train.inputs)


def test_floats_are_numbers_for_a_regression():
    card = card_of(X[:, :, None], Y.astype(np.float64))
    assert (card.shape, card.classes, card.targets, card.target_shape) == ((2, 1), None, "float32", ())
    data = load(sx.DataSpec(source=sx.arrays(X, Y / 2), fractions=FRACTIONS))
    assert data.test.targets.dtype == np.float32


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X.tolist(), Y.tolist()),
        (pd.DataFrame(X), pd.Series(Y)),
        (pd.DataFrame({"a": X[:, 0].astype(int), "b": X[:, 1]}), pd.Series(Y, dtype="int8")),
        (np.asfortranarray(X.astype(np.float32)), Y.astype(np.uint8)),
    ],
    ids=["lists", "pandas", "mixed columns", "other types"],
)
def test_what_holds_the_same_numbers_is_the_same_data_set(x: Any, y: Any):
    assert sx.arrays(x, y) == sx.arrays(X, Y)
    assert hash(sx.arrays(x, y)) == hash(sx.arrays(X, Y))
    assert card_of(x, y) == card_of(X, Y)


def test_the_fingerprint_follows_content_types_and_shapes():
    one_less = Y.copy()
    one_less[0] = 1
    cases = [(X, Y), (X + 1, Y), (X, one_less), (X, Y * 1.0), (X.reshape(20, 2, 1), Y), (X[:10], Y[:10])]
    assert len({card_of(x, y).fingerprint for x, y in cases}) == len(cases)
    assert len({card_of(X, Y, seed=seed).fingerprint for seed in (0, 1)}) == 2


def test_arrays_are_copied():
    x, y = X.astype(np.float32), Y.astype(np.int32)
    source = sx.arrays(x, y)
    x[:], y[:] = 0, 0
    assert source == sx.arrays(X, Y)
    data = load(sx.DataSpec(source=source, fractions=FRACTIONS))
    assert data.train.inputs.max() > 30
    assert (
        source.facts().content["sha256"]
        == hashlib.sha256(
            b"float32 [20, 2] " + X.astype("<f4").tobytes() + b"int32 [20] " + Y.astype("<i4").tobytes()
        ).hexdigest()
    )  # the same on every machine


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (X, Y[1:], "y: expected one target for each of the 20 examples of x, found the shape [19]"),
        (X, X, "y: expected one target for each of the 20 examples of x, found the shape [20, 2]"),
        (X[:, 0], Y, "x: expected at least one example in an array [n, ...], found the shape [20]; reshape(-1, 1) mak"),
        (3.0, Y, "x: expected at least one example in an array [n, ...], found the shape []"),
        (X[:0], Y[:0], "x: expected at least one example in an array [n, ...], found the shape [0, 2]"),
        (X[:, :0], Y, "x: expected at least one example in an array [n, ...], found the shape [20, 0]"),
        (X + np.inf, Y, "x: 20 of 20 rows have numbers that are not finite, the first in column 0; fill them in or le"),
        (X * 1e300, Y, "x: numbers too large for float32; give them in a larger unit"),
        (X.astype(str), Y, "x: expected numbers, found texts; turn them into numbers first"),
        (X * 1j, Y, "x: expected numbers, found an array of type complex128"),
        (X, np.datetime64("2020") + Y, "y: expected numbers, found an array of type datetime64[Y]"),
        (pd.DataFrame({"a": ["x"] * 20, "b": Y}), Y, 'categories: column a holds texts, such as "x"; categories = ["'),
        ([[1], [1, 2]], Y, "x: NumPy can make no array of it (setting an array element with a sequence"),
    ],
)  # fmt: skip
def test_arrays_that_are_refused(x: Any, y: Any, says: str):
    with pytest.raises(sx.SweepError) as caught:
        sx.arrays(x, y)
    assert str(caught.value).startswith(f"arrays(x, y): {says}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("y", "says"),
    [
        (Y * np.nan, "(x, y): y: 20 of 20 rows have no finite target"),
        (Y + 1, "(x, y): y: whole numbers from 1 to 3 may be classes or numbers; say task"),
        (Y - 1, "(x, y): y: whole numbers from -1 to 1 may be classes or numbers"),
        (Y * 2, "(x, y): y: whole numbers from 0 to 4 may be classes or numbers"),
        (Y * 0, "(x, y): y: expected at least two classes, found only 0"),
    ],
)
def test_targets_are_held_against_the_task_when_it_is_known(y: Any, says: str):
    with pytest.raises(sx.SweepError) as caught:
        card_of(X, y)
    assert str(caught.value).startswith(f"[data] source: arrays{says}")


def test_truth_values_are_classes():
    assert sx.arrays(X, Y > 0) == sx.arrays(X, (Y > 0).astype(int))


def test_too_few_examples_are_refused():
    with pytest.raises(sx.SweepError, match=r"validation_examples: 1 and test_examples = 1 leave none of the 2 exam"):
        card_of(X[:2], Y[:2])


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Says nothing of what determines its numbers."""

    scale: Any = 1.0
    columns: int = 3
    classes: int = 2
    content: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    name: ClassVar[str] = "scaled"

    def facts(self) -> sx.Facts:
        return sx.Facts((self.columns,), self.classes, None, 5, 5, content=self.content, kept=True)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, sx.Split]:
        draw = np.random.default_rng(seed).normal
        return {
            name: sx.Split((self.scale * draw(size=(size, self.columns))).astype(np.float32), np.zeros(size, np.int32))
            for name, size in sizes.items()
        }


@pytest.mark.usefixtures("cache")
def test_fields_and_shapes_of_ones_own_source_are_part_of_the_fingerprint():
    sources = [Scaled(), Scaled(scale=9.0), Scaled(columns=4), Scaled(classes=3), Scaled(scale=np.arange(3.0))]
    specs = [sx.DataSpec(source=source, train_examples=(50,)) for source in sources]
    assert len({describe(spec).fingerprint for spec in specs}) == len(specs)
    first, second = (load(spec).train.inputs for spec in specs[:2])
    assert np.allclose(9 * first, second)  # not what the cache holds of the other
    assert describe(specs[0]) == describe(sx.DataSpec(source=Scaled(), train_examples=(50,)))


def test_a_source_of_which_nothing_tells_what_it_makes_is_refused():
    with pytest.raises(sx.SweepError, match="nothing tells two sources with other scale apart; name in the content"):
        describe(sx.DataSpec(source=Scaled(scale=np.sin), train_examples=(5,)))
    assert describe(sx.DataSpec(source=Scaled(scale=np.sin, content={"wave": "sine"}), train_examples=(5,)))


def test_masked_numbers_are_refused():
    with pytest.raises(sx.SweepError, match="x: expected numbers, found masked ones"):
        sx.arrays(np.ma.masked_greater(X, 30), Y)
    assert sx.arrays(np.ma.masked_greater(X, 100), Y) == sx.arrays(X, Y)
