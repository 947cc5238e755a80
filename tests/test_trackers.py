"""Trackers: by name or the user's own, what they are given, and that their failures stop nothing."""

import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from test_store import DONE, SMALL

import scalejax as sx
from scalejax.cli import main
from scalejax.run import tracking as tracking_module
from scalejax.run.rows import told_row
from scalejax.run.trackers import tracker_of
from scalejax.run.trackers.series import Series
from scalejax.run.tracking import Tracking

FACTS = {"name": "small", "trials": 2, "ended": 0, "sweep": 'name = "small"\n'}
ROW = told_row(SMALL, DONE)
TINY = """
name = "tiny"
[data]
source = "mnist1d"
examples = 200
train_examples = [20]
validation_examples = 50
test_examples = 100
[[models]]
family = "logistic"
[train]
learning_rate = 1e-2
batch_size = 16
steps = 20
"""
STEPS = [
    {"step": step, "examples_seen": 16 * step, "train_loss": 2.0, "validation_loss": 2.5, "validation_metric": None}
    for step in (10, 20)
]
TABLES = {
    "trials": pd.DataFrame({"trial_id": ["b"], "best_step": pd.array([None], dtype="Int64")}),
    "learning_curves": pd.DataFrame({"model": ["mlp"], "value": [0.5]}),
}


class Own:
    """A tracker of the user's own; `fails` is the call that raises."""

    def __init__(self, fails: str = "", error: BaseException | None = None):
        self.calls: list[tuple[str, Any]] = []
        self.error = error or OSError("the network is gone\nand more")
        self.threads: set[str] = set()
        self.fails = fails

    def _told(self, name: str, *given: Any) -> None:
        self.calls.append((name, given))
        self.threads.add(threading.current_thread().name)
        if name == self.fails:
            raise self.error

    def init(self, facts: Mapping[str, Any]) -> None:
        self._told("init", facts)

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:
        self._told("log", trial, measurements)

    def finish(self, tables: Mapping[str, pd.DataFrame], figures: Sequence[Path]) -> None:
        self._told("finish", tables, figures)


def tracked(tracker: Any, *, figures: Sequence[Path] = (), listen: Callable[[str], None] | None = None) -> None:
    """Have a run of two trials tracked."""
    with Tracking(tracker, lambda: FACTS, lambda: (TABLES, figures)) as tracking:
        if listen:
            tracking.listen(listen)
        for _ in range(2):
            tracking.log(lambda: (ROW, STEPS))


def test_a_tracker_is_called_in_order_and_never_from_the_main_thread():
    own = Own()
    tracked(own)
    assert [name for name, _ in own.calls] == ["init", "log", "log", "finish"]
    assert own.calls[1][1] == (ROW, STEPS)
    assert own.threads == {"tracker"}


def test_a_run_without_a_tracker_has_no_thread():
    tracked(None)
    assert "tracker" not in {each.name for each in threading.enumerate()}


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_what_a_tracker_raises_is_told_once_and_stops_nothing(fails: str):
    own, said = Own(fails), []
    tracked(own, listen=said.append)
    sentence = "the tracker Own failed (the network is gone): nothing more is tracked, and the run goes on"
    assert said == [sentence]
    assert [name for name, _ in own.calls].count(fails) == 1
    with pytest.warns(UserWarning, match="the network is gone") as warned:  # where nobody listens
        tracked(Own(fails))
    assert len(warned) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit(), SystemExit(3)])
def test_what_no_tracker_should_raise_is_told_as_well(error: BaseException):
    said: list[str] = []
    tracked(Own("log", error), listen=said.append)
    why = "3" if isinstance(error, SystemExit) else type(error).__name__
    assert said == [f"the tracker Own failed ({why}): nothing more is tracked, and the run goes on"]


def test_a_tracker_that_hangs_neither_slows_the_run_nor_keeps_it(monkeypatch: pytest.MonkeyPatch):
    release, own = threading.Event(), Own()
    monkeypatch.setattr(own, "init", lambda _: release.wait(10))
    monkeypatch.setattr(tracking_module, "FINISH_SECONDS", 0.05)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"it did not end within 0.1 s of the run"):
        tracked(own)
    assert time.monotonic() - began < 5
    release.set()


