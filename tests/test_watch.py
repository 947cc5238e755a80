"""Following a run from another process: from before it begins until it has ended, in a terminal and in a pipe."""

import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock
import pytest
from rich.console import Console
from test_store import DONE, LOGISTIC, MEASURED, SWEEP

import scalejax as sx
from scalejax.cli import main
from scalejax.report.live import json_lines, live_line, plain_lines, show
from scalejax.run import live
from scalejax.run.directory import LOCK, is_locked, locked
from scalejax.run.live import states
from scalejax.run.store import Heartbeat, Recorded, SpanRow, Store
from scalejax.status import Status


def beat(eta: float | None = 30.0) -> Heartbeat:
    return Heartbeat(os.getpid(), socket.gethostname(), time.time() - 60, time.time(), eta)


def span(number: int, trial_id: str, ended: float | None) -> SpanRow:
    return SpanRow(1, number, trial_id, 0, "cpu 0", "mlp", 2, 0, 1.0, ended, 5, 10, "" if ended is None else "done")


HELD: dict[Path, Any] = {}  # by the runs of this test, until they end


def begins(directory: Path) -> None:
    HELD[directory] = lock = filelock.FileLock(directory / LOCK)
    lock.acquire()
    with Store(directory / "results.sqlite", write=True) as store:
        store.plan(SWEEP)


def trains(directory: Path) -> None:
    with Store(directory / "results.sqlite", write=True) as store:
        store.start(["a", "b"])
        store.beat(beat(), {"a": 5, "b": 10})


def one_is_done(directory: Path) -> None:
    with Store(directory / "results.sqlite", write=True) as store:
        store.finish(DONE, MEASURED)
        store.beat(beat(), {"a": 8}, Recorded(None, [span(1, "b", 5.0), span(2, "a", None)]))


def ends(directory: Path) -> None:
    with Store(directory / "results.sqlite", write=True) as store:
        for trial_id in ("a", "c"):
            store.finish(replace(DONE, trial_id=trial_id, status=Status.DIVERGED, validation_loss=None), [])
        store.release()
    (directory / LOCK).unlink()
    HELD.pop(directory).release()


def killed(directory: Path) -> None:
    with Store(directory / "results.sqlite", write=True) as store:
        store.beat(replace(beat(), pid=2**22 - 1), {"a": 8})


def killed_early(directory: Path) -> None:
    """It has sent no heartbeat yet; its lock ends, and the file stays."""
    HELD.pop(directory).release()
    (directory / LOCK).touch()


def nothing(_: Path) -> None: ...


def interrupted(_: Path) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def let_go() -> Iterator[None]:
    yield
    while HELD:
        HELD.popitem()[1].release()


STORY = begins, nothing, trains, nothing, one_is_done, ends


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Iterator[dict[str, Any]]]:
    """Return the states of a run to which something happens whenever the watcher sleeps."""

    def followed(*story: Callable[[Path], None]) -> Iterator[dict[str, Any]]:
        happens = iter(story)

        class Clock:
            def sleep(self, seconds: float) -> None:
                assert seconds == live.BEAT_SECONDS
                next(happens)(tmp_path)

        monkeypatch.setattr(live, "time", Clock())
        return states(tmp_path)

    return followed


def test_a_run_is_followed_from_before_it_begins_until_it_has_ended(follow):
    seen = list(follow(*STORY))
    assert [facts["over"] for facts in seen] == [False] * 6 + [True]
    assert "waiting for `scalejax run` to begin there" in seen[0]["waiting"]
    assert seen[3]["trials"]["running"] == 2
    assert seen[3]["share"] == pytest.approx((5 / 20 + 10 / 20) / 3)
    assert [trial["trial_id"] for trial in seen[5]["finished"]] == ["b"]
    assert (seen[5]["best"]["validation_loss"], seen[5]["best"]["test_metric"]) == (1.5, 0.5)
    assert seen[-1]["share"] == 1.0


def test_in_a_pipe_there_is_one_state_and_then_a_line_a_change(follow, tmp_path: Path):
    lines = list(plain_lines(follow(*STORY)))
    assert lines == [
        f"{tmp_path}: no results yet; waiting for `scalejax run` to begin there",
        "3 trials: 3 pending",
        "3 trials: 1 pending, 2 running; ETA 30 s",
        "3 trials: 1 pending, 1 running, 1 done; ETA 30 s; last b done, validation loss 1.50, test error 0.500",
        "3 trials: 1 done, 2 diverged; ended",
    ]


