"""Planted truths and public data for the tests of laws and fits, and for tests/laws_long.py."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

import scalejax
from scalejax.analysis.laws import LAWS

# Known from Besiroglu et al. 2024 and from a scipy minimum to 1e-14 on the same rows.
CHINCHILLA_OBJECTIVE = 0.0010182740178
CHINCHILLA_ERRORS = {"A": 124.522, "B": 1293.284, "E": 0.02566, "alpha": 0.01540, "beta": 0.02060}


def reference(name: str, *columns: str) -> list[np.ndarray]:
    """Return columns of a public table; the test is skipped where the table is absent."""
    beside = Path(scalejax.__file__).parent.parent.parent / "shared" / "data"
    path = Path(os.environ.get("SCALEJAX_REFERENCE_DATA", beside)) / name
    if not path.is_file():
        pytest.skip(f"{path} is absent: set SCALEJAX_REFERENCE_DATA to the folder of the public tables")
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [np.array([float(row[column]) for row in rows]) for column in columns]


def chinchilla_runs() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return predictors and loss of the 240 runs below the fifth largest loss."""
    params, tokens, loss = reference("chinchilla_epoch.csv", "params", "tokens", "loss")
    keep = loss < np.sort(loss)[-5]
    return {"params": params[keep], "tokens": tokens[keep]}, loss[keep]


def design(law: str, *, dense: bool = False) -> dict[str, np.ndarray]:
    """Return predictors on which every parameter of a law shows; dense: for intervals under noise."""
    if law in ("chinchilla", "kaplan"):
        side = 16 if dense else 8
        params, tokens = np.meshgrid(np.geomspace(1e6, 1e10, side), np.geomspace(1e8, 1e12, side))
        return {"params": params.ravel(), "tokens": tokens.ravel()}
    if law == "data_constrained":
        grids = np.geomspace(1e6, 1e10, 8), np.geomspace(1e8, 1e11, 5), np.array([1.0, 2, 5, 20, 80, 300])
        params, unique, epochs = (grid.ravel() for grid in np.meshgrid(*grids))
        return {"params": params, "tokens": unique * epochs, "unique_tokens": unique}
    number = (200 if dense else 64) if law.startswith("bnsl") else (100 if dense else 40)
    return {"x": np.geomspace(10, 1e7, number)}


