"""Losses over parameters and data: the laws of two predictors that a forecast averages over.

With n and d the logarithms of both predictors relative to their largest values among the rows, the log loss is

    log(s_0 + ((s_1 e^(-alpha n))^(1/g) + (s_2 e^(-beta d))^(1/g))^g) + constant,    s_0 + s_1 + s_2 = 1.

With g = 1 it is the law of Hoffmann et al. (2022, eq. 2) with its three terms as shares of the loss at the largest
values; with s_0 = 0 and g = beta that of Kaplan et al. (2020, eq. 1.5). The smaller g, the more sharply a curve turns
from falling with the data to the level that its size allows. The rows decide on these numbers far more narrowly than
any prior, so laws are not sampled from the prior but from a multivariate t distribution that is fitted to the posterior
step by step (adaptive importance sampling, Cornuet et al. 2012), beginning at robust fits and the prior.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares
from scipy.special import expit

from scalejax.analysis.forecast.curves import Laws
from scalejax.analysis.forecast.drift import Drift, log_sum
from scalejax.analysis.forecast.resampling import resampled

Floats = npt.NDArray[np.float64]

# Normal priors of log alpha, log beta, log(s_1 / s_0), log(s_2 / s_0) and log g: published exponents lie between 0.05
# and 1, published g between 0.1 and 1; of the shares hardly anything is known.
MEANS, DEVIATIONS = np.array([-1.05, -1.05, -1.0, -1.0, -0.5]), np.array([0.6, 0.6, 2.0, 2.0, 0.7])
EXPONENTS = (0.1, 0.3, 1.0)  # the robust fit starts from all pairs of them
FARTHEST = 4.0  # standard deviations of the prior that the robust fit may go from its mean
FIRST_STEPS, FINALISTS, LAST_STEPS = 20, 2, 100  # steps from each start, and on from the best of them
HUBER = 1e-3  # as in `fit_law`
# Residuals are taken at face value up to this many robust standard deviations: of normal ones 95 % lie within.
TAIL = 2.0
SAMPLED, MOST_SAMPLED = 1000, 14_000  # laws a step, and in all
FREEDOM = 5.0  # of the t distribution: tails heavier than the posterior's, and its fourth moment is still finite
# The covariance of that distribution is that of the laws so far, times this: what is too wide costs some laws of small
# weight, what is too narrow gives the few laws of its edge nearly all the weight.
WIDER = 1.3
ENOUGH = 400.0  # laws that the weights are spread over, at which the sampling ends: a 5 % tail is then known to 1 %
LEAST_EFFECTIVE = 40  # and at which the next t distribution is fitted; fewer, and the posterior is flattened for it
KEPT = 1000  # laws that are returned, drawn by their weights
FEW = 300  # laws that show which noises and drifts are likely at all
NEAR = (4, 32)  # parts of the prior's deviations that they lie around: rows without noise know their law narrowly


def surface(parameters: Floats, positions: Floats) -> Floats:
    """Return log losses (laws, points), up to a constant, of parameters (laws, 5) at positions (2, points)."""
    logs = np.concatenate([np.zeros((len(parameters), 1)), parameters[:, 2:4]], axis=1)
    floor, size, data = (logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)).T[:, :, None]
    alpha, beta = np.exp(parameters[:, :2]).T[:, :, None]
    power = np.exp(parameters[:, 4, None])
    terms = size - alpha * positions[0], data - beta * positions[1]
    return np.logaddexp(floor, power * np.logaddexp(*(term / power for term in terms)))


def robust_fit(positions: Floats, log_loss: Floats) -> tuple[Floats, Floats]:
    """Fit the law so that outliers do not move it, from several starts.

    Returns:
        The parameters that each start comes to, (starts, 5), the best first; and the residuals of the best, (rows,).
    """
    # The height is fitted too, so the shares need no common scale here: this is `surface` without its normalisation.
    n, d = positions
    bound = np.append(FARTHEST * DEVIATIONS, np.inf)
    middle = np.append(MEANS, 0.0)
    ties = HUBER / DEVIATIONS  # the prior counts as much as one small miss: it decides what the rows leave open

    def parts(theta: Floats) -> tuple[Floats, ...]:
        alpha, beta, power = np.exp(theta[[0, 1, 4]])
        size, data = theta[2] - alpha * n, theta[3] - beta * d
        both = power * np.logaddexp(size / power, data / power)
        return size, data, both, np.exp((size - both) / power)

    def residuals(theta: Floats) -> Floats:
        misses = np.logaddexp(0.0, parts(theta)[2]) + theta[5] - log_loss
        return np.concatenate([misses, ties * (theta[:5] - MEANS)])

    def jacobian(theta: Floats) -> Floats:
        size, data, both, share = parts(theta)
        falling = expit(both)
        of_size, of_data = falling * share, falling * (1 - share)
        of_power = falling * (both - share * size - (1 - share) * data)
        columns = -of_size * np.exp(theta[0]) * n, -of_data * np.exp(theta[1]) * d, of_size, of_data, of_power
        return np.concatenate([np.stack([*columns, np.ones_like(both)], axis=1), np.eye(5, 6) * ties[:, None]])

    def fitted(start: Floats, steps: int) -> Any:
        return least_squares(
            residuals,
            start,
            jac=jacobian,  # pyright: ignore[reportArgumentType]
            bounds=(middle - bound, middle + bound),
            loss="soft_l1",
            f_scale=HUBER,
            x_scale=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.1]),
            max_nfev=steps,
        )

    starts = [
        np.array([np.log(alpha), np.log(beta), *MEANS[2:], log_loss.min()]) for alpha in EXPONENTS for beta in EXPONENTS
    ]
    first = sorted((fitted(start, FIRST_STEPS) for start in starts), key=lambda fit: fit.cost)
    last = sorted((fitted(fit.x, LAST_STEPS) for fit in first[:FINALISTS]), key=lambda fit: fit.cost)
    found = [*last, *first[FINALISTS:]]
    return np.stack([fit.x[:-1] for fit in found]), residuals(found[0].x)[: len(log_loss)]


def tails_of(residuals: Floats) -> Floats:
    """Return by how much the variance of each row exceeds that of an ordinary one, (rows,), at least 1."""
    deviation = 1.4826 * np.median(np.abs(residuals - np.median(residuals)))
    return np.maximum(1.0, np.abs(residuals) / (TAIL * max(deviation, HUBER))) ** 2


def near(starts: Floats, rng: np.random.Generator) -> Laws:
    """Return some laws around the best robust fit of (starts, 5), at several distances, and that fit itself."""
    clouds = [_drawn(starts[0], np.diag((DEVIATIONS / part) ** 2), FEW // len(NEAR), rng) for part in NEAR]
    theta = np.concatenate([starts[:1], *clouds])
    return Laws(((surface, theta),), np.zeros(len(theta)))


def surfaces(drift: Drift, log_loss: Floats, *, starts: Floats, rng: np.random.Generator) -> Laws:
    """Return laws sampled from their posterior.

    Each step samples laws from a t distribution and fits the next one to all laws so far, each weighted by its
    posterior over the mixture of all those distributions (Cornuet et al. 2012), until the weights are spread widely.

    Args:
        drift: of the rows.
        log_loss: of the rows, (rows,).
        starts: parameters of robust fits, the best first, (starts, 5).
        rng: of the samples.
    """
    theta, likelihoods, proposals = np.empty((0, len(MEANS))), np.empty(0), []
    # Beside the best fit all others and the prior: what the rows leave open may be far away, and in two places.
    wide = np.diag((DEVIATIONS / 2) ** 2)
    further = [(starts[0], wide, SAMPLED), *((each, wide, FEW) for each in starts[1:])]
    further.append((MEANS, np.diag(DEVIATIONS**2), SAMPLED))
    while True:
        proposals += further
        new = np.concatenate([_drawn(*each, rng) for each in further])
        residuals = log_loss - surface(new, drift.positions)
        theta = np.concatenate([theta, new])
        likelihoods = np.concatenate([likelihoods, log_sum(drift.log_likelihood(residuals), axis=1)])
        log_prior = -0.5 * (((theta - MEANS) / DEVIATIONS) ** 2).sum(axis=1)
        sampling = log_sum(np.stack([np.log(n) + _log_density(theta, *t) for *t, n in proposals]), axis=0)
        logs = log_prior + likelihoods - sampling
        weights = _tempered(logs, least=0)
        if _effective(weights) >= ENOUGH or len(theta) >= MOST_SAMPLED:
            break
        flat = _tempered(logs, least=LEAST_EFFECTIVE)
        mean = flat @ theta
        cov = WIDER * ((theta - mean).T * flat) @ (theta - mean) + 1e-9 * np.eye(len(mean))
        further = [(mean, cov, SAMPLED)]
    chosen, counts = np.unique(resampled(weights, KEPT, rng=rng), return_counts=True)
    # A law's own likelihood is in its weight already.
    return Laws(((surface, theta[chosen]),), np.log(counts) - likelihoods[chosen])


def _tempered(logs: Floats, *, least: float) -> Floats:
    """Return weights of sum one, flattened by a power until they are spread over at least so many laws."""
    power = 1.0
    while True:
        weights = np.exp(power * (logs - logs.max()))
        weights /= weights.sum()
        if _effective(weights) >= least or power < 1e-6:
            return weights
        power *= 0.7


def _effective(weights: Floats) -> float:
    return float(1 / (weights**2).sum())


def _drawn(mean: Floats, cov: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Draw parameters (count, 5) from a t distribution."""
    normal = rng.standard_normal((count, len(mean)))
    return mean + normal * np.sqrt(FREEDOM / rng.chisquare(FREEDOM, (count, 1))) @ np.linalg.cholesky(cov).T


def _log_density(theta: Floats, mean: Floats, cov: Floats) -> Floats:
    """Return the log density (laws,) of that t distribution, up to a constant."""
    root = np.linalg.cholesky(cov)
    within = np.linalg.solve(root, (theta - mean).T)
    logs = -(FREEDOM + len(mean)) / 2 * np.log1p((within**2).sum(axis=0) / FREEDOM)
    return logs - np.log(np.diag(root)).sum()
