import io
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from scalejax.analysis import learning_curves, notes, order_at_smallest, trends, tuned
from scalejax.report.table import curve_table, summary_lines

SIZES = (20, 60, 200, 600, 2000, 6000, 20000)


def make_row(**changes):
    row = {"trial_id": "", "family": "mlp", "width": 32.0, "depth": 2.0, "params": 1000, "train_examples": 20}
    row |= {"fraction": 0.1, "seed": 0, "learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 64, "steps": 400}
    row |= {"flops": 1.0, "status": "done", "reason": "", "train_loss": 0.1, "validation_loss": 0.5, "test_loss": 0.5}
    row |= {"test_error": 0.2, "best_step": 9, "seconds": 1.0} | changes
    if row["status"] != "done":
        row |= dict.fromkeys(("train_loss", "validation_loss", "test_loss", "test_error"), math.nan)
    name = [
        str(row[key]) for key in ("family", "width", "train_examples", "seed", "learning_rate", "batch_size", "steps")
    ]
    return row | {"trial_id": "/".join(name)}


def make_rows(changes):
    return pd.DataFrame([make_row(**change) for change in changes])


def power_rows(exponents, *, sizes=SIZES, seeds=3, noise=0.0, floor=0.0, scale=0.9):
    """Plant error = floor + scale (n/20)^-c for each width, with relative noise over seeds."""
    generator = np.random.default_rng(0)
    changes = []
    for width, exponent in exponents.items():
        for n in sizes:
            for seed in range(seeds):
                error = (floor + scale * (n / 20) ** -exponent) * math.exp(noise * generator.standard_normal())
                change = {"width": float(width), "params": 40 * width, "train_examples": n, "seed": seed}
                changes.append(change | {"test_error": error, "validation_loss": 2 * error})
    return make_rows(changes)


def test_tuned_picks_by_validation_never_by_test():
    rows = make_rows(
        {"learning_rate": rate, "validation_loss": loss, "test_error": error, "seed": seed}
        for rate, loss, error in ((1e-4, 0.9, 0.01), (1e-3, 0.3, 0.30), (1e-2, 0.8, 0.02))
        for seed in range(2)
    )
    result = tuned(rows)
    assert result["learning_rate"].tolist() == [1e-3, 1e-3]
    assert result["seed"].tolist() == [0, 1]
    assert result["edge"].tolist() == ["", ""]
    assert tuned(result)["learning_rate"].tolist() == [1e-3, 1e-3]


def test_tuned_includes_weight_decay_and_batch_size():
    rows = make_rows(
        {"weight_decay": decay, "batch_size": batch, "validation_loss": 1 + abs(decay - 0.1) + abs(batch - 32)}
        for decay in (0.0, 0.1)
        for batch in (16, 32)
    )
    assert tuned(rows)[["weight_decay", "batch_size"]].to_numpy().tolist() == [[0.1, 32]]


@pytest.mark.parametrize("status", ["diverged", "failed"])
def test_a_setting_does_not_win_because_its_bad_seeds_diverged(status):
    rows = make_rows(
        [{"learning_rate": 1e-3, "seed": seed, "validation_loss": 0.5} for seed in range(3)]
        + [{"learning_rate": 1e-2, "seed": 0, "validation_loss": 0.1}]
        + [{"learning_rate": 1e-2, "seed": seed, "status": status} for seed in (1, 2)]
    )
    result = tuned(rows)
    assert result["learning_rate"].tolist() == [1e-3] * 3
    assert result["diverged"].tolist() == [0] * 3
    assert result["excluded_elsewhere"].tolist() == [2] * 3


def test_a_setting_with_fewer_seeds_in_the_table_does_not_win():
    rows = make_rows(
        [{"learning_rate": 1e-3, "seed": seed, "validation_loss": 0.5} for seed in range(3)]
        + [{"learning_rate": 1e-2, "seed": 0, "validation_loss": 0.1}]
    )
    assert set(tuned(rows)["learning_rate"]) == {1e-3}


def test_ties_go_to_the_smaller_learning_rate():
    rows = make_rows({"learning_rate": rate} for rate in (1e-2, 1e-3, 3e-3))
    assert tuned(rows)["learning_rate"].tolist() == [1e-3]


@pytest.mark.parametrize(
    ("grid", "best", "edge"),
    [
        ((1e-3,), 1e-3, ""),
        ((1e-3, 1e-2), 1e-3, "lowest"),
        ((1e-3, 1e-2), 1e-2, "highest"),
        ((1e-4, 1e-3, 1e-2), 1e-3, ""),
        ((1e-4, 1e-3, 1e-2), 1e-2, "highest"),
    ],
)
def test_edge_of_the_grid(grid, best, edge):
    rows = make_rows({"learning_rate": rate, "validation_loss": 0.1 if rate == best else 0.5} for rate in grid)
    assert tuned(rows)["edge"].tolist() == [edge]
    text = " ".join(notes(learning_curves(rows)))
    assert ("edge" in text) == bool(edge)
    assert ("two values" in text) == (len(grid) == 2)


def test_a_diverged_rate_above_the_best_still_counts_as_part_of_the_grid():
    rows = make_rows([{"learning_rate": 1e-4, "validation_loss": 0.9}, {"learning_rate": 1e-3},
                      {"learning_rate": 1e-2, "status": "diverged"}])  # fmt: skip
    assert tuned(rows)["edge"].tolist() == [""]


def halved_rows():
    """Three rates of two seeds; the highest was stopped early, at the lowest losses of all."""
    rows = make_rows(
        {"learning_rate": rate, "seed": seed, "validation_loss": loss, "test_error": loss / 2}
        for rate, loss in ((1e-4, 0.9), (1e-3, 0.5), (1e-2, 0.1))
        for seed in range(2)
    )
    return rows.assign(status=["stopped" if rate == 1e-2 else "done" for rate in rows["learning_rate"]])


def test_a_stopped_trial_is_never_tuned_however_low_its_loss():
    rows = halved_rows()
    assert set(tuned(rows)["learning_rate"]) == {1e-3}
    curve = learning_curves(rows).iloc[0]
    assert (curve["value"], curve["learning_rate"], curve["seeds"]) == (0.25, 1e-3, 2)
    with pytest.raises(ValueError, match="found: 2 stopped"):
        learning_curves(rows.query("status == 'stopped'"))


def test_the_edge_is_that_of_the_grid_that_was_asked_for_with_its_stopped_rates():
    rows = halved_rows()
    assert tuned(rows)[["edge", "learning_rates"]].to_numpy().tolist() == [["", 3]] * 2
    kept = tuned(rows.query("status == 'done'"))
    assert set(kept["edge"]) == {"highest"}  # without the rows of the stopped rate it seems never to have been tried


def test_stopped_trials_are_counted_apart_from_those_that_are_missing():
    rows = pd.concat([halved_rows(), make_rows([{"learning_rate": 1e-1, "seed": 0, "status": "diverged"}])])
    assert set(tuned(rows)["stopped"]) == {2}
    curves = learning_curves(rows)
    assert curves[["diverged", "pending", "stopped", "excluded_elsewhere"]].to_numpy().tolist() == [[0, 0, 2, 1]]
    text = " ".join(notes(curves))
    assert "Stopped early by halving and not counted: 2 trials." in text
    assert "Not counted at other settings: 1 trial (diverged, failed or not run)." in text
    assert "halving" not in " ".join(notes(learning_curves(rows.query("status != 'stopped'"))))


def test_a_cell_whose_survivors_all_diverged_shows_its_stopped_trials_apart():
    rows = halved_rows()
    diverged = rows.assign(train_examples=60, status=rows["status"].replace("done", "diverged"))
    curves = learning_curves(pd.concat([rows, diverged]))
    assert curves[["seeds", "diverged", "stopped"]].to_numpy().tolist() == [[2, 0, 2], [0, 4, 2]]


def pool_rows(*, pool, sizes=(20, 60, 100), seeds=3):
    return make_rows(
        {"train_examples": n, "fraction": n / pool, "seed": seed, "test_error": 0.2 + 0.01 * seed}
        for n in sizes for seed in range(seeds)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("pool", "sizes", "seeds", "says"),
    [
        (100, (20, 100), 3, "All seeds train on the same 100 examples, the whole pool: their spread there leaves out"),
        (
            100,
            (20, 60),
            3,
            "Any two seeds have 60 % of their 60 examples in common: their spread there leaves out part",
        ),
        (100, (60, 80, 100), 3, "60 % of their 60 examples and 80 % of their 80 examples in common"),
        (200, (20, 100), 3, ""),
        (100, (20, 100), 1, ""),
    ],
)
def test_seeds_that_share_their_examples_are_noted_because_their_spread_lacks_the_data(pool, sizes, seeds, says):
    curves = learning_curves(pool_rows(pool=pool, sizes=sizes, seeds=seeds))
    text = " ".join(notes(curves))
    assert says in text
    assert ("spread there" in text) == bool(says)
    footnotes = " ".join(str(curve_table(curves, trends(curves)).caption).split())
    assert says in footnotes


def test_a_table_from_elsewhere_that_knows_no_pool_has_no_note_of_it():
    rows = pool_rows(pool=100).drop(columns="fraction")
    assert "spread there" not in " ".join(notes(learning_curves(rows)))
    rows = pool_rows(pool=100).assign(fraction=math.nan)
    assert "spread there" not in " ".join(notes(learning_curves(rows)))


def test_excluded_rows_never_enter_a_mean_and_are_counted():
    rows = make_rows(
        {"seed": seed, "test_error": 0.2 + 0.2 * seed, "status": status}
        for seed, status in enumerate(("done", "done", "diverged", "pending", "failed"))
    )
    # Even a number left behind by a diverged trial does not count, nor a done one without a finite measurement.
    rows.loc[2, ["validation_loss", "test_error"]] = 0.0
    rows = pd.concat([rows, make_rows([{"seed": 5, "validation_loss": math.inf, "test_error": 0.0}])])
    curve = learning_curves(rows).iloc[0]
    assert curve["value"] == pytest.approx(0.3)
    assert (curve["seeds"], curve["diverged"], curve["pending"]) == (2, 3, 1)
    text = " ".join(notes(learning_curves(rows)))
    assert "3 diverged or failed trials" in text
    assert "Not yet run at the chosen settings: 1 trial." in text


def test_a_cell_in_which_everything_diverged_stays_visible():
    rows = make_rows([{"seed": seed} for seed in range(2)]
                     + [{"seed": seed, "train_examples": 60, "status": "diverged"} for seed in range(2)])  # fmt: skip
    assert tuned(rows)["train_examples"].tolist() == [20, 20]
    curves = learning_curves(rows)
    assert curves["seeds"].tolist() == [2, 0]
    assert np.isnan(curves["value"].to_numpy()[1])
    assert curves["diverged"].tolist() == [0, 2]
    assert "No trial counts in 1 point" in " ".join(notes(curves))


def test_band_is_the_range_below_five_seeds_and_an_interval_of_the_mean_from_five():
    errors = (0.20, 0.22, 0.24, 0.26, 0.33)
    few = learning_curves(make_rows({"seed": k, "test_error": e} for k, e in enumerate(errors[:4]))).iloc[0]
    assert (few["low"], few["high"]) == (0.20, 0.26)
    many = learning_curves(make_rows({"seed": k, "test_error": e} for k, e in enumerate(errors))).iloc[0]
    assert many["value"] == pytest.approx(0.25)
    assert many["standard_error"] == pytest.approx(0.0223607, rel=1e-5)  # sd 0.05 over the square root of 5
    assert many["high"] - many["value"] == pytest.approx(2.776445 * 0.0223607, rel=1e-5)  # Student's t, 4 degrees
    assert "95 % interval" in many["band"]


def test_models_are_labelled_by_the_knobs_that_vary_and_ordered_by_params():
    rows = make_rows(
        [{"width": width, "params": width * 10} for width in (128.0, 8.0)]
        + [{"family": "logistic", "width": math.nan, "depth": math.nan, "params": 410}]
    )
    curves = learning_curves(rows)
    assert curves["model"].tolist() == ["mlp width 8", "logistic", "mlp width 128"]
    both = make_rows(
        {"width": width, "depth": depth, "params": width * depth} for width in (8, 16) for depth in (1.0, 3.0)
    )
    assert learning_curves(both)["model"].tolist()[-1] == "mlp width 16, depth 3"
    assert learning_curves(make_rows([{}]))["model"].tolist() == ["mlp"]


def test_features_that_vary_over_the_models_are_told_of_a_family_with_one_choice_too():
    def labels(*models):
        changes = [{"family": family, "features": features, "params": k} for k, (family, features) in enumerate(models)]
        rows = make_rows(changes)
        names = ["trial_id", "family", "features", "params"]
        table: Any = rows[names + [name for name in rows if name not in (*names, "width", "depth")]]
        return learning_curves(table)["model"]

    chain, ridge = "standardise + pca(5)", (("ridge", "none"), ("ridge", "spectrum"))
    assert labels(*ridge, ("svm", chain), ("mlp", "none")).tolist() == [
        "ridge features none", "ridge features spectrum", f"svm features {chain}", "mlp",
    ]  # fmt: skip
    assert labels(("ridge", chain), ("svm", chain)).tolist() == ["ridge", "svm"]


def test_other_metrics_and_rows_without_a_learning_rate():
    rows = make_rows([{"learning_rate": math.nan, "test_loss": 1.5, "test_error": math.nan}])
    curves = learning_curves(rows, "test_loss")
    assert curves[["value", "edge", "metric"]].to_numpy().tolist() == [[1.5, "", "test_loss"]]
    assert "loss 1.5" in trends(curves)["sentence"][0]


def regression_rows(*, name="RMSE", scale=30.0, floor=3.0):
    """Rows of a regression: no test_error, and a headline metric above 1."""
    rows = power_rows({8: 0.3, 64: 0.5}, scale=scale, floor=floor, noise=0.01).assign(metric=name)
    return rows.rename(columns={"test_error": "test_metric"}).assign(test_error=math.nan)


def test_a_regression_is_shown_by_its_own_metric_from_the_rows_to_the_words():
    rows = regression_rows()
    curves = learning_curves(rows)
    assert set(curves["metric"]) == {"test_RMSE"}
    assert curves["value"].to_numpy().max() > 30
    expected = learning_curves(power_rows({8: 0.3, 64: 0.5}, scale=30.0, floor=3.0, noise=0.01))
    pd.testing.assert_frame_equal(curves.drop(columns="metric"), expected.drop(columns="metric"))
    assert len(tuned(rows)) == len(rows)
    result = trends(curves)
    assert result["verdict"].tolist() == trends(expected)["verdict"].tolist()
    words = r"at 20,000 examples \(RMSE 6.\d+, from \d+\.\d+ at 6,000\); forecast: 10x .* cut its RMSE by"
    assert re.search(words, str(result["sentence"][0]))
    table = curve_table(curves, result)
    assert table.title == "Test RMSE by number of training examples"
    text = " ".join([*notes(curves), *summary_lines(curves, result), str(table.caption)])
    assert "the lowest RMSE" in text
    assert "error" not in text
    flat = trends(learning_curves(regression_rows(scale=2.0, floor=5.0)))["sentence"].tolist()[1]
    assert flat.startswith("mlp width 64 has flattened at 20,000 examples (RMSE 5.0")


def test_a_metric_without_a_logarithm_is_said_to_have_none():
    rows = regression_rows(name="NLL")
    rows.loc[rows["train_examples"] == 20000, "test_metric"] = -1.5
    for sentence in trends(learning_curves(rows))["sentence"].tolist():
        assert "has NLL -1.5 at 20,000 examples, which has no logarithm: no trend can be fitted." in sentence


@pytest.mark.parametrize("names", ["error", math.nan, None])
def test_the_error_of_a_classification_is_its_headline_in_old_tables_and_new(names):
    rows = power_rows({8: 0.3})
    new = rows.assign(test_metric=rows["test_error"], metric=names)
    pd.testing.assert_frame_equal(learning_curves(new), learning_curves(rows))
    assert set(learning_curves(new)["metric"]) == {"test_error"}


def test_a_task_of_ones_own_may_call_its_metric_error():
    curves = learning_curves(regression_rows(name="error"))
    assert set(curves["metric"]) == {"test_error"}
    assert curves["value"].to_numpy().max() > 30


def test_rows_of_two_metrics_are_refused_unless_a_column_is_named():
    rows = pd.concat([regression_rows(), regression_rows(name="MAE").assign(family="cnn")])
    says = "the metrics RMSE and MAE, which no curve can mix: keep those of one task"
    for function in (tuned, learning_curves):
        with pytest.raises(ValueError, match=says):
            function(rows)
    assert set(learning_curves(rows, "test_metric")["metric"]) == {"test_metric"}


def test_the_same_trial_twice_counts_once_and_two_budgets_are_refused():
    rows = make_rows({"seed": seed} for seed in range(2))
    assert learning_curves(pd.concat([rows, rows]))["seeds"].tolist() == [2]
    longer = make_rows([{"steps": 200}])
    with pytest.raises(ValueError, match="they differ in steps: keep one"):
        tuned(pd.concat([rows, longer]))


@pytest.mark.parametrize("function", [tuned, learning_curves, trends, order_at_smallest])
def test_an_empty_table_is_refused_in_a_sentence(function):
    full = make_rows([{}])
    table = full if function in (tuned, learning_curves) else learning_curves(full)
    with pytest.raises(ValueError, match="has no rows: run the sweep first"):
        function(table.head(0))


def test_nothing_finished_and_missing_columns_are_refused_in_sentences():
    for statuses, says in (
        (("diverged", "pending"), r"No trial counts yet \(found: 1 diverged, 1 pending\), .* run the sweep again"),
        (("diverged", "diverged"), r"Every trial diverged \(found: 2 diverged\), .*: lower the learning rates and run"),
        (("failed", "diverged"), r"found: 1 failed, 1 diverged\), .*; see the column reason"),
    ):
        with pytest.raises(ValueError, match=says):
            learning_curves(make_rows({"status": status, "seed": seed} for seed, status in enumerate(statuses)))
    with pytest.raises(ValueError, match="lacks validation_loss"):
        tuned(make_rows([{}]).drop(columns="validation_loss"))


def test_planted_exponents_are_recovered():
    result = trends(learning_curves(power_rows({8: 0.1, 64: 0.3, 256: 0.5})))
    assert result["exponent"].to_numpy() == pytest.approx([0.1, 0.3, 0.5], rel=1e-6)
    assert result["verdict"].tolist() == ["still falling"] * 3
    assert result["points"].tolist() == [3] * 3
    sentence = str(result["sentence"][1])
    assert sentence.startswith("mlp width 64 still falls at 20,000 examples (error 0.113, from 0.163 at 6,000); ")
    assert "forecast: 10x the data would cut its error by 50 % (90 % interval " in sentence  # 1 - 10^-0.3 = 0.499
    assert result["fall"].to_numpy() == pytest.approx(1 - 10 ** -np.array([0.1, 0.3, 0.5]), abs=0.02)
    low, fall, high = result[["fall_low", "fall", "fall_high"]].to_numpy().T
    assert (np.diff([low, fall, high], axis=0) > 0).all()


@pytest.mark.slow
def test_the_exponents_standard_error_covers_it():
    """Over 200 noisy sweeps the 2-standard-error interval holds the planted exponent about 93 times in 100 (t, 6)."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        seeds = 0.5 * (np.array(SIZES[-3:]) / 2000) ** -0.2 * np.exp(0.05 * generator.standard_normal((3, 3)))
        curves = pd.DataFrame({"model": "m", "params": 1, "train_examples": SIZES[-3:], "value": seeds.mean(0),
                               "standard_error": seeds.std(0, ddof=1) / math.sqrt(3), "seeds": 3})  # fmt: skip
        trend = trends(curves).iloc[0]
        hits += abs(trend["exponent"] - 0.2) < 2 * trend["standard_error"]
    assert 0.86 <= hits / 200 <= 0.97


def test_a_flat_curve_has_flattened_and_a_noisy_one_is_unclear():
    flat = trends(learning_curves(power_rows({8: 1.0}, floor=0.5, noise=0.003))).iloc[0]
    assert flat["verdict"] == "flattened"
    assert "has flattened at 20,000 examples" in flat["sentence"]
    rising = trends(learning_curves(power_rows({8: -0.05}, scale=0.2))).iloc[0]
    assert rising["verdict"] == "unclear"
    assert re.search(r"is unclear at 20,000 examples \(error 0.283, above error 0\.\d+ at \d+\)", rising["sentence"])
    assert math.isnan(rising["fall"])
    noisy = trends(learning_curves(power_rows({8: 0.05}, noise=0.2))).iloc[0]
    assert noisy["verdict"] == "unclear"


def measured(values, *, sizes=(100, 1000, 10000), spread=0.0, seeds=3):
    """Curves of one model with these means and a relative spread of the seeds' means."""
    error = spread * np.array(values) if seeds > 1 else math.nan
    return pd.DataFrame({"model": "m", "params": 1, "train_examples": sizes, "value": values, "standard_error": error,
                         "seeds": seeds})  # fmt: skip


@pytest.mark.parametrize("values", [(0.5, 0.4, 0.4), (0.6, 0.4, 0.41), (0.9, 0.5, 0.5001)])
@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.005), (3, 0.02), (3, 0.05)])
@pytest.mark.parametrize("sizes", [(1000, 3000, 10000), (100, 1000, 10000)])
def test_an_end_that_did_not_fall_is_never_said_to_fall(values, seeds, spread, sizes):
    trend = trends(measured(values, seeds=seeds, spread=spread, sizes=sizes)).iloc[0]
    assert trend["verdict"] != "still falling"
    assert "still falls" not in trend["sentence"]