def plant(law: str, generator: np.random.Generator) -> dict[str, float]:
    """Return random parameters of a law that can be read off `design(law)` without noise."""

    def even(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def log_even(low: float, high: float) -> float:
        return float(np.exp(even(np.log(low), np.log(high))))

    if law == "power":
        return {"b": log_even(0.5, 20), "c": even(0.05, 0.8)}
    if law == "power_floor":
        return {"e": log_even(0.02, 2), "b": log_even(2, 20), "c": even(0.15, 0.7)}
    if law == "m4":  # half-way between chance and floor somewhere in 1e2..1e4
        chance, c = even(0.5, 1.0), even(0.2, 0.6)
        floor, alpha = chance * log_even(0.02, 0.2), log_even(0.3, 3)
        beta = ((chance - floor) / 2) ** (1 - alpha) * log_even(1e2, 1e4) ** c
        return {"e_inf": floor, "e_0": chance, "alpha": alpha, "beta": beta, "c": c}
    if law.startswith("bnsl"):
        return _plant_breaks(law, even, log_even)
    if law == "kaplan":  # both terms of the same order at the centre of the design
        alpha_n = even(0.06, 0.4)
        alpha_d = alpha_n * log_even(0.5, 2)
        share, total = even(0.25, 0.75), even(2, 5) ** (1 / alpha_d)
        scale = (share * total) ** (alpha_d / alpha_n) * 1e8
        return {"N_c": scale, "D_c": (1 - share) * total * 1e10, "alpha_N": alpha_n, "alpha_D": alpha_d}
    alpha, beta = even(0.2, 0.6), even(0.2, 0.6)
    height_n, height_d = log_even(0.15, 1.5) * 1e8**alpha, log_even(0.15, 1.5) * 1e10**beta
    truth = {"E": even(0.5, 2.5), "A": height_n, "B": height_d, "alpha": alpha, "beta": beta}
    if law == "chinchilla":
        return truth
    # 1e10 unique tokens have their compute-optimal number of parameters inside the design, or A would not show.
    truth["A"] = beta / alpha * height_d * 1e10**-beta * log_even(1e7, 1e9) ** alpha
    return truth | {"R_D*": log_even(3, 50), "R_N*": log_even(2, 20)}


def _plant_breaks(law: str, even, log_even) -> dict[str, float]:
    """Return a broken power law: flat and steep stretches in turn, one break in each part of the range."""
    breaks = {"bnsl": 1}.get(law) or int(law.removeprefix("bnsl") or 1)
    breaks = 0 if law == "bnsl0" else breaks
    truth = {"a": 1e-3, "b": log_even(1, 5), "c0": even(0.05, 0.25)}
    edges = np.linspace(np.log(30), np.log(3e6), breaks + 1)
    exponent = truth["c0"]
    for i in range(breaks):
        steepness = even(0.4, 0.8) if i % 2 == 0 else even(0.02, 0.2)
        truth[f"c{i + 1}"] = steepness - exponent
        truth[f"d{i + 1}"] = float(np.exp(edges[i] + (edges[i + 1] - edges[i]) * even(0.3, 0.7)))
        truth[f"f{i + 1}"] = log_even(0.15, 0.6)
        exponent = steepness
    lowest = LAWS[law](truth, design(law)).min() - truth["a"]
    return truth | {"a": log_even(0.2, 1) * float(lowest)}


# One truth a law for the coverage of intervals.
TRUTHS = {
    "power": {"b": 5.0, "c": 0.3},
    "power_floor": {"e": 0.5, "b": 5.0, "c": 0.4},
    "m4": {"e_inf": 0.05, "e_0": 0.9, "alpha": 0.8, "beta": 20.0, "c": 0.4},
    "bnsl0": {"a": 0.1, "b": 5.0, "c0": 0.3},
    "bnsl": {"a": 0.05, "b": 2.0, "c0": 0.08, "c1": 0.4, "d1": 3e3, "f1": 0.4},
    "bnsl2": {"a": 0.02, "b": 2.0, "c0": 0.08, "c1": 0.5, "d1": 1e3, "f1": 0.4, "c2": -0.45, "d2": 3e4, "f2": 0.4},
    "bnsl3": {"a": 0.02, "b": 2.0, "c0": 0.05, "c1": 0.5, "d1": 3e2, "f1": 0.3, "c2": -0.45, "d2": 5e3, "f2": 0.3}
    | {"c3": 0.5, "d3": 1e5, "f3": 0.3},
    "kaplan": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.12, "alpha_D": 0.15},
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "data_constrained": {"E": 1.9, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35, "R_D*": 15.4, "R_N*": 5.3},
}


def worst_error(law: str, generator: np.random.Generator) -> float:
    """Plant a truth without noise, fit it cold, and return the largest relative error of a parameter."""
    truth = plant(law, generator)
    predictors = design(law)
    found = scalejax.fit_law(law, predictors, LAWS[law](truth, predictors)).params
    return max(abs(found[name] / value - 1) for name, value in truth.items())


def covered(law: str, generator: np.random.Generator, *, bootstrap: int, dense: bool = True) -> dict[str, bool]:
    """Simulate one experiment of 1 % noise and return which parameters lie in their 90 % interval."""
    truth, predictors = TRUTHS[law], design(law, dense=dense)
    loss = LAWS[law](truth, predictors)
    loss = loss * np.exp(0.01 * generator.standard_normal(len(loss)))
    seed = int(generator.integers(2**31))
    intervals = scalejax.fit_law(law, predictors, loss, bootstrap=bootstrap, seed=seed).intervals(0.9)
    return {name: intervals[name][0] <= value <= intervals[name][1] for name, value in truth.items()}
