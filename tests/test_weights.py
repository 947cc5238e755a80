"""Trained models: read out of their lanes at their true size, kept as a sweep asks, and brought back from the disk."""

import functools
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from engine_helpers import FIRST, finish, pack_of, place, planned, quick_jit, slow
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from own_modules import BatchNorm, Dropout, InBfloat16
from sized_modules import Transformer

import scalejax as sx
from scalejax.analysis.curves.tuning import tuned
from scalejax.cli import main
from scalejax.data import describe, drawn
from scalejax.execute import kept
from scalejax.execute.pack import Pack
from scalejax.models import FAMILIES
from scalejax.planning.trial import expand
from scalejax.run.run import _warn_of_missing_models
from scalejax.run.store import Store, TrialRow
from scalejax.run.weights import Keeper, best_row, without_model
from scalejax.train.lanes import blocks, evaluate_one
from scalejax.train.padding import crop, stack_padded

pytestmark = pytest.mark.usefixtures("compile_quickly")
RTOL = 1e-6  # of a loss: a model alone against the padded program; the metric counts examples and is equal
KNOBS = {
    "logistic": {},
    "mlp": {"width": (4, 7), "depth": 2},
    "cnn": {"width": (2, 3), "depth": 2},
    "transformer": {"heads": (1, 2), "depth": 2, "head_size": 4},
}
SWEEP = sx.Sweep(
    name="kept",
    data=sx.DataSpec("mnist1d", train_examples=(20, 100), examples=200, validation_examples=50, test_examples=1500),
    models=(sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=(4, 7), depth=1)),
    train=sx.TrainSpec(learning_rate=(1e-2, 3e-2), batch_size=(16,), steps=20, evaluate_every=5),
    seeds=(0, 1),
    keep_weights="best",
)
ALL = replace(SWEEP, keep_weights="all")
MODEL_FILES = "model.json", "sha256", "weights"


class Net(nnx.Module):
    """A module that another process can import."""

    def __init__(self, *, inputs: int, outputs: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.hidden(x)))


@dataclass(frozen=True)
class Windows:
    """Tokens that follow each other with a step of their own."""

    def facts(self) -> sx.Facts:
        return sx.Facts(shape=(6,), classes=None, inputs="uint8", vocabulary=11)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> Mapping[str, sx.Split]:
        def draw(stream: int, count: int) -> tuple[np.ndarray, np.ndarray]:
            generator = np.random.default_rng([seed, stream])
            first, step = generator.integers(0, 11, (2, count, 1))
            tokens = ((first + step * np.arange(7)) % 11).astype(np.uint8)
            return tokens[:, :-1], tokens[:, -1]

        return drawn(draw, sizes)


def data_for(family: str) -> sx.DataSpec:
    """Return data that a family reads: images, tokens, or the ones of all others."""
    if family == "transformer":
        return replace(SWEEP.data, source=Windows())
    if family == "cnn":
        x = np.random.default_rng(0).normal(size=(2000, 8, 8))
        source = sx.arrays(x, np.abs(x[:, 0, :3]).argmax(-1))
        return replace(SWEEP.data, source=source)
    return SWEEP.data


def other(*, inputs: int, outputs: int, width: int, depth: int, rngs: nnx.Rngs) -> nnx.Module:
    del depth
    return Net(inputs=inputs, outputs=outputs, width=width, rngs=rngs)


def trained(sweep: sx.Sweep, folder: Path) -> sx.Run:
    return sx.run_sweep(sweep, folder, progress=False)


def assert_reproduced(run: sx.Run, *, build=None, sweep: sx.Sweep | None = None) -> None:
    """Every model that is kept predicts the test set as it did when it was trained."""
    rows = run.results().set_index("trial_id")
    assert run.models()
    for trial_id in run.models():
        found, row = run.evaluate(trial_id, build=build, sweep=sweep), rows.loc[trial_id]
        np.testing.assert_allclose(found["test_loss"], row["test_loss"], rtol=RTOL)
        # A root of a mean of squares is as near as a loss; a share of wrong answers is the same.
        exact = row["metric"] == "error"
        np.testing.assert_allclose(found["test_metric"], row["test_metric"], rtol=0 if exact else RTOL)


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> sx.Run:
    return trained(SWEEP, tmp_path_factory.mktemp("best"))


