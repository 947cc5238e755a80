"""Data in files: tables, archives and arrays of NumPy, what is refused in them, and the sweep file that names them."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scalejax as sx
from scalejax.cli import main
from scalejax.data import describe, load, opening
from scalejax.data.partition import divide
from scalejax.spec.file import located, sweep_to_toml

pytestmark = pytest.mark.usefixtures("compile_quickly")
HOUSES = "area,city,price\n50,Bonn,100.5\n80,Ulm,210.0\n65,Bonn,150.25\n120,Jena,300.0\n"
FRACTIONS: Any = (1.0,)
TEN = {"x": np.arange(20.0).reshape(10, 2), "y": np.arange(10) % 2}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def houses(rows: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(0)
    area = 30 + random.permutation(rows) / 10
    city = random.choice(["Bonn", "Jena", "Ulm"], rows)
    year = random.integers(1900, 2020, rows)
    price = (2.5 * area + 30 * (city == "Ulm")).round(2)
    return pd.DataFrame({"area": area, "city": city, "year": year, "price": price})


def spec(source: Any, **options: Any) -> sx.DataSpec:
    return sx.DataSpec(source=source, fractions=FRACTIONS, **options)


def everything(asked: sx.DataSpec) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of all splits, in the order of the first input."""
    data = load(asked)
    splits = data.train, data.validation, data.test
    inputs, targets = (np.concatenate([getattr(each, part) for each in splits]) for part in ("inputs", "targets"))
    order = np.lexsort(inputs.reshape(len(inputs), -1).T[::-1])
    return inputs[order], targets[order]


def refused(ask: Callable[[], Any]) -> str:
    with pytest.raises(sx.SweepError) as caught:
        ask()
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- tables


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.usefixtures("folder")
def test_a_table_becomes_inputs_and_targets(kind: str):
    table = houses()
    if kind == "csv":
        table.to_csv("houses.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        table.to_parquet("houses.parquet")
    asked = spec(f"houses.{kind}", target="price", categories="one-hot")
    card = describe(asked)
    assert (card.shape, card.classes, card.targets) == ((5,), None, "float32")
    assert (card.examples, card.validation_examples, card.test_examples) == (28, 6, 6)
    inputs, targets = everything(asked)
    table = table.sort_values(["area", "city"])
    expected = [table.area, table.city == "Bonn", table.city == "Jena", table.city == "Ulm", table.year]
    assert np.array_equal(inputs, np.stack(expected, axis=1).astype(np.float32))
    assert np.array_equal(targets, table.price.astype(np.float32))


@pytest.mark.usefixtures("folder")
def test_columns_and_categories_are_chosen_by_name():
    houses().to_csv("h.csv", index=False)
    assert describe(spec("h.csv", target="price", columns=["area", "year"])).shape == (2,)
    assert describe(spec("h.csv", target="price", categories=["city"])).shape == (5,)
    years = houses().year.nunique()
    assert describe(spec("h.csv", target="price", categories=["city", "year"])).shape == (1 + 3 + years,)


@pytest.mark.usefixtures("folder")
def test_a_missing_category_is_one_of_its_own():
    Path("h.csv").write_text("area,alley,y\n" + "".join(f"{n},{('Grvl', '')[n % 2]},{n / 3}\n" for n in range(20)))
    inputs, _ = everything(spec("h.csv", target="y", categories="one-hot"))
    assert np.array_equal(inputs[:, 1:], np.eye(2)[np.arange(20) % 2])


@pytest.mark.usefixtures("folder")
def test_the_task_says_what_whole_numbers_and_texts_are():
    table = houses()
    table["stars"] = np.arange(40) % 3 + 3
    table["float_stars"] = table.stars * 1.0
    table["code"] = np.arange(40) % 3
    table.to_csv("h.csv", index=False)

    def card(target: str, task: str | None = None):
        asked = spec("h.csv", target=target, columns=["area"])
        sweep = sx.Sweep("s", asked, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5), task=task)
        return describe(sweep.data)

    assert card("code").classes == card("code", "classification").classes == 3
    assert card("code", "regression").classes is None
    assert card("stars", "classification").classes == card("float_stars", "classification").classes == 3
    assert card("stars", "regression").targets == "float32"
    assert card("float_stars").classes is None
    assert card("city").classes == card("city", "classification").classes == 3
    says = refused(lambda: card("stars"))
    assert says.startswith(
        "[data] target: h.csv: column stars: whole numbers from 3 to 5 may be classes or numbers; say "
    )
    assert 'expected numbers for a regression, found texts such as "' in refused(lambda: card("city", "regression"))
    assert "expected whole numbers or texts as classes, found " in refused(lambda: card("price", "classification"))


@pytest.mark.usefixtures("folder")
def test_texts_are_classes_in_sorted_order():
    houses().to_csv("h.csv", index=False)
    _, targets = everything(spec("h.csv", target="city", columns=["area"]))
    table = houses().sort_values("area")
    assert np.array_equal(targets, table.city.map({"Bonn": 0, "Jena": 1, "Ulm": 2}))
    assert targets.dtype == np.int32


