"""What a report is made from, planted: rows of a ledger, and advice that no forecast was made for."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from ledgers import TRIAL, write_run

from scalejax.analysis import learning_curves, trends
from scalejax.analysis.forecast.statement import Advice, Statement
from scalejax.analysis.forecast.verdict import BOTH
from scalejax.report.pictures import pictures_of
from scalejax.report.sections import Facts, Suggested
from scalejax.run.store import Store, TrialRow
from scalejax.status import Status

WIDTHS, SIZES, RATES, SEEDS = (4, 16, 64), (100, 300, 900, 2700), (0.01, 0.03, 0.1), 2
SWEEP = """
name = "planted"
seeds = 2
[data]
source = "mnist1d"
examples = 10000
train_examples = [100, 300, 900, 2700]
[[models]]
family = "logistic"
[[models]]
family = "mlp"
width = [4, 16, 64]
depth = 2
[train]
learning_rate = [1e-2, 3e-2, 1e-1]
batch_size = 16
epochs = 1
"""


def loss_of(trial: TrialRow) -> float:
    """0.03 + 6 N^-0.5 + 4 D^-0.4, worse away from the middle rate, and 1 % of noise."""
    assert trial.learning_rate is not None
    noise = np.random.default_rng([trial.params, trial.train_examples, trial.seed]).standard_normal()
    tuned = 1 + 0.2 * abs(np.log(trial.learning_rate / 0.03))
    return float((0.03 + 3 * trial.params**-0.5 + 4 * trial.train_examples**-0.4) * tuned * np.exp(0.01 * noise))


def planted_trials() -> list[TrialRow]:
    """Trials of a logistic regression and of three widths; knobs are called as SWEEP has them."""
    models = [("logistic", {}, 30), *(("mlp", {"width": width, "depth": 2}, 50 * width) for width in WIDTHS)]
    return [
        replace(
            TRIAL, trial_id=f"{params}-{size}-{rate}-{seed}", family=family, knobs=knobs, params=params,
            train_examples=size, fraction=size / 10000, seed=seed, learning_rate=rate, flops=6 * params * size,
            steps=200,
        )
        for family, knobs, params in models for size in SIZES for rate in RATES for seed in range(SEEDS)
    ]  # fmt: skip


def planted_run(directory: Path, *, metric: str = "error", sweep: str = SWEEP) -> Path:
    """Write a run: the largest rate diverges on the largest size, one trial has failed."""
    trials = planted_trials()
    ends = {
        trial.trial_id: (Status.DIVERGED, f"its loss was not finite at step {trial.params}")
        for trial in trials
        if trial.train_examples == max(SIZES) and trial.learning_rate == max(RATES)
    }
    ends[trials[0].trial_id] = Status.FAILED, "out of memory"
    return write_run(directory, trials, loss_of=loss_of, sweep=sweep, ends=ends, metric=metric)


def planted_advice(*, verdict: str = BOTH, most_data: float | None = None) -> Advice:
    """Return advice on such a run; its numbers are made up, and small."""
    pool = {} if most_data is None else {"most_data": most_data}

    def asked(name: str, value: float, params: float, data: float) -> Statement:
        facts = {"params": params, "data": data, "flops": 5.2e7 * params * data, **(pool if data > 1 else {})}
        return Statement(name, f"{name}: error {value}.", value, 0.8 * value, 1.25 * value, facts)

    statements = (
        Statement(
            "answer", "Both help: ten times the examples would cut the error by 40 %.", facts={"verdict": verdict}
        ),
        Statement("now", "Now.", 0.25, 0.24, 0.26, {"params": 3200.0, "data": 2700.0, "flops": 5.2e7}),
        asked("2x data", 0.21, 1, 2),
        asked("10x data", 0.15, 1, 10),
        asked("2x parameters", 0.22, 2, 1),
        asked("10x parameters", 0.18, 10, 1),
        asked("2x both", 0.19, 2, 2),
        asked("10x both", 0.11, 10, 10),
        Statement(
            "back-test: data",
            "Back-test: hiding the most examples.",
            0.1,
            facts={"hidden": "data", "held": 0.6, "runs": 20},
        ),
    )
    trials = pd.DataFrame({"params": [6400.0], "data": [2700.0], "flops": [1.04e8], "narrows": [0.4]})
    data = np.geomspace(2700, 27000, 5)
    value = 0.25 * (data / 2700) ** -0.2
    bands = pd.DataFrame(
        {
            "model": "mlp width 64",
            "params": 3200.0,
            "data": data,
            "value": value,
            "low": 0.8 * value,
            "high": 1.2 * value,
        }
    )
    return Advice(verdict, statements, trials, bands, 0.9, {"data": "examples", "loss": "error"})


def planted_facts(directory: Path, *, advice: Advice | None = None, drawn: bool = False) -> Facts:
    """Return what is known of such a run, its pictures if they are wanted: they take longest."""
    with Store(directory / "results.sqlite", write=False) as store:
        rows, measurements, timeline = store.results(), store.measurements(), store.timeline()
    curves = learning_curves(rows)
    pictures = pictures_of(rows, measurements, timeline, curves=curves, advice=advice, unit="")[0] if drawn else {}
    return Facts(
        name="planted", directory=str(directory), rows=rows, curves=curves, trends=trends(curves), advice=advice,
        missing="" if advice else "Too few rows.", environment={"device": "cpu", "devices": 2, "python": "3.11"},
        sweep=SWEEP, pictures=pictures, written=True,
        suggested=(Suggested(f"{directory}/next_trials/planted_next_1.toml", "", 6),),
        follow_up=f"scalejax advise {directory} runs/planted_next_1",
    )  # fmt: skip
