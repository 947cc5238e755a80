"""`scalejax advise`: of a table and of a run, in words, as JSON, with its picture and the sweeps of its next trials."""

import json
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
from scalejax.run.advice import _near, _observed, _scaled, next_sweeps
from scalejax.run.store import Store, TrialRow
from scalejax.spec.file import load_sweep

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
        assert sweep.train.learning_rate == (1e-2, 3e-2)


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
    assert main(["advise", str(run)]) == 0
    files = sorted((run / "next_trials").glob("*.toml"))
    printed = capsys.readouterr().out
    assert f"then: scalejax advise {run} {' '.join(f'runs/{file.stem}' for file in files)}\n" in printed

    runs = [run, *(next_run(file, tmp_path) for file in files)]
    together, alone = _observed(runs, {}), _observed(run, {})
    facts = [load_sweep(file) for file in files]
    most = max(50 * sweep.models[0].knobs["width"][0] * (sweep.data.train_examples or (0,))[0] for sweep in facts)
    assert (together.own["params"] * together.own["data"]).max() == max(most, 800 * 2700)
    assert len(together.own) > len(alone.own)
    pd.testing.assert_frame_equal(_observed([run, run], {}).rows, alone.rows)  # a trial counts once
    assert main(["advise", *map(str, runs)]) == 0
    numbers = {file.stem.split("_")[-1] for file in (run / "next_trials").glob("*.toml")}
    assert numbers == set("123456")  # those that have been run are not written over


def test_runs_of_other_data_or_models_do_not_join(run: Path, tmp_path: Path) -> None:
    trial = replace(TRIAL, family="mlp", knobs={"width": 4, "depth": 2})
    other = write_run(tmp_path / "other", [trial], loss_of=planted, sweep=SWEEP.replace('"mnist1d"', '"digits"'))
    with pytest.raises(SweepError, match=r"other was trained on digits, .* on mnist1d: advise takes one data set"):
        sx.advise([run, other])
    knobs = write_run(
        tmp_path / "knobs", [replace(trial, knobs={"width": 4, "heads": 2})], loss_of=planted, sweep=SWEEP
    )
    with pytest.raises(SweepError, match=r"knobs has models with heads, which those of .* lack: name it first"):
        sx.advise([run, knobs])
    with pytest.raises(ValueError, match="name at least one"):
        sx.advise([])


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
    for sweep, rates in zip(sweeps, ((3e-3, 1e-2, 3e-2), (1e-2, 3e-2, 1e-1)), strict=True):
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
    ("tuned", "near"), [(3.0, (2, 3, 4)), (1.0, (1, 2, 3)), (5.0, (3, 4, 5)), (np.nan, (5, 4, 3, 2, 1))]
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
        (["--columns", "width=N"], "advise has no width"),
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
