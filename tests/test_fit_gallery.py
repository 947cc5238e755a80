"""The gallery of known failures: what published fits got wrong without noticing must not pass as "ok" here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws_helpers import TRUTHS, chinchilla, chinchilla_runs, planted_and, reference

import scalejax as sx
from scalejax.analysis.laws.laws import LAWS

pytestmark = pytest.mark.usefixtures("compile_quickly")
RNG = np.random.default_rng(8)
X = np.geomspace(10, 1e6, 24)


def curve(floor=0.1, noise=0.01, seed=0):
    noises = noise * np.random.default_rng(seed).standard_normal(len(X))
    return (floor + 2 * X**-0.3) * np.exp(noises)


@chinchilla
def test_a_mean_instead_of_a_sum_changes_nothing(source):
    """Besiroglu et al. 2024 (arXiv:2404.10102): averaged losses made the optimiser of Hoffmann et al. stop early."""
    runs = chinchilla_runs(source)
    predictors, loss = runs.predictors, runs.loss
    total = sx.fit_law("chinchilla", predictors, loss)
    mean = sx.fit_law("chinchilla", predictors, loss, weights=np.full(240, 1 / 240))
    assert mean.objective == pytest.approx(total.objective / 240, rel=1e-9)
    assert mean.params == pytest.approx(total.params, rel=1e-6)
    assert mean.standard_errors == pytest.approx(total.standard_errors, rel=1e-3)


def still(p, log):
    return jax.lax.stop_gradient(p["b"] * jnp.exp(-p["c"] * log["x"]))


def test_an_optimiser_that_never_moved_is_an_error():
    parameters = (sx.Parameter("b", "height", 1e-3, 1e3, start=(0.5, 2)), sx.Parameter("c", "exponent", 1e-3, 9))
    law = sx.Law("still", "b x^-c", "ours", ("x",), parameters, still)
    with pytest.raises(sx.FitError, match="did not move from any of 2 starting points"):
        sx.fit_law(law, {"x": X}, curve())


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_runs_on_one_line_identify_no_exponents(noise):
    params = np.geomspace(1e7, 1e10, 20)
    predictors = {"params": params, "tokens": 20 * params}
    loss = LAWS["chinchilla"](TRUTHS["chinchilla"], predictors) * np.exp(noise * RNG.standard_normal(20))
    fit = sx.fit_law("chinchilla", predictors, loss)
    assert fit.status == "not identifiable: all runs lie on one line tokens = 20 params; add runs off it"
    steeper = {"params": params, "tokens": params**1.2}
    status = sx.fit_law("chinchilla", steeper, LAWS["chinchilla"](TRUTHS["chinchilla"], steeper)).status
    assert status.startswith("not identifiable: all runs lie on one line tokens ~ params^1.2")
    flat = {"params": params, "tokens": np.full(20, 1e9)}
    status = sx.fit_law("chinchilla", flat, LAWS["chinchilla"](TRUTHS["chinchilla"], flat)).status
    assert status.startswith("not identifiable: all runs have nearly the same tokens")


def repeated_runs(source: str) -> list[np.ndarray]:
    """Return params, tokens, unique tokens and loss of runs in which large models overfit the tokens they repeat.

    The planted ones gain from every repeated token as from a new one; overfitting, of which the law knows nothing,
    hides it.
    """
    if source == "published":
        return reference("muennighoff_data_constrained.csv", "params", "tokens", "unique_tokens", "loss")
    rng, rows = np.random.default_rng(1), 229
    params, unique = 10 ** rng.uniform(7, 9.9, rows), 10 ** rng.uniform(8, 10, rows)
    epochs = np.exp(rng.uniform(0, np.log(30), rows))
    epochs[rng.uniform(size=rows) < 0.25] = 1
    truth = {name: TRUTHS["data_constrained"][name] for name in LAWS["chinchilla"].names}
    overfit = 0.1 * np.maximum(0, np.log(epochs * params / unique / 10)) ** 2
    noise = 0.01 * rng.standard_normal(rows)
    loss = LAWS["chinchilla"](truth, {"params": params, "tokens": epochs * unique}) * np.exp(overfit + noise)
    return [params, epochs * unique, unique, loss]


@pytest.mark.slow
@planted_and("muennighoff_data_constrained.csv")
def test_repeated_data_do_not_identify_their_half_life(source):
    *columns, loss = repeated_runs(source)
    predictors = dict(zip(LAWS["data_constrained"].predictors, columns, strict=True))
    fit = sx.fit_law("data_constrained", predictors, loss, bootstrap=100)
    assert "no law fits" in fit.status
    assert "not identifiable: R_D* could be ten times larger" in fit.status
    low, high = fit.intervals()["R_D*"]
    assert high / low > 10


def test_four_parameters_on_five_points_are_too_few_points():
    predictors = {"params": np.array([1e6, 1e7, 1e8, 1e6, 1e8]), "tokens": np.array([1e8, 1e9, 1e8, 1e10, 1e10])}
    fit = sx.fit_law("kaplan", predictors, np.array([4, 3.5, 3.7, 3.4, 2.6]))
    assert fit.status == "too few points: 5 different points for 4 parameters; at least 6 are needed"
    with pytest.raises(sx.FitError, match="3 parameters to fit and only 2 different rows"):
        sx.fit_law("power_floor", {"x": [1.0, 2.0]}, [2.0, 1.0])
    with pytest.raises(sx.FitError, match="No row can be used"):
        sx.fit_law("power_floor", {"x": [1.0, 2.0]}, [np.nan, np.inf])


@pytest.mark.parametrize("seed", range(4))
def test_a_curve_without_a_floor_in_sight_has_no_floor(seed):
    fit = sx.fit_law("power_floor", {"x": X}, curve(floor=0.0, seed=seed))
    assert "at a bound: e = 0; no floor is in sight" in fit.status or "not identifiable: e could be 0" in fit.status
    assert fit.intervals()["e"][0] == pytest.approx(0, abs=2e-3)


def test_a_floor_in_sight_is_found():
    fits = [sx.fit_law("power_floor", {"x": X}, curve(seed=seed)) for seed in range(4)]
    assert [fit.status for fit in fits] == ["ok"] * 4


def test_duplicated_rows_add_no_knowledge():
    once = sx.fit_law("power_floor", {"x": X}, curve(), bootstrap=300)
    often = sx.fit_law("power_floor", {"x": np.tile(X, 2)}, np.tile(curve(), 2), bootstrap=300)
    assert often.duplicates == 24
    assert often.params == pytest.approx(once.params, rel=1e-6)
    for name, error in once.standard_errors.items():
        assert often.standard_errors[name] == pytest.approx(error, rel=1e-3)  # the same resamples
    few = sx.fit_law("power_floor", {"x": np.tile(X[:4], 9)}, np.tile(curve()[:4], 9))
    assert few.status.startswith("too few points: 4 different points for 3 parameters")


def test_one_wild_outlier_moves_nothing():
    clean = sx.fit_law("power_floor", {"x": X}, curve())
    wild = curve()
    wild[10] *= 8
    fit = sx.fit_law("power_floor", {"x": X}, wild, bootstrap=200)
    assert fit.ok
    for name, value in clean.params.items():
        assert abs(fit.params[name] - value) < clean.standard_errors[name]
    low, high = fit.intervals()["e"]
    assert low < 0.1 < high


def test_double_descent_fits_no_law_that_only_falls():
    loss = curve() * (1 + 2 * np.exp(-0.5 * ((np.log(X) - 8) / 0.7) ** 2))
    for law in ("power", "power_floor"):
        assert sx.fit_law(law, {"x": X}, loss).status.startswith("no law fits: neighbouring runs miss it the same way")


def test_noise_without_a_trend_is_not_ok():
    loss = np.exp(0.01 * np.random.default_rng(5).standard_normal(24))
    assert not sx.fit_law("power_floor", {"x": X}, loss).ok


@pytest.mark.slow
def test_chance_out_of_sight_is_not_identified():
    loss = curve()  # falls from the first point on: nothing saturates at chance
    fit = sx.fit_law("m4", {"x": X}, loss)
    assert "not identifiable" in fit.status or "at a bound" in fit.status
