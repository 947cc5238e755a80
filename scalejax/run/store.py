"""The ledger of a run: every trial and every measurement, in one SQLite file.

One process writes it (several threads, one lock); any other may read it at the same time. A finished trial and its
measurements are written in one transaction: a trial is there whole or not at all.

The fields of `TrialRow`, `ResultRow`, `MeasurementRow`, `SessionRow` and `SpanRow` declare the columns of the tables. A
field's type gives the column's type in SQLite and in pandas; its metadata add what SQLite must know besides.
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
from dataclasses import Field, astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from scalejax.errors import NoResultsError, RunError, SweepError
from scalejax.status import ENDED, FINAL, Status
from scalejax.text import first_line

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 7
OLDEST_VERSION = 2  # an older ledger than this is not read
SILENCE = 60.0  # seconds without a heartbeat after which a process counts as gone


def _is(*statuses: Status) -> str:
    """Return the condition in SQL that a trial has one of some statuses."""
    return f"status IN ({', '.join(map(repr, map(str, statuses)))})"


@dataclass(frozen=True)
class TrialRow:
    """What is known of a trial before it runs; `knobs` are its size knobs by name."""

    trial_id: str = field(metadata={"sql": "TEXT PRIMARY KEY"})
    family: str
    knobs: Mapping[str, Any] = field(metadata={"sql": "TEXT NOT NULL"})  # JSON; in the table a column each
    params: int
    train_examples: int
    fraction: float
    seed: int
    learning_rate: float | None  # None, as the next two: of an algorithm that has none
    weight_decay: float | None
    batch_size: int | None
    steps: int
    flops: int  # of all its steps
    hyperparameters: str | None = None  # what else is chosen for it, such as "b2=0.95"


@dataclass(frozen=True)
class ResultRow:
    """What is known of a trial after it has run. Losses and metric are those of its best step by validation loss."""

    trial_id: str
    status: Status = field(metadata={"sql": f"TEXT NOT NULL DEFAULT '{Status.PENDING}' CHECK ({_is(*Status)})"})
    reason: str = field(metadata={"sql": "TEXT NOT NULL DEFAULT ''"})
    train_loss: float | None
    validation_loss: float | None
    test_loss: float | None
    best_step: int | None
    seconds: float
    steps_taken: int
    mode: str
    device: str
    versions: str
    program: str  # digest of what the model computes
    test_metric: float | None
    metric: str  # its name as it is shown, such as "error"


@dataclass(frozen=True)
class MeasurementRow:
    """One evaluation along a trial's training."""

    trial_id: str = field(metadata={"sql": "TEXT NOT NULL REFERENCES trials"})
    step: int
    examples_seen: int
    train_loss: float | None
    validation_loss: float | None
    validation_metric: float | None


@dataclass(frozen=True)
class SessionRow:
    """One process that trained here, what it had, and what its plan said. Times are in seconds since 1970.

    The FLOPs are those of the whole plan, also where an earlier session has done a part of it.
    """

    session: int  # from 1 on
    began: float
    ended: float | None  # None while it runs
    host: str
    device: str
    devices: int
    groups: int  # of devices, that work on different buckets
    peak_flops: float | None  # FLOP/s of matrix products on all devices together, where they are known
    forecast_seconds: float | None  # of wall time, for what this session had to train
    plan_useful_flops: float
    plan_padding_flops: float
    plan_idle_flops: float


@dataclass(frozen=True)
class SpanRow:
    """A trial in a lane, from its first call there to its last; or in a process on host cores."""

    session: int
    span: int  # numbered in each session
    trial_id: str = field(metadata={"sql": "TEXT NOT NULL REFERENCES trials"})
    pack: int  # numbered in each session: a pack is the lanes of a bucket on a group of devices
    group: str = field(metadata={"sql": "TEXT NOT NULL", "name": '"group"'})  # of devices, such as "cpu 0-3"; or HOST
    bucket: str  # the sizes that share the program
    lanes: int  # of the pack
    lane: int  # from 0 on
    began: float  # in seconds since 1970
    ended: float | None  # None while the trial is in its lane
    steps: int  # that it took there
    step_flops: int  # of one of its steps in this program, padding included
    outcome: str  # why it left: the status with which it ended, or a word of `Leaving`; empty while it is there


@dataclass(frozen=True)
class Recorded:
    """What is new of a session and its spans: rows that replace those of the same numbers."""

    session: SessionRow | None = None
    spans: Sequence[SpanRow] = ()


