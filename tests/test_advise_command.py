"""`scalejax advise`: of a table and of a run, in words, as JSON, with its picture and the sweeps of its next trials."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ledgers import TRIAL, write_run
from reports import planted_advice

import scalejax as sx
from scalejax.analysis.forecast.observed import observed_of_run
from scalejax.cli import main
from scalejax.errors import SweepError
from scalejax.run.advice import _near, _observed, _scaled, next_sweeps, write_sweeps
from scalejax.run.store import Store, TrialRow
from scalejax.spec.file import load_sweep
from scalejax.status import Status

SWEEP = """
name = "planted"
seeds = 2
[data]
source = "mnist1d"
examples = 10000
train_examples = [100, 300, 900, 2700]
[[models]]
family = "mlp"
width = [4, 8, 16]
depth = 2
[train]
learning_rate = [1e-2, 3e-2]
batch_size = 16
epochs = 1
"""


def loss_of(params: float, examples: float) -> float:
    return 0.05 + 6 * params**-0.5 + 4 * examples**-0.4


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("advise") / "losses.csv"
    places = [(params, tokens) for params in (1e3, 4e3, 16e3) for tokens in (1e3, 1e4, 1e5)]
    rows = [(*place, loss_of(*place) * np.exp(0.01 * rng.standard_normal())) for place in places]
    pd.DataFrame(rows, columns=["N", "D", "loss"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of three widths on four sizes with two seeds."""
    rng = np.random.default_rng(1)
    trials = [
        replace(
            TRIAL, trial_id=f"{width}-{size}-{seed}", knobs={"depth": 2, "width": width}, params=50 * width,
            train_examples=size, fraction=size / 10000, seed=seed, flops=6 * 50 * width * size,
        )
        for width in (4, 8, 16) for size in (100, 300, 900, 2700) for seed in range(2)
    ]  # fmt: skip

    def noisy(trial: TrialRow) -> float:
        return loss_of(trial.params, trial.train_examples) * float(np.exp(0.01 * rng.standard_normal()))

    return write_run(tmp_path_factory.mktemp("run"), trials, loss_of=noisy, sweep=SWEEP)


def test_of_a_table(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["advise", str(table), "--columns", "params=N", "tokens=D", "--compute", "10x", "--target", "0.2"]
    assert main([*call, "--json", "--figures", str(tmp_path)]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] in ("more data", "a bigger model", "both", "neither", "cannot tell")
    names = [statement["name"] for statement in facts["statements"]]
    assert names[0] == "answer"
    assert {"now", "2x data", "10x data", "10x parameters", "10x both", "data beats size", "compute-optimal"} <= {
        *names
    }
    tenfold = facts["statements"][names.index("10x data")]
    assert tenfold["low"] < loss_of(16e3, 1e6) < tenfold["high"]
    assert [Path(path).stat().st_size > 10_000 for path in facts["figures"]] == [True, True]
    assert facts["sweeps"] == []


def test_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["advise", str(run)]) == 0
    printed = capsys.readouterr().out
    assert (run / "figures" / "advice.png").is_file()
    shown = pd.read_csv(run / "figures" / "advice.csv")
    assert {"measured", "forecast"} <= set(shown["what"])
    files = sorted((run / "next_trials").glob("*.toml"))
    assert len(files) == 3
    trials = sx.Run(run).advise().trials
    for path, trial in zip(files, trials.to_dict("records"), strict=True):
        assert f"scalejax run {path}" in printed
        sweep = load_sweep(path)
        assert sweep.data.train_examples == (round(trial["data"]),)
        (grid,) = sweep.models
        assert grid.knobs["depth"] == (2,)
        assert 50 * grid.knobs["width"][0] == pytest.approx(trial["params"], rel=0.2)
        assert sweep.train.learning_rate in ((0.0033, 1e-2, 3e-2), (1e-2, 3e-2, 0.09))


def planted(trial: TrialRow) -> float:
    return loss_of(trial.params, trial.train_examples)


