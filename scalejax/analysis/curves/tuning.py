"""The best hyperparameter setting of each cell of a sweep, chosen by validation loss.

A *cell* is one model size on one number of training examples; a *setting* is one choice of learning rate, weight decay
and batch size for it.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

SETTING_COLUMNS = ("learning_rate", "weight_decay", "batch_size")
CHOICE_COLUMNS = ("learning_rates", "edge", "diverged", "pending", "stopped", "excluded_elsewhere")
NOT_YET_RUN = ("pending", "running")
STOPPED = "stopped"  # early, by halving
MOST_IN_COMMON = 0.5  # of the training examples of two seeds, beyond which their spread is said to lack the data's part


def tuned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the counted rows of the best setting of each cell: one row per (cell, seed).

    A row counts if its status is "done" and its validation_loss and test_error are finite; one that was stopped early
    never does, however low its loss was, for it has taken fewer steps than the others. In each cell (family, size
    knobs, train_examples) the settings are ordered by: fewest of the cell's seeds without a counted row (so that a
    setting cannot win because its bad seeds diverged), lowest mean validation_loss, smallest learning rate, smallest
    weight decay, smallest batch size. The first is chosen. Test measurements never take part in the choice.

    Args:
        rows: the trial table, one row a trial, unchanged by this function. Size knobs are the columns between
            `family` and `params`; weight_decay and batch_size may be absent.

    Returns:
        The chosen rows with their columns, in the order of the table, and further columns: `edge` ("lowest" or
        "highest" if the chosen learning rate is an end of the cell's grid of at least two, stopped rates included,
        else ""; with two values every choice is an edge), `learning_rates` (how many values that grid has), `diverged`
        and `pending` (seeds of the chosen setting that do not count: diverged, failed or not finite; not yet run),
        `stopped` (rows of the cell that halving has stopped) and `excluded_elsewhere` (other uncounted rows at the
        cell's other settings). A cell in which nothing counts has no row here; `learning_curves` shows it with value
        NaN and 0 seeds.

    Raises:
        ValueError: no rows, a column is missing, no row counts, or two rows are the same trial in all but `steps`.
    """
    chosen = [(place, cell) for cell in cells_of(rows, "test_error") for place in cell.places]
    chosen.sort(key=lambda pair: pair[0])
    result = rows.take([place for place, _ in chosen]).reset_index(drop=True)
    return result.assign(**{name: [cell.choice[name] for _, cell in chosen] for name in CHOICE_COLUMNS})


@dataclass(frozen=True)
class Cell:
    """One model size on one number of training examples, and its chosen setting."""

    record: dict[Hashable, Any]  # family, size knobs, params, train_examples
    knobs: tuple[str, ...]  # names of the size-knob columns
    places: tuple[int, ...]  # positions in the table of the rows that count, at the chosen setting
    choice: dict[str, Any]  # CHOICE_COLUMNS

    @property
    def model(self) -> tuple[Hashable, ...]:
        """What tells its model from all others, see `model_key`."""
        return model_key(self.record, self.knobs)


def cells_of(rows: pd.DataFrame, metric: str) -> list[Cell]:
    """Return the cells of the table in the order of their first rows, each with its choice."""
    knobs = knob_columns(rows)
    require(rows, ["train_examples", "seed", "learning_rate", "status", "validation_loss", metric])
    cells: dict[tuple[Any, ...], dict[int, dict[Hashable, Any]]] = {}
    seen = set()
    for place, row in enumerate(rows.to_dict("records")):
        key = (*model_key(row, knobs), row["train_examples"])
        same = (row.get("trial_id"), row["status"], row["seed"], key, _setting(row))
        if isinstance(same[0], str) and same in seen:
            continue  # two sweeps that share a trial, concatenated
        seen.add(same)
        cells.setdefault(key, {})[place] = row
    counted = {
        place
        for cell in cells.values()
        for place, row in cell.items()
        if row["status"] == "done" and _finite(row["validation_loss"]) and _finite(row[metric])
    }
    if not counted:
        statuses = [str(status) for status in rows["status"]]
        found = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        raise ValueError(
            f"No trial of the table counts (found: {found}): a curve needs trials with status 'done' and a finite "
            f"validation_loss and {metric}; finish the sweep first, or lower its learning rates."
        )
    keep = ("family", *knobs, "params", "train_examples")
    result = []
    for cell in cells.values():
        places, choice = _choose(cell, counted)
        first = next(iter(cell.values()))
        result.append(Cell({name: first[name] for name in keep}, tuple(knobs), places, choice))
    return result


