"""A fit's data, checked: what the caller gave becomes centred logarithms, and what cannot be used is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalejax.analysis.laws.law import Law, in_units
from scalejax.analysis.laws.layout import Layout
from scalejax.analysis.laws.solver import MOST_STEPS, Lane, Rows
from scalejax.errors import FitError
from scalejax.text import number_of

Array = Any
LEAST_ROWS = 64  # a program takes seconds to compile, and the rows of padding microseconds to compute


@dataclass(frozen=True, eq=False)
class Problem:
    """Centred data of one fit. Rows are padded with weight zero, so that fits of similar sizes share a program.

    Attributes:
        layout: the coordinates.
        rows: predictors, centres and delta; n includes the padding.
        log_loss: centred, shape (n,).
        weights: zero for padding, shape (n,).
        fixed: values of the layout's fixed parameters.
        count: rows without the padding.
        groups: the group of each row that stays together when resampled, shape (count,).
        duplicates: rows that repeat another row in predictors, loss and curve.
        excluded: reason -> number of rows left out.
        predictors: the names that the caller uses.
        labels: the curves' labels; () for one curve.
    """

    layout: Layout
    rows: Rows
    log_loss: np.ndarray
    weights: np.ndarray
    fixed: np.ndarray
    count: int
    groups: np.ndarray
    duplicates: int
    excluded: Mapping[str, int]
    predictors: tuple[str, ...]
    labels: tuple[Any, ...]

    @property
    def units(self) -> dict[str, float]:
        """The log centre of each unit, the loss's last."""
        names = (*dict.fromkeys(self.layout.law.predictor_units), "loss")
        return dict(zip(names, self.rows.centres.tolist(), strict=True))

    @property
    def log_x(self) -> np.ndarray:
        """The centred logarithms of the predictors, (predictors, count)."""
        return self.rows.log_x[:, : self.count]

    def lane(self, theta: np.ndarray) -> Lane:
        """Return the fit of these data from a start (size,), or from several (S, size)."""
        low, high = self.layout.bounds()
        return Lane(theta, low, high, self.fixed, self.weights, self.log_loss, np.int32(MOST_STEPS))

    def public(self, theta: np.ndarray) -> dict[str, np.ndarray]:
        """Return the parameters in the caller's units, each (S,) or (S, curves), of coordinates (S, size)."""
        layout, place = self.layout, 0
        constants = dict(zip(layout.fixed, self.fixed, strict=True))
        values: dict[str, Array] = {name: np.full((len(theta), 1), value) for name, value in constants.items()}
        for parameter in layout.free:
            count = layout.curves if layout.own(parameter.name) else 1
            part = theta[:, place : place + count]
            values[parameter.name] = np.exp(part) if parameter.scale == "log" else part
            place += count
        result = in_units(layout.law, values, self.units)
        result = {name: value if value.shape[1] > 1 else value[:, 0] for name, value in result.items()}
        return result | {name: np.full(len(theta), value) for name, value in constants.items()}


def make_problem(
    law: Law,
    predictors: Mapping[str, Array],
    *,
    loss: Array,
    weights: Array | None,
    groups: Array | None,
    curves: Array | None,
    shared: Sequence[str],
    fixed: Mapping[str, float] | None,
    delta: float,
) -> Problem:
    """Return the checked and centred problem.

    Raises:
        ValueError: the caller's mistake.
        FitError: no row can be used.
    """
    fixed = fixed or {}
    names, x = _columns(law, predictors)
    y = _column("loss", loss)
    count = len(y)
    weight = np.ones(count) if weights is None else _column("weights", weights)
    group = None if groups is None else _labels("groups", groups)
    curve = np.zeros(count, int) if curves is None else _labels("curves", curves)
    for name, column in (*zip(names, x, strict=True), ("weights", weight), ("groups", group), ("curves", curve)):
        if column is not None and len(column) != count:
            raise ValueError(f"{name} has {number_of(len(column), 'row')} and loss has {count}: give one value a row.")
    _check_values(names, x, y, weight)
    _check_parameters(law, shared, fixed, curves is not None)
    keep, excluded = _usable(y, weight)
    if not keep.any():
        raise FitError(f"No row can be used ({_counts(excluded) or 'there are none'}): give rows with a finite loss.")
    labels = () if curves is None else tuple(np.unique(np.asarray(curves)[keep]).tolist())
    x, y, weight, curve = x[:, keep], y[keep], weight[keep], np.unique(curve[keep], return_inverse=True)[1]
    layout = Layout(law, tuple(n for n in law.names if n in fixed), max(1, len(labels)), tuple(shared))
    same = _numbered(np.concatenate([x, y[None], curve[None]]))
    group = same if group is None else _numbered(group[None, keep])
    rows, log_loss = _centre(law, np.log(x), np.log(y), weight, curve, delta)
    missing = rows.log_x.shape[1] - len(y)
    values = np.array([float(fixed[name]) for name in layout.fixed])
    padded = np.concatenate([weight, np.zeros(missing)])
    duplicates = len(y) - len(np.unique(same))
    return Problem(layout, rows, log_loss, padded, values, len(y), group, duplicates, excluded, tuple(names), labels)


