"""Learning curves as one could expect them before seeing any: the laws of one predictor that a forecast averages over.

All are log losses relative to the one at the last row, with t = log(x / last x):

    flat     0
    power    -c t
    floor    log(s + (1 - s) ((e^t + u) / (1 + u))^-c)      a share s of the loss at the end is irreducible; u bends the
                                                            curve to a plateau at its start, as at the error of chance
    broken   -c t - (d - c) w (softplus((t - b) / w) - softplus(-b / w))    the exponent turns from c to d around b,
                                                            over a width of w, as in BNSL (Caballero et al. 2022)

Bayesian model averaging (Hoeting et al. 1999) over a sample of them, spread evenly (Sobol' points) over their priors.
Amortised networks (LC-PFN, Adriaensen et al. 2023) learn the same kind of average; with this few numbers it is exact.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.stats import qmc

Floats = npt.NDArray[np.float64]

FLAT, POWER, FLOOR, BROKEN = 0.15, 0.2, 0.4, 0.25  # prior probabilities
EXPONENTS = (0.005, 3.0)  # log-uniform: from curves that cannot be told from flat ones to the steepest published
WIDTHS = (0.05, 1.5)  # of a break, log-uniform, in factors of e
STARTS = 0.4  # probability that a curve has a plateau at its start, which then ends anywhere in the rows
LEAST_SPAN = 0.5  # of the rows that breaks and starts lie in, where they have less, in factors of e
POWERS, OTHERS = 128, 512  # sampled power laws, and laws with a floor or a break

Shape = Callable[[Floats, Floats], Floats]  # (parameters (laws, n), positions (predictors, points)) -> (laws, points)


@dataclass(frozen=True)
class Laws:
    """A weighted sample of laws.

    Attributes:
        families: the shape and the parameters (laws, n) of each family.
        log_weights: prior probabilities over those of sampling, (laws,) over all families.
    """

    families: tuple[tuple[Shape, Floats], ...]
    log_weights: Floats

    def at(self, positions: Floats) -> Floats:
        """Return log losses (laws, points), up to a constant for each law, at positions (predictors, points)."""
        return np.concatenate([shape(parameters, positions) for shape, parameters in self.families])

    def thinned(self, step: int) -> "Laws":
        """Return each `step`-th law of each family: enough to see what is likely at all."""
        families = tuple((shape, parameters[::step]) for shape, parameters in self.families)
        ends = np.cumsum([0, *(len(parameters) for _, parameters in self.families)])
        weights = [self.log_weights[a:b][::step] for a, b in pairwise(ends)]
        # So that a family keeps its probability.
        lost = [np.log((b - a) / len(w)) for (a, b), w in zip(pairwise(ends), weights, strict=True)]
        return Laws(families, np.concatenate([w + each for w, each in zip(weights, lost, strict=True)]))


def learning_curves(positions: Floats) -> Laws:
    """Return the curves that one predictor's rows, at logarithms (1, rows) relative to the last, are forecast by."""
    span = max(-float(positions.min()), LEAST_SPAN)
    log_low, log_high = np.log(EXPONENTS)

    def exponent(uniform: Floats) -> Floats:
        return np.exp(log_low + uniform * (log_high - log_low))

    start, share, power = _points(OTHERS, 3).T[::-1]
    begins = np.where(start < 1 - STARTS, 0.0, np.exp(-span * (start - 1 + STARTS) / STARTS))
    # With s = sin^2 a, Jeffreys' prior of a share is uniform in a.
    floor = np.stack([exponent(power), np.sin(share * np.pi / 2) ** 2, begins], axis=1)
    before, after, place, width = _points(OTHERS, 4).T
    widths = np.exp(np.log(WIDTHS[0]) + width * np.log(WIDTHS[1] / WIDTHS[0]))
    broken = np.stack([exponent(before), exponent(after), -span * place, widths], axis=1)
    families = (
        (FLAT, _power, np.zeros((1, 1))),
        (POWER, _power, exponent((np.arange(POWERS) + 0.5) / POWERS)[:, None]),
        (FLOOR, _floor, floor),
        (BROKEN, _broken, broken),
    )
    priors = [np.full(len(parameters), np.log(prior / len(parameters))) for prior, _, parameters in families]
    return Laws(tuple((shape, parameters) for _, shape, parameters in families), np.concatenate(priors))


def _power(parameters: Floats, positions: Floats) -> Floats:
    return -parameters[:, :1] * positions[0]


def _floor(parameters: Floats, positions: Floats) -> Floats:
    c, s, u = parameters.T[:, :, None]
    return np.log(s + (1 - s) * ((np.exp(positions[0]) + u) / (1 + u)) ** -c)


def _broken(parameters: Floats, positions: Floats) -> Floats:
    c, d, b, w = parameters.T[:, :, None]
    turned = np.logaddexp(0, (positions[0] - b) / w) - np.logaddexp(0, -b / w)
    return -c * positions[0] - (d - c) * w * turned


@functools.cache
def _points(count: int, dimensions: int) -> Floats:
    # The seed is a constant, so that nothing is drawn anew; it has another name in later versions of SciPy.
    return qmc.Sobol(dimensions, seed=abs(dimensions - 3)).random(count)  # pyright: ignore[reportCallIssue]
