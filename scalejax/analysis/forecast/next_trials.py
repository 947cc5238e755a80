"""The next trials: those that would narrow the forecasts most for their FLOPs."""

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalejax.analysis.forecast.anchor import DRAWS, Anchor
from scalejax.analysis.forecast.observed import Observed, Table
from scalejax.analysis.forecast.statement import Statement
from scalejax.text import short_count

Floats = npt.NDArray[np.float64]

CANDIDATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the anchor's parameters, and its data
SAME = 0.05  # of the logarithms of parameters and data, below which a trial is one that was measured
TRIALS = 3  # that are suggested
# Of the anchor's FLOPs: a trial costs that even where it trains next to nothing, as it compiles and evaluates. Without
# it the smallest candidate would win per FLOP, however little it tells.
OVERHEAD = 0.05


def candidates_of(anchor: Anchor, observed: Observed) -> Floats:
    """Return the trials to choose from: times the anchor's parameters, and its data, (candidates, 2)."""
    sizes = CANDIDATES if anchor.sizes else (1.0,)
    grid = [(p, d) for p in sizes for d in CANDIDATES if d * anchor.data <= observed.most_data]
    # A trial that was measured would train nothing.
    measured = np.log(observed.own[["params", "data"]].drop_duplicates().to_numpy(float))
    known = [np.abs(measured - np.log([p * anchor.params, d * anchor.data])).max(axis=1).min() < SAME for p, d in grid]
    grid = [each for each, there in zip(grid, known, strict=True) if not there]
    if not anchor.sizes:
        grid += [(0.25, 1.0), (4.0, 1.0)]  # another size, without which nothing is known of size
    return np.array(grid).reshape(-1, 2)


def next_trials(anchor: Anchor, observed: Observed) -> Table:
    """Return the trials that narrow the forecasts of ten times the data and the parameters most for their FLOPs.

    The draws of log loss at candidates and at what is asked for have a covariance; a trial at a candidate shrinks the
    variance of what is asked for as an observation of a normal variable with a run's noise does (MacKay 1992). The
    trials are chosen one after the other, each by the variance that it takes away over its FLOPs.
    """
    grid = candidates_of(anchor, observed)
    asked = [(1.0, 10.0), (10.0, 1.0)] if anchor.sizes else [(1.0, 10.0)]
    points = np.array([*grid, *asked])
    predicted = [place for place, (p, _) in enumerate(grid) if anchor.sizes or p == 1]
    draws = anchor.posterior.sample(anchor.positions(*points.T), count=DRAWS, seed=anchor.seed)
    cov = np.cov(draws, rowvar=False)
    targets = np.arange(len(grid), len(points))
    noise = anchor.posterior.mean_noise**2
    costs = anchor.cost(*points[: len(grid)].T)
    records, whole = [], float(np.diag(cov)[targets].sum())
    if not anchor.sizes:
        place = len(grid) - 1
        records.append(
            {"params": 4 * anchor.params, "data": anchor.data, "flops": float(costs[place]), "narrows": math.nan}
        )
    while len(records) < TRIALS and predicted:
        shrink = (cov[predicted][:, targets] ** 2).sum(axis=1) / (np.diag(cov)[predicted] + noise)
        best = predicted[int(np.argmax(shrink / (costs[predicted] + OVERHEAD * anchor.flops)))]
        predicted.remove(best)  # a second file of the same trials would train nothing
        gain = float((cov[best, targets] ** 2).sum() / (cov[best, best] + noise))
        records.append(
            {
                "params": float(points[best, 0] * anchor.params),
                "data": float(points[best, 1] * anchor.data),
                "flops": float(costs[best]),
                "narrows": gain / whole if whole > 0 else 0.0,
            }
        )
        cov = cov - np.outer(cov[:, best], cov[best]) / (cov[best, best] + noise)
    return pd.DataFrame(records)


def trials_named(trials: Table, observed: Observed) -> list[Statement]:
    """Name the next trials in a sentence."""
    if trials.empty:
        return []
    named = "; ".join(
        f"{short_count(row['params'])} parameters on {short_count(row['data'])} {observed.data}"
        for row in trials.to_dict("records")
    )
    share = float(np.nansum(trials["narrows"]))
    sentence = (
        f"Next: {named}: of the trials considered these narrow the forecasts most for their FLOPs, by "
        f"{100 * share:.0f} % of their variance."
    )
    return [Statement("next trials", sentence, share)]
