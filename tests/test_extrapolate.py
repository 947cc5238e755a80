"""Forecasts with intervals that hold the laws' own error: planted curves and surfaces, refusals, and the parts."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import forecasts
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import null_space
from scipy.stats import multivariate_normal, norm

import scalejax as sx
from scalejax.analysis.forecast import drift as drifts
from scalejax.analysis.forecast import extrapolate as extrapolating
from scalejax.analysis.forecast.anchor import one_run
from scalejax.analysis.forecast.drift import NOISES, UNLIKELY, Drift, combined, drift_of, walks
from scalejax.analysis.forecast.extrapolate import BLOCK, MOST_CELLS, measured
from scalejax.analysis.forecast.mixture import Mixture
from scalejax.analysis.forecast.posterior import Posterior

SIZES = np.geomspace(10, 1e4, 12)
SAME = 1e-8  # relative: sums of the same numbers in another order or another unit


def floored(x: Any, *, floor: float = 0.1, height: float = 3.0, exponent: float = 0.4) -> Any:
    return floor + height * np.asarray(x) ** -exponent


def noisy(loss: Any, noise: float, seed: int = 0) -> Any:
    return loss * np.exp(noise * np.random.default_rng(seed).standard_normal(np.shape(loss)))


CURVE = noisy(floored(SIZES), 0.02)


def ends(loss: Any, new: Any, *, sizes: Any = SIZES, **asked: Any) -> np.ndarray:
    """Return value, low and high by the laws, (3, ...); whether the last value is better takes twice as long."""
    with patch.object(extrapolating, "ORIGINS", ()):
        found = sx.extrapolate({"examples": sizes}, loss, {"examples": new}, **asked)
    return np.stack([found.value, found.low, found.high])


def width(found: np.ndarray) -> np.ndarray:
    return np.log(found[2] / found[1])


@pytest.mark.parametrize(("floor", "height", "exponent"), [(0.1, 3, 0.4), (0, 2, 0.3), (1.7, 4, 0.25), (0.05, 1, 0.8)])
def test_a_planted_law_is_recovered_without_noise(floor: float, height: float, exponent: float):
    def law(x: Any) -> Any:
        return floored(x, floor=floor, height=height, exponent=exponent)

    value, low, high = ends(law(SIZES), 10 * SIZES[-1])
    # The smallest drift, BENDS[0], has a standard deviation of 3 % there.
    assert value == pytest.approx(law(10 * SIZES[-1]), rel=0.03)
    assert low < law(10 * SIZES[-1]) < high


def test_intervals_hold_new_runs_of_laws_that_are_in_no_family():
    """A floor and two powers, noise of 0.3 to 5 %: at two, four and ten times the data, of sixty curves each."""
    inside = []
    for seed in range(60):
        random: Any = np.random.default_rng(seed)
        x = np.geomspace(20, 20 * 10 ** random.uniform(1.5, 3), random.integers(8, 14))
        new = x[-1] * np.array([2, 4, 10])
        slow, fast, shares = random.uniform(0.1, 0.4), random.uniform(0.5, 1.2), random.dirichlet([1, 1, 1])
        noise = np.exp(random.uniform(np.log(0.003), np.log(0.05)))
        at = np.append(x, new) / x[-1]
        losses = noisy(shares @ np.stack([np.ones(len(at)), at**-slow, at**-fast]), noise, seed)
        _, low, high = ends(losses[:-3], new, sizes=x)
        inside.append((low <= losses[-3:]) & (losses[-3:] <= high))
    assert 0.8 <= np.mean(inside) <= 1.0
    assert (np.mean(inside, axis=0) >= 0.8).all()


def test_intervals_widen_with_the_distance_and_with_noise():
    little, much = (width(ends(noisy(floored(SIZES), noise, 5), [2e4, 1e5, 1e6])) for noise in (0.001, 0.1))
    assert (np.diff(little) > 0).all()
    assert (np.diff(much) > 0).all()
    assert (much > 2 * little).all()


def test_replicated_rows_narrow_the_interval():
    sizes = np.repeat(SIZES, 6)
    seeds = noisy(floored(sizes), 0.05)
    assert width(ends(seeds, 1e5, sizes=sizes)) < 0.8 * width(ends(seeds[::6], 1e5))


@given(log_sizes=st.floats(-20, 20), log_losses=st.floats(-20, 20))
@settings(max_examples=4, deadline=None, derandomize=True)
def test_units_do_not_matter(log_sizes: float, log_losses: float):
    sizes, losses = np.exp(log_sizes), np.exp(log_losses)
    np.testing.assert_allclose(
        ends(losses * CURVE, sizes * 1e5, sizes=sizes * SIZES), losses * ends(CURVE, 1e5), rtol=SAME
    )


def test_the_order_of_rows_does_not_matter():
    order = np.random.default_rng(1).permutation(len(SIZES))
    np.testing.assert_allclose(ends(CURVE[order], 1e5, sizes=SIZES[order]), ends(CURVE, 1e5), rtol=SAME)


def test_a_forecast_shows_its_points_and_its_status():
    forecast = sx.Extrapolation(
        np.array([[0.25], [0.125]]), np.array([[0.2], [0.01]]), np.array([[0.3], [0.1995]]), level=0.9, status="ok",
        rows=9, excluded={"loss is not finite": 1},
    )  # fmt: skip
    lines = str(forecast).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["value", "low", "high"], ["0.250", "0.200", "0.300"], ["0.125", "0.0100", "0.200"],
    ]  # fmt: skip
    assert len({len(line) for line in lines[:3]}) == 1  # columns end below each other
    assert lines[3] == "90 % intervals of one new run; 9 rows, 1 left out: loss is not finite; ok"
    assert repr(forecast) == str(forecast)
    assert forecast._repr_html_() == f"<pre>{forecast}</pre>"
    many = sx.Extrapolation(*(np.linspace(1, 2, 30),) * 3, level=0.95, status="ok", rows=9)
    assert str(many).splitlines()[-2:] == ["  and 10 points more", "95 % intervals of one new run; 9 rows; ok"]
    single = sx.Extrapolation(*map(np.array, (0.5, 0.4, 0.6)), level=0.9, status="ok", rows=9)
    assert str(single).splitlines()[1].split() == ["0.500", "0.400", "0.600"]


def test_levels_are_nested_and_a_seed_gives_the_same_numbers():
    wide, again, narrow = (ends(CURVE, 1e5, level=level, seed=3) for level in (0.9, 0.9, 0.5))
    np.testing.assert_array_equal(wide, again)
    assert wide[1] < narrow[1] < narrow[0] == wide[0] < narrow[2] < wide[2]
    np.testing.assert_allclose(ends(CURVE, 1e5, seed=4), wide, rtol=0.01)


def test_losses_of_zero_are_forecast():
    losses = np.where(SIZES > 4e3, 0.0, floored(SIZES, floor=0))
    value, low, high = ends(losses, [2e4, 1e5])
    assert np.isfinite(high).all()
    assert (low >= 0).all()
    assert (value < losses[losses > 0].min()).all()
    assert high[0] > 0


def test_rows_without_a_loss_are_left_out_and_counted():
    sizes, losses = np.append(SIZES, [2e4, 3e4]), np.append(CURVE, [np.nan, np.inf])
    found = sx.extrapolate({"examples": sizes}, losses, {"examples": 1e5})
    assert (found.rows, dict(found.excluded)) == (12, {"loss is not finite": 2})
    np.testing.assert_array_equal(found.value, ends(CURVE, 1e5)[0])


def test_new_predictors_broadcast_and_numbers_give_arrays_of_no_dimension():
    for loss in (CURVE, np.append(floored(SIZES[:6]), np.full(6, floored(SIZES[5])))):  # the law, and the last value
        found = sx.extrapolate({"examples": SIZES}, loss, {"examples": 1e5})
        for one in (found.value, found.low, found.high):
            assert isinstance(one, np.ndarray)
            assert one.shape == ()
    params, tokens, loss = surface_rows(0.01)
    asked = {"params": np.array([[1e9], [2e9]]), "tokens": np.array([1e10, 2e10, 4e10])}
    found = sx.extrapolate({"params": params, "tokens": tokens}, loss, asked)
    assert found.value.shape == found.low.shape == found.high.shape == (2, 3)
    assert (np.diff(found.value) < 0).all()


def test_no_new_predictors_give_no_losses():
    assert ends(CURVE, []).shape == (3, 0)


def test_many_points_are_forecast_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """The covariance of 20,000 points with each other would take 3 GB."""
    asked, whole = [], Posterior.forecast

    def forecast(self: Posterior, new: np.ndarray, **options: Any) -> Mixture:
        asked.append(new.shape[1])
        return whole(self, new, **options)

    monkeypatch.setattr(Posterior, "forecast", forecast)
    new = np.geomspace(1e3, 1e6, 2 * BLOCK + 1)
    many = ends(CURVE, new)
    assert max(asked) <= BLOCK
    np.testing.assert_allclose(many[:, [0, BLOCK, -1]], ends(CURVE, new[[0, BLOCK, -1]]), rtol=SAME)


GIVEN = {"examples": SIZES}


@pytest.mark.parametrize(
    ("predictors", "loss", "new", "sentence"),
    [
        ({"examples": SIZES[[0, 0, 1, 2]]}, CURVE[:4], GIVEN, "The rows are at 3 different places: .* at least 4."),
        (GIVEN, -CURVE, GIVEN, "loss of row 0 is -.*: losses must not be negative."),
        (GIVEN, 0 * CURVE, GIVEN, "No loss is above zero: there is nothing to forecast from."),
        (GIVEN, CURVE, {"tokens": 1e5}, "The rows' predictors are examples; given to forecast: tokens."),
        (GIVEN, CURVE, {}, "The rows' predictors are examples; given to forecast: none."),
        (dict.fromkeys("abc", SIZES), CURVE, GIVEN, r"takes one predictor or two .*; given: 3 predictors."),
        ({}, CURVE, {}, r"takes one predictor or two .*; given: 0 predictors."),
        ({"examples": SIZES - 10}, CURVE, GIVEN, "examples of row 0 is 0: predictors must be positive and finite."),
        (GIVEN, CURVE, {"examples": [1e5, -1]}, "examples to forecast must be positive and finite."),
        (GIVEN, CURVE[1:], GIVEN, r"examples has shape \(12,\) and loss \(11,\): give one value a row"),
        (GIVEN, 0.5, GIVEN, r"examples has shape \(12,\) and loss \(\): give one value a row"),
    ],
)
def test_mistakes_are_refused_in_a_sentence(predictors: Any, loss: Any, new: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        sx.extrapolate(predictors, loss, new)


@pytest.mark.parametrize("level", [0, 1, -0.5, 90, np.nan])
def test_a_level_is_between_zero_and_one(level: float):
    with pytest.raises(ValueError, match=f"level is {level}: it must be between 0 and 1, such as 0.9."):
        sx.extrapolate(GIVEN, CURVE, GIVEN, level=level)


def test_the_last_value_is_repeated_where_that_was_better_before():
    walk = np.exp(0.1 * np.cumsum(np.random.default_rng(5).standard_normal(30)))
    fallen = np.append(floored(SIZES[:6]), np.full(6, floored(SIZES[5])))
    for loss, sizes in ((walk, np.geomspace(10, 1e4, 30)), (fallen, SIZES)):
        found = sx.extrapolate({"examples": sizes}, loss, {"examples": [2e4, 1e5]})
        assert found.status.startswith("last value: from 2 earlier ends of the rows, repeating the last value missed")
        np.testing.assert_allclose(found.value, loss[-1], rtol=SAME)
        assert (found.low < found.value).all()
        assert (found.value < found.high).all()
    assert sx.extrapolate(GIVEN, CURVE, {"examples": 1e5}).status == "ok"


def test_the_last_value_is_not_repeated_inside_the_rows():
    fallen = np.append(floored(SIZES[:6]), np.full(6, floored(SIZES[5])))
    found = sx.extrapolate({"examples": SIZES}, fallen, {"examples": [SIZES[2], 1e5]})
    assert found.status.startswith("last value")
    np.testing.assert_allclose(found.value, [ends(fallen, SIZES[2])[0], fallen[-1]], rtol=SAME)


def budgets(flops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return params and tokens of isoFLOP profiles of seven sizes."""
    flops, times = np.repeat(flops, 7), np.tile(np.geomspace(1 / 6, 6, 7), len(flops))
    params = 1e8 * np.sqrt(flops / 1e19) * times
    return params, flops / 6 / params


