"""Cold starts by variable projection: the nonlinear parameters from a grid, the linear ones solved for.

Golub & Pereyra (1973, doi:10.1137/0710036) project the linear parameters out of a least-squares problem. Here that
gives the starting points, in centred units (loss and predictors near 1, logarithms near 0); the true robust objective
is then minimised over all parameters from the best of them. No published parameter is used anywhere.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

RIDGE = 1e-10  # of a unit diagonal: columns that are alike share their weight
LEAST_SHARE = 1e-3  # of the largest term, for a linear parameter that the projection puts at zero: it can still grow
MOST_STARTS = 4096


def grid(values: Sequence[Sequence[float]]) -> np.ndarray:
    """Return all combinations, shape (S, len(values)); at most MOST_STARTS, drawn without replacement, seed 0."""
    sizes = [len(each) for each in values]
    total = int(np.prod(sizes))
    chosen = np.arange(total)
    if total > MOST_STARTS:
        chosen = np.sort(np.random.default_rng(0).choice(total, MOST_STARTS, replace=False))
    places = np.unravel_index(chosen, sizes) if sizes else ()
    columns = [np.asarray(each, np.float64)[place] for each, place in zip(values, places, strict=True)]
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


def _regress(columns: np.ndarray, target: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def broken_power_starts(breaks: int, log: Mapping[str, np.ndarray], log_loss: np.ndarray) -> dict[str, np.ndarray]:
    """Return starts of `broken_power`: given floor, places and widths, the logarithm of L - a is linear in the rest."""
    x, loss = log["x"], np.exp(log_loss)
    places = np.quantile(x, np.linspace(0, 1, (2, 14, 12, 10)[breaks])[1:-1])
    sets = list(itertools.combinations(range(len(places)), breaks))
    widths = (0.1, 0.35, 1.0) if breaks else (1.0,)
    floors = (0.0, 0.5, 0.9, 0.99)
    combinations = grid([floors, range(len(sets)), widths])
    floor = combinations[:, 0] * loss.min()
    place = places[np.array(sets, int).reshape(len(sets), breaks)[combinations[:, 1].astype(int)]]
    width = combinations[:, 2]
    above = loss - floor[:, None]
    bend = np.logaddexp(0, (x[None, :, None] - place[:, None, :]) / width[:, None, None]) * width[:, None, None]
    ones = np.ones_like(above)[..., None]
    columns = np.concatenate([ones, -x[None, :, None] * ones, -bend], axis=2)
    coefficients, order = _regress(columns, np.log(above), (above / loss) ** 2)
    result = {"a": floor, "b": np.exp(np.clip(coefficients[:, 0], -20, 20)), "c0": coefficients[:, 1]}
    for i in range(breaks):
        result |= {f"c{i + 1}": coefficients[:, 2 + i], f"d{i + 1}": np.exp(place[:, i]), f"f{i + 1}": width}
    return {name: value[order] for name, value in result.items()}


def m4_starts(log: Mapping[str, np.ndarray], log_loss: np.ndarray) -> dict[str, np.ndarray]:
    """Return starts of `m4`: given floor and chance, log(L - e_inf) is linear in alpha, log beta and c."""
    x, loss = log["x"], np.exp(log_loss)
    lowest, highest = loss.min(), loss.max()
    chances = highest + (highest - lowest) * np.array([0.003, 0.02, 0.1, 0.5, 2.0])
    combinations = grid([np.array([0.0, 0.5, 0.8, 0.95, 0.99]) * lowest, chances, (0.0, 0.1, 0.3, 1.0, 3.0)])
    floor, chance, alpha = combinations.T
    above, below = loss - floor[:, None], chance[:, None] - loss
    # alpha comes from the grid where the regression would make it negative; hence both.
    columns = np.stack([np.ones_like(above), -x * np.ones_like(above), np.log(below)], axis=2)
    weights = (above / loss) ** 2
    free, _ = _regress(columns, np.log(above), weights)
    alpha = np.where(alpha > 0, alpha, np.clip(free[:, 2], 0.02, 50.0))
    coefficients, order = _regress(columns[..., :2], np.log(above) - alpha[:, None] * np.log(below), weights)
    beta, c = np.exp(np.clip(coefficients[:, 0], -60, 60)), np.clip(coefficients[:, 1], 1e-3, 20.0)
    result = {"e_inf": floor, "e_0": chance, "alpha": alpha, "beta": beta, "c": c}
    return {name: value[order] for name, value in result.items()}


def kaplan_starts(log: Mapping[str, np.ndarray], log_loss: np.ndarray) -> dict[str, np.ndarray]:
    """Return starts of `kaplan`: L^(1 / alpha_D) is linear in N_c^(alpha_N / alpha_D) and D_c."""
    exponents = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    combinations = grid([exponents, exponents])
    alpha_n, alpha_d = combinations.T
    ratio = (alpha_n / alpha_d)[:, None]
    target = log_loss / alpha_d[:, None]
    columns = np.exp(np.stack([-ratio * log["params"] - target, -log["tokens"] - target], axis=2))
    coefficients, _ = project(columns, np.ones(len(log_loss)))
    model, tokens = np.log(coefficients).T
    model = model / ratio[:, 0]
    fitted = alpha_d[:, None] * np.logaddexp(ratio * (model[:, None] - log["params"]), tokens[:, None] - log["tokens"])
    order = np.argsort(np.abs(fitted - log_loss).sum(1), kind="stable")
    result = {"N_c": np.exp(model), "D_c": np.exp(tokens), "alpha_N": alpha_n, "alpha_D": alpha_d}
    return {name: value[order] for name, value in result.items()}


def data_constrained_starts(log: Mapping[str, np.ndarray], log_loss: np.ndarray) -> dict[str, np.ndarray]:
    """Return starts of `data_constrained`: given exponents and R_D*, all parameters taken as useful, it is linear.

    The heights found tell how many parameters are useful; with those it is solved once more, as further starts.
    """
    exponents = (0.1, 0.25, 0.5, 0.9)
    combinations = grid([exponents, exponents, (2.0, 10.0, 50.0), (1.0, 10.0)])
    alpha, beta, tokens_life, params_life = (column[:, None] for column in combinations.T)
    unique, params = log["unique_tokens"], log["params"] + np.zeros_like(alpha)
    tokens = _useful(unique, log["tokens"], tokens_life)
    weights = np.ones(len(log_loss))

    def terms(params: np.ndarray) -> np.ndarray:
        return np.exp(np.stack([np.zeros_like(tokens), -alpha * params, -beta * tokens], axis=2) - log_loss[:, None])

    coefficients, _ = project(terms(params), weights)
    heights = np.log(alpha[:, 0] * coefficients[:, 1]) - np.log(beta[:, 0] * coefficients[:, 2])
    needed = np.minimum((heights[:, None] + beta * unique) / alpha, params)
    both = np.concatenate([terms(params), terms(_useful(needed, params, params_life))])
    coefficients, order = project(both, weights)
    result = dict(zip(("E", "A", "B"), coefficients.T, strict=True))
    result |= dict(zip(("alpha", "beta", "R_D*", "R_N*"), np.tile(combinations, (2, 1)).T, strict=True))
    return {name: value[order] for name, value in result.items()}


def _useful(log_unique: np.ndarray, log_size: np.ndarray, life: np.ndarray) -> np.ndarray:
    """Return the logarithm of U + U R (1 - exp(-(size/U - 1) / R)), as `laws.effective` does."""
    excess = np.expm1(np.clip(log_size - log_unique, 0.0, 300.0))
    return log_unique + np.log1p(-life * np.expm1(-excess / life))
