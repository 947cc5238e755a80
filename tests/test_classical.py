"""The classical baselines: the same examples as the networks, losses that are finite, processes that may die."""

import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from engine_helpers import planned, trial_of
from flax import nnx

import scalejax as sx
from scalejax.classical import fit as fitting
from scalejax.classical.families import CLASSIFICATION, FAMILIES, REGRESSION
from scalejax.classical.fit import cross_entropy, examples_of, flat, probabilities
from scalejax.classical.pool import Child, HostPool, OlderFinished, package
from scalejax.classical.trial import OlderTrial
from scalejax.cli import main
from scalejax.data import DataSet, Split, describe, load
from scalejax.data.features import Chain, Function, resolve
from scalejax.data.host_shuffle import own_rows
from scalejax.data.own_examples import FeatureFits
from scalejax.errors import RunError, SweepError
from scalejax.models import FAMILIES as NETWORKS
from scalejax.models import architecture
from scalejax.models.behind import Behind, with_fitted
from scalejax.planning.plan import make_plan
from scalejax.planning.trial import random_bits
from scalejax.report.figures.canvas import TRADITIONAL_FAMILIES
from scalejax.run.directory import OLDER
from scalejax.run.run import planned as plan_of
from scalejax.spec.file import load_sweep, sweep_to_toml
from scalejax.status import Status
from scalejax.train.step import Cursor, batch_indices
from scalejax.train.task import TASKS, Classification, Regression, task_of

pytestmark = pytest.mark.usefixtures("compile_quickly")
DIGITS = sx.DataSpec(source="digits", train_examples=(20, 100), validation_examples=100, test_examples=200)
SWEEP = """
name = "both"
seeds = 2
[data]
source = "digits"
train_examples = [20, 100]
validation_examples = 100
test_examples = 200
[[models]]
family = "svm"
C = [1, 10]
time_limit = 60
[[models]]
family = "mlp"
width = 8
depth = 1
[train]
learning_rate = 1e-2
batch_size = 16
steps = 40
"""


