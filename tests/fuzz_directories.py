"""Mutated run directories: files cut, flipped, removed or replaced; then looked at and run."""

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fuzz_commands import LONG_SECONDS, SMALL, Ran, call
from hypothesis import strategies as st

from scalejax.run.store import Heartbeat, Store
from scalejax.run.watch import Accountant

LEDGER = "results.sqlite"
JUNK = (
    *(b"", b"\x00" * 5000, b"mine " * 1000, b"[]", b"null", b"{}", b'{"modes": []}', b'{"modes": {"a": ["vmap"]}}'),
    *(b'{"modes": 3}', b"[" * 100_000, b"NaN", b"\xff\xfe", b"SQLite format 3\x00", b"1" * 10_000, b"SQLite format 3"),
)
STATEMENTS = (
    *("PRAGMA user_version = 99", "PRAGMA user_version = 0", "PRAGMA user_version = -1", "PRAGMA user_version = 2"),
    *("DROP TABLE measurements", "DROP TABLE heartbeat", "ALTER TABLE trials RENAME COLUMN reason TO reasons"),
    *("UPDATE trials SET steps_taken = 'x'", "UPDATE trials SET knobs = '{'", "UPDATE trials SET knobs = '[1]'"),
    *("UPDATE trials SET learning_rate = 'abc'", "UPDATE trials SET params = 'many'"),
    *("UPDATE trials SET validation_loss = NULL", "UPDATE trials SET test_metric = 9e999"),
    *("UPDATE trials SET position = 'x'", "UPDATE trials SET position = 0", "UPDATE trials SET reason = x'ff00'"),
    *("UPDATE trials SET knobs = '{\"status\": 1}'", "UPDATE trials SET trial_id = trial_id || 'x'"),
    *("UPDATE trials SET train_examples = 0", "UPDATE trials SET family = ''", "DELETE FROM trials"),
    *("UPDATE trials SET best_step = 1.5", "UPDATE trials SET seconds = 'x'", "UPDATE trials SET status = 'running'"),
    *("UPDATE measurements SET validation_loss = 'x'", "UPDATE measurements SET step = step + 0.5", "VACUUM"),
    *("INSERT INTO heartbeat VALUES (1, 'x', 2, 'y', 'z', NULL)", "UPDATE trials SET steps = x'00'"),
    *("INSERT INTO heartbeat VALUES (1, -1, 'h', 0, 9e99, 1e300)", "UPDATE trials SET train_examples = 'few'"),
    *("INSERT INTO heartbeat VALUES (1, 99999999999999, 'h', -1e300, 1e300, 0)", "CREATE TABLE mine (a)"),
    *("UPDATE trials SET metric = x'ff00'", "UPDATE trials SET metric = 'RMSE'", "UPDATE trials SET metric = NULL"),
)  # fmt: skip
ACTIONS = ("cut", "flip", "empty", "remove", "junk", "folder", "loop", "append", "blank", "swap")
PLACES = ("ledger", "ledger", "environment.json", "sweep.toml", "checkpoints", "checkpoints", "figures", "new")
NEW = (
    *(".lock", ".sweep.toml.partial", ".environment.json.partial", "checkpoints", "checkpoints/x", "checkpoints/1-x"),
    *("checkpoints/99999999999999999999-y/1", "checkpoints/0001-001-abc/9/sha256", "figures", "figures/x", "mine"),
    *("figures/learning_curves.png", "results.sqlite-journal", "results.sqlite-wal", "results.sqlite-shm"),
)