def next_run(sweep: Path, folder: Path) -> Path:
    """Return the run of a suggested sweep, its losses planted, as if `scalejax run` had trained it."""
    asked = load_sweep(sweep)
    (grid,), size = asked.models, (asked.data.train_examples or (0,))[0]
    width = grid.knobs["width"][0]
    trials = [
        replace(
            TRIAL, trial_id=f"{sweep.stem}-{rate}-{seed}", family="mlp", knobs={"width": width, "depth": 2},
            params=50 * width, train_examples=size, fraction=size / 10000, seed=seed, learning_rate=rate,
            flops=6 * 50 * width * size,
        )
        for rate in asked.train.learning_rate for seed in asked.seeds
    ]  # fmt: skip
    return write_run(folder / sweep.stem, trials, loss_of=planted, sweep=sweep.read_text())


def test_the_runs_of_next_trials_join_the_first(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = shutil.copytree(run, tmp_path / "a run", ignore=shutil.ignore_patterns("next_trials"))
    assert main(["advise", str(first), "--target", "0.2"]) == 0
    files = sorted((first / "next_trials").glob("*.toml"))
    printed = capsys.readouterr().out
    assert f"next: scalejax run '{files[0]}'\n" in printed
    runs = " ".join(f"runs/{file.stem}" for file in files)
    assert f"then: scalejax advise '{first}' {runs} --target 0.2\n" in printed

    contents = {file.name: file.read_text() for file in files}
    bought = [next_run(files[2], tmp_path)]  # the others have not been run
    together, alone = _observed([first, *bought], {}), _observed(first, {})
    assert len(together.rows) == len(alone.rows) + 2  # a run of each seed
    new = load_sweep(files[2])
    here = together.rows["data"] == (new.data.train_examples or (0,))[0]
    assert (together.rows[here]["params"] == 50 * new.models[0].knobs["width"][0]).any()
    pd.testing.assert_frame_equal(_observed([first, first / ".", sx.Run(first)], {}).rows, alone.rows)

    capsys.readouterr()
    assert main(["advise", str(first), *map(str, bought), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    now = {path.name: path.read_text() for path in (first / "next_trials").glob("*.toml")}
    assert now.items() >= contents.items()  # a name keeps its content
    assert {Path(path).name for path in facts["sweeps"]} <= now.keys()
    assert all(load_sweep(first / "next_trials" / name).name == name.removesuffix(".toml") for name in now)
    assert files[2].name not in {Path(path).name for path in facts["sweeps"]}  # it has been run
    assert facts["then"].split()[:3] == ["scalejax", "advise", f"'{tmp_path}/a"]


def test_the_number_of_a_run_is_not_given_again_where_its_file_is_gone(run: Path, tmp_path: Path) -> None:
    first = shutil.copytree(run, tmp_path / "first", ignore=shutil.ignore_patterns("next_trials"))
    observed = _observed(first, {})
    trials = pd.DataFrame({"params": [600.0, 600.0], "data": [500.0, 700.0]})
    advice = replace(planted_advice(), trials=trials)
    other = write_run(tmp_path / "other", [TRIAL], loss_of=planted, sweep=SWEEP.replace("planted", "planted_next_4"))
    for joined, numbers in (((), (1, 2)), ((other,), (5, 6))):
        suggested, _ = next_sweeps(first, observed, advice, joined=joined)
        assert [Path(each.path).stem for each in suggested] == [f"planted_next_{number}" for number in numbers]
    write_sweeps(suggested)
    again, _ = next_sweeps(first, observed, replace(advice, trials=trials[::-1]))
    assert [each.path for each in again] == [each.path for each in suggested[::-1]]


def test_of_the_same_trials_of_two_runs_the_one_that_is_done_counts(run: Path, tmp_path: Path) -> None:
    trial = replace(TRIAL, trial_id="both", family="mlp", knobs={"width": 4, "depth": 2}, params=200, train_examples=50)
    failed = write_run(
        tmp_path / "failed", [trial], loss_of=planted, sweep=SWEEP, ends={"both": (Status.FAILED, "it broke")}
    )
    done = write_run(tmp_path / "done", [trial], loss_of=planted, sweep=SWEEP)
    again = write_run(tmp_path / "again", [replace(trial, trial_id="of another pool", fraction=0.7)],
                      loss_of=lambda _: 9.0, sweep=SWEEP)  # fmt: skip
    for runs in ([run, failed, done, again], [run, done, failed, again]):
        here = _observed(runs, {}).rows.query("data == 50")
        assert here["loss"].tolist() == [planted(trial)]


def test_a_family_that_the_first_run_lacks_keeps_its_sizes_apart(run: Path, tmp_path: Path) -> None:
    trials = [
        replace(
            TRIAL, trial_id=f"{channels}", family="cnn", knobs={"channels": channels}, params=99, train_examples=100
        )
        for channels in (4, 8)
    ]
    other = write_run(tmp_path / "other", trials, loss_of=lambda trial: 0.01 * trial.knobs["channels"], sweep=SWEEP)
    rows = _observed([run, other], {}).rows.query("family == 'cnn'")
    assert dict(zip(rows["model"], rows["loss"], strict=True)) == {"cnn channels 4": 0.04, "cnn channels 8": 0.08}


def test_runs_of_other_data_or_models_do_not_join(run: Path, tmp_path: Path) -> None:
    trial = replace(TRIAL, family="mlp", knobs={"width": 4, "depth": 2})

    def refused(name: str, sweep: str = SWEEP, **changes: Any) -> str:
        other = write_run(tmp_path / name, [replace(trial, **changes)], loss_of=planted, sweep=sweep)
        with pytest.raises((SweepError, ValueError)) as error:
            sx.advise([run, other])
        return str(error.value)

    for name, (old, new) in {
        "source": ('"mnist1d"', '"digits"'),
        "test": ("examples = 10000", "examples = 10000\ntest_examples = 77"),
        "task": ("seeds = 2", 'seeds = 2\ntask = "regression"'),
    }.items():
        says = refused(name, SWEEP.replace(old, new, 1))
        assert says == f"{tmp_path / name} has other [data] or another task than {run}: advise takes one data set"
    assert "sweep.toml" in refused("nothing", "")
    says = refused("knobs", knobs={"width": 4, "heads": 2})
    assert "knobs has mlp with heads and width," in says
    assert says.endswith("with depth and width: advise takes one kind of model of a name")
    with pytest.raises(ValueError, match="name at least one"):
        sx.advise([])
    table = tmp_path / "t.csv"
    table.write_text("params,tokens,loss\n1,2,3\n")
    for mixed in ([run, table], [table, run], [table, table.with_name("u.csv")]):
        with pytest.raises(ValueError, match=r"directories of runs: .*t\.csv is a file"):
            sx.advise(mixed)
    with pytest.raises(ValueError, match="a table in memory is given alone"):
        sx.advise([pd.DataFrame(), pd.DataFrame()])  # pyright: ignore[reportArgumentType]


def test_a_suggested_sweep_that_has_not_been_run_is_named(run: Path, tmp_path: Path) -> None:
    first = shutil.copytree(run, tmp_path / "first", ignore=shutil.ignore_patterns("next_trials"))
    write_sweeps(next_sweeps(first, _observed(first, {}), replace(planted_advice(), trials=pd.DataFrame(
        {"params": [600.0], "data": [500.0]})))[0])  # fmt: skip
    file = first / "next_trials" / "planted_next_1.toml"
    with pytest.raises(SweepError, match=rf"planted_next_1 has not been run: scalejax run {file}, or leave it out"):
        sx.advise([first, Path("runs/planted_next_1")])


MANY_RATES = """
name = "planted"
seeds = 2
[data]
source = "mnist1d"
examples = 10000
train_examples = [100, 300]
[[models]]
family = "mlp"
width = [2, 3]
depth = 1
[[models]]
family = "mlp"
width = [4, 8]
depth = [1, 2]
[train]
learning_rate = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1]
batch_size = 16
epochs = 1
[train.halving]
rungs = [0.5]
"""


def test_a_suggested_sweep_is_of_the_grid_of_the_largest_model_and_near_its_tuned_rate(tmp_path: Path) -> None:
    models = [(depth, width) for depth, width in ((1, 2), (1, 3), (1, 4), (1, 8), (2, 4), (2, 8))]
    trials = [
        replace(
            TRIAL, trial_id=f"{depth}-{width}-{size}-{rate}", knobs={"depth": depth, "width": width},
            params=depth * 100 * width, train_examples=size, fraction=size / 10000, learning_rate=rate,
        )
        for depth, width in models for size in (100, 300) for rate in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    ]  # fmt: skip

    def loss(trial: TrialRow) -> float:
        tuned = 1e-2 if trial.train_examples == 300 else 1e-1
        return loss_of(trial.params, trial.train_examples) * (1 + abs(np.log(trial.learning_rate / tuned)))  # pyright: ignore

    write_run(tmp_path, trials, loss_of=loss, sweep=MANY_RATES)
    with Store(tmp_path / "results.sqlite", write=False) as store:
        observed = observed_of_run(store.results(), most_data=np.inf)
    wanted = pd.DataFrame({"params": [3200.0, 3200.0], "data": [300.0, 100.0], "flops": 1.0, "narrows": 0.5})
    suggested, notes = next_sweeps(tmp_path, observed, replace(planted_advice(), trials=wanted))
    assert notes == ()
    assert [each.trials for each in suggested] == [6, 6]
    sweeps = []
    for each in suggested:
        Path(each.path).parent.mkdir(exist_ok=True)
        Path(each.path).write_text(each.text)
        sweeps.append(load_sweep(each.path))
    for sweep, rates in zip(sweeps, ((3e-3, 1e-2, 3e-2), (3e-2, 1e-1, 0.33)), strict=True):
        (grid,) = sweep.models
        assert grid.knobs == {"width": (16,), "depth": (2,)}
        assert (sweep.train.learning_rate, sweep.train.halving) == (rates, None)


def test_a_knob_is_solved_for_with_the_power_of_the_sizes_next_to_it() -> None:
    widths = np.array([4.0, 8, 16, 64, 128])
    rows: Any = pd.DataFrame({"width": widths, "params": widths**2 + 1000 * widths})
    for width in widths:
        assert _scaled(rows, "width", width**2 + 1000 * width, 1.4) == pytest.approx(width)
    assert _scaled(rows, "width", 256**2 + 1000 * 256, 1.4) == pytest.approx(256, rel=0.05)
    assert _scaled(rows[:1], "width", 4 * (16 + 4000), 2.0) == pytest.approx(8)


@pytest.mark.parametrize(
    ("tuned", "near"),
    [(3.0, (2, 3, 4)), (1.0, (0.5, 1, 2)), (5.0, (4, 5, 6.2)), (np.nan, (5, 4, 3, 2, 1))],  # 5 * 5 / 4 is 6.25
)
def test_the_rates_near_the_tuned_one(tuned: float, near: tuple[float, ...]) -> None:
    assert _near((5.0, 4.0, 3.0, 2.0, 1.0), tuned) == near


def test_advice_is_printed_where_nothing_can_be_written(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("scalejax.analysis.forecast.advice.advise_rows", lambda *_, **__: planted_advice())
    monkeypatch.setattr("scalejax.report.figures.canvas.replacing", refused)
    monkeypatch.setattr("scalejax.run.advice.write_atomically", refused)
    assert main(["advise", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "Both help: ten times the examples" in printed
    assert f"note: {run / 'figures'}: the figure cannot be written (Permission denied)" in printed
    assert "note: the sweep files of the next trials cannot be written (Permission denied)" in printed
    assert "scalejax run" not in printed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--compute", "none"], "expected how many times, such as 10x"),
        (["--columns", "params=N", "tokens=D", "loss=error"], "There is no column 'error' for loss"),
        (["--columns", "params=N"], "There is no column of data"),
        (["--columns", "width=N"], "width means nothing to advise: what it knows is"),
        (["--columns", "params=N", "tokens=D", "--target", "-1"], "target is -1: give a loss above zero"),
    ],
)
def test_mistakes_are_one_sentence(
    table: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    try:
        code = main(["advise", str(table), *options])
    except SystemExit as end:
        code = end.code
    assert code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
