"""How far a fit can be trusted to first order: scale of the noise, covariance, and what a worse objective means."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scalejax.analysis.laws.layout import Layout
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.solver import Rows, log_residuals

Array = Any
NOISE_FREE = 1e-11  # log residuals below this are rounding


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
        residuals, jacobian = (np.asarray(each) for each in _linearised(problem, theta))
    used = slice(problem.count)
    residuals, jacobian, weights = residuals[used], jacobian[used], problem.weights[used]
    delta, size = float(problem.rows.delta), len(theta)
    scale = max(1.4826 * float(np.median(np.abs(residuals))), NOISE_FREE)
    width = max(delta, 2.4 * scale * problem.count ** (-1 / 3))
    curvature = (np.abs(residuals) <= width) * min(1.0, delta / width)
    pull = np.sign(residuals) * np.maximum(np.minimum(np.abs(residuals), delta), min(delta, NOISE_FREE))
    information = (jacobian * (weights * curvature)[:, None]).T @ jacobian
    root = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(root, root))
    inverse = np.linalg.pinv(information / np.outer(root, root), rcond=1e-14, hermitian=True) / np.outer(root, root)
    # Rows of one group count as one observation, as they do in resamples.
    groups = int(problem.groups.max()) + 1
    scores = np.zeros((groups, size))
    np.add.at(scores, problem.groups, jacobian * (weights * pull)[:, None])
    middle = scores.T @ scores * groups / max(1, groups - size)
    covariance = inverse @ middle @ inverse
    unit = float(np.trace(inverse @ middle)) / size
    conditioning = float(values[-1] / max(values[0], 1e-300)) if values[0] > 0 else np.inf
    return Spread(residuals, jacobian, covariance, conditioning, vectors[:, 0], unit)


def _linearised(problem: Problem, theta: np.ndarray) -> tuple[Array, Array]:
    home = jax.devices("cpu")[0]
    arguments = jax.device_put((theta, problem.rows, problem.fixed, problem.log_loss), home)
    return _residuals_and_jacobian(problem.layout, *arguments)


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