def test_a_run_that_came_to_nothing_ends_the_tracker_without_tables():
    own = Own()

    def outcome() -> Any:
        raise sx.SweepError("there are no results here")

    with Tracking(own, lambda: FACTS, outcome):
        pass
    assert own.calls[-1] == ("finish", ({}, ()))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("wandbb", 'tracker: "wandbb" is unknown; did you mean wandb?'),
        ("wandb", r'wandb needs a package that is not installed .*; install it with pip install "scalejax\[wandb\]"'),
        ("trackio=mine", "trackio needs a package that is not installed"),
        ("tensorboard", "tensorboard needs a package that is not installed"),
        (3, "expected a name .* or an object with the methods init, log and finish, found one of type int"),
    ],
)
def test_a_tracker_that_cannot_begin_is_one_sentence_before_any_training(tmp_path: Path, monkeypatch, asked, says):
    for package in ("wandb", "trackio", "tensorboardX"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(sx.SweepError, match=says) as caught:
        tracker_of(asked, tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_line_refuses_it_with_exit_code_2(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("scalejax.run.run._carry_out", lambda *_, **__: pytest.fail("something was trained"))
    (tmp_path / "sweep.toml").write_text(TINY)
    assert main(["run", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "run"), "--track", "wandb"]) == 2
    assert "wandb needs a package" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_series_of_a_sweep_have_a_step_a_trial_and_the_best_so_far():
    series = Series(ended=3)
    first = series.point(ROW)
    worse = series.point({**ROW, "validation_loss": 9.0, "test_loss": None})
    diverged = series.point({**ROW, "status": "diverged", "validation_loss": None})
    assert [point["trials_ended"] for point in (first, worse, diverged)] == [4, 5, 6]
    assert (first["trial/validation_loss"], worse["trial/validation_loss"]) == (1.5, 9.0)
    assert worse["best/validation_loss"] == 1.5
    assert "trial/test_loss" not in worse
    assert (diverged["count/done"], diverged["count/diverged"]) == (2, 1)


class Recorded:
    """Stands in for a module, a run or a writer: takes any call and remembers it; calls return it or `returns`."""

    def __init__(self, returns: Mapping[str, Any] | None = None):
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.returns = dict(returns or {})
        self.summary: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*given: Any, **named: Any) -> Any:
            self.calls.append((name, given, named))
            return self.returns.get(name, self)

        return called

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None: ...

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [given for called, given, _ in self.calls if called == name]


def installed(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> ModuleType:
    module = ModuleType(name)
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def figure(tmp_path: Path) -> Path:
    path = tmp_path / "learning_curves.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8) + struct.pack(">II", 720, 490))
    return path


def test_wandb_gets_one_run_a_sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figure: Path):
    run, made = Recorded(), []
    installed(
        monkeypatch, "wandb",
        init=lambda **named: (made.append(named), run)[1], login=lambda **_: True,
        Settings=lambda console: SimpleNamespace(console=console),
        Table=lambda dataframe: dataframe.to_dict("list"), Image=lambda path: f"image {path}",
    )  # fmt: skip
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    tracked(tracker_of("wandb=mine", tmp_path), figures=[figure])
    (begun,) = made
    assert (begun["project"], begun["name"], begun["group"], begun["config"]) == ("mine", "small", "small", FACTS)
    *points, (last,) = run.of("log")
    assert [point["trials_ended"] for (point,) in points] == [1, 2]
    assert last["tables/trials"] == {"trial_id": ["b"], "best_step": [None]}
    assert last["figures/learning_curves"] == f"image {figure}"
    assert run.summary["best/validation_loss"] == 1.5
    assert run.calls[-1][0] == "finish"


def test_wandb_without_an_account_is_refused_before_it_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed(monkeypatch, "wandb", login=lambda **_: False)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(sx.SweepError, match=r"wandb is not logged in.*run `wandb login`, or set"):
        tracker_of("wandb", tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert tracker_of("wandb", tmp_path) is not None


def test_trackio_gets_one_run_a_sweep_and_says_nothing_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figure: Path, capsys
):
    run = Recorded()

    def init(project: str, **named: Any) -> Recorded:
        print(f"see {project}")
        run.calls.append(("init", (project,), named))
        return run

    installed(monkeypatch, "trackio", init=init, Table=lambda dataframe: dataframe, Image=lambda path: path)
    tracked(tracker_of("trackio", tmp_path), figures=[figure])
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "see scalejax\n")
    assert [named.get("step") for name, _, named in run.calls if name == "log"] == [1, 2, 2]
    assert run.of("log")[-1][0].keys() == {"tables/trials", "tables/learning_curves", "figures/learning_curves"}


def test_tensorboard_gets_a_folder_a_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figure: Path):
    writers: dict[str, Recorded] = {}

    def summary_writer(folder: str) -> Recorded:
        return writers.setdefault(str(Path(folder).relative_to(tmp_path / "tensorboard")), Recorded())

    class Summary(SimpleNamespace):
        Value = Image = SimpleNamespace

    installed(
        monkeypatch, "tensorboardX", SummaryWriter=summary_writer,
        summary=SimpleNamespace(hparams=lambda chosen, found: [chosen, found]),
        proto=SimpleNamespace(summary_pb2=SimpleNamespace(Summary=Summary)),
    )  # fmt: skip
    monkeypatch.setattr(Recorded, "file_writer", property(lambda self: self), raising=False)
    tracked(tracker_of("tensorboard", tmp_path), figures=[figure])
    assert writers.keys() == {".", "mlp width=4 depth=1/examples=20/b"}
    trial = writers["mlp width=4 depth=1/examples=20/b"]
    assert trial.of("add_scalar")[:2] == [("train_loss", 2.0, 10), ("validation_loss", 2.5, 10)]
    chosen, found = (each for (each,) in trial.of("add_summary")[:2])
    assert (chosen["width"], chosen["learning_rate"]) == (4, 0.01)
    assert found["result/test_metric"] == 0.5
    ((image,),) = writers["."].of("add_summary")
    assert (image.value[0].tag, image.value[0].image.width) == ("learning_curves", 720)
    assert writers["."].of("add_text")[-1] == ("learning_curves", "| model | value |\n| --- | --- |\n| mlp | 0.5 |")


def test_rows_are_told_with_the_columns_of_the_table():
    assert (ROW["width"], ROW["knobs"], ROW["test_error"], ROW["status"]) == (4, ["width", "depth"], 0.5, "done")
    assert ROW["flops"] == 1000
