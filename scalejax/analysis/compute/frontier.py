"""The compute-optimal frontier: power laws of compute for the best size and its loss, fitted through optima."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "FLOPS_PER_PARAMETER_TOKEN",
    "Bounds",
    "Frontier",
    "Interval",
    "Path",
    "bounds",
    "central",
    "fit_path",
    "interval",
    "path_at",
    "widened",
]

Array = npt.NDArray[np.floating[Any]]
FLOPS_PER_PARAMETER_TOKEN = 6.0
FEWEST_FOR_LOSS = 4  # optima: floor, height and exponent, and one to spare
# Exponents of the loss in compute; published ones lie between 0.03 and 0.2.
SMALLEST_DECAY, LARGEST_DECAY = 0.005, 2.0
TRIES, ZOOMS = 41, 12
CHUNK = 200_000  # numbers in the largest temporary array


@dataclass(frozen=True)
class Bounds:
    """One end of intervals; each shaped like the estimates it belongs to, NaN where unknown."""

    params: Array
    tokens: Array
    loss: Array


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; `low` and `high` are NaN where unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Path:
    """log N* = log_params + exponent x and L* = floor + height e^{-decay x} with x = log C - centre.

    `centre` is a number; the others are [fits]. NaN where there are too few optima: 2 for the size, 4 for the loss.
    """

    centre: float
    log_params: Array
    exponent: Array
    floor: Array
    height: Array
    decay: Array


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal sizes and losses at the computes of the data, and the laws through them.

    Attributes:
        approach: "isoflop" or "envelope".
        flops: compute of each profile [profiles].
        params: optimal number of parameters there; NaN where the profile was refused.
        tokens: flops / (6 params).
        loss: loss at the optimum.
        low: lower ends of the intervals.
        high: upper ends. NaN without resamples, or where so many resamples have no minimum that the end is unknown.
        statuses: "ok" or why the profile was refused.
        params_exponent: a of N* = G C^a.
        tokens_exponent: 1 - a.
        shape: exponents alpha and beta that the profiles share. They are a means to find the minima: narrow or noisy
            profiles hardly determine them, and may leave one at its bound (0.01 or 2) without harm to the minima.
        path: the laws through the optima, one fit.
        samples: the same for each resample.
        scatter: spread of the optima about their power law over that expected from the noise of the profiles; where it
            is too large for chance, the status says so and the intervals of the law are widened by it (Birge 1932). NaN
            where unknown.
        level: probability of the intervals.
        excluded: rows left out because they are not finite.
        status: "ok" or a sentence.
    """

    approach: str
    flops: Array
    params: Array
    tokens: Array
    loss: Array
    low: Bounds
    high: Bounds
    statuses: tuple[str, ...]
    params_exponent: Interval
    tokens_exponent: Interval
    shape: tuple[float, float]
    path: Path
    samples: Path
    scatter: float
    level: float
    excluded: int
    status: str


def fit_path(flops: Array, log_params: Array, loss: Array, *, errors: tuple[Array, Array], use: npt.ArrayLike) -> Path:
    """Fit the laws of the size and of the loss through optima, by weighted least squares.

    Args:
        flops: [profiles].
        log_params: [fits, profiles]; NaN where a fit has no minimum, which it then does without.
        loss: [fits, profiles], likewise.
        errors: standard errors of both [profiles], up to a factor that all profiles share.
        use: which profiles count [profiles].
    """
    logs = np.log(flops)
    centre = float(logs[np.asarray(use)].mean()) if np.any(use) else 0.0
    x = logs - centre
    there = np.isfinite(log_params) & np.isfinite(loss) & np.asarray(use)
    weights = np.where(there, 1 / errors[0] ** 2, 0.0)
    few = (there.sum(-1) < 2)[:, None]
    level, slope = _line(x, np.where(there, log_params, 0.0), weights)
    level, slope = (np.where(few[:, 0], np.nan, each) for each in (level, slope))
    floor, height, decay = _falling(x, np.where(there, loss, 0.0), np.where(there, 1 / errors[1] ** 2, 0.0))
    few = there.sum(-1) < FEWEST_FOR_LOSS
    floor, height, decay = (np.where(few, np.nan, each) for each in (floor, height, decay))
    return Path(centre, level, slope, floor, height, decay)


def path_at(path: Path, flops: Array) -> Bounds:
    """Return optimal params, tokens and loss [fits, ...] at computes [...]."""
    x = np.log(flops) - path.centre
    level, slope, floor, height, decay = (
        each.reshape(-1, *(1 for _ in x.shape))
        for each in (path.log_params, path.exponent, path.floor, path.height, path.decay)
    )
    params = np.exp(level + slope * x)
    return Bounds(params, flops / FLOPS_PER_PARAMETER_TOKEN / params, floor + height * np.exp(-decay * x))