@pytest.mark.usefixtures("folder")
def test_the_format_and_the_place_of_a_file_are_part_of_no_id():
    table = houses()[["area", "year", "price"]]
    table.to_csv("a.csv", index=False)
    Path("other").mkdir()
    table.to_csv("other/b.csv", index=False, lineterminator="\r\n")
    np.savez("c.npz", x=table[["area", "year"]], y=table.price)
    asked = [spec("a.csv", target="price"), spec("other/b.csv", target="price"), spec("c.npz")]
    asked.append(spec(sx.arrays(table[["area", "year"]], table.price)))
    assert len({describe(each).fingerprint for each in asked}) == 1
    table.assign(area=table.area + 1).to_csv("a.csv", index=False)
    assert describe(asked[0]).fingerprint != describe(asked[1]).fingerprint


@pytest.mark.usefixtures("folder")
def test_groups_are_the_same_in_a_file_and_in_arrays():
    x, groups = np.arange(40.0)[:, None], np.array([3, 1, 12, 0] * 10)
    pd.DataFrame({"a": x[:, 0], "g": groups, "y": x[:, 0]}).to_csv("h.csv", index=False)
    for each in (groups, [f"g{n}" for n in groups]):
        pd.DataFrame({"a": x[:, 0], "g": each, "y": x[:, 0]}).to_csv("h.csv", index=False)
        card = describe(spec("h.csv", target="y", group="g"))
        assert card == describe(spec(sx.arrays(x, x[:, 0], groups=each)))


def test_two_columns_of_one_name_in_a_parquet_file_are_refused(folder: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table([[1, 2], [3, 4], [5, 6]], names=["a", "y", "y"]), folder / "d.parquet")
    assert refused(lambda: describe(spec("d.parquet", target="y"))).endswith("two columns y; rename one of them")


@pytest.mark.usefixtures("folder")
def test_in_a_column_of_texts_only_an_empty_cell_is_missing():
    Path("h.csv").write_text(
        "a,c,y\n" + "".join(f"{n},{['NA', '', 'u'][n % 3]},{['None', 'some'][n % 2]}\n" for n in range(30))
    )
    inputs, targets = everything(spec("h.csv", target="y", categories="one-hot"))
    assert targets.tolist() == [0, 1] * 15
    assert inputs[:3, 1:].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]  # NA, u, and missing


@pytest.mark.usefixtures("folder")
def test_whole_numbers_beyond_those_of_64_bits_with_a_sign_do_not_wrap_around():
    Path("h.csv").write_text("a,y\n" + "".join(f"{n},{2**64 - 1 - n}\n" for n in range(20)))
    _, targets = everything(spec("h.csv", target="y").for_task("regression"))
    assert (targets == np.float32(2.0**64)).all()


# --- splits


@pytest.mark.usefixtures("folder")
def test_groups_stay_together():
    table = houses(399)
    table["street"] = np.arange(399) // 7
    table.to_csv("h.csv", index=False)
    asked = spec("h.csv", target="price", columns=["area"], group="street", validation_examples=60, test_examples=50)
    card = describe(asked)
    assert card.sizes == {"train": 399 - 56 - 49, "validation": 56, "test": 49}
    data = load(asked)
    street = dict(zip(table.area.astype(np.float32), table.street, strict=True))
    found = [{street[x] for x in split.inputs[:, 0]} for split in (data.train, data.validation, data.test)]
    assert sum(map(len, found)) == len(set.union(*found)) == 57
    assert describe(spec("h.csv", target="price", columns=["area"])).fingerprint != card.fingerprint
    table["all"] = 1
    table.to_csv("h.csv", index=False)
    says = refused(lambda: describe(spec("h.csv", target="price", columns=["area"], group="all")))
    assert says.startswith("[data] group: its groups are too few or too large (the largest has 399 of 399 rows)")


def test_a_split_of_whole_groups_that_is_larger_than_asked_for_is_noted():
    x, groups = np.arange(200.0)[:, None], np.arange(200) // 50
    asked = sx.DataSpec(sx.arrays(x, x[:, 0], groups=groups), fractions=FRACTIONS, test_examples=50)
    larger = describe(replace(asked, validation_examples=10))
    assert larger.sizes == {"train": 100, "validation": 50, "test": 50}
    assert larger.notes == ("validation has 50 examples instead of 10: groups stay together",)
    assert not describe(replace(asked, validation_examples=60)).notes


