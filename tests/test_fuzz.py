"""Mutated sweep files and run directories, in the short form; the long one is `python tests/fuzz.py`."""

import sqlite3
import sys
from pathlib import Path

import fuzz_commands
import fuzz_directories
import fuzz_sweeps
import pytest
from fuzz import mutate_directories, mutate_processes, mutate_sweeps
from fuzz_commands import SMALL, Ran, call
from fuzz_directories import LEDGER, Directories, try_directory
from fuzz_sweeps import Case, try_sweep

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Directories:
    return Directories(tmp_path_factory.mktemp("made"))


def test_mutated_sweep_files_end_in_order(tmp_path: Path):
    tally = mutate_sweeps(tmp_path, 40, elsewhere=True)
    assert not tally.faults, "\n".join(tally.faults)
    assert sum(tally.codes.values()) == 40
    assert min(tally.codes["0"], tally.codes["2"]) >= 5  # some are good all the same


@pytest.mark.slow
def test_mutated_sweep_files_end_in_order_in_processes_of_their_own(tmp_path: Path):
    assert mutate_processes(tmp_path, 1).faults == []


@pytest.mark.slow
def test_mutated_run_directories_end_in_order_and_lose_nothing(made: Directories):
    tally = mutate_directories(made, 10)
    assert not tally.faults, "\n".join(tally.faults)
    assert sum(tally.codes.values()) == 10


def test_what_is_not_mutated_is_good(tmp_path: Path):
    ran, fault = try_sweep(Case(SMALL.encode(), ()), tmp_path)
    assert (ran.code, fault) == (0, "")


@pytest.mark.parametrize("fault", ["a traceback", "a hang", "two sentences"])
def test_faults_are_seen(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch):
    def faulty(_: object) -> int:
        if fault == "a traceback":
            raise ValueError
        while fault == "a hang":
            pass
        print("scalejax plan: one\nscalejax plan: two", file=sys.stderr)
        return 2

    monkeypatch.setattr(fuzz_commands, "scalejax", faulty)
    monkeypatch.setattr(fuzz_sweeps, "LONG_SECONDS", 0.5)
    _, found = try_sweep(Case(b"", ()), tmp_path)
    assert {"a traceback": "exit code", "a hang": "no end after", "two sentences": "not one"}[fault] in found


def test_a_lost_row_is_seen(made: Directories, monkeypatch: pytest.MonkeyPatch):
    def losing(command: str, *rest: object, **more: float) -> Ran:
        ran = call(command, *rest, **more)
        if command == "run":
            with sqlite3.connect(made.folder / "mutated" / LEDGER) as connection:
                connection.execute("DELETE FROM measurements WHERE trial_id = (SELECT trial_id FROM trials LIMIT 1)")
            connection.close()
        return ran

    monkeypatch.setattr(fuzz_directories, "call", losing)
    assert "was lost" in try_directory(made, "finished", [])[1]