@pytest.mark.parametrize(("values", "rises"), [((0.83, 0.594, 0.818), True), ((0.83, 0.7, 0.72), False)])
def test_a_curve_that_rises_beyond_its_spread_is_never_said_to_have_flattened(values, rises):
    """Seen of a recurrent network whose training had not settled."""
    trend = trends(measured(values, spread=0.02)).iloc[0]
    assert ("a curve that rises shows no law" in trend["sentence"]) == rises
    assert (trend["verdict"] == "unclear") or not rises


def test_a_curve_whose_last_trials_saw_only_part_of_their_examples_gets_no_verdict():
    rows = power_rows({8: 0.01}, sizes=(200, 1000, 4000, 16000)).assign(batch_size=8, steps=60)
    curves = learning_curves(rows)
    assert curves["drawn"].tolist() == [480] * 4
    trend = trends(curves).iloc[0]
    assert trend["sentence"] == "mlp was not trained on all of its 16,000 examples (error 0.84): no verdict."
    assert trend["verdict"] == "unclear"
    assert np.isnan(trend[["fall", "fall_low", "fall_high"]].to_numpy(dtype=float)).all()
    told = "At 1,000, 4,000 and 16,000 examples a trial sees only 480 of them: raise steps, or use epochs."
    assert told in notes(curves)
    whole = [line for line in notes(curves.assign(fraction=1.0)) if "the whole pool" in line]
    assert ["200 examples, the whole pool" in line for line in whole] == [True]  # of more, each seed saw others
    # An algorithm without batches sees all its examples, and its curve is judged as before.
    older = rows.assign(family="ridge", batch_size=math.nan, steps=1, trial_id=rows["trial_id"] + "/ridge")
    both = learning_curves(pd.concat([rows, older]))
    assert told.replace("a trial sees", "a trial of mlp sees") in notes(both)
    assert [" has flattened at 16,000 " in sentence for sentence in trends(both)["sentence"]] == [False, True]


