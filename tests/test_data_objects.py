"""Data in Python objects: pairs, mappings, tables, data sets whose items are examples, and what has a name."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scalejax as sx
from scalejax.data import FromFile, Given, Options, as_source, describe, load
from scalejax.data.opening import FILES, FOLDER, OBJECTS

X = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
Y = np.arange(40) % 4
FRACTIONS: Any = (1.0,)
FRAME = pd.DataFrame(X, columns=["a", "b", "c"])


def spec(source: Any, **options: Any) -> sx.DataSpec:
    return sx.DataSpec(source=source, fractions=FRACTIONS, **options)


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(sx.SweepError) as caught:
        describe(spec(source, **options))
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix("[data] ")


class Items:
    """A data set as PyTorch, Grain and TFDS have them."""

    def __init__(self, item: Any, count: int = 40):
        self.item, self.count = item, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


@dataclasses.dataclass(frozen=True)
class Own:
    """A source of one's own, which reads nothing."""

    def facts(self) -> sx.Facts:
        return sx.Facts((3,), 4, 40, 6, 6, content={"version": 1})

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, sx.Split]:
        del seed
        parts = np.split(np.arange(40), np.cumsum([sizes["train"], sizes["validation"]]))
        names = "train", "validation", "test"
        return {name: sx.Split(X[rows], Y[rows].astype(np.int32)) for name, rows in zip(names, parts, strict=True)}


@pytest.mark.parametrize(
    ("source", "options"),
    [
        ((X, Y), {}),
        ((X.tolist(), Y.tolist()), {}),
        ((FRAME, pd.Series(Y)), {}),
        ((FRAME, pd.DataFrame({"y": Y})), {}),
        ((FRAME, Y[:, None]), {}),
        ({"data": X, "target": Y}, {}),
        ({"data": FRAME, "target": pd.Series(Y), "frame": None, "DESCR": "a bunch"}, {}),
        ({"inputs": X, "targets": Y}, {}),
        (FRAME.assign(y=Y), {"target": "y"}),
        (FRAME.assign(y=Y).set_index("a", drop=False), {"target": "y"}),
        (FRAME.assign(more=1, y=Y), {"target": "y", "columns": ["a", "b", "c"]}),
        (Items(lambda index: (X[index], Y[index])), {}),
        (Items(lambda index: {"image": X[index], "label": int(Y[index]), "id": index}), {}),
        (Items(lambda index: {"x": X[index], "kind": Y[index]}), {"target": "kind"}),
        ([(x, y) for x, y in zip(X, Y, strict=True)], {}),
    ],
)  # fmt: skip
def test_whatever_holds_the_same_examples_is_the_same_data_set(source: Any, options: dict[str, Any]):
    asked = spec(source, **options)
    assert describe(asked) == describe(spec(sx.arrays(X, Y)))
    for name in ("train", "validation", "test"):
        expected, found = (getattr(load(each), name) for each in (spec(sx.arrays(X, Y)), asked))
        assert np.array_equal(expected.inputs, found.inputs)
        assert np.array_equal(expected.targets, found.targets)
    assert hash(asked) == hash(dataclasses.replace(asked))
    assert asked == dataclasses.replace(asked) == spec(source, **options)


def test_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets")
    wine = datasets.load_wine()
    asked = [spec(wine), spec(datasets.load_wine(as_frame=True)), spec(datasets.load_wine(return_X_y=True))]
    asked.append(spec(datasets.load_wine(as_frame=True).frame, target="target"))
    assert {describe(each).fingerprint for each in asked} == {
        describe(spec(sx.arrays(wine.data, wine.target))).fingerprint
    }
    assert (describe(asked[0]).shape, describe(asked[0]).classes) == ((13,), 3)


def test_what_is_given_is_copied():
    x, table = X.copy(), FRAME.assign(y=Y)
    pair, frame = spec((x, Y)), spec(table, target="y")
    card = describe(pair)
    x[:] = 0
    table["a"] = 0.0
    assert describe(dataclasses.replace(pair)) == describe(frame) == card
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2), np.uint8)
    source, before = spec((images, Y)), images.copy()
    images[:] = 0
    assert describe(source) == describe(spec((before, Y)))
    images[:] = 1  # still the user's to write


