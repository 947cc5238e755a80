"""IsoFLOP profiles: loss against parameters at one compute, fitted by the form that two power laws take there.

At fixed compute C = 6 N D the surface E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, arXiv:2203.15556) is, exactly,

    L(N) = L* + kappa phi(log(N/N*)),   phi(v) = [(e^{beta v} - 1)/beta + (e^{-alpha v} - 1)/alpha]/(alpha + beta)

with phi(v) = v^2/2 + (beta - alpha) v^3/6 + ..., so a parabola through log N is the limit alpha = beta = 0. Where the
exponents differ, a parabola misplaces N*, by an amount that depends on how wide and how well centred the profile is.
Here every profile has its own L*, kappa and N*, and all profiles share the two exponents.

The fit is by variable projection: with w = log N - (mean of the profile) and s(w) = (e^{beta w} - e^{-alpha w})/(alpha
+ beta), the three functions 1, s = phi' and phi span every profile, so that only the exponents are searched for.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]

# Reported exponents lie between 0.03 and 0.8. Below 0.01 a profile is a parabola for every practical purpose.
SMALLEST_EXPONENT, LARGEST_EXPONENT = 0.01, 2.0
STARTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3)
ITERATIONS, ROBUST_ROUNDS = 100, 20
HUBER = 1.345  # standard deviations from which a residual counts less; 95 % efficient for Gaussian noise
ROUNDING = 1e-10  # relative residuals below this are rounding, not noise
# Residuals are enlarged by 1/(1 - leverage)^power: 1/2 makes their variance right (HC2), 1 is the jackknife's (HC3).
# Percentile intervals need more than HC2; in simulations halfway covers best (87 to 94 % for 90 %, 6 to 30 rows).
LEVERAGE_POWER = 0.75
CHUNK = 2_000_000  # numbers in the largest temporary array


@dataclass(frozen=True)
class Profiles:
    """Rows of several profiles side by side, padded with weight 0 to the longest.

    `flops` [profiles]; `centres` [profiles], mean log params of each; `sizes` [profiles, rows], log params minus the
    centre; `loss` [profiles, rows]; `weights` [profiles, rows], by which residuals are multiplied; `groups` [profiles,
    rows], integers from 0: rows of a group share their noise.
    """

    flops: Array
    centres: Array
    sizes: Array
    loss: Array
    weights: Array
    groups: npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Shapes:
    """Fitted profiles: `exponents` [fits, 2] (alpha, beta), `coefficients` [fits, profiles, 3] of 1, s and phi."""

    exponents: Array
    coefficients: Array


@dataclass(frozen=True)
class Minima:
    """The minima of fitted profiles; NaN where a fitted profile has none.

    `log_params`, `loss` and `curvature` (d^2 L/d(log N)^2) are [fits, profiles].
    """

    log_params: Array
    loss: Array
    curvature: Array


def basis(exponents: Array, sizes: Array) -> Array:
    """Return 1, s, phi and s' at centred log sizes, [fits, profiles, rows, 4], for exponents [fits, 2].

    Args:
        exponents: alpha and beta, positive.
        sizes: [profiles, rows], or [fits, profiles, rows].
    """
    alpha, beta = exponents[:, None, None, 0], exponents[:, None, None, 1]
    up, down = np.expm1(beta * sizes), np.expm1(-alpha * sizes)
    both = alpha + beta
    slope = (beta * (up + 1) + alpha * (down + 1)) / both
    return np.stack([np.ones_like(up), (up - down) / both, (up / beta + down / alpha) / both, slope], axis=-1)


def minima(shapes: Shapes, centres: Array) -> Minima:
    """Return the minima of fitted profiles, [fits, profiles], in closed form."""
    alpha, beta = shapes.exponents[:, :1], shapes.exponents[:, 1:]
    _, slope, bend = np.moveaxis(shapes.coefficients, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = slope / np.where(bend > 0, bend, np.nan)
        at = (np.log1p(-alpha * ratio) - np.log1p(beta * ratio)) / (alpha + beta)
    at = np.where(np.isfinite(at), at, np.nan)
    values = basis(shapes.exponents, at[..., None])[:, :, 0]
    # s'' = (beta - alpha) s' + alpha beta s, the differential equation of which 1, s and phi are the solutions
    second = (beta - alpha) * values[..., 3] + alpha * beta * values[..., 1]
    loss = (values[..., :3] * shapes.coefficients).sum(-1)
    return Minima(at + centres, loss, slope * second + bend * values[..., 3])


def fit_profiles(profiles: Profiles) -> tuple[Shapes, Array]:
    """Fit all profiles with shared exponents, robustly, and return the fit and its weights [profiles, rows].

    Minimises Huber's loss of relative residuals, its scale taken from their median absolute value, by reweighted least
    squares from the best of 36 pairs of exponents. Robust because the ends of a real profile, hardly trained or nearly
    converged, leave the law first.
    """
    theta = np.log([(alpha, beta) for alpha in STARTS for beta in STARTS])
    weights, losses = profiles.weights, profiles.loss[None]

    def repeated(number: int) -> Array:
        return np.broadcast_to(losses, (number, *profiles.loss.shape))

    scores = _project(profiles, weights, theta, repeated(len(theta)))[0]
    theta, scores = _solve(profiles, weights, theta[np.argsort(scores)[:3]], repeated(3))
    theta = theta[[int(np.argmin(scores))]]
    there = profiles.weights > 0
    rows, unknowns = int(there.sum()), 3 * len(profiles.weights) + 2
    for _ in range(ROBUST_ROUNDS):
        sizes = np.abs(_residuals(profiles, theta, losses, weights)[0]) * profiles.weights
        # The median residual of a fit with few degrees of freedom is too small: some are nearly zero by force.
        scale = 1.4826 * float(np.median(sizes[there])) * np.sqrt(rows / max(rows - unknowns, 1))
        limit = HUBER * max(scale, ROUNDING)
        new = profiles.weights * np.sqrt(np.where(sizes > limit, limit / np.maximum(sizes, limit), 1.0))
        settled = np.allclose(new, weights, rtol=1e-4)
        weights = new
        theta, _ = _solve(profiles, weights, theta, losses)
        if settled:
            break
    return _shapes(profiles, weights, theta, losses), weights


def resample_profiles(profiles: Profiles, shapes: Shapes, *, weights: Array, resamples: int, seed: int) -> Shapes:
    """Refit wild-bootstrap resamples of a fit, and return [resamples] fits.

    A resample is the fitted profiles plus every row's own residual, enlarged for its leverage and times a random number
    of mean 0 and variance 1 that its group shares (Webb's six points): sizes stay as they are, so that no resample
    loses the end of a profile that brackets the minimum, noise may differ from row to row, and rows of a group, such as
    those of one training curve, may be as correlated as they like.
    """
    theta = np.log(shapes.exponents)
    # The share of each row's loss in its own fitted value [profiles, rows], at most 0.9 to stay finite.
    solved = columns, inverse, _ = _coefficients(profiles, weights, theta, profiles.loss[None])
    outside = _outside(profiles, weights, theta, solved)[0]
    flat = outside.reshape(-1, 2)
    shared = ((outside @ np.linalg.pinv(flat.T @ flat, rcond=1e-12)) * outside).sum(-1)
    leverage = np.clip(((columns @ inverse) * columns).sum(-1)[0] + shared, 0, 0.9)
    # Fixed weights understate the spread of a Huber estimate: its derivative by a row is 1 within the bulk and 0
    # beyond, less than the row's weight (Huber 1981, section 7.6).
    there = profiles.weights > 0
    shares = (weights[there] / profiles.weights[there]) ** 2
    inflation = float(shares.mean() / max((shares > 1 - 1e-9).mean(), 0.5))
    fitted = (basis(shapes.exponents, profiles.sizes)[..., :3] @ shapes.coefficients[..., None])[0, ..., 0]
    spread = (profiles.loss - fitted) / (1 - leverage) ** LEVERAGE_POWER * inflation
    webb = np.array([sign * np.sqrt(size / 2) for sign in (-1, 1) for size in (1, 2, 3)])
    draws = np.random.default_rng(seed).choice(webb, size=(resamples, int(profiles.groups.max()) + 1))
    most = max(1, CHUNK // (profiles.loss.size * 8))
    parts = []
    for first in range(0, resamples, most):
        signs = draws[first : first + most]
        losses = fitted + spread * signs[:, profiles.groups]
        found, _ = _solve(profiles, weights, np.repeat(theta, len(signs), axis=0), losses)
        parts.append(_shapes(profiles, weights, found, losses))
    return Shapes(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("exponents", "coefficients")))


def noise(profiles: Profiles, shapes: Shapes, *, weights: Array) -> tuple[Array, float]:
    """Return the inverse Gram matrices [profiles, 3, 3] of the fit and the standard deviation of a weighted residual.

    Their product with the variance is the covariance of a profile's coefficients, the exponents held fixed.
    """
    columns = weights[..., None] * basis(shapes.exponents, profiles.sizes)[0, ..., :3]
    residuals = _residuals(profiles, np.log(shapes.exponents), profiles.loss[None], weights)[0] * weights
    freedom = int((profiles.weights > 0).sum()) - 3 * len(profiles.flops) - 2
    deviation = np.sqrt((residuals**2).sum() / freedom) if freedom > 0 else np.inf
    return np.linalg.inv(np.swapaxes(columns, -1, -2) @ columns), max(float(deviation), ROUNDING)


def _coefficients(profiles: Profiles, weights: Array, theta: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Return weighted columns [fits, profiles, rows, 3], inverse Grams and coefficients [fits, profiles, 3]."""
    columns = weights[..., None] * basis(np.exp(theta), profiles.sizes)[..., :3]
    inverse = np.linalg.inv(np.swapaxes(columns, -1, -2) @ columns)
    coefficients = (inverse @ (np.swapaxes(columns, -1, -2) @ (weights * losses)[..., None]))[..., 0]
    return columns, inverse, coefficients


def _project(profiles: Profiles, weights: Array, theta: Array, losses: Array) -> tuple[Array, Array, Array]:
    """Return sum of squares [fits], gradient/2 [fits, 2] and Gauss-Newton matrix [fits, 2, 2] in log exponents.

    Kaufman's (1975) derivative of the projected residual: what the columns' own derivatives leave outside their span.
    """
    solved = columns, _, coefficients = _coefficients(profiles, weights, theta, losses)
    residual = weights * losses - (columns @ coefficients[..., None])[..., 0]
    flat = _outside(profiles, weights, theta, solved).reshape(len(theta), -1, 2)
    slope = -(np.swapaxes(flat, -1, -2) @ residual.reshape(len(theta), -1, 1))[..., 0]
    return (residual**2).sum((-1, -2)), slope, np.swapaxes(flat, -1, -2) @ flat


def _outside(profiles: Profiles, weights: Array, theta: Array, solved: tuple[Array, Array, Array]) -> Array:
    """Return the derivatives of the fitted profiles by the log exponents, outside the span of the columns."""
    columns, inverse, coefficients = solved
    exponents = np.exp(theta)
    alpha, beta = exponents[:, None, 0], exponents[:, None, 1]
    # The profile as constant + a e^{-alpha w} + b e^{beta w}: only w e^{-alpha w} and w e^{beta w} leave the span.
    falling = (coefficients[..., 2] / alpha - coefficients[..., 1]) / (alpha + beta)
    rising = (coefficients[..., 2] / beta + coefficients[..., 1]) / (alpha + beta)
    sizes = profiles.sizes * weights
    by_alpha = -(alpha * falling)[..., None] * sizes * np.exp(-alpha[..., None] * profiles.sizes)
    by_beta = (beta * rising)[..., None] * sizes * np.exp(beta[..., None] * profiles.sizes)
    changes = np.stack([by_alpha, by_beta], axis=-1)
    return changes - columns @ (inverse @ (np.swapaxes(columns, -1, -2) @ changes))


def _solve(profiles: Profiles, weights: Array, theta: Array, losses: Array) -> tuple[Array, Array]:
    """Minimise each fit's sum of squares over its log exponents [fits, 2] by Levenberg-Marquardt within the bounds."""
    low, high = np.log(SMALLEST_EXPONENT), np.log(LARGEST_EXPONENT)
    theta = theta.copy()
    score, slope, matrix = _project(profiles, weights, theta, losses)
    damping, busy = np.full(len(theta), 1e-3), np.arange(len(theta))
    for _ in range(ITERATIONS):
        held = ((theta <= low) & (slope > 0)) | ((theta >= high) & (slope < 0))
        free = ~held[busy]
        gram = matrix[busy] * free[:, :, None] * free[:, None, :]
        scale = np.einsum("fii->f", gram)[:, None] + np.finfo(float).tiny
        ridge = np.where(free, damping[busy, None] * np.einsum("fii->fi", gram) / scale, 1.0)
        # -(gram / scale + diag(ridge))^-1 slope / scale, by Cramer's rule
        one, two = (gram[:, k, k] / scale[:, 0] + ridge[:, k] for k in (0, 1))
        cross, down = gram[:, 0, 1] / scale[:, 0], slope[busy] * free / scale
        determinant = np.maximum(one * two - cross**2, np.finfo(float).eps ** 2)
        step = np.stack([two * down[:, 0] - cross * down[:, 1], one * down[:, 1] - cross * down[:, 0]], axis=-1)
        step = -step / determinant[:, None]
        trial = np.clip(theta[busy] + np.clip(step, -1, 1), low, high)
        new, new_slope, new_matrix = _project(profiles, weights, trial, losses[busy])
        better = new < score[busy]
        moved = np.abs(trial - theta[busy]).max(-1)
        kept = busy[better]
        theta[kept], score[kept] = trial[better], new[better]
        slope[kept], matrix[kept] = new_slope[better], new_matrix[better]
        damping[busy] *= np.where(better, 0.2, 5.0)
        busy = busy[(moved > 1e-12) & (damping[busy] < 1e12)]
        if not len(busy):
            break
    return theta, score


def _shapes(profiles: Profiles, weights: Array, theta: Array, losses: Array) -> Shapes:
    return Shapes(np.exp(theta), _coefficients(profiles, weights, theta, losses)[2])


def _residuals(profiles: Profiles, theta: Array, losses: Array, weights: Array) -> Array:
    """Return loss minus fitted loss, [fits, profiles, rows], unweighted."""
    coefficients = _coefficients(profiles, weights, theta, losses)[2]
    fitted = (basis(np.exp(theta), profiles.sizes)[..., :3] @ coefficients[..., None])[..., 0]
    return losses - fitted
