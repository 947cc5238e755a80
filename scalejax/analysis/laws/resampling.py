"""Bootstrap resamples as weights or as losses: which rows stand in for the experiments that were not run."""

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from scalejax.analysis.laws.lift import solve_lanes
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.solver import Lane, Solution

Resample = Literal["rows", "residuals", "groups"]
KINDS = get_args(Resample)


def resampled(
    problem: Problem, theta: np.ndarray, residuals: np.ndarray, *, bootstrap: int, seed: int, resample: Resample
) -> Solution:
    """Return the fits of the resamples, each started at the fit of the data.

    Args:
        problem: the data.
        theta: the fit of the data, coordinates (size,).
        residuals: log predicted - log observed loss there, shape (n,) with padding.
        bootstrap: number of resamples.
        seed: of the resamples; the first of a larger number are those of a smaller.
        resample: "rows" draws rows with replacement, rows that repeat each other exactly staying together; "groups"
            draws the caller's groups, such as the seeds of one cell; "residuals" keeps the predictors and draws the
            log residuals.
    """
    draw = _losses if resample == "residuals" else _weights
    make = draw(problem, theta, residuals, seed)
    return solve_lanes(problem.layout, problem.rows, bootstrap, make)


def _weights(problem: Problem, theta: np.ndarray, _: np.ndarray, seed: int) -> Callable[[slice], Lane]:
    """Resample groups of rows: a row's weight is multiplied by how often its group is drawn."""
    number = int(problem.groups.max()) + 1
    lane = problem.lane(theta)

    def make(part: slice) -> Lane:
        size = part.stop - part.start
        drawn = _stream(seed, part).integers(0, number, (size, number))
        drawn += number * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        weights = np.zeros((size, len(problem.weights)))
        weights[:, : problem.count] = counts[:, problem.groups] * problem.weights[: problem.count]
        return lane._replace(weights=weights)

    return make


def _losses(problem: Problem, theta: np.ndarray, residuals: np.ndarray, seed: int) -> Callable[[slice], Lane]:
    """Resample log residuals.

    Nearly absolute losses make the law pass through about as many rows as it has coordinates; their residuals, nearly
    zero, are no sample of the noise and are not drawn. The others are smaller than errors, as residuals of a fit are.
    """
    count = problem.count
    own = residuals[:count]
    drawable = own[np.sort(np.argsort(np.abs(own), kind="stable")[min(len(theta), count - 1) :])]
    drawable = drawable * np.sqrt(count / max(1, count - len(theta)))
    predicted = problem.log_loss[:count] + own
    lane = problem.lane(theta)

    def make(part: slice) -> Lane:
        size = part.stop - part.start
        drawn = drawable[_stream(seed, part).integers(0, len(drawable), (size, count))]
        losses = np.zeros((size, len(problem.log_loss)))
        losses[:, :count] = predicted - drawn
        return lane._replace(log_loss=losses)

    return make


def _stream(seed: int, part: slice) -> np.random.Generator:
    """Return the random numbers of a block: they hang on its place, not on the order in which cores take blocks."""
    return np.random.default_rng((seed, part.start))
