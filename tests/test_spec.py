"""The dataclasses of a sweep: what is accepted, and the one sentence for each thing that is not."""

import copy
import dataclasses
import math
import pickle
from typing import Any

import numpy as np
import pytest

from scalejax.errors import SweepError
from scalejax.spec import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec, check_models
from scalejax.spec.file import load_sweep, sweep_to_toml


class Hiding(type):
    """Hides the signature of __init__, as the metaclass of Flax modules does."""

    def __call__(cls, *values: Any, **named: Any) -> Any:
        return super().__call__(*values, **named)


class Logistic(metaclass=Hiding):
    def __init__(self, *, inputs: int, classes: int, rngs: Any): ...


def mlp(*, inputs: int, classes: int, width: int, depth: "int", rate: float = 0.5, kind: str = "relu", rngs: Any): ...


FAMILIES = {"logistic": Logistic, "mlp": mlp}


def no_rngs(*, width): ...


def loose_rngs(width, rngs): ...


def by_position(width, /, *, rngs): ...


def untyped(*, width, rngs): ...


def takes_any(*, rngs, **rest): ...


DATA: dict[str, Any] = {"source": "land", "train_examples": [20, 60]}
TRAIN: dict[str, Any] = {"learning_rate": 1e-3, "batch_size": 64, "steps": 3000}
HALVING: dict[str, Any] = {"rungs": [0.1, 0.3]}
LOOSE: Any = TrainSpec  # for calls that pyright would refuse, as it should
TABLES = {"data": (DataSpec, DATA), "train": (TrainSpec, TRAIN), "train.halving": (HalvingSpec, HALVING)}


def sweep(**changes: Any) -> Sweep:
    parts = {"name": "q", "data": DataSpec(**DATA), "models": [ModelGrid("logistic")], "train": TrainSpec(**TRAIN)}
    return Sweep(**{**parts, **changes})


def sentence(caught: pytest.ExceptionInfo[SweepError]) -> str:
    """Return the error's text, which must be one line of moderate length, whatever it is about."""
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert len(text) < 500
    return text


# --- what is accepted


def test_scalars_become_grids_of_one_and_lists_tuples():
    train = TrainSpec(**{**TRAIN, "learning_rate": 1, "weight_decay": [0, -0.0 + 1e-2]})
    assert (train.learning_rate, train.weight_decay) == ((1.0,), (0.0, 0.01))
    assert type(train.learning_rate[0]) is float
    assert train.batch_size == (64,)
    assert ModelGrid("mlp", width=[16, 64], depth=2).knobs == {"width": (16, 64), "depth": (2,)}


def test_numpy_counts_as_python():
    train = TrainSpec(**{**TRAIN, "learning_rate": np.array([0.5, 0.25]), "batch_size": [np.int64(8)]})
    assert repr(train.learning_rate + train.batch_size) == "(0.5, 0.25, 8)"


def test_minus_zero_is_zero():
    train = TrainSpec(**{**TRAIN, "weight_decay": -0.0})
    assert math.copysign(1, train.weight_decay[0]) == 1


@pytest.mark.parametrize(("given_", "stored"), [(3, (0, 1, 2)), (1, (0,)), ([3], (3,)), ([7, 0], (7, 0))])
def test_seeds(given_, stored):
    assert sweep(seeds=given_).seeds == stored


def test_halving_is_off_unless_asked_for_and_goes_together_with_patience():
    assert TrainSpec(**TRAIN).halving is None
    assert HalvingSpec(0.5) == HalvingSpec(rungs=(0.5,), reduction=2)  # pyright: ignore[reportArgumentType]
    rates = {"learning_rate": (1e-3, 1e-2), "patience": 3}
    assert TrainSpec(**TRAIN | rates, halving=HalvingSpec((0.1, 0.3), 4)).halving == HalvingSpec((0.1, 0.3), 4)


