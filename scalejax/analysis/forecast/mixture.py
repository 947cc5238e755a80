"""A forecast as a weighted mixture of normal distributions of the log loss, and its quantiles."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Floats = npt.NDArray[np.float64]

HALVINGS = 36  # of the bracket of a quantile: to a part in 10^10 of its width
WIDEST = 9.0  # standard deviations: beyond, a normal distribution holds less than a float64 can tell


@dataclass(frozen=True)
class Mixture:
    """Of the log loss at some points, given what was measured.

    Attributes:
        weights: (components,), of sum one.
        means: (components, points).
        deviations: standard deviations, (components, points).
    """

    weights: Floats
    means: Floats
    deviations: Floats

    def quantiles(self, levels: npt.ArrayLike) -> Floats:
        """Return the quantiles (levels, points) at some levels between 0 and 1, by bisection."""
        wanted = np.asarray(levels, float)[:, None]
        low = np.tile((self.means - WIDEST * self.deviations).min(axis=0), (len(wanted), 1))
        high = np.tile((self.means + WIDEST * self.deviations).max(axis=0), (len(wanted), 1))
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            below = self.weights @ ndtr((middle[:, None] - self.means) / self.deviations)
            low, high = np.where(below < wanted, middle, low), np.where(below < wanted, high, middle)
        return 0.5 * (low + high)
