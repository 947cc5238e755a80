"""New examples, predicted with kept models in the user's own terms. The models are as they were drawn: none trains."""

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import scalejax as sx
from scalejax.data import describe, load
from scalejax.data.encoding import Column, Encoding, encoding_of
from scalejax.data.examples import Options
from scalejax.data.own_examples import FeatureFits
from scalejax.data.table import encoded, from_table
from scalejax.execute import kept
from scalejax.execute.initial_weights import behind_features
from scalejax.planning.trial import expand
from scalejax.run import predict as predicting
from scalejax.run.store import Store, TrialRow
from scalejax.run.weights import trial_called
from scalejax.spec.file import sweep_to_toml
from scalejax.train.padding import initial_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")
ALL: Any = (1.0,)
RTOL = 1e-6  # float32, summed in another order
ROW = TrialRow(
    trial_id="a", family="mlp", knobs={}, params=1, train_examples=1, fraction=1.0, seed=0, learning_rate=0.1,
    weight_decay=0.0, batch_size=4, steps=5, flops=1,
)  # fmt: skip


def houses(rows: int = 60) -> pd.DataFrame:
    random: Any = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "street": random.choice(["007", "12", "Am Markt"], rows),
            "area": 30 + random.permutation(rows) / 7,
            "city": random.choice(["Ulm", "Bonn", None, "Jena"], rows),
            "rooms": random.choice([1, 2, 4], rows),
            "part": np.repeat(["train", "validation", "test"], [rows - 20, 8, 12]),
        }
    )
    table["price"] = (1000 * table["area"] + 30_000 * (table["city"] == "Ulm")).round(2)
    table["kind"] = np.where(table["area"] > 34, "villa", "flat")
    table.loc[rows // 2, "kind"] = "castle"
    return table


def run_of(
    data: sx.DataSpec, folder: Path, *, task: Any = None, family: Any = "mlp", precision: str = "float32"
) -> tuple[sx.Run, str, sx.Sweep]:
    """Return a run that keeps one model, its trial, and the sweep."""
    knobs: Any = {"cnn": {"width": 2, "depth": 1}, "transformer": {"heads": 1, "depth": 1, "head_size": 4}}
    grid = sx.ModelGrid(family, knobs.get(family, {"width": 4, "depth": 1}))
    sweep = sx.Sweep("s", data, (grid,), sx.TrainSpec((0.1,), (4,), steps=5, precision=precision), task=task)
    card = describe(sweep.data)
    (each,) = (one.trial for one in expand(sweep, card))
    weights: Any = jax.device_get(initial_weights(each.architecture, each.key("initialise")))
    if own := each.own_examples:
        weights = behind_features(weights, FeatureFits(load(sweep.data)), each.architecture.features, own)
    model = kept.kept_model(each, weights, card, encoding=encoding_of(sweep.data, card.sizes))
    kept.set_aside(folder / "models", model)
    with Store(folder / "results.sqlite", write=True) as store:
        store.plan([replace(ROW, trial_id=each.trial_id)])
    return sx.Run(folder), each.trial_id, sweep


def table_options(target: str, **more: Any) -> Any:
    columns = ("area", "street", "rooms", "city")
    return {"target": target, "columns": columns, "categories": "one-hot", "split": "part", "fractions": ALL,
            "features": ["standardise"], **more}  # fmt: skip


def test_a_table_s_own_test_rows_reproduce_the_rmse_in_the_unit_of_the_target(tmp_path: Path):
    houses().to_csv(tmp_path / "h.csv", index=False)
    data = sx.DataSpec(str(tmp_path / "h.csv"), **table_options("price", standardise_target=True))
    run, trial_id, sweep = run_of(data, tmp_path, task="regression")
    test = houses().query("part == 'test'")
    answers = run.predict(trial_id[:8], test.drop(columns=["price", "part"]).iloc[::-1])[::-1]
    assert answers.dtype == np.float64
    assert len(set(answers)) == len(test)
    scale = houses().query("part == 'train'")["price"].astype(np.float32).std(ddof=0)
    rmse = np.sqrt(np.mean((answers - np.asarray(test["price"])) ** 2))
    np.testing.assert_allclose(rmse, scale * run.evaluate(trial_id, sweep=sweep)["test_metric"], rtol=RTOL)
    test.drop(columns="price").to_csv(tmp_path / "new.csv", index=False)
    np.testing.assert_array_equal(run.predict(trial_id, tmp_path / "new.csv"), answers)
    inputs = load(sweep.data).test.inputs  # an array as it was stored, in the order in which it was drawn
    np.testing.assert_allclose(np.sort(run.predict(trial_id, inputs)), np.sort(answers), rtol=RTOL)


def test_classes_have_their_names_and_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In parts too."""
    run, trial_id, sweep = run_of(sx.DataSpec(houses(), **table_options("kind")), tmp_path)
    test = houses().query("part == 'test'").drop(columns="price")
    answers = run.predict(trial_id, test)
    assert len({*answers}) > 1
    assert {*answers} <= {"castle", "flat", "villa"}
    assert np.float32(np.mean(answers != test["kind"])) == run.evaluate(trial_id, sweep=sweep)["test_metric"]
    shares = run.predict(trial_id, test, probabilities=True)
    assert list(shares.columns) == ["castle", "flat", "villa"]
    assert shares.index.equals(test.index)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert list(shares.idxmax(axis=1)) == list(answers)
    monkeypatch.setattr(predicting, "AT_ONCE", 5)
    assert list(run.predict(trial_id, test)) == list(answers)


def test_images_are_given_as_they_were_stored(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    data = sx.DataSpec((pixels, ["cat", "dog"] * 20), fractions=ALL)
    run, trial_id, _ = run_of(data, tmp_path, family="cnn")
    logits: Any = run.model(trial_id)(pixels.astype(np.float32) / 255)
    assert list(run.predict(trial_id, pixels)) == list(np.array(["cat", "dog"])[np.asarray(logits).argmax(-1)])
    with pytest.raises(sx.SweepError, match=r"the new inputs: expected uint8, as of the training data, found float64$"):
        run.predict(trial_id, pixels / 255)
    with pytest.raises(sx.SweepError, match=r"expected the shape \[n, 8, 8\], as of .*, found \[8, 8\]$"):
        run.predict(trial_id, pixels[0])
    with pytest.raises(sx.SweepError, match=r"was trained on arrays; give an array of inputs \[n, 8, 8\]$"):
        run.predict(trial_id, "new.csv")


def test_what_outputs_say_in_the_terms_of_each_task():
    answers = functools.partial(predicting._answers, probabilities=False)
    numbers = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    unit = Encoding(mean=10.0, scale=2.0)
    assert answers(numbers[:, :1], "regression", unit).tolist() == [12, 16]
    assert answers(numbers, "regression", unit).tolist() == [[12, 14], [16, 8]]
    assert answers(numbers, "classification", Encoding()).tolist() == [1, 0]
    assert answers(numbers, "classification", Encoding(classes=(1.5, None))).tolist() == [None, 1.5]
    assert answers(numbers, "next_token", Encoding()).tolist() == [1, 0]
    assert answers(numbers, None, unit) is numbers  # a task of the user's own
    shares = predicting._answers(1000 * numbers, "classification", Encoding(), probabilities=True)
    assert shares.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("new", "changes", "says"),
    [
        (
            [[1, 300]],
            {"vocabulary": 256, "inputs": "uint8"},
            "expected tokens from 0 to 255, found int64 from 1 to",
        ),
        ([[1.5, 2.0]], {"vocabulary": 256, "inputs": "uint8"}, "expected tokens from 0 to 255, found float64"),
        ([[1.0, 2.0], [1.0, np.inf]], {}, "example 1, counted from 0, has numbers that are not finite as float32"),
        ([["a", "b"]], {}, "expected numbers, found an array of type <U1"),
        ([1.0, 2.0], {}, r"expected the shape \[n, 2\], as of the training data, found \[2\]"),
        ([[1.0], [2.0, 3.0]], {}, "NumPy can make no array of the new inputs"),
    ],
)
def test_inputs_that_none_of_the_training_data_could_be_are_refused(new: Any, changes: dict, says: str):
    with pytest.raises(sx.SweepError, match=says):
        predicting._stored(new, {"shape": [2], "vocabulary": None, "inputs": "float32"} | changes)


@pytest.mark.parametrize(
    ("new", "columns", "vocabulary", "says"),
    [
        (
            pd.Series({"a": 1}),
            True,
            None,
            r"expected a table, found a Series; give a DataFrame, of one row pd\.DataFra",
        ),
        ({"a": 1}, True, None, "expected a table, found a dict; give a DataFrame"),
        ({"a": 1}, False, None, r"the model of trial t was trained on arrays; give an array of inputs \[n, 2\]"),
        ("some text", False, 256, r"trained on tokens and .*; give numbers from 0 to 255, an array \[n, 2\]; b"),
        (b"bytes", False, 256, "was trained on tokens"),
    ],
)
def test_one_row_and_a_text_are_refused_with_what_to_give(new: Any, columns: bool, vocabulary: int | None, says: str):
    encoding = Encoding(columns=(Column("a"),)) if columns else Encoding()
    says_what = {"shape": [2], "vocabulary": vocabulary, "trial_id": "t", "encoding": encoding.written()}
    with pytest.raises(sx.SweepError, match=says):
        predicting._check_kind(new, encoding, says_what)


def test_a_trial_is_called_by_its_row_too(tmp_path: Path):
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan([replace(ROW, trial_id="abcdef"), replace(ROW, trial_id="abc123")])
    table = pd.DataFrame({"trial_id": ["abcdef", "abc123"], "seed": [0, 1]})
    row, named = table.iloc[1], next(iter(table.itertuples()))
    assert [trial_called(tmp_path, each) for each in (row, named, {"trial_id": "abcd"}, "abc1")] == [
        *("abc123", "abcdef", "abcdef", "abc123")
    ]
    for wrong, kind in ((table, "DataFrame"), (7, "int"), (None, "NoneType"), (row[["seed"]], "Series")):
        with pytest.raises(sx.SweepError, match=rf"expected the trial_id .* run\.best\(\) returns it, found a {kind}$"):
            trial_called(tmp_path, wrong)


@pytest.mark.parametrize("standardise", [True, False])
def test_a_run_says_in_which_unit_its_rmse_is(standardise: bool, tmp_path: Path):
    houses().to_csv(tmp_path / "h.csv", index=False)
    data = sx.DataSpec(str(tmp_path / "h.csv"), **table_options("price", standardise_target=standardise))
    sweep = sx.Sweep("s", data, (sx.ModelGrid("logistic"),), sx.TrainSpec((0.1,), (4,), steps=5))
    (tmp_path / "sweep.toml").write_text(sweep_to_toml(sweep), encoding="utf-8")
    curves = pd.DataFrame({"metric": ["test_RMSE"]})
    told = "standard deviations of the targets" if standardise else ""
    for run in (sx.Run(tmp_path), sx.Run(tmp_path / "gone", sweep)):
        assert run._unit(curves) == told
        assert not run._unit(curves.assign(metric="test_1-R2"))
    given = sx.DataSpec(sx.arrays(np.eye(30), np.arange(30.0), standardise_target=standardise), fractions=ALL)
    assert sx.Run(tmp_path / "gone", replace(sweep, data=given))._unit(curves) == told
    assert not sx.Run(tmp_path / "gone")._unit(curves)


def test_a_model_that_an_earlier_version_kept_takes_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, trial_id, sweep = run_of(sx.DataSpec(houses(), **table_options("kind")), tmp_path)
    kept.store(tmp_path / "models", trial_id)
    inputs = load(sweep.data).test.inputs
    names = run.predict(trial_id, inputs)
    path = tmp_path / "models" / trial_id / "model.json"
    says = json.loads(path.read_text())
    for key in ("inputs", "own_task", "encoding"):
        del says[key]
    path.write_text(json.dumps(says))
    monkeypatch.setattr(kept, "intact", lambda _: True)
    np.testing.assert_array_equal(np.array(["castle", "flat", "villa"])[run.predict(trial_id, inputs)], names)
    with pytest.raises(sx.SweepError, match=r"kept by an earlier version, .*; give an array of inputs \[n, 9\]$"):
        run.predict(trial_id, houses())


# --- a table that becomes inputs again


def made(table: pd.DataFrame, **options: Any) -> tuple[np.ndarray, tuple[Column, ...]]:
    found = from_table(table, Options(target="y", **options), "t")
    return found.inputs, found.columns


def test_another_table_becomes_what_the_first_one_was():
    table = pd.DataFrame(
        {
            "number": [1.5, -2.0, 3.0, 0.1],
            "text": ["b", None, "a", "b"],
            "mixed": ["x", 1, 2.5, "y"],
            "flag": [True, False, True, True],
            "code": [10, 30, 20, 10],
            "wide": pd.Categorical(["m", "s", "l", "s"], categories=["s", "m", "l", "xl"], ordered=True),
            "range": pd.cut(pd.Series([1, 5, 9, 2]), [0, 3, 6, 10]),
            "whole": pd.array([1, 2, None, 2], dtype="Int64"),
            "y": [0.5, 1.5, 2.5, 3.5],
        }
    )
    inputs, columns = made(table, categories=("text", "mixed", "flag", "code", "wide", "range", "whole"))
    columns = Encoding.read(json.loads(json.dumps(Encoding(columns).written()))).columns
    backwards = table[table.columns[::-1]].drop(columns="y").iloc[::-1]
    np.testing.assert_array_equal(encoded(backwards, columns, "t")[::-1], inputs)
    for row in range(4):
        np.testing.assert_array_equal(encoded(table.iloc[[row]], columns, "t")[0], inputs[row])


REFUSED: list[tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = [
    (lambda t: t.drop(columns="area"), "new: there is no column area; did you mean"),
    (lambda t: t.assign(area=[1.0, np.nan]), "new: column area, row 12: expected a number, .*, found nothing$"),
    (lambda t: t.assign(area=[1.0, 1e300]), r"new: column area, row 12: expected a number, .*, found 1e\+300$"),
    (lambda t: t.assign(area=["2", "large"]), "new: column area, row 12: expected a number, .*, found 'large'$"),
    (
        lambda t: t.assign(city=["Ulm", "Trier"]),
        "column city, row 12: found 'Trier', which no row .*; it has Bonn, Ulm$",
    ),
    (lambda t: t.assign(city=["Ulm", None]), "column city, row 12: found nothing, which no row"),
    (lambda t: pd.concat([t, t[["city"]]], axis=1), "new: there are two columns city$"),
]


@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_what_the_training_data_had_not_is_said_in_one_sentence(change, says: str):
    table = pd.DataFrame({"area": [1.0, 2.0], "city": ["Ulm", "Bonn"], "areas": [0, 1], "y": [1.5, 2.5]})
    _, columns = made(table, categories="one-hot")
    with pytest.raises(sx.SweepError, match=says):
        encoded(change(table), columns, "new", first=10)


@pytest.mark.parametrize(
    ("targets", "task", "classes"),
    [
        (["b", "a", "b"], None, ("a", "b")),
        ([3, 1, 3], "classification", (1, 3)),
        ([2.0, 4.0, 2.0], "classification", (2.0, 4.0)),
        (np.array([True, False, True]), None, (False, True)),
        ([0.5, 1.5, 2.5], None, None),
    ],
)
def test_what_classes_are_called_is_known(targets: Any, task: str | None, classes: Any):
    data = sx.DataSpec((np.arange(30.0).reshape(30, 1), np.resize(targets, 30)), fractions=ALL).for_task(task)
    assert encoding_of(data, describe(data).sizes) == Encoding(classes=classes)
