"""What a fit does not know: its status in words.

A status is "ok" or "kind: reason". What is looked for: too few points for the number of parameters; runs that all lie
on one line; a law that misses the data systematically; a parameter at its bound; parameters that the data do not
separate; a parameter that can be changed tenfold, or set to zero, while the refitted law hardly gets worse (a flat
profile), or that is as uncertain among the resamples.
"""

from dataclasses import dataclass

import numpy as np

from scalejax.analysis.laws.law import Parameter
from scalejax.analysis.laws.likelihood import pinned
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.search import Found
from scalejax.analysis.laws.uncertainty import NOISE_FREE, Spread
from scalejax.text import number_of

FEW, MISSES, BOUND, UNKNOWABLE = KINDS = "too few points", "no law fits", "at a bound", "not identifiable"
SPARE_POINTS = 2  # distinct points beyond the number of parameters
LINE = 0.05  # share of a predictor's spread that may lie off one line before the runs count as a plane
CONDITIONING = 1e12  # beyond it, float64 differences of the loss are noise
SURE = 6.635  # 99 % of chi-squared: a floor that is not there is claimed once in a hundred fits, if noise is as assumed
UNKNOWN = np.log(10.0)  # a positive parameter is unknown if ten times more, or less, fits as well
UNEXPLAINED = 0.15  # share of the spread of log loss; below it, systematic residuals are small print
SYSTEMATIC = 3.0  # standard errors: one pattern in 700 is chance
SHUFFLES, MOST_PLACES = 400, 2000


@dataclass(frozen=True, eq=False)
class Ended:
    """A search that has ended: the problem, the end found and the spread there.

    `resamples` are the coordinates (B, size) of bootstrap fits; None without a bootstrap.
    """

    problem: Problem
    found: Found
    spread: Spread
    resamples: np.ndarray | None


def status(end: Ended) -> str:
    """Return "ok", or what is wrong as "kind: reason", several joined by "; "."""
    problem, size = end.problem, end.problem.layout.size
    points = np.unique(np.vstack([problem.log_x, problem.rows.curve[: problem.count]]), axis=1).shape[1]
    if points < size + SPARE_POINTS:
        has = f"{number_of(points, 'different point')} for {number_of(size, 'parameter')}"
        return f"{FEW}: {has}; at least {size + SPARE_POINTS} are needed"
    if line := _line(problem):
        return f"{UNKNOWABLE}: {line}"
    reasons = {MISSES: _misses(end), BOUND: _bound(end), UNKNOWABLE: _unknowable(end)}
    return "; ".join(f"{kind}: {reason}" for kind, reason in reasons.items() if reason) or "ok"


def _line(problem: Problem) -> str:
    """Say whether all runs lie on one line in logarithms, such as tokens = 20 params."""
    names = problem.layout.law.predictors
    needed = [name for name in names if name in ("params", "tokens")] or list(problem.predictors)
    rows = problem.log_x
    rows = rows[[names.index(name) for name in needed]] if len(needed) > 1 else rows
    if len(rows) < 2:
        return ""
    centred = rows - rows.mean(1, keepdims=True)
    directions, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    if sizes[1] > LINE * sizes[0]:
        return ""
    slope = directions[1, 0] / directions[0, 0] if directions[0, 0] else np.inf
    first, second = needed[:2]
    if abs(slope) < LINE or not np.isfinite(slope) or abs(slope) > 1 / LINE:
        fixed = second if abs(slope) < LINE else first
        return f"all runs have nearly the same {fixed}; the terms need runs that differ in both"
    if abs(slope - 1) < LINE:
        units = problem.units
        ratio = np.exp(np.median(rows[1] - rows[0]) + units[second] - units[first])
        return f"all runs lie on one line {second} = {ratio:.3g} {first}; add runs off it"
    return f"all runs lie on one line {second} ~ {first}^{slope:.2g}; add runs off it"


def _misses(end: Ended) -> str:
    """Say whether residuals follow a pattern along a predictor and leave a good part of the spread unexplained."""
    if not end.found.converged:
        return "the best fit did not converge; the law may have no minimum here"
    problem, residuals = end.problem, end.spread.residuals
    log_loss, weights = problem.log_loss[: problem.count], problem.weights[: problem.count]
    spread = np.abs(log_loss - np.median(log_loss)) @ weights
    unexplained = np.abs(residuals) @ weights / max(spread, 1e-300)
    if unexplained < UNEXPLAINED or np.abs(residuals).max() < 10 * NOISE_FREE:
        return ""
    score = _alike(np.vstack([problem.log_x, 1e3 * problem.rows.curve[: problem.count]]), residuals)
    if score <= SYSTEMATIC:
        return ""
    return (
        f"neighbouring runs miss it the same way ({score:.1f} standard errors), and it leaves "
        f"{100 * unexplained:.0f} % of the spread of log loss unexplained; look at `residuals`"
    )