@pytest.fixture
def copied(best: sx.Run, tmp_path: Path) -> sx.Run:
    return sx.Run(shutil.copytree(best.directory, tmp_path / "copied"))


# --- out of the lanes

SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@settings(max_examples=50, deadline=None)
@given(st.lists(SHAPES, min_size=1, max_size=3), st.integers(1, 3), st.integers(0, 2), st.randoms())
def test_cropping_undoes_padding_on_any_axis(shapes, count, most, random):
    small = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    padded = [tuple(size + random.randint(0, most) for size in shape) for shape in shapes]
    large: Any = [jax.ShapeDtypeStruct(shape, np.float32) for shape in padded]
    generator = np.random.default_rng(0)
    trees: Any = [[generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(count)]
    stacked = stack_padded(trees, large)
    for row, tree in enumerate(trees):
        cropped = crop([leaf[row] for leaf in stacked], small)
        assert len(cropped) == len(tree)
        for found, whole in zip(cropped, tree, strict=True):
            np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize(
    ("group", "mode"),
    [
        (tuple(jax.local_devices()[:2]), "vmap"),
        (FIRST, "map"),
        pytest.param(tuple(jax.local_devices()[:2]), "map", marks=pytest.mark.slow),
        pytest.param(FIRST, "vmap", marks=pytest.mark.slow),
    ],
)
def test_a_padded_lane_hands_over_what_was_tested(group, mode: str, data):
    """Also with a sibling that diverges, which hands over nothing, and lanes of other sizes."""
    trials = [planned(knobs={"width": width, "depth": 2}, seed=width) for width in (3, 5, 8)]
    trials.append(planned(knobs={"width": 8, "depth": 2}, learning_rate=1e30))
    pack = pack_of(trials, data, group=group, mode=mode, keep_weights=True)
    test = blocks(data.test.inputs, data.test.targets)
    ended = finish(pack)
    assert ended[trials[-1].trial_id].weights is None
    for trial in trials[:-1]:
        end = ended[trial.trial_id]
        assert end.weights is not None
        assert end.test_loss is not None
        shapes = jax.tree.map(lambda leaf: leaf.shape, trial.architecture.abstract[1:])
        assert jax.tree.map(np.shape, end.weights) == shapes
        loss, metric = quick_jit(functools.partial(evaluate_one, trial.architecture, trial.recipe.task))(
            *end.weights, blocks=test
        )
        np.testing.assert_allclose(loss, end.test_loss, rtol=RTOL)
        assert float(metric) == end.test_metric


def test_weights_are_those_of_the_trial_that_ends_not_of_the_one_that_follows(data):
    first, second = planned(seed=1), planned(seed=2)
    expected = finish(pack_of([first], data, keep_weights=True))[first.trial_id].weights
    pack = pack_of([first], data, keep_weights=True)
    while not (ending := pack.launch()).plan.ending:
        pack.land(ending)
    place(pack, 0, second)  # behind the call
    following = pack.launch()
    found = pack.land(ending).ended[0]
    pack.land(following)
    assert found.trial == first
    jax.tree.map(np.testing.assert_array_equal, found.weights, expected)


def test_where_no_weights_are_kept_none_are_read(data, monkeypatch):
    monkeypatch.setattr(Pack, "_read_lane", None)
    trial = planned()
    assert finish(pack_of([trial], data))[trial.trial_id].weights is None


# --- which are kept


def test_of_each_cell_those_are_kept_that_tuning_chooses_and_the_best(best: sx.Run):
    rows = best.results()
    lowest = rows.loc[rows.groupby(["family", "width", "train_examples"], dropna=False)["validation_loss"].idxmin()]
    assert set(best.models()) == {*tuned(rows)["trial_id"], *lowest["trial_id"]}
    assert len(best.models()) < len(rows)
    assert {each.name for each in (best.directory / "models").iterdir()} == set(best.models())
    assert {each.name for each in (best.directory / "models" / best.models()[0]).iterdir()} == set(MODEL_FILES)


def test_ids_and_numbers_are_the_same_whatever_is_kept(best: sx.Run, tmp_path: Path):
    none = trained(replace(SWEEP, keep_weights="none"), tmp_path)
    assert none.models() == []
    assert not (tmp_path / "models").exists()
    timings = ["seconds"]
    pd.testing.assert_frame_equal(none.results().drop(columns=timings), best.results().drop(columns=timings))


COSTLY = "cnn", "transformer"


@pytest.mark.parametrize("family", [*(name for name in FAMILIES if name not in COSTLY), *slow(*COSTLY)])
def test_every_family_comes_back(family: str, tmp_path: Path):
    sweep = replace(ALL, models=(sx.ModelGrid(family, KNOBS[family]),), data=data_for(family))
    run = trained(sweep, tmp_path)
    assert set(run.models()) == set(run.results()["trial_id"])
    assert_reproduced(run, sweep=sweep)


@pytest.mark.parametrize(
    ("build", "knobs", "task"),
    [
        (BatchNorm, {"width": (4, 7)}, "classification"),
        pytest.param(BatchNorm, {"width": (4, 7)}, "regression", marks=pytest.mark.slow),
        pytest.param(Dropout, {"width": (4, 7)}, "classification", marks=pytest.mark.slow),
        pytest.param(InBfloat16, {"width": (4, 7)}, "regression", marks=pytest.mark.slow),
        pytest.param(  # padded, with a number in its rest
            Transformer, {"heads": (1, 2), "depth": 2, "width": 6}, "classification", marks=pytest.mark.slow
        ),
    ],
)
def test_modules_of_ones_own_come_back(build, knobs, task: str, tmp_path: Path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2400, 8))
    y = np.abs(x[:, :2]).argmax(1) if task == "classification" else np.sin(2 * x[:, 0]) + x[:, 1]
    own = functools.partial(build, inputs=8, classes=2 if task == "classification" else 1)
    data = sx.DataSpec(sx.arrays(x, y), train_examples=(100,), validation_examples=50, test_examples=1500)
    sweep = replace(ALL, data=data, models=(sx.ModelGrid(own, knobs),), task=task)
    run = trained(sweep, tmp_path)
    assert len(run.models()) == len(run.results()) == 8
    name = run.models()[0]
    alone = sx.Run(run.directory)
    with pytest.raises(sx.SweepError, match=r"has no address .*; give it with build=\.\.\.$"):
        alone.model(name)
    with pytest.raises(sx.SweepError, match=r"its sweep has objects of Python; give the sweep with run\.evaluate"):
        alone.evaluate(name, build=own)
    module = alone.model(name, build=own)
    assert all(jnp.isfinite(module(jnp.asarray(x[:5], jnp.float32))).ravel())
    assert_reproduced(alone, build=own, sweep=sweep)
    assert_reproduced(run)  # this process has made it, and knows both