@pytest.mark.parametrize("without", [[], ["steps"], ["batch_size"]])
def test_one_pass_over_the_data_is_enough_and_a_table_that_does_not_say_is_not_suspected(without):
    rows = power_rows({8: 0.01}, sizes=(1000, 4000, 16000)).assign(batch_size=8, steps=2000).drop(columns=without)
    curves = learning_curves(rows)
    assert not any("sees only" in line for line in notes(curves))
    assert "has flattened at 16,000 examples" in trends(curves)["sentence"][0]


def test_a_forecast_knows_of_a_floor():
    sizes = np.array([100, 300, 1000, 3000, 10000])
    values = 0.05 + 0.3 * (sizes / 100) ** -0.5
    trend = trends(measured(values, sizes=sizes, spread=0.005)).iloc[0]
    truth = 1 - (0.05 + 0.3 * 1000**-0.5) / values[-1]  # 0.256; the last decade's fall was 0.45
    assert trend["fall"] == pytest.approx(truth, abs=0.05)
    low, fall, high = trend[["fall_low", "fall", "fall_high"]].astype(float).tolist()
    assert low < truth < high < 1 - values[-1] / values[2]
    assert f"{100 * fall:.0f} % (90 % interval {100 * low:.0f} to {100 * high:.0f} %)." in trend["sentence"]