def test_specs_are_values():
    one = sweep(models=[ModelGrid("mlp", width=[8], depth=2), ModelGrid(mlp, {"width": 8, "depth": 2})])
    assert pickle.loads(pickle.dumps(one)) == one == copy.deepcopy(one) == dataclasses.replace(one)
    same = sweep(models=[ModelGrid("mlp", depth=2, width=8), ModelGrid(mlp, depth=2, width=8)])
    assert one == same
    assert hash(one) == hash(same)
    assert one != sweep(models=[ModelGrid("mlp", width=[9], depth=2)])
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


# --- one bad value at a time, from Python, from a file and as an override

WHOLE = "expected a whole number >= 1"
POSITIVE = "expected a finite number > 0"
SHARE = "finite number > 0 and < 1"
BAD_VALUES: list[tuple[str, str, Any, str]] = [
    ("train", "learning_rate", 0, f"{POSITIVE}, or a list of such values, found 0"),
    ("train", "learning_rate", [1e-3, -1.0], f"{POSITIVE}, or a list of such values, found -1.0"),
    ("train", "learning_rate", math.nan, "found nan"),
    ("train", "learning_rate", math.inf, "found inf"),
    ("train", "learning_rate", 10**400, "found 1000000"),
    ("train", "learning_rate", "1e-3", "found '1e-3'"),
    ("train", "learning_rate", True, "found true"),
    ("train", "learning_rate", [], "expected at least one value, found an empty list"),
    ("train", "learning_rate", [1, 1.0], "1.0 is given twice; expected distinct values"),
    ("train", "learning_rate", [[1e-3]], "found [0.001]"),
    ("train", "learning_rate", {"a": 1}, "found a table"),
    ("train", "weight_decay", -1e-9, "expected a finite number >= 0, or a list of such values, found -1e-09"),
    ("train", "batch_size", 0, f"{WHOLE}, or a list of such values, found 0"),
    ("train", "batch_size", 64.0, "found 64.0"),
    ("train", "steps", 3000.0, f"{WHOLE}, found 3000.0"),
    ("train", "steps", True, f"{WHOLE}, found true"),
    ("train", "steps", "3", f"{WHOLE}, found '3'"),
    ("train", "steps", [3], f"{WHOLE}, found [3]"),
    ("train", "steps", 2**31, "expected at most 2147483647, found 2147483648"),
    ("train", "epochs", 0, f"{POSITIVE}, found 0"),
    ("train", "epochs", 3, "expected exactly one of steps and epochs, found both"),
    ("train", "min_steps", 3, "expected only together with epochs, found steps"),
    ("train", "max_steps", 3, "expected only together with epochs, found steps"),
    ("train", "max_steps", 0, f"{WHOLE}, found 0"),
    ("train", "warmup_fraction", 1, "expected a finite number >= 0 and < 1, found 1"),
    ("train", "warmup_fraction", -0.1, "found -0.1"),
    ("train", "clip_norm", 0, f"{POSITIVE}, found 0"),
    ("train", "evaluate_every", 0, f"{WHOLE}, found 0"),
    ("train", "patience", 0, f"{WHOLE}, found 0"),
    ("train", "optimizer", "adamv", "'adamv' is unknown; did you mean adamw?"),
    ("train", "optimizer", "zzz", "'zzz' is unknown; expected one of adamw, sgd, momentum, lion"),
    ("train", "optimizer", ["sgd"], "expected one of adamw, sgd, momentum, lion, found ['sgd']"),
    ("train", "schedule", "constat", "'constat' is unknown; did you mean constant?"),
    ("train", "learning_rte", 1e-3, "unknown key; did you mean learning_rate?"),
    ("train", "zzz", 1, "unknown key; expected one of learning_rate, batch_size,"),
    ("train.halving", "rungs", 1, f"expected a {SHARE}, or an ascending list of such values, found 1"),
    ("train.halving", "rungs", [0.0, 0.5], "found 0.0"),
    ("train.halving", "rungs", [0.3, 0.1], "expected the smallest first, found [0.3, 0.1]"),
    ("train.halving", "rungs", [0.3, 0.3], "0.3 is given twice; expected distinct values"),
    ("train.halving", "rungs", [], "expected at least one value, found an empty list"),
    ("train.halving", "reduction", 1, "expected a whole number >= 2, found 1"),
    ("train.halving", "reduction", 2.0, "found 2.0"),
    ("train.halving", "reducton", 2, "unknown key; did you mean reduction?"),
    ("data", "source", "", "expected a non-empty text on one line, found ''"),
    ("data", "source", "a\0b\n", "found 'a\\x00b\\n'"),
    ("data", "train_examples", [20, 0], f"{WHOLE}, or a list of such values, found 0"),
    ("data", "train_examples", [20, 20], "20 is given twice; expected distinct values"),
    ("data", "train_examples", [], "expected at least one value, found an empty list"),
    ("data", "fractions", [0.5], "expected exactly one of train_examples and fractions, found both"),
    ("data", "fractions", 0, "expected a finite number > 0 and <= 1, or a list of such values, found 0"),
    ("data", "fractions", [0.5, 1.1], "found 1.1"),
    ("data", "examples", 0, f"{WHOLE}, found 0"),
    ("data", "validation_examples", 0, f"{WHOLE}, found 0"),
    ("data", "test_examples", -5, f"{WHOLE}, found -5"),
    ("data", "seed", -1, "expected a whole number >= 0, found -1"),
    ("data", "fourier_features", -1, "expected a whole number >= 0, found -1"),
    ("data", "fourier_scale", 0.0, f"{POSITIVE}, found 0.0"),
    ("data", "sauce", "x", "unknown key; did you mean source?"),
    ("", "name", "", "expected 1 to 100 letters (a to z), digits, '.', '_' or '-', not starting with '.'"),
    ("", "name", ".hidden", "found '.hidden'"),
    ("", "name", "a/b", "found 'a/b'"),
    ("", "name", "a\n", "found 'a\\n'"),
    ("", "name", "é", "found 'é'"),
    ("", "name", 3, "found 3"),
    ("", "seeds", 0, "expected a number of seeds from 1 to 10000 or a list of seeds, found 0"),
    ("", "seeds", 3.0, "found 3.0"),
    ("", "seeds", True, "found true"),
    ("", "seeds", 10**9, "found 1000000000"),
    ("", "seeds", [0, -1], "expected a whole number >= 0, or a list of such values, found -1"),
    ("", "seeds", [1, 1], "1 is given twice; expected distinct values"),
    ("", "seeds", [], "expected at least one value, found an empty list"),
]


