"""The search from a cold start: many starting points, polished together, the best end taken."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import numpy as np

from scalejax.analysis.laws.law import Law
from scalejax.analysis.laws.lift import sliced, solve_lanes
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.solver import MOST_STEPS, Solution
from scalejax.analysis.laws.starts import grid, project
from scalejax.errors import FitError
from scalejax.text import number_of

POLISHED = 32
FIRST_STEPS, FINISHED = 60, 16  # all starts take so many steps; the so many best then continue to their end
SAME = 1e-6  # relative difference of objectives below which two ends are one minimum


@dataclass(frozen=True, eq=False)
class Found:
    """The best end of a search.

    Attributes:
        theta: coordinates (size,).
        objective: there.
        converged: whether the minimiser was content.
        agreeing: share of the starts that ended there.
    """

    theta: np.ndarray
    objective: float
    converged: bool
    agreeing: float


def search(problem: Problem, count: int | None) -> Found:
    """Return the best of `count` polished starts; None: 32, and more for a law of many parameters.

    Raises:
        FitError: fewer rows than coordinates, no start where the law is finite, or no start that moves.
    """
    law, size = problem.layout.law, problem.layout.size
    rows, count = problem.count - problem.duplicates, count or POLISHED * max(1, (len(law.parameters) - 1) // 3)
    if rows < size:
        raise FitError(
            f"{law.name!r} has {number_of(size, 'parameter')} to fit and only {number_of(rows, 'different row')}: "
            f"fix parameters, take a smaller law, or add runs."
        )
    starts = cold_starts(problem)
    starts = starts[np.isfinite(starts).all(1)]
    if not len(starts):
        raise FitError(f"No starting point of {law.name!r} is finite: check its `start` values and bounds.")
    if len(starts) > count:  # three in four are the best, the others come from all
        top = np.arange(-(-3 * count // 4))
        rest = np.linspace(len(top), len(starts) - 1, count - len(top)).astype(int)
        starts = starts[np.unique(np.concatenate([top, rest]))]
    lane = problem.lane(starts)
    ends = _polish(problem, starts, FIRST_STEPS)
    if len(starts) > 1 and (ends.theta == np.clip(starts, lane.low, lane.high)).all():
        raise FitError(
            f"The search for {law.name!r} did not move from any of {len(starts)} starting points: the law does not "
            f"depend on its parameters, or has no derivative."
        )
    order = np.argsort(ends.objective, kind="stable")
    if not np.isfinite(ends.objective[order[0]]):
        raise FitError(
            f"{law.name!r} is finite at none of {number_of(len(starts), 'starting point')}: check its bounds."
        )
    unfinished = [i for i in order[:FINISHED] if not ends.converged[i]]
    for whole, part in zip(ends, _polish(problem, ends.theta[unfinished], MOST_STEPS), strict=True):
        whole[unfinished] = part
    best = int(np.argmin(ends.objective))
    least = float(ends.objective[best])
    agreeing = float(np.mean(ends.objective <= least * (1 + SAME) + 1e-24 * problem.weights.sum()))
    return Found(ends.theta[best], least, bool(ends.converged[best]), agreeing)


def _polish(problem: Problem, starts: np.ndarray, steps: int) -> Solution:
    """Return where the starts lead within that many steps; objectives that are not finite become infinite."""
    lane = problem.lane(starts)._replace(limit=np.int32(steps))
    ends = solve_lanes(problem.layout, problem.rows, len(starts), sliced(lane))
    ends = ends._replace(objective=np.where(np.isfinite(ends.objective), ends.objective, np.inf))
    return Solution(*(np.array(field) for field in ends))


def cold_starts(problem: Problem) -> np.ndarray:
    """Return starting coordinates (S, size), best first."""
    layout, count = problem.layout, problem.count
    log = dict(zip(layout.law.predictors, problem.log_x, strict=True))
    pure = {parameter.name for parameter in layout.law.parameters if parameter.units is None}
    known = {name: float(v) for name, v in zip(layout.fixed, problem.fixed, strict=True) if name in pure}
    make = layout.law.starts or functools.partial(composed, layout.law, known, problem.weights[:count])
    curve, loss = problem.rows.curve[:count], problem.log_loss[:count]
    starts = [make({n: v[curve == i] for n, v in log.items()}, loss[curve == i]) for i in range(layout.curves)]
    number = min(len(next(iter(of_curve.values()))) for of_curve in starts)
    values = {}
    for name in layout.law.names:
        stacked = np.stack([of_curve[name][:number] for of_curve in starts], axis=1)
        values[name] = stacked if layout.own(name) else np.median(stacked, axis=1)
    with np.errstate(invalid="ignore"):
        return layout.coordinates(values)


def composed(
    law: Law, known: Mapping[str, float], weights: np.ndarray, log: Mapping[str, np.ndarray], log_loss: np.ndarray
) -> dict[str, np.ndarray]:
    """Return starts from the grid of `Parameter.start`, the linear parameters solved for (variable projection)."""
    nonlinear = [parameter for parameter in law.parameters if parameter.name not in law.linear]
    points = grid([(known[p.name],) if p.name in known else p.start for p in nonlinear])
    values = {parameter.name: points[:, i, None] for i, parameter in enumerate(nonlinear)}
    columns = []
    with jax.enable_x64(True):
        logs = {name: np.asarray(column)[None] for name, column in log.items()}
        for active in law.linear or ("",):
            ones = {name: np.full((len(points), 1), float(name == active)) for name in law.linear}
            term = np.asarray(law.value(values | ones, logs))
            columns.append(np.broadcast_to(term, (len(points), len(log_loss))) / np.exp(log_loss))
    terms = np.nan_to_num(np.stack(columns, axis=2), nan=0.0, posinf=0.0, neginf=0.0)
    weights = weights if len(weights) == len(log_loss) else np.ones(len(log_loss))
    coefficients, order = project(terms, weights)
    result = {name: column[:, 0] for name, column in values.items()}
    result |= dict(zip(law.linear, coefficients.T, strict=False))
    return {name: result[name][order] for name in law.names}