def test_whole_groups_are_those_that_are_drawn_if_their_own_sizes_are_asked_for():
    for seed in range(40):
        groups = np.repeat(np.arange(7), np.random.default_rng(seed).choice([20, 20, 50, 60], 7))
        for validation, test in ((70, 10), (10, 10), (55, 30), (85, 15)):
            asked = {"validation": validation, "test": test}
            rows = divide(len(groups), seed=seed, sizes=asked, groups=groups)
            sizes = {name: len(each) for name, each in rows.items()}
            again = divide(len(groups), seed=seed, sizes=sizes, groups=groups)
            assert {name: each.tolist() for name, each in again.items()} == {n: r.tolist() for n, r in rows.items()}


@pytest.mark.usefixtures("folder")
def test_classes_in_proportion():
    y = (np.arange(1000) % 50 == 0).astype(int)
    np.savez("a.npz", x=np.arange(1000.0)[:, None], y=y)
    data = load(spec("a.npz", stratify=True, validation_examples=100, test_examples=150))
    assert [int(split.targets.sum()) for split in (data.train, data.validation, data.test)] == [15, 2, 3]
    says = refused(lambda: describe(spec("a.npz", stratify=True, group="y")))
    assert "groups and classes cannot both decide on the split" in says
    np.savez("b.npz", x=np.arange(1000.0)[:, None], y=y / 2)
    assert "only classes have proportions" in refused(lambda: describe(spec("b.npz", stratify=True)))


@pytest.mark.usefixtures("folder")
def test_splits_that_the_data_declare():
    table = houses(100)
    table["part"] = ["train"] * 70 + ["val"] * 10 + ["Test"] * 20
    table.to_csv("h.csv", index=False)
    asked = spec("h.csv", target="price", columns=["area"], split="part")
    assert describe(asked).sizes == {"train": 70, "validation": 10, "test": 20}
    data = load(asked)
    for split, rows in ((data.train, table[:70]), (data.validation, table[70:80]), (data.test, table[80:])):
        assert np.array_equal(np.sort(split.inputs[:, 0]), np.sort(rows.area.astype(np.float32)))
    says = refused(lambda: describe(spec("h.csv", target="price", columns=["area"], split="part", test_examples=5)))
    assert says == "[data] test_examples: expected the 20 that the data themselves declare, found 5; drop this key"

    names = {"train": "h1.csv", "validation": "h2.csv", "test": "h3.csv"}
    for name, part in zip(names.values(), (table[:70], table[70:80], table[80:]), strict=True):
        part.drop(columns="part").to_csv(name, index=False)
    apart = spec(
        "h1.csv", target="price", columns=["area"], validation_source="h2.csv", test_source="h3.csv"
    )  # fmt: skip
    assert describe(apart).fingerprint == describe(asked).fingerprint

    arrays: dict[str, Any] = {
        f"{name}_{key}": value
        for name, part in (("train", table[:70]), ("val", table[70:80]), ("test", table[80:]))
        for key, value in (("x", part[["area"]]), ("y", part.price))
    }
    np.savez("h.npz", allow_pickle=False, **arrays)
    assert describe(spec("h.npz")).fingerprint == describe(asked).fingerprint
    del arrays["val_x"], arrays["val_y"]
    np.savez("h.npz", allow_pickle=False, **arrays)  # then validation is drawn from the training examples
    assert describe(spec("h.npz")).sizes == {"train": 60, "validation": 10, "test": 20}
    assert describe(spec("h.npz", validation_examples=30)).sizes == {"train": 40, "validation": 30, "test": 20}


@pytest.mark.usefixtures("folder")
def test_repeated_rows_and_rare_classes_are_noted():
    x = np.arange(200.0)[:, None] // 2  # each row is there twice
    np.savez("a.npz", x=x, y=(np.arange(200) == 7).astype(int))
    asked = sx.DataSpec("a.npz", train_examples=(20, 140))
    data = load(asked)
    pool = set(data.train.inputs[:, 0])
    twice = {name: sum(each in pool for each in split.inputs[:, 0]) for name, split in
             (("validation", data.validation), ("test", data.test))}  # fmt: skip
    both = sum(each in data.validation.inputs[:, 0] for each in data.test.inputs[:, 0])
    assert both
    notes = describe(asked).notes
    assert list(notes[:3]) == [
        *(f"{count} of 30 {name} examples are also in the training pool" for name, count in twice.items()),
        f"{both} of 30 test examples are also in the validation set",
    ]
    assert notes[3:] == ("the rarest class has 1 example of 140: it may be missing from the smallest fraction, 20",)
    assert not describe(spec(sx.arrays(np.arange(200.0)[:, None], np.arange(200) % 2))).notes


@pytest.mark.usefixtures("folder")
def test_standardised_targets():
    table = houses(100)
    table.to_csv("h.csv", index=False)
    plain, scaled = (
        load(spec("h.csv", target="price", columns=["area"], **more)) for more in ({}, {"standardise_target": True})
    )
    mean, scale = plain.train.targets.mean(), plain.train.targets.std()
    assert np.allclose(scaled.train.targets.mean(), 0, atol=1e-6)
    assert np.allclose(scaled.test.targets * scale + mean, plain.test.targets, rtol=1e-4)
    assert plain.card.fingerprint != scaled.card.fingerprint
    says = refused(lambda: describe(spec("h.csv", target="city", columns=["area"], standardise_target=True)))
    assert says == "[data] standardise_target: classes have no mean; drop this key"


