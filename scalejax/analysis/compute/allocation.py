"""How to spend compute: the best size and number of tokens for a budget, and what another size costs.

C = 6 N D throughout (FLOPs, parameters, tokens). Three approaches (Hoffmann et al. 2022, arXiv:2203.15556; why they
disagree when learning rates and warm-up are not tuned: Porian et al. 2024, arXiv:2406.19146):

    1. `fit_envelope`: the lowest loss at each compute over training curves;
    2. `fit_isoflop`: the minima of loss against parameters at fixed compute;
    3. a fit of the law "chinchilla", L = E + A/N^alpha + B/D^beta, in closed form.

`compute_optimal` takes what any of them returns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from scalejax.analysis.compute.frontier import FLOPS_PER_PARAMETER_TOKEN, Bounds, Frontier, bounds, central, path_at

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit

Array = npt.NDArray[np.floating[Any]]
NAMES = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal sizes, each field shaped like `flops`; a float if that was a number.

    Attributes:
        flops: the budgets.
        params: best number of parameters.
        tokens: flops / (6 params).
        loss: loss to expect there; NaN where the approach cannot say.
        low: lower ends of the intervals, `low.params` and so on; NaN without resamples.
        high: upper ends.
        level: probability of the intervals.
        status: "ok", or the status of the fit, or why there is no optimum.
    """

    flops: Any
    params: Any
    tokens: Any
    loss: Any
    low: Bounds
    high: Bounds
    level: float
    status: str


@dataclass(frozen=True)
class Misallocation:
    """What it costs to train a model that is `factor` times too large (below 1: too small).

    Every field but `factor`, `level` and `status` broadcasts flops and factor.

    Attributes:
        factor: params over the optimal params of the budget.
        loss: loss with that size at the same compute.
        extra_loss: that loss minus the optimal one.
        wasted: compute over the compute for which an optimal model reaches the same loss, at least 1; 1.1 means that a
            tenth of the smaller budget was wasted. The same at every budget, since the law is made of power laws.
        at_this_size: compute that a model of this size needs for the optimal loss of the budget, over the budget: the
            price of a smaller, cheaper model that is trained longer. inf where no number of tokens is enough.
        low: lower ends of the intervals by name of the field; NaN without resamples.
        high: upper ends.
        level: probability of the intervals.
        status: as for `Allocation`.
    """

    factor: Any
    loss: Any
    extra_loss: Any
    wasted: Any
    at_this_size: Any
    low: Mapping[str, Any] = field(repr=False)
    high: Mapping[str, Any] = field(repr=False)
    level: float
    status: str


def compute_optimal(fit: "Fit | Frontier", flops: npt.ArrayLike, *, level: float = 0.9) -> Allocation:
    """Return the number of parameters and tokens of lowest loss at each compute, with C = 6 N D.

    For a law (Hoffmann et al. 2022, eq. 4): N* = G (C/6)^(beta/(alpha + beta)), G = (alpha A/(beta B))^(1/(alpha +
    beta)). For a frontier: the power laws through its optima. Intervals are central ones over the bootstrap resamples.

    Args:
        fit: of the law "chinchilla", from `fit_law`, or a frontier from `fit_isoflop` or `fit_envelope`.
        flops: budgets, a number or an array.
        level: probability of the intervals.

    Raises:
        ValueError: another law, a budget that is not positive, or a level outside (0, 1).
    """
    budgets = _positive(flops, "flops")
    if isinstance(fit, Frontier):
        best, samples, status = path_at(fit.path, budgets), path_at(fit.samples, budgets), fit.status
    else:
        values, resampled, status = _parameters(fit, budgets.ndim)
        best, samples = _optimum(values, budgets), _optimum(resampled, budgets)
    low, high = bounds(samples, level)
    ends = [Bounds(*(_plain(values) for values in (end.params, end.tokens, end.loss))) for end in (low, high)]
    params, tokens, loss = (_plain(values[0]) for values in (best.params, best.tokens, best.loss))
    return Allocation(_plain(budgets), params, tokens, loss, *ends, level=level, status=status)


