"""Fits against known minima: objective, errors, units, options, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws_helpers import TRUTHS, chinchilla, chinchilla_runs, covered, design

import scalejax as sx
from scalejax.analysis.laws import lift, uncertainty
from scalejax.analysis.laws.laws import LAWS
from scalejax.analysis.laws.problem import padded_length
from scalejax.analysis.laws.uncertainty import crossing_noise

pytestmark = pytest.mark.usefixtures("compile_quickly")
RNG = np.random.default_rng(3)
X = np.geomspace(10, 1e6, 40)
FLOOR = {"e": 0.1, "b": 2.0, "c": 0.3}
CURVE = LAWS["power_floor"](FLOOR, {"x": X})
NOISY = CURVE * np.exp(0.01 * RNG.standard_normal(40))


@chinchilla
@pytest.mark.parametrize("units", [(1, 1, 1), (3.7e-9, 1.3e5, 7.77), (1e12, 1e-12, 0.01)])
def test_the_known_minimum_is_beaten_from_a_cold_start_in_any_units(source, units):
    runs = chinchilla_runs(source)
    n, d, y = units
    predictors = {"params": n * runs.predictors["params"], "tokens": d * runs.predictors["tokens"]}
    fit = sx.fit_law("chinchilla", predictors, y * runs.loss)
    assert fit.objective <= runs.objective * (1 + 1e-6)
    assert fit.ok
    assert fit.agreeing_starts > 0.9
    assert fit.params["alpha"] == pytest.approx(runs.params["alpha"], abs=2e-6)
    assert fit.params["A"] == pytest.approx(runs.params["A"] * y * n ** fit.params["alpha"], rel=1e-5)


@chinchilla
def test_the_known_standard_errors_come_out_of_4000_resamples(source):
    runs = chinchilla_runs(source)
    fit = sx.fit_law("chinchilla", runs.predictors, runs.loss, bootstrap=4000)
    assert fit.failed_resamples == 0
    for name, error in runs.errors.items():
        assert fit.standard_errors[name] == pytest.approx(error, rel=runs.tolerance[name]), name


def test_resamples_start_where_the_fit_ended_and_share_one_program(monkeypatch):
    """What makes thousands of them a matter of seconds; python tests/peers/law_speed.py measures how many."""
    runs = chinchilla_runs("planted")
    shapes, steps = [], []
    solve_block, solve_lanes = lift._solve_block, uncertainty.solve_lanes

    def block(layout, *arguments):
        shapes.append(str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arguments)))
        return solve_block(layout, *arguments)

    def solve(*arguments):
        solution = solve_lanes(*arguments)
        steps.append(solution.steps)
        return solution

    monkeypatch.setattr(lift, "_solve_block", block)
    monkeypatch.setattr(uncertainty, "solve_lanes", solve)
    for bootstrap in (2, 1000):
        sx.fit_law("chinchilla", runs.predictors, runs.loss, bootstrap=bootstrap)
    assert [each.shape for each in steps] == [(2,), (1000,)]
    assert len(set(shapes)) == 1  # so the program is compiled once, however many resamples there are
    assert np.median(steps[1]) < 10  # evaluations; a start from elsewhere takes more


@chinchilla
def test_resamples_end_in_minima(source):
    runs = chinchilla_runs(source)
    fit = sx.fit_law("chinchilla", runs.predictors, runs.loss, bootstrap=64)
    # Fitted from scratch, a resample has the parameters that the warm start found.
    rows = np.random.default_rng((0, 0)).integers(0, 240, (64, 240))[5]
    weights = np.bincount(rows, minlength=240).astype(float)
    again = sx.fit_law("chinchilla", runs.predictors, runs.loss, weights=weights)
    assert again.params["alpha"] == pytest.approx(fit.replicates["alpha"][5], rel=1e-5)


def test_a_longer_bootstrap_begins_with_the_shorter_one():
    short = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=20, seed=4)
    long = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=300, seed=4)
    assert np.array_equal(short.replicates["e"], long.replicates["e"][:20])


def test_a_notebook_shows_the_law_and_a_line_for_each_parameter():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY)
    shown = fit._repr_html_()
    (low, high), error = fit.intervals(0.9)["c"], fit.standard_errors["c"]
    cells = [f"{fit.params['c']:.5g}", f"{error:.3g}", f"{low:.4g} to {high:.4g}", "exponent"]
    assert "".join(f'<td style="text-align: right">{cell}</td>' for cell in cells) in shown
    assert shown.count("<tr>") == 1 + len(fit.params)
    assert fit.law.formula in shown
    assert fit.status in shown


def test_the_global_precision_is_left_alone():
    sx.fit_law("power", {"x": X}, CURVE)
    assert jnp.asarray(1.0).dtype == jnp.float32


@pytest.mark.parametrize("resample", ["rows", "residuals", "groups"])
def test_errors_of_all_resamplings_agree(resample):
    groups = np.arange(40) if resample == "groups" else None
    fit = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=300, resample=resample, groups=groups)
    plain = sx.fit_law("power_floor", {"x": X}, NOISY)
    for name in FLOOR:
        assert fit.standard_errors[name] == pytest.approx(plain.standard_errors[name], rel=0.6)
        low, high = fit.intervals(0.99)[name]
        assert low < FLOOR[name] < high


def test_rows_of_one_group_stay_together():
    # Two seeds of a cell that share their deviation are one observation, not two.
    x, cell = np.tile(X[:32], 2), np.tile(np.arange(32), 2)
    loss = np.tile(NOISY[:32], 2) * np.exp(1e-6 * RNG.standard_normal(64))
    apart = sx.fit_law("power_floor", {"x": x}, loss, bootstrap=500)
    together = sx.fit_law("power_floor", {"x": x}, loss, bootstrap=500, resample="groups", groups=cell)
    assert together.standard_errors["c"] > 1.15 * apart.standard_errors["c"]


MEDIAN = sx.Parameter("m", "median", 0.1, 10, start=(0.5, 1, 2), units=lambda _: {"loss": 1})


def level(p, log):
    return p["m"] + 0 * log["x"]


def test_the_noise_of_crossings_is_that_of_a_median():
    """Of n rows, a median's bootstrap has 1.6 / sqrt(n) too much variance; rows at the ends count half."""
    law = sx.Law("level", "m", "ours", ("x",), (MEDIAN,), level)
    for rows in (33, 101):
        fit = sx.fit_law(law, {"x": np.ones(rows)}, RNG.lognormal(0, 0.01, rows), bootstrap=300, delta=1e-6)
        theta = np.log([fit.replicates["m"]]).T - fit._problem.units["loss"]
        assert crossing_noise(fit._problem, fit._spread, theta) == pytest.approx(1.6 / np.sqrt(rows), rel=0.3)
        assert fit.samples["m"] == pytest.approx(fit.replicates["m"], rel=1e-12)  # one parameter: nothing to take back


