"""Compute-optimal sizes by three approaches, on planted surfaces where the optimum is known."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from laws_helpers import REFERENCE, planted_and

from scalejax import compute_optimal, fit_envelope, fit_isoflop, misallocation

pytestmark = pytest.mark.usefixtures("compile_quickly")
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
ASYMMETRIC = HOFFMANN | {"alpha": 0.465, "beta": 0.155}
BUDGETS = np.logspace(17, 21, 5)
FAR = 1e24
surfaces = pytest.mark.parametrize("surface", [HOFFMANN, ASYMMETRIC], ids=["hoffmann", "asymmetric"])


@dataclass(frozen=True)
class Planted:
    """What is needed of a fitted law."""

    params: dict
    samples: dict = field(default_factory=dict)
    law: str = "chinchilla"
    status: str = "ok"


PlantedFit: Any = Planted


def loss_of(surface, params, tokens):
    p = surface
    return p["E"] + p["A"] / params ** p["alpha"] + p["B"] / tokens ** p["beta"]


def best_params(surface, flops):
    p = surface
    scale = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    return scale * (flops / 6) ** (p["beta"] / (p["alpha"] + p["beta"]))


def profiles(surface, *, width, rows=15, noise=0.0, seed=0, off=1.0):
    """Return points and losses of isoFLOP profiles over +- a factor of width about `off` times the optimum."""
    factors = off * np.geomspace(1 / width, width, rows)
    flops = np.repeat(BUDGETS, rows)
    params = (best_params(surface, BUDGETS)[:, None] * factors).ravel()
    loss = loss_of(surface, params, flops / 6 / params)
    loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(loss)))
    return {"params": params, "flops": flops}, loss


def curves(surface, *, noise=0.0, seed=0):
    """Return training curves of 12 sizes, constant learning rate: their losses lie on the surface."""
    params = np.repeat(np.geomspace(1e7, 1e10, 12), 60)
    tokens = np.tile(np.geomspace(1e8, 1e12, 60), 12)
    loss = loss_of(surface, params, tokens)
    return {"params": params, "tokens": tokens}, loss * np.exp(
        noise * np.random.default_rng(seed).standard_normal(len(loss))
    )


def parabola_error(surface, points, loss):
    """Return the relative error at FAR of approach 2 as published: a parabola through log N for each budget."""
    optima = []
    for flops in BUDGETS:
        here = points["flops"] == flops
        bend, slope, _ = np.polyfit(np.log(points["params"][here]), loss[here], 2)
        optima.append(-slope / 2 / bend)
    line = np.polyfit(np.log(BUDGETS), optima, 1)
    return math.exp(np.polyval(line, math.log(FAR))) / best_params(surface, FAR) - 1


@surfaces
@pytest.mark.parametrize("width", [2, 4, 8, 16])
@pytest.mark.parametrize("off", [1.0, 0.7, 1.5])
def test_isoflop_optimum_has_no_bias(surface, width, off):
    points, loss = profiles(surface, width=width, off=off)
    found = compute_optimal(fit_isoflop(points, loss, bootstrap=0, window=math.inf), FAR)
    truth = best_params(surface, FAR)
    assert found.status == "ok"
    assert found.params == pytest.approx(truth, rel=1e-6)
    assert found.tokens == pytest.approx(FAR / 6 / truth, rel=1e-6)
    assert found.loss == pytest.approx(loss_of(surface, truth, FAR / 6 / truth), rel=1e-6)


@pytest.mark.parametrize(
    ("surface", "width", "error"),
    [(HOFFMANN, 2, 0.003), (HOFFMANN, 16, 0.05), (ASYMMETRIC, 2, 0.015), (ASYMMETRIC, 16, 0.3)],
)
def test_the_parabola_is_biased_where_ours_is_not(surface, width, error):
    points, loss = profiles(surface, width=width)
    assert parabola_error(surface, points, loss) > error
    found = compute_optimal(fit_isoflop(points, loss, bootstrap=0), FAR)
    assert abs(found.params / best_params(surface, FAR) - 1) < 1e-6


def test_tokens_may_stand_for_flops_and_the_window_changes_nothing_without_noise():
    points, loss = profiles(ASYMMETRIC, width=16)
    tokens = points["flops"] / 6 / points["params"]
    found = [
        fit_isoflop({"params": points["params"], "tokens": tokens}, loss, bootstrap=0, window=window)
        for window in (2.0, 8.0, math.inf)
    ]
    assert [each.params_exponent.value for each in found] == pytest.approx([0.25] * 3, rel=1e-6)
    assert [each.tokens_exponent.value for each in found] == pytest.approx([0.75] * 3, rel=1e-6)


def test_a_profile_that_does_not_bracket_its_minimum_is_refused_and_the_others_stand():
    points, loss = profiles(HOFFMANN, width=8)
    best = best_params(HOFFMANN, BUDGETS[2])
    kept = (points["flops"] != BUDGETS[2]) | (points["params"] > 1.2 * best)
    found = fit_isoflop({name: column[kept] for name, column in points.items()}, loss[kept], bootstrap=50)
    assert found.statuses[2].startswith("not bracketed: at 1e+19 FLOPs")
    assert "towards smaller models" in found.statuses[2]
    assert [status == "ok" for status in found.statuses] == [True, True, False, True, True]
    assert math.isnan(found.params[2])
    assert math.isnan(found.low.params[2])
    assert found.params[[0, 1, 3, 4]] == pytest.approx(best_params(HOFFMANN, BUDGETS[[0, 1, 3, 4]]), rel=1e-6)
    assert str(found).startswith("isoflop: optima found at 4 of 5 computes\n  params grow as C^0.")
    shown = found._repr_html_()
    assert shown.count("<tr>") == 1 + 5
    assert f"{found.loss[0]:.4g}</td>" in shown


def test_without_two_bracketed_profiles_nothing_is_extrapolated():
    points, loss = profiles(HOFFMANN, width=4, off=10.0)
    found = fit_isoflop(points, loss, bootstrap=20)
    assert found.status.startswith("not identifiable")
    assert all("towards smaller models" in status for status in found.statuses)
    assert math.isnan(compute_optimal(found, FAR).params)
    assert compute_optimal(found, FAR).status == found.status


def test_noise_alone_brackets_nothing():
    points, loss = profiles(HOFFMANN, width=4)
    noise = 3 + 0.01 * np.random.default_rng(0).standard_normal(len(loss))
    found = fit_isoflop(points, noise, bootstrap=0)
    assert sum(status == "ok" for status in found.statuses) <= 1


def test_too_few_points_are_a_status():
    points, loss = profiles(HOFFMANN, width=4, rows=3)
    found = fit_isoflop(points, loss, bootstrap=10)
    assert found.status.startswith("too few points")
    assert found.params.size == 0
    assert math.isnan(compute_optimal(found, FAR).low.params)


def test_one_wild_outlier_moves_little():
    points, loss = profiles(HOFFMANN, width=8, noise=0.001)
    clean = compute_optimal(fit_isoflop(points, loss, bootstrap=0), FAR).params
    loss[20] *= 1.3
    found = compute_optimal(fit_isoflop(points, loss, bootstrap=0), FAR).params
    assert abs(math.log(found / clean)) < 0.01


def test_rows_without_a_finite_loss_are_excluded_and_counted():
    points, loss = profiles(HOFFMANN, width=4)
    loss[[0, 17]] = np.nan, np.inf
    found = fit_isoflop(points, loss, bootstrap=0)
    assert found.excluded == 2
    assert found.params == pytest.approx(best_params(HOFFMANN, BUDGETS), rel=1e-6)


def test_optima_off_a_power_law_are_told():
    points, loss = profiles(HOFFMANN, width=4, noise=1e-4)
    points["params"] = points["params"] * np.repeat([1.0, 1.5, 0.7, 1.4, 1.0], 15)
    found = fit_isoflop(points, loss, bootstrap=100)
    assert found.status.startswith("no law fits")
    assert found.scatter > 5


@pytest.mark.slow
@pytest.mark.parametrize(("width", "rows", "noise"), [(4, 15, 0.003), (16, 7, 0.003)])
def test_intervals_cover(width, rows, noise):
    """90 % intervals of the optimum at 1e24 cover it in 90 % of 100 simulations, give or take two standard errors."""
    truth, covered = best_params(HOFFMANN, FAR), 0
    for seed in range(100):
        points, loss = profiles(HOFFMANN, width=width, rows=rows, noise=noise, seed=seed)
        found = compute_optimal(fit_isoflop(points, loss, bootstrap=100, seed=seed, window=math.inf), FAR)
        covered += bool(found.low.params <= truth <= found.high.params)
    assert 0.84 <= covered / 100 <= 0.96


def test_same_seed_same_intervals():
    points, loss = profiles(HOFFMANN, width=4, noise=0.003)
    one, two, other = (fit_isoflop(points, loss, bootstrap=50, seed=seed).params_exponent for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert one.low < one.value < one.high


def test_groups_share_their_noise():
    points, loss = profiles(HOFFMANN, width=4, noise=0.003)
    twice = {name: np.tile(column, 2) for name, column in points.items()}
    apart = fit_isoflop(twice, np.tile(loss, 2), bootstrap=400)
    together = fit_isoflop(twice, np.tile(loss, 2), bootstrap=400, groups=list(np.tile(np.arange(75), 2)))

    def width(found):
        return found.params_exponent.high - found.params_exponent.low

    assert width(together) > 1.2 * width(apart)


def test_envelope_of_training_curves():
    points, loss = curves(HOFFMANN)
    found = fit_envelope(points, loss, bootstrap=20)
    assert found.status == "ok"
    assert found.params == pytest.approx(best_params(HOFFMANN, found.flops), rel=1e-3)
    best = compute_optimal(found, FAR)
    assert best.params == pytest.approx(best_params(HOFFMANN, FAR), rel=1e-3)
    assert best.loss == pytest.approx(loss_of(HOFFMANN, best.params, best.tokens), rel=1e-5)


def test_envelope_with_noise_and_intervals():
    points, loss = curves(HOFFMANN, noise=0.003)
    best = compute_optimal(fit_envelope(points, loss, bootstrap=200), 1e22)
    assert best.low.params < best_params(HOFFMANN, 1e22) < best.high.params
    assert best.high.params / best.low.params < 1.3


def test_envelope_without_rivals_is_refused():
    points, loss = curves(HOFFMANN)
    small = points["params"] < 3e7
    found = fit_envelope({name: column[small] for name, column in points.items()}, loss[small], bootstrap=10)
    assert found.status.startswith("not bracketed")


@surfaces
def test_parametric_optimum_is_where_the_loss_is_lowest(surface):
    found = compute_optimal(PlantedFit(surface), BUDGETS)
    assert found.params == pytest.approx(best_params(surface, BUDGETS), rel=1e-12)
    assert 6 * found.params * found.tokens == pytest.approx(BUDGETS, rel=1e-12)
    assert found.loss == pytest.approx(loss_of(surface, found.params, found.tokens), rel=1e-12)
    for factor in (0.99, 1.01):
        assert (loss_of(surface, factor * found.params, found.tokens / factor) > found.loss).all()
    assert np.isnan(found.low.params).all()


def test_parametric_intervals_come_from_the_samples():
    generator = np.random.default_rng(0)
    samples = {name: value * np.exp(0.01 * generator.standard_normal(999)) for name, value in HOFFMANN.items()}
    found = compute_optimal(PlantedFit(HOFFMANN, samples), FAR, level=0.8)
    each = best_params(samples, FAR)
    assert [found.low.params, found.high.params] == pytest.approx(list(np.quantile(each, [0.1, 0.9])), rel=0.01)
    assert found.low.loss < found.loss < found.high.loss
    assert isinstance(found.params, float)


def test_a_law_without_a_term_has_no_optimum():
    found = compute_optimal(PlantedFit(HOFFMANN | {"B": 0.0}), FAR)
    assert found.status.startswith("no optimum")
    assert math.isnan(found.params)


@surfaces
@pytest.mark.parametrize("factor", [0.25, 1.0, 1.7, 4.0])
def test_cost_of_a_misallocation(surface, factor):
    flops = 1e22
    best = compute_optimal(PlantedFit(surface), flops)
    found = misallocation(PlantedFit(surface), flops, factor=factor)
    assert found.loss == pytest.approx(loss_of(surface, factor * best.params, best.tokens / factor), rel=1e-12)
    assert found.extra_loss == pytest.approx(found.loss - best.loss, abs=1e-12)
    # As much compute would have been enough for this loss:
    assert compute_optimal(PlantedFit(surface), flops / found.wasted).loss == pytest.approx(found.loss, rel=1e-9)
    # And this size reaches the optimal loss with so much compute:
    if math.isfinite(found.at_this_size):
        params = factor * best.params
        tokens = found.at_this_size * flops / 6 / params
        assert loss_of(surface, params, tokens) == pytest.approx(best.loss, rel=1e-9)
    else:
        assert loss_of(surface, factor * best.params, 1e300) > best.loss


def test_cost_of_a_misallocation_has_intervals_and_shapes():
    samples = {name: value * np.linspace(0.97, 1.03, 101) for name, value in HOFFMANN.items()}
    factors = np.array([0.01, 0.5, 1.0, 2.0])
    found = misallocation(PlantedFit(HOFFMANN, samples), [[1e20], [1e22]], factor=factors)
    assert found.loss.shape == found.low["loss"].shape == (2, 4)
    assert np.isinf(found.at_this_size[:, 0]).all()
    assert found.extra_loss[:, 2] == pytest.approx([0, 0])
    assert (found.low["wasted"][:, 1] < found.wasted[:, 1]).all()
    assert (found.wasted[:, 1] < found.high["wasted"][:, 1]).all()


def test_mistakes_are_one_sentence():
    points, loss = profiles(HOFFMANN, width=4)
    frontier = fit_isoflop(points, loss, bootstrap=0)
    spread = {"params": points["params"], "flops": np.geomspace(1e17, 1e18, 75)}
    mixed = {"params": points["params"], "tokens": np.geomspace(1e9, 1e10, 75)}
    for call, words in (
        (lambda: fit_isoflop({"params": points["params"]}, loss), "one of flops or tokens"),
        (lambda: fit_isoflop(points, loss[1:]), "one length"),
        (lambda: fit_isoflop(points, -loss), "must be positive"),
        (lambda: fit_isoflop(points, loss * np.nan), "No row has a finite loss"),
        (lambda: fit_isoflop(points | {"params": -points["params"]}, loss), "params must be positive"),
        (lambda: fit_isoflop(spread, loss), "not isoFLOP profiles"),
        (lambda: fit_isoflop(points, loss, groups=[1, 2]), "2 labels for 75 rows"),
        (lambda: fit_isoflop(points, loss, window=0.5), "window must exceed 1"),
        (lambda: fit_isoflop(points, loss, level=1.5), "level must lie"),
        (lambda: fit_envelope(mixed, loss, curves=["one"] * 75), "two numbers of parameters"),
        (lambda: fit_envelope(mixed, loss, slices=1), "slices must be"),
        (lambda: compute_optimal(PlantedFit(HOFFMANN, law="kaplan"), 1e20), "The law kaplan"),
        (lambda: compute_optimal(PlantedFit({"alpha[a]": 1.0}), 1e20), "several curves"),
        (lambda: compute_optimal(frontier, -1.0), "flops must be positive"),
        (lambda: compute_optimal(frontier, 1e20, level=0.0), "level must lie"),
        (lambda: misallocation(frontier, 1e20, factor=2.0), "knows the optima only"),  # pyright: ignore
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def porian_runs(source: str) -> dict[str, tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return isoFLOP profiles with tuned and with untuned learning rates, each as points and losses."""
    if source == "planted":
        return {"tuned": on_a_ladder(exponent=0.49), "base": on_a_ladder(exponent=0.7)}
    rows = pd.read_csv(REFERENCE / "porian_isoflop_points.csv")
    found = {}
    for warmup, hparams, decay in (("short", "tuned", "const"), ("long", "base", "kaplan")):
        chosen = (rows.dataset == "rw") & (rows.warmup == warmup) & (rows.hparams == hparams) & (rows.decay == decay)
        here = rows[chosen & (rows.param_count == "standard")]
        found[hparams] = {"params": here.n.to_numpy(), "flops": here.flops.to_numpy()}, here.loss.to_numpy()
    return found


