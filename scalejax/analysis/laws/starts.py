"""Cold starts by variable projection: the nonlinear parameters from a grid, the linear ones solved for.

Golub & Pereyra (1973, doi:10.1137/0710036) project the linear parameters out of a least-squares problem. Here that
gives the starting points, in centred units (loss and predictors near 1, logarithms near 0); the true robust objective
is then minimised over all parameters from the best of them. No published parameter is used anywhere.
"""

import itertools
from collections.abc import Sequence

import numpy as np

RIDGE = 1e-10  # of a unit diagonal: columns that are alike share their weight
LEAST_SHARE = 1e-3  # of the largest term, for a linear parameter that the projection puts at zero: it can still grow
MOST_STARTS = 4096


def grid(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Return all combinations, shape (S, len(values)); at most MOST_STARTS, drawn without replacement, seed 0."""
    sizes = [len(choices) for choices in values]
    total = int(np.prod(sizes))
    chosen = np.arange(total)
    if total > MOST_STARTS:
        chosen = np.sort(np.random.default_rng(0).choice(total, MOST_STARTS, replace=False))
    places = np.unravel_index(chosen, sizes) if sizes else ()
    columns = [np.asarray(choices, np.float64)[place] for choices, place in zip(values, places, strict=True)]
    return np.stack(columns, 1) if columns else np.zeros((1, 0))


def project(columns: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the non-negative coefficients whose weighted sum of columns is nearest to 1, and the order of the starts.

    Args:
        columns: terms divided by the loss, shape (S, n, k) with k at most 4: every set of active terms is tried, which
            is exact non-negative least squares.
        weights: of the rows, shape (n,).

    Returns:
        Coefficients of shape (S, k), positive, and the S indices from the best start to the worst.
    """
    count = columns.shape[-1]
    scale = np.sqrt(np.einsum("snk,n->sk", columns**2, weights)) + 1e-300
    unit = columns / scale[:, None, :]
    gram = np.einsum("snk,snl,n->skl", unit, unit, weights) + RIDGE * np.eye(count)
    right = np.einsum("snk,n->sk", unit, weights)
    best, gain = np.zeros_like(right), np.full(len(right), -np.inf)
    for size in range(1, count + 1):
        for active in itertools.combinations(range(count), size):
            part = np.ix_(range(len(right)), active, active)
            solution = np.linalg.solve(gram[part], right[:, active][..., None])[..., 0]
            explained = (solution * right[:, active]).sum(1)
            better = (solution > 0).all(1) & (explained > gain)
            gain = np.where(better, explained, gain)
            full = np.zeros_like(right)
            full[:, active] = solution
            best = np.where(better[:, None], full, best)
    best = np.maximum(best, LEAST_SHARE * best.max(1, keepdims=True)) / scale
    misfit = np.abs(np.log(np.maximum(np.einsum("snk,sk->sn", columns, best), 1e-300))) @ weights
    return best, np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")


def regress(columns: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least-squares coefficients, shape (S, k), and the order of the starts by sum of weighted residuals.

    columns (S, n, k); target and weights (S, n).
    """
    scale = np.sqrt(np.einsum("snk,sn->sk", columns**2, weights)) + 1e-300
    unit = columns / scale[:, None, :]
    gram = np.einsum("snk,snl,sn->skl", unit, unit, weights) + RIDGE * np.eye(columns.shape[-1])
    right = np.einsum("snk,sn,sn->sk", unit, target, weights)
    coefficients = np.linalg.solve(gram, right[..., None])[..., 0] / scale
    misfit = (np.abs(np.einsum("snk,sk->sn", columns, coefficients) - target) * np.sqrt(weights)).sum(1)
    return coefficients, np.argsort(np.where(np.isfinite(misfit), misfit, np.inf), kind="stable")
