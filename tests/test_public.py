"""What people may rely on, spelled out: names, commands and options, columns, keys of `--json`, exit codes, sweep keys.

The first of each two literals is what version 0.2.0 had: nothing of it may be lost. The second is what came since.
"""

import argparse
import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import scalejax as sx
from scalejax.cli import main
from scalejax.cli import options as cli_options
from scalejax.run.store import Heartbeat, Store, TrialRow

NAMES = """
    Allocation DataSpec Fit FitError Frontier HalvingSpec Interrupted Law Misallocation ModelGrid Parameter Run RunError
    Sweep SweepError TrainSpec compute_optimal fit_envelope fit_isoflop fit_law load_sweep misallocation run_sweep
"""
NAMES_ADDED = """
    Advice Classification Extrapolation Facts Features Fits Regression Source Split Statement Task advise arrays
    Tracker extrapolate plan
"""

COMMANDS = {
    "plan": "SWEEP.toml --set --json --devices --device-kind",
    "run": "SWEEP.toml --set --json --out --checkpoint-seconds",
    "status": "DIR --json",
    "export": "DIR --output --measurements",
    "fit": """
        DIR|F.csv --law --columns --curves --fix --share --ceiling --bootstrap --seed --level --figures --json
    """,
    "advise": "DIR|F.csv --target --compute --columns --level --seed --figures --json",
    "report": "DIR --output --json",
    "bench": "--widths --batch-size --repetitions --json",
}
COMMANDS_ADDED = {"completion": "SHELL"}
OPTIONS_ADDED = {
    "plan": "--out --compile",
    "run": "--no-report --hosts --coordinator --host-number --number-of-hosts --track",
    "status": "--watch",
}

TRIALS = """
    trial_id family depth width params train_examples fraction seed learning_rate weight_decay batch_size steps flops
    status reason train_loss validation_loss test_loss test_error best_step seconds steps_taken mode device versions
    program
"""
TRIALS_ADDED = "test_metric metric hyperparameters"  # behind all others
MEASUREMENTS = "trial_id step examples_seen train_loss validation_loss validation_error"
MEASUREMENTS_ADDED = "validation_metric"
TIMELINE = "trial_id session pack group bucket lanes lane began ended steps step_flops outcome"
SESSIONS = """
    session began ended host device devices groups peak_flops forecast_seconds plan_useful_flops plan_padding_flops
    plan_idle_flops useful_flops padding_flops lane_seconds idle_seconds training_seconds
"""
TYPES = {
    "int64": "depth width params train_examples seed batch_size steps flops step examples_seen",
    "Int64": "best_step steps_taken",
    "float64": """
        fraction learning_rate weight_decay train_loss validation_loss test_loss test_error seconds validation_error
        test_metric validation_metric
    """,
}

STATUSES = "pending running done diverged stopped failed"
# Of tables and lists of tables in it, the keys of the (first) table.
PLAN = {
    "": """
        name trials stopped_early devices device_kind lane_programs programs notes waste useful_flops padding_flops
        idle_flops state_bytes data_bytes checkpoint_bytes forecast_seconds stream_bytes older precision
    """,
    "programs": "sizes trials lanes mode steps padding packing seconds timed",
}
SIMULATED = {
    "": f"{PLAN['']} simulation",
    "programs": PLAN["programs"],
    "simulation": "source makespan_seconds utilisation shares limit floor_seconds twice_the_devices_seconds lanes",
}
RUN = {"": "directory trials lane_programs report", "trials": STATUSES}
REPORT = {"": "report markdown figures runs", "runs": "name directory verdict headline sentences"}
STATUS = {
    "": "trials running begun reasons process eta_seconds",
    "trials": STATUSES,
    "running": "trial_id step steps what",
    "begun": "trial_id step steps what",
    "process": "pid host alive seconds silent_seconds",
}
FIT = {
    "": "law formula paper columns level meanings fits notes refused figures",
    "columns": "x loss",
    "meanings": "b c",
    "fits": """
        curve params standard_errors intervals objective status rows excluded duplicates resamples failed_resamples
    """,
}

SWEEP_KEYS = {
    "": "name data models train seeds packing task",
    "data": """
        source train_examples fractions examples validation_examples test_examples seed fourier_features fourier_scale
    """,
    "train": """
        learning_rate batch_size optimizer weight_decay schedule warmup_fraction clip_norm steps epochs min_steps
        max_steps evaluate_every patience halving weight_decay_on
    """,
    "data.features": "steps",
    "train.halving": "rungs reduction",
}

