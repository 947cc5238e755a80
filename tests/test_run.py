"""A run from Python: its tables and files, resuming, enlarging, the user's own modules, what is refused."""

import functools
import io
import json
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flax import nnx

import scalejax as sx
from scalejax.cli import main
from scalejax.execute import modes, timing
from scalejax.execute.scheduler import Progress, Scheduler
from scalejax.planning import plan as plan_module
from scalejax.planning.forecast import Timing
from scalejax.planning.packing import Bucket
from scalejax.planning.plan import make_plan
from scalejax.report.progress import ProgressDisplay
from scalejax.run.watch import Accountant
from scalejax.spec.file import sweep_to_toml
from scalejax.train.cost import step_flops

pytestmark = pytest.mark.usefixtures("compile_quickly")
SWEEP = sx.Sweep(
    name="small",
    data=sx.DataSpec("mnist1d", train_examples=(20, 100), examples=200, validation_examples=50, test_examples=100),
    models=(sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=(4, 8), depth=1)),
    train=sx.TrainSpec(learning_rate=(1e-2,), batch_size=(16,), steps=20, evaluate_every=5),
    seeds=(0, 1),
)
TINY = replace(SWEEP, name="tiny", models=(sx.ModelGrid("logistic"),), seeds=(0,))  # two trials
FILES = {"sweep.toml", "results.sqlite", "environment.json", "figures"}


class Own(nnx.Module):
    """A module of the user's own; its name must not matter, nor that it is in no table of families."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x):
        return self.output(nnx.tanh(self.hidden(x)))


def own_function(*, width: int, rngs: nnx.Rngs) -> nnx.Module:
    """As in the README: the user knows the shapes of the data."""
    return Own(inputs=40, classes=10, width=width, rngs=rngs)


class Told:
    """A tracker of the user's own."""

    def __init__(self):
        self.calls: list[tuple[Any, ...]] = []

    def init(self, facts: Mapping[str, Any]) -> None:
        self.calls.append(("init", facts))

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:
        self.calls.append(("log", trial, measurements))

    def finish(self, tables: Mapping[str, pd.DataFrame], figures: Sequence[Path]) -> None:
        self.calls.append(("finish", tables, figures))


@pytest.fixture(scope="module")
def told() -> Told:
    """What the tracker of the finished run was told."""
    return Told()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, told: Told) -> sx.Run:
    return sx.run_sweep(SWEEP, tmp_path_factory.mktemp("finished") / "deep" / "run", progress=False, tracker=told)


def test_a_tracker_is_told_the_facts_then_every_trial_as_it_stands_in_the_table_then_the_tables(finished, told):
    begin, *trials, end = told.calls
    assert (begin[0], begin[1]["name"], begin[1]["trials"], begin[1]["ended"]) == ("init", "small", 12, 0)
    assert begin[1]["families"] == ["logistic", "mlp"]
    table = {row["trial_id"]: row for row in finished.results().to_dict("records")}
    measured = finished.measurements().drop(columns="validation_error").to_dict("records")
    assert sorted(trial["trial_id"] for _, trial, _ in trials) == sorted(table)
    for _, trial, measurements in trials:
        row = {name: value for name, value in table[trial["trial_id"]].items() if value == value and value is not None}
        assert {name: trial[name] for name in row} == row
        assert list(measurements) == [each for each in measured if each["trial_id"] == trial["trial_id"]]
    pd.testing.assert_frame_equal(end[1]["trials"], finished.results())
    assert len(end[1]["learning_curves"]) == len(finished.curves())
    assert [path.name for path in end[2]] == ["learning_curves.png"]