def test_samples_lie_between_fit_and_resamples():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=200)
    for name, error in fit.standard_errors.items():
        assert 0.8 * error < np.std(fit.samples[name]) < 0.98 * error


def test_least_squares_has_no_gaps_to_correct_for():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=200, delta=np.inf)
    for name in FLOOR:
        assert fit.samples[name] == pytest.approx(fit.replicates[name], rel=1e-3)


@pytest.mark.parametrize("law", ["power", "power_floor"])
def test_intervals_hold_the_truth_as_often_as_they_say(law):
    generator = np.random.default_rng(1)
    hits = [covered(law, generator, bootstrap=100, dense=False) for _ in range(40)]
    for name in TRUTHS[law]:  # python tests/laws_long.py coverage: 500 experiments a law
        assert 0.75 <= np.mean([hit[name] for hit in hits]) <= 1.0


def test_fixed_parameters_stay_and_the_others_follow():
    fit = sx.fit_law("power_floor", {"x": X}, CURVE, fixed={"e": 0.1})
    assert fit.params == pytest.approx(FLOOR, rel=1e-9)
    assert fit.standard_errors["e"] == 0
    held = sx.fit_law("power_floor", {"x": X}, CURVE, fixed={"e": 0.05})
    assert held.params["e"] == 0.05
    assert held.objective > 1e-4


def test_a_fixed_height_stays_in_the_callers_units():
    fit = sx.fit_law("power_floor", {"x": X}, CURVE, fixed={"b": 2.0})
    assert fit.params == pytest.approx(FLOOR, rel=1e-9)


def test_curves_share_an_exponent():
    curves = np.repeat(["small", "large"], 32)
    x = np.tile(X[:32], 2)
    heights = np.where(curves == "small", 4.0, 2.0)
    floors = np.where(curves == "small", 0.3, 0.1)
    fit = sx.fit_law("power_floor", {"x": x}, floors + heights * x**-0.3, curves=curves, shared=("c",), bootstrap=10)
    expected = {"e[large]": 0.1, "e[small]": 0.3, "b[large]": 2.0, "b[small]": 4.0, "c": 0.3}
    assert fit.params == pytest.approx(expected, rel=1e-6)
    there = fit.predict({"x": [1e7]}, curve="small")
    assert there.value == pytest.approx([0.3 + 4 * 1e7**-0.3], rel=1e-6)
    with pytest.raises(ValueError, match="no curve None: give curve=, one of 'large', 'small'"):
        fit.predict({"x": [1e7]})


def test_weights_count_rows():
    weights = np.ones(40)
    weights[3] = 0
    fit = sx.fit_law("power_floor", {"x": X}, NOISY, weights=weights)
    assert fit.excluded == {"weight is zero": 1}
    twice = sx.fit_law("power_floor", {"x": X}, NOISY, weights=2 * weights)
    assert twice.objective == pytest.approx(2 * fit.objective, rel=1e-9)
    assert twice.params == pytest.approx(fit.params, rel=1e-6)


