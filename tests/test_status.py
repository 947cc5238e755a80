"""How far a run is, in words and as data: running, crashed, interrupted, ended, and what failed."""

import os
import socket
import time
from dataclasses import replace

import pandas as pd
import pytest

from scalejax.report.status import SHOWN, counted, status_facts, status_lines
from scalejax.run.store import Heartbeat

HERE = Heartbeat(pid=12, host="h", began=time.time() - 90, beat=time.time(), eta_seconds=30.0)


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: HERE.beat)


class Beat:
    """A heartbeat whose process is there or not, as the test says."""

    def __init__(self, heartbeat: Heartbeat, *, alive: bool):
        self.__dict__.update(heartbeat.__dict__, alive=alive)


def table(*statuses: str, taken: int | None = None, reason: str = "") -> pd.DataFrame:
    rows = [
        {
            "trial_id": f"t{number}", "family": "mlp", "params": 1234, "train_examples": 500, "seed": 1,
            "learning_rate": 0.01, "steps": 4000, "status": status, "reason": reason, "steps_taken": taken,
        }
        for number, status in enumerate(statuses)
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"steps_taken": "Int64"})


def test_a_running_run_shows_its_steps_and_its_time():
    facts = status_facts(table("running", "pending", "done", taken=1500), Beat(HERE, alive=True))
    assert facts["trials"]["running"] == facts["trials"]["done"] == 1
    assert facts["eta_seconds"] == pytest.approx(30, abs=1)
    lines = status_lines(facts)
    assert lines[0] == "3 trials: 1 pending, 1 running, 1 done"
    assert lines[1].startswith("process 12 on h, running for 1 min 30 s, ETA 30 s")
    assert lines[2] == (
        "  t0 running, step 1,500 of 4,000: mlp, 1,234 parameters, 500 examples, learning rate 0.01, seed 1"
    )


def test_before_anything_is_known_the_time_is_not_invented():
    unknown = Beat(replace(HERE, eta_seconds=None), alive=True)
    assert "ETA not known yet" in status_lines(status_facts(table("running"), unknown))[1]


def test_a_killed_run_is_gone_and_an_interrupted_one_resumes():
    gone = status_lines(status_facts(table("running", taken=7), Beat(replace(HERE, beat=HERE.beat - 100), alive=False)))
    assert "process 12 on h is gone, last heard of 1 min 40 s ago; the same `scalejax run` resumes" in gone[1]
    interrupted = status_lines(status_facts(table("pending", "pending", taken=7), None))
    assert interrupted[1].startswith("interrupted; the same `scalejax run` resumes")
    assert " begun, step 7 of 4,000" in interrupted[2]
    assert status_lines(status_facts(table("pending"), None)) == ["1 trial: 1 pending"]


def test_reasons_are_shown_and_long_lists_are_cut_but_not_as_data():
    facts = status_facts(table(*["diverged"] * (SHOWN + 5), reason="the loss was not finite at step 3"), None)
    lines = status_lines(facts)
    assert lines[1] == "  t0 diverged: the loss was not finite at step 3"
    assert lines[-1] == "  ... and 5 more; --json lists all"
    assert len(lines) == SHOWN + 2
    assert len(facts["reasons"]) == SHOWN + 5


def test_a_heartbeat_is_of_a_process_that_is_there_and_has_been_heard_of():
    mine = replace(HERE, pid=os.getpid(), host=socket.gethostname())
    assert mine.alive
    assert not replace(mine, beat=time.time() - 1000).alive
    assert not replace(mine, pid=2**22 - 1).alive
    assert replace(HERE, host="elsewhere").alive
    assert not replace(HERE, host="elsewhere", beat=time.time() - 1000).alive


def test_only_what_there_is_is_counted():
    assert counted({"pending": 0, "done": 2, "failed": 1}) == "3 trials: 2 done, 1 failed"
    assert counted({"pending": 0}) == "no trials yet"
