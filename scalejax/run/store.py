"""The ledger of a run: every trial and every measurement, in one SQLite file.

One process writes it (several threads, one lock); any other may read it at the same time. A finished trial and its
measurements are written in one transaction: a trial is there whole or not at all.
"""

import contextlib
import json
import math
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import RunError, SweepError
from scalejax.run.store_file import SCHEMA_VERSION, STATUSES, STOPPED, check, connect, examine, refuse_pipes, upgrade

if TYPE_CHECKING:
    import pandas as pd

READABLE = (2, 3, 4)  # an older one gets what it lacks when it is written to
SILENCE = 60.0  # seconds without a heartbeat after which a process counts as gone
FINAL = ("done", "diverged")  # never trained again; failed trials are
ENDED = (*FINAL, STOPPED, "failed")


@dataclass(frozen=True)
class TrialRow:
    """What is known of a trial before it runs; `knobs` are its size knobs by name."""

    trial_id: str
    family: str
    knobs: Mapping[str, Any]
    params: int
    train_examples: int
    fraction: float
    seed: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    steps: int
    flops: int  # of all its steps


@dataclass(frozen=True)
class ResultRow:
    """What is known of a trial after it has run. Losses and error are those of its best step by validation loss."""

    trial_id: str
    status: str
    reason: str
    steps_taken: int
    train_loss: float | None
    validation_loss: float | None
    test_loss: float | None
    test_error: float | None
    best_step: int | None
    seconds: float
    mode: str
    device: str
    versions: str
    program: str  # digest of what the model computes


@dataclass(frozen=True)
class MeasurementRow:
    """One evaluation along a trial's training."""

    trial_id: str
    step: int
    examples_seen: int
    train_loss: float
    validation_loss: float
    validation_error: float


@dataclass(frozen=True)
class Ended:
    """How a trial has ended, and its validation loss by step, infinite where it was not finite."""

    status: str
    losses: dict[int, float]


@dataclass(frozen=True)
class Heartbeat:
    """The process that writes a ledger, and when it was last heard of; times in seconds since 1970."""

    pid: int
    host: str
    began: float
    beat: float
    eta_seconds: float | None  # None while nothing is known

    @property
    def alive(self) -> bool:
        """Whether it seems to be at work: heard of lately, and there, as far as can be seen from this host."""
        if self.host == socket.gethostname():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except OSError:
                pass  # it is there, and another user's
        return time.time() - self.beat < SILENCE


_RESULT_COLUMNS = [field.name for field in fields(ResultRow) if field.name != "trial_id"]


