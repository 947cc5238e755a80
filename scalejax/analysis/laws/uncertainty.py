"""How far a fit can be trusted: its noise and covariance, bootstrap resamples, and how far those are drawn together."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from scalejax.analysis.laws.layout import Layout
from scalejax.analysis.laws.lift import residuals_at, solve_lanes
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.solver import Lane, Rows, Solution, log_residuals

Array = Any
Resample = Literal["rows", "residuals", "groups"]
KINDS = get_args(Resample)
NOISE_FREE = 1e-11  # log residuals below this are rounding
ENOUGH_RESAMPLES = 256  # give the share of the noise of crossings to a per cent
MOST_VALUES = 4_000_000  # numbers held at a time, 32 MB
RANK = 1e-10  # of the largest singular value


@dataclass(frozen=True, eq=False)
class Spread:
    """Residuals of a fit and what follows from them.

    Attributes:
        residuals: log predicted - log observed loss, shape (count,).
        jacobian: of the residuals, (count, size).
        covariance: of the coordinates, (size, size); the sandwich of Huber (1967).
        conditioning: condition number of the coordinates' information, each scaled to a unit diagonal.
        weakest: the direction in coordinates that the data inform least, unit length.
        unit: increase of the objective by the noise, a direction: half a chi-squared with one degree of freedom.
    """

    residuals: np.ndarray
    jacobian: np.ndarray
    covariance: np.ndarray
    conditioning: float
    weakest: np.ndarray
    unit: float


def spread_of(problem: Problem, theta: np.ndarray) -> Spread:
    """Return the spread at the fitted coordinates (size,).

    Few rows lie within delta of the law, so the curvature of the Huber losses is estimated within the wider bandwidth
    of Hall & Sheather (1988, doi:10.1111/j.2517-6161.1988.tb01735.x), as for quantile regression.
    """
    with jax.enable_x64(True):
        arguments = theta, problem.rows, problem.fixed, problem.log_loss
        arguments = jax.device_put(arguments, jax.local_devices(backend="cpu")[0])
        linearised = _residuals_and_jacobian(problem.layout, *arguments)
    residuals, jacobian = (np.asarray(array)[: problem.count] for array in linearised)
    weights, delta, size = problem.weights[: problem.count], float(problem.rows.delta), len(theta)
    scale = max(1.4826 * float(np.median(np.abs(residuals))), NOISE_FREE)
    width = max(delta, 2.4 * scale * problem.count ** (-1 / 3))
    curvature = (np.abs(residuals) <= width) * min(1.0, delta / width)
    pull = np.sign(residuals) * np.maximum(np.minimum(np.abs(residuals), delta), min(delta, NOISE_FREE))
    information = (jacobian * (weights * curvature)[:, None]).T @ jacobian
    root = np.sqrt(np.maximum(np.diag(information), 1e-300))
    scaled = information / np.outer(root, root)
    values, vectors = np.linalg.eigh(scaled)
    inverse = np.linalg.pinv(scaled, rcond=1e-14, hermitian=True) / np.outer(root, root)
    # Rows of one group count as one observation, as they do in resamples.
    groups = int(problem.groups.max()) + 1
    scores = np.zeros((groups, size))
    np.add.at(scores, problem.groups, jacobian * (weights * pull)[:, None])
    middle = scores.T @ scores * groups / max(1, groups - size)
    unit = float(np.trace(inverse @ middle)) / size
    conditioning = float(values[-1] / max(values[0], 1e-300)) if values[0] > 0 else np.inf
    return Spread(residuals, jacobian, inverse @ middle @ inverse, conditioning, vectors[:, 0], unit)


@functools.partial(jax.jit, static_argnames="layout")
def _residuals_and_jacobian(
    layout: Layout, theta: Array, rows: Rows, fixed: Array, log_loss: Array
) -> tuple[Array, Array]:
    def model(theta: Array) -> Array:
        return log_residuals(layout, theta, rows, fixed, log_loss)

    return model(theta), jax.jacfwd(model)(theta)


def draws(problem: Problem, theta: np.ndarray, covariance: np.ndarray, number: int) -> np.ndarray:
    """Return coordinates (number, size) drawn from the normal distribution of the fit, cut at the bounds; seed 0."""
    low, high = problem.layout.bounds()
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = np.random.default_rng(0).standard_normal((number, len(theta)))
    return np.clip(theta + normal @ root.T, low, high)


def resampled(
    problem: Problem, theta: np.ndarray, residuals: np.ndarray, *, bootstrap: int, seed: int, resample: Resample
) -> Solution:
    """Return the fits of the resamples, each started at the fit of the data.

    Args:
        problem: the data.
        theta: the fit of the data, coordinates (size,).
        residuals: log predicted - log observed loss there, shape (count,).
        bootstrap: number of resamples.
        seed: of the resamples; the first of a larger number are those of a smaller.
        resample: "rows" draws rows with replacement, rows that repeat each other exactly staying together; "groups"
            draws the caller's groups, such as the seeds of one cell; "residuals" keeps the predictors and draws the
            log residuals.
    """
    count, padded, lane = problem.count, len(problem.weights), problem.lane(theta)
    number = int(problem.groups.max()) + 1
    # Nearly absolute losses make the law pass through about as many rows as it has coordinates; their residuals, nearly
    # zero, are no sample of the noise and are not drawn. The others are smaller than errors, as residuals of a fit are.
    drawable = residuals[np.sort(np.argsort(np.abs(residuals), kind="stable")[min(len(theta), count - 1) :])]
    drawable = drawable * np.sqrt(count / max(1, count - len(theta)))
    predicted = problem.log_loss[:count] + residuals

    def weights(size: int, stream: np.random.Generator) -> Lane:
        """A row's weight is multiplied by how often its group is drawn."""
        drawn = stream.integers(0, number, (size, number)) + number * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        weighted = counts[:, problem.groups] * problem.weights[:count]
        return lane._replace(weights=np.pad(weighted, ((0, 0), (0, padded - count))))

    def losses(size: int, stream: np.random.Generator) -> Lane:
        moved = predicted - drawable[stream.integers(0, len(drawable), (size, count))]
        return lane._replace(log_loss=np.pad(moved, ((0, 0), (0, padded - count))))

    make: Callable[[int, np.random.Generator], Lane] = losses if resample == "residuals" else weights

    def block(part: slice) -> Lane:
        # The random numbers of a block depend on its place, not on the order in which cores take blocks.
        return make(part.stop - part.start, np.random.default_rng((seed, part.start)))

    return solve_lanes(problem.layout, problem.rows, bootstrap, block)