SEEN, HIDDEN = budgets(np.geomspace(1e17, 1e20, 6)), budgets(np.geomspace(1e21, 1e22, 2))
ASKED = {"params": HIDDEN[0], "tokens": HIDDEN[1]}


def hoffmann(params: Any, tokens: Any, *, interaction: float = 0.0) -> Any:
    terms = 406.4 / params**0.34 + 410.7 / tokens**0.28
    return 1.69 + terms + interaction / (params**0.12 * tokens**0.1)


def surface_rows(noise: float, *, seed: int = 0, interaction: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return *SEEN, noisy(hoffmann(*SEEN, interaction=interaction), noise, seed)


def test_a_planted_law_of_two_predictors_holds_the_hidden_budgets():
    params, tokens, loss = surface_rows(0.01)
    found = sx.extrapolate({"params": params, "tokens": tokens}, loss, ASKED)
    truth = noisy(hoffmann(*HIDDEN), 0.01, 100)
    assert np.mean((found.low <= truth) & (truth <= found.high)) >= 0.8
    np.testing.assert_allclose(found.value, truth, rtol=0.05)
    assert width(np.stack([found.value, found.low, found.high])).max() < 0.2


@pytest.mark.slow
def test_a_surface_with_an_interaction_is_forecast_better_than_by_a_fit():
    """The law of Hoffmann et al. has no such term: its fit bends to it and misses beyond."""
    truth, held, squares = hoffmann(*HIDDEN, interaction=60.0), [], []
    for seed in range(3):  # the hidden points of one draw are missed or held together
        params, tokens, loss = surface_rows(0.003, seed=seed, interaction=60.0)
        rows = {"params": params, "tokens": tokens}
        found, plain = sx.extrapolate(rows, loss, ASKED), sx.fit_law("chinchilla", rows, loss).predict(ASKED)
        held.append((found.low <= truth) & (truth <= found.high))
        squares.append([np.mean(np.log(value / truth) ** 2) for value in (found.value, plain.value)])
    assert np.mean(held) >= 0.8
    ours, theirs = np.mean(squares, axis=0)
    assert ours <= theirs


def test_an_outlier_hardly_moves_the_forecast_of_two_predictors():
    params, tokens, loss = surface_rows(0.005)
    off = loss.copy()
    off[20] *= 1.5
    as_it_is, moved = (
        sx.extrapolate({"params": params, "tokens": tokens}, y, {"params": 1e10, "tokens": 1e12}) for y in (loss, off)
    )
    assert moved.value == pytest.approx(as_it_is.value, rel=0.005)
    assert np.log(moved.high / moved.low) < 1.5 * np.log(as_it_is.high / as_it_is.low)


def test_drawn_runs_spread_as_the_forecast_of_a_run_does():
    """Of rows with outliers, whose share of the noise is in the tails."""
    params, tokens, loss = surface_rows(0.005)
    loss = loss * np.where(np.arange(len(loss)) % 6 == 3, 1.1, 1.0)
    rows = measured({"params": params, "tokens": tokens}, loss)
    known, (places, _) = extrapolating.posterior(rows), rows.new({"params": params[[-4]], "tokens": tokens[[-4]]})
    draws = np.exp(known.sample(places, count=20_000))
    levels = [0.05, 0.5, 0.95]
    drawn = np.quantile(one_run(draws, known, offset=0.0, seed=1), levels, axis=0)
    told = np.exp(known.forecast(places).quantiles(levels))
    assert np.log(told[2] / told[0]) > 1.5 * np.log(np.divide(*np.quantile(draws, [0.95, 0.05], axis=0)))
    np.testing.assert_allclose(np.log(drawn), np.log(told), atol=0.003)


def test_sizes_may_each_go_their_own_way():
    """Curves of the same start, of which each bends where no other does: what one does says little of the next."""
    sizes, data = np.repeat([1e4, 1e5, 1e6, 1e7], 8), np.tile(np.geomspace(100, 1e5, 8), 4)
    exponent = np.repeat([0.1, 0.4, 0.15, 0.5], 8)
    loss = noisy(np.exp(-exponent * np.maximum(np.log(data / 1e3), 0)), 0.01)
    rows = measured({"params": sizes, "examples": data}, loss)
    known = extrapolating.posterior(rows)
    twist = known.drift.sizes[known.combination // len(known.drift.noise_sizes), 2]
    assert known.weights @ (twist > 0.5) > 0.9


def test_thousands_of_rows_are_merged():
    sizes = np.geomspace(100, 1e6, 5000)
    loss = noisy(floored(sizes), 0.01)
    rows = measured({"examples": sizes}, loss)
    assert len(rows.counts) <= MOST_CELLS[1]
    assert rows.rows == 5000
    value, low, high = ends(loss, 1e7, sizes=sizes)
    assert low < floored(1e7) < high
    assert value == pytest.approx(floored(1e7), rel=0.05)


def test_many_rows_of_two_predictors_are_merged_and_one_of_them_may_be_constant():
    tokens = np.geomspace(1e8, 1e11, 1000)
    grid = {"params": np.tile(np.geomspace(1e6, 1e9, 40), 25), "tokens": tokens}
    assert len(measured(grid, floored(tokens)).counts) <= MOST_CELLS[2]
    one = measured({"params": np.full(1000, 1e7), "tokens": tokens}, floored(tokens))
    assert len(one.counts) == round(MOST_CELLS[2] ** 0.5)
    np.testing.assert_allclose(one.logs[0], np.log(1e7), rtol=SAME)


def places(predictors: int, rows: int, seed: int = 0) -> np.ndarray:
    return -5 * np.random.default_rng(seed).random((predictors, rows))


@pytest.mark.parametrize("predictors", [1, 2])
def test_the_covariance_of_drifts_is_positive_semidefinite(predictors: int):
    at = places(predictors, 30)
    parts = walks(at, at, at.min(axis=1))
    for size in ((0.3, 0.0, 0.0, 1.0), (0.3, 0.1, 0.5, 0.2), (0.0, 0.1, 0.0, 1.0)):
        matrix = combined(parts, np.array(size))
        np.testing.assert_array_equal(matrix, matrix.T)
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-12 * values[-1]
        assert values[-1] > 0


def drift_and_covariances() -> tuple[Drift, np.ndarray, np.ndarray]:
    """Return a drift of six rows, the residuals of five laws, and K of each combination."""
    random: Any = np.random.default_rng(2)
    at, variances = places(2, 6), random.uniform(0.2, 1, 6)
    residuals = 0.05 * random.standard_normal((5, 6))
    drift = drift_of(at, variances, residuals=residuals)
    matrices = []
    for size in drift.sizes:
        shared = combined(walks(at, at, at.min(axis=1)), size)
        matrices += [shared + noise**2 * np.diag(variances) for noise in drift.noise_sizes]
    return drift, residuals, np.stack(matrices)


def test_the_likelihood_of_drifts_is_that_of_normal_distributions():
    """Of all contrasts between rows, which hold no height; up to one constant for all laws, noises and drifts."""
    drift, residuals, matrices = drift_and_covariances()
    contrasts = null_space(np.ones((1, 6)))
    direct = [
        multivariate_normal(np.zeros(5), contrasts.T @ matrix @ contrasts).logpdf(residuals @ contrasts)
        for matrix in matrices[::7]
    ]
    difference = drift.log_likelihood(residuals)[:, ::7] - np.stack(direct, axis=1)
    np.testing.assert_allclose(difference, difference[0, 0], atol=1e-5)


def test_what_is_left_out_of_drifts_and_noises_is_unlikely():
    random: Any = np.random.default_rng(3)
    at, variances = places(1, 40), np.ones(40)
    residuals = 0.03 * random.standard_normal((5, 40))
    kept = drift_of(at, variances, residuals=residuals)
    with patch.object(drifts, "UNLIKELY", 1e-300):
        whole = drift_of(at, variances, residuals=residuals)
    np.testing.assert_array_equal(whole.noise_sizes, NOISES)
    assert len(kept.noise_sizes) < len(NOISES) / 2
    shares = [np.exp(drift.log_likelihood(residuals) - whole.log_likelihood(residuals).max()).sum(axis=1).max()
              for drift in (kept, whole)]  # fmt: skip
    assert shares[0] == pytest.approx(shares[1], rel=10 * UNLIKELY)


def test_what_rows_say_of_new_places_is_the_best_unbiased_prediction():
    """Ordinary kriging (Matheron 1963): the weights of the rows sum to one and have the least variance."""
    drift, residuals, matrices = drift_and_covariances()
    new = np.array([[0.5, 1.0], [0.2, 3.0]])
    for combination in range(0, len(matrices), 97):
        size = drift.sizes[combination // len(drift.noise_sizes)]
        shared = combined(walks(drift.positions, new, drift.origin), size)
        bordered = np.block([[matrices[combination], np.ones((6, 1))], [np.ones((1, 6)), np.zeros((1, 1))]])
        weights = np.linalg.solve(bordered, np.vstack([shared, np.ones((1, 2))]))[:-1]
        own = combined(walks(new, new, drift.origin), size)
        spread = own - weights.T @ shared - shared.T @ weights + weights.T @ matrices[combination] @ weights
        ((to_height, shift, found),) = drift.beyond(new, [combination])
        height = (residuals @ to_height)[:, None]
        np.testing.assert_allclose(height + (residuals - height) @ shift, residuals @ weights, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found, spread, rtol=1e-6, atol=1e-9)


def test_quantiles_of_a_mixture():
    levels = [0.01, 0.25, 0.5, 0.95]
    alike = Mixture(np.array([0.3, 0.7]), np.array([[1.0, -2.0]] * 2), np.array([[0.5, 3.0]] * 2))
    np.testing.assert_allclose(alike.quantiles(levels), norm.ppf(levels)[:, None] * [0.5, 3.0] + [1.0, -2.0], atol=1e-8)
    apart = Mixture(np.array([0.25, 0.75]), np.array([[0.0], [100.0]]), np.ones((2, 1)))
    expected = norm.ppf([0.4, 1 / 3]) + np.array([0, 100])  # 0.1 of 0.25; (0.5 - 0.25) of 0.75
    np.testing.assert_allclose(apart.quantiles([0.1, 0.5])[:, 0], expected, atol=1e-8)


def test_the_long_form_scores_intervals_and_needs_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    table = pd.DataFrame({"x": [3, 1, 2, 5, 4], "y": [2.0, 8, 4, 1, 1.5]})
    curve = forecasts.learning_curve(table, "x", "y", 3)
    assert (curve.loss.tolist(), curve.truth.tolist(), curve.last) == ([8, 4, 2], [1.5, 1], 2)
    one = forecasts.score(curve, lambda _: (np.array([1.5, 2]), np.array([1.0, 1.2]), np.array([2.0, 3.2])))
    assert one.inside.tolist() == [True, False]
    np.testing.assert_allclose(one.intervals, [1 / 2, (2 + 20 * 0.2) / 2])  # in units of the last loss
    assert one.rmsle == pytest.approx(np.log(2) / np.sqrt(2))
    failed = forecasts.score(curve, lambda _: (np.array([np.nan, 1]), np.ones(2), np.ones(2)))
    assert failed.failed
    np.testing.assert_allclose(failed.misses, np.log([2 / 1.5, 2]) ** 2)
    monkeypatch.setattr("sys.argv", ["forecasts.py", str(tmp_path / "none")])
    forecasts.main()
    assert capsys.readouterr().out.startswith("The public tables are not at hand: there is no folder")
