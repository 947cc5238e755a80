"""Systematic resampling: draws by weight that vary as little as they can."""

import numpy as np
import numpy.typing as npt


def resampled(weights: npt.NDArray[np.float64], count: int, *, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """Return indices drawn by weight, (count,), each as often as expected, to less than one (Kitagawa 1996).

    Args:
        weights: (n,), of sum one.
        count: of draws.
        rng: of the one random number that it takes.
    """
    marks = (np.arange(count) + rng.random()) / count
    return np.minimum(np.searchsorted(np.cumsum(weights), marks), len(weights) - 1)