def on_a_ladder(*, exponent: float):
    """Return profiles over one ladder of sizes whose optimum grows as compute to the power of `exponent`."""
    centre, alpha, beta = (3e7, 5e17), 0.62 * (1 - exponent), 0.62 * exponent
    params, flops = (
        each.ravel() for each in np.meshgrid(np.geomspace(3e5, 1e9, 16), np.geomspace(1.25e16, 2.6e19, 12))
    )
    off = params / centre[0] / (flops / centre[1]) ** exponent
    params, flops = params[abs(np.log(off)) < np.log(8)], flops[abs(np.log(off)) < np.log(8)]
    tokens = centre[1] / 6 / centre[0]
    surface = {"E": 1.7, "A": 0.5 * centre[0] ** alpha, "B": 0.5 * alpha / beta * tokens**beta}
    loss = loss_of(surface | {"alpha": alpha, "beta": beta}, params, flops / 6 / params)
    return {"params": params, "flops": flops}, loss * np.exp(
        0.003 * np.random.default_rng(0).standard_normal(len(loss))
    )


@planted_and("porian_isoflop_points.csv")
def test_tuned_learning_rates_confirm_hoffmann_and_untuned_ones_do_not(source):
    """Porian et al. (2024): with learning rates tuned the exponent is that of Hoffmann et al., about one half."""
    found = {
        hparams: fit_isoflop(points, loss, bootstrap=200).params_exponent
        for hparams, (points, loss) in porian_runs(source).items()
    }
    assert 0.46 < found["tuned"].value < 0.52
    assert 0.65 < found["base"].value < 0.75
    assert found["tuned"].high < found["base"].low