def _alike(places: np.ndarray, residuals: np.ndarray) -> float:
    """Return by how many standard errors residuals are more like their neighbours' than chance (Moran 1950).

    Neighbours are the two nearest places, each predictor scaled by its spread; the null distribution is that of
    shuffled residuals. Signed square roots tame single wild residuals. Rows at one place are averaged first.
    """
    places, index = np.unique(places, axis=1, return_inverse=True)
    means = np.bincount(index, np.sign(residuals) * np.sqrt(np.abs(residuals))) / np.bincount(index)
    generator = np.random.default_rng(0)
    if len(means) > MOST_PLACES:
        some = np.sort(generator.choice(len(means), MOST_PLACES, replace=False))
        places, means = places[:, some], means[some]
    if len(means) < 6:
        return 0.0
    scaled = places / np.maximum(places.std(1, keepdims=True), 1e-12)
    distance = np.stack([(row[:, None] - row[None, :]) ** 2 for row in scaled]).sum(0)
    np.fill_diagonal(distance, np.inf)
    near = np.argpartition(distance, 2, axis=1)[:, :2]
    means = means - means.mean()
    shuffled = generator.permuted(np.repeat(means[None], SHUFFLES, axis=0), axis=1)
    chance = np.einsum("sn,snk->s", shuffled, shuffled[:, near])
    return float((means @ means[near].sum(1) - chance.mean()) / max(chance.std(), 1e-300))


def _bound(end: Ended) -> str:
    problem = end.problem
    low, high = problem.layout.bounds()
    reasons = []
    for (parameter, curve), value, least, most in zip(problem.layout.slots, end.found.theta, low, high, strict=True):
        near = 1e-9 * max(1.0, min(abs(least), abs(most)))
        side = "lower" if value <= least + near else "upper" if value >= most - near else ""
        if side:
            zero = parameter.scale == "linear" and side == "lower" and least == 0
            name = _name(parameter, curve, problem)
            reasons.append(f"{name} = 0" if zero else f"{name} is at its {side} bound")
    if not reasons:
        return ""
    floors = [p.name for p, _ in problem.layout.slots if p.units is not None and p.scale == "linear"]
    hint = "; no floor is in sight" if any(reason == f"{name} = 0" for name in floors for reason in reasons) else ""
    return ", ".join(reasons) + hint


def _unknowable(end: Ended) -> str:
    """Name the parameters that the data do not separate, or that can be changed tenfold, or set to zero, at an
    objective within the noise.
    """
    problem, theta = end.problem, end.found.theta
    if end.spread.conditioning >= CONDITIONING:
        weights = np.abs(end.spread.weakest) / np.abs(end.spread.weakest).max()
        names = [
            _name(*slot, problem) for slot, weight in zip(problem.layout.slots, weights, strict=True) if weight > 0.3
        ]
        return f"the data do not separate {' and '.join(names)} (condition number {end.spread.conditioning:.0e})"
    low, high = problem.layout.bounds()
    places, words = [], []
    for index, (parameter, curve) in enumerate(problem.layout.slots):
        name = _name(parameter, curve, problem)
        if parameter.scale == "log":
            for sign, change in ((1, "ten times larger"), (-1, "ten times smaller")):
                places.append((index, float(np.clip(theta[index] + sign * UNKNOWN, low[index], high[index]))))
                words.append(f"{name} could be {change}")
        elif low[index] == 0:
            places.append((index, 0.0))
            words.append(f"{name} could be 0")
    if not places:
        return ""
    objectives = pinned(problem, theta, end.spread, places)
    within = 2 * (objectives - end.found.objective) < SURE * end.spread.unit
    if end.resamples is not None:
        lowest, highest = np.quantile(end.resamples, (0.05, 0.95), axis=0)
        for place, (index, value) in enumerate(places):
            within[place] |= value >= theta[index] and highest[index] >= value > theta[index]
            within[place] |= value <= theta[index] and lowest[index] <= value
    found = [word for word, flat in zip(words, within, strict=True) if flat]
    return ", ".join(found) + " within the noise" if found else ""


def _name(parameter: Parameter, curve: int, problem: Problem) -> str:
    return parameter.name if curve < 0 else f"{parameter.name}[{problem.labels[curve]}]"