SWEEP = """
name = "small"
[data]
source = "mnist1d"
examples = 200
train_examples = [20, 60, 100]
validation_examples = 50
test_examples = 100
[[models]]
family = "mlp"
width = 4
depth = 1
[train]
learning_rate = [1e-2, 3e-2]
batch_size = 16
steps = 20
evaluate_every = 5
"""


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run, beside its sweep file."""
    folder = tmp_path_factory.mktemp("public")
    (folder / "sweep.toml").write_text(SWEEP)
    assert main(["run", str(folder / "sweep.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_names():
    assert set(NAMES.split()) <= set(sx.__all__)
    assert set(NAMES_ADDED.split()) <= set(sx.__all__)


def test_commands_and_their_options():
    parsers = {}
    for name, add in cli_options.OPTIONS.items():
        parser = argparse.ArgumentParser(add_help=False)
        add(parser)
        names = [action.option_strings[-1] if action.option_strings else action.metavar for action in parser._actions]
        parsers[name] = set(names)
    every = COMMANDS | COMMANDS_ADDED
    wanted = {name: {*options.split(), *OPTIONS_ADDED.get(name, "").split()} for name, options in every.items()}
    assert parsers == wanted
    for name in every:
        with pytest.raises(SystemExit) as left:
            main([name, "--help"])
        assert left.value.code == 0


def test_columns(done: Path):
    run = sx.Run(done)
    for table, columns, added in (
        (run.results(), TRIALS, TRIALS_ADDED),
        (run.measurements(), MEASUREMENTS, MEASUREMENTS_ADDED),
    ):
        assert table.columns.tolist() == [*columns.split(), *added.split()]
        for dtype, names in TYPES.items():
            assert {str(table[name].dtype) for name in names.split() if name in table} <= {dtype}
        words = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
        assert not set(words) & set(" ".join(TYPES.values()).split())
    assert run.timeline().columns.tolist() == TIMELINE.split()
    assert run.sessions().columns.tolist() == SESSIONS.split()


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def keys(facts: Mapping[str, Any], wanted: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the keys of the facts, and of those tables in it that are wanted."""
    found = {"": set(facts)}
    for name in wanted.keys() - {""}:
        inner = facts[name]
        found[name] = set(inner[0] if isinstance(inner, list) else inner)
    return found


def spelled(wanted: Mapping[str, str]) -> dict[str, set[str]]:
    return {name: set(text.split()) for name, text in wanted.items()}


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        (("plan", "sweep.toml"), PLAN),
        (("plan", "sweep.toml", "--devices", 4), SIMULATED),
        (("plan", "sweep.toml", "--device-kind", "h100"), SIMULATED),
        (("run", "sweep.toml", "--out", "run"), RUN),
        (("fit", "run", "--law", "power", "--bootstrap", 10), FIT),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_keys_of_json(done: Path, monkeypatch: pytest.MonkeyPatch, capsys, command: tuple[object, ...], wanted):
    monkeypatch.chdir(done.parent)
    assert keys(printed(capsys, *command), wanted) == spelled(wanted)


def test_keys_of_status_as_json(tmp_path: Path, capsys):
    row = TrialRow("running", "mlp", {}, 1, 20, 0.1, 0, 0.01, 0.0, 16, steps=9, flops=9)
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan([row, replace(row, trial_id="begun")])
        store.start(["begun"])
        store.beat(Heartbeat(os.getpid(), "h", 0.0, 0.0, None), {"begun": 3})
        store.release()
        store.start(["running"])
        store.beat(Heartbeat(os.getpid(), "h", 0.0, 0.0, None), {})
    assert keys(printed(capsys, "status", tmp_path), STATUS) == spelled(STATUS)


def test_exit_codes(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert main(["status", str(done)]) == 0
    table = tmp_path / "table.csv"
    table.write_text("x,loss\n1,\n2,\n3,\n")
    assert main(["fit", str(table), "--law", "power"]) == 1  # no curve can be fitted
    assert main(["status", str(tmp_path)]) == 2
    for number in (signal.SIGINT, signal.SIGTERM):

        def stopped(*_: object, number: signal.Signals = number) -> None:
            raise sx.Interrupted(number)

        monkeypatch.setattr(sx.Run, "status", stopped)
        assert main(["status", str(done)]) == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]


def test_keys_of_a_sweep_file(tmp_path):
    """A key that is read is either taken or refused for its value, and never called unknown."""
    path = tmp_path / "sweep.toml"
    for source in ("mnist1d", "land"):
        path.write_text(SWEEP.replace("mnist1d", source))
        for table, keys in SWEEP_KEYS.items():
            for key in keys.split():
                dotted = f"{table}.{key}" if table else key
                message = ""
                try:
                    sx.load_sweep(path, {dotted: "nonsense"})
                except sx.SweepError as refusal:
                    message = str(refusal)
                assert "unknown key" not in message, dotted
    with pytest.raises(sx.SweepError, match="unknown key"):
        sx.load_sweep(path, {"data.nonsense": 1})