@pytest.mark.parametrize(("table", "key", "value", "says"), BAD_VALUES)
def test_bad_value_in_python(table, key, value, says):
    kind, good = TABLES.get(table, (sweep, {}))
    with pytest.raises(SweepError) as caught:
        kind(**{**good, key: value})
    text = sentence(caught)
    places = [f"[{table}] {name}: " for name in (key, "steps", "train_examples")] if table else [f"{key}: "]
    exclusive = "exactly one" in says
    assert text.startswith(tuple(places if exclusive else places[:1]))
    assert says in text


@pytest.mark.parametrize(("table", "key", "value", "says"), BAD_VALUES)
def test_bad_value_as_override(table, key, value, says, tmp_path):
    dotted = f"{table}.{key}" if table else key
    path = tmp_path / "x.toml"
    halving = {"learning_rate": [1e-3, 1e-2], "halving": HalvingSpec(**HALVING)} if table == "train.halving" else {}
    path.write_text(sweep_to_toml(sweep(train=TrainSpec(**TRAIN | halving))))
    with pytest.raises(SweepError) as caught:
        load_sweep(path, {dotted: value})
    text = sentence(caught)
    assert text.startswith(f"--set {dotted}: ")
    assert says in text


def test_no_models():
    with pytest.raises(SweepError, match=r"^\[\[models\]\]: expected at least one model, found none$"):
        sweep(models=[])