NOTHING_NEW = Recorded()
HOST = "host"  # the group of processes on host cores, whose lanes they are
INTERRUPTED = "interrupted"  # why a trial left its lane whose run was killed
Columns = Sequence["Field[Any]"]
SESSION, SPAN = fields(SessionRow), fields(SpanRow)
PLANNED, MEASURED = fields(TrialRow), fields(MeasurementRow)
RESULTS = fields(ResultRow)[1:]  # known once a trial has run, so missing before
ERROR = "error"  # the metric that has a column of its own, as it had before there were others
# Names that a knob may not have: those of the trial table, in which every knob has a column, and of the ledger.
TRIAL_COLUMNS = (*(column.name for column in (*PLANNED, *RESULTS)), "position", "test_error")


def _names(columns: Columns, prefix: str = "") -> str:
    return ", ".join(f"{prefix}{column.metadata.get('name', column.name)}" for column in columns)


def _type(column: "Field[Any]") -> Any:
    """Return the type of a column's values where they are known."""
    return next(iter(get_args(column.type)), column.type)


def _sql(columns: Columns, *, known: bool) -> str:
    """Return columns as SQL declares them; `known`: whether each row has them, unless its type says otherwise."""
    types = {str: "TEXT", int: "INTEGER", float: "REAL"}
    return ", ".join(
        f"{column.metadata.get('name', column.name)} {column.metadata.get('sql') or types[_type(column)]}"
        + (" NOT NULL" if known and "sql" not in column.metadata and not get_args(column.type) else "")
        for column in columns
    )


def _dtypes(columns: Columns, *, known: bool) -> dict[str, str]:
    """Return the pandas types of the columns of numbers."""
    types = {int: "int64" if known else "Int64", float: "float64"}
    return {
        column.name: "Int64" if kind is int and get_args(column.type) else types[kind]
        for column in columns
        if (kind := _type(column)) in types
    }


# A trial's position is that in the sweep as it stands; NULL if only an earlier form of the sweep asked for it.
TRIALS = (
    f"{_sql(PLANNED[:1], known=True)}, position INTEGER, {_sql(PLANNED[1:], known=True)}, {_sql(RESULTS, known=False)}"
)
OLDER = ", ".join(name for name in (_names(PLANNED[:-1]), "position", _names(RESULTS)))  # columns of version 5
TABLES = f"""
CREATE TABLE IF NOT EXISTS trials ({TRIALS});
CREATE TABLE IF NOT EXISTS measurements ({_sql(MEASURED, known=True)}, PRIMARY KEY (trial_id, step)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heartbeat (
    only INTEGER PRIMARY KEY CHECK (only = 1), pid INTEGER NOT NULL, host TEXT NOT NULL, began REAL NOT NULL,
    beat REAL NOT NULL, eta_seconds REAL
);
CREATE TABLE IF NOT EXISTS sessions ({_sql(SESSION, known=True)}, PRIMARY KEY (session));
CREATE TABLE IF NOT EXISTS spans ({_sql(SPAN, known=True)}, PRIMARY KEY (session, span)) WITHOUT ROWID;
"""
# What brings a ledger of the version before to each version. The heartbeats of version 3, and the sessions and spans of
# version 7, are tables of their own.
UPGRADES = {
    4: "ALTER TABLE trials ADD COLUMN program TEXT;",
    5: f"""
    ALTER TABLE trials RENAME COLUMN test_error TO test_metric;
    ALTER TABLE trials ADD COLUMN metric TEXT;
    UPDATE trials SET metric = '{ERROR}' WHERE {_is(*ENDED)};
    ALTER TABLE measurements RENAME COLUMN validation_error TO validation_metric;
    """,
    # SQLite can let a column be missing only in a new table.
    6: f"""
    CREATE TABLE trials_6 ({TRIALS});
    INSERT INTO trials_6 ({OLDER}) SELECT {OLDER} FROM trials;
    DROP TABLE trials;
    ALTER TABLE trials_6 RENAME TO trials;
    """,
}


@dataclass(frozen=True)
class Ended:
    """How a trial has ended, and its validation loss by step, infinite where it was not finite."""

    status: Status
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
        """Whether it seems to be running: heard of lately and, if it is on this host, still there."""
        if self.host == socket.gethostname():
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except OSError:
                pass  # it is there, and another user's
        return time.time() - self.beat < SILENCE