def _choose(cell: dict[int, dict[Hashable, Any]], counted: set[int]) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Return the places of the counted rows at the best setting of one cell, and the record of the choice."""
    settings: dict[tuple[Any, ...], list[int]] = {}
    for place, row in cell.items():
        settings.setdefault(_setting(row), []).append(place)
    for places in settings.values():
        _refuse_repeats([cell[place] for place in places])
    seeds = {row["seed"] for row in cell.values()}

    def rank(setting: tuple[Any, ...]) -> tuple[float, ...]:
        losses = [cell[place]["validation_loss"] for place in settings[setting] if place in counted]
        mean = math.fsum(losses) / len(losses) if losses else math.inf
        return (len(seeds) - len(losses), mean, *(math.inf if value is None else value for value in setting))

    best = min(settings, key=rank)
    places = tuple(place for place in settings[best] if place in counted)
    waiting = [place for place, row in cell.items() if row["status"] in NOT_YET_RUN]
    stopped = {place for place, row in cell.items() if row["status"] == STOPPED}
    grid = sorted({setting[0] for setting in settings if setting[0] is not None})
    edge = ""
    if places and len(grid) >= 2:
        edge = "lowest" if best[0] == grid[0] else "highest" if best[0] == grid[-1] else ""
    # A cell in which nothing counts has no chosen setting: all of its rows are told as excluded or not yet run.
    here = set(settings[best] if places else cell) - stopped
    pending = len(here.intersection(waiting))
    return places, {
        "learning_rate": best[0] if places and best[0] is not None else math.nan,
        "learning_rates": len(grid),
        "edge": edge,
        "diverged": len(here) - len(places) - pending,
        "pending": pending,
        "stopped": len(stopped),
        "excluded_elsewhere": len(set(cell) - here - stopped - counted),
    }


def _setting(row: dict[Hashable, Any]) -> tuple[Any, ...]:
    return tuple(known(row.get(name)) for name in SETTING_COLUMNS)


def _refuse_repeats(rows: Sequence[dict[Hashable, Any]]) -> None:
    """Refuse two rows with the same cell, setting and seed: a mean over them would mix two experiments."""
    by_seed: dict[Any, dict[Hashable, Any]] = {}
    for row in rows:
        other = by_seed.setdefault(row["seed"], row)
        if other is not row:
            differing = [name for name in ("steps", "fraction") if row.get(name) != other.get(name)]
            why = f"they differ in {listing(differing)}" if differing else "they look like two runs of one trial"
            raise ValueError(
                f"Two rows have the same model, hyperparameters and seed ({row['family']}, {row['train_examples']} "
                f"examples, learning rate {row['learning_rate']}, seed {row['seed']}); {why}: keep one of them."
            )


def pool_notes(points: Iterable[tuple[int, float, int]]) -> list[str]:
    """Say where seeds draw so much of one pool that their spread leaves out what the choice of examples adds to it.

    Two seeds that draw a fraction f of the pool each have that fraction of their examples in common; with the whole
    pool, all. What the choice of examples contributes to an error is then the same for all seeds.

    Args:
        points: training examples, their fraction of the pool (NaN: not known) and number of seeds, in any order.
    """
    shares = {size: share for size, share, seeds in sorted(points) if seeds > 1 and share > MOST_IN_COMMON}
    whole = [f"{size:,} examples" for size, share in shares.items() if share >= 1]
    part = [f"{100 * share:.0f} % of their {size:,} examples" for size, share in shares.items() if share < 1]
    notes = []
    if part:
        lacks = "their spread there leaves out part of what the choice of examples adds"
        notes.append(f"Any two seeds have {listing(part)} in common: {lacks}.")
    if whole:
        lacks = "their spread there leaves out what the choice of examples adds"
        notes.append(f"All seeds train on the same {listing(whole)}, the whole pool: {lacks}.")
    return notes


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


def _finite(value: Any) -> bool:
    return known(value) is not None and math.isfinite(value)


def short(number: float, digits: int = 2) -> str:
    """Return a number to that many digits, trailing zeros included: 0.10, 12, 1.5e-05."""
    return f"{number:#.{digits}g}".rstrip(".")


def short_count(number: float) -> str:
    """Return 20, 200, 2k, 20k, 1M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def listing(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