def test_predictions_have_the_shape_of_the_predictors_and_lie_in_their_intervals():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY, bootstrap=100)
    grid = np.geomspace(1, 1e9, 6).reshape(2, 3)
    there = fit.predict({"x": grid}, level=0.9)
    assert there.value.shape == there.low.shape == there.high.shape == (2, 3)
    assert (there.low <= there.value).all()
    assert (there.value <= there.high).all()
    narrow = fit.predict({"x": grid}, level=0.5)
    assert (narrow.high - narrow.low <= there.high - there.low).all()
    assert fit.predict({"x": 1e3}).value.shape == ()


@pytest.mark.slow
def test_an_accuracy_that_rises_to_one():
    truth = {"e_inf": 0.04, "e_0": 0.9, "alpha": 0.8, "beta": 20.0, "c": 0.4}
    accuracy = 1 - LAWS["m4"](truth, {"x": design("m4")["x"]})
    fit = sx.fit_law("m4", design("m4"), accuracy, ceiling=1.0)
    assert fit.params == pytest.approx(truth, rel=1e-6)
    there = fit.predict({"x": [1e3, 1e9]})
    assert (there.low <= there.high).all()
    assert there.value[1] == pytest.approx(0.96, abs=1e-2)


def test_the_profile_is_lowest_at_the_fit_and_rises():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY)
    profile = fit.profile("e")
    low, high = profile.interval()
    assert low < fit.params["e"] < high
    assert profile.statistic.min() == pytest.approx(0, abs=1e-3)
    assert profile.statistic[0] > 2.7
    assert profile.statistic[-1] > 2.7
    held = sx.fit_law("power_floor", {"x": X}, NOISY, fixed={"e": float(profile.values[4])})
    assert profile.objective[4] == pytest.approx(held.objective, rel=1e-6)


def test_diverged_rows_are_left_out_and_counted():
    loss = NOISY.copy()
    loss[[2, 5]], loss[7] = np.nan, np.inf
    fit = sx.fit_law("power_floor", {"x": X}, loss)
    assert fit.excluded == {"loss is NaN": 2, "loss is infinite": 1}
    assert fit.rows == 37


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": np.where(np.arange(40) == 4, -1.0, CURVE)}, "loss of row 4 is -1: the laws are fitted to log loss"),
        ({"loss": CURVE[:-1]}, "x has 40 rows and loss has 39"),
        ({"predictors": {"x": np.where(np.arange(40) == 1, np.nan, X)}}, "x of row 1 is nan: predictors must be pos"),
        ({"predictors": {"a": X, "b": X}}, "takes the predictors one predictor, of any name; given: a, b"),
        ({"law": "chinchilla"}, "takes the predictors params, tokens; given: x"),
        ({"fixed": {"d": 1.0}}, "fixed names 'd', which is no parameter of 'power_floor': its"),
        ({"fixed": {"c": -1.0}}, "fixed sets c to -1"),
        ({"fixed": FLOOR}, "leave at least one"),
        ({"shared": ("c",)}, "shared has no meaning for one curve"),
        ({"bootstrap": 1}, "bootstrap is 1"),
        ({"bootstrap": 10**12}, "bootstrap is 1000000000000: give 0, or a number of resamples from 2 to 1000000"),
        ({"seed": -1}, "seed is -1: it must not be negative"),
        ({"ceiling": np.nan}, "ceiling is nan: it must be a finite number"),
        ({"resample": "pairs"}, "no resample 'pairs': take one of 'rows', 'residuals', 'groups'"),
        ({"resample": "groups"}, "needs groups="),
        ({"groups": np.arange(40)}, "groups has no meaning with resample='rows'"),
        ({"weights": -np.ones(40)}, "weights of row 0 is -1"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"starts": 0}, "starts is 0"),
        ({"ceiling": 0.5}, "is not below the ceiling 0.5"),
        ({"loss": [["a"]]}, "loss must be numbers"),
    ],
)
def test_mistakes_are_sentences(changes, sentence):
    options = {"law": "power_floor", "predictors": {"x": X}, "loss": CURVE} | changes
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        sx.fit_law(options.pop("law"), options.pop("predictors"), options.pop("loss"), **options)


def test_mistakes_after_the_fit_are_sentences():
    fit = sx.fit_law("power_floor", {"x": X}, NOISY)
    with pytest.raises(ValueError, match="level is 90"):
        fit.intervals(90)
    with pytest.raises(ValueError, match="predictors are x; given: y"):
        fit.predict({"y": 3.0})
    with pytest.raises(ValueError, match="x must be positive"):
        fit.predict({"x": -3.0})
    with pytest.raises(ValueError, match="no profile of 'E'"):
        fit.profile("E")


def test_padding_wastes_little():
    lengths = np.array([padded_length(count) for count in range(1, 3000)])
    counts = np.arange(1, 3000)
    assert (lengths >= counts).all()
    assert (lengths[63:] / counts[63:] < 1.14).all()
    assert len(set(lengths)) < 60
