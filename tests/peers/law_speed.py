"""Speed of the laws' fits against scipy, on the 240 runs of Hoffmann et al. 2022 as digitised by Epoch.

    python tests/peers/law_speed.py [--resamples 4000] [--scipy 200]

Prints, measured in one process and interleaved: the bootstrap's time with scalejax, the time of a warm-started scipy
BFGS loop with analytic gradient on centred logarithms (on a share of the resamples, scaled up), the grid of 4,500 cold
starts of the original paper, compile times, and the peak of additional memory. Needs the reference data: the folder
that SCALEJAX_REFERENCE_DATA names, or ../shared/data beside the repository.
"""

import argparse
import csv
import itertools
import os
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

import scalejax
from scalejax.analysis.laws import lift
from scalejax.analysis.laws.laws import LAWS
from scalejax.analysis.laws.problem import make_problem

DELTA = 1e-3
BEST = 0.0010182740178


def reference() -> dict[str, np.ndarray]:
    """Return params, tokens and loss of the rows below the fifth largest loss."""
    beside = Path(scalejax.__file__).parent.parent.parent / "shared" / "data"
    folder = Path(os.environ.get("SCALEJAX_REFERENCE_DATA", beside))
    with (folder / "chinchilla_epoch.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    table = {name: np.array([float(row[name]) for row in rows]) for name in ("params", "tokens", "loss")}
    keep = table["loss"] < np.sort(table["loss"])[-5]
    return {name: column[keep] for name, column in table.items()}


def scipy_fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, start: np.ndarray):
    """Minimise the same objective with BFGS: coordinates log A, log B, log E, alpha, beta on centred logarithms."""

    def objective(theta):
        a, b, e, alpha, beta = theta
        terms = np.stack([a - alpha * x[0], b - beta * x[1], np.full_like(y, e)])
        top = terms.max(0)
        shares = np.exp(terms - top)
        total = shares.sum(0)
        residuals = top + np.log(total) - y
        shares /= total
        size = np.abs(residuals)
        value = weights @ np.where(size <= DELTA, 0.5 * residuals**2, DELTA * (size - 0.5 * DELTA))
        pull = weights * np.clip(residuals, -DELTA, DELTA)
        by_term = shares @ pull
        gradient = np.array([*by_term, -(shares[0] * x[0]) @ pull, -(shares[1] * x[1]) @ pull])
        return value, gradient

    return minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 500})


def scipy_loop(table: dict[str, np.ndarray], best: dict[str, float], number: int) -> tuple[float, int]:
    """Return the seconds of `number` warm-started resamples, and how many ended at a lower objective than the start."""
    logs = {name: np.log(column) for name, column in table.items()}
    centre = {name: column.mean() for name, column in logs.items()}
    x = np.stack([logs["params"] - centre["params"], logs["tokens"] - centre["tokens"]])
    y = logs["loss"] - centre["loss"]
    start = np.array(
        [
            np.log(best["A"]) - best["alpha"] * centre["params"] - centre["loss"],
            np.log(best["B"]) - best["beta"] * centre["tokens"] - centre["loss"],
            np.log(best["E"]) - centre["loss"],
            best["alpha"],
            best["beta"],
        ]
    )
    generator = np.random.default_rng(0)
    moved = 0
    begun = time.perf_counter()
    for _ in range(number):
        weights = np.bincount(generator.integers(0, len(y), len(y)), minlength=len(y)).astype(float)
        moved += scipy_fit(x, y, weights, start).nit > 0
    return time.perf_counter() - begun, moved


def cold_grid(table: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Return seconds, lowest objective over the published one, and the share of the 4,500 starts that reach it.

    The grid of Hoffmann et al. 2022, in logarithms of the caller's units: a and b from 0 to 25, e from -1 to 1, both
    exponents from 0 to 2. No variable projection: every start is polished as it is.
    """
    law = LAWS["chinchilla"]
    problem = make_problem(
        law,
        {name: table[name] for name in law.predictors},
        loss=table["loss"],
        weights=None,
        groups=None,
        curves=None,
        shared=(),
        fixed={},
        delta=DELTA,
    )
    steps = np.arange(0, 26, 5.0), np.arange(0, 26, 5.0), np.arange(-1, 1.1, 0.5), *2 * [np.arange(0, 2.1, 0.5)]
    a, b, e, alpha, beta = np.array(list(itertools.product(*steps))).T
    unit = problem.units
    theta = np.stack(
        [
            np.exp(e - unit["loss"]),
            a - unit["loss"] - alpha * unit["params"],
            b - unit["loss"] - beta * unit["tokens"],
            alpha,
            beta,
        ],
        axis=1,
    )
    lane = problem.lane(theta)
    begun = time.perf_counter()
    ends = lift.solve_lanes(problem.layout, problem.rows, len(theta), lambda part: lane._replace(theta=theta[part]))
    seconds = time.perf_counter() - begun
    least = np.nanmin(ends.objective)
    return seconds, least / BEST - 1, float(np.mean(ends.objective <= BEST * (1 + 1e-6)))


def peak() -> float:
    """Return the peak resident memory so far in MB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size / 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--resamples", type=int, default=4000)
    parser.add_argument("--scipy", type=int, default=200, help="resamples a round of the scipy loop")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    table = reference()
    predictors = {name: table[name] for name in ("params", "tokens")}

    def fit(number: int) -> tuple[float, "scalejax.Fit"]:
        begun = time.perf_counter()
        found = scalejax.fit_law("chinchilla", predictors, table["loss"], bootstrap=number)
        return time.perf_counter() - begun, found

    first, found = fit(0)
    print(f"first fit, compile included: {first:.2f} s; objective / published - 1 = {found.objective / BEST - 1:.1e}")
    before = peak()
    ours, theirs = [], []
    for _ in range(options.rounds):
        seconds, found = fit(options.resamples)
        ours.append(seconds)
        seconds, _ = scipy_loop(table, dict(found.params), options.scipy)
        theirs.append(seconds / options.scipy * options.resamples)
        print(
            f"  {options.resamples} resamples: scalejax {ours[-1]:.3f} s with fit and status, scipy {theirs[-1]:.1f} s"
        )
    one, other = statistics.median(ours), statistics.median(theirs)
    print(f"median: scalejax {one:.3f} s, scipy BFGS {other:.1f} s ({other / one:.0f}x)")
    print("standard errors: " + ", ".join(f"{name} {value:.5g}" for name, value in found.standard_errors.items()))
    seconds, gap, share = cold_grid(table)
    print(f"4,500 cold starts: {seconds:.2f} s; best / published - 1 = {gap:.1e}; {100 * share:.0f} % of them reach it")
    print(f"peak memory over that of the first fit: {peak() - before:.0f} MB")


if __name__ == "__main__":
    main()