def test_as_json_there_is_a_line_a_change(follow):
    lines = [json.loads(line) for line in json_lines(follow(*STORY))]
    assert len(lines) == 5
    assert lines[0].keys() == {"directory", "waiting", "over"}
    assert lines[-1]["over"]
    assert lines[-1]["trials"]["diverged"] == 2


def test_a_killed_run_is_over(follow):
    lines = list(plain_lines(follow(begins, trains, killed)))
    assert lines[-1] == "3 trials: 1 pending, 2 running; not running; the same `scalejax run` resumes"


def test_a_run_that_was_killed_before_its_first_heartbeat_is_over(follow):
    lines = list(plain_lines(follow(begins, nothing, killed_early)))
    assert lines[1:] == ["3 trials: 3 pending", "3 trials: 3 pending; not running; the same `scalejax run` resumes"]


def test_who_watches_does_not_keep_a_run_from_beginning(tmp_path: Path):
    looks = filelock.FileLock(tmp_path / LOCK, thread_local=False)
    looks.acquire()
    threading.Timer(0.05, looks.release).start()
    assert is_locked(tmp_path)
    with locked(tmp_path):
        assert not looks.is_locked  # it was waited for, not passed by
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_in_a_pipe_waiting_is_said_once(follow):
    lines = list(plain_lines(follow(nothing, nothing, *STORY)))
    assert sum("waiting" in line for line in lines) == 1


def test_a_run_that_has_ended_is_shown_once(follow, tmp_path: Path):
    begins(tmp_path)
    ends(tmp_path)
    assert len(list(follow())) == 1


def test_a_ledger_that_is_none_is_a_sentence(follow, tmp_path: Path):
    (tmp_path / "results.sqlite").write_text("mine " * 1000)
    with pytest.raises(sx.SweepError, match="not a readable ledger"):
        list(follow())


def test_nothing_is_written_by_who_watches(follow, tmp_path: Path):
    begins(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert not next(follow())["over"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_terminal_shows_a_bar_those_that_run_and_those_that_ended(follow):
    stream = io.StringIO()
    show(follow(*STORY), as_json=False, console=Console(file=stream, force_terminal=True, width=150, height=40))
    shown = stream.getvalue()
    for words in (
        "no results yet",
        "ETA 30 s",
        "running",
        "5 of 20",
        "ended last",
        "best so far",
        "validation loss 1.50",
    ):
        assert words in shown
    assert "100 %" in shown


def test_many_running_trials_are_cut_in_a_terminal(follow, tmp_path: Path):
    begins(tmp_path)
    rows = [replace(LOGISTIC, trial_id=f"t{number}", seed=number) for number in range(9)]
    with Store(tmp_path / "results.sqlite", write=True) as store:
        store.plan(rows)
        store.start([row.trial_id for row in rows])
        store.beat(beat(None), {})
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        show(
            follow(interrupted), as_json=False, console=Console(file=stream, force_terminal=True, width=120, height=40)
        )
    assert "... and 4 more" in stream.getvalue()
    assert "ETA not known yet" in stream.getvalue()


def test_a_failed_trial_says_why():
    trial = {"trial_id": "a", "status": "failed", "reason": "out of memory", "validation_loss": None}
    facts = {
        "trials": {"pending": 1, "running": 0, "failed": 1}, "over": False, "eta_seconds": None, "finished": [trial],
    }  # fmt: skip
    assert live_line(facts) == "2 trials: 1 pending, 1 failed; ETA not known yet; last a failed: out of memory"


@pytest.mark.parametrize(("story", "code"), [((begins, ends), 0), ((begins, interrupted), 130)])
def test_the_command_ends_with_the_run_or_with_ctrl_c(follow, tmp_path: Path, capsys, story, code: int):
    follow(*story)
    assert main(["status", str(tmp_path), "--watch"]) == code
    out = capsys.readouterr()
    assert out.out.splitlines()[1] == "3 trials: 3 pending"
    assert out.err == ""
    assert main(["status", str(tmp_path / "elsewhere")]) == 2  # without --watch a missing run is a mistake
