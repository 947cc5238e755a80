"""What the rows leave of laws and drifts: their probabilities, and forecasts by them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.curves import Laws
from scalejax.analysis.forecast.drift import Drift
from scalejax.analysis.forecast.mixture import Mixture
from scalejax.analysis.forecast.resampling import resampled
from scalejax.analysis.forecast.threads import on_one_thread

Floats = npt.NDArray[np.float64]

COMPONENTS = 512  # drawn laws with their drifts: a forecast's quantiles are then good to a hundredth of a rank
NEGLIGIBLE = 1e-14  # variance below which a forecast is taken as certain


@dataclass(frozen=True)
class Posterior:
    """Laws and drifts, drawn with the probabilities that the rows leave them.

    Attributes:
        laws: all of them.
        drift: of the rows.
        law: the drawn components' laws, (components,).
        combination: the drawn components' noise and drift, (components,).
        weights: of the components, (components,), of sum one.
        residuals: log loss of the rows minus the law's, (components, rows).
        tails: variances of the rows' noise in units of one run's, which a new run's is drawn from, (components,).
    """

    laws: Laws
    drift: Drift
    law: npt.NDArray[np.intp]
    combination: npt.NDArray[np.intp]
    weights: Floats
    residuals: Floats
    tails: Floats

    def forecast(self, new: Floats, *, noise: bool = True) -> Mixture:
        """Return the log loss at new positions (predictors, points).

        Args:
            new: logarithms of the predictors relative to the rows' largest.
            noise: of one run more, or of the mean over endlessly many.
        """
        means, deviations = np.empty((2, len(self.law), new.shape[1]))
        for components, mean, spread in self._parts(new):
            means[components] = mean
            variances = np.diagonal(spread) + np.zeros((len(components), 1))
            if noise:
                variances = variances + self._noise(components)[:, None]
            deviations[components] = np.sqrt(np.maximum(variances, NEGLIGIBLE))
        return Mixture(self.weights, means, deviations)

    @on_one_thread
    def sample(self, new: Floats, *, count: int, seed: int = 0) -> Floats:
        """Draw log losses without noise at new positions (predictors, points) together, (count, points)."""
        rng = np.random.default_rng(seed)
        drawn = rng.choice(len(self.law), size=count, p=self.weights)
        paths = np.empty((count, new.shape[1]))
        for components, mean, spread in self._parts(new):
            values, vectors = np.linalg.eigh(spread)  # of rank less than full where positions coincide
            root = vectors * np.sqrt(np.maximum(values, 0))
            places = np.flatnonzero(np.isin(drawn, components))
            middles = mean[np.searchsorted(components, drawn[places])]
            paths[places] = middles + rng.standard_normal(middles.shape) @ root.T
        return paths

    @property
    def mean_noise(self) -> float:
        """The standard deviation of the log loss of one run, in the mean over what the rows leave open."""
        return float(self.weights @ self.drift.noises[self.combination])

    def draw_noise(self, count: int, *, seed: int = 0) -> Floats:
        """Draw the noise of the log loss of single runs, (count,), its size as unknown as the rows leave it."""
        rng = np.random.default_rng((seed, 1))  # not the numbers that `sample` has drawn with this seed
        drawn = rng.choice(len(self.law), size=count, p=self.weights)
        return rng.standard_normal(count) * np.sqrt(self._noise(drawn))

    def _parts(self, new: Floats) -> Iterator[tuple[npt.NDArray[np.intp], Floats, Floats]]:
        """Yield the components of each combination, their means (n, points) and their covariance (points, points)."""
        laws = self.laws.at(new)
        drawn = np.unique(self.combination).tolist()
        for combination, (weights, shift, spread) in zip(drawn, self.drift.beyond(new, drawn), strict=True):
            components = np.flatnonzero(self.combination == combination)
            residuals = self.residuals[components]
            height = (residuals @ weights)[:, None]
            yield components, laws[self.law[components]] + height + (residuals - height) @ shift, spread

    def _noise(self, components: npt.NDArray[np.intp]) -> Floats:
        return self.drift.noises[self.combination[components]] ** 2 * self.tails[components]


def posterior_of(laws: Laws, drift: Drift, log_loss: Floats, *, tails: Floats, seed: int) -> Posterior:
    """Draw laws and drifts with their probabilities given the rows.

    Args:
        laws: a sample, weighted.
        drift: of the rows.
        log_loss: of the rows, (rows,).
        tails: variances of the noise of runs like the rows', in units of one run's, (n,).
        seed: of the draws.
    """
    residuals = log_loss - laws.at(drift.positions)
    logs = laws.log_weights[:, None] + drift.log_likelihood(residuals)
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    rng = np.random.default_rng(seed)
    kept, counts = np.unique(resampled(weights.ravel(), COMPONENTS, rng=rng), return_counts=True)
    law, combination = np.unravel_index(kept, weights.shape)
    return Posterior(
        laws, drift, law, combination, counts / COMPONENTS, residuals[law], rng.choice(tails, size=len(kept))
    )