# --- what is refused


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        (HOUSES, {}, 'target: h.csv: say which column is the target, as in target = "price"; there are area, city, pr'),
        (HOUSES, {"target": "prize"}, "target: h.csv: there is no column prize; did you mean price?"),
        (HOUSES, {"target": "price"}, 'categories: h.csv: column city holds texts, such as "Bonn"; categories = ["cit'),
        (HOUSES, {"target": "price", "columns": ["aera"]}, "columns: h.csv: there is no column aera; did you mean are"),
        (HOUSES, {"target": "price", "columns": ["price"]}, "columns: h.csv: column price is the target and cannot"),
        (HOUSES, {"target": "price", "categories": "onehot"}, 'categories: expected "one-hot", for all columns of te'),
        (HOUSES, {"target": "price", "targets": "y.npy"}, "targets: means nothing to a .csv file; drop this key"),
        (HOUSES, {"target": "price", "colums": ["area"]}, "colums: unknown key; did you mean columns?"),
        ("", {"target": "y"}, "source: h.csv: the file is empty; expected a line of column names"),
        ("\n\n\n", {"target": "y"}, "source: h.csv: the file is empty"),
        ("a,y\n", {"target": "y"}, "source: h.csv: there is no example in it"),
        ("a,y\n1,2\n,3\n4,5\n", {"target": "y"}, "columns: h.csv: column a: missing in 1 of 3 rows; fill them in or"),
        ("a,y\n1,2\ninf,3\n4,5\n", {"target": "y"}, "columns: h.csv: column a: infinite in 1 of 3 rows"),
        ("a,y\n1,2\n3,\n4,5\n", {"target": "y"}, "target: h.csv: column y: missing in 1 of 3 rows"),
        ("a,y\n1,2\n\n?,3\n4,5\n5,6\n", {"target": "y"}, "columns: h.csv: line 4, column a: expected a number, found "),
        ("a,y\n1,2\na,y\n4,5\n", {"target": "y"}, "source: h.csv: line 3 repeats the names of the columns; take that"),
        ("a,b,y\nu,1,2\na,b,y\nv,4,5\n", {"target": "y", "categories": ["a"]}, "source: h.csv: line 3 repeats the na"),
        ("a,y\n1,2\n3,4,5\n", {"target": "y"}, "source: h.csv: not a table: expected 2 fields in line 3, saw 3"),
        ("a,y\n1,2,3\n3,4,5\n", {"target": "y"}, "source: h.csv: its rows have more values than there are names"),
        ("a;y\n1;2\n3;4\n", {"target": "y"}, 'source: h.csv: its columns are separated by ";"; save it with commas'),
        ("a,y,y\n1,2,2\n3,4,4\n", {"target": "y"}, "source: h.csv: there are two columns y; rename one of them"),
        ("\na,y,c\n1,2,u\n\n1.5,2.5\n3,4,v\n", {"target": "y", "categories": "one-hot"},
         "source: h.csv: line 5: expected 3 values, one a column, found 2; complete that line, or take it out"),
        ("a,y,c\n1,2,u\n3,4,v\n1.5,2", {"target": "y", "categories": "one-hot"}, "source: h.csv: line 4: expected 3"),
        ("a,y\n1,2\nNA,3\n4,5\n", {"target": "y"}, "columns: h.csv: column a: missing in 1 of 3 rows; fill them in or"),
        ("a,y\n1,2\n3,NaN\n4,5\n", {"target": "y"}, "target: h.csv: column y: missing in 1 of 3 rows"),
        ("a,y\n1,True\n3,NA\n4,False\n", {"target": "y"}, "target: h.csv: column y: missing in 1 of 3 rows"),
        (",a,y\n0,1,2\n1,3,4\n", {"target": "y"}, "source: h.csv: column 1 has no name, as row numbers have; choose t"),
        ("d,y\n2020-01-02,2\n2020-01-03,3\n", {"target": "y"}, "columns: h.csv: column d holds dates, such as 2020-01"),
        ("d,y\n2020-01-02,2\n2020-01-03,3\n", {"target": "y", "categories": "one-hot"}, "columns: h.csv: column d hol"),
        ("a,y\n1e300,2.5\n", {"target": "y"}, "columns: h.csv: column a: numbers too large for float32"),
        ("a,y\n1,2020-01-02\n2,2020-01-03\n", {"target": "y"}, "target: h.csv: column y holds dates, which are neithe"),
        ("a,y\n1,u\n2,u\n", {"target": "y"}, "target: h.csv: column y: expected at least two classes, found only u"),
        ("k,y\n" + "".join(f"n{n},1.5\n" for n in range(1001)), {"target": "y", "categories": "one-hot"},
         "categories: h.csv: column k has 1,001 different values, too many for one input each"),
        (HOUSES, {"target": "price", "columns": ["area"], "split": "city"}, "split: h.csv: expected train, validation"),
        (HOUSES, {"target": "price", "columns": ["area"], "group": "town"}, "group: h.csv: there is no column town; i"),
        (HOUSES, {"target": "price", "validation_source": "v.csv"}, "validation_source: v.csv: there is no such file"),
        (HOUSES, {"target": "price", "test_source": "v.npz"}, "test_source: v.npz: there is no such file"),
        (HOUSES, {"target": "price", "test_source": "n.npz"}, "test_source: n.npz: expected a .csv file like h.csv, f"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(text: str, options: dict[str, Any], says: str, folder: Path):
    (folder / "h.csv").write_text(text)
    (folder / "n.npz").write_text("")
    assert refused(lambda: describe(spec("h.csv", **options))).startswith(f"[data] {says}")


@pytest.mark.parametrize(
    ("arrays", "options", "says"),
    [
        ({"a": 1}, {}, "source: a.npz: expected x and y, or inputs and targets, or train_x, train_y, test_x and test_"),
        ({}, {}, "source: a.npz: expected x and y, or inputs and targets, or train_x, train_y, test_x and test_y; fou"),
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, {}, "source: a.npz: y: expected one target for each of the 3 exampl"),
        ({"x": np.ones(3), "y": np.ones(3)}, {}, "source: a.npz: x: expected at least one example in an array [n, ..."),
        ({"x": np.ones((3, 2), complex), "y": np.ones(3)}, {}, "source: a.npz: x: expected numbers, found an array of"),
        ({"x": np.full((3, 2), "a"), "y": np.ones(3)}, {}, "source: a.npz: x: expected numbers, found texts; turn the"),
        ({"x": np.eye(3) * np.nan, "y": np.ones(3)}, {}, "source: a.npz: x: 3 of 3 rows have numbers that are not fi"),
        ({"x": np.array([[1, np.nan], [2, 3], [np.inf, 1]]), "y": np.ones(3)}, {}, "source: a.npz: x: 2 of 3 rows hav"),
        ({"x": np.eye(3), "y": np.array([1, np.nan, 2])}, {}, "source: a.npz: y: 1 of 3 rows have no finite target"),
        ({"x": np.eye(3), "y": np.array([1, 2, -1])}, {}, "source: a.npz: y: whole numbers from -1 to 2 may be classe"),
        ({"x": np.array([{}] * 3), "y": np.ones(3)}, {}, "source: a.npz: not a .npz file that NumPy can read: it hold"),
        ({"x": np.eye(3), "y": np.ones(3)}, {"target": "y"}, "target: means nothing to a .npz file; drop this key"),
        ({"x": np.eye(3), "y": np.ones(3)}, {"group": "g"}, "group: a.npz: there is no array g; it has x, y"),
        (TEN | {f"{a}_{k}": v for a in ("val", "dev") for k, v in TEN.items()}, {},
         "source: a.npz: val_x and dev_x are both of the split validation; take out one of them"),
        (TEN | {f"train_{k}": v for k, v in TEN.items()}, {},
         "source: a.npz: train_x and x are both of the split train; take out one of them"),
        (TEN | {"test_x": np.ones((9, 2))}, {},
         "source: a.npz: there is test_x, but no targets of it, such as test_y; add them, or take it out"),
        (TEN | {"test_labels": np.ones(9)}, {},
         "source: a.npz: there is test_labels, but no inputs of it, such as test_x; add them, or take it out"),
        (TEN | {"g": np.arange(10) // 2, "s": np.array(["train"] * 6 + ["test"] * 4)} | {"y": np.arange(10) / 3},
         {"group": "g", "split": "s", "validation_examples": 2, "test_examples": 5},
         "test_examples: expected the 4 that the data themselves declare"),
        (TEN | {"g": np.arange(10) // 2, "s": np.array(["train"] * 5 + ["test"] * 5)}, {"group": "g", "split": "s"},
         "group: rows of 1 of 5 groups are in more than one of the declared splits; correct those, or drop this key"),
        ({"train_x": np.eye(3), "train_y": np.ones(3), "test_x": np.eye(2), "test_y": np.ones(2)}, {},
         "source: a.npz: test: expected examples as in train, float32 [3], found float32 [2]"),
    ],
)  # fmt: skip
def test_archives_that_are_refused(arrays: dict[str, Any], options: dict[str, Any], says: str, folder: Path):
    np.savez(folder / "a.npz", **arrays)
    assert refused(lambda: describe(spec("a.npz", **options))).startswith(f"[data] {says}")


@pytest.mark.usefixtures("folder")
def test_archives_that_declare_the_splits_take_no_groups():
    for name in ("a.npz", "b.npz"):
        np.savez(name, x=np.arange(20.0).reshape(10, 2), y=np.arange(10) % 2, g=np.arange(10) // 5)
    for key in ("group", "split"):
        says = refused(lambda key=key: describe(spec("a.npz", test_source="b.npz", **{key: "g"})))
        assert says.startswith(f"[data] {key}: a.npz: means nothing where further archives declare the splits; put all")


@pytest.mark.usefixtures("folder")
def test_archives_that_declare_splits_take_no_further_ones():
    np.savez("a.npz", allow_pickle=False, **TEN)
    np.savez("b.npz", allow_pickle=False, **{f"{part}_{k}": v for part in ("train", "test") for k, v in TEN.items()})
    for one, other in (("b.npz", "a.npz"), ("a.npz", "b.npz")):
        says = refused(lambda one=one, other=other: describe(spec(one, test_source=other)))
        assert (
            says == "[data] test_source: b.npz: it declares splits itself, and so do further archives; take out either"
        )


@pytest.mark.usefixtures("folder")
def test_arrays_in_two_files():
    x, y = np.arange(40.0).reshape(20, 2), np.arange(20) % 3
    np.save("x.npy", x)
    np.save("y.npy", y)
    assert describe(spec("x.npy", targets="y.npy")).fingerprint == describe(spec(sx.arrays(x, y))).fingerprint
    assert 'name that of the targets, targets = "y.npy"' in refused(lambda: describe(spec("x.npy")))
    assert "there is no such file; did you mean y.npy?" in refused(lambda: describe(spec("x.npy", targets="yy.npy")))
    Path("y.npy").write_bytes(Path("y.npy").read_bytes()[:-8])
    assert "not a .npy file that NumPy can read" in refused(lambda: describe(spec("x.npy", targets="y.npy")))


@pytest.mark.usefixtures("folder")
def test_images_stay_bytes():
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8)
    np.savez("a.npz", images=x, labels=np.arange(20) % 2)
    card = describe(spec("a.npz"))
    assert (card.inputs, card.shape) == ("uint8", (4, 4))
    assert load(spec("a.npz")).train.inputs.dtype == np.uint8
    assert describe(spec(sx.arrays(x, np.arange(20) % 2))).fingerprint == card.fingerprint
    assert describe(spec(sx.arrays(x.reshape(20, 16), np.arange(20) % 2))).inputs == "float32"


def test_files_that_are_none(folder: Path, monkeypatch: pytest.MonkeyPatch):
    (folder / "data").mkdir()
    (folder / "d.csv").mkdir()
    (folder / "houses.csv").write_text(HOUSES)
    for name in ("n.csv", "n.npz", "n.npy", "n.parquet"):
        (folder / name).write_bytes(b"\x93NUMPY\x00\xff\xfe\x80" * 9)
    os.mkfifo(folder / "pipe.csv")
    cases = {
        "hauses.csv": "hauses.csv: there is no such file; did you mean houses.csv?",
        "zzz.npz": "zzz.npz: there is no such file in ",
        "data": "data: this is a folder, but none of a Hugging Face dataset saved with save_to_disk; name a file: ",
        "d.csv": "d.csv: this is a folder; expected a .csv file",
        "pipe.csv": "pipe.csv: this is no regular file",
        "houses.txts/": "houses.txts/: there is no such folder",
        f"{'long' * 99}.csv": f"{'long' * 99}.csv: cannot be read (File name too long)",
        "n.csv": "n.csv: not UTF-8 text; save the file as UTF-8",
        "n.npz": "n.npz: not a .npz file that NumPy can read: ",
        "n.npy": "n.npy: not a .npy file that NumPy can read: ",
        "n.parquet": "n.parquet: not a Parquet file that can be read: ",
    }
    for name, says in cases.items():
        options = {"targets": "n.npy"} if name.endswith(".npy") else {}
        found = refused(lambda name=name, options=options: describe(spec(name, **options)))
        assert found.startswith(f"[data] source: {says}"), found

    def closed(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", closed)
    found = refused(lambda: describe(spec("houses.csv", target="price")))
    assert found == "[data] source: houses.csv: cannot be read (Permission denied)"


def test_a_file_that_changes(folder: Path, monkeypatch: pytest.MonkeyPatch):
    file = folder / "h.csv"
    houses().to_csv(file, index=False)
    asked = spec("h.csv", target="price", columns=["area"])
    kind = opening.FILES[".csv"]

    def slow(paths: Any, options: Any, place: str) -> Any:
        found = kind.make(paths, options, place)
        file.write_text(file.read_text() + "1,Ulm,1950,3\n")
        return found

    monkeypatch.setitem(opening.FILES, ".csv", replace(kind, make=slow))
    assert "it changed while it was read; run again" in refused(lambda: describe(asked))
    monkeypatch.undo()
    os.chdir(folder)
    sweep = sx.Sweep("s", asked, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5))
    from scalejax.run import carry_out, planned

    plan = planned(sweep)
    file.write_text(file.read_text() + "1,Ulm,1950,3\n")
    says = refused(lambda: carry_out(plan, folder / "run", progress=False))
    assert says == "[data] source: the data have changed since the sweep was planned; run again"


def test_a_file_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    houses().to_csv(folder / "h.csv", index=False)
    reads = []
    kind = opening.FILES[".csv"]
    counted = replace(kind, make=lambda *given: reads.append(given) or kind.make(*given))
    monkeypatch.setitem(opening.FILES, ".csv", counted)
    asked = spec("h.csv", target="price", columns=["area"])
    describe(asked)
    describe(asked)
    load(asked)
    assert len(reads) == 1
    os.utime("h.csv", (1, 1))
    load(asked)
    assert len(reads) == 2


@pytest.mark.usefixtures("folder")
def test_fifty_thousand_rows_with_categories_load_in_about_a_second():
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(50_000, 10)).round(4)).rename(columns="n{}".format)
    for index in range(3):
        table[f"c{index}"] = random.choice([f"kind {n}" for n in range(20)], 50_000)
    table["y"] = random.normal(size=50_000)
    table.to_csv("h.csv", index=False)
    describe(spec("h.csv", target="y", columns=["n0"]))  # imports pandas
    begun = time.perf_counter()
    assert load(spec("h.csv", target="y", categories="one-hot")).card.shape == (70,)
    assert time.perf_counter() - begun < 5  # measured 0.6 s; other tests may run beside it


