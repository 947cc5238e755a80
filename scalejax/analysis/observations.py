"""What a law is fitted to: the columns of a table under the law's names, one set of rows a curve."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalejax.analysis.curves.curves import model_labels
from scalejax.analysis.curves.tuning import cells_of, knob_columns, listing, model_key, pool_notes, tuned
from scalejax.analysis.laws.law import Law

LOSS = "loss"
# In the trial table of a run: what the names of the laws' predictors mean there.
OF_A_RUN = {
    "x": "train_examples",
    "params": "params",
    "tokens": "train_examples",
    "unique_tokens": "train_examples",
    LOSS: "test_loss",
}
REPEATED = {**OF_A_RUN, "tokens": "examples_seen", "unique_tokens": "unique_examples"}  # of laws that tell them apart


@dataclass(frozen=True)
class Observations:
    """The rows of one fit.

    Attributes:
        curve: the name of the model or curve; empty if all rows are one.
        predictors: by the law's names, each [rows].
        loss: [rows].
        groups: labels [rows] of rows that stay together when resampled, such as the seeds of one cell; None: each row
            by itself.
        columns: the law's name -> the column of the table.
        notes: what a reader of the fit must know of the rows, one sentence each.
    """

    curve: str
    predictors: dict[str, np.ndarray]
    loss: np.ndarray
    groups: np.ndarray | None
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()


def from_trials(law: Law, rows: pd.DataFrame, *, columns: Mapping[str, str]) -> list[Observations]:
    """Return what a law in one predictor is fitted to for each model of a run, and any other law for all together.

    The rows are those of the best setting of each cell by validation loss (see `tuned`), one a seed; the seeds of a
    cell stay together when resampled.

    Args:
        law: the law.
        rows: the trial table of a run.
        columns: what stands for "loss" and for the law's predictors, where that is not test_loss, params and
            train_examples. Also known: examples_seen, which counts repeated ones, and unique_examples.

    Raises:
        ValueError: no trial counts, or a column is missing.
    """
    best = tuned(rows)
    seen = (best["steps_taken"] * best["batch_size"]).astype("float64")
    best = best.assign(examples_seen=seen, unique_examples=np.minimum(seen, best["train_examples"]))
    names = {**(REPEATED if "unique_tokens" in law.predictors else OF_A_RUN), **columns}
    chosen = {name: names[name] for name in (*law.predictors, LOSS) if name in names}
    knobs = knob_columns(rows)
    keys = [model_key(row, knobs) for row in best.to_dict("records")]
    groups = np.array([f"{key} {size}" for key, size in zip(keys, best["train_examples"], strict=True)])
    models = pd.Series("", index=best.index)
    if len(law.predictors) == 1:  # named as in the learning curves
        cells = cells_of(rows, "test_error")
        names = dict(zip((cell.model for cell in cells), model_labels(cells), strict=True))
        models = pd.Series([names[key] for key in keys], index=best.index)
    notes = tuple(_pool_notes(best, groups))
    return [replace(each, notes=notes) for each in _observations(law, best, chosen, curve=models, groups=groups)]


def from_table(
    law: Law, table: pd.DataFrame, *, columns: Mapping[str, str], curve: str | None = None
) -> list[Observations]:
    """Return what a law is fitted to in any table, one set of rows for each value of the column `curve`.

    Raises:
        ValueError: a column is missing, or is no column of numbers.
    """
    chosen = {name: name for name in (*law.predictors, LOSS)} | dict(columns)
    labels = pd.Series("", index=table.index) if curve is None else _column(table, curve, "curves").astype(str)
    return _observations(law, table, chosen, curve=labels, groups=None)


def joined(found: Sequence[Observations]) -> tuple[Observations, np.ndarray]:
    """Return the rows of several curves as one, and the name of each row's curve: to fit what the curves share."""
    labels = np.repeat([each.curve for each in found], [len(each.loss) for each in found])
    predictors = {name: np.concatenate([each.predictors[name] for each in found]) for name in found[0].predictors}
    groups = [each.groups for each in found if each.groups is not None]
    loss = np.concatenate([each.loss for each in found])
    together = np.concatenate(groups) if groups else None
    return Observations("", predictors, loss, together, found[0].columns, found[0].notes), labels


def _observations(
    law: Law, table: pd.DataFrame, columns: Mapping[str, str], *, curve: pd.Series, groups: np.ndarray | None
) -> list[Observations]:
    unknown = [name for name in columns if name not in (*law.predictors, LOSS)]
    if unknown:
        names = listing([*law.predictors, LOSS])
        raise ValueError(f"The law {law.name} has no {listing(unknown)}: its columns are {names}.")
    numbers = {name: _numbers(table, column, name) for name, column in columns.items()}
    found = []
    for label in dict.fromkeys(curve.tolist()):
        here = (curve == label).to_numpy()
        own = {name: values[here] for name, values in numbers.items()}
        loss = own.pop(LOSS)
        found.append(Observations(label, own, loss, None if groups is None else groups[here], columns))
    return found


def _pool_notes(best: pd.DataFrame, groups: np.ndarray) -> list[str]:
    """Say where the seeds of a cell have their examples in common; see `pool_notes`."""
    if "fraction" not in best.columns:
        return []
    sizes, shares = (best[name].to_numpy(dtype="float64") for name in ("train_examples", "fraction"))
    cells = [groups == label for label in np.unique(groups)]
    return pool_notes((int(sizes[cell].max()), float(shares[cell].max()), int(cell.sum())) for cell in cells)


def _numbers(table: pd.DataFrame, column: str, name: str) -> np.ndarray:
    try:
        return _column(table, column, name).to_numpy(dtype="float64", na_value=np.nan)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValueError) and "no column" in str(error):
            raise
        raise ValueError(f"The column {column!r} holds something that is no number; {name} needs numbers.") from error


def _column(table: pd.DataFrame, column: str, name: str) -> pd.Series:
    if column not in table.columns:
        near = difflib.get_close_matches(column, [str(each) for each in table.columns], n=1, cutoff=0.0)
        says = f"did you mean {name}={near[0]}? " if near else ""
        raise ValueError(f"There is no column {column!r} for {name}: {says}The table has {_listed(table)}.")
    found = table[column]
    if isinstance(found, pd.DataFrame):
        raise ValueError(f"There are several columns {column!r}: rename all but one.")
    return found


def _listed(table: pd.DataFrame) -> str:
    return ", ".join(str(each) for each in table.columns) or "no columns"


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV or Parquet file.

    Raises:
        ValueError: it cannot be read, or is neither.
    """
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except ImportError as error:
        raise ValueError('reading Parquet needs pyarrow; install it with pip install "scalejax[parquet]"') from error
    except (OSError, ValueError) as error:  # pandas raises subclasses of both
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}: cannot be read as a table ({reason}); give a run's directory or a CSV") from error


def parse_columns(pairs: Sequence[str]) -> dict[str, str]:
    """Return {"params": "N"} for ["params=N"].

    Raises:
        ValueError: something else than NAME=COLUMN.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, mark, column = pair.partition("=")
        if not (name and mark and column):
            raise ValueError(f"{pair!r} is no NAME=COLUMN, such as params=N.")
        found[name] = column
    return found