def test_the_task_reads_the_targets():
    def card(source: Any, task: Any, **options: Any):
        return describe(sx.Sweep("s", spec(source, **options), (sx.ModelGrid("logistic"),),
                                 sx.TrainSpec((0.1,), (4,), steps=5), task=task).data)  # fmt: skip

    assert card((X, Y + 1), "classification").classes == 4
    assert card((X, Y + 1), "regression").targets == "float32"
    assert card((X, [f"class {y}" for y in Y]), None).classes == 4
    assert card(FRAME.assign(y=pd.Categorical(Y.astype(str))), None, target="y").classes == 4
    assert card(FRAME.assign(y=Y % 2 == 0), None, target="y").classes == 2
    assert card((X, Y % 2), "regression").targets == "float32"
    assert "may be classes or numbers" in refused((X, Y + 1))


def test_arrays_and_a_pair_are_one_door():
    texts = [f"class {y}" for y in Y]
    for y, tasks in ((Y + 1, ("classification", "regression")), (Y % 2, (None, "classification", "regression")),
                     (Y * 1.0, (None, "classification", "regression")), (texts, (None, "classification"))):  # fmt: skip
        for x in (X, FRAME):
            made, pair = spec(sx.arrays(x, y)), spec((x, y))
            assert made == pair
            for task in tasks:
                assert describe(made.for_task(task)) == describe(pair.for_task(task))
    assert describe(spec(sx.arrays(X, Y), stratify=True)) == describe(spec(sx.arrays(X, Y, stratify=True)))
    assert describe(spec((X, Y), stratify=True)) == describe(spec(sx.arrays(X, Y, stratify=True)))


def test_fingerprints_of_arrays_are_those_of_old():
    x, y, groups = np.arange(80.0).reshape(40, 2), np.arange(40) % 4, np.arange(40) // 8
    found = {
        "classes": sx.arrays(x, y),
        "numbers": sx.arrays(x, (y / 2).astype(np.float32)),
        "truths": sx.arrays(x, y > 1),
        "groups": sx.arrays(x, y, groups=[f"g{n}" for n in groups]),
        "stratified": sx.arrays(x, y, stratify=True),
        "standardised": sx.arrays(x, y / 2, standardise_target=True),
        "table": sx.arrays(pd.DataFrame(x), pd.Series(y)),
    }
    assert {name: describe(spec(source)).fingerprint[:12] for name, source in found.items()} == {
        "classes": "032449173433",
        "numbers": "32a1180df409",
        "truths": "9197d0d06096",
        "groups": "c78cf90850c9",
        "stratified": "5b4d0aa29330",
        "standardised": "813ebf253147",
        "table": "032449173433",
    }


def test_arrays_by_request():
    groups = np.arange(40) // 8
    grouped = load(spec(sx.arrays(X, Y, groups=groups), validation_examples=9, test_examples=9))
    assert grouped.card.sizes == {"train": 24, "validation": 8, "test": 8}
    assert describe(spec(sx.arrays(X, Y, groups=[f"g{n}" for n in groups]))) == describe(
        spec(sx.arrays(X, Y, groups=groups))
    )
    stratified = load(spec(sx.arrays(X, Y, stratify=True), validation_examples=8, test_examples=8))
    assert np.array_equal(np.bincount(stratified.test.targets), [2, 2, 2, 2])
    assert np.array_equal(np.bincount(stratified.validation.targets), [2, 2, 2, 2])
    scaled = load(spec(sx.arrays(X, X[:, 0] * 50 + 1000, standardise_target=True)))
    assert np.allclose([scaled.train.targets.mean(), scaled.train.targets.std()], [0, 1], atol=1e-5)
    for call, says in (
        (lambda: sx.arrays(X, Y, groups=[1]), "group: expected a group for each of 40 examples, found [1]"),
        (lambda: sx.arrays(X, Y, groups=[object()] * 40), "group: the groups are neither all numbers nor all texts"),
        (lambda: sx.arrays(X, Y, stratify="yes"), "stratify: expected true or false, found 'yes'"),  # pyright: ignore
        (lambda: sx.arrays(FRAME.assign(a="u"), Y), 'categories: column a holds texts, such as "u"; categories = ["a"'),
    ):
        with pytest.raises(sx.SweepError) as caught:
            call()
        assert str(caught.value).startswith(f"arrays(x, y): {says}")
    for source, says in (
        (sx.arrays(X, Y, standardise_target=True), "standardise_target: classes have no mean"),
        (sx.arrays(X, Y / 3, stratify=True), "stratify: only classes have proportions"),
        (sx.arrays(X, Y, groups=groups, stratify=True), "stratify: groups and classes cannot both decide"),
    ):
        assert refused(source).startswith(says)
    assert describe(spec(sx.arrays(X, Y))).fingerprint != describe(spec(sx.arrays(X, Y, stratify=True))).fingerprint
    same = {"validation_examples": 5, "test_examples": 5}
    with pytest.raises(sx.SweepError, match="all targets of the training pool are the same number"):
        load(spec(sx.arrays(X, np.ones(40), standardise_target=True), **same))