def test_a_run_knows_which_lane_each_trial_had_and_how_its_session_went(finished: sx.Run):
    spans, (session,) = finished.timeline(), finished.sessions().to_dict("records")
    taken = {row["trial_id"]: row["steps_taken"] for row in finished.results().to_dict("records")}
    assert dict(zip(spans["trial_id"], spans["steps"], strict=True)) == taken
    assert len(spans) == len(taken)
    assert set(spans["outcome"]) == {"done"}
    assert spans["began"].min() >= session["began"]
    assert spans["ended"].max() <= session["ended"]
    for _, lane in spans.groupby(["pack", "lane"]):
        assert (lane["began"].to_numpy()[1:] >= lane["ended"].to_numpy()[:-1]).all()
    plan = make_plan(SWEEP)
    assert session["useful_flops"] == session["plan_useful_flops"] == plan.useful_flops
    assert session["padding_flops"] == session["plan_padding_flops"] == plan.padding_flops
    assert session["forecast_seconds"] > 0
    assert 0 <= session["idle_seconds"] < session["lane_seconds"]


def test_the_flops_of_plan_table_and_progress_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where trials end early: stopped by halving, without patience, diverged."""
    parts = []
    advance = ProgressDisplay.advance
    monkeypatch.setattr(ProgressDisplay, "advance", lambda self, **part: (parts.append(part), advance(self, **part)))
    usual = sx.run_sweep(TINY, tmp_path / "usual", progress=False).results()
    assert sum(usual["flops"].tolist()) == make_plan(TINY).useful_flops == sum(part["flops"] for part in parts)

    parts.clear()
    train = replace(TINY.train, learning_rate=(1e-2, 3e-2, 1.0, 1e30), steps=200, patience=1)
    early = replace(
        TINY, train=replace(train, halving=sx.HalvingSpec((0.02,))), models=sx.ModelGrid("mlp", width=4, depth=1)
    )
    found = sx.run_sweep(early, tmp_path / "early", progress=False).results()
    assert {"done", "diverged", "stopped"} <= set(found["status"])
    assert min(found.query("status == 'done'")["steps_taken"].tolist()) < 200
    trial = make_plan(early).trials[0]
    step = step_flops(trial.architecture, trial.recipe)
    assert found["flops"].tolist() == (step * found["steps_taken"]).tolist()
    assert sum(found["flops"].tolist()) == sum(part["flops"] for part in parts)


@pytest.fixture
def copied(finished: sx.Run, tmp_path: Path) -> sx.Run:
    """A finished run that a test may change."""
    return sx.Run(Path(shutil.copytree(finished.directory, tmp_path / "run")))


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "run", lambda *_: pytest.fail("something was trained"))


def test_the_directory_holds_the_promised_files_and_no_other(finished: sx.Run):
    assert {each.name for each in finished.directory.iterdir()} == FILES
    figures = sorted((finished.directory / "figures").iterdir())
    assert [each.name for each in figures] == ["learning_curves.csv", "learning_curves.png", "learning_curves.svg"]
    assert figures[0].read_text().startswith("model,")
    assert figures[1].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in figures[2].read_text()
    environment = json.loads((finished.directory / "environment.json").read_text())
    assert {"device", "devices", "modes", "platform", "python", "versions"} <= environment.keys()
    assert {"scalejax", "jax", "jaxlib", "flax", "optax", "numpy"} <= environment["versions"].keys()


def test_the_sweep_file_in_the_directory_is_the_sweep(finished: sx.Run):
    assert sx.load_sweep(finished.directory / "sweep.toml") == SWEEP


def test_results_have_one_finished_row_a_trial(finished: sx.Run):
    table = finished.results()
    assert len(table) == 12
    assert table["trial_id"].is_unique
    assert set(table["status"]) == {"done"}
    assert set(table["reason"]) == {""}
    cells = table[["family", "width", "train_examples", "seed"]].fillna(0)
    assert len(cells.drop_duplicates()) == 12
    assert table["fraction"].equals(table["train_examples"] / 200)
    assert dict(zip(table["width"].fillna(0), table["params"], strict=True)) == {0: 410, 4: 214, 8: 418}
    assert table["test_error"].between(0, 1).all()
    assert table[["test_loss", "seconds", "flops"]].gt(0).to_numpy().all()
    assert set(table["steps_taken"]) == {20}
    for name in ("mode", "device", "versions"):
        assert table[name].str.len().gt(0).all()


def test_losses_are_those_of_the_best_evaluation(finished: sx.Run):
    measured = finished.measurements()
    assert measured["examples_seen"].equals(16 * measured["step"])
    assert measured["validation_error"].between(0, 1).all()
    for row in finished.results().to_dict(orient="records"):
        mine = measured[measured["trial_id"] == row["trial_id"]]
        assert mine["step"].tolist() == [5, 10, 15, 20]
        best = mine.iloc[int(np.argmin(np.asarray(mine["validation_loss"])))]
        assert (row["best_step"], row["validation_loss"]) == (best["step"], best["validation_loss"])
        assert row["train_loss"] == best["train_loss"]


def test_curves_and_summary_are_at_hand(finished: sx.Run):
    curves = finished.curves()
    assert len(curves) == 6  # three models, two sizes
    assert all(isinstance(line, str) for line in finished.summary())
    assert finished.counts()["done"] == 12


@pytest.mark.usefixtures("no_training")
def test_a_second_run_trains_nothing(copied: sx.Run):
    before, measured = copied.results(), copied.measurements()
    again = sx.run_sweep(SWEEP, str(copied.directory), progress=False)
    pd.testing.assert_frame_equal(again.results(), before, check_exact=True)
    pd.testing.assert_frame_equal(again.measurements(), measured, check_exact=True)


def test_an_enlarged_sweep_trains_only_what_is_new(copied: sx.Run):
    before = copied.results().query("family == 'mlp'").reset_index(drop=True)
    larger = replace(
        SWEEP,
        data=replace(SWEEP.data, train_examples=(20, 50, 100)),
        models=(sx.ModelGrid("mlp", width=(4, 6, 8), depth=1),),
    )
    after = sx.run_sweep(larger, copied.directory, progress=False).results()
    assert (len(before), len(after)) == (8, 18)
    assert set(after["status"]) == {"done"}
    old = after.loc[after["trial_id"].isin(before["trial_id"]), :].reset_index(drop=True)
    pd.testing.assert_frame_equal(old, before, check_exact=True, check_dtype=False)  # `seconds` included


def test_steps_that_a_refusal_has_taken_back_are_left_again():
    plan = make_plan(TINY)
    first, second = plan.trials
    accountant = Accountant(plan, plan.trials, begun={})
    with ProgressDisplay(trials=2, work=accountant.total, stream=io.StringIO()) as display:
        accountant.show(Progress({first.trial_id: 15, second.trial_id: 15}), display)
        accountant.show(Progress({}, {first.trial_id: 10}), display)
        assert accountant.steps_taken == {first.trial_id: 10, second.trial_id: 15}
        assert accountant.spared(first) == 2 * accountant.spared(second)  # of 20 steps ten are left, and five


def interrupt_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once some calls of programs have brought steps."""
    show, seen = Accountant.show, []

    def shown(accountant: Accountant, progress: Progress, display: ProgressDisplay) -> None:
        show(accountant, progress, display)
        seen.append(progress)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)  # the main thread looks up every 0.2 seconds

    monkeypatch.setattr(Accountant, "show", shown)


