"""A fit's data, checked: what the caller gave becomes centred logarithms, and what cannot be used is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scalejax.analysis.laws.law import Law
from scalejax.analysis.laws.layout import Layout, in_units
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
        constants = {name: np.full(len(theta), v) for name, v in zip(self.layout.fixed, self.fixed, strict=True)}
        values = self.layout.parts(theta) | constants
        if any(value.ndim == 2 for value in values.values()):  # a curve's own
            values = {name: value if value.ndim == 2 else value[:, None] for name, value in values.items()}
        result = in_units(self.layout.law, values, self.units)
        result = {name: value[:, 0] if value.shape[1:] == (1,) else value for name, value in result.items()}
        return result | constants


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
    names = list(predictors) if law.predictors == ("x",) and len(predictors) == 1 else list(law.predictors)
    if set(names) != set(predictors):
        given = ", ".join(map(str, predictors)) or "none"
        needs = "one predictor, of any name" if names == ["x"] else ", ".join(names)
        raise ValueError(f"The law {law.name!r} takes the predictors {needs}; given: {given}.")
    columns = [_column(name, predictors[name], np.float64) for name in names]
    y = _column("loss", loss, np.float64)
    count = len(y)
    weight = np.ones(count) if weights is None else _column("weights", weights, np.float64)
    group = np.arange(count) if groups is None else _column("groups", groups)
    label = np.zeros(count) if curves is None else _column("curves", curves)
    others = ("weights", weight), ("groups", group), ("curves", label)
    for name, column in (*zip(names, columns, strict=True), *others):
        if len(column) != count:
            raise ValueError(f"{name} has {number_of(len(column), 'row')} and loss has {count}: give one value a row.")
    # What has no logarithm is refused, naming the first row of it.
    for name, column in zip(names, columns, strict=True):
        bad = ~(np.isfinite(column) & (column > 0))
        if bad.any():
            says = f"{column[bad][0]:g}: predictors must be positive and finite ({bad.sum()} are not)"
            raise ValueError(f"{name} of row {int(np.argmax(bad))} is {says}.")
    if (y <= 0).any():
        raise ValueError(
            f"loss of row {int(np.argmax(y <= 0))} is {y[y <= 0][0]:g}: the laws are fitted to log loss, so it must be "
            f"positive; leave out the row, or fit a loss with its offset added."
        )
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"weights of row {row} is {weight[row]:g}: weights must be finite and not negative.")
    _check_parameters(law, shared, fixed, curves is not None)

    # Which rows enter the fit, and how many do not for which reason.
    keep, excluded = np.ones(count, bool), {}
    reasons = {"loss is NaN": np.isnan(y), "loss is infinite": np.isinf(y), "weight is zero": weight == 0}
    for reason, rows in reasons.items():
        if number := int((rows & keep).sum()):
            excluded[reason] = number
        keep &= ~rows
    if not keep.any():
        counts = ", ".join(f"{reason}: {number}" for reason, number in excluded.items()) or "there are none"
        raise FitError(f"No row can be used ({counts}): give rows with a finite loss.")
    x, y, weight = np.stack(columns)[:, keep], y[keep], weight[keep]
    labels, curve = np.unique(label[keep], return_inverse=True)
    labels = () if curves is None else tuple(labels.tolist())
    same = _numbered(np.concatenate([x, y[None], curve[None]]))
    group = same if groups is None else _numbered(np.unique(group, return_inverse=True)[1][None, keep])

    # Centred and padded. Predictors that share a unit share its centre.
    log_x, log_loss, share = np.log(x), np.log(y), weight / weight.sum()
    units = list(dict.fromkeys(law.predictor_units))
    centres = np.array([*(log_x[law.predictor_units.index(unit)] @ share for unit in units), log_loss @ share])
    shift = np.array([centres[units.index(unit)] for unit in law.predictor_units])
    missing = padded_length(len(y)) - len(y)
    rows = Rows(
        np.pad(log_x - shift[:, None], ((0, 0), (0, missing))),
        np.pad(curve, (0, missing)).astype(np.int32),
        centres,
        np.float64(delta),
    )
    layout = Layout(law, tuple(n for n in law.names if n in fixed), max(1, len(labels)), tuple(shared))
    return Problem(
        layout=layout,
        rows=rows,
        log_loss=np.pad(log_loss - centres[-1], (0, missing)),
        weights=np.pad(weight, (0, missing)),
        fixed=np.array([float(fixed[name]) for name in layout.fixed], np.float64),
        count=len(y),
        groups=group,
        duplicates=len(y) - int(same.max()) - 1,
        excluded=excluded,
        predictors=tuple(names),
        labels=labels,
    )


def _column(name: str, values: Array, kind: type[np.float64] | None = None) -> np.ndarray:
    try:
        column = np.asarray(values, kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}.") from error
    if column.ndim != 1:
        raise ValueError(f"{name} has shape {column.shape}: give one value a row, shape (rows,).")
    return column


def _numbered(columns: np.ndarray) -> np.ndarray:
    """Return for each column the number of its kind, kinds numbered in the order of their first columns."""
    _, first, kind = np.unique(columns, axis=1, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[kind.ravel()]


def _check_parameters(law: Law, shared: Sequence[str], fixed: Mapping[str, float], several: bool) -> None:
    for role, given in (("fixed", fixed), ("shared", shared)):
        for name in given:
            if name not in law.names:
                known = f"its parameters are {', '.join(law.names)}"
                raise ValueError(f"{role} names {name!r}, which is no parameter of {law.name!r}: {known}.")
    if shared and not several:
        raise ValueError("shared has no meaning for one curve: give curves=, the curve's label of each row.")
    for parameter in law.parameters:
        value, low, high = float(fixed.get(parameter.name, np.nan)), parameter.low, parameter.high
        outside = parameter.units is None and not low <= value <= high
        outside |= (low >= 0 and value < 0) or (parameter.scale == "log" and value <= 0) or not np.isfinite(value)
        if parameter.name in fixed and outside:
            raise ValueError(f"fixed sets {parameter.name} to {value:g}: it must be between {low:g} and {high:g}.")
    if len(set(fixed)) == len(law.names):
        raise ValueError(f"fixed names every parameter of {law.name!r}: leave at least one to be fitted.")


def padded_length(count: int) -> int:
    """Return the number of rows with padding: at least 64, then in steps of an eighth or less."""
    step = 1 << max(3, count.bit_length() - 4)
    return max(LEAST_ROWS, -(-count // step) * step)