@dataclass(frozen=True)
class Mutation:
    """What is done to one file or folder of a run directory; `draws` choose among them and where in it."""

    place: str
    action: str
    draws: tuple[int, ...]

    @property
    def of_the_ledger(self) -> bool:
        """Whether the results themselves are touched."""
        return self.place == "ledger" or (self.place == "new" and NEW[self.draws[0] % len(NEW)].startswith(LEDGER))

    def apply(self, directory: Path) -> None:
        """Carry it out."""
        if self.place == "ledger" and self.draws[0] % 3 == 0:
            with contextlib.suppress(sqlite3.DatabaseError, OSError):
                connection = sqlite3.connect(directory / LEDGER)
                with contextlib.closing(connection), connection:
                    connection.execute(STATEMENTS[self.draws[1] % len(STATEMENTS)])
            return
        path = self._path(directory)
        if path is None:
            return
        content = path.read_bytes() if path.is_file() else b""
        at = self.draws[1] % max(1, len(content))
        match self.action:
            case "cut":
                _put(path, content[:at])
            case "flip":
                flipped = bytearray(content)
                for draw in self.draws[1:] if content else ():
                    flipped[draw % len(content)] ^= 1 + draw % 255
                _put(path, bytes(flipped))
            case "empty":
                _put(path, b"")
            case "remove":
                _clear(path)
            case "junk":
                _put(path, JUNK[at % len(JUNK)])
            case "append":
                _put(path, content + JUNK[at % len(JUNK)])
            case "blank":
                _put(path, content[:at] + b"\x00" * len(content[at : at + 512]) + content[at + 512 :])
            case "swap":
                others = [each for each in sorted(directory.rglob("*")) if each.is_file()]
                _put(path, others[at % len(others)].read_bytes() if others else b"")
            case _:
                _clear(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                {"folder": Path.mkdir, "loop": lambda it: it.symlink_to(it)}[self.action](path)

    def _path(self, directory: Path) -> Path | None:
        """Return the file or the folder that is meant."""
        number = self.draws[0] // 3
        if self.place == "new":
            return directory / NEW[self.draws[0] % len(NEW)]
        if self.place == "ledger":
            found = [each for each in sorted(directory.iterdir()) if each.name.startswith(LEDGER)]
        elif "." in self.place:
            return directory / self.place
        else:
            found = [directory / self.place, *sorted((directory / self.place).rglob("*"))]
        return found[number % len(found)] if found else None


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _put(path: Path, content: bytes) -> None:
    for parent in reversed(path.parents):
        if os.path.lexists(parent) and not parent.is_dir():
            return  # an earlier mutation has put something else there
    _clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def mutations() -> st.SearchStrategy[tuple[str, list[Mutation]]]:
    """Return a strategy for a kind of directory and what is done to it."""
    draws = st.lists(st.integers(0, 2**31), min_size=2, max_size=6).map(tuple)
    one = st.builds(Mutation, st.sampled_from(PLACES), st.sampled_from(ACTIONS), draws)
    kinds = st.sampled_from(("finished", "interrupted", "interrupted", "killed"))
    return st.tuples(kinds, st.lists(one, min_size=1, max_size=3))


class Directories:
    """Directories to mutate, each made once: of a run that ended, that was interrupted, and that was killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sweep = folder / "small.toml"
        self.sweep.write_text(SMALL)
        self.expected = self._train("finished", stop_after=None)
        self._train("interrupted", stop_after=18)
        killed = shutil.copytree(folder / "interrupted", folder / "open")
        with Store(killed / LEDGER, write=True) as store:  # as a kill leaves it: what is new is in the journal alone
            results = store.results()
            store.start(results.loc[results["status"] == "pending", "trial_id"].tolist()[:3])
            store.beat(Heartbeat(2**22 + 1, socket.gethostname(), 1.0, 2.0, 3.0), {})
            shutil.copytree(killed, folder / "killed")
        assert (folder / "killed" / f"{LEDGER}-wal").stat().st_size
        assert list((folder / "killed" / "checkpoints").glob("*/*/sha256"))

    def _train(self, name: str, *, stop_after: int | None) -> dict[str, tuple]:
        calls = itertools.count(1)
        show = Accountant.show

        def counting(accountant: Accountant, *rest: Any) -> None:
            show(accountant, *rest)
            if next(calls) == stop_after:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.0)  # the main thread receives it, and this one would soon have finished

        directory = self.folder / name
        with mock.patch.object(Accountant, "show", counting):
            ran = call(
                "run", self.sweep, "--out", directory, "--checkpoint-seconds", 0, "--no-report", seconds=LONG_SECONDS
            )
        assert ran.code == (0 if stop_after is None else 130), ran
        rows = final_rows(directory)
        assert (len(rows) == 24) == (stop_after is None), "the directory is not what it should be"
        return rows


def final_rows(directory: Path) -> dict[str, tuple]:
    """Return what can be read of the trials that have ended and their measurements, by id; looks at a copy."""
    rows: dict[str, tuple] = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal", "-shm"):
            path = directory / f"{LEDGER}{suffix}"
            if path.is_file():
                shutil.copy(path, folder)
        with contextlib.suppress(sqlite3.Error, OSError):
            connection = sqlite3.connect(Path(folder) / LEDGER)
            connection.text_factory = bytes
            with contextlib.closing(connection):
                query = "SELECT trial_id, * FROM trials WHERE status IN ('done', 'diverged')"
                for trial_id, *row in connection.execute(query):
                    rows[trial_id] = tuple(each for number, each in enumerate(row) if number not in (1, 6))
                for trial_id in rows:
                    query = "SELECT * FROM measurements WHERE trial_id = CAST(? AS TEXT) ORDER BY step"
                    rows[trial_id] += tuple(connection.execute(query, (trial_id,)))
    return rows


def contents(directory: Path) -> tuple[bytes | None, ...]:
    """Return the ledger's bytes and its journal's."""
    paths = [directory / f"{LEDGER}{suffix}" for suffix in ("", "-wal")]
    return tuple(path.read_bytes() if path.is_file() else None for path in paths)


def try_directory(made: Directories, kind: str, changes: Sequence[Mutation]) -> tuple[str, str]:
    """Ask for the status and the export of a mutated directory, then run it; return how it ended and what is wrong."""
    directory = made.folder / "mutated"
    _clear(directory)
    shutil.copytree(made.folder / kind, directory)
    for change in changes:
        change.apply(directory)
    touched = any(change.of_the_ledger for change in changes)
    before, rows = contents(directory), final_rows(directory)
    for command in (("status",), ("status", "--json"), ("export",), ("export", "--measurements")):
        ran = call(*command, directory)
        fault = ran.fault or ("refused" if ran.code and not touched else "")
        if not fault and contents(directory)[0] != before[0]:
            fault = "the ledger was changed"
        if fault:
            return str(ran.code), f"{' '.join(command)}: {fault}\n{ran.err}"
    ran = call("run", made.sweep, "--out", directory, "--no-report", seconds=LONG_SECONDS)
    return str(ran.code), (ran.fault and f"run: {ran.fault}\n{ran.err}") or _lost(
        ran, made, directory, before, rows, touched
    )


def _lost(
    ran: Ran,
    made: Directories,
    directory: Path,
    before: tuple[bytes | None, ...],
    rows: dict[str, tuple],
    touched: bool,
) -> str:
    """Say what a run has lost or trained again, empty if nothing."""
    after = final_rows(directory)
    if touched and "not a readable ledger" in ran.err and contents(directory) != before:
        return f"run: refused, but the ledger was changed\n{ran.err}"
    if any(after.get(trial_id) != row for trial_id, row in rows.items()):
        return f"run: a finished trial was lost or trained again\n{ran.err}"
    if ran.code == 0:
        counts = json.loads(call("status", directory, "--json").out)["trials"]
        if counts["done"] != 24 or sum(counts.values()) != 24:
            return f"run: not all trials are done: {counts}"
        if not touched and after.keys() != made.expected.keys():
            return "run: other trials than in an untouched run"
    return ""