class Store:
    """The open ledger of one run directory. Use it as a context manager."""

    def __init__(self, path: Path, *, write: bool):
        """Open the ledger at `path`.

        Args:
            path: the SQLite file; made if it is not there and `write` is set.
            write: whether this process writes; at most one may. An older ledger is upgraded then; otherwise it is read
                from an upgraded copy in memory.

        Raises:
            SweepError: there is no ledger to read, or it is of another version, damaged, or no ledger at all.
        """
        if not write and not path.is_file():
            raise NoResultsError(
                f"{path}: there are no results here; give the directory of a run, or start one with `scalejax run`"
            )
        if path.exists() and not path.is_file():
            raise SweepError(f"{path}: this is no regular file; move it away or give another directory")
        self._path = path
        self._lock = threading.Lock()
        self._writes = write
        with contextlib.ExitStack() as failing:
            try:
                if write and path.exists():
                    # Before it is opened for writing, which would already change a damaged file. If a journal has to
                    # be rolled back first, this fails, and it is checked once more after that.
                    with (
                        contextlib.closing(_connect(path, write=False)) as connection,
                        contextlib.suppress(sqlite3.OperationalError),
                    ):
                        _check(connection)
                self._connection = _connect(path, write=write)
                failing.callback(lambda: self._connection.close())
                self._settle(path)
            except sqlite3.OperationalError as error:
                problem = f"cannot be opened ({error}); see that it can be {'written' if write else 'read'}"
                raise SweepError(f"{path}: {problem}, and that its disk has room") from error
            except sqlite3.DatabaseError as error:
                problem = f"not a readable ledger of results ({error}); move it away or give another directory"
                raise SweepError(f"{path}: {problem}") from error
            failing.pop_all()

    def _settle(self, path: Path) -> None:
        """Refuse what is no ledger of ours; make the tables of a new one, whole or not at all."""
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        new = version == 0 and self._connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if new and not self._writes:
            raise NoResultsError(f"{path}: there are no results here yet; `scalejax run` on the same directory resumes")
        if not new and not OLDEST_VERSION <= version <= SCHEMA_VERSION:
            raise SweepError(
                f"{path}: written by another program or version of scalejax (schema {version}, this one reads "
                f"{OLDEST_VERSION} to {SCHEMA_VERSION}); use that version, or another directory"
            )
        if self._writes:
            if not new:
                _check(self._connection)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A killed process loses nothing; only a power cut may take the last transactions, whole ones.
            self._connection.execute("PRAGMA synchronous = NORMAL")
        elif version != SCHEMA_VERSION:
            with contextlib.closing(self._connection) as file:
                self._connection = sqlite3.connect(":memory:", check_same_thread=False)
                file.backup(self._connection)
        if version != SCHEMA_VERSION:
            steps = "" if new else "".join(sql for number, sql in UPGRADES.items() if number > version)
            self._connection.executescript(f"BEGIN; {TABLES} {steps} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        if self._writes:  # from now on: an upgrade may drop a table and make it anew
            self._connection.execute("PRAGMA foreign_keys = ON")

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
            raise SweepError(f"{self._path}: damaged ({first_line(error)}); {remedy}") from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. A writer leaves one file, which can be copied, and read where nothing can be written."""
        if self._writes:
            with contextlib.suppress(sqlite3.OperationalError):  # another process reads: the journal stays beside it
                self._connection.execute("PRAGMA busy_timeout = 0")
                self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()

    def plan(self, trials: Sequence[TrialRow]) -> None:
        """Make `trials` the sweep: add the new ones as pending, keep the rows of all others but leave them out.

        What was running when an earlier process ended, or has failed, is pending again. If that process was killed, its
        session and the spans of its trials end with its last heartbeat.
        """
        with self._writing() as transaction:
            last = "ended = max(began, coalesce((SELECT beat FROM heartbeat), began))"
            transaction.execute(f"UPDATE sessions SET {last} WHERE ended IS NULL")
            # A heartbeat has the steps of a trial, not those of its span.
            reached = "(SELECT steps_taken FROM trials WHERE trials.trial_id = spans.trial_id)"
            before = "SELECT sum(steps) FROM spans past WHERE past.trial_id = spans.trial_id AND past.ended NOT NULL"
            steps = f"max(0, coalesce({reached}, 0) - coalesce(({before}), 0))"
            transaction.execute(
                f"UPDATE spans SET {last}, steps = {steps}, outcome = '{INTERRUPTED}' WHERE ended IS NULL"
            )
            transaction.execute("UPDATE trials SET position = NULL")
            unfinished = _is(Status.PENDING, Status.RUNNING, Status.FAILED)
            transaction.execute(
                f"UPDATE trials SET status = '{Status.PENDING}', reason = '', steps_taken = NULL WHERE {unfinished}"
            )
            transaction.executemany(
                f"INSERT INTO trials (position, {_names(PLANNED)}) VALUES (?{', ?' * len(PLANNED)}) "
                # Not part of what a trial is: its place, its share of a pool that the sweep may name differently, how
                # FLOPs are counted, and whether the sweep calls its features by a name.
                "ON CONFLICT (trial_id) DO UPDATE SET position = excluded.position, fraction = excluded.fraction, "
                "flops = excluded.flops, knobs = excluded.knobs",
                [(position, *_values(row, PLANNED)) for position, row in enumerate(trials)],
            )

    def ended(self, statuses: Sequence[Status] = FINAL) -> dict[str, Ended]:
        """Return the trials of the given statuses by id, each with its validation losses."""
        query = (
            "SELECT trial_id, status, step, m.validation_loss FROM trials LEFT JOIN measurements m USING (trial_id) "
            f"WHERE {_is(*statuses)}"
        )
        ended: dict[str, Ended] = {}
        with self._reading() as connection:
            for trial_id, status, step, loss in connection.execute(query):
                losses = ended.setdefault(trial_id, Ended(Status(status), {})).losses
                if step is not None:
                    losses[int(step)] = math.inf if loss is None else float(loss)
        return ended

    def programs(self) -> dict[str, str]:
        """Return the digests of the programs that have trained trials, by id; those of schemas before 4 have none."""
        with self._reading() as connection:
            return dict(connection.execute("SELECT trial_id, program FROM trials WHERE program IS NOT NULL"))

    def start(self, trial_ids: Sequence[str]) -> None:
        """Mark trials as running."""
        with self._writing() as transaction:
            transaction.executemany(
                f"UPDATE trials SET status = '{Status.RUNNING}' WHERE trial_id = ?",
                [(trial_id,) for trial_id in trial_ids],
            )

    def finish(self, result: ResultRow, measurements: Sequence[MeasurementRow]) -> None:
        """Write a trial's result and its measurements, all or nothing."""
        with self._writing() as transaction:
            transaction.execute(
                f"UPDATE trials SET ({_names(RESULTS)}) = (?{', ?' * (len(RESULTS) - 1)}) WHERE trial_id = ?",
                (*_values(result, RESULTS), result.trial_id),
            )
            transaction.execute("DELETE FROM measurements WHERE trial_id = ?", (result.trial_id,))
            transaction.executemany(
                f"INSERT INTO measurements ({_names(MEASURED)}) VALUES (?{', ?' * (len(MEASURED) - 1)})",
                [_values(row, MEASURED) for row in measurements],
            )

    def beat(self, heartbeat: Heartbeat, steps: Mapping[str, int], recorded: Recorded = NOTHING_NEW) -> None:
        """Write down that the writer runs, how many steps each running trial has taken, by id, and what it recorded."""
        with self._writing() as transaction:
            transaction.execute("INSERT OR REPLACE INTO heartbeat VALUES (1, ?, ?, ?, ?, ?)", astuple(heartbeat))
            transaction.executemany(
                f"UPDATE trials SET steps_taken = ? WHERE trial_id = ? AND status = '{Status.RUNNING}'",
                [(taken, trial_id) for trial_id, taken in steps.items()],
            )
            session = [] if recorded.session is None else [recorded.session]
            for table, columns, rows in (("sessions", SESSION, session), ("spans", SPAN, recorded.spans)):
                transaction.executemany(
                    f"INSERT OR REPLACE INTO {table} ({_names(columns)}) VALUES (?{', ?' * (len(columns) - 1)})",
                    [_values(row, columns) for row in rows],
                )

    def last_ended(self, count: int) -> list[str]:
        """Return the ids of the trials of the sweep that have ended last, the latest first."""
        query = (
            f"SELECT trial_id FROM spans JOIN trials USING (trial_id) WHERE position IS NOT NULL AND {_is(*ENDED)} "
            "GROUP BY trial_id ORDER BY max(ended) DESC, max(span) DESC LIMIT ?"
        )
        with self._reading() as connection:
            return [str(trial_id) for (trial_id,) in connection.execute(query, (count,))]

    def next_session(self) -> int:
        """Return the number of the session that begins."""
        with self._reading() as connection:
            return int(connection.execute("SELECT coalesce(max(session), 0) + 1 FROM sessions").fetchone()[0])

    def heartbeat(self) -> Heartbeat | None:
        """Return the process that writes, or wrote when it was killed; None if the last one ended cleanly."""
        with self._reading() as connection:
            row = connection.execute("SELECT pid, host, began, beat, eta_seconds FROM heartbeat").fetchone()
            if row is None:
                return None
            pid, host, began, beat, eta = row
            return Heartbeat(int(pid), str(host), float(began), float(beat), None if eta is None else float(eta))

    def release(self) -> None:
        """Mark what is still running as pending: the run has ended, in whichever way."""
        with self._writing() as transaction:
            transaction.execute(f"UPDATE trials SET status = '{Status.PENDING}' WHERE status = '{Status.RUNNING}'")
            transaction.execute("DELETE FROM heartbeat")

    def counts(self) -> dict[str, int]:
        """Return the number of trials of the sweep in each status."""
        query = "SELECT status, COUNT(*) FROM trials WHERE position IS NOT NULL GROUP BY status"
        with self._reading() as connection:
            counts = dict(connection.execute(query).fetchall())
        return {status.value: counts.get(status, 0) for status in Status}

    def left_out(self) -> int:
        """Return the number of finished trials that the sweep as it stands does not ask for."""
        query = f"SELECT COUNT(*) FROM trials WHERE position IS NULL AND {_is(*FINAL)}"
        with self._reading() as connection:
            return int(connection.execute(query).fetchone()[0])

    def trial_ids(self) -> list[str]:
        """Return the ids of all trials, also of those that the sweep as it stands does not ask for."""
        with self._reading() as connection:
            return [str(trial_id) for (trial_id,) in connection.execute("SELECT trial_id FROM trials")]

    def standing(self, trial_id: str) -> tuple[str, Status] | None:
        """Return the family and the status of a trial, also of one that the sweep does not ask for; None if unknown."""
        with self._reading() as connection:
            query = "SELECT family, status FROM trials WHERE trial_id = ?"
            row = connection.execute(query, (trial_id,)).fetchone()
            return None if row is None else (str(row[0]), Status(row[1]))

    def results(self, only: Sequence[str] | None = None) -> "pd.DataFrame":
        """Return the trial table of the sweep, one row a trial in the order of its file; or the rows of some trials.

        Its columns are the fields of `TrialRow` and `ResultRow`, with one for each size knob in the place of `knobs`.
        Behind test_loss stands test_error, the test_metric where that is an error. What is not known is missing (NaN).
        `flops` are those of training: of the steps that a trial took, or is to take if it has not ended.
        """
        import pandas as pd

        some = "" if only is None else " AND trial_id IN (SELECT value FROM json_each(?))"
        query = f"SELECT {_names((*PLANNED, *RESULTS))} FROM trials WHERE position IS NOT NULL{some} ORDER BY position"
        types = _dtypes(PLANNED, known=True) | _dtypes(RESULTS, known=False)
        with self._reading() as connection:
            table = pd.read_sql_query(query, connection, params=None if only is None else [json.dumps(list(only))])
            ended = table["status"].isin(ENDED)
            taken = table["steps_taken"].astype("Int64").fillna(0).astype("int64")
            table["flops"] = (table["flops"] // table["steps"] * taken).where(ended, table["flops"])
            knobs = [json.loads(text) for text in table.pop("knobs")]
            for place, name in enumerate(dict.fromkeys(name for sizes in knobs for name in sizes), start=2):
                values = pd.Series([sizes.get(name) for sizes in knobs], dtype=object).infer_objects()
                table.insert(place, name, values)
            table = table.astype(types)
            if table["batch_size"].notna().to_numpy().all():
                table["batch_size"] = table["batch_size"].astype("int64")
            table["hyperparameters"] = table.pop("hyperparameters")  # at the end: it came later
            error = table["test_metric"].where(table["metric"].isin([ERROR]))
            table.insert(table.columns.tolist().index("test_loss") + 1, "test_error", error)
            return table

    def measurements(self) -> "pd.DataFrame":
        """Return the measurements along training of the sweep's trials, in the order of its file, then by step.

        Its columns are the fields of `MeasurementRow`; before the last stands validation_error, the validation_metric
        where that is an error.
        """
        import pandas as pd

        query = (
            f"SELECT {_names(MEASURED, 'm.')}, metric FROM measurements m JOIN trials USING (trial_id) "
            "WHERE position IS NOT NULL ORDER BY position, step"
        )
        with self._reading() as connection:
            table = pd.read_sql_query(query, connection).astype(_dtypes(MEASURED, known=True))
            error = table["validation_metric"].where(table.pop("metric").isin([ERROR]))
            table.insert(len(MEASURED) - 1, "validation_error", error)
            return table

    def timeline(self) -> "pd.DataFrame":
        """Return which lane each trial had when, one row a span, in the order of the sessions and of `began`.

        Its columns are trial_id, then the other fields of `SpanRow` but for `span`. Trials that the sweep as it stands
        does not ask for are among them: they had their time.
        """
        import pandas as pd

        columns = [column for column in SPAN if column.name != "span"]
        columns = sorted(columns, key=lambda column: column.name != "trial_id")
        query = f"SELECT {_names(columns)} FROM spans ORDER BY session, began, span"
        with self._reading() as connection:
            return pd.read_sql_query(query, connection).astype(_dtypes(columns, known=True))

    def sessions(self) -> "pd.DataFrame":
        """Return the processes that trained here, one row each; its columns are the fields of `SessionRow`, and then:

        useful_flops, padding_flops: that its trials took, and that padding added.
        lane_seconds, idle_seconds: of the lanes of each pack from its first span to its last, and without a trial.
        training_seconds: in which any lane had a trial.

        They are of the lanes of devices, not of the processes on host cores.
        """
        import pandas as pd

        query = f"SELECT {_names(SESSION)} FROM sessions ORDER BY session"
        spans = (
            "SELECT session, pack, lanes, began, ended, spans.steps, flops / trials.steps, step_flops FROM spans "
            f"JOIN trials USING (trial_id) WHERE \"group\" != '{HOST}' ORDER BY began"
        )
        with self._reading() as connection:
            table = pd.read_sql_query(query, connection).astype(_dtypes(SESSION, known=True))
            lanes = {number: LaneWork() for number in table["session"].tolist()}
            for session, *span in connection.execute(spans):
                lanes[session].add(*span)
        for column in fields(LaneWork):
            values = [getattr(each, column.name) for each in lanes.values()]
            table[column.name] = pd.Series(values, index=table.index, dtype="float64")
        return table


@dataclass
class LaneWork:
    """What the lanes of a session did; see `Store.sessions`."""

    useful_flops: float = 0.0
    padding_flops: float = 0.0
    lane_seconds: float = 0.0
    idle_seconds: float = 0.0
    training_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._latest = 0.0  # end of any span so far
        self._packs: dict[int, tuple[float, float]] = {}

    def add(
        self, pack: int, lanes: int, began: float, ended: float | None, steps: int, true_flops: int, step_flops: int
    ) -> None:
        """Add a span; spans come in the order in which they began. One that has not ended is not counted yet."""
        if ended is None:
            return
        self.useful_flops += steps * true_flops
        self.padding_flops += steps * (step_flops - true_flops)
        first, last = self._packs.get(pack, (began, began))
        self._packs[pack] = first, max(last, ended)
        longer = lanes * (max(last, ended) - last)
        self.lane_seconds += longer
        self.idle_seconds += longer - (ended - began)
        self.training_seconds += max(0.0, ended - max(began, self._latest))
        self._latest = max(self._latest, ended)


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open the file, to read it only unless `write` is set."""
    address = path if write else f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=not write, check_same_thread=False, timeout=30)


def _check(connection: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` unless the whole file is in order, the index that finds the trials included."""
    result = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if result != "ok":
        raise sqlite3.DatabaseError(str(result).replace("\n", " "))
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        query = "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
        with contextlib.closing(sqlite3.connect(":memory:")) as whole:
            whole.executescript(TABLES)
            if not set(whole.execute(query)) <= set(connection.execute(query)):
                raise sqlite3.DatabaseError("a table or a column is missing")


def _values(row: TrialRow | ResultRow | MeasurementRow | SessionRow | SpanRow, columns: Columns) -> list[Any]:
    """Return what SQLite stores of a row. It has no NaN, and infinities must not enter a mean: both are missing."""
    values = [getattr(row, column.name) for column in columns]
    return [
        json.dumps(dict(value)) if isinstance(value, Mapping)
        else None if isinstance(value, float) and not math.isfinite(value)
        else value
        for value in values
    ]  # fmt: skip
