"""Compute-optimal sizes by isoFLOP profiles, approach 2 of Hoffmann et al. (2022, arXiv:2203.15556), unbiased."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scalejax.analysis.compute.frontier import Frontier
from scalejax.analysis.compute.optima import Rows, Settings, frontier, read_rows

__all__ = ["fit_isoflop"]

Array = npt.NDArray[np.floating[Any]]
NEAREST = 2  # sizes on either side of the best one that are always kept


def fit_isoflop(
    points: Mapping[str, npt.ArrayLike],
    loss: npt.ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    window: float = 8.0,
    tolerance: float = 0.05,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Frontier:
    """Fit the compute-optimal frontier through the minima of isoFLOP profiles (approach 2).

    No parabola: see `profiles`. A profile may be off-centre and asymmetric. If its loss does not clearly rise on both
    sides of the fitted minimum it is refused: its optimum is NaN, `statuses` says why, and the frontier does without.

    Args:
        points: "params" and one of "flops" or "tokens", each [rows]; flops = 6 params tokens.
        loss: final loss [rows], positive; rows that are not finite are excluded and counted.
        groups: labels [rows]; rows of a group (seeds of one cell) share their noise. None: every row its own.
        window: rows whose params are more than this factor from their profile's lowest loss are left out, except the
            two nearest sizes on either side: runs that are hardly trained leave the law and would bend the fit.
        tolerance: relative gap in FLOPs that separates two profiles.
        bootstrap: wild-bootstrap resamples for the intervals; 0: none.
        level: probability of the intervals.
        seed: of the resamples.

    Returns:
        Frontier; pass it to `compute_optimal` for other computes. Its status is "ok" or a sentence.

    Raises:
        ValueError: lengths that differ, values that are not positive, no finite loss, or rows not on profiles.
    """
    if not window > 1 or not 0 < tolerance < 1:
        raise ValueError(f"window must exceed 1 and tolerance lie between 0 and 1; they are {window} and {tolerance}.")
    params, flops, losses, labels, excluded = read_rows(points, loss, groups)
    profile = _budgets(flops, tolerance)
    kept = np.zeros(len(params), bool)
    for one in range(int(profile.max()) + 1):
        rows = np.flatnonzero(profile == one)
        kept[rows] = _near(params[rows], losses[rows], window)
    table = Rows(params[kept], flops[kept], losses[kept], profile[kept], labels[kept])
    settings = Settings(bootstrap, level, seed)
    return frontier(table, settings, approach="isoflop", excluded=excluded)


def _near(params: Array, loss: Array, window: float) -> npt.NDArray[np.bool_]:
    """Return which rows of a profile are within a factor of its best one, or among its nearest sizes."""
    best = params[np.argmin(loss)]
    sizes = np.unique(params)
    place = int(np.searchsorted(sizes, best))
    low, high = sizes[max(place - NEAREST, 0)], sizes[min(place + NEAREST, len(sizes) - 1)]
    return (np.abs(np.log(params / best)) <= math.log(window) + 1e-9) | ((params >= low) & (params <= high))


def _budgets(flops: Array, tolerance: float) -> npt.NDArray[np.integer[Any]]:
    """Return the number of each row's profile: rows of a profile have nearly the same compute."""
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    number = np.concatenate([[0], np.cumsum(np.diff(logs) > math.log1p(tolerance))])
    for one in range(int(number[-1]) + 1):
        here = logs[number == one]
        if here[-1] - here[0] > 2 * math.log1p(tolerance):
            raise ValueError(
                f"The rows are not isoFLOP profiles: from {math.exp(here[0]):.3g} to {math.exp(here[-1]):.3g} FLOPs "
                f"there is no gap of {100 * tolerance:.3g} %; lower tolerance, or fit a law to the rows instead."
            )
    result = np.empty(len(flops), np.int64)
    result[order] = number
    return result