@pytest.mark.slow
def test_trials_that_end_early_or_wait_at_rungs_keep_theirs(tmp_path: Path):
    """The test of a trial out of patience comes in a later call; one that comes to a rung leaves its lane."""
    train = replace(
        SWEEP.train, learning_rate=(1e-3, 1e-2, 3e-2, 0.3), steps=200, patience=2, halving=sx.HalvingSpec((0.05,))
    )
    run = trained(replace(ALL, train=train), tmp_path)
    rows = run.results()
    assert {"done", "stopped"} <= set(rows["status"])
    done = rows[rows["status"] == "done"]
    assert min(done["steps_taken"]) < 200
    assert set(run.models()) == set(done["trial_id"])
    assert_reproduced(run)


@pytest.mark.slow
def test_models_are_kept_after_a_resume_as_if_there_had_been_none(tmp_path: Path):
    whole, broken = trained(ALL, tmp_path / "whole"), tmp_path / "broken"
    code = """
import os, signal, sys, time
from scalejax.run import watch
from scalejax.cli import entry
show, calls = watch.Accountant.show, []
def shown(accountant, progress, display):
    show(accountant, progress, display)
    calls.append(progress)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
watch.Accountant.show = shown
entry()
"""
    command = [sys.executable, "-c", code, "run", str(whole.directory / "sweep.toml"), "--out", str(broken)]
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 143
    assert len(sx.Run(broken).models()) < len(whole.models())
    resumed = trained(ALL, broken)
    assert resumed.models() == whole.models()
    assert_reproduced(resumed)