def rescaled(problem: Problem, theta: np.ndarray, spread: Spread, thetas: np.ndarray) -> np.ndarray:
    """Return resamples (B, size), drawn by rows or groups, drawn together towards the fit (size,).

    Huber losses with a small delta are nearly absolute values. A resample asks for another score (the sum of weighted
    signs times the Jacobian), and the fit moves until the rows that it crosses have made up for it. How many rows lie
    that near is chance, the same in all resamples: with j crossed rows the distance is about gamma distributed, so its
    mean square grows with j^2 + j instead of j^2. The spread of resamples is too large by a share of order
    sqrt(parameters / rows): for a median of n rows, 1.6 / sqrt(n) in variance (compare Hall & Martin 1988,
    doi:10.1007/BF00356105). In the experiment itself the crossed rows belong to the score, and nothing is added. Least
    squares has no gaps, and no such noise.

    The same chance makes the spread uncertain, and an interval of unbiased but uncertain width covers too little. Of
    one parameter the two errors cancel: percentile intervals of a median cover what they say. Of p parameters a
    resample crosses more rows, sqrt(p) times as many: the first error grows with sqrt(p), the second shrinks with it.
    So with the noise g of crossings, the variance is taken times (1 + g / p) / (1 + g).

    Coordinates at a bound stay there.
    """
    crossings = crossing_noise(problem, spread, thetas)
    factor = np.sqrt((1 + crossings / len(theta)) / (1 + crossings))
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
    # An orthonormal basis (count, rank) of what the coordinates can change.
    jacobian = spread.jacobian * root[:, None]
    left, sizes, _ = np.linalg.svd(jacobian / np.maximum(np.linalg.norm(jacobian, axis=0), 1e-300), full_matrices=False)
    directions = left[:, sizes > RANK * sizes[0]]
    score = float(((pulled @ directions) ** 2).sum())
    if not score > 0:  # no resample differs from the fit
        return 0.0
    jumps = pulled - (pulled * moved).sum() / (moved**2).sum() * moved
    noise = 0.0
    for direction in directions.T:
        added = np.zeros((int(problem.groups.max()) + 1, number))
        np.add.at(added, problem.groups, (jumps * direction).T)
        noise += float((added**2).sum())
    return noise / score