@pytest.mark.slow
def test_a_sweep_that_changes_while_it_is_interrupted_resumes_as_what_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    steps = replace(SWEEP.train, steps=200, evaluate_every=50)
    first = replace(SWEEP, models=(sx.ModelGrid("mlp", width=(4, 8), depth=1),), train=steps)
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(sx.Interrupted):
            sx.run_sweep(first, tmp_path / "run", progress=False)
    assert sx.Run(tmp_path / "run").results()["steps_taken"].to_numpy(float, na_value=0).max() > 0
    # A larger width, so that states are padded anew; a smaller one is gone; and another optimizer makes other trials.
    then = replace(first, models=(sx.ModelGrid("mlp", width=(8, 16), depth=1),))
    after = sx.run_sweep(then, tmp_path / "run").results()
    assert " where an earlier run left off" in capsys.readouterr().err
    fresh = sx.run_sweep(then, tmp_path / "fresh", progress=False).results()
    assert after["trial_id"].tolist() == fresh["trial_id"].tolist()
    assert set(after["status"]) == {"done"}
    np.testing.assert_allclose(after["validation_loss"], fresh["validation_loss"], rtol=1e-5)
    other = sx.run_sweep(replace(then, train=replace(steps, optimizer="sgd")), tmp_path / "run", progress=False)
    assert not set(other.results()["trial_id"]) & set(after["trial_id"])
    again = sx.run_sweep(then, tmp_path / "run", progress=False).results()  # kept all the while
    pd.testing.assert_frame_equal(again, after, check_exact=True)