def row_of(trial_id: str, rate: float, loss: float, **more: object) -> dict[str, object]:
    row: dict[str, object] = {"trial_id": trial_id, "family": "mlp", "width": 4, "params": 9, "train_examples": 20}
    row |= {"seed": 0, "learning_rate": rate, "status": "done", "validation_loss": loss, "test_error": loss}
    return row | more


def test_trials_that_were_done_before_models_were_kept_are_counted():
    rows = pd.DataFrame(
        [
            row_of("a", 0.1, 0.5),
            row_of("b", 0.2, 0.4),
            row_of("c", 0.2, 0.4, train_examples=30),
            row_of("d", 0.2, 0.1, status="stopped"),
            row_of("e", 0.1, 0.1, family="ridge", width=None),
        ]
    )
    assert without_model(rows, (), every=True) == {"a", "b", "c"}
    assert without_model(rows, (), every=False) == {"b", "c"}
    assert without_model(rows, ("b", "another sweep's"), every=False) == {"c"}
    assert without_model(rows, ("b", "c"), every=False) == set()
    assert without_model(rows.assign(test_error=float("nan")), (), every=False) == {"b", "c"}


@pytest.mark.parametrize(("keep", "told"), [("none", 0), ("best", 2), ("all", 3)])
def test_a_run_says_that_earlier_trials_have_no_models(keep: str, told: int, monkeypatch: pytest.MonkeyPatch):
    rows = pd.DataFrame([row_of("a", 0.1, 0.5), row_of("b", 0.2, 0.4), row_of("c", 0.2, 0.4, train_examples=30)])
    monkeypatch.setattr(sx.Run, "results", lambda _: rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _warn_of_missing_models(sx.Run(Path("here")), keep)
    assert [str(each.message) for each in caught] == [
        f"here: {told} trials were done in an earlier run without keeping their models, and have none; "
        f'to have them (keep_weights = "{keep}"), run the sweep in another directory'
    ][: bool(told)]


# --- interrupted


@pytest.mark.slow
def test_what_a_killed_run_has_set_aside_is_whole_and_the_next_one_goes_on(tmp_path, monkeypatch):
    """As if it had been killed after its last result."""
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "_settle", lambda *_: None)
        run = trained(SWEEP, tmp_path)
    rows = run.results()
    assert set(run.models()) == set(rows["trial_id"])
    assert_reproduced(run)
    name = run.models()[0]
    half = tmp_path / "models" / f".{name}.part"  # of a process that was killed while Orbax wrote
    half.mkdir()
    (half / "model.json").write_text("{}")
    assert name in trained(replace(SWEEP, keep_weights="none"), tmp_path).models()  # nothing is thrown away unasked
    trained(SWEEP, tmp_path)
    assert set(tuned(rows)["trial_id"]) <= set(run.models()) < set(rows["trial_id"])
    assert kept.waiting_models(tmp_path / "models") == []
    assert_reproduced(run)


