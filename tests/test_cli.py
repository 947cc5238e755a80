"""The command line: what each command prints and writes, and one line with the remedy for every mistake."""

import _thread
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
import pytest

from scalejax.cli import entry, main
from scalejax.cli.main import TOUR
from scalejax.cli.options import EXAMPLES, FIRST, OPTIONS, SHELLS, parser_of, subparsers
from scalejax.execute import timing
from scalejax.execute.pack import Pack
from scalejax.models import MLP
from scalejax.run import Run
from scalejax.run.store import Store
from scalejax.text import percent

pytestmark = pytest.mark.usefixtures("compile_quickly")
LOGISTIC_TABLE = """\
[[models]]
family = "logistic"
"""
MLP_TABLE = """\
[[models]]
family = "mlp"
width = [4, 8]
depth = 1
"""
SWEEP = f"""\
name = "small"
seeds = 2
[data]
source = "mnist1d"
examples = 200
train_examples = [20, 100]
validation_examples = 50
test_examples = 100
{LOGISTIC_TABLE}{MLP_TABLE}[train]
learning_rate = [1e-2]
batch_size = 16
steps = 20
evaluate_every = 5
"""
TRIALS = 12
COMMANDS = ("plan", "run", "status", "export")


class Ran:
    """What a command returned and printed."""

    def __init__(self, code: str | int | None, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: object) -> Ran:
        capsys.readouterr()
        try:
            code = main([str(one) for one in arguments])
        except SystemExit as leaving:  # argparse leaves on its own
            code = leaving.code
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return call


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in a folder with one sweep file, sweep.toml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "sweep.toml").write_text(SWEEP)
    assert main(["run", str(folder / "sweep.toml"), "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def copied(finished: Path, here: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(finished, here / "run"))


def only_the_sweep_file(here: Path) -> bool:
    return [each.name for each in here.iterdir()] == ["sweep.toml"]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=lambda one: one[0] if one else "none")
def test_help(cli, command: tuple[str, ...]):
    ran = cli(*command, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(" ".join(["usage: scalejax", *command]))
    if not command:
        assert all(name in ran.out for name in COMMANDS)


def test_help_is_a_tour_of_the_commands_and_each_command_has_an_example_that_it_takes(cli):
    parsers = subparsers(parser_of(TOUR))
    assert list(parsers) == [command.__name__ for group in TOUR.values() for command in group]
    assert parsers.keys() == OPTIONS.keys() == EXAMPLES.keys()
    tour = cli("--help").out.splitlines()
    assert max(map(len, tour)) < 80
    places = [next(at for at, line in enumerate(tour) if line.startswith(f"  {name} ")) for name in parsers]
    assert places == sorted(places)
    for line in FIRST:
        assert f"  {line}" in tour
        parser_of(TOUR).parse_args(line.split()[1:])
    for name, parser in parsers.items():
        assert parser.format_help().endswith(f"example:\n  {EXAMPLES[name]}\n")
        words = EXAMPLES[name].partition(" >")[0].split()
        assert parser_of(TOUR).parse_args(words[1:]).command == words[1] == name


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command_and_option(cli, shell: str):
    pytest.importorskip("shtab", reason='pip install ".[completion]" brings it')
    script = cli("completion", shell).out
    for name, parser in subparsers(parser_of(TOUR)).items():
        assert name in script
        assert all(option.lstrip("-") in script for action in parser._actions for option in action.option_strings)


def test_completion_completes_commands_options_and_files(cli, here: Path):
    pytest.importorskip("shtab", reason='pip install ".[completion]" brings it')
    (here / "completion").write_text(cli("completion", "bash").out)
    for words, found in ("pl", "plan"), ("run --check", "--checkpoint-seconds"), ("run swe", "sweep.toml"):
        asked = f"COMP_WORDS=(scalejax {words}); COMP_CWORD={len(words.split())}; _shtab_scalejax"
        script = f". ./completion; {asked}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [found]


def test_completion_says_what_it_needs(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    ran = cli("completion", "fish")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        'scalejax completion: completion in a shell needs shtab; install it with pip install "scalejax[completion]"\n'
    )


def test_the_console_script_is_this_command_line():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="scalejax")
    assert script.load() is entry


def test_plan_says_what_a_sweep_will_do_and_writes_nothing(cli, here: Path, finished: Path):
    as_json = cli("plan", "sweep.toml", "--json")
    assert (as_json.code, as_json.err) == (0, "")
    facts = json.loads(as_json.out)
    results = Run(finished).results()
    assert facts["trials"] == TRIALS == sum(program["trials"] for program in facts["programs"])
    assert facts["lane_programs"] == len(facts["programs"]) < TRIALS
    assert facts["useful_flops"] == results["flops"].sum()
    extra = facts["padding_flops"] + facts["idle_flops"]
    assert facts["waste"] == pytest.approx(extra / (facts["useful_flops"] + extra))
    assert all(0 <= program["padding"] < 1 for program in facts["programs"])
    assert facts["data_bytes"] == 350 * (40 + 1) * 4
    assert facts["state_bytes"] > 4 * 410
    assert facts["forecast_seconds"] == pytest.approx(sum(program["seconds"] for program in facts["programs"]))

    words = cli("plan", "sweep.toml")
    assert (words.code, words.err) == (0, "")
    assert words.out.startswith(f"small: 12 trials on {facts['devices']} x {facts['device_kind']}\n")
    assert f"{facts['lane_programs']} lane programs" in words.out
    for program in facts["programs"]:
        assert f"{program['sizes']}: {program['trials']} trials in {program['lanes']} lanes" in words.out
    assert f"waste     {percent(facts['waste'], 1)}" in words.out
    assert f"{facts['useful_flops'] / 1e6:.3g} MFLOP useful" in words.out
    assert f"{facts['data_bytes'] / 1e3:.3g} kB of data" in words.out
    assert re.search(r"forecast  \d+(\.\d)? s", words.out)
    assert only_the_sweep_file(here)


def test_overrides_and_other_devices(cli, here: Path):
    (here / "sweep.toml").write_text(SWEEP.replace(MLP_TABLE, ""))
    overrides = ["--set", "name=other", "--set", "seeds=1", "--set", "data.train_examples=[20]"]
    facts = json.loads(cli("plan", "sweep.toml", "--json", "--devices", 3, *overrides).out)
    assert (facts["name"], facts["trials"], facts["devices"]) == ("other", 1, 3)
    assert only_the_sweep_file(here)


def test_run_prints_the_table_and_keeps_standard_error_for_progress(cli, here: Path, finished: Path):
    ran = cli("run", "sweep.toml", "--no-report")
    assert ran.code == 0
    assert ran.out.startswith("12 trials: 12 done; ")
    assert "mlp width 8" in ran.out
    assert ran.out.endswith(f"figure: {Path('runs/small/figures/learning_curves.png')} and .svg\n")
    lines = (here / "runs/small/figures/learning_curves.csv").read_text().splitlines()
    assert len(list(csv.DictReader(lines))) == len(Run(here / "runs" / "small").curves())
    assert "12/12 trials" in ran.err
    assert "steps/s" in ran.err
    mine, theirs = (Run(path).results().drop(columns="seconds") for path in (here / "runs" / "small", finished))
    assert mine.equals(theirs)  # the same sweep in another directory: the same numbers


def test_run_again_as_json(cli, copied: Path):
    ran = cli("run", "sweep.toml", "--out", copied, "--json")
    assert (ran.code, ran.err) == (0, "")  # nothing to train, no progress
    facts = json.loads(ran.out)
    assert facts["directory"] == str(copied)
    assert facts["trials"] == {"pending": 0, "running": 0, "done": TRIALS, "diverged": 0, "stopped": 0, "failed": 0}
    assert facts["lane_programs"] >= 1


def test_status(cli, finished: Path):
    assert cli("status", finished).out == "12 trials: 12 done\n"
    facts = json.loads(cli("status", finished, "--json").out)
    assert facts["trials"]["done"] == TRIALS
    assert facts["reasons"] == {}


def test_export_to_standard_output_and_to_files(cli, finished: Path, here: Path):
    ran = cli("export", finished)
    assert (ran.code, ran.err) == (0, "")
    assert rows(ran.out)[0].keys() >= {"trial_id", "family", "width", "params", "train_examples", "test_error"}
    assert len(rows(ran.out)) == TRIALS
    assert cli("export", finished, "--output", "trials.csv").out == ""
    assert (here / "trials.csv").read_text() == ran.out
    measured = cli("export", finished, "--measurements")
    assert len(rows(measured.out)) == TRIALS * 4
    if importlib.util.find_spec("pyarrow"):
        import pandas as pd

        assert cli("export", finished, "--output", "trials.parquet").code == 0
        pd.testing.assert_frame_equal(pd.read_parquet(here / "trials.parquet"), Run(finished).results())


@pytest.mark.parametrize("arguments", [["export"], ["run", "sweep.toml", "--no-report", "--out"]])
def test_a_reader_that_has_enough_is_no_error(arguments: list[str], finished: Path):
    """As in `scalejax export DIR | head -1`; also the test of the command line in a process of its own."""
    code = "import sys; from scalejax.cli import entry, main; sys.exit(main())"
    arguments = [str(finished / "sweep.toml") if one == "sweep.toml" else one for one in arguments]
    command = [sys.executable, "-c", code, *arguments, str(finished)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


def test_a_diverged_trial_is_a_result_and_leaves_its_neighbours_alone(cli, finished: Path, here: Path):
    overrides = ["--set", "train.learning_rate=[1e-2, 1e30]", "--set", "data.train_examples=[100]"]
    assert cli("run", "sweep.toml", "--out", "run", *overrides).code == 0
    run = Run(here / "run")
    wild = run.results().query("learning_rate > 1 and family == 'mlp'").set_index("trial_id")
    assert set(wild["status"]) == {"diverged"}
    assert wild["reason"].str.contains(r"not finite at step \d+$").all()
    assert wild[["test_loss", "best_step"]].isna().to_numpy().all()
    tame, alone = (
        each.results().query("learning_rate < 1 and train_examples == 100").set_index("trial_id")["test_loss"]
        for each in (run, Run(finished))
    )
    assert tame.index.tolist() == alone.index.tolist()
    assert tame.to_numpy() == pytest.approx(alone.to_numpy(), rel=1e-5)

    listed = cli("status", "run")
    assert listed.code == 0
    assert re.match(r"12 trials: \d+ done, \d+ diverged\n", listed.out)
    for trial_id in wild.index:
        assert re.search(rf"^  {trial_id} diverged: .*step \d+$", listed.out, re.MULTILINE)
    assert json.loads(cli("status", "run", "--json").out)["reasons"].keys() >= set(wild.index)
    assert set(run.curves()["learning_rate"]) == {0.01}


def test_where_every_trial_diverged_there_is_no_figure(cli, here: Path):
    networks = MLP_TABLE.replace("[4, 8]", "4") + MLP_TABLE.replace("[4, 8]", "8")
    (here / "sweep.toml").write_text(networks.join(SWEEP.split(LOGISTIC_TABLE + MLP_TABLE)).replace("1e-2", "1e30"))
    ran = cli("run", "sweep.toml")
    assert ran.code == 0
    assert ran.out.startswith("8 trials: 8 diverged; ")
    assert not (here / "runs" / "small" / "figures").exists()


def test_trials_that_failed_are_tried_again(cli, here: Path, monkeypatch: pytest.MonkeyPatch):
    launch = Pack.launch

    def refusing(pack: Pack, *, copy: bool):
        if pack.bucket.program.architecture.build is MLP:
            raise MemoryError("no room\nfor a second line")
        return launch(pack, copy=copy)

    with monkeypatch.context() as patch:
        patch.setattr(Pack, "launch", refusing)
        ran = cli("run", "sweep.toml")
    assert ran.code == 1
    assert ran.out.startswith("12 trials: 4 done, 8 failed; ")
    assert cli("status", "runs/small").out.count("failed: MemoryError: no room\n") == 8
    assert cli("run", "sweep.toml").code == 0
    assert Run(here / "runs" / "small").counts()["done"] == TRIALS


def test_an_interrupt_keeps_what_is_finished(cli, here: Path, monkeypatch: pytest.MonkeyPatch):
    finish, interrupted = Store.finish, threading.Event()

    def finish_and_interrupt(store: Store, *row):
        finish(store, *row)
        if not interrupted.is_set():
            interrupted.set()
            _thread.interrupt_main()  # as Ctrl-C does
            time.sleep(0.5)  # the main thread looks up every 0.2 seconds

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", finish_and_interrupt)
        ran = cli("run", "sweep.toml", "--json")
    assert (ran.code, ran.out) == (130, "")
    assert "Traceback" not in ran.err
    assert ran.err.splitlines()[-1].startswith("scalejax run: interrupted; ")
    run = Run(here / "runs" / "small")
    kept = run.results().query("status == 'done'").set_index("trial_id")
    assert 0 < len(kept) < TRIALS
    assert cli("run", "sweep.toml").code == 0
    assert run.counts()["done"] == TRIALS
    now = run.results().set_index("trial_id")
    assert now.loc[kept.index, "seconds"].equals(kept["seconds"])  # not trained again


# What is wrong with the file (old text, new text) -> what the one line must say.
BAD_FILES = {
    "not TOML": ("seeds = 2", "seeds = = 2", ["line 2"]),
    "unknown key": ("steps = 20", "step = 20", ["line 18", "[train] step", "steps"]),
    "unknown table": ("[train]", "[trian]", ["trian", "train"]),
    "wrong type": ("steps = 20", 'steps = "20"', ["line 18", "[train] steps", "'20'"]),
    "empty grid": ("learning_rate = [1e-2]", "learning_rate = []", ["line 16", "[train] learning_rate", "empty"]),
    "fraction": ("train_examples = [20, 100]", "fractions = [0.5, 1.5]", ["line 6", "[data] fractions", "1.5"]),
    "pool": ("train_examples = [20, 100]", "train_examples = [20, 201]", ["line 6", "[data] train_examples", "201"]),
    "rate": ("learning_rate = [1e-2]", "learning_rate = [0.0]", ["line 16", "[train] learning_rate", "> 0"]),
    "family": ('family = "mlp"', 'family = "mpl"', ["line 12", "[[models]] index 1 family", "did you mean mlp?"]),
    "knob": ("depth = 1", "dept = 1", ["line 14", "[[models]] index 1 dept", "did you mean depth?"]),
    "missing knob": ("depth = 1", "", ["[[models]] index 1 depth", "missing"]),
    "source": ("mnist1d", "mnist2d", ["[data] source", "mnist1d"]),
}


def assert_refused(ran: Ran, *parts: str) -> None:
    """Exit code 2 and exactly one line on standard error, which contains all of `parts`."""
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith("scalejax")
    assert "Traceback" not in ran.err
    for part in parts:
        assert part in ran.err


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("mistake", BAD_FILES)
def test_a_mistake_in_the_file_is_one_line_and_nothing_is_written(cli, here: Path, command: str, mistake: str):
    old, new, parts = BAD_FILES[mistake]
    assert SWEEP.count(old) == 1
    (here / "sweep.toml").write_text(SWEEP.replace(old, new))
    assert_refused(cli(command, "sweep.toml"), f"scalejax {command}: ", *parts)
    assert only_the_sweep_file(here)


def test_more_examples_than_the_data_set_has(cli, here: Path):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    overrides = ["--set", "data.source=digits", "--set", "data.examples=", "--set", "data.train_examples=5000"]
    assert_refused(cli("run", "sweep.toml", *overrides), "--set data.train_examples", "5000", "1647 examples")
    assert only_the_sweep_file(here)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["COMMAND", "--help"]),
        (["trian", "sweep.toml"], ["trian", "--help"]),
        (["run"], ["SWEEP.toml", "--help"]),
        (["run", "missing.toml"], ["missing.toml", "no such file"]),
        (["run", "."], ["folder"]),
        (["plan", "missing.toml"], ["missing.toml", "no such file"]),
        (["plan", "sweep.toml", "--devices", "0"], ["--devices", "from 1 on"]),
        (["plan", "sweep.toml", "--devices", "many"], ["--devices", "from 1 on"]),
        (["plan", "sweep.toml", "--devices", "1" + "0" * 400], ["--devices", "at most 999999999"]),
        (["run", "sweep.toml", "--sett", "seeds=1"], ["--sett", "--help"]),
        (["run", "sweep.toml", "--set", "seeds"], ["--set seeds", "KEY=VALUE"]),
        (["run", "sweep.toml", "--set", "train.step=5"], ["--set train.step", "did you mean steps?"]),
        (["run", "sweep.toml", "--set", "train.steps=-5"], ["--set train.steps", ">= 1"]),
        (["run", "sweep.toml", "--out", "sweep.toml"], ["sweep.toml", "--out"]),
        (["status", "."], ["no results here", "scalejax run"]),
        (["status", "nowhere"], ["nowhere", "no results here"]),
        (["export", "nowhere"], ["nowhere", "no results here"]),
        (["export", "nowhere", "--output", "table.csv"], ["nowhere", "no results here"]),
    ],
    ids=" ".join,
)
def test_a_mistake_on_the_command_line_is_one_line_and_nothing_is_written(cli, here: Path, arguments, parts):
    assert_refused(cli(*arguments), *parts)
    assert only_the_sweep_file(here)
    assert (here / "sweep.toml").read_text() == SWEEP


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("table.xlsx", ["table.xlsx", ".csv or .parquet"]),
        ("nowhere/table.csv", ["--output", "cannot be written", "nowhere"]),
        ("folder.csv", ["--output", "cannot be written", "irectory"]),
    ],
)
def test_export_to_where_it_cannot(cli, here: Path, finished: Path, output: str, parts: list[str]):
    (here / "folder.csv").mkdir()
    ran = cli("export", finished, "--output", Path(output))
    assert_refused(ran, *parts)
    assert "None" not in ran.err


