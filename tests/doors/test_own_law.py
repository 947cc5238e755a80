"""A law of one's own, through the public doors: an exponential relaxation, planted and found again."""

import jax.numpy as jnp
import numpy as np
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")
PLANTED = {"e": 2.0, "b": 5.0, "d": 9.0}


def relaxation(p, log):
    return p["e"] + p["b"] * jnp.exp(-jnp.exp(log["x"]) / p["d"])


def test_a_law_of_ones_own_is_fitted_like_any_other():
    law = sx.Law(
        "relaxation", "e + b exp(-x / d)", "ours", ("x",),
        (
            sx.Parameter("e", "floor", 0, 1e3, scale="linear", units=lambda _: {"loss": 1}),
            sx.Parameter("b", "height over the floor at x = 0", 1e-9, 1e9, units=lambda _: {"loss": 1}),
            sx.Parameter("d", "x of a fall by e", 1e-6, 1e6, start=(0.1, 1, 10), units=lambda _: {"x": 1}),
        ),
        relaxation, linear=("e", "b"),
    )  # fmt: skip
    hours = np.linspace(1, 50, 40)
    loss = law(PLANTED, {"x": hours})
    assert loss == pytest.approx(2 + 5 * np.exp(-hours / 9))
    fit = sx.fit_law(law, {"hours": hours}, loss)
    assert fit.ok
    assert fit.params == pytest.approx(PLANTED, rel=1e-9)
    minutes = sx.fit_law(law, {"minutes": 60 * hours}, 100 * loss)  # nothing depends on the units
    assert minutes.params == pytest.approx({"e": 200, "b": 500, "d": 540}, rel=1e-9)
    noisy = sx.fit_law(law, {"hours": hours}, loss * np.exp(0.01 * np.random.default_rng(0).standard_normal(40)))
    assert all(low < PLANTED[name] < high for name, (low, high) in noisy.intervals(0.99).items())