@pytest.mark.slow
def test_an_enlarged_sweep_keeps_the_models_of_what_is_new(copied: sx.Run):
    before = set(copied.models())
    larger = replace(SWEEP, data=replace(SWEEP.data, train_examples=(20, 100, 200)))
    run = trained(larger, copied.directory)
    assert before < set(run.models())
    assert set(tuned(run.results())["trial_id"]) <= set(run.models())


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "store", full)
    with pytest.raises(sx.RunError, match=r"a model cannot be written \(.*No space left.*\); see that the disk"):
        trained(SWEEP, tmp_path)
    monkeypatch.undo()
    run = trained(SWEEP, tmp_path)
    assert set(tuned(run.results())["trial_id"]) <= set(run.models())


# --- back from the disk


def test_the_best_trial_of_all_and_of_a_family_can_be_called(best: sx.Run):
    rows = best.results()
    row = best.best()
    assert row["validation_loss"] == min(rows["validation_loss"])
    assert best.best(family="mlp")["validation_loss"] == min(rows[rows["family"] == "mlp"]["validation_loss"])
    with pytest.raises(ValueError, match="no trial of the family cnn is done; those with trials that are done: log"):
        best.best(family="cnn")
    name = str(row["trial_id"])
    module = best.model(name)
    outputs = module(jnp.zeros((3, 40)))
    assert outputs.shape == (3, 10)
    np.testing.assert_array_equal(outputs, best.model(name[:12])(jnp.zeros((3, 40))))


def test_the_best_of_a_builder_can_be_asked_for_as_a_sweep_file_calls_it():
    rows = pd.DataFrame({"family": ["build", "mlp"], "status": "done", "validation_loss": [2.0, 1.0]})
    for family in ("build", "mine:build", "my.models:Nets.build"):
        row = best_row(rows, family)
        assert row is not None
        assert row.to_dict()["validation_loss"] == 2.0
    assert best_row(rows, "mine:other") is None


def test_a_model_has_its_true_size_and_says_what_it_is(best: sx.Run):
    rows = best.results().set_index("trial_id")
    for name in best.models():
        row, module = rows.loc[name], best.model(name)
        assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))) == row["params"]
        says = json.loads((best.directory / "models" / name / "model.json").read_text())
        assert (says["family"], says["task"], says["shape"], says["outputs"]) == (
            row["family"],
            "classification",
            [40],
            10,
        )


@pytest.mark.slow
def test_another_process_with_other_devices_brings_them_back(best: sx.Run, tmp_path: Path):
    """From the directory alone; of a builder in a package too."""
    own = trained(replace(ALL, models=(sx.ModelGrid(Net, width=(4, 7)),)), tmp_path)
    code = """
import sys, jax, scalejax as sx
for directory in sys.argv[1:]:
    run = sx.Run(directory)
    for name in run.models():
        found = run.evaluate(name, sweep=sx.load_sweep(sys.argv[1] + "/sweep.toml"))
        print(len(jax.local_devices()), name, *found.values())
"""
    count = len(jax.local_devices()) + 1
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "PYTHONPATH": paths}
    command = [sys.executable, "-c", code, str(best.directory), str(own.directory)]
    done = subprocess.run(command, env={**os.environ, **flags}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = pd.concat([best.results(), own.results()]).set_index("trial_id")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[1] for line in lines] == [*best.models(), *own.models()]
    for devices, name, loss, metric in lines:
        assert int(devices) == count
        np.testing.assert_allclose(float(loss), rows["test_loss"][name], rtol=RTOL)
        assert float(metric) == rows["test_metric"][name]


def test_a_builder_that_does_not_fit_is_one_sentence(best: sx.Run):
    name = str(best.best(family="mlp")["trial_id"])
    with pytest.raises(sx.SweepError, match=r"the builder Net fails with .*depth.*; give the one that trial .* was"):
        best.model(name, build=Net)
    with pytest.raises(sx.SweepError, match=r"the builder other makes no params\.hidden\.0\.bias, which the model has"):
        best.model(name, build=other)


