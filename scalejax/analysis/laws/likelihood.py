"""Profile likelihood: the lowest objective at each value of one parameter, all the others fitted anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from scalejax.analysis.laws.lift import sliced, solve_lanes
from scalejax.analysis.laws.problem import Problem
from scalejax.analysis.laws.uncertainty import Spread, draws

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
    ends = solve_lanes(problem.layout, problem.rows, len(starts), sliced(lane))
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
    free = [parameter.name for parameter in layout.free if not layout.own(parameter.name)]
    if name not in free:
        raise ValueError(f"There is no profile of {name!r}: the parameters with one free value are {', '.join(free)}.")
    parameter = next(parameter for parameter in layout.free if parameter.name == name)
    if values is None:  # within about four standard errors of the fit
        sample = problem.public(draws(problem, theta, spread.covariance, 2000))[name]
        best, steps = float(problem.public(theta[None])[name][0]), np.linspace(-4, 4, POINTS)
        if parameter.scale == "log":
            grid = best * np.exp(steps * min(float(np.std(np.log(sample))), 3.0))
        else:
            grid = np.maximum(best + steps * float(np.std(sample)), 0.0 if best >= 0 else -np.inf)
    else:
        grid = np.asarray(values, float)
    if parameter.scale == "log" and (grid <= 0).any():
        raise ValueError(f"A profile of {name} needs positive values.")

    # The parameter moves over to the fixed ones, for its unit can depend on exponents that are still free.
    fixed = tuple(other for other in layout.law.names if other in layout.fixed or other == name)
    known = dict(zip(layout.fixed, problem.fixed, strict=True))
    constants = np.array([[value if other == name else known[other] for other in fixed] for value in grid])
    shared = tuple(other for other in layout.shared if other != name)
    held = replace(problem, layout=replace(layout, fixed=fixed, shared=shared), fixed=constants[0])

    # Each value is searched from the fit, then from the ends at its neighbours.
    count, size = len(grid), len(theta) - 1
    start = np.delete(theta, [parameter.name for parameter, _ in layout.slots].index(name))
    thetas, objectives = np.repeat(start[None], count, axis=0), np.full(count, np.inf)
    for _ in range(3):
        tries = np.stack([thetas, np.roll(thetas, 1, axis=0), np.roll(thetas, -1, axis=0)], axis=1)
        lane = held.lane(tries.reshape(-1, size))._replace(fixed=np.repeat(constants, 3, axis=0))
        ends = solve_lanes(held.layout, held.rows, 3 * count, sliced(lane))
        found = np.where(np.isfinite(ends.objective), ends.objective, np.inf).reshape(count, 3)
        better = found.min(1) < objectives
        best_of = ends.theta.reshape(count, 3, size)[np.arange(count), found.argmin(1)]
        thetas = np.where(better[:, None], best_of, thetas)
        objectives = np.minimum(objectives, found.min(1))
    return Profile(name, grid, objectives, 2 * np.maximum(objectives - objective, 0) / spread.unit)