def test_the_exponents_standard_error_grows_where_the_points_miss_the_line():
    sizes = (1000, 3000, 10000)
    straight, bent = (
        trends(measured(values, sizes=sizes, spread=0.001))["standard_error"].to_numpy()
        for values in ((0.4, 0.3, 0.2247), (0.4, 0.2, 0.2247))
    )
    assert bent.item() > 20 * straight.item()


def test_two_sizes_give_an_exponent_but_no_forecast():
    trend = trends(measured((0.4, 0.2), sizes=(100, 1000), spread=0.01)).iloc[0]
    assert trend["exponent"] == pytest.approx(math.log10(2))
    assert trend["verdict"] == "unclear"
    assert np.isnan(trend[["fall", "fall_low", "fall_high"]].to_numpy(dtype=float)).all()
    assert "two sizes show no bend, so nothing is forecast" in trend["sentence"]


@pytest.mark.parametrize(("exponent", "verdict"), [(0.005, "flattened"), (0.03, "unclear"), (0.2, "still falling")])
def test_one_seed_is_judged_by_the_misfit_of_its_points_and_says_so(exponent, verdict):
    trend = trends(learning_curves(power_rows({8: exponent}, seeds=1))).iloc[0]
    assert trend["verdict"] == verdict
    assert math.isnan(trend["standard_error"])
    assert "one seed, spread unknown" in trend["sentence"]


