"""The file of a ledger: its tables, and what is refused because it is no ledger or a damaged one."""

import contextlib
import os
import sqlite3
from pathlib import Path

from scalejax.errors import SweepError

SCHEMA_VERSION = 4
STOPPED = "stopped"  # by halving: final as long as the sweep as it stands stops it
STATUSES = ("pending", "running", "done", "diverged", STOPPED, "failed")
TABLES = f"""
CREATE TABLE IF NOT EXISTS trials (
    trial_id TEXT PRIMARY KEY,
    position INTEGER,  -- in the sweep as it stands; NULL for a trial that an earlier form of the sweep asked for
    family TEXT NOT NULL, knobs TEXT NOT NULL, params INTEGER NOT NULL,
    train_examples INTEGER NOT NULL, fraction REAL NOT NULL, seed INTEGER NOT NULL,
    learning_rate REAL NOT NULL, weight_decay REAL NOT NULL, batch_size INTEGER NOT NULL,
    steps INTEGER NOT NULL, flops INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN {STATUSES}), reason TEXT NOT NULL DEFAULT '',
    train_loss REAL, validation_loss REAL, test_loss REAL, test_error REAL, best_step INTEGER, seconds REAL,
    steps_taken INTEGER, mode TEXT, device TEXT, versions TEXT, program TEXT
);
CREATE TABLE IF NOT EXISTS measurements (
    trial_id TEXT NOT NULL REFERENCES trials, step INTEGER NOT NULL, examples_seen INTEGER NOT NULL,
    train_loss REAL, validation_loss REAL, validation_error REAL,
    PRIMARY KEY (trial_id, step)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS heartbeat (
    only INTEGER PRIMARY KEY CHECK (only = 1), pid INTEGER NOT NULL, host TEXT NOT NULL, began REAL NOT NULL,
    beat REAL NOT NULL, eta_seconds REAL
);
"""


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Bring a ledger of an older version, or an empty one (version 0), to this version, whole or not at all."""
    # Version 3 added the table of heartbeats, version 4 the digest of a trial's program.
    column = "ALTER TABLE trials ADD COLUMN program TEXT;" if 0 < version < 4 else ""
    connection.executescript(f"BEGIN; {TABLES} {column} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open the file, to read it only unless `write` is set."""
    address = path if write else f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(address, uri=not write, check_same_thread=False, timeout=30)


def refuse_pipes(path: Path) -> None:
    """Refuse what SQLite would wait for without end, or fail at half way."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        file = path.with_name(path.name + suffix)
        if os.path.lexists(file) and not file.is_file():
            raise SweepError(f"{file}: this is no regular file; move it away or give another directory")


def examine(path: Path) -> None:
    """Refuse a damaged ledger before it is opened for writing, which would already change its file."""
    with contextlib.closing(connect(path, write=False)) as connection, contextlib.suppress(sqlite3.OperationalError):
        check(connection)  # if a journal has to be rolled back first, it is checked once more after that


def check(connection: sqlite3.Connection) -> None:
    """Raise `sqlite3.DatabaseError` unless the whole file is in order, the index that finds the trials included."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(str(found).replace("\n", " "))
    if connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        with contextlib.closing(sqlite3.connect(":memory:")) as whole:
            whole.executescript(TABLES)
            if not _columns(whole) <= _columns(connection):
                raise sqlite3.DatabaseError("a table or a column is missing")


def _columns(connection: sqlite3.Connection) -> set[tuple[str, str]]:
    """Return the tables with their columns."""
    query = "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'"
    return set(connection.execute(query))
