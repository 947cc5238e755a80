"""Real processes that are told to stop, killed, locked out, or find no room: what they say and what they leave."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chaos import wreak
from engine_helpers import EXACT_SOLO, UNOPTIMISED

import scalejax as sx
from scalejax.cli import main
from scalejax.errors import SweepError
from scalejax.run.directory import locked
from scalejax.run.store import Store

SWEEP = """
name = "small"
seeds = 2
[data]
source = "mnist1d"
examples = 400
train_examples = [50, 400]
validation_examples = 100
test_examples = 100
[[models]]
family = "mlp"
width = [4, 8]
depth = 1
[train]
learning_rate = [1e-2]
batch_size = 16
steps = {steps}
evaluate_every = {every}
"""
ENDLESS, SHORT = {"steps": 1_000_000_000, "every": 1_000_000}, {"steps": 120, "every": 20}
STOPPING = """
import os, signal, time
from scalejax.run import watch as run_watch
from scalejax.cli import entry
show, calls = run_watch.Accountant.show, []
def shown(accountant, progress, display):
    show(accountant, progress, display)
    calls.append(progress)
    if len(calls) == {calls}:
        os.kill(os.getpid(), signal.{name})
        time.sleep(1.0)
run_watch.Accountant.show = shown
entry()
"""
STUCK = """
import os, signal, time
from scalejax.cli import entry
from scalejax.execute import pack
from scalejax.execute import scheduler
scheduler.STOP_SECONDS = 1.0
def land(self, call):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
pack.Pack.land = land
entry()
"""
PLAIN = "from scalejax.cli import entry; entry()"
LITTLE_ROOM = """
import resource
from scalejax.cli import entry
resource.setrlimit(resource.RLIMIT_FSIZE, (48 * 1024, resource.RLIM_INFINITY))
entry()
"""
PATIENCE = 120.0


def sweep_file(folder: Path, **changes: int) -> Path:
    path = folder / "sweep.toml"
    path.write_text(SWEEP.format(**changes))
    return path


def process(command: str, *arguments: object, code: str = PLAIN, devices: int = 2) -> "subprocess.Popen[str]":
    """Start `scalejax COMMAND ARGUMENTS`; a run without the page at its end."""
    flags = f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    return subprocess.Popen(
        [sys.executable, "-c", code, command, *map(str, arguments), *(["--no-report"] if command == "run" else [])],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(started: "subprocess.Popen[str]") -> tuple[int, str]:
    """Wait for a process and return its exit code and what it said on standard error."""
    _, err = started.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    return started.returncode, err


def wait_until_it_trains(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if sx.Run(directory).results()["steps_taken"].to_numpy(float, na_value=0).max(initial=0) > 0:
                return
        except SweepError:
            pass
        time.sleep(0.1)
    pytest.fail("it does not train")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Path, "subprocess.Popen[str]"]]:
    """A run that will not end by itself."""
    directory = tmp_path / "run"
    started = process("run", sweep_file(tmp_path, **ENDLESS), "--out", directory)
    with started:  # closes its pipes
        try:
            wait_until_it_trains(directory)
            yield directory, started
        finally:
            started.kill()


def test_a_run_can_be_watched_locks_others_out_and_stops_in_time(running, tmp_path, capsys):
    directory, started = running
    assert main(["status", str(directory)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("8 trials: 8 running\n")
    assert f"process {started.pid} on {socket.gethostname()}, " in out
    assert " ETA " in out
    assert out.count(" running, step ") == 8

    assert main(["run", str(tmp_path / "sweep.toml"), "--out", str(directory)]) == 2
    err = capsys.readouterr().err
    assert f"process {started.pid} on {socket.gethostname()}, since " in err
    assert len(err.splitlines()) == 1

    began = time.monotonic()
    started.send_signal(signal.SIGTERM)
    code, err = said(started)
    assert time.monotonic() - began < 10
    assert code == 128 + signal.SIGTERM
    assert "what was running is saved" in err.splitlines()[-1]
    assert main(["status", str(directory)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("8 trials: 8 pending\ninterrupted; ")
    assert out.count(" begun, step ") == 8


def test_a_run_that_was_killed_is_seen_to_be_gone_and_its_lock_is_free(running, capsys):
    directory, started = running
    with pytest.raises(SweepError, match=f"process {started.pid} "), locked(directory):
        pass
    started.kill()
    started.wait()
    assert main(["status", str(directory)]) == 0
    assert f"process {started.pid} on {socket.gethostname()} is gone" in capsys.readouterr().out
    with locked(directory):
        assert (directory / ".lock").exists()
    assert not (directory / ".lock").exists()


def test_a_second_interrupt_ends_at_once(running):
    _, started = running
    started.send_signal(signal.SIGSTOP)  # so that both arrive before it has had time to stop
    started.send_signal(signal.SIGINT)
    started.send_signal(signal.SIGTERM)
    started.send_signal(signal.SIGCONT)
    began = time.monotonic()
    code, _ = said(started)
    assert code in (-signal.SIGINT, -signal.SIGTERM)
    assert time.monotonic() - began < 2


def test_a_stop_that_cannot_save_says_what_is_lost_and_does_not_say_that_it_is_saved(tmp_path):
    began = time.monotonic()
    code, err = said(process("run", sweep_file(tmp_path, **ENDLESS), "--out", tmp_path / "run", code=STUCK))
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 50  # the call that never comes back is not waited for
    says = err.splitlines()[-1]
    assert "interrupted; finished trials are kept, 8 trials are not saved since their beginning" in says
    assert " saved" not in err.replace("not saved", "")
    assert not list((tmp_path / "run").glob("checkpoints/*/*"))


def table(directory: Path) -> pd.DataFrame:
    return sx.Run(directory).results().drop(columns="seconds")


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1)])
def test_a_run_resumes_with_another_number_of_devices(tmp_path, first, then):
    path, directory = sweep_file(tmp_path, **SHORT), tmp_path / "run"
    stopping = STOPPING.format(calls=3, name="SIGINT")
    code, _ = said(process("run", path, "--out", directory, code=stopping, devices=first))
    assert code == 128 + signal.SIGINT
    assert 0 < table(directory)["steps_taken"].to_numpy(float, na_value=0).max() < 120
    assert said(process("run", path, "--out", directory, devices=then))[0] == 0
    whole = tmp_path / "whole"
    assert said(process("run", path, "--out", whole, devices=then))[0] == 0
    found, expected = table(directory), table(whole)
    assert found["trial_id"].tolist() == expected["trial_id"].tolist()
    assert set(found["status"]) == {"done"}
    np.testing.assert_allclose(found["validation_loss"], expected["validation_loss"], rtol=EXACT_SOLO)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_cleanly_and_it_resumes_when_there_is_room(tmp_path):
    path, directory = sweep_file(tmp_path, **SHORT), tmp_path / "run"

    warm = tmp_path / "warm"  # programs and data are in the cache then, and only the directory is written
    assert said(process("run", path, "--out", warm))[0] == 0
    code, err = said(process("run", path, "--out", directory, "--checkpoint-seconds", "0", code=LITTLE_ROOM))
    assert code == 1
    (says,) = [line for line in err.splitlines() if line.startswith("scalejax run: ")]
    assert "see that the disk has room" in says
    assert said(process("run", path, "--out", directory))[0] == 0
    assert table(directory).equals(table(warm))


def test_a_full_ledger_is_a_sentence(tmp_path, monkeypatch, capsys):
    settle = Store._settle

    def settle_small(store: Store, path: Path) -> None:
        settle(store, path)
        pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
        store._connection.execute(f"PRAGMA max_page_count = {pages}")

    path, directory = sweep_file(tmp_path, **SHORT), tmp_path / "run"
    monkeypatch.setattr(Store, "_settle", settle_small)
    assert main(["run", str(path), "--out", str(directory), "--set", "seeds=40"]) == 1
    (says,) = capsys.readouterr().err.splitlines()
    assert "database or disk is full" in says
    assert "see that the disk has room" in says
    monkeypatch.undo()
    assert main(["run", str(path), "--out", str(directory)]) == 0


@pytest.mark.slow
def test_a_few_kills_leave_what_an_untouched_run_leaves(tmp_path):
    overrides = ("seeds=1", "data.train_examples=[20, 600]", "train.steps=2400", "data.test_examples=2000")
    toll = wreak(tmp_path, 5, overrides=overrides, seed=1, report=lambda _: None)
    assert toll.total == 5