@pytest.mark.usefixtures("no_training")
def test_a_reduced_sweep_shows_its_own_trials_only(copied: sx.Run):
    reduced = replace(SWEEP, seeds=(1,))
    assert set(sx.run_sweep(reduced, copied.directory, progress=False).results()["seed"]) == {1}
    assert len(sx.run_sweep(SWEEP, copied.directory, progress=False).results()) == 12


def test_the_directory_is_named_after_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = sx.run_sweep(TINY, progress=False)
    assert run.directory == Path("runs/tiny")
    assert {each.name for each in (tmp_path / "runs" / "tiny").iterdir()} == FILES
    assert len(run.results()) == 2


def test_a_directory_whose_first_process_died_at_once_is_used(tmp_path: Path):
    (tmp_path / "results.sqlite").touch()
    assert sx.run_sweep(TINY, tmp_path, progress=False).counts()["done"] == 2


def test_progress_goes_to_standard_error_and_only_if_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sx.run_sweep(TINY, tmp_path / "loud")
    loud = capsys.readouterr()
    assert loud.out == ""
    assert "2/2 trials" in loud.err
    sx.run_sweep(TINY, tmp_path / "quiet", progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_modules_of_the_user_s_own_are_trained(tmp_path: Path):
    own = replace(TINY, models=(sx.ModelGrid(Own, width=[4, 8]), sx.ModelGrid(own_function, width=[4, 8])))
    run = sx.run_sweep(own, tmp_path, progress=False)
    table = run.results().set_index(["family", "width", "train_examples"])
    assert set(table["status"]) == {"done"}
    assert len(table) == 8
    by_class, by_function = (table.loc[name, ["params", "test_loss"]] for name in ("Own", "own_function"))
    assert (by_class["params"] == by_function["params"]).all()
    # One model built in two ways, on common random numbers.
    np.testing.assert_allclose(by_class["test_loss"].to_numpy(), by_function["test_loss"].to_numpy(), rtol=1e-4)
    assert 'test_run:Own"' in (tmp_path / "sweep.toml").read_text()


def test_networks_learn_and_fractions_are_shares_of_the_pool(tmp_path: Path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    data = sx.DataSpec("digits", fractions=(0.1, 0.5), examples=1000, validation_examples=100, test_examples=200)
    train = replace(SWEEP.train, steps=200, evaluate_every=100)
    models = (sx.ModelGrid("mlp", width=16, depth=1),)
    table = sx.run_sweep(replace(TINY, data=data, train=train, models=models), tmp_path, progress=False).results()
    assert table["train_examples"].tolist() == [100, 500]
    assert table["fraction"].tolist() == [0.1, 0.5]
    assert max(table["test_error"]) < 0.45  # guessing: 0.9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": (sx.ModelGrid("mpl"),)}, "did you mean mlp"),
        ({"models": (sx.ModelGrid("mlp", width=4),)}, "depth"),
        ({"data": sx.DataSpec("digits", train_examples=(100_000,))}, "train_examples"),
    ],
    ids=["family", "knob", "too many examples"],
)
def test_a_bad_sweep_writes_nothing(tmp_path: Path, changes: dict, says: str):
    with pytest.raises(sx.SweepError, match=says):
        sx.run_sweep(replace(SWEEP, **changes), tmp_path / "run", progress=False)
    assert not list(tmp_path.iterdir())


