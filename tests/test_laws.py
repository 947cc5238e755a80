"""Laws as functions: what they return, and how they are found; doors/test_own_law.py has one of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws_helpers import TRUTHS, design, plant, worst_error
from scipy.optimize import brentq

from scalejax.analysis.laws.laws import LAWS, bnsl, find_law
from scalejax.analysis.laws.layout import in_units

pytestmark = pytest.mark.usefixtures("compile_quickly")


def test_the_laws_are_those_of_the_contract():
    assert list(LAWS) == [
        *("power", "power_floor", "m4", "bnsl0", "bnsl", "bnsl2", "bnsl3", "kaplan", "chinchilla", "data_constrained")
    ]
    assert LAWS["chinchilla"].names == ("E", "A", "B", "alpha", "beta")
    assert LAWS["data_constrained"].names[-2:] == ("R_D*", "R_N*")
    assert all(law.paper and law.formula and law.value.__doc__ is not None for law in LAWS.values())


def test_values_are_those_of_the_formulas():
    x, n, d = np.array([10.0, 1e4]), np.array([1e8, 1e9]), np.array([1e9, 1e11])
    one, both = {"x": x}, {"params": n, "tokens": d}
    bend = (1 + (x / 3e3) ** (1 / 0.4)) ** (-0.4 * 0.4)
    cases = [
        ("power", {"b": 2.0, "c": 0.5}, one, 2 * x**-0.5),
        ("power_floor", {"e": 0.1, "b": 2.0, "c": 0.5}, one, 0.1 + 2 * x**-0.5),
        ("chinchilla", TRUTHS["chinchilla"], both, 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28),
        ("kaplan", TRUTHS["kaplan"], both, ((8.8e13 / n) ** (0.12 / 0.15) + 5.4e13 / d) ** 0.15),
        ("bnsl", TRUTHS["bnsl"], one, 0.05 + 2 * x**-0.08 * bend),
    ]
    for law, params, predictors, expected in cases:
        assert LAWS[law](params, predictors) == pytest.approx(expected, rel=1e-7), law


def test_m4_solves_its_equation():
    truth = TRUTHS["m4"]
    for alpha in (0.05, 0.8, 1.0, 6.0):
        p = truth | {"alpha": alpha}
        for x in (1.0, 1e2, 1e4, 1e8):
            loss = LAWS["m4"](p, {"x": np.array([x])})[0]
            gap = lambda value, p=p, x=x: (  # noqa: E731
                np.log(value - 0.05) - p["alpha"] * np.log(0.9 - value) - np.log(p["beta"] * x ** -p["c"])
            )
            if gap(0.9 - 1e-12) > 0:
                assert loss == pytest.approx(brentq(gap, 0.05 + 1e-12, 0.9 - 1e-12, xtol=1e-15), rel=1e-9)


def test_derivatives_of_m4_are_those_of_the_solved_equation():
    with jax.enable_x64(True):
        law, x = LAWS["m4"], jnp.log(jnp.array(300.0))
        start = jnp.array([0.05, 0.9, 0.8, 20.0, 0.4])

        def value(theta):
            return law.value(dict(zip(law.names, theta, strict=True)), {"x": x})

        slope, bend = jax.jit(jax.grad(value)), jax.jit(jax.hessian(value))
        value, first, second = jax.jit(value), slope(start), bend(start)
        steps = 1e-5 * start
        numeric = [(value(start.at[i].add(h)) - value(start.at[i].add(-h))) / (2 * h) for i, h in enumerate(steps)]
        np.testing.assert_allclose(first, np.array(numeric), rtol=1e-6)
        numeric = [(slope(start.at[i].add(h)) - slope(start.at[i].add(-h))) / (2 * h) for i, h in enumerate(steps)]
        np.testing.assert_allclose(second, np.array(numeric), rtol=1e-4, atol=1e-9)


def test_data_constrained_is_chinchilla_in_one_epoch_and_saturates_with_many():
    truth = TRUTHS["data_constrained"]
    plain = {name: truth[name] for name in LAWS["chinchilla"].names}
    one = {"params": np.array([1e7]), "tokens": np.array([1e10]), "unique_tokens": np.array([1e10])}
    expected = LAWS["chinchilla"](plain, {name: one[name] for name in ("params", "tokens")})
    np.testing.assert_allclose(LAWS["data_constrained"](truth, one), expected, rtol=1e-12)
    many = {"params": np.array([1e7]), "tokens": np.array([1e16]), "unique_tokens": np.array([1e10])}
    endless = 1e10 * (1 + truth["R_D*"])
    expected = LAWS["chinchilla"](plain, {"params": np.array([1e7]), "tokens": np.array([endless])})
    np.testing.assert_allclose(LAWS["data_constrained"](truth, many), expected, rtol=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_in_other_units_is_the_same_law(law):
    centres = {"x": 3.0, "params": 5.0, "tokens": -7.0, "loss": 1.5}
    truth, predictors = TRUTHS[law], design(law)
    found = LAWS[law]
    moved = in_units(found, {name: np.float64(value) for name, value in truth.items()}, centres)
    scaled = {
        name: predictors[name] * np.exp(centres[unit])
        for name, unit in zip(found.predictors, found.predictor_units, strict=True)
    }
    np.testing.assert_allclose(found(moved, scaled), found(truth, predictors) * np.exp(1.5), rtol=1e-10)


LONG = "m4", "data_constrained"  # to fit
FITTED = [law for law in LAWS if law not in ("bnsl0", "bnsl2", "bnsl3")]  # which are slow to compile


@pytest.mark.parametrize("law", [pytest.param(law, marks=pytest.mark.slow) if law in LONG else law for law in FITTED])
def test_planted_parameters_are_found_cold(law):
    generator = np.random.default_rng(11)
    assert max(worst_error(law, generator) for _ in range(3)) < 1e-6  # python tests/laws_long.py truths: 200 of all


def test_truths_are_random():
    generator = np.random.default_rng(0)
    assert plant("bnsl2", generator) != plant("bnsl2", generator)


def test_an_unknown_law_names_the_nearest():
    with pytest.raises(ValueError, match="no law 'chinchila': did you mean 'chinchilla'"):
        find_law("chinchila")
    with pytest.raises(ValueError, match="0 to 3 breaks, not 4"):
        bnsl(4)