# --- Python


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LOOSE(1e-3), "[train] batch_size: needed but missing; expected a whole number >= 1"),
        (lambda: LOOSE(1e-3, 64), "[train] steps: expected exactly one of steps and epochs, found neither"),
        (lambda: LOOSE(1e-3, 64, learning_rate=1), "[train]: expected at most one value for each of"),
        (lambda: DataSpec("land"), "[data] train_examples: expected exactly one of train_examples and"),
        (lambda: LOOSE(1e-3, 64, optimizer=None), "[train] optimizer: expected one of adamw"),
        (lambda: LOOSE({1e-3}, 64, steps=1), "[train] learning_rate: expected a finite number > 0"),
        (lambda: LOOSE([1, 2], 64, steps=1, halving=3), "[train.halving]: expected a HalvingSpec, found 3"),
        (lambda: LOOSE(1, 64, steps=1, halving=HalvingSpec((0.5,))), "[train.halving]: expected several learning ra"),
        (HalvingSpec, f"[train.halving] rungs: needed but missing; expected a {SHARE}, or an ascending list of such"),
        (lambda: sweep(nmae="x"), "nmae: unknown key; did you mean name?"),
        (lambda: sweep(data=3), "[data]: expected a DataSpec, found 3"),
        (lambda: sweep(models=["mlp"]), "[[models]]: expected a ModelGrid, found 'mlp'"),
        (lambda: sweep(models=[ModelGrid("mlp")] * 2), "[[models]] index 1 family: repeats a model of index 0; e"),
        (lambda: ModelGrid("mlp", rngs=3), "[[models]] rngs: this cannot be a size knob"),
        (lambda: ModelGrid("mlp", {"width": 3}, width=4), "[[models]] width: given twice"),
        (lambda: ModelGrid("mlp", width=None), "[[models]] width: expected a whole number up to"),
        (lambda: ModelGrid(3), "[[models]] family: expected the name of a family, or a builder, found 3"),  # pyright: ignore
        (lambda: ModelGrid(mlp, width=3), "[[models]] depth: needed by mlp but missing"),
        (lambda: ModelGrid(mlp, width=3, dpth=3), "[[models]] dpth: unknown knob of mlp; did you mean depth?"),
        (lambda: ModelGrid(mlp, width=-3, depth=3), "[[models]] width: expected a whole number >= 1, found -3"),
        (lambda: ModelGrid(Logistic, width=3), "[[models]] width: unknown knob of Logistic; it has none"),
        (lambda: ModelGrid(no_rngs, width=3), "[[models]] family: no_rngs must take rngs by keyword only"),
        (lambda: ModelGrid(loose_rngs, width=3), "[[models]] family: loose_rngs must take rngs by keyword only"),
        (lambda: ModelGrid(by_position), "[[models]] family: by_position takes width by position only"),
        (lambda: ModelGrid(dict.update), "[[models]] family: cannot read the parameters of update"),
    ],
)  # fmt: skip
def test_python_mistakes(make, says):
    with pytest.raises(SweepError) as caught:
        make()
    assert sentence(caught).startswith(says)


def test_builders_without_annotations_take_any_knob():
    knobs = {"width": [1, -2, "a", 0.5, True]}  # True is not 1
    assert ModelGrid(untyped, knobs).knobs == {"width": (1, -2, "a", 0.5, True)}
    assert ModelGrid(takes_any, knobs).knobs.keys() == {"width"}


def test_check_models():
    check_models(sweep(models=[ModelGrid("logistic"), ModelGrid("mlp", width=[8], depth=2, rate=1)]), FAMILIES)
    check_models(sweep(models=[ModelGrid("mlp", width=8, depth=2), ModelGrid("mlp", width=8, depth=3)]), FAMILIES)
    with pytest.raises(SweepError, match=r"^\[\[models\]\] index 0 family: unknown family 'mpl'; did you mean mlp\?$"):
        check_models(sweep(models=[ModelGrid("mpl")]), FAMILIES)