def older(data: DataSet, family: str = "naive_bayes", **changes) -> OlderTrial:
    """Return a trial on the small data set, with a middle value of each option."""
    options = {
        name: option.grid[len(option.grid) // 2] for name, option in FAMILIES[family].options.items()
    } | changes.pop("options", {})
    trial = OlderTrial(
        family=family, hyperparameters=tuple(options.items()), task=CLASSIFICATION, metric="error",
        data=data.card.fingerprint,
        train_examples=100, seed=0, inputs=12, outputs=3, subset_key=random_bits("fingerprint", 0, "subset"),
        random_state=7, time_limit=60.0,
    )  # fmt: skip
    return replace(trial, **changes)


class Here:
    """Stands for a `Child` where no process is asked about: starting one takes two seconds. It fits in this process."""

    ended = False

    def __init__(self, folder: Path, _: int):
        self._folder = folder

    def fit(self, trial: OlderTrial) -> OlderFinished:
        scores = fitting.fit(trial, examples_of(trial, self._folder))
        return OlderFinished(trial, Status.DONE, "", scores, 0.0, package())

    def kill(self) -> None:
        self.ended = True

    close = kill


@pytest.fixture
def fit_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalejax.classical.pool.Child", Here)


def untold(_: object) -> None:
    pass


def pool_of(
    trials: Sequence[OlderTrial],
    data: DataSet,
    *,
    started: Callable[[OlderTrial], None] = untold,
    finished: Callable[[OlderFinished], None] = untold,
    failed: Callable[[], None] = lambda: None,
) -> HostPool:
    """Return a pool of one process, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="scalejax-tests-")) / "older"
    return HostPool(trials, data, folder=folder, processes=1, started=started, finished=finished, failed=failed)


def fitted(trials: Sequence[OlderTrial], data: DataSet, *, began: Callable[[HostPool], None] = untold) -> list:
    """Return how trials end in a pool of one process; `began` is told of the pool when a trial starts."""
    ends: list[OlderFinished] = []
    pool = pool_of(trials, data, started=lambda _: began(pool), finished=ends.append)
    with pool:
        pool.join()
    return ends


@pytest.mark.parametrize("family", [name for name in FAMILIES if CLASSIFICATION in FAMILIES[name].make])
def test_every_family_learns_classes(family: str, data: DataSet):
    examples = {"train": data.train, "validation": data.validation, "test": data.test}
    splits = {name: (abs(split.inputs), split.targets) for name, split in examples.items()}
    scores = [fitting.fit(older(data, family, train_examples=size), cut(splits, size)) for size in (20, 500)]
    assert scores[1].validation_loss < min(scores[0].validation_loss, math.log(3))
    assert scores[1].test_metric < min(scores[0].test_metric, 0.5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if REGRESSION in FAMILIES[name].make])
def test_every_family_learns_numbers(family: str, data: DataSet):
    splits = {
        name: (split.inputs, (split.inputs[:, 0] + 0.1 * split.inputs[:, 1]).astype(np.float32))
        for name, split in {"train": data.train, "validation": data.validation, "test": data.test}.items()
    }
    few, many = (
        fitting.fit(
            older(data, family, task=REGRESSION, metric="RMSE", outputs=1, train_examples=size), cut(splits, size)
        )
        for size in (10, 500)
    )
    assert many.test_metric**2 == pytest.approx(many.test_loss)
    assert many.test_metric < min(few.test_metric, 0.7)


def cut(splits: dict, size: int) -> dict:
    inputs, targets = splits["train"]
    return {**splits, "train": (inputs[:size], targets[:size])}


@pytest.mark.parametrize("family", [name for name in FAMILIES if CLASSIFICATION in FAMILIES[name].make])
@pytest.mark.parametrize("classes", [(0,), (0, 2), (1, 1, 2)])
def test_classes_that_no_example_has_get_a_finite_loss(family: str, classes: tuple, data: DataSet):
    trial = older(data, family, train_examples=len(classes))
    examples = {
        "train": (data.train.inputs[: len(classes)], np.array(classes, np.int32)),
        "validation": (data.validation.inputs, data.validation.targets),
        "test": (data.test.inputs, data.test.targets),
    }
    scores = fitting.fit(trial, examples)
    assert scores.validation_loss <= math.log(3 * (len(classes) + 1)) + 1e-9  # what the worst answer costs
    assert 0 < scores.test_metric <= 1


class Sure:
    """A model that has seen two of three classes and is sure of the first."""

    classes_ = np.array([0, 1])

    def predict_proba(self, inputs: np.ndarray) -> np.ndarray:
        return np.tile([1.0, 0.0], (len(inputs), 1))


def test_a_probability_of_zero_costs_what_the_mixture_says(data: DataSet):
    mixed = probabilities(older(data, train_examples=9), Sure(), np.zeros((2, 1)))
    np.testing.assert_allclose(mixed, [[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]] * 2)
    assert cross_entropy(mixed, np.array([0, 2])) == pytest.approx(-(math.log(0.9 + 0.1 / 3) + math.log(0.1 / 3)) / 2)


@pytest.mark.parametrize("metric", [*TASKS[CLASSIFICATION][1], "top2_error"])
def test_the_metrics_are_those_of_the_networks(metric: str, data: DataSet):
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    examples = {name: (split.inputs, split.targets) for name, split in splits.items()}
    trial = older(data, "logistic_regression", metric=metric, train_examples=500)
    model = FAMILIES["logistic_regression"].make[CLASSIFICATION]({"C": 1.0}, 500, 0).fit(*examples["train"])
    logits = np.log(probabilities(trial, model, data.test.inputs)).astype(np.float32)
    task = Classification(metric)
    scores = task.score(jax.numpy.asarray(logits), jax.numpy.asarray(data.test.targets))
    assert fitting.fit(trial, examples).test_metric == pytest.approx(float(task.headline(scores.mean(0))), rel=1e-5)


def test_equal_answers_are_in_any_order():
    """An answer without information has the error of guessing, and not that of the lucky."""
    targets = np.arange(8) % 4
    logits = np.zeros((8, 4), np.float32)
    scores = Classification("top3_error").score(jax.numpy.asarray(logits), jax.numpy.asarray(targets))
    np.testing.assert_allclose(scores, 0.25)
    logits[:, 0] = 1  # the class 0 is sure to be among two; each of three others with a chance of a third
    scores = Classification("top2_error").score(jax.numpy.asarray(logits), jax.numpy.asarray(targets))
    np.testing.assert_allclose(scores, [0, 2 / 3, 2 / 3, 2 / 3] * 2, rtol=1e-6)


def test_a_top_error_of_as_many_as_there_are_classes_is_refused(data: DataSet):
    assert task_of("classification", data.card, metric="top2_error") == Classification("top2_error")
    with pytest.raises(sx.SweepError, match="top3_error of 3 classes is always 0; expected a number below"):
        task_of("classification", data.card, metric="top3_error")


@pytest.mark.parametrize("metric", TASKS[REGRESSION][1])
def test_the_metrics_of_a_regression_are_those_of_the_networks(metric: str, data: DataSet):
    examples = {name: (each.inputs, each.inputs[:, 0] ** 3) for name, each in
                (("train", data.train), ("validation", data.validation), ("test", data.test))}  # fmt: skip
    trial = older(data, "ridge", task=REGRESSION, metric=metric, outputs=1)
    model = FAMILIES["ridge"].make[REGRESSION](dict(trial.hyperparameters), 500, 0).fit(*examples["train"])
    inputs, targets = examples["test"]
    task = Regression(metric)
    outputs = np.asarray(model.predict(inputs), np.float32)[:, None]
    scores = task.score(jax.numpy.asarray(outputs), jax.numpy.asarray(targets))
    assert fitting.fit(trial, examples).test_metric == pytest.approx(float(task.headline(scores.mean(0))), rel=1e-5)


def test_what_a_regression_leaves_unexplained_beside_a_large_mean(tmp_path: Path):
    random = np.random.default_rng(0)
    x = random.normal(size=(4_000, 2))
    y = (1e4 + x[:, 0] * 0.9 + random.normal(size=4_000) * 0.4).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    for source in (sx.arrays(x, y), str(tmp_path / "a.npz")):
        asked = sx.DataSpec(source=source, fractions=(1.0,))
        found = load(asked)
        task = task_of(None, found.card, metric="1-R2")
        assert isinstance(task, Regression)
        assert task.centre == pytest.approx(1e4, abs=0.1)
        assert Regression("1-R2").identity == task.identity
        assert repr(found.card) == repr(replace(found.card, target_centre=None))
        outputs = (1e4 + 0.9 * found.test.inputs[:, :1]).astype(np.float32)
        targets = found.test.targets.astype(np.float64)
        expected = np.mean((outputs[:, 0].astype(np.float64) - targets) ** 2) / targets.var()
        scores = task.score(jax.numpy.asarray(outputs), jax.numpy.asarray(found.test.targets))
        assert float(task.headline(scores.mean(0))) == pytest.approx(expected, rel=1e-4)
        assert task_of(None, found.card) == Regression()
    assert describe(replace(asked, options={"standardise_target": True})).target_centre is None
    assert describe(sx.DataSpec(source=sx.arrays(x, y > y.mean()), fractions=(1.0,))).target_centre is None


def test_test_targets_without_variance_are_refused_where_they_are_known_and_lose_no_fit(data: DataSet):
    x, y = np.arange(40.0)[:, None], np.arange(40.0)
    constant = {"train_x": x, "train_y": y, "test_x": x + 50, "test_y": np.ones(40)}
    card = describe(sx.DataSpec(source=constant, fractions=(1.0,)))
    assert task_of(None, card, metric="RMSE") == Regression()
    with pytest.raises(sx.SweepError, match="metric: 1-R2 needs test targets that differ; take metric"):
        task_of(None, card, metric="1-R2")
    examples = {"train": (x, y), "validation": (x, y), "test": (x, np.ones(40))}
    scores = fitting.fit(older(data, "ridge", task=REGRESSION, metric="1-R2", outputs=1), examples)
    assert np.isfinite(scores.test_loss)
    assert np.isnan(scores.test_metric)
    summed = Regression("1-R2").score(jax.numpy.ones((4, 1)), jax.numpy.ones(4))
    assert np.isnan(Regression("1-R2").headline(summed.mean(0)))


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION])
def test_a_metric_that_is_not_known_is_no_other_one(task: str, data: DataSet):
    with pytest.raises(KeyError, match="F1"):
        fitting.metric_of(older(data, task=task, metric="F1"))


def test_a_trial_sees_the_examples_of_the_networks_trials(data: DataSet):
    network = planned(train_examples=96, steps=6)  # one epoch of 6 batches of 16
    zero = np.uint32(0)
    rows = batch_indices(network.recipe, jax.tree.map(np.uint32, network.settings), Cursor(zero, zero), pool=500,
                         first=jax.numpy.int32(0))[:6]  # fmt: skip
    own = own_rows(96, pool=500, key=older(data).subset_key)
    assert set(np.ravel(rows).tolist()) == set(own.tolist())
    assert own_rows(20, pool=500, key=3).tolist() == own_rows(96, pool=500, key=3)[:20].tolist()  # nested


def test_bytes_are_pixels_in_units_of_one():
    pixels = np.array([[[0, 51], [255, 102]]], np.uint8)
    np.testing.assert_allclose(flat(pixels), [[0, 0.2, 1, 0.4]], rtol=1e-6)


def test_a_pool_gives_what_a_fit_here_gives_and_keeps_the_ids(data: DataSet, monkeypatch: pytest.MonkeyPatch):
    trials = [older(data, family, seed=seed) for family in ("svm", "random_forest") for seed in (0, 1)]
    ends = fitted(trials, data)
    assert [end.trial for end in ends] == trials
    monkeypatch.setattr("scalejax.classical.pool.Child", Here)
    assert [end.scores for end in ends] == [end.scores for end in fitted(trials, data)]  # bit for bit
    assert len({trial.trial_id for trial in trials}) == 4
    again = replace(trials[0], time_limit=1.0)
    assert again.trial_id == trials[0].trial_id == "b18fff6b18cdf759"


def test_what_takes_too_long_fails_and_the_others_go_on(data: DataSet):
    endless = older(data, "gradient_boosting", options={"max_iter": 10_000_000}, time_limit=1.0)
    late, fine = fitted([endless, older(data)], data)
    assert (late.status, late.reason, late.scores) == ("failed", "took longer than time_limit = 1 s", None)
    assert fine.status == "done"


def test_a_process_that_dies_fails_its_trial_alone(data: DataSet):
    def kill(pool: HostPool) -> None:
        for child in pool._children.values():
            os.kill(child._process.pid, signal.SIGKILL)

    first, second, third = fitted([older(data, seed=seed) for seed in range(3)], data, began=kill)
    assert first.status == "done"  # there was no process to kill yet
    assert {second.status, third.status} == {"failed", "done"}
    reason = second.reason or third.reason
    assert reason == "its process ended with exit code -9, probably because memory ran out; the next run tries again"


class Ended:
    """A process that has ended, or does not."""

    def __init__(self, code: int | None):
        self.code = code

    def wait(self, timeout: float) -> int:
        if self.code is None:
            raise subprocess.TimeoutExpired("child", timeout)
        return self.code


@pytest.mark.parametrize(
    ("code", "killed", "says"),
    [
        (-9, False, "its process ended with exit code -9, probably because memory ran out; the next run tries again"),
        (-9, True, "its process ended with exit code -9; the next run tries again"),
        (1, False, "its process ended with exit code 1; the next run tries again"),
        (None, False, "its process gave no answer that can be read; the next run tries again"),
    ],
)
def test_only_a_process_that_nobody_here_has_killed_was_short_of_memory(
    code: int | None, killed: bool, says: str, tmp_path: Path
):
    child = object.__new__(Child)
    child._errors, child.ended, child._process = tmp_path / "errors", killed, Ended(code)  # pyright: ignore
    child._errors.touch()
    assert child._death() == says


def test_a_full_disk_ends_the_run_with_a_sentence(data: DataSet, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scalejax.classical.pool.np.save", full)
    pool = pool_of([older(data)], data)
    with pytest.raises(RunError, match=r"cannot be written \(No space left on device\); free some space"), pool:
        pass
    assert not pool._folder.exists()


def test_a_mistake_in_a_fit_is_the_reason_and_what_is_printed_before_is_none(
    data: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text("print('hello')", encoding="utf-8")  # before any line of ours
    monkeypatch.syspath_prepend(tmp_path)
    (end,) = fitted([older(data, task="nothing")], data)
    assert (end.status, end.reason) == ("failed", "KeyError: 'nothing'")


def test_a_pool_that_is_stopped_tells_of_nothing_more(data: DataSet):
    ends: list[OlderFinished] = []
    pool = pool_of([older(data), older(data, seed=1)], data, started=lambda _: pool.stop(),
                    finished=ends.append)  # fmt: skip
    with pool:
        assert not pool.join()
    assert (ends, pool.dropped) == ([], 0)  # it had not begun


@pytest.mark.usefixtures("fit_here")
def test_trouble_of_the_run_is_raised_and_stops_it(data: DataSet):
    def full(_: OlderFinished) -> None:
        raise RunError("the disk is full")

    told = threading.Event()
    pool = pool_of([older(data)], data, finished=full, failed=told.set)
    with pytest.raises(RunError, match="the disk is full"), pool:
        pool.join()
    assert told.is_set()


def test_networks_and_older_algorithms_in_one_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file, out = tmp_path / "sweep.toml", tmp_path / "run"
    file.write_text(SWEEP, encoding="utf-8")
    assert main(["plan", str(file)]) == 0
    assert "classical 8 trials on host cores, in none of the FLOPs and forecasts: svm 8" in capsys.readouterr().out
    assert main(["plan", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["trials"], facts["older"]) == (12, [{"family": "svm", "trials": 8}])
    assert main(["run", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "12 trials: 12 done; 1 lane program for all networks" in said
    table = sx.Run(out).results()
    svm = table[table["family"] == "svm"]
    assert set(svm["hyperparameters"]) == {"C=1, gamma=scale", "C=10, gamma=scale"}
    for column in ("learning_rate", "weight_decay", "batch_size"):
        assert set(map(pd.isna, svm[column].tolist())) == {True}
    for column in ("steps", "steps_taken", "best_step"):
        assert set(svm[column].tolist()) == {1}
    assert set(svm["flops"].tolist()) == {0}
    for column in ("train_loss", "validation_loss", "test_loss", "test_error"):
        assert all(map(math.isfinite, svm[column].tolist()))
    curves = sx.Run(out).curves()
    assert curves["model"].value_counts().to_dict() == {"svm": 2, "mlp": 2}  # one line, whatever its C
    assert main(["run", str(file), "--out", str(out)]) == 0
    pd.testing.assert_frame_equal(sx.Run(out).results(), table)  # nothing was fitted again, seconds included


def test_a_sweep_of_older_algorithms_alone_needs_no_table_of_training(tmp_path: Path):
    sweep = sx.Sweep("alone", DIGITS, models=(sx.ModelGrid("naive_bayes"), sx.ModelGrid("svm", C=[1], gamma=0.05)))
    text = sweep_to_toml(sweep)
    assert "[train]" not in text
    (tmp_path / "alone.toml").write_text(text, encoding="utf-8")
    assert load_sweep(tmp_path / "alone.toml") == sweep
    assert str(sx.plan(sweep)).splitlines()[1].startswith("classical 10 trials on host cores")
    left = tmp_path / "run" / OLDER / "left by a run that was killed"
    left.mkdir(parents=True)
    run = sx.run_sweep(sweep, tmp_path / "run", progress=False)
    assert run.counts()["done"] == 10
    assert not left.parent.exists()
    assert run.results()["metric"].unique().tolist() == ["error"]
    assert (run.directory / "figures" / "learning_curves.png").is_file()
    assert "naive_bayes" in " ".join(run.summary())


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(tmp_path: Path):
    forest = sx.ModelGrid("random_forest", n_estimators=300, min_samples_leaf=[1, 2, 3])
    sweep = sx.Sweep("stopped", replace(DIGITS, train_examples=(300,)), models=(forest,), seeds=(0, 1))
    timer = threading.Timer(4.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(sx.Interrupted):
        sx.run_sweep(replace(sweep, seeds=tuple(range(60))), tmp_path / "run", progress=False)
    before = sx.Run(tmp_path / "run").results()
    assert set(before["status"]) <= {"done", "pending"}
    resumed = sx.run_sweep(sweep, tmp_path / "run", progress=False).results()
    fresh = sx.run_sweep(sweep, tmp_path / "fresh", progress=False).results()
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), fresh.drop(columns="seconds"))
    kept = before[before["status"] == "done"].merge(resumed, on="trial_id")
    assert kept["seconds_x"].tolist() == kept["seconds_y"].tolist()


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ('family = "svn"', "[train]: needed but missing; only a sweep of nothing but logistic_regression, ridge"),
        (f'family = "svn"\n[train]{SWEEP.split("[train]")[1]}', "unknown family 'svn'; did you mean svm?"),
        ('family = "svm"\nc = 3', "unknown option of svm; expected one of C, gamma, time_limit"),
        ('family = "svm"\nC = [1, 0]', "C: expected a finite number > 0, found 0"),
        ('family = "svm"\ngamma = "scal"', "expected \"scale\" or a number > 0, found 'scal'"),
        ('family = "svm"\ntime_limit = [1, 2]', "time_limit: expected one number of seconds, found a list"),
        ('family = "svm"\ntime_limit = 0', "time_limit: expected a finite number > 0 and <= 1e+09, found 0"),
        (
            'family = "svm"\ntime_limit = 1e10',
            "time_limit: expected a finite number > 0 and <= 1e+09, found 100",
        ),
        ('family = "random_forest"\nmin_samples_leaf = 1.5', "expected a whole number >= 1, found 1.5"),
        ('family = "ridge"', "ridge does regression of numbers, and the task of this sweep is classification; take"),
        ('family = "svm"\n[[models]]\nfamily = "svm"\nC = 1', "repeats a model of index 0 (C = 1.0"),
        ('family = "mlp"\nwidth = 8\ndepth = 1', "[train]: needed but missing"),
    ],
)
def test_mistakes_are_one_sentence(models: str, says: str, tmp_path: Path):
    file = tmp_path / "sweep.toml"
    head, _ = SWEEP.split("[[models]]", 1)
    file.write_text(f"{head}[[models]]\n{models}\n", encoding="utf-8")
    with pytest.raises(SweepError) as caught:
        load_sweep(file, check=make_plan)
    assert says in str(caught.value)
    assert "line" in str(caught.value) or "train" in says


def test_the_number_of_fits_is_limited():
    sweep = sx.Sweep("many", DIGITS, models=(sx.ModelGrid("svm", C=range(1, 1_001)),), seeds=tuple(range(1_000)))
    with pytest.raises(SweepError, match="2,000,000 fits, more than 1,000,000"):
        plan_of(sweep)
    both = replace(sweep, models=(sx.ModelGrid("svm", C=range(1, 1_001), features=["none", "spectrum"]),))
    with pytest.raises(SweepError, match="4,000,000 fits"):
        plan_of(both)


def test_figures_know_the_older_families():
    assert set(FAMILIES) <= set(TRADITIONAL_FAMILIES)


def test_scikit_learns_logistic_regression_and_ours_agree(tmp_path: Path):
    # The same objective: momentum of 0.9 takes ten gradients a step, so a decay is the penalty C = 10 / (decay x n).
    data = sx.DataSpec(source="digits", train_examples=(20, 100, 500), validation_examples=300, test_examples=600)
    train = sx.TrainSpec(
        optimizer="momentum", learning_rate=(0.1,), weight_decay=(5e-4, 5e-3, 5e-2, 0.5), batch_size=(32,), steps=1_000
    )
    models = (sx.ModelGrid("logistic"), sx.ModelGrid("logistic_regression"))
    run = sx.run_sweep(sx.Sweep("agree", data, models, train, seeds=tuple(range(5))), tmp_path, progress=False)
    curves = run.curves().pivot(index="train_examples", columns="model", values="value")
    gaps = curves["logistic"].to_numpy(float) - curves["logistic_regression"].to_numpy(float)
    assert abs(gaps).max() < 0.01, curves


# Behind features

CHAIN = resolve(("standardise", "pca(4)"))


def behind(data: DataSet, chain: Chain = CHAIN, *, smoothing: float = 1e-9, **changes) -> OlderTrial:
    trial = older(data, options={"var_smoothing": smoothing}, **changes)
    keys = {f"{purpose}_key": random_bits("fingerprint", trial.seed, purpose) for purpose in ("subset", "features")}
    return replace(trial, features=tuple(map(repr, chain)), chain=chain, **keys)


def inputs_of(trial: OlderTrial, data: DataSet) -> dict[str, np.ndarray]:
    """Return the inputs that are there for the process which fits, while another trial still needs them."""
    seen: list[dict[str, np.ndarray]] = []

    def look(end: OlderFinished) -> None:
        assert end.status == "done"
        if not seen:
            examples = examples_of(replace(trial, chain=()), pool._folder)
            seen.append({split: np.array(inputs) for split, (inputs, _) in examples.items()})

    both = [trial, replace(trial, hyperparameters=(("var_smoothing", 0.1),))]
    pool = pool_of(both, data, finished=look)
    with pool:
        pool.join()
    return seen[0]


class Passed(nnx.Module):
    """A model that puts out what it sees."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


@pytest.mark.usefixtures("fit_here")
@pytest.mark.parametrize("pixels", [False, True])
def test_an_older_algorithm_sees_what_a_network_behind_the_same_features_sees(pixels: bool, data: DataSet):
    if pixels:
        parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
        data = replace(data, **{name: Split(np.clip(40 * each.inputs + 128, 0, 255).astype(np.uint8), each.targets)
                                for name, each in parts.items()})  # fmt: skip
    built = architecture(NETWORKS["logistic"], {}, shape=(12,), outputs=3, features=CHAIN)
    network = trial_of(built, "logistic", features=tuple(map(repr, CHAIN)), train_examples=20)
    trial = behind(data, train_examples=20)
    assert trial.own_examples is not None
    assert trial.own_examples == network.own_examples
    module = Behind(Passed(), CHAIN, (12,))
    nnx.update(module, with_fitted(nnx.state(module), FeatureFits(data).fitted(CHAIN, trial.own_examples)))
    own = own_rows(20, pool=500, key=network.settings.subset_key)
    made = inputs_of(trial, data)
    assert made["train"].shape == (20, 4)
    for split, rows in (("train", own), ("validation", slice(None)), ("test", slice(None))):
        stored = getattr(data, split).inputs[rows]
        seen = jnp.float32(stored) / 255 if pixels else jnp.asarray(stored)
        np.testing.assert_allclose(made[split], nnx.jit(module)(seen), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("fit_here")
def test_features_are_fitted_on_a_trials_own_examples_alone(data: DataSet):
    trial = behind(data, train_examples=20)
    own = set(own_rows(20, pool=500, key=trial.subset_key).tolist())
    stranger = next(row for row in range(500) if row not in own)

    def inputs_after_changing(row: int) -> np.ndarray:
        inputs = data.train.inputs.copy()
        inputs[row] += 5
        return inputs_of(trial, replace(data, train=Split(inputs, data.train.targets)))["test"]

    before = inputs_of(trial, data)["test"]
    assert np.array_equal(before, inputs_after_changing(stranger))
    assert not np.allclose(before, inputs_after_changing(min(own)))


@pytest.mark.usefixtures("fit_here")
def test_inputs_behind_features_are_made_once_and_deleted_when_no_trial_needs_them(data: DataSet, monkeypatch):
    transformed, made, there = FeatureFits.transformed, [], []
    monkeypatch.setattr(FeatureFits, "transformed", lambda *each: made.append(each[2]) or transformed(*each))
    trials = [behind(data, seed=seed, smoothing=smoothing) for smoothing in (1e-9, 0.1) for seed in (0, 1)]
    pool = pool_of(
        [older(data), *trials], data,
        finished=lambda _: there.append(len([*pool._folder.glob("features-*")])),
    )  # fmt: skip
    with pool:
        pool.join()
    assert made == [trials[0].own_examples, trials[1].own_examples]
    assert there == [0, 1, 0, 1, 0]


def test_features_that_fail_fail_their_trials_alone(data: DataSet):
    logarithm = (Function(lambda x: jnp.log(x)),)  # which could not be pickled
    absolute = (Function(lambda x: jnp.abs(x)),)
    first, second, third, fourth = fitted(
        [behind(data, logarithm, features=("log",)) if made else behind(data, absolute, seed=seed)
         for made, seed in ((True, 0), (True, 1), (False, 0), (False, 1))], data
    )  # fmt: skip
    for end in (first, second):
        assert (end.status, end.scores) == ("failed", None)
        assert "make numbers that are not finite; see what it makes of few examples" in end.reason
    assert {third.status, fourth.status} == {"done"}


def test_the_id_of_a_trial_contains_its_features_and_is_that_of_before_without(data: DataSet):
    plain = older(data, "svm")
    assert plain.trial_id == "b18fff6b18cdf759"
    assert replace(plain, features_named="none").trial_id == plain.trial_id
    some = [replace(plain, features=each) for each in (("a",), ("b",), ("a", "b"))]
    some.append(replace(some[0], numerics=(("jax_default_matmul_precision", "bfloat16"),)))
    assert len({trial.trial_id for trial in (plain, *some)}) == 5
    assert replace(some[0], chain=CHAIN, features_named="x", features_key=3).trial_id == some[0].trial_id