# --- the sweep file

SWEEP = """
name = "houses"
task = "regression"
[data]
source = "houses.csv"
target = "price"
categories = "one-hot"
standardise_target = true
fractions = [0.5, 1.0]
[[models]]
family = "logistic"
[train]
learning_rate = 1e-2
batch_size = 8
steps = 20
"""


def test_a_sweep_file_with_a_table_is_trained(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "houses.toml").write_text(SWEEP)
    twice = pd.concat([houses(), houses()[:30]])
    twice.to_csv("sweeps/houses.csv", index=False)  # beside the sweep file, which is not in the current folder
    assert main(["plan", "sweeps/houses.toml"]) == 0
    assert "test examples are also in the training pool" in capsys.readouterr().out
    assert main(["run", "sweeps/houses.toml", "--out", "run"]) == 0
    assert "test examples are also in the training pool" in capsys.readouterr().err
    table = sx.Run(folder / "run").results()
    assert list(table.status) == ["done", "done"]
    assert set(table.metric) == {"RMSE"}
    again = sx.load_sweep("run/sweep.toml")
    assert again == located(sx.load_sweep("sweeps/houses.toml"))
    assert describe(again.data) == describe(sx.load_sweep("sweeps/houses.toml").data)
    twice.to_csv("elsewhere.csv", index=False)
    assert main(["plan", "sweeps/houses.toml", "--set", "data.source=elsewhere.csv"]) == 0
    capsys.readouterr()
    assert main(["plan", "sweeps/houses.toml", "--set", "data.target=prise"]) == 2
    says = "scalejax plan: --set data.target: sweeps/houses.csv: there is no column prise; did you mean price?\n"
    assert capsys.readouterr().err == says
    (folder / "sweeps" / "houses.toml").write_text(SWEEP.replace("one-hot", "onehot"))
    assert main(["plan", "sweeps/houses.toml"]) == 2
    assert capsys.readouterr().err.startswith(
        'scalejax plan: sweeps/houses.toml, line 7, [data] categories: expected "o'
    )