def widened(path: Path, samples: Path, factor: float) -> Path:
    """Return the samples with the size's deviations from the fit multiplied by a factor."""
    return replace(
        samples,
        log_params=path.log_params + factor * (samples.log_params - path.log_params),
        exponent=path.exponent + factor * (samples.exponent - path.exponent),
    )


def bounds(samples: Bounds, level: float) -> tuple[Bounds, Bounds]:
    """Return the ends of the central intervals of samples [fits, ...]."""
    ends = [central(each, level) for each in (samples.params, samples.tokens, samples.loss)]
    return Bounds(*(low for low, _ in ends)), Bounds(*(high for _, high in ends))


def interval(value: float, samples: Array, level: float) -> Interval:
    """Return an estimate with the central interval of its samples [fits]."""
    low, high = central(samples, level)
    return Interval(value, float(low), float(high))


def central(samples: Array, level: float) -> tuple[Array, Array]:
    """Return the ends of the central interval [...] of samples [fits, ...]; NaN where too many of them are NaN."""
    tail = (1 - level) / 2
    # A resample without a minimum lies beyond one of the ends, nobody knows which.
    known = (~np.isnan(samples)).sum(0) > max((1 - tail) * len(samples), 1)
    # "nearest" never subtracts two infinite samples.
    ends = np.nanquantile(np.where(known, samples, 0.0), [tail, 1 - tail], axis=0, method="nearest")
    return np.where(known, ends[0], np.nan), np.where(known, ends[1], np.nan)


def _line(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Return level at x = 0 and slope [fits] of weighted least-squares lines; x [points], the others [fits, points]."""
    total = np.maximum(weights.sum(-1), np.finfo(float).tiny)
    mean_x, mean_y = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    offset = x - mean_x[:, None]
    spread = np.maximum((weights * offset**2).sum(-1), np.finfo(float).tiny)
    slope = (weights * offset * (y - mean_y[:, None])).sum(-1) / spread
    return mean_y - slope * mean_x, slope


def _falling(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Fit y = floor + height e^{-decay x}, floor and height not negative; x [points], the others [fits, points].

    Variable projection over the one exponent: a grid, then finer grids about its best point.
    """
    each = max(1, CHUNK // (TRIES * len(x)))
    parts = [_falling_chunk(x, y[at : at + each], weights[at : at + each]) for at in range(0, len(y), each)]
    floor, height, decay = (np.concatenate(part) for part in zip(*parts, strict=True))
    return floor, height, decay


def _falling_chunk(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    low, high = math.log(SMALLEST_DECAY), math.log(LARGEST_DECAY)
    centre, half = np.full(len(y), (low + high) / 2), (high - low) / 2
    y, weights = y[:, None], np.broadcast_to(weights[:, None], (len(y), TRIES, len(x)))
    steps = np.linspace(-1, 1, TRIES)

    def solved(decay: Array) -> tuple[Array, Array, Array]:
        column = np.exp(-decay[..., None] * x)
        floor, height = _on_column(column, y, weights[:, : decay.shape[1]])
        misses = y - floor[..., None] - height[..., None] * column
        return floor, height, (weights[:, : decay.shape[1]] * misses**2).sum(-1)

    for _ in range(ZOOMS):
        tries = np.clip(centre[:, None] + half * steps, low, high)
        best = solved(np.exp(tries))[2].argmin(-1)
        centre = np.take_along_axis(tries, best[:, None], -1)[:, 0]
        half *= 3 / TRIES
    floor, height, _ = solved(np.exp(centre)[:, None])
    return floor[:, 0], height[:, 0], np.exp(centre)


def _on_column(column: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Return floor and height, neither negative, by least squares on a column: [fits, tries]."""
    total = np.maximum(weights.sum(-1), np.finfo(float).tiny)
    mean, mean_y = (weights * column).sum(-1) / total, (weights * y).sum(-1) / total
    offset = column - mean[..., None]
    spread = np.maximum((weights * offset**2).sum(-1), np.finfo(float).tiny)
    height = np.maximum((weights * offset * (y - mean_y[..., None])).sum(-1) / spread, 0.0)
    floor = mean_y - height * mean
    through = (weights * column * y).sum(-1) / np.maximum((weights * column**2).sum(-1), np.finfo(float).tiny)
    return np.where(floor < 0, 0.0, floor), np.where(floor < 0, through, height)