def test_one_size_zero_error_and_gaps_are_said_in_words():
    single = trends(learning_curves(power_rows({8: 0.3}, sizes=(20,)))).iloc[0]
    assert (single["verdict"], single["at"]) == ("unclear", 20)
    assert "one point shows no trend" in single["sentence"]
    rows = power_rows({8: 0.3})
    rows.loc[rows["train_examples"] == 20000, "test_error"] = 0.0
    assert "only a larger test set" in trends(learning_curves(rows))["sentence"][0]
    rows = power_rows({8: 0.3, 16: 0.3})
    rows.loc[(rows["train_examples"] == 20000) & (rows["width"] == 8), "status"] = "diverged"
    result = trends(learning_curves(rows))
    assert result["at"].tolist() == [6000, 20000]
    assert result["exponent"].to_numpy() == pytest.approx([0.3, 0.3])


def test_sizes_more_than_a_decade_apart_still_give_two_points():
    result = trends(learning_curves(power_rows({8: 0.3}, sizes=(20, 2000)))).iloc[0]
    assert result["points"] == 2
    assert result["exponent"] == pytest.approx(0.3)


def test_order_at_the_smallest_size():
    def at_smallest(*errors, seeds=3):
        return order_at_smallest(learning_curves(make_rows(
            {"width": 2.0**k, "params": k, "seed": seed, "test_error": error + 0.01 * seed}
            for k, error in enumerate(errors) for seed in range(seeds))))  # fmt: skip

    assert "the best is clear: mlp width 2 has the lowest error" in at_smallest(0.5, 0.2)
    assert "the two models cannot be told apart" in at_smallest(0.5, 0.51)
    partly = at_smallest(0.5, 0.51, 0.8)
    assert "partly clear" in partly
    assert "mlp width 2 cannot be told apart from it" in partly
    # Five comparisons ask for more than one does: the same gap is clear alone and not among six models.
    assert "is clear" in at_smallest(0.5, 0.53)
    assert "cannot be told" in at_smallest(0.5, 0.53, 0.53, 0.53, 0.53, 0.53)
    assert "single seed" in at_smallest(0.5, 0.2, seeds=1)
    assert "one model only" in at_smallest(0.5)