class Store:
    """The open ledger of one run directory. Use it as a context manager."""

    def __init__(self, path: Path, *, write: bool):
        """Open the ledger at `path`.

        Args:
            path: the SQLite file; made if it is not there and `write` is set.
            write: whether this process writes; at most one may.

        Raises:
            SweepError: there is no ledger to read, or it is of another version, or no ledger at all.
        """
        if not write and not path.is_file():
            raise SweepError(
                f"{path}: there are no results here; give the directory of a run, or start one with `scalejax run`"
            )
        self._path = path
        self._lock = threading.Lock()
        self._writes = write
        refuse_pipes(path)
        with contextlib.ExitStack() as failing:
            try:
                if write and path.exists():
                    examine(path)
                self._connection = connect(path, write=write)
                failing.callback(self._connection.close)
                self._settle(path)
            except sqlite3.OperationalError as error:
                says = f"cannot be opened ({error}); see that it can be {'written' if write else 'read'}"
                raise SweepError(f"{path}: {says}, and that its disk has room") from error
            except sqlite3.DatabaseError as error:
                says = f"not a readable ledger of results ({error}); move it away or give another directory"
                raise SweepError(f"{path}: {says}") from error
            failing.pop_all()

    def _settle(self, path: Path) -> None:
        """Refuse what is no ledger of ours; make the tables of a new one, whole or not at all."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        new = version == 0 and self._connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if new and not self._writes:
            raise SweepError(f"{path}: there are no results here yet; `scalejax run` on the same directory goes on")
        if not new and version not in READABLE:
            raise SweepError(
                f"{path}: written by another program or version of scalejax (schema {version}, this one reads "
                f"{SCHEMA_VERSION}); use that version, or another directory"
            )
        if not self._writes:
            return
        if not new:
            check(self._connection)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing; only a power cut may take the last transactions, whole ones.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA foreign_keys = ON")
        if version != SCHEMA_VERSION:
            upgrade(self._connection, version)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield a transaction, which is written whole or not at all.

        Raises:
            RunError: the file cannot be written, for instance because the disk is full.
        """
        try:
            with self._lock, self._connection as transaction:
                yield transaction
        except sqlite3.IntegrityError:
            raise  # a mistake of the caller
        except sqlite3.DatabaseError as error:
            remedy = "see that the disk has room, then run the same command again: what has been written is kept"
            raise RunError(f"{self._path}: cannot be written ({error}); {remedy}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection.

        Raises:
            SweepError: what is in the file is damaged.
        """
        try:
            with self._lock:
                yield self._connection
        except Exception as error:  # a flipped byte may turn up as anything: a bad page, a word for a number
            remedy = "restore a copy of it, or move it away and run again"
            says = f"damaged ({(str(error).splitlines() or [''])[0] or type(error).__name__})"
            raise SweepError(f"{self._path}: {says}; {remedy}") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A writer leaves one file, which can be copied, and read where nothing can be written."""
        if self._writes:
            with contextlib.suppress(sqlite3.OperationalError):  # somebody reads: then the journal stays beside it
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def plan(self, trials: Sequence[TrialRow]) -> None:
        """Make `trials` the sweep: add the new ones as pending, keep the rows of all others but leave them out.

        What was running when an earlier process ended, or has failed, is pending again.
        """
        with self._writing() as transaction:
            transaction.execute("UPDATE trials SET position = NULL")
            transaction.execute(
                "UPDATE trials SET status = 'pending', reason = '', steps_taken = NULL "
                "WHERE status IN ('pending', 'running', 'failed')"
            )
            transaction.executemany(
                "INSERT INTO trials (position, trial_id, family, knobs, params, train_examples, fraction, seed, "
                "learning_rate, weight_decay, batch_size, steps, flops) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?) "
                # Not part of what a trial is: its place, its share of a pool that the sweep may name differently, and
                # how FLOPs are counted.
                "ON CONFLICT (trial_id) DO UPDATE SET position = excluded.position, fraction = excluded.fraction, "
                "flops = excluded.flops",
                [
                    (
                        position, row.trial_id, row.family, json.dumps(dict(row.knobs)), row.params, row.train_examples,
                        row.fraction, row.seed, row.learning_rate, row.weight_decay, row.batch_size, row.steps,
                        row.flops,
                    )
                    for position, row in enumerate(trials)
                ],
            )  # fmt: skip

    def ended(self, statuses: Sequence[str] = FINAL) -> dict[str, Ended]:
        """Return the trials of the given statuses by id, each with its validation losses."""
        marks = ", ".join("?" * len(statuses))
        query = (
            "SELECT trial_id, status, step, m.validation_loss FROM trials LEFT JOIN measurements m USING (trial_id) "
            f"WHERE status IN ({marks})"
        )
        found: dict[str, Ended] = {}
        with self._reading() as connection:
            for trial_id, status, step, loss in connection.execute(query, tuple(statuses)):
                losses = found.setdefault(trial_id, Ended(status, {})).losses
                if step is not None:
                    losses[int(step)] = math.inf if loss is None else float(loss)
        return found

    def programs(self) -> dict[str, str]:
        """Return the digests of the programs that have trained trials, by id; a ledger before schema 4 has none."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT trial_id, program FROM trials WHERE program IS NOT NULL"))

    def start(self, trial_ids: Sequence[str]) -> None:
        """Mark trials as running."""
        with self._writing() as transaction:
            transaction.executemany(
                "UPDATE trials SET status = 'running' WHERE trial_id = ?", [(one,) for one in trial_ids]
            )

    def finish(self, result: ResultRow, measurements: Sequence[MeasurementRow]) -> None:
        """Write a trial's result and its measurements, all or nothing."""
        values = [_finite(getattr(result, name)) for name in _RESULT_COLUMNS]
        assignments = ", ".join(f"{name} = ?" for name in _RESULT_COLUMNS)
        with self._writing() as transaction:
            transaction.execute(f"UPDATE trials SET {assignments} WHERE trial_id = ?", (*values, result.trial_id))
            transaction.execute("DELETE FROM measurements WHERE trial_id = ?", (result.trial_id,))
            transaction.executemany(
                "INSERT INTO measurements VALUES (?,?,?,?,?,?)",
                [tuple(_finite(getattr(row, each.name)) for each in fields(MeasurementRow)) for row in measurements],
            )

    def beat(self, heartbeat: Heartbeat, steps: Mapping[str, int]) -> None:
        """Write down that the writer is at work, and how many steps each running trial has taken, by id."""
        with self._writing() as transaction:
            transaction.execute("INSERT OR REPLACE INTO heartbeat VALUES (1, ?, ?, ?, ?, ?)", astuple(heartbeat))
            transaction.executemany(
                "UPDATE trials SET steps_taken = ? WHERE trial_id = ? AND status = 'running'",
                [(taken, trial_id) for trial_id, taken in steps.items()],
            )

    def heartbeat(self) -> Heartbeat | None:
        """Return the process that writes, or wrote when it was killed; None if the last one has ended in order."""
        with self._reading() as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'heartbeat'").fetchone():
                return None  # an older version's
            row = connection.execute("SELECT pid, host, began, beat, eta_seconds FROM heartbeat").fetchone()
            if row is None:
                return None
            pid, host, began, beat, eta = row
            return Heartbeat(int(pid), str(host), float(began), float(beat), None if eta is None else float(eta))

    def release(self) -> None:
        """Mark what is still running as pending: the run has ended, in whichever way."""
        with self._writing() as transaction:
            transaction.execute("UPDATE trials SET status = 'pending' WHERE status = 'running'")
            transaction.execute("DELETE FROM heartbeat")

    def counts(self) -> dict[str, int]:
        """Return the number of trials of the sweep in each status."""
        query = "SELECT status, COUNT(*) FROM trials WHERE position IS NOT NULL GROUP BY status"
        with self._reading() as connection:
            found = dict(connection.execute(query).fetchall())
        return {status: found.get(status, 0) for status in STATUSES}

    def left_out(self) -> int:
        """Return the number of finished trials that the sweep as it stands does not ask for."""
        query = f"SELECT COUNT(*) FROM trials WHERE position IS NULL AND status IN ({', '.join('?' * len(FINAL))})"
        with self._reading() as connection:
            return int(connection.execute(query, FINAL).fetchone()[0])

    def results(self) -> "pd.DataFrame":
        """Return the trial table of the sweep, one row a trial in the order of its file.

        Columns: trial_id, family, one a size knob, params, train_examples, fraction, seed, learning_rate,
        weight_decay, batch_size, steps, flops, status, reason, train_loss, validation_loss, test_loss, test_error,
        best_step, seconds, then steps_taken, mode, device, versions and program. What is not known is missing (NaN).
        `flops` are those of training: of the steps that a trial took, or is to take if it has not ended.
        """
        import pandas as pd

        query = "SELECT * FROM trials WHERE position IS NOT NULL ORDER BY position"
        numbers = ("train_loss", "validation_loss", "test_loss", "test_error", "seconds")
        types = dict.fromkeys(numbers, "float64") | dict.fromkeys(("best_step", "steps_taken"), "Int64")
        types |= dict.fromkeys(("fraction", "learning_rate", "weight_decay"), "float64")
        types |= dict.fromkeys(("params", "train_examples", "seed", "batch_size", "steps", "flops"), "int64")
        with self._reading() as connection:
            table = pd.read_sql_query(query, connection)
            ended = table["status"].isin(ENDED)
            taken = table["steps_taken"].astype("Int64").fillna(0).astype("int64")
            table["flops"] = (table["flops"] // table["steps"] * taken).where(ended, table["flops"])
            knobs = [json.loads(text) for text in table.pop("knobs")]
            names = list(dict.fromkeys(name for each in knobs for name in each))
            for place, name in enumerate(names, start=table.columns.tolist().index("params")):
                values = pd.Series([each.get(name) for each in knobs], dtype=object).infer_objects()
                table.insert(place, name, values)
            return table.drop(columns="position").astype(types)

    def measurements(self) -> "pd.DataFrame":
        """Return the measurements along training of the sweep's trials, in the order of its file, then by step."""
        import pandas as pd

        query = (
            "SELECT m.* FROM measurements m JOIN trials t USING (trial_id) "
            "WHERE t.position IS NOT NULL ORDER BY t.position, m.step"
        )
        with self._reading() as connection:
            table = pd.read_sql_query(query, connection)
            return table.astype(dict.fromkeys(("train_loss", "validation_loss", "validation_error"), "float64"))


def _finite(value: Any) -> Any:
    """Return None for a number that is not finite: SQLite has no NaN, and infinities must not enter a mean."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