def misallocation(fit: "Fit", flops: npt.ArrayLike, *, factor: npt.ArrayLike, level: float = 0.9) -> Misallocation:
    """Return what it costs to choose a number of parameters that is `factor` times the compute-optimal one.

    With R* = L* - E the reducible loss at the optimum, A/N*^alpha = R* beta/(alpha + beta) and B/D*^beta = R*
    alpha/(alpha + beta), so that k N* parameters at the same compute leave R* h(k),

        h(k) = (beta k^-alpha + alpha k^beta)/(alpha + beta),

    and since R* ~ C^-(alpha beta/(alpha + beta)), a share of 1 - h^-(1/alpha + 1/beta) of the compute is wasted.

    Args:
        fit: of the law "chinchilla".
        flops: budgets, a number or an array.
        factor: params over optimal params, positive; broadcasts with flops.
        level: probability of the intervals.

    Raises:
        ValueError: as `compute_optimal`; a frontier, which has no law off its optima.
    """
    budgets, factors = np.broadcast_arrays(_positive(flops, "flops"), _positive(factor, "factor"))
    if isinstance(fit, Frontier):
        raise ValueError("A frontier knows the optima only; fit the law chinchilla to tell the cost of other sizes.")
    values, resampled, status = _parameters(fit, budgets.ndim)
    best = {name: _plain(cost[0]) for name, cost in _cost(values, budgets, factors).items()}
    ends = {name: central(samples, level) for name, samples in _cost(resampled, budgets, factors).items()}
    low, high = ({name: _plain(pair[side]) for name, pair in ends.items()} for side in (0, 1))
    return Misallocation(_plain(factors), **best, low=low, high=high, level=level, status=status)


def _optimum(values: Mapping[str, Array], flops: Array) -> Bounds:
    """Return optimal params, tokens and loss [fits, ...] of parameters [fits, 1, ...]."""
    floor, a, b, alpha, beta = (values[name] for name in NAMES)
    log_pairs = np.log(flops / FLOPS_PER_PARAMETER_TOKEN)
    log_params = (np.log(alpha / beta) + np.log(a) - np.log(b) + beta * log_pairs) / (alpha + beta)
    loss = floor + np.exp(np.log(a) - alpha * log_params) + np.exp(np.log(b) - beta * (log_pairs - log_params))
    return Bounds(np.exp(log_params), np.exp(log_pairs - log_params), loss)


def _cost(values: Mapping[str, Array], flops: Array, factor: Array) -> dict[str, Array]:
    """Return the fields of a misallocation [fits, ...] of parameters [fits, 1, ...]."""
    alpha, beta = values["alpha"], values["beta"]
    best = _optimum(values, flops).loss
    off = np.log(factor)
    # h - 1, exact near the optimum too
    more = (beta * np.expm1(-alpha * off) + alpha * np.expm1(beta * off)) / (alpha + beta)
    extra = (best - values["E"]) * np.maximum(more, 0)
    # With params fixed, B/D^beta must make up for A/N^alpha: (D*/D)^beta = 1 + (beta/alpha)(1 - k^-alpha).
    room = 1 - beta / alpha * np.expm1(-alpha * off)
    with np.errstate(divide="ignore"):
        longer = np.where(room > 0, factor * np.maximum(room, 0) ** (-1 / beta), np.inf)
    wasted = np.exp(np.log1p(np.maximum(more, 0)) * (1 / alpha + 1 / beta))
    costs = {"loss": best + extra, "extra_loss": extra, "wasted": wasted, "at_this_size": longer}
    return {name: np.where(np.isnan(best), np.nan, cost) for name, cost in costs.items()}


def _parameters(fit: "Fit", rank: int) -> tuple[dict[str, Array], dict[str, Array], str]:
    """Return the parameters and those of the resamples, each [fits, 1, ...], and the status.

    Parameters that leave no optimum (a term that is absent, or that grows) become NaN: there is nothing to compute.
    """
    law = getattr(fit.law, "name", fit.law)
    if law != "chinchilla":
        raise ValueError(
            f"The law {law} has no compute-optimal size in closed form; fit the law chinchilla to params and tokens."
        )
    if not set(NAMES) <= set(fit.params):
        raise ValueError(
            "The fit has parameters of several curves; fit the law to the curve whose compute is asked for."
        )

    def usable(named: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        values = {name: np.asarray(named[name], np.float64).reshape(-1, *(1,) * rank) for name in NAMES}
        good = np.all([values[name] > 0 for name in NAMES[1:]], axis=0)
        return {name: np.where(good, value, np.nan) for name, value in values.items()}

    values, status = usable(fit.params), fit.status
    if np.isnan(values["alpha"]).all():
        status = "no optimum: with a term of the law that is zero, the loss falls with params or with tokens alone"
    return values, usable(fit.samples) if fit.samples else values, status


def _positive(values: npt.ArrayLike, name: str) -> Array:
    array = np.asarray(values, np.float64)
    if not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be positive and finite; it is {values}.")
    return array


def _plain(array: Array) -> Any:
    """Return a float for a number, and an array otherwise."""
    return float(array) if array.ndim == 0 else array