def test_a_builder_of_another_size_is_one_sentence(best: sx.Run):
    name = str(best.best(family="logistic")["trial_id"])

    def build(*, inputs: int, rngs: nnx.Rngs) -> nnx.Module:
        return FAMILIES["logistic"](inputs=inputs, classes=3, rngs=rngs)

    expected = (
        r"the builder build makes params\.output\.bias float32 \[3\], and that of the model is float32 \[10\]; give"
    )
    with pytest.raises(sx.SweepError, match=expected):
        best.model(name, build=build)


def test_what_was_not_kept_is_said_with_the_remedy(best: sx.Run, copied: sx.Run):
    missing = sorted(set(best.results()["trial_id"]) - set(best.models()))[0]
    with pytest.raises(sx.SweepError, match=f'model of trial {missing} was not kept .* keep_weights = "all"'):
        best.model(missing)
    with pytest.raises(sx.SweepError, match="no trial is called 'xyz'; see the column trial_id"):
        best.model("xyz")
    with pytest.raises(sx.SweepError, match="no trial is called ''"):
        best.model("")
    ids = [*best.results()["trial_id"], *"0123456789abcdef"]
    digit = next(one for one in "0123456789abcdef" if sum(each.startswith(one) for each in ids) > 2)
    with pytest.raises(sx.SweepError, match=f"trials begin with '{digit}', such as .*; give more digits"):
        best.model(digit)
    name = copied.models()[0]
    data = next(path for path in (copied.directory / "models" / name / "weights").rglob("d/*") if path.is_file())
    data.write_bytes(data.read_bytes()[::-1])
    with pytest.raises(sx.SweepError, match=r"cannot be read \(its checksum does not match\); restore"):
        copied.model(name)


def test_a_model_of_an_older_algorithm_is_said_to_be_none(tmp_path: Path):
    row = TrialRow(
        trial_id="b507", family="ridge", knobs={}, params=4, train_examples=20, fraction=0.1, seed=0,
        learning_rate=None, weight_decay=None, batch_size=None, steps=0, flops=0,
    )  # fmt: skip
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan([row, replace(row, trial_id="c1", family="mlp"), replace(row, trial_id="d2", family="cnn")])
    says = r"trial b507 is of ridge, an algorithm of scikit-learn, whose models are not kept; "
    with pytest.raises(sx.SweepError, match=says + r'run\.best\(family="mlp"\) or run\.best\(family="cnn"\) names a'):
        sx.Run(tmp_path).model("b507")
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan([row])
    with pytest.raises(sx.SweepError, match=says + "this run has no network"):
        sx.Run(tmp_path).model("b507")


def test_other_data_are_noticed(best: sx.Run):
    with pytest.raises(sx.SweepError, match="other data than the sweep kept has now; give the sweep"):
        best.evaluate(best.models()[0], sweep=replace(SWEEP, data=replace(SWEEP.data, seed=1)))


# --- the key and the command


def test_the_key_is_strict_and_part_of_no_id():
    with pytest.raises(sx.SweepError, match=r"keep_weights: .*some.*; expected one of none, best, all"):
        replace(SWEEP, keep_weights="some")
    ids = {
        tuple(each.trial.trial_id for each in expand(replace(SWEEP, keep_weights=which), describe(SWEEP.data)))
        for which in ("none", "best", "all")
    }
    assert len(ids) == 1


def test_the_command_says_where_the_models_are(best: sx.Run, copied: sx.Run, capsys: pytest.CaptureFixture[str]):
    models = copied.directory / "models"
    shutil.copytree(models / copied.models()[0], models / "0123456789abcdef")  # of another sweep in the same directory
    assert main(["run", str(best.directory / "sweep.toml"), "--out", str(copied.directory)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{len(copied.models()) - 1} trained models; in Python, run.model(trial_id)" in said
