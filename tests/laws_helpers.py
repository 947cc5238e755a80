"""Planted truths and public data for the tests of laws and fits, and for tests/laws_long.py."""

import csv
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

import scalejax
from scalejax.analysis.laws.laws import LAWS

REFERENCE = Path(
    os.environ.get("SCALEJAX_REFERENCE_DATA") or Path(scalejax.__file__).parents[2] / "shared" / "data"
)  # the folder of the public tables, which may be absent
# The fit of Besiroglu et al. 2024 (arXiv:2404.10102) to the runs of Hoffmann et al. 2022.
BESIROGLU = {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172}
NOISE, DELTA = 0.005, 1e-3  # of the log of a planted run; of the Huber loss


@dataclass(frozen=True)
class Runs:
    """240 runs, and what is known of the fit of the law chinchilla to them.

    Attributes:
        predictors: params and tokens, each [240].
        loss: [240].
        objective: its minimum.
        params: alpha there, and A.
        errors: standard errors.
        tolerance: relative, of the errors.
    """

    predictors: dict[str, np.ndarray]
    loss: np.ndarray
    objective: float
    params: dict[str, float]
    errors: dict[str, float]
    tolerance: dict[str, float]


def reference(name: str, *columns: str) -> list[np.ndarray]:
    """Return columns of a public table."""
    with (REFERENCE / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [np.array([float(row[column]) for row in rows]) for column in columns]


def planted_and(table: str) -> pytest.MarkDecorator:
    """Run a test on planted data, as `source`, and where the public table is at hand on that as well."""
    return pytest.mark.parametrize("source", ["planted", *(["published"] if (REFERENCE / table).is_file() else [])])


chinchilla = planted_and("chinchilla_epoch.csv")


def chinchilla_runs(source: str) -> Runs:
    """Return the runs of Hoffmann et al. 2022 below the fifth largest loss, or as many on a design like theirs."""
    if source == "planted":
        return _planted_runs()
    params, tokens, loss = reference("chinchilla_epoch.csv", "params", "tokens", "loss")
    keep = loss < np.sort(loss)[-5]
    # From a scipy minimum to 1e-14, and from the 4,000 resamples of Besiroglu et al.
    return Runs(
        {"params": params[keep], "tokens": tokens[keep]}, loss[keep], 0.0010182740178, BESIROGLU,
        {"A": 124.522, "B": 1293.284, "E": 0.02566, "alpha": 0.01540, "beta": 0.02060},
        dict.fromkeys(BESIROGLU, 0.1) | {"B": 0.3},
    )  # fmt: skip


def _planted_runs() -> Runs:
    """Return isoFLOP profiles of eight budgets with Gaussian noise, their minimum by scipy, and errors by theory."""
    p = BESIROGLU
    flops, width = np.repeat(np.geomspace(6e18, 3e21, 8), 30), np.tile(np.geomspace(1 / 8, 8, 30), 8)
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    params = scale * (flops / 6) ** (p["beta"] / (p["alpha"] + p["beta"])) * width
    predictors = {"params": params, "tokens": flops / 6 / params}
    noise = NOISE * np.random.default_rng(0).standard_normal(len(params))
    loss = LAWS["chinchilla"](BESIROGLU, predictors) * np.exp(noise)
    found, objective = _scipy_minimum(predictors, loss)
    return Runs(predictors, loss, objective, found, _huber_errors(predictors), dict.fromkeys(BESIROGLU, 0.35))


def _scipy_minimum(predictors: dict[str, np.ndarray], loss: np.ndarray) -> tuple[dict[str, float], float]:
    """Return parameters and objective where scipy ends that starts from the truth, in logarithms of E, A and B."""
    log_n, log_d = (np.log(predictors[name]) for name in ("params", "tokens"))

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.exp([theta[0] + 0 * log_n, theta[1] - theta[3] * log_n, theta[2] - theta[4] * log_d])
        residual = np.log(terms.sum(0)) - np.log(loss)
        share = terms / terms.sum(0)
        slope = np.clip(residual, -DELTA, DELTA)
        gradient = np.array([*share, -share[1] * log_n, -share[2] * log_d]) @ slope
        inside = np.abs(residual) <= DELTA
        value = np.where(inside, residual**2 / 2, DELTA * (np.abs(residual) - DELTA / 2)).sum()
        return 1e4 * float(value), 1e4 * gradient

    theta = np.array([*(np.log(BESIROGLU[name]) for name in "EAB"), BESIROGLU["alpha"], BESIROGLU["beta"]])
    for _ in range(5):  # from where it ended, with a fresh guess of the curvature
        theta = minimize(objective, theta, jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000}).x
    found = dict(zip("EAB", np.exp(theta[:3]).tolist(), strict=True))
    return found | {"alpha": float(theta[3]), "beta": float(theta[4])}, objective(theta)[0] / 1e4


def _huber_errors(predictors: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the asymptotic standard errors of Huber's estimator under the planted noise (Huber 1964).

    The covariance is E[psi^2] / E[psi']^2 (J'J)^-1 with the slopes J of the log law and psi a residual cut at DELTA.
    """
    theta = np.array(list(BESIROGLU.values()))

    def log_law(theta: np.ndarray) -> np.ndarray:
        return np.log(LAWS["chinchilla"](dict(zip(BESIROGLU, theta, strict=True)), predictors))

    steps = np.diag(1e-5 * theta)
    slopes = np.stack([(log_law(theta + h) - log_law(theta - h)) / (2 * h.sum()) for h in steps], axis=1)
    cut = DELTA / NOISE
    inside = math.erf(cut / math.sqrt(2))
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    spread = NOISE**2 * (inside - 2 * cut * density) + DELTA**2 * (1 - inside)
    errors = np.sqrt(np.diag(spread / inside**2 * np.linalg.inv(slopes.T @ slopes)))
    return dict(zip(BESIROGLU, errors.tolist(), strict=True))


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