def test_images_of_examples_stay_bytes():
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), np.uint8)
    found = spec(Items(lambda index: (images[index], int(Y[index]))))
    assert (describe(found).inputs, describe(found).shape) == ("uint8", (5, 5, 3))
    assert load(found).train.inputs.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        load(found).card and found.origin.held().inputs.__setitem__(0, 0)  # pyright: ignore


def failing(index: int) -> Any:
    if index == 17:
        raise KeyError("jpeg")
    return X[index], Y[index]


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        (X, {}, "source: the ndarray: it holds no targets; give a pair, source=(x, y)"),
        (7, {}, "source: expected the name of a source, a file, (x, y), a table, a data set whose items are examples,"),
        (Own, {}, "source: expected an object, found the class Own; write Own()"),
        (Own(), {"target": "y"}, "target: means nothing to the Own; drop this key"),
        (sx.arrays(X, Y), {"group": "a"}, "group: means nothing to examples that are read already; drop this key"),
        ((X, Y), {"columns": ["a"]}, "columns: means nothing to (x, y); drop this key"),
        ((FRAME, Y), {"target": "a"}, "target: means nothing to a table with targets beside it; drop this key"),
        ((X, Y[1:]), {}, "source: (x, y): y: expected one target for each of the 40 examples of x, found the shape [3"),
        ((FRAME, Y[1:]), {}, "source: (x, y): expected one target for each of the 40 rows, found 39"),
        ((FRAME, X), {}, "source: (x, y): expected one target for each of the 40 rows, found the shape [40, 3]"),
        ({"data": FRAME, "target": FRAME}, {}, "source: the dict: expected one target for each of the 40 rows, found"),
        ((FRAME, set(range(40))), {}, "source: (x, y): pandas can make no column of the targets ("),
        ({"x": FRAME, "y": Y, "test_x": X, "test_y": Y}, {}, "source: the dict: there is test_x, which means nothing"),
        (([[1], [1, 2]], [0, 1]), {}, "source: (x, y): x: NumPy can make no array of it (setting an array element"),
        ((np.ma.masked_greater(X, 0), Y), {}, "source: (x, y): x: expected numbers, found masked ones"),
        ((X, [None] * 40), {}, "source: (x, y): y: expected numbers, found an array of type object"),
        ({"data": X}, {}, "source: the dict: expected x and y, or inputs and targets, or train_x, train_y, test_x and"),
        (FRAME, {}, 'target: the DataFrame: say which column is the target, as in target = "c"; there are a, b, c'),
        (FRAME.rename(columns={"b": "a"}), {"target": "c"}, "source: the DataFrame: there are two columns a; rename o"),
        (FRAME.assign(when=pd.Timestamp("2020-01-02")), {"target": "c"}, "columns: the DataFrame: column when holds d"),
        (FRAME.assign(y=1j), {"target": "c"}, "columns: the DataFrame: column y: expected real numbers, found complex"),
        (FRAME.assign(y=[{}] * 40), {"target": "y"}, "target: the DataFrame: column y: expected numbers or texts, fou"),
        *((FRAME.assign(k=pd.Series([each] * 40)), {"target": "c", "group": "k"}, "group: the DataFrame: column k: the "
           "groups are neither all numbers nor all texts") for each in ([1], {"a": 1}, {1}, np.ones(2))),
        *((FRAME.assign(k=pd.Series([each] * 40)), {"target": "c", "split": "k"}, "split: the DataFrame: expected "
           "train, validation or test, found values that are no texts") for each in ([1, 2], (1, 2), np.ones(2))),
        (FRAME[:0], {"target": "c"}, "source: the DataFrame: there is no example in it"),
        (Items(failing), {}, "source: the Items: example 17 cannot be read (KeyError: 'jpeg')"),
        (Items(lambda index: X[index]), {}, 'source: the Items: example 0: expected (input, target), or {"x": input'),
        (Items(lambda index: (X[0, : 1 + index % 2], 0)), {}, "source: the Items: example 1: expected the shape [1] o"),
        (Items(lambda index: {"pixels": X[0], "label": index}), {}, "source: the Items: expected one of x, inputs, da"
         "ta, image, images, and one of y, targets, target, label, labels; found pixels, label"),
        (Items(lambda _: (X[0], 0), count=0), {}, "source: the Items: there is no example in it"),
        (Items(lambda _: (X[0], 0)), {"group": "id"}, "group: means nothing to a sequence of examples; drop this key"),
        (Items(lambda _: (X[0], 0)), {}, "source: the Items: y: expected at least two classes, found only 0"),
        ((X, Y), {"taget": "y"}, "taget: unknown key; did you mean target?"),
    ],
)  # fmt: skip
def test_objects_that_are_refused(source: Any, options: dict[str, Any], says: str):
    assert refused(source, **options).startswith(says)