@pytest.mark.parametrize("error", [MemoryError("no room"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")])
def test_a_plan_whose_programs_do_not_fit_here_is_estimated(cli, monkeypatch: pytest.MonkeyPatch, error: Exception):
    def full(*_: object, **__: object) -> NoReturn:
        raise error

    monkeypatch.setattr(timing, "_time", full)
    monkeypatch.setattr(timing, "remembered", lambda *_, **__: None)
    ran = cli("plan", "sweep.toml", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert not any(program["timed"] for program in json.loads(ran.out)["programs"])


def test_a_plan_does_not_fill_the_memory_to_time_a_program(cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "_time", lambda *_, **__: pytest.fail("a program was timed"))
    ran = cli("plan", "sweep.toml", "--json", "--set", "data.test_examples=20000000")  # 3 GB
    assert (ran.code, ran.err) == (0, "")


def test_a_directory_whose_name_is_no_text(copied: Path, here: Path):
    strange = copied.rename(here / os.fsdecode(b"\xff"))
    command = [sys.executable, "-c", "from scalejax.cli import entry; entry()", "run", "sweep.toml", "--out", strange]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, done.stderr) == (0, b"drawing the report\n")
    assert rb"figure: " in done.stdout


def test_parquet_without_pyarrow_names_the_remedy(cli, finished: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_refused(cli("export", finished, "--output", "table.parquet"), "scalejax[parquet]")
