"""Profile likelihood: the lowest objective at each value of one parameter, all the others fitted anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalejax.analysis.laws.covariance import Spread, draws
from scalejax.analysis.laws.lift import solve_lanes
from scalejax.analysis.laws.problem import Problem

POINTS = 33
PINNED_STEPS = 100
CHI_SQUARED_90 = 2.7055  # one degree of freedom


@dataclass(frozen=True)
class Profile:
    """A profile.

    Attributes:
        name: of the parameter.
        values: of the parameter, in the caller's units, shape (k,).
        objective: lowest objective there, shape (k,).
        statistic: increase over the fit's objective on the scale of a chi-squared with one degree of freedom, shape
            (k,); below 2.71 a value lies within the 90 % interval.
    """

    name: str
    values: np.ndarray
    objective: np.ndarray
    statistic: np.ndarray

    def interval(self, threshold: float = CHI_SQUARED_90) -> tuple[float, float]:
        """Return where the statistic crosses the threshold, to either side; infinite where it does not."""
        inside = np.flatnonzero(self.statistic <= threshold)
        if not len(inside):
            return float("nan"), float("nan")
        return self._crossing(inside[0], -1, threshold), self._crossing(inside[-1], 1, threshold)

    def _crossing(self, inner: int, side: int, threshold: float) -> float:
        outer = inner + side
        if not 0 <= outer < len(self.values):
            return side * float("inf")
        share = (threshold - self.statistic[inner]) / (self.statistic[outer] - self.statistic[inner])
        return float(self.values[inner] + share * (self.values[outer] - self.values[inner]))


def pinned(problem: Problem, theta: np.ndarray, spread: Spread, places: Sequence[tuple[int, float]]) -> np.ndarray:
    """Return the lowest objective with one coordinate held, for each pair (coordinate, value), shape (len(places),).

    Each is searched from the fit itself and from where its linearisation says that the others go.
    """
    low, high = problem.layout.bounds()
    starts, lows, highs = [], [], []
    for index, value in places:
        slope = spread.covariance[:, index] / max(spread.covariance[index, index], 1e-300)
        for start in (theta, np.clip(theta + slope * (value - theta[index]), low, high)):
            one, below, above = start.copy(), low.copy(), high.copy()
            one[index] = below[index] = above[index] = value
            starts.append(one)
            lows.append(below)
            highs.append(above)
    lane = problem.lane(np.array(starts))
    lane = lane._replace(low=np.array(lows), high=np.array(highs), limit=np.int32(PINNED_STEPS))
    ends = solve_lanes(
        problem.layout,
        problem.rows,
        len(starts),
        lambda part: lane._replace(theta=lane.theta[part], low=lane.low[part], high=lane.high[part]),
    )
    objectives = np.where(np.isfinite(ends.objective), ends.objective, np.inf)
    return objectives.reshape(-1, 2).min(1)


def profile_of(
    problem: Problem,
    theta: np.ndarray,
    spread: Spread,
    objective: float,
    *,
    name: str,
    values: Sequence[float] | None,
) -> Profile:
    """Return the profile of a parameter in the caller's units; see `Fit.profile`."""
    layout = problem.layout
    free = [each.name for each in layout.free if not layout.own(each.name)]
    if name not in free:
        raise ValueError(f"There is no profile of {name!r}: the parameters with one free value are {', '.join(free)}.")
    parameter = next(each for each in layout.law.parameters if each.name == name)
    # The parameter moves over to the fixed ones, for its unit can hang on exponents that are still free.
    index = [each.name for each, _ in layout.slots].index(name)
    fixed = tuple(each for each in layout.law.names if each in layout.fixed or each == name)
    known = dict(zip(layout.fixed, problem.fixed, strict=True))
    place = fixed.index(name)
    held = replace(problem, layout=replace(layout, fixed=fixed, shared=tuple(n for n in layout.shared if n != name)))
    grid = np.asarray(values, float) if values is not None else _around(problem, theta, spread, name, parameter.scale)
    constants = np.array([[value if n == name else known[n] for n in fixed] for value in grid])
    if parameter.scale == "log" and (constants[:, place] <= 0).any():
        raise ValueError(f"A profile of {name} needs positive values.")
    objectives = _walk(replace(held, fixed=constants[0]), np.delete(theta, index), constants)
    statistic = 2 * np.maximum(objectives - objective, 0) / spread.unit
    return Profile(name, grid, objectives, statistic)


def _walk(held: Problem, theta: np.ndarray, constants: np.ndarray) -> np.ndarray:
    """Return the objectives of all values, each searched from the fit and from the ends at its neighbours."""
    count = len(constants)
    thetas = np.repeat(theta[None], count, axis=0)
    lane = held.lane(thetas)
    objectives = np.full(count, np.inf)
    for _ in range(3):
        tries = np.stack([thetas, np.roll(thetas, 1, axis=0), np.roll(thetas, -1, axis=0)], axis=1)
        flat, many = tries.reshape(3 * count, -1), np.repeat(constants, 3, axis=0)
        ends = solve_lanes(
            held.layout,
            held.rows,
            3 * count,
            lambda part: lane._replace(theta=flat[part], fixed=many[part]),  # noqa: B023
        )
        found = np.where(np.isfinite(ends.objective), ends.objective, np.inf).reshape(count, 3)
        choice = found.argmin(1)
        better = found.min(1) < objectives
        thetas = np.where(better[:, None], ends.theta.reshape(count, 3, -1)[np.arange(count), choice], thetas)
        objectives = np.minimum(objectives, found.min(1))
    return objectives


def _around(problem: Problem, theta: np.ndarray, spread: Spread, name: str, scale: str) -> np.ndarray:
    """Return values within about four standard errors of the fit, in the caller's units."""
    sample = problem.public(draws(problem, theta, spread.covariance, 2000))[name]
    best = float(problem.public(theta[None])[name][0])
    steps = np.linspace(-4, 4, POINTS)
    if scale == "log":
        error = min(float(np.std(np.log(sample))), 3.0)
        return best * np.exp(steps * error)
    return np.maximum(best + steps * float(np.std(sample)), 0.0) if best >= 0 else best + steps * float(np.std(sample))