class Polars:
    """A table of another package."""

    def to_pandas(self) -> pd.DataFrame:
        return FRAME.assign(y=Y)


@pytest.mark.parametrize("value", [(X, Y), (FRAME, Y), {"x": X, "y": Y}, {"data": FRAME, "target": Y},
                                   FRAME.assign(y=Y), Polars(), Items(lambda index: (X[index], Y[index]))])  # fmt: skip
def test_an_option_means_something_or_is_refused(value: Any):
    for name in ("validation_source", "test_source", "targets"):
        assert refused(value, **{name: "nowhere.csv"}).startswith(f"{name}: means nothing to ")


def test_options_of_kinds_are_options():
    for kind in (*FILES.values(), FOLDER, *(kind for _, kind in OBJECTS)):
        assert set(kind.means) <= {each.name for each in dataclasses.fields(Options)}


# --- by name


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A module `mine` of the user's own."""
    monkeypatch.chdir(tmp_path)
    made = ModuleType("mine")
    monkeypatch.setitem(sys.modules, "mine", made)
    return made


def test_a_source_is_what_a_function_of_that_name_returns(module: Any):
    module.pair = lambda: (X, Y)
    module.frame = lambda: FRAME.assign(y=Y)
    module.table = FRAME.assign(y=Y)
    module.Own, module.own, module.make = Own, Own(), Own
    for name, options in (("pair", {}), ("frame", {"target": "y"}), ("table", {"target": "y"})):
        assert describe(spec(f"mine:{name}", **options)) == describe(spec((X, Y)))
    cards = {describe(spec(source)).fingerprint for source in (Own(), "mine:Own", "mine:own", "mine:make")}
    assert len(cards) == 1

    def broken() -> Any:
        raise OSError("no network")

    module.broken, module.needs = broken, lambda folder: folder
    assert (
        refused("mine:broken") == "source: mine:broken: it could not be called without arguments (OSError: no network)"
    )
    assert "it could not be called without arguments (TypeError" in refused("mine:needs")
    assert refused("mine:none").count("mine") >= 1
    assert refused("absent_module:thing").count("absent_module") >= 1


