"""How far a law may be from the truth: the drift, a random process that is added to every law.

No law is exact, and a forecast that trusts its law misses by more the farther it goes. So log loss is taken as

    log loss = law + drift + noise.

The drift's slope in the logarithm of a predictor is a random walk (an integrated Wiener process; Wahba 1978), plus a
Wiener process for what turns more sharply. It starts with nothing where the data start and its variance grows with the
third, respectively the first, power of the distance in logarithms: near the data the law and its drift agree with
them, beyond it the drift widens the interval. In several predictors the drifts add up.

How large the three parts are is not set: all combinations of a grid take part, each with the probability that it gives
to the rows. That marginal likelihood is the product of the densities with which each row is forecast from those before
it, hence a validation over rolling origins (Dawid 1984) inside the rows.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Standard deviations in log loss, a unit of distance being a factor of e. The grid reaches from what no measurement
# resolves to what no forecast survives; no law is exact, so a drift of zero is not in it.
NOISES = np.geomspace(5e-4, 0.25, 13)  # of one training run
BENDS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the slope, after a distance of one
STEPS = (0.0, 0.003, 0.01, 0.03, 0.1)  # of the Wiener process, after a distance of one
UNLIKELY = 1e-5  # combinations that have less of the probability are left out


def _grid() -> Floats:
    axes = np.meshgrid(NOISES, BENDS, STEPS, indexing="ij")
    return np.stack([axis.ravel() for axis in axes], axis=1)


@dataclass(frozen=True)
class Drift:
    """Rows, and the covariance of their log losses for each combination of noise and drift.

    The height of a law is unknown, so that a law is given by log losses that a constant may be added to. With R its
    residuals, K the covariance and 1 a vector of ones, the height is that of generalised least squares, and

        log likelihood = -(R' Q R + log det K + log 1'K^-1 1) / 2,    Q = K^-1 - K^-1 1 1' K^-1 / (1' K^-1 1).

    Attributes:
        positions: natural logarithms of the predictors relative to the last row's, (predictors, rows).
        origin: where the drift starts, (predictors,).
        scales: standard deviations of noise, bend and step, (combinations, 3).
        inverse: K^-1, (combinations, rows, rows).
        log_prior: of the combinations, with the determinants, (combinations,).
    """

    positions: Floats
    origin: Floats
    scales: Floats
    inverse: Floats
    log_prior: Floats

    @property
    def heights(self) -> Floats:
        """What the residuals are multiplied by to give the height of a law, (combinations, rows)."""
        sums = self.inverse.sum(axis=2)
        return sums / sums.sum(axis=1, keepdims=True)

    @property
    def precisions(self) -> Floats:
        """1' K^-1 1, the precision of the height, (combinations,)."""
        return self.inverse.sum(axis=(1, 2))

    def log_likelihood(self, residuals: Floats) -> Floats:
        """Return the log likelihood of each law and combination, (laws, combinations), from residuals (laws, rows)."""
        sums = self.inverse.sum(axis=2)
        quadratic = self.inverse - sums[:, :, None] * sums[:, None, :] / self.precisions[:, None, None]
        first, second = np.triu_indices(residuals.shape[1])
        packed = (quadratic[:, first, second] * np.where(first == second, 1.0, 2.0)).T
        # One matrix product for all laws and combinations, some laws at a time so that memory stays bounded.
        size = max(1, 4_000_000 // len(first))
        parts = [residuals[k : k + size] for k in range(0, len(residuals), size)]
        return self.log_prior - 0.5 * np.concatenate([(r[:, first] * r[:, second]) @ packed for r in parts])

    def only(self, kept: npt.NDArray[np.bool_]) -> "Drift":
        """Return it with some of the combinations, (combinations,) bool."""
        return replace(self, scales=self.scales[kept], inverse=self.inverse[kept], log_prior=self.log_prior[kept])

    def beyond(self, new: Floats, combination: int) -> tuple[Floats, Floats]:
        """Return how the residuals shift the forecast of new positions, (rows, new), and its covariance, (new, new).

        For one combination; noise of the new runs is not in the covariance, the uncertainty of the height is.
        """
        _, bend, step = self.scales[combination]
        inverse = self.inverse[combination]
        shared = covariance(self.positions, new, self.origin, bend=bend, step=step)
        shift = inverse @ shared
        missing = 1 - shift.sum(axis=0)
        own = covariance(new, new, self.origin, bend=bend, step=step)
        return shift, own - shared.T @ shift + np.outer(missing, missing) / inverse.sum()


def drift_of(positions: Floats, variances: Floats, *, origin: Floats, squares: float = 0.0, freedom: int = 0) -> Drift:
    """Return the covariances of rows for all combinations of noise and drift.

    Args:
        positions: natural logarithms of the predictors, (predictors, rows).
        variances: of each row's noise in units of one run's, (rows,): 1/3 for a mean of three runs.
        origin: lowest logarithm of each predictor, (predictors,).
        squares: sum of squared deviations, in log loss, of runs from the mean of the runs at their place.
        freedom: degrees of freedom of that sum.
    """
    scales = _grid()
    noise, bend, step = (scales**2).T[:, :, None, None]
    smooth = covariance(positions, positions, origin, bend=1.0, step=0.0)
    rough = covariance(positions, positions, origin, bend=0.0, step=1.0)
    matrices = noise * np.diag(variances) + bend * smooth + step * rough
    logs = 2 * np.log(np.diagonal(np.linalg.cholesky(matrices), axis1=1, axis2=2)).sum(axis=1)
    inverse = np.linalg.inv(matrices)
    log_prior = -0.5 * (logs + np.log(inverse.sum(axis=(1, 2)))) - np.log(len(scales))
    log_prior -= freedom * np.log(scales[:, 0]) + squares / (2 * scales[:, 0] ** 2)
    return Drift(positions, origin, scales, inverse, log_prior)


def covariance(one: Floats, other: Floats, origin: Floats, *, bend: float, step: float) -> Floats:
    """Return the covariance (m, n) of the drift at positions (predictors, m) and (predictors, n)."""
    total = np.zeros((one.shape[1], other.shape[1]))
    for a, b, start in zip(one, other, origin, strict=True):
        # Nothing drifts before the start.
        near = np.maximum(np.minimum(a[:, None], b[None, :]) - start, 0)
        far = np.maximum(np.maximum(a[:, None], b[None, :]) - start, 0)
        total += bend**2 * near**2 * (3 * far - near) / 6 + step**2 * near
    return total