def test_table_and_summary():
    bad = {"width": 1.0, "params": 40, "learning_rate": 1e-2, "status": "diverged"}
    diverged = make_rows(bad | {"train_examples": n, "seed": seed} for n in SIZES for seed in range(3))
    rows = pd.concat([power_rows({width: 0.1 + 0.01 * width for width in range(1, 13)}), diverged])
    curves = learning_curves(rows)
    result = trends(curves)
    stream = io.StringIO()
    Console(file=stream, width=140).print(curve_table(curves, result))
    text = stream.getvalue()
    assert text.count("still falling") == 12
    assert text.count("0.900*") == 1
    assert text.count("0.900 ") == 11
    assert "* Best learning rate at an edge of its grid in 7 points" in text
    assert "21 trials (diverged, failed or not run)" in text
    lines = summary_lines(curves, result)
    assert len(lines) == 13
    assert lines[0].startswith("At 20 examples the 12 models cannot be told apart")


def test_a_table_of_many_sizes_shows_seven():
    curves = learning_curves(power_rows({8: 0.3}, sizes=tuple(range(10, 30))))
    table = curve_table(curves, trends(curves))
    assert [column.header for column in table.columns][1:-1] == ["10", "13", "16", "20", "23", "26", "29"]
    assert "7 of 20 sizes shown" in str(table.caption)