def regular_file(path: Path) -> None:
    path.write_text("mine")


def foreign_ledger(path: Path) -> None:
    path.mkdir()
    (path / "results.sqlite").write_text("mine " * 1000)


@pytest.mark.parametrize("make", [regular_file, foreign_ledger])
def test_a_place_that_is_no_run_is_left_alone(tmp_path: Path, make: Callable[[Path], None]):
    place = tmp_path / "run"
    make(place)
    with pytest.raises(sx.SweepError, match=str(place)):
        sx.run_sweep(TINY, place, progress=False)
    assert [each.name for each in tmp_path.rglob("*") if each.is_file()] == [
        "run" if make is regular_file else "results.sqlite"
    ]


@pytest.mark.usefixtures("no_training")
def test_a_figure_that_cannot_be_written_is_trouble_and_results_are_kept(copied: sx.Run):
    before = copied.results()
    shutil.rmtree(copied.directory / "figures")
    (copied.directory / "figures").write_text("mine")
    with pytest.raises(sx.RunError, match=r"figures: the figure cannot be written .*; see that") as caught:
        sx.run_sweep(SWEEP, copied.directory, progress=False)
    assert len(str(caught.value).splitlines()) == 1
    pd.testing.assert_frame_equal(copied.results(), before, check_exact=True)


@pytest.mark.usefixtures("no_training")
def test_damaged_results_are_met_with_before_anything_is_trained(copied: sx.Run):
    with sqlite3.connect(copied.directory / "results.sqlite") as connection:
        connection.execute("UPDATE trials SET knobs = '{'")
        connection.execute("DELETE FROM measurements")
        connection.execute("UPDATE trials SET status = 'pending'")
    connection.close()
    with pytest.raises(sx.SweepError, match="damaged"):
        sx.run_sweep(SWEEP, copied.directory, progress=False)


def test_a_directory_without_results_says_so(tmp_path: Path):
    run = sx.Run(tmp_path)
    for table in (run.results, run.measurements, run.counts, run.status, functools.partial(run.fit, "power")):
        with pytest.raises(sx.SweepError, match="no results here"):
            table()
    assert "no results here" in repr(run)


@pytest.mark.parametrize("name", ["steps", "knobs", "position", "test_error", "metric"])
def test_a_knob_called_like_a_column_is_refused_before_anything_is_written(tmp_path: Path, name: str):
    text = f"def build(*, {name}, rngs): raise AssertionError"
    exec(text, scope := {})
    sweep = replace(TINY, models=(sx.ModelGrid(scope["build"], {name: 10}),))
    for call in (sx.plan, functools.partial(sx.run_sweep, out=tmp_path / "run")):
        with pytest.raises(sx.SweepError, match=rf"index 0 {name}: a column of the results is called so already"):
            call(sweep)
    assert not list(tmp_path.iterdir())


