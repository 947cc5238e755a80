"""What ten times the data would bring, forecast from the end of one learning curve.

The forecast averages over laws on a grid (Bayesian model averaging; Hoeting et al. 1999). Errors are taken relative to
the one at the end, N examples, so the amplitude is an additive constant in logarithms and is integrated analytically:

    error(n) / error(N) = s + (1 - s) ((sqrt(n / N) + u) / (1 + u))^(-2 c)

With u = 0 this is e + b n^-c, and s = e / error(N) is the floor's share at the end. Three laws take part: flat
(s = 1), a power law (s = 0) and a power law with a floor (0 < s < 1, with Jeffreys' prior of a share). u > 0 bends the
curve to a plateau at its start, as at the error of chance, with a wide bend.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.90  # of the interval
TIMES = 10.0  # the data
# Older points say little about the end and may lie on a start plateau, but a floor shows only over a range of sizes.
WINDOW_DECADES = 2.5
LEAST_POINTS = 4

FLAT, POWER, FLOOR = 0.25, 0.25, 0.5  # prior probabilities of the three laws
EXPONENTS = (0.05, 2.0)  # log-uniform; whole curves were reported from 0.05 (language models) to about 1
STARTS = ((0.0, 0.7), (0.1, 0.1), (0.3, 0.1), (1.0, 0.1))  # u and its prior probability
# No law is exact. At d decades from the end a point may miss it by this times d^2 standard deviations of one seed;
# and the prior probability of that.
MISFITS = ((0.0, 0.8), (1.0, 0.07), (4.0, 0.07), (16.0, 0.06))
# The relative spread of one seed, with the weight of one degree of freedom: it matters where seeds do not show it.
SPREAD, SPREAD_FREEDOM = 0.02, 1.0

LINE = 100  # exponents of the power law
ROWS, COLUMNS = 96, 32  # exponents, and shares for each, of the law with a floor
NEGLIGIBLE = 1e-4  # of a range's largest weight: where the finer grid ends


@dataclass(frozen=True)
class Forecast:
    """The share of the error at the end that ten times the data would take away; 0.2 is a fall by a fifth."""

    fall: float  # median
    low: float  # ends of the interval that holds it with probability LEVEL
    high: float
    flat: float  # probability that the fall is below the `flat_fall` asked for


@dataclass(frozen=True)
class _End:
    """The points of one curve's end, in logarithms."""

    sizes: Floats  # (points,), relative to the last one
    logs: Floats  # (points,) of the mean errors
    weights: Floats  # (points, misfits): precisions relative to one seed's
    squares: float  # sum of squared relative deviations of seeds from their means, and of the prior
    freedom: float  # degrees of freedom of the posterior spread


Laws = tuple[Floats, Floats]  # of a grid, (laws,) each: the falls that they forecast, and log weights given the points


