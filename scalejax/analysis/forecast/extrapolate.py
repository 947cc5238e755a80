"""`extrapolate`: the loss where nothing was measured, with an interval that holds the law's own error."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.curves import learning_curves
from scalejax.analysis.forecast.drift import drift_of
from scalejax.analysis.forecast.posterior import Posterior, posterior_of
from scalejax.analysis.forecast.surfaces import near, robust_fit, surfaces, tails_of
from scalejax.analysis.forecast.threads import on_one_thread
from scalejax.text import Shown, number_of, short

Floats = npt.NDArray[np.float64]
Array = Any

LEAST_POINTS = 4  # different values of the predictors
MOST_CELLS = {1: 32, 2: 256}  # of rows that are merged, by the number of predictors
# Neighbouring rows of one run share part of their noise, so a merged cell counts as at most so many: its mean has half
# the noise of one row, however many there are.
MOST_ALIKE = 4.0
THINNING = 16  # of the laws by which unlikely drifts are left out
BLOCK = 64  # points that are forecast at once, so that time and memory grow with their number, not with its square
SHOWN = 20  # points that a forecast lists when it shows itself
VALIDATED = 4  # every fourth law takes part in that validation
ORIGINS = (0.4, 0.7)  # shares of the rows, in order, from which the later ones are forecast to validate
# Repeating the last value is preferred where its mean squared error in that validation is below this times the laws':
# two origins of one curve are few, and a smaller lead would often be luck.
BETTER = 0.5


@dataclass(frozen=True, repr=False)
class Extrapolation(Shown):
    """Forecast losses, each array of the shape of the new predictors; it shows itself as a table, a row a point.

    Attributes:
        value: medians.
        low: lower ends of the intervals, which hold the loss of one new run with probability `level`.
        high: upper ends.
        level: probability of the intervals.
        status: "ok", or "last value: ..." where the forecast repeats the last value beyond the rows, and why.
        rows: number of rows used.
        excluded: reason -> number of rows left out.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float
    status: str
    rows: int
    excluded: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        points = zip(*(np.ravel(each).tolist() for each in (self.value, self.low, self.high)), strict=True)
        cells = [("value", "low", "high"), *(tuple(short(each, 3) for each in point) for point in points)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  " + "  ".join(map(str.rjust, row, widths)) for row in cells[: SHOWN + 1]]
        if (others := len(cells) - len(lines)) > 0:
            lines.append(f"  and {number_of(others, 'point')} more")
        left_out = "".join(f", {count:,} left out: {reason}" for reason, count in self.excluded.items())
        ending = (
            f"{100 * self.level:g} % intervals of one new run; {number_of(self.rows, 'row')}{left_out}; {self.status}"
        )
        return "\n".join([*lines, ending])


@dataclass(frozen=True)
class Measured:
    """Rows to forecast from, those at the same place merged.

    Attributes:
        names: of the predictors.
        logs: natural logarithms of the predictors, (predictors, cells).
        log_loss: mean natural logarithm of loss + offset, (cells,).
        counts: independent runs in each cell, (cells,).
        squares: sum of squared deviations of runs from the mean of their cell; of repeated places.
        freedom: their degrees of freedom.
        offset: added to the losses, so that a zero has a logarithm; zero where none is.
        rows: number of rows used.
        excluded: reason -> number of rows left out.
    """

    names: tuple[str, ...]
    logs: Floats
    log_loss: Floats
    counts: Floats
    squares: float
    freedom: int
    offset: float
    rows: int
    excluded: Mapping[str, int]

    @property
    def largest(self) -> Floats:
        """The largest logarithm of each predictor, (predictors, 1)."""
        return self.logs.max(axis=1, keepdims=True)

    def new(self, predictors: Mapping[str, Array]) -> tuple[Floats, tuple[int, ...]]:
        """Return positions (predictors, points) of new predictors, and their shape.

        Raises:
            ValueError: other predictors than those of the rows, or one that is not positive and finite.
        """
        if set(predictors) != set(self.names):
            given = ", ".join(map(str, predictors)) or "none"
            raise ValueError(f"The rows' predictors are {', '.join(self.names)}; given to forecast: {given}.")
        columns = [np.asarray(predictors[name], np.float64) for name in self.names]
        for name, column in zip(self.names, columns, strict=True):
            if not (np.isfinite(column) & (column > 0)).all():
                raise ValueError(f"{name} to forecast must be positive and finite.")
        shape = np.broadcast_shapes(*(column.shape for column in columns))
        return np.stack([np.log(np.broadcast_to(c, shape).ravel()) for c in columns]) - self.largest, shape


@on_one_thread
def extrapolate(
    predictors: Mapping[str, Array],
    loss: Array,
    new: Mapping[str, Array],
    *,
    level: float = 0.9,
    seed: int = 0,
) -> Extrapolation:
    """Forecast the loss at new predictors, with an interval for one new run.

    No law is chosen: many are averaged by what the rows leave of their probabilities, each with a drift away from it
    whose size the rows decide (`drift.py`; the laws are in `curves.py` and `surfaces.py`). So the interval holds what
    is unknown of the law's parameters, that no law is exact, and the noise of a run; it widens with the distance from
    the rows. With one predictor, where repeating the last value would have been clearly better inside the rows, that is
    done beyond them, and the status says so.

    Args:
        predictors: one predictor of any name, as of a learning curve, or two: model size first, then data, such as
            "params" and "tokens"; each (rows,), positive. Rows may repeat a place, such as seeds.
        loss: (rows,), not negative: a loss, an error rate or anything that falls with scale.
        new: where to forecast, numbers or arrays that broadcast.
        level: probability of the intervals.
        seed: of the sampling.

    Raises:
        ValueError: the caller's mistake, or rows at fewer than four different places.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must be between 0 and 1, such as 0.9.")
    rows = measured(predictors, loss)
    positions, shape = rows.new(new)
    quantiles = (0.5, (1 - level) / 2, (1 + level) / 2)
    drawn, blocks = posterior(rows, seed=seed), max(1, -(-positions.shape[1] // BLOCK))
    parts = [drawn.forecast(part).quantiles(quantiles) for part in np.array_split(positions, blocks, axis=1)]
    losses = np.maximum(np.exp(np.concatenate(parts, axis=1)) - rows.offset, 0.0)
    value, low, high = (np.asarray(one) for one in losses.reshape(3, *shape))
    status, beyond = "ok", (positions[0] > 0).reshape(shape)
    if (
        len(rows.names) == 1
        and beyond.any()
        and (better := _last_value_is_better(rows, float(positions.max()), seed=seed))
    ):
        status = f"last value: {better}"
        last = max(float(np.exp(rows.log_loss[-1])) - rows.offset, 0.0)
        value = np.asarray(np.where(beyond, np.clip(last, low, high), value))
    return Extrapolation(value, low, high, level, status, rows.rows, rows.excluded)


def measured(predictors: Mapping[str, Array], loss: Array) -> Measured:
    """Check rows and merge those at the same place.

    Raises:
        ValueError: see `extrapolate`.
    """
    names = tuple(predictors)
    if len(names) not in MOST_CELLS:
        raise ValueError(
            f"extrapolate takes one predictor or two (size, then data); given: {number_of(len(names), 'predictor')}."
        )
    columns = [np.asarray(predictors[name], np.float64) for name in names]
    y = np.asarray(loss, np.float64)
    for name, column in (*zip(names, columns, strict=True), ("loss", y)):
        if column.ndim != 1 or column.shape != y.shape:
            raise ValueError(f"{name} has shape {column.shape} and loss {y.shape}: give one value a row, (rows,).")
    for name, column in zip(names, columns, strict=True):
        bad = ~(np.isfinite(column) & (column > 0))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"{name} of row {row} is {column[row]:g}: predictors must be positive and finite.")
    if (y < 0).any():
        row = int(np.argmax(y < 0))
        raise ValueError(f"loss of row {row} is {y[row]:g}: losses must not be negative.")
    keep = np.isfinite(y)
    excluded = {"loss is not finite": int((~keep).sum())} if not keep.all() else {}
    logs, y = np.log(np.stack(columns))[:, keep], y[keep]
    if not (y > 0).any():
        raise ValueError("No loss is above zero: there is nothing to forecast from.")
    # A zero, such as an error rate on a small test set, is below half of the smallest that was measured.
    offset = 0.5 * float(y[y > 0].min()) if (y == 0).any() else 0.0
    cells, log_loss, counts, squares = _merged(logs, np.log(y + offset), np.ones(len(y)), keys=logs)
    if len(counts) < LEAST_POINTS:
        places = number_of(len(counts), "different place")
        raise ValueError(f"The rows are at {places}: a forecast needs at least {LEAST_POINTS}.")
    freedom, most = len(y) - len(counts), MOST_CELLS[len(names)]
    if len(counts) > most:
        each, lowest = round(most ** (1 / len(names))), cells.min(axis=1, keepdims=True)
        span = np.ptp(cells, axis=1, keepdims=True)  # zero where all rows are of one size
        keys = np.minimum((cells - lowest) / np.where(span > 0, span, 1.0) * each, each - 1).astype(int)
        alike = max(MOST_ALIKE, float(counts.max()))
        cells, log_loss, counts, _ = _merged(cells, log_loss, counts, keys=keys)
        counts = np.minimum(counts, alike)
    order = np.lexsort(cells[::-1])
    return Measured(names, cells[:, order], log_loss[order], counts[order], squares, freedom, offset, len(y), excluded)


@on_one_thread
def posterior(rows: Measured, *, seed: int = 0, step: int = 1) -> Posterior:
    """Return what rows leave of laws and drifts; of one predictor's laws, of each `step`-th."""
    positions = rows.logs - rows.largest
    told = {"squares": rows.squares, "freedom": rows.freedom}
    if len(rows.names) == 1:
        laws, tails = learning_curves(positions).thinned(step), np.ones(1)
        residuals = rows.log_loss - laws.thinned(max(1, THINNING // step)).at(positions)
        drift = drift_of(positions, 1 / rows.counts, residuals=residuals, **told)
    else:
        rng = np.random.default_rng(seed)
        starts, misses = robust_fit(positions, rows.log_loss)
        tails = tails_of(misses)
        residuals = rows.log_loss - near(starts, rng).at(positions)
        drift = drift_of(positions, tails / rows.counts, residuals=residuals, **told)
        laws = surfaces(drift, rows.log_loss, starts=starts, rng=rng)
    return posterior_of(laws, drift, rows.log_loss, tails=tails, seed=seed)


def _merged(
    logs: Floats, log_loss: Floats, counts: Floats, *, keys: npt.NDArray[Any]
) -> tuple[Floats, Floats, Floats, float]:
    """Average rows with the same keys (predictors, rows): logs, log losses, counts, and the squared deviations."""
    _, kind = np.unique(keys, axis=1, return_inverse=True)
    kind = kind.ravel()
    total = np.bincount(kind, counts).astype(np.float64)
    means = np.stack([np.bincount(kind, counts * column) / total for column in (*logs, log_loss)])
    squares = float((counts * (log_loss - means[-1, kind]) ** 2).sum())
    return means[:-1], means[-1], total, squares


def _last_value_is_better(rows: Measured, reach: float, *, seed: int) -> str:
    """Say why the last value is the better forecast of a learning curve; "" if it is not.

    From some earlier ends of the rows both forecast the later ones, as far as the forecast that is asked for reaches.
    """
    count, ours, last, ends = len(rows.log_loss), 0.0, 0.0, 0
    for end in sorted({max(LEAST_POINTS, round(share * count)) for share in ORIGINS}):
        ahead = rows.logs[0] - rows.logs[0, end - 1] if end < count else np.zeros(count)
        later = (ahead > 0) & (ahead <= max(reach, ahead[end] if end < count else 0.0))
        if not later.any():
            continue
        early = replace(rows, logs=rows.logs[:, :end], log_loss=rows.log_loss[:end], counts=rows.counts[:end])
        forecast = (
            posterior(early, seed=seed, step=VALIDATED)
            .forecast(rows.logs[:, later] - early.largest)
            .quantiles([0.5])[0]
        )
        ours += float(np.mean((forecast - rows.log_loss[later]) ** 2))
        last += float(np.mean((early.log_loss[-1] - rows.log_loss[later]) ** 2))
        ends += 1
    if not ends or last >= BETTER * ours:
        return ""
    misses = [f"{np.sqrt(total / ends):.2g}" for total in (last, ours)]
    return (
        f"from {number_of(ends, 'earlier end')} of the rows, repeating the last value missed the later log losses by "
        f"{misses[0]}, the laws by {misses[1]}"
    )