@pytest.mark.parametrize(
    "data",
    [
        {"source": "h.csv", "target": "price", "columns": ("area",), "validation_source": "v.csv"},
        {"source": "x.npy", "targets": "y.npy"},
        {"source": "bytes", "path": "*.txt", "sequence_length": 3},
        {"source": "mnist1d"},
    ],
    ids=lambda data: data["source"],
)
def test_the_copy_of_a_sweep_in_its_run_is_read_from_any_folder(data, folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("h.csv", "v.csv"):
        houses().to_csv(name, index=False)
    np.save("x.npy", houses()[["area"]])
    np.save("y.npy", houses()["price"])
    Path("a.txt").write_text("the quick brown fox jumps over the lazy dog" * 9)
    sizes: Any = {"train_examples": (5,), "validation_examples": 40 if "validation_source" in data else 5}
    asked = sx.DataSpec(**data, **sizes, test_examples=5)
    sweep = sx.Sweep("s", asked, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5))
    before = describe(sweep.data)
    Path("run").mkdir()
    Path("run/sweep.toml").write_text(sweep_to_toml(located(sweep)))
    elsewhere = folder / "q"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    again = sx.load_sweep("../run/sweep.toml")
    assert describe(again.data) == before
    assert located(again) == again


def test_a_second_header_is_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "houses.toml").write_text(SWEEP.replace("houses.csv", "long" * 99))
    assert main(["plan", "houses.toml"]) == 2
    assert "is not one of mnist1d, " in capsys.readouterr().err
    (folder / "houses.toml").write_text(SWEEP)
    (folder / "houses.csv").write_text(HOUSES + HOUSES)
    for command in ("plan", "run"):
        assert main([command, "houses.toml"]) == 2
        says = f"scalejax {command}: houses.toml, line 5, [data] source: houses.csv: line 6 repeats the names of the c"
        assert capsys.readouterr().err.startswith(says)
    assert not (folder / "runs").exists()


