"""The ledger: trials whole or not at all, plans that keep what is known, tables in the promised shape."""

import contextlib
import math
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalejax.errors import RunError, SweepError
from scalejax.run.store import Heartbeat, MeasurementRow, ResultRow, Store, TrialRow
from scalejax.status import ENDED, Status

LOGISTIC = TrialRow(
    trial_id="a", family="logistic", knobs={}, params=410, train_examples=20, fraction=0.1, seed=0,
    learning_rate=0.01, weight_decay=0.0, batch_size=16, steps=20, flops=1000,
)  # fmt: skip
SMALL = replace(LOGISTIC, trial_id="b", family="mlp", knobs={"width": 4, "depth": 1}, params=214)
LARGE = replace(SMALL, trial_id="c", knobs={"width": 8, "depth": 1}, params=418)
SWEEP = [LARGE, LOGISTIC, SMALL]
DONE = ResultRow(
    trial_id="b", status=Status.DONE, reason="", steps_taken=20, train_loss=1.0, validation_loss=1.5, test_loss=1.6,
    best_step=10, seconds=0.25, mode="vmap", device="cpu", versions="jax 1",
    program="0123456789abcdef", test_metric=0.5, metric="error",
)  # fmt: skip
MEASURED = [
    MeasurementRow("b", step, 16 * step, train_loss=2.0, validation_loss=2.5, validation_metric=0.75)
    for step in (20, 10)
]
COLUMNS = [
    "trial_id", "family", "width", "depth", "params", "train_examples", "fraction", "seed", "learning_rate",
    "weight_decay", "batch_size", "steps", "flops", "status", "reason", "train_loss", "validation_loss", "test_loss",
    "test_error", "best_step", "seconds", "steps_taken", "mode", "device", "versions", "program",
    "test_metric", "metric", "hyperparameters",
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


@pytest.fixture
def store(path: Path):
    with Store(path, write=True) as opened:
        opened.plan(SWEEP)
        yield opened


def test_the_trial_table_has_the_columns_of_the_contract_in_the_order_of_the_sweep(store: Store):
    table = store.results()
    assert list(table.columns) == COLUMNS
    assert table["trial_id"].tolist() == ["c", "a", "b"]
    assert set(table["status"]) == {"pending"}
    for knob in ("width", "depth"):
        assert table[knob].dtype == float
        assert table[knob].isna().tolist() == [False, True, False]
    for name in ("train_loss", "validation_loss", "test_loss", "test_error", "seconds"):
        assert table[name].dtype == float
    for name in ("params", "train_examples", "seed", "batch_size", "steps", "flops"):
        assert table[name].dtype == int
    assert table["best_step"].dtype == "Int64"
    assert np.all(table["best_step"].isna())


def test_knobs_that_every_family_has_stay_whole_numbers_and_words_stay_words(store: Store):
    store.plan([replace(SMALL, knobs={"width": 4, "kind": "relu"}, trial_id="d")])
    table = store.results()
    assert table["width"].dtype == int
    assert table["kind"].tolist() == ["relu"]


def test_a_finished_trial_comes_with_its_measurements(store: Store):
    store.start(["b", "c"])
    assert store.counts() == {"pending": 1, "running": 2, "done": 0, "diverged": 0, "stopped": 0, "failed": 0}
    store.finish(DONE, MEASURED)
    row = store.results().set_index("trial_id").loc["b"]
    for name in ("status", "reason", "train_loss", "test_metric", "best_step", "seconds", "mode", "device", "metric"):
        assert row[name] == getattr(DONE, name)
    assert row["test_error"] == 0.5
    table = store.measurements()
    names = "trial_id step examples_seen train_loss validation_loss validation_error validation_metric"
    assert table.columns.tolist() == names.split()
    assert table["step"].tolist() == [10, 20]
    assert table["examples_seen"].tolist() == [160, 320]
    assert store.ended().keys() == {"b"}


@pytest.mark.parametrize("status", ENDED)
def test_the_flops_of_a_trial_that_has_ended_are_those_of_the_steps_that_it_took(store: Store, status: Status):
    planned = {"a": 1000, "b": 1000, "c": 1000}
    assert store.results().set_index("trial_id")["flops"].to_dict() == planned
    store.start(["b", "c"])
    store.beat(Heartbeat(1, "h", 0.0, 0.0, None), {"b": 10, "c": 10})
    assert store.results().set_index("trial_id")["flops"].to_dict() == planned
    store.finish(replace(DONE, status=status, steps_taken=12), [])
    assert store.results().set_index("trial_id")["flops"].to_dict() == planned | {"b": 600}
    assert store.results()["flops"].dtype == int


def test_flops_that_are_counted_anew_replace_those_of_an_earlier_run(store: Store):
    store.finish(replace(DONE, steps_taken=12), [])
    store.plan([replace(trial, flops=2000) for trial in SWEEP])
    assert store.results().set_index("trial_id")["flops"].to_dict() == {"a": 2000, "b": 1200, "c": 2000}


@pytest.mark.parametrize(
    "measurements",
    [[*MEASURED, MEASURED[0]], [replace(MEASURED[0], trial_id="unknown")]],
    ids=["a step twice", "of no trial"],
)
def test_a_trial_is_there_whole_or_not_at_all(store: Store, measurements: list[MeasurementRow]):
    store.start(["b"])
    with pytest.raises(sqlite3.IntegrityError):
        store.finish(DONE, measurements)
    assert store.counts()["running"] == 1
    assert np.all(store.results()["validation_loss"].isna())
    assert store.measurements().empty
    store.finish(DONE, MEASURED)  # the writer continues after the mistake
    assert store.counts()["done"] == 1


def test_what_is_not_finite_is_missing(store: Store):
    bad = replace(
        DONE, status=Status.DIVERGED, reason="why", train_loss=math.inf, validation_loss=math.nan, test_loss=None
    )
    store.finish(
        replace(bad, test_loss=None, best_step=None),
        [replace(MEASURED[0], train_loss=-math.inf, validation_loss=math.nan)],
    )
    row = store.results().set_index("trial_id").loc["b"]
    assert row[["train_loss", "validation_loss", "test_loss", "best_step"]].isna().all()
    measured = store.measurements()
    assert measured[["train_loss", "validation_loss"]].isna().to_numpy().all()
    assert measured["validation_error"].tolist() == [0.75]
    assert store.ended().keys() == {"b"}  # a diverged trial would diverge again


def test_a_new_plan_keeps_what_is_finished_and_repeats_what_was_not(store: Store):
    store.finish(DONE, MEASURED)
    before = store.results().set_index("trial_id").loc[["b"]]
    store.start(["a"])
    store.finish(replace(DONE, trial_id="c", status=Status.FAILED, reason="out of memory"), [])
    store.plan([replace(row, fraction=0.05) for row in (SMALL, LARGE, LOGISTIC)])
    table = store.results().set_index("trial_id")
    assert table.index.tolist() == ["b", "c", "a"]
    assert table["status"].tolist() == ["done", "pending", "pending"]
    assert set(table["reason"]) == {""}
    assert set(table["fraction"]) == {0.05}
    assert table.loc[["b"]].drop(columns="fraction").equals(before.drop(columns="fraction"))


def test_removed_trials_are_left_out_but_kept(store: Store):
    store.finish(DONE, MEASURED)
    store.plan([LOGISTIC])
    assert store.results()["trial_id"].tolist() == ["a"]
    assert "width" not in store.results()
    assert store.measurements().empty
    assert sum(store.counts().values()) == 1
    assert store.ended().keys() == {"b"}
    store.plan(SWEEP)
    assert store.counts()["done"] == 1
    assert len(store.measurements()) == len(MEASURED)


def test_a_reader_sees_each_trial_as_soon_as_the_writer_has_finished_it(store: Store, path: Path):
    with Store(path, write=False) as reader:
        assert reader.counts()["done"] == 0
        store.finish(DONE, MEASURED)
        assert reader.counts()["done"] == 1
        assert len(reader.measurements()) == len(MEASURED)
        with pytest.raises(RunError, match="readonly"):
            reader.start(["a"])


def test_a_writer_leaves_one_file_and_so_does_a_reader(path: Path):
    with Store(path, write=True) as store:
        store.plan(SWEEP)
    with Store(path, write=False) as store:
        assert store.counts()["pending"] == len(SWEEP)
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_writer_may_close_before_its_readers(path: Path):
    store = Store(path, write=True)
    store.plan(SWEEP)
    with Store(path, write=False) as reader:
        store.close()
        assert reader.counts()["pending"] == len(SWEEP)


def nothing(_path: Path) -> None: ...


def empty_file(path: Path) -> None:
    path.touch()


def no_database(path: Path) -> None:
    path.write_bytes(b"trial_id,family\n" * 100)


def newer_version(path: Path) -> None:
    Store(path, write=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()


def other_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE trials (name TEXT)")
    connection.close()


def folder(path: Path) -> None:
    path.mkdir()


READ, WRITE = False, True


@pytest.mark.parametrize(
    ("make", "write", "says"),
    [
        (nothing, READ, "no results here"),
        (empty_file, READ, "no results here yet"),
        (no_database, READ, "not a readable ledger"),
        (no_database, WRITE, "not a readable ledger"),
        (newer_version, READ, "schema 99, this one reads 2 to 7"),
        (newer_version, WRITE, "schema 99, this one reads 2 to 7"),
        (other_program, READ, "another program"),
        (other_program, WRITE, "another program"),
        (folder, READ, "no results here"),
        (folder, WRITE, "no regular file"),
    ],
)
def test_what_is_no_ledger_is_refused_in_one_line(path: Path, make, write: bool, says: str):
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(SweepError, match=says) as caught:
        Store(path, write=write)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert len(text.splitlines()) == 1
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(("write", "says"), [(READ, "no results here"), (WRITE, "no regular file")])
def test_a_pipe_in_its_place_is_refused_and_not_waited_for(path: Path, write: bool, says: str):
    os.mkfifo(path)
    with pytest.raises(SweepError, match=says):
        Store(path, write=write)


def ledger_of(path: Path, version: int) -> None:
    """Make a ledger with one finished and one interrupted trial as versions of scalejax with that schema did."""
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        store.finish(DONE, MEASURED)
        store.start(["a"])
        store.beat(Heartbeat(1, "h", 0.0, 0.0, None), {"a": 10})
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("DROP TABLE spans; DROP TABLE sessions;")
        if version < 6:
            connection.execute("ALTER TABLE trials DROP COLUMN hyperparameters")
        if version < 5:
            connection.execute("ALTER TABLE trials RENAME COLUMN test_metric TO test_error")
            connection.execute("ALTER TABLE trials DROP COLUMN metric")
            connection.execute("ALTER TABLE measurements RENAME COLUMN validation_metric TO validation_error")
        if version < 4:
            connection.execute("ALTER TABLE trials DROP COLUMN program")
        if version < 3:
            connection.execute("DROP TABLE heartbeat")
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.mark.parametrize("version", [2, 3, 4, 5, 6])
def test_an_older_ledger_is_read_as_it_is_and_upgraded_when_it_is_written(path: Path, version: int):
    ledger_of(path, version)
    before = path.read_bytes()
    with Store(path, write=False) as store:
        read, measured, heartbeat, counts = store.results(), store.measurements(), store.heartbeat(), store.counts()
        assert len(store.timeline()) == len(store.sessions()) == 0
    assert path.read_bytes() == before
    assert (heartbeat is None) == (version == 2)
    assert (counts["done"], counts["running"], counts["pending"]) == (1, 1, 1)
    with Store(path, write=True) as store:
        pd.testing.assert_frame_equal(store.results(), read, check_exact=True)
        pd.testing.assert_frame_equal(store.measurements(), measured, check_exact=True)
        bare = replace(SWEEP[0], trial_id="bare", learning_rate=None, weight_decay=None, batch_size=None)
        store.plan([*SWEEP, replace(bare, hyperparameters="C=10")])
        store.finish(replace(DONE, trial_id="a"), [])
        table = store.results().set_index("trial_id")
    assert table.loc["bare", ["learning_rate", "weight_decay", "batch_size"]].isna().all()
    assert table["hyperparameters"].dropna().to_dict() == {"bare": "C=10"}
    assert read.columns.tolist() == COLUMNS
    assert table.loc["b", ["test_error", "test_metric", "metric"]].tolist() == [0.5, 0.5, "error"]
    assert read["metric"].isna().tolist() == [True, True, False]
    assert measured["validation_error"].tolist() == measured["validation_metric"].tolist() == [0.75, 0.75]
    assert table.loc["a", ["status", "test_metric"]].tolist() == ["done", 0.5]


def test_an_older_ledger_is_read_while_another_process_writes_it(path: Path):
    ledger_of(path, 4)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        with connection:
            connection.execute("UPDATE trials SET steps_taken = 17 WHERE trial_id = 'a'")
        with Store(path, write=False) as store:
            assert store.results().set_index("trial_id").loc["a", "steps_taken"] == 17


def test_another_metric_than_an_error_is_none(store: Store):
    store.finish(replace(DONE, test_metric=3.0, metric="RMSE"), MEASURED)
    row = store.results().set_index("trial_id").loc["b"]
    assert (row["test_metric"], row["metric"], math.isnan(row["test_error"])) == (3.0, "RMSE", True)
    assert np.all(store.measurements()["validation_error"].isna())
    assert store.measurements()["validation_metric"].tolist() == [0.75, 0.75]


def missing_table(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE measurements")


def missing_column(connection: sqlite3.Connection) -> None:
    connection.execute("ALTER TABLE trials RENAME COLUMN reason TO reasons")


def index_of_another_table(connection: sqlite3.Connection) -> None:
    """The index says nothing of a row that is there: an upsert would write it twice."""
    connection.execute("PRAGMA writable_schema = ON")
    query = "UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master WHERE name = 'heartbeat')"
    connection.execute(f"{query} WHERE name = 'sqlite_autoindex_trials_1'")


@pytest.mark.parametrize("damage", [missing_table, missing_column, index_of_another_table])
def test_a_damaged_ledger_is_refused_before_its_file_is_changed(path: Path, damage):
    with Store(path, write=True) as store:
        store.plan(SWEEP)
    with sqlite3.connect(path) as connection:
        damage(connection)
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SweepError, match="not a readable ledger"):
        Store(path, write=True)
    assert path.read_bytes() == before


def test_a_word_where_a_number_belongs_is_damage(path: Path):
    with Store(path, write=True) as store:
        store.plan(SWEEP)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE trials SET learning_rate = 'abc'")
    connection.close()
    with Store(path, write=False) as store, pytest.raises(SweepError, match="damaged") as caught:
        store.results()
    assert str(path) in str(caught.value)


def test_a_writer_that_died_before_it_made_the_tables_is_followed_by_another(path: Path):
    empty_file(path)
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        assert store.ended() == {}


def test_numbers_keep_all_their_digits(store: Store):
    precise = replace(DONE, validation_loss=float(np.nextafter(1.5, 2)), seconds=1e-9)
    store.finish(precise, [])
    row = store.results().set_index("trial_id").loc["b"]
    assert (row["validation_loss"], row["seconds"]) == (precise.validation_loss, 1e-9)