def test_a_sweep_file_names_a_function(module: Any, tmp_path: Path):
    module.frame = lambda: FRAME.assign(y=X[:, 0])
    text = sx_text("mine:frame", 'target = "y"')
    (tmp_path / "sweep.toml").write_text(text)
    sweep = sx.load_sweep(tmp_path / "sweep.toml")
    assert describe(sweep.data) == describe(spec(FRAME.assign(y=X[:, 0]), target="y"))


def sx_text(source: str, more: str) -> str:
    models, train = '[[models]]\nfamily = "logistic"', "[train]\nlearning_rate = 0.1\nbatch_size = 8\nsteps = 20"
    return f'name = "s"\n[data]\nsource = {json.dumps(source)}\n{more}\nfractions = 1.0\n{models}\n{train}\n'


def test_as_source_says_what_it_made(tmp_path: Path):
    assert isinstance(as_source((X, Y)), Given)
    assert isinstance(as_source(str(tmp_path / "a.csv"), {"target": "y"}), FromFile)
    assert isinstance(as_source(sx.arrays(X, Y)), Given)
    assert isinstance(as_source((X, Y)), sx.Source)


# --- Hugging Face, where it is installed, and what PyTorch has


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    table = FRAME.assign(city=np.array(["Bonn", "Ulm"])[Y % 2], label=Y)
    made = datasets.Dataset.from_pandas(table)
    expected = describe(spec(table, target="label", categories="one-hot"))
    assert describe(spec(made, categories="one-hot")) == expected
    made.save_to_disk("saved")
    assert describe(spec("saved", target="label", categories="one-hot")) == expected
    both = datasets.DatasetDict({"train": made.select(range(30)), "test": made.select(range(30, 40))})
    both.save_to_disk("both")
    for source in (both, "both"):
        assert describe(spec(source, categories="one-hot")).sizes == {"train": 26, "validation": 4, "test": 10}
    plain = datasets.Dataset.from_pandas(table.drop(columns="city"))
    assert describe(spec(plain)) == describe(spec((X, Y)))
    assert refused(made, targets="y.npy").startswith("targets: means nothing to a table of Hugging Face")
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4), np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(4)})
    pictures = datasets.Dataset.from_dict({"image": list(images), "label": Y}, features=features)
    assert describe(spec(pictures)) == describe(spec((images, Y)))
    pictures.save_to_disk("pictures")
    for source in (pictures, "pictures"):
        assert refused(source, group="label").startswith(
            "group: means nothing to a data set of Hugging Face that is no"
        )
    Path("saved/state.json").write_text("{")
    assert refused("saved").startswith("source: saved: the dataset cannot be read (")
    renamed = datasets.DatasetDict({"unsupervised": made, "train": made})
    assert "expected splits called train, validation and test, found unsupervised" in refused(renamed)


def test_a_folder_needs_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "dataset_info.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'run pip install "scalejax[datasets]"' in refused(str(tmp_path))


class Tensor:
    """What NumPy reads as it reads a tensor of PyTorch."""

    def __init__(self, values: Any):
        self.values = np.asarray(values)

    def numpy(self) -> np.ndarray:
        return self.values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy() if dtype is None else self.numpy().astype(dtype)


def test_pytorch():
    made = Items(lambda index: (Tensor(X[index]), Tensor(Y[index])))  # as a TensorDataset
    assert describe(spec(made)) == describe(spec((X, Y))) == describe(spec((Tensor(X), Tensor(Y))))


def test_a_column_of_a_table_may_be_named_by_its_number():
    table = pd.DataFrame(np.column_stack([X, Y, Y]))
    width = len(table.columns)
    by_number = spec(table, target=width - 1, columns=[0, np.int64(1)], categories=np.array([1]), group=width - 2)
    by_name = spec(table, target=f"{width - 1}", columns=["0", "1"], categories=["1"], group=f"{width - 2}")
    assert describe(by_number) == describe(by_name)
    assert "target: the DataFrame: there is no column 99; it has 0, 1" in refused(table, target=99)
    assert "target: expected a non-empty text on one line, found true" in refused(table, target=True)