# --- a slip in a column, and the sentence about it

ROOMS = "city,rooms,price\n" + "".join(f"{'Bonn' if n % 2 else 'Ulm'},{n % 7},{n}.5\n" for n in range(40))
SEPARATED = 'holds numbers such as "1,200"; take out the thousands separators, as in 1200'


@pytest.mark.parametrize(
    ("old", "new", "options", "says"),
    [
        ("Ulm,2,16.5", "Ulm,?,16.5", {"categories": "one-hot"},
         'columns: h.csv: line 18, column rooms holds "?", and all other 39 cells are numbers; mend that cell or take '
         'out its row, or name the column: categories = ["city", "rooms"]'),
        ("Ulm,2,16.5\nBonn,3,17.5", "Ulm,?,16.5\nBonn,few,17.5", {"categories": "one-hot"},
         'columns: h.csv: line 18, column rooms holds "?" (and a text in 1 further row), and all other 38 cells '),
        (",2,", ',"1,200",', {"categories": "one-hot"}, f"columns: h.csv: column rooms {SEPARATED}"),
        (",2,", ',"1,200",', {"columns": ["rooms"]}, f"columns: h.csv: column rooms {SEPARATED}"),
        ("16.5", "?", {"categories": "one-hot"}, 'target: h.csv: column price: 1 row with texts such as "?", and 39 '),
        ("16.5", '"651,859"', {"categories": "one-hot"},
         'target: h.csv: column price: found numbers such as "651,859"; take out the thousands separators, as in '),
    ],
)  # fmt: skip
def test_a_slip_among_numbers_is_named_and_makes_no_categories(
    old: str, new: str, options: dict[str, Any], says: str, folder: Path
):
    (folder / "h.csv").write_text(ROOMS.replace(old, new))
    assert refused(lambda: describe(spec("h.csv", target="price", **options))).startswith(f"[data] {says}")


