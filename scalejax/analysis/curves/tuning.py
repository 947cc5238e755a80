"""The best hyperparameter setting of each cell of a sweep, chosen by validation loss.

A *cell* is one model size on one number of training examples; a *setting* is one choice of learning rate, weight decay,
batch size and `hyperparameters` for it.
"""

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalejax.text import listing

Row = dict[Hashable, Any]

SETTING_COLUMNS = ("learning_rate", "weight_decay", "batch_size", "hyperparameters")
CHOICE_COLUMNS = ("learning_rates", "edge", "diverged", "pending", "stopped", "excluded_elsewhere")
# The words of the column `status` that this room knows; whatever else it says, a trial that is not done does not count.
DONE, DIVERGED, STOPPED, NOT_YET_RUN = "done", "diverged", "stopped", ("pending", "running")
ERROR = "test_error"


def headline(rows: pd.DataFrame) -> tuple[str, str]:
    """Return the column of the headline metric on the test set, and what that metric is called, such as "test_RMSE".

    It is test_error where the tasks are classification, or where the table does not say (one from elsewhere); otherwise
    test_metric, called "test_" and the name in the column `metric`.

    Raises:
        ValueError: the rows have more than one metric.
    """
    if not {"test_metric", "metric"} <= set(rows.columns):
        return ERROR, ERROR
    names = [str(name) for name in rows["metric"].dropna().unique()]
    if len(names) > 1:
        raise ValueError(f"The rows have the metrics {listing(names)}, which no curve can mix: keep those of one task.")
    called = f"test_{names[0]}" if names else ERROR
    of_classification = called == ERROR and ERROR in rows.columns and _finite(rows[ERROR]).any()
    return (ERROR if of_classification else "test_metric"), called


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the counted rows of the best setting of each cell: one row per (cell, seed).

    A row counts if its status is "done" and its validation_loss and headline metric are finite (see `headline`); one
    that was stopped early never does, however low its loss was, for it has taken fewer steps than the others. In each
    cell (family, size knobs, train_examples) the settings are ordered by: fewest of the cell's seeds without a counted
    row (so that a setting cannot win because its bad seeds diverged), lowest mean validation_loss, smallest learning
    rate, smallest weight decay, smallest batch size, first `hyperparameters`. The first is chosen. Test
    measurements never take part in the choice.

    Args:
        rows: the trial table, one row a trial, unchanged by this function. Size knobs are the columns between
            `family` and `params`; weight_decay, batch_size and hyperparameters may be absent.

    Returns:
        The chosen rows with their columns, in the order of the table, and further columns: `edge` ("lowest" or
        "highest" if the chosen learning rate is an end of the cell's grid of at least two, stopped rates included,
        else ""; with two values every choice is an edge), `learning_rates` (how many values that grid has), `diverged`
        and `pending` (seeds of the chosen setting that do not count: diverged, failed or not finite; not yet run),
        `stopped` (rows of the cell that halving has stopped) and `excluded_elsewhere` (other uncounted rows at the
        cell's other settings). A cell in which nothing counts has no row here; `learning_curves` shows it with value
        NaN and 0 seeds.

    Raises:
        ValueError: no rows, a column is missing, two metrics, no row counts, or two rows are the same trial in all but
            `steps`.
    """
    chosen = sorted(((place, cell) for cell in cells_of(rows) for place in cell.places), key=lambda pair: pair[0])
    result = rows.take([place for place, _ in chosen]).reset_index(drop=True)
    return result.assign(**{name: [cell.choice[name] for _, cell in chosen] for name in CHOICE_COLUMNS})


@dataclass(frozen=True)
class Cell:
    """One model size on one number of training examples, and its chosen setting."""

    record: Row  # family, size knobs, params, train_examples
    knobs: tuple[str, ...]  # names of the size-knob columns
    places: tuple[int, ...]  # positions in the table of the rows that count, at the chosen setting
    choice: dict[str, Any]  # CHOICE_COLUMNS and learning_rate

    @property
    def model(self) -> tuple[Hashable, ...]:
        """What tells its model from all others, see `model_key`."""
        return model_key(self.record, self.knobs)


def cells_of(rows: pd.DataFrame, metric: str | None = None) -> list[Cell]:
    """Return the cells of the table in the order of their first rows, each with its choice.

    Args:
        rows: as for `tuned`, which says how the choice is made.
        metric: the column that must be finite in a row that counts; None: the headline metric.
    """
    knobs = knob_columns(rows)
    metric = metric or headline(rows)[0]
    require(rows, ["train_examples", "seed", "learning_rate", "status", "validation_loss", metric])
    done = (rows["status"] == DONE).to_numpy() & _finite(rows["validation_loss"]) & _finite(rows[metric])
    counted = set(np.flatnonzero(done).tolist())
    if not counted:
        raise ValueError(_nothing_counts(rows, metric))
    keep = ("family", *knobs, "params", "train_examples")
    cells = []
    for cell in alike(rows, ["train_examples"]):
        first = next(iter(cell.values()))
        cells.append(Cell({name: first[name] for name in keep}, tuple(knobs), *_choose(cell, counted)))
    return cells


def _choose(cell: Mapping[int, Row], counted: set[int]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the places of the counted rows at the best setting of one cell, and the record of the choice."""
    settings: dict[tuple[Any, ...], dict[int, Row]] = {}
    for place, row in cell.items():
        setting = tuple(known(row.get(name)) for name in SETTING_COLUMNS)
        others = [other for other in settings.setdefault(setting, {}).values() if other["seed"] == row["seed"]]
        name = row.get("trial_id"), row["status"]
        if isinstance(name[0], str) and name in [(other.get("trial_id"), other["status"]) for other in others]:
            continue  # two sweeps that share a trial, concatenated
        if others:
            differing = [name for name in ("steps", "fraction") if row.get(name) != others[0].get(name)]
            why = f"they differ in {listing(differing)}" if differing else "they look like two runs of one trial"
            raise ValueError(
                f"Two rows have the same model, hyperparameters and seed ({row['family']}, {row['train_examples']} "
                f"examples, learning rate {row['learning_rate']}, seed {row['seed']}); {why}: keep one of them."
            )
        settings[setting][place] = row
    cell = {place: row for rows in settings.values() for place, row in rows.items()}
    seeds = {row["seed"] for row in cell.values()}

    def rank(setting: tuple[Any, ...]) -> tuple[float | str, ...]:
        losses = [row["validation_loss"] for place, row in settings[setting].items() if place in counted]
        mean = math.fsum(losses) / len(losses) if losses else math.inf
        *numbers, text = setting
        ties = (math.inf if value is None else value for value in numbers)
        return (len(seeds) - len(losses), mean, *ties, "" if text is None else str(text))

    best = min(settings, key=rank)
    places = tuple(place for place in settings[best] if place in counted)
    stopped = {place for place, row in cell.items() if row["status"] == STOPPED}
    grid = sorted({setting[0] for setting in settings if setting[0] is not None})
    edge = ""
    if places and len(grid) >= 2:
        edge = "lowest" if best[0] == grid[0] else "highest" if best[0] == grid[-1] else ""
    # A cell in which nothing counts has no chosen setting: all of its rows count as excluded or not yet run.
    here = set(settings[best] if places else cell) - stopped
    pending = sum(cell[place]["status"] in NOT_YET_RUN for place in here)
    return places, {
        "learning_rate": best[0] if places and best[0] is not None else math.nan,
        "learning_rates": len(grid),
        "edge": edge,
        "diverged": len(here) - len(places) - pending,
        "pending": pending,
        "stopped": len(stopped),
        "excluded_elsewhere": len(set(cell) - here - stopped - counted),
    }


def _nothing_counts(rows: pd.DataFrame, metric: str) -> str:
    """Say why no row of the table counts, and what to do."""
    found = Counter(str(status) for status in rows["status"])
    counts = ", ".join(f"{number} {status}" for status, number in found.items())
    if set(found) == {DIVERGED}:
        return f"Every trial diverged (found: {counts}), so there is no curve: lower the learning rates and run again."
    if found.keys() & set(NOT_YET_RUN):
        return f"No trial counts yet (found: {counts}), so there is no curve: run the sweep again to finish it."
    return (
        f"No trial of the table counts (found: {counts}), so there is no curve: one needs trials with status '{DONE}' "
        f"and a finite validation_loss and {metric}; see the column reason, or lower the learning rates and run again."
    )


def alike(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict[int, Row]]:
    """Return the rows of each model that agree in the columns, by their positions, in the order of their first rows."""
    knobs, groups = knob_columns(rows), {}
    for place, row in enumerate(rows.to_dict("records")):
        key = (*model_key(row, knobs), *(known(row.get(name)) for name in columns))
        groups.setdefault(key, {})[place] = row
    return list(groups.values())


def knob_columns(rows: pd.DataFrame) -> list[str]:
    """Return the size-knob columns: those between `family` and `params`."""
    require(rows, ["family", "params"])
    columns = list(rows.columns)
    first, last = columns.index("family"), columns.index("params")
    if last < first:
        raise ValueError("Column 'params' stands before 'family'; the size knobs must be the columns between the two.")
    return columns[first + 1 : last]


def model_key(row: Mapping[Hashable, Any], knobs: Sequence[str]) -> tuple[Hashable, ...]:
    """Return what tells the model of a row from all others: its family and all its size knobs.

    Its number of parameters does not: two activations have the same one. In Python True == 1, here they differ.
    """
    values = (known(row[knob]) for knob in knobs)
    return (row["family"], *((isinstance(value, bool | np.bool_), value) for value in values))


def require(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table without rows or without one of the columns."""
    missing = [name for name in columns if name not in table.columns]
    if len(table) == 0:
        raise ValueError("The table has no rows: run the sweep first, then read its results again.")
    if missing:
        raise ValueError(f"The table lacks {listing(missing)}; it needs the columns {', '.join(columns)}.")


def known(value: Any) -> Any:
    """Return the value, or None if it is missing: NaN is unequal to itself and would make a cell of every row."""
    return None if value is None or value is pd.NA or value != value else value


def _finite(column: Any) -> np.ndarray:
    return np.isfinite(column.to_numpy(dtype=float, na_value=math.nan))