def test_plan_shows_the_mode_that_run_uses_the_measured_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lanes in turn are made to look faster; and a run that is resumed keeps its modes, whatever is measured then."""
    seconds = {"vmap": 2.0, "map": 1.0}

    def timed(bucket: Bucket, _: object, **__: object) -> Timing:
        return Timing(*[seconds[bucket.program.mode]] * 3)

    monkeypatch.setattr(modes, "WORTH_SECONDS", 0.0)
    for module in (modes, timing):
        monkeypatch.setattr(module, "remembered", lambda *_, **__: None)
        monkeypatch.setattr(module, "timed", timed)

    def planned_modes() -> set[str]:
        return {program["mode"] for program in sx.plan(sweep, out=tmp_path).facts["programs"]}

    sweep = replace(SWEEP, models=(sx.ModelGrid("mlp", width=4, depth=1),))
    assert planned_modes() == {"map"}
    assert set(sx.run_sweep(sweep, tmp_path, progress=False).results()["mode"]) == {"map"}
    seconds["vmap"] = 0.5
    assert planned_modes() == {"map"}


def test_a_sweep_is_checked_once_and_planned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    for name in ("check_models", "expand"):
        done = getattr(plan_module, name)
        monkeypatch.setattr(plan_module, name, lambda *rest, name=name, done=done: calls.append(name) or done(*rest))
    (tmp_path / "sweep.toml").write_text(sweep_to_toml(TINY))
    for command in (["plan"], ["run", "--out", str(tmp_path / "run")]):
        calls.clear()
        assert main([*command, str(tmp_path / "sweep.toml")]) == 0
        assert calls == ["check_models", "expand"]


@pytest.mark.slow
def test_what_the_command_line_prints_is_what_python_users_have(finished: sx.Run, tmp_path: Path, capsys):
    (tmp_path / "sweep.toml").write_text(sweep_to_toml(SWEEP))

    def printed(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(one) for one in arguments]) == 0
        return capsys.readouterr().out.removesuffix("\n")

    shown = sx.plan(SWEEP)
    for _ in shown.facts["programs"]:  # each time at least one program more is timed, and remembered
        shown = sx.plan(SWEEP)
    assert printed("plan", tmp_path / "sweep.toml") == str(shown) == repr(shown)
    assert json.loads(printed("plan", tmp_path / "sweep.toml", "--json")) == shown.facts
    status = finished.status()
    assert printed("status", finished.directory) == str(status) == "12 trials: 12 done"
    assert json.loads(printed("status", finished.directory, "--json")) == status.facts
    fits = finished.fit("power", bootstrap=20, figures=tmp_path / "figures")
    call = ("fit", finished.directory, "--law", "power", "--bootstrap", 20, "--figures", tmp_path / "figures")
    assert printed(*call) == str(fits)
    assert json.loads(printed(*call, "--json")) == json.loads(json.dumps(fits.facts))
    assert [path.name for path in fits.figures] == ["fit_power.png", "fit_power.svg"]
    assert all(path.is_file() for path in fits.figures)
    for shows, word in ((shown, "lane program"), (status, "12 done"), (fits, "objective"), (finished, "12 done")):
        assert word in shows._repr_html_()
        assert word in repr(shows)
    assert 'src="data:image/png;base64,' in finished._repr_html_()
    assert "<table>" in finished._repr_html_()
    for name, fit in fits.fits.items():
        assert f"{fit.params['c']:.5g}" in str(fit), name
        assert fit.law.formula in fit._repr_html_()


def test_a_run_is_read_by_the_name_of_its_directory(tmp_path):
    done = sx.run_sweep(SWEEP, tmp_path / "run", progress=False)
    assert sx.Run(str(tmp_path / "run")).results().equals(done.results())  # pyright: ignore[reportArgumentType]


def test_errors_of_zero_everywhere_end_a_run_without_a_figure_and_with_a_sentence(tmp_path):
    x = np.repeat([[-1.0], [1.0]], 60, axis=0)
    data = sx.DataSpec(source=sx.arrays(x, np.repeat([0, 1], 60)), train_examples=(40, 80))
    train = sx.TrainSpec(learning_rate=(0.1,), batch_size=(8,), steps=40)
    with pytest.warns(UserWarning, match="no figure is drawn: The curves hold no positive value"):
        run = sx.run_sweep(sx.Sweep("easy", data, (sx.ModelGrid("logistic"),), train), tmp_path, progress=False)
    assert set(run.results()["test_error"]) == {0.0}