def test_a_column_named_in_categories_may_hold_a_few_texts_among_numbers(folder: Path):
    (folder / "h.csv").write_text(ROOMS.replace("Ulm,2,16.5", "Ulm,?,16.5"))
    assert describe(spec("h.csv", target="price", categories=["city", "rooms"])).shape == (2 + 8,)


def test_many_texts_in_a_long_column_of_numbers_are_slips_and_not_too_many_categories(folder: Path):
    cells = [f"n{n}" if n % 10 == 3 else str(n) for n in range(1_200)]
    (folder / "h.csv").write_text("area,price\n" + "".join(f"{cell},1.5\n" for cell in cells))
    says = refused(lambda: describe(spec("h.csv", target="price", categories="one-hot")))
    assert says.startswith("[data] columns: h.csv: line 5, column area: expected a number, found 'n3' (and in 119 mo")


@pytest.mark.parametrize("given", [(), ("city",)])
def test_the_sentence_about_texts_names_all_columns_of_texts(given: tuple[str, ...], folder: Path):
    (folder / "h.csv").write_text("city,area,heating,price\nUlm,1,gas,1.5\nBonn,2,oil,2.5\n")
    says = refused(lambda: describe(spec("h.csv", target="price", categories=given)))
    assert 'categories = ["city", "heating"] makes one input of each value of these columns' in says


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("notes.txt", 'notes.txt: a text needs source = "bytes", path = "notes.txt"'),
        ("README.md", 'README.md: a text needs source = "bytes", path = "README.md"'),
        ("houses.xlsx", "houses.xlsx: files are .csv, .parquet, .npz, .npy; save a spreadsheet as .csv"),
        ("houses.json", "houses.json: files are .csv, .parquet, .npz, .npy"),
        ("LICENCE", 'LICENCE: files are .csv, .parquet, .npz, .npy; a text needs source = "bytes", path = "LICENCE"'),
        ("./notes.txt",
         './notes.txt: expected another kind of file; a text needs source = "bytes", path = "./notes.txt"'),
        ("mnist", '"mnist" is not one of mnist1d, land, digits, bytes, tokens, nor a file; did you mean mnist1d?'),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_what_to_do_with_it(source: str, says: str, folder: Path):
    (folder / "notes.txt").write_text("text")
    (folder / "LICENCE").write_text("text")
    assert refused(lambda: spec(source)) == f"[data] source: {says}"
