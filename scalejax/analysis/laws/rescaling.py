"""How far the replicates of a bootstrap are drawn together before intervals are read off them.

Huber losses with a small delta are nearly absolute values. A resample asks for another score (the sum of weighted signs
times the Jacobian), and the fit moves until the rows that it crosses have made up for it. How many rows lie that near
is chance, the same in all resamples: with j crossed rows the distance is about gamma distributed, so its mean square
grows with j^2 + j instead of j^2. The spread of resamples is too large by a share of order sqrt(parameters / rows): for
a median of n rows, 1.6 / sqrt(n) in variance (compare Hall & Martin 1988, doi:10.1007/BF00356105). In the experiment
itself the crossed rows belong to the score, and nothing is added. Least squares has no gaps, and no such noise.

The same chance makes the spread uncertain, and an interval of unbiased but uncertain width covers too little. Of one
parameter the two errors cancel: percentile intervals of a median cover what they say. Of p parameters a resample
crosses more rows, sqrt(p) times as many: the first error grows with sqrt(p), the second shrinks with it. So with the
noise g of crossings, the variance is taken times (1 + g / p) / (1 + g).
"""

import numpy as np

from scalejax.analysis.laws.covariance import Spread
from scalejax.analysis.laws.lift import residuals_at
from scalejax.analysis.laws.problem import Problem

ENOUGH_RESAMPLES = 256  # give the share to a per cent
MOST_VALUES = 4_000_000  # numbers held at a time, 32 MB
RANK = 1e-10  # of the largest singular value


def rescaled(problem: Problem, theta: np.ndarray, spread: Spread, thetas: np.ndarray) -> np.ndarray:
    """Return resamples (B, size), drawn by rows or groups, drawn together towards the fit (size,).

    Coordinates at a bound stay there.
    """
    noise = crossing_noise(problem, spread, thetas)
    factor = np.sqrt((1 + noise / len(theta)) / (1 + noise))
    low, high = problem.layout.bounds()
    return np.where((thetas <= low) | (thetas >= high), thetas, theta + factor * (thetas - theta))


def crossing_noise(problem: Problem, spread: Spread, thetas: np.ndarray) -> float:
    """Return N / S of resamples (B, size).

    N is the mean square of what crossed rows add to the score beyond their mean, S that of the score itself, both in
    units of the information.
    """
    used, delta = slice(problem.count), float(problem.rows.delta)
    number = min(ENOUGH_RESAMPLES, len(thetas), max(2, MOST_VALUES // spread.jacobian.size))
    residuals = residuals_at(problem.layout, problem.rows, problem.lane(thetas[:number]))[:, used]
    root = np.sqrt(problem.weights[used])
    moved = (residuals - spread.residuals) * root
    pulled = (np.clip(residuals, -delta, delta) - np.clip(spread.residuals, -delta, delta)) * root
    directions = _directions(spread.jacobian * root[:, None])
    score = float(((pulled @ directions) ** 2).sum())
    if not score > 0:  # no resample differs from the fit
        return 0.0
    jumps = pulled - (pulled * moved).sum() / (moved**2).sum() * moved
    groups = int(problem.groups.max()) + 1
    noise = 0.0
    for direction in directions.T:
        added = np.zeros((groups, number))
        np.add.at(added, problem.groups, (jumps * direction).T)
        noise += float((added**2).sum())
    return noise / score


def _directions(jacobian: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (count, rank) of what the coordinates can change."""
    scaled = jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300)
    left, sizes, _ = np.linalg.svd(scaled, full_matrices=False)
    return left[:, sizes > RANK * sizes[0]]
