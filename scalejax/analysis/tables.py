"""Laws and tables: the columns of a table under a law's names, one set of rows a curve, and the fits to them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from scalejax.analysis.curves.curves import learning_curves, model_labels, pool_notes
from scalejax.analysis.curves.tuning import cells_of, headline, knob_columns, model_key, tuned
from scalejax.analysis.laws.fit import Fit, fit_law
from scalejax.analysis.laws.law import Law
from scalejax.errors import FitError
from scalejax.text import listing

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
        notes: what a reader of the fit must know about the rows, one sentence each.
        models: of a run, each model's family, in the order of its learning curves; empty where curves are no models.
    """

    curve: str
    predictors: dict[str, np.ndarray]
    loss: np.ndarray
    groups: np.ndarray | None
    columns: Mapping[str, str]
    notes: tuple[str, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)


def from_trials(law: Law, rows: pd.DataFrame, *, columns: Mapping[str, str]) -> list[Observations]:
    """Return what a law in one predictor is fitted to for each model of a run, and any other law for all together.

    The rows are those of the best setting of each cell by validation loss (see `tuned`), one a seed; the seeds of a
    cell stay together when resampled.

    Args:
        law: the law.
        rows: the trial table of a run.
        columns: what stands for "loss" and for the law's predictors, where that is not test_loss, params and
            train_examples. Also known: examples_seen, which counts repeated ones, and unique_examples. test_metric is
            called by the name of the metric, such as test_RMSE.

    Raises:
        ValueError: no trial counts, or a column is missing.
    """
    best = tuned(rows)
    if "params" in law.predictors:  # a forest has no fixed number of them
        best = best[best["params"] > 0].reset_index(drop=True)
    seen = (best["steps_taken"] * best["batch_size"]).astype("float64")
    best = best.assign(examples_seen=seen, unique_examples=np.minimum(seen, best["train_examples"]))
    metric, called = headline(rows)
    best = best.assign(**{called: best[metric]})
    chosen = {**(REPEATED if "unique_tokens" in law.predictors else OF_A_RUN), **columns}
    chosen = {
        name: called if column == "test_metric" else column
        for name, column in chosen.items()
        if name in (*law.predictors, LOSS)
    }
    knobs = knob_columns(rows)
    keys = [model_key(row, knobs) for row in best.to_dict("records")]
    groups = np.array([f"{key} {size}" for key, size in zip(keys, best["train_examples"], strict=True)])
    curve, models = pd.Series("", index=best.index), {}
    if len(law.predictors) == 1:  # named and ordered as in the learning curves
        cells, curves = cells_of(rows), learning_curves(rows)
        labels = dict(zip((cell.model for cell in cells), model_labels(cells), strict=True))
        curve = pd.Series([labels[key] for key in keys], index=best.index)
        models = dict(zip(curves["model"], curves["family"], strict=True))
    notes: list[str] = []
    if "fraction" in best.columns:
        notes = pool_notes(
            (int(cell["train_examples"].iloc[0]), float(cell["fraction"].iloc[0]), len(cell))
            for _, cell in best.groupby(groups)
        )
    found = _observations(law, best, chosen, curve=curve, groups=groups)
    return [replace(observations, notes=tuple(notes), models=models) for observations in found]


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


def _observations(
    law: Law, table: pd.DataFrame, columns: Mapping[str, str], *, curve: pd.Series, groups: np.ndarray | None
) -> list[Observations]:
    unknown = [name for name in columns if name not in (*law.predictors, LOSS)]
    if unknown:
        names = listing([*law.predictors, LOSS])
        raise ValueError(f"The law {law.name} has no {listing(unknown)}: its columns are {names}.")
    numbers = {}
    for name, column in columns.items():
        series = _column(table, column, name)
        try:
            numbers[name] = series.to_numpy(dtype="float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            says = f"The column {column!r} has values that are not numbers; {name} needs numbers."
            raise ValueError(says) from error
    found = []
    for label in dict.fromkeys(curve.tolist()):
        here = (curve == label).to_numpy()
        own = {name: values[here] for name, values in numbers.items()}
        loss = own.pop(LOSS)
        found.append(Observations(label, own, loss, None if groups is None else groups[here], columns))
    return found


def _column(table: pd.DataFrame, column: str, name: str) -> pd.Series:
    if column not in table.columns:
        names = list(map(str, table.columns))
        near = difflib.get_close_matches(column, names, n=1, cutoff=0.0)
        says = f"did you mean {name}={near[0]}? " if near else ""
        raise ValueError(f"There is no column {column!r} for {name}: {says}The table has {', '.join(names) or 'none'}.")
    found = table[column]
    if isinstance(found, pd.DataFrame):
        raise ValueError(f"There are several columns {column!r}: rename all but one.")
    return found


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
        ValueError: a pair is not of that form.
    """
    columns = {}
    for pair in pairs:
        name, mark, column = pair.partition("=")
        if not (name and mark and column):
            raise ValueError(f"{pair!r} is not of the form NAME=COLUMN, such as params=N.")
        columns[name] = column
    return columns


@dataclass(frozen=True)
class TableFits:
    """The fits of the curves of a table.

    Attributes:
        curves: each curve's rows and its fit; curves that were fitted at once have the same one.
        refused: a sentence for each curve that cannot be fitted.
    """

    curves: tuple[tuple[Observations, Fit], ...]
    refused: tuple[str, ...]

    @property
    def fits(self) -> dict[str, Fit]:
        """The different fits by the name of the curve, "" for all rows."""
        return {"" if fit.curves else seen.curve: fit for seen, fit in self.curves}


def fit_table(
    law: Law,
    found: Sequence[Observations],
    *,
    shared: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
    ceiling: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> TableFits:
    """Fit a law to each of the curves, or to all at once if they share parameters; see `fit_law`.

    Raises:
        ValueError: the caller's mistake; shared parameters of a single curve.
        FitError: none can be fitted.
    """
    if shared and len(found) == 1:
        says = f"There is one curve only, with nothing to share {', '.join(shared)} with"
        raise ValueError(f"{says}: give several curves (--curves COLUMN).")
    rows, labels = list(found), None
    if shared:  # all rows as those of one fit, each with the name of its curve
        labels = np.repeat([seen.curve for seen in found], [len(seen.loss) for seen in found])
        predictors = {name: np.concatenate([seen.predictors[name] for seen in found]) for name in found[0].predictors}
        groups = [seen.groups for seen in found if seen.groups is not None]
        loss = np.concatenate([seen.loss for seen in found])
        together = np.concatenate(groups) if groups else None
        rows = [replace(found[0], curve="", predictors=predictors, loss=loss, groups=together)]
    fits, refused = [], []
    for seen in rows:
        try:
            fit = fit_law(
                law, seen.predictors, seen.loss, fixed=fixed, ceiling=ceiling, bootstrap=bootstrap, seed=seed,
                groups=seen.groups, resample="rows" if seen.groups is None else "groups", curves=labels, shared=shared,
            )  # fmt: skip
            fits.append((seen, fit))
        except FitError as error:
            refused.append(f"{seen.curve or law.name}: not fitted: {error}")
    if not fits:
        raise FitError("; ".join(refused))
    return TableFits(tuple((seen, fits[0][1]) for seen in found) if shared else tuple(fits), tuple(refused))