def in_window(sizes: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Say which of the ascending sizes the forecast uses: the last 2.5 decades, at least the last 4."""
    ascending = np.asarray(sizes, dtype=float)
    first = min(ascending[-1] / 10**WINDOW_DECADES * (1 - 1e-9), ascending[-LEAST_POINTS:][0])
    return ascending >= first


def forecast_fall(
    sizes: npt.ArrayLike,
    values: npt.ArrayLike,
    *,
    standard_errors: npt.ArrayLike,
    seeds: npt.ArrayLike,
    flat_fall: float = 0.05,
) -> Forecast:
    """Return how far ten times the data would bring the error down from where the curve ends.

    The variance of a point is that of its mean over seeds (one relative spread, known from all points' seeds and from
    the misfit together) plus a misfit of the law that grows with the distance from the end. The laws are averaged by
    their marginal likelihood, with the spread integrated out.

    Args:
        sizes: ascending numbers of examples, (points,), at least three; those outside `in_window` are ignored.
        values: positive mean errors, (points,).
        standard_errors: of the means over seeds, (points,); NaN with one seed.
        seeds: behind each mean, (points,).
        flat_fall: below this share a fall counts as none for `Forecast.flat`.

    Raises:
        ValueError: a value is not finite or not above zero: it has no logarithm.
    """
    if not all(np.isfinite(value) and value > 0 for value in np.ravel(values)):
        raise ValueError(f"Expected finite errors above zero, found {list(np.ravel(values))}; leave the others out.")
    keep = in_window(sizes)
    ends, means, errors, k = (np.asarray(column, float)[keep] for column in (sizes, values, standard_errors, seeds))
    distance = np.log10(ends[-1] / ends)[:, None]
    misfits = np.array([misfit for misfit, _ in MISFITS])
    end = _End(
        sizes=ends / ends[-1],
        logs=np.log(means),
        weights=1 / (1 / k[:, None] + (distance**2 * misfits) ** 2),
        squares=float(((k - 1) * k * np.nan_to_num(errors) ** 2 / means**2).sum()) + SPREAD_FREEDOM * SPREAD**2,
        freedom=float((k - 1).sum()) + SPREAD_FREEDOM + len(ends) - 1,
    )
    laws = [_weighed(end, np.ones((1, len(ends) + 1)), np.array([FLAT]))]
    for start, prior in STARTS:
        laws += [_power(end, start, prior), _with_floor(end, start, prior)]
    falls, logs = (np.concatenate(parts) for parts in zip(*laws, strict=True))
    order = np.argsort(falls, kind="stable")
    falls, weights = falls[order], np.exp(logs[order] - logs.max())
    reached = np.cumsum(weights) / weights.sum()
    places = np.searchsorted(reached, [0.5, (1 - LEVEL) / 2, (1 + LEVEL) / 2])
    fall, low, high = falls[np.minimum(places, len(falls) - 1)].tolist()
    return Forecast(fall, low, high, float(weights[falls < flat_fall].sum() / weights.sum()))


def _power(end: _End, start: float, prior: float) -> Laws:
    """Weigh the exponents of the power law."""
    whole = np.log([EXPONENTS])

    def weigh(ends: Floats) -> Laws:
        share = np.ptp(ends) / np.ptp(whole)
        curves = _drops(end, start, _middles(ends, LINE)[0])
        return _weighed(end, curves, np.full(LINE, prior * POWER * share / LINE))

    return _refined(weigh, whole, LINE)


def _with_floor(end: _End, start: float, prior: float) -> Laws:
    """Weigh the floor's share s for each exponent of a grid. With s = sin^2 a, Jeffreys' prior is uniform in a."""
    drops = _drops(end, start, _middles(np.log([EXPONENTS]), ROWS)[0])[:, None, :]
    whole = np.tile([0.0, np.pi / 2], (ROWS, 1))

    def weigh(ends: Floats) -> Laws:
        shares = np.sin(_middles(ends, COLUMNS))[:, :, None] ** 2
        curves = (shares + (1 - shares) * drops).reshape(ROWS * COLUMNS, -1)
        priors = prior * FLOOR / ROWS * np.ptp(ends, axis=1) / np.ptp(whole, axis=1) / COLUMNS
        return _weighed(end, curves, np.repeat(priors, COLUMNS))

    return _refined(weigh, whole, COLUMNS)


def _refined(weigh: Callable[[Floats], Laws], whole: Floats, number: int) -> Laws:
    """Weigh cells of the whole ranges, and then as many of the part of each range that has weight."""
    middles = _middles(whole, number)
    logs = weigh(whole)[1].reshape(middles.shape)
    held = logs > logs.max(axis=1, keepdims=True) + np.log(NEGLIGIBLE)
    first, last = held.argmax(axis=1), number - 1 - held[:, ::-1].argmax(axis=1)
    rows, spare = np.arange(len(middles)), 1.5 * (middles[:, 1] - middles[:, 0])  # a cell on either side
    low, high = middles[rows, first] - spare, middles[rows, last] + spare
    return weigh(np.stack([np.maximum(low, whole[:, 0]), np.minimum(high, whole[:, 1])], axis=1))


def _middles(ends: Floats, number: int) -> Floats:
    """Return the middles (ranges, number) of equal cells between the ends (ranges, 2)."""
    return ends[:, :1] + np.ptp(ends, axis=1)[:, None] * (np.arange(number) + 0.5) / number


def _drops(end: _End, start: float, logs: Floats) -> Floats:
    """Return ((sqrt(n / N) + u) / (1 + u))^(-2 c) for each log c at each point and at ten times the data."""
    roots = np.sqrt(np.append(end.sizes, TIMES))
    return ((roots + start) / (1 + start)) ** (-2 * np.exp(logs)[:, None])


def _weighed(end: _End, curves: Floats, priors: Floats) -> Laws:
    """Weigh laws of prior probabilities (laws,), given by their errors (laws, points + 1) relative to the last point's.

    Amplitude and spread are integrated out: with weights w, residuals r and v degrees of freedom the likelihood is
    sqrt(prod w / sum w) (squares + sum w (r - mean r)^2)^(-v/2).
    """
    residuals = end.logs - np.log(curves[:, :-1])
    total = end.weights.sum(axis=0)
    misses = np.maximum(residuals**2 @ end.weights - (residuals @ end.weights) ** 2 / total, 0)
    chances = np.log([probability for _, probability in MISFITS])
    scale = chances + 0.5 * (np.log(end.weights).sum(axis=0) - np.log(total))
    logs = scale - 0.5 * end.freedom * np.log(end.squares + misses)
    return 1 - curves[:, -1], functools.reduce(np.logaddexp, logs.T) + np.log(priors)