def _columns(law: Law, predictors: Mapping[str, Array]) -> tuple[list[str], np.ndarray]:
    """Return the caller's names in the law's order, and the predictors (k, n)."""
    wanted = list(law.predictors)
    if wanted == ["x"] and len(predictors) == 1:
        wanted = list(predictors)
    missing = [name for name in wanted if name not in predictors]
    unknown = [name for name in predictors if name not in wanted]
    if missing or unknown:
        given = ", ".join(map(str, predictors)) or "none"
        needs = "one predictor, of any name" if wanted == ["x"] else ", ".join(wanted)
        raise ValueError(f"The law {law.name!r} takes the predictors {needs}; given: {given}.")
    columns = [_column(name, predictors[name]) for name in wanted]
    for name, column in zip(wanted, columns, strict=True):
        if len(column) != len(columns[0]):
            raise ValueError(
                f"{name} has {number_of(len(column), 'row')} and {wanted[0]} has {len(columns[0])}: give as many."
            )
    return wanted, np.stack(columns)


def _column(name: str, values: Array) -> np.ndarray:
    try:
        column = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}.") from error
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape}: give one value a row, shape (rows,).")
    return column


def _labels(name: str, values: Array) -> np.ndarray:
    """Return the labels as whole numbers."""
    column = np.asarray(values)
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape}: give one label a row, shape (rows,).")
    return np.unique(column, return_inverse=True)[1]


def _numbered(columns: np.ndarray) -> np.ndarray:
    """Return for each column the number of its kind, kinds numbered in the order of their first columns."""
    _, first, kind = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[kind.ravel()]


def _check_values(names: Sequence[str], x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> None:
    """Refuse what has no logarithm, naming the first row of it."""
    for name, column in zip(names, x, strict=True):
        bad = ~(np.isfinite(column) & (column > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{name} of row {row} is {column[row]:g}: predictors must be positive and finite ({bad.sum()} are not)."
            )
    if (y <= 0).any():
        row = int(np.argmax(y <= 0))
        raise ValueError(
            f"loss of row {row} is {y[row]:g}: the laws are fitted to log loss, so it must be positive; leave out the "
            f"row, or fit a loss with its offset added."
        )
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"weights of row {row} is {weight[row]:g}: weights must be finite and not negative.")


def _check_parameters(law: Law, shared: Sequence[str], fixed: Mapping[str, float], several: bool) -> None:
    for role, given in (("fixed", fixed), ("shared", shared)):
        for name in given:
            if name not in law.names:
                raise ValueError(
                    f"{role} names {name!r}, which {law.name!r} has not: its parameters are {', '.join(law.names)}."
                )
    if shared and not several:
        raise ValueError("shared has no meaning for one curve: give curves=, the curve's label of each row.")
    for each in law.parameters:
        if each.name not in fixed:
            continue
        value = float(fixed[each.name])
        outside = each.units is None and not each.low <= value <= each.high
        if not np.isfinite(value) or outside or (each.low >= 0 and value < 0) or (each.scale == "log" and value <= 0):
            raise ValueError(f"fixed sets {each.name} to {value:g}: it must be between {each.low:g} and {each.high:g}.")
    if len(set(fixed)) == len(law.names):
        raise ValueError(f"fixed names every parameter of {law.name!r}: leave at least one to be fitted.")


def _usable(y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Return which rows enter the fit, and how many do not for which reason."""
    reasons = {"loss is NaN": np.isnan(y), "loss is infinite": np.isinf(y), "weight is zero": weight == 0}
    left = np.zeros(len(y), bool)
    excluded = {}
    for reason, rows in reasons.items():
        number = int((rows & ~left).sum())
        left |= rows
        if number:
            excluded[reason] = number
    return ~left, excluded


def _counts(excluded: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {number}" for reason, number in excluded.items())


def _centre(
    law: Law, log_x: np.ndarray, log_loss: np.ndarray, weight: np.ndarray, curve: np.ndarray, delta: float
) -> tuple[Rows, np.ndarray]:
    """Return centred and padded predictors and loss. Predictors that share a unit share its centre."""
    share = weight / weight.sum()
    units = list(dict.fromkeys(law.predictor_units))
    centres = np.array([*(log_x[law.predictor_units.index(unit)] @ share for unit in units), log_loss @ share])
    shift = np.array([centres[units.index(unit)] for unit in law.predictor_units])
    missing = padded_length(len(log_loss)) - len(log_loss)
    rows = Rows(
        np.pad(log_x - shift[:, None], ((0, 0), (0, missing))),
        np.pad(curve, (0, missing)).astype(np.int32),
        centres,
        np.float64(delta),
    )
    return rows, np.pad(log_loss - centres[-1], (0, missing))


def padded_length(count: int) -> int:
    """Return the number of rows with padding: at least 64, then in steps of an eighth or less."""
    step = 1 << max(3, count.bit_length() - 4)
    return max(LEAST_ROWS, -(-count // step) * step)
