"""Successive halving: who goes on beyond a rung, what a plan counts with, and what a summary says of it."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from engine_helpers import changed
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax import DataSpec, HalvingSpec, ModelGrid, Sweep, SweepError, TrainSpec
from scalejax.cli import main
from scalejax.data import describe
from scalejax.planning.device_specs import device_spec_named
from scalejax.planning.halving import expected_stops, rung_steps, survivors, verdict
from scalejax.planning.outline import outline
from scalejax.planning.plan import make_plan
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import expand, expand_counted
from scalejax.report.plan import plan_lines
from scalejax.report.table import halving_lines

pytestmark = pytest.mark.usefixtures("compile_quickly")
ROOT = Path(__file__).parents[1]
DATA = DataSpec("mnist1d", train_examples=(20, 200, 2000), examples=5000, validation_examples=50, test_examples=60)
TRAIN = TrainSpec(learning_rate=(1e-3, 1e-2, 3e-3, 3e-2), batch_size=(16,), epochs=4, min_steps=40)
SWEEP = Sweep(
    name="halved",
    data=DATA,
    models=(ModelGrid("logistic"), ModelGrid("mlp", width=[4, 8], depth=1)),
    train=replace(TRAIN, halving=HalvingSpec((0.1, 0.5))),
    seeds=(0, 1, 2),
)

FLOATS = st.floats(width=32)  # infinite and NaN included: losses are float32 on the devices
RATES = st.floats(1e-6, 10)
REDUCTIONS = st.integers(2, 5)


@st.composite
def contests(draw: st.DrawFn, losses: st.SearchStrategy[float] = FLOATS) -> dict[float, list[float]]:
    seeds = draw(st.integers(1, 4))
    rates = draw(st.lists(RATES, min_size=1, max_size=8, unique=True))
    return {rate: draw(st.lists(losses, min_size=seeds, max_size=seeds)) for rate in rates}


# --- pure functions


@pytest.mark.parametrize(("count", "reduction", "left"), [(1, 2, 1), (2, 2, 1), (3, 2, 2), (12, 3, 4), (4, 9, 1)])
def test_one_in_so_many_goes_on_rounded_up(count, reduction, left):
    assert survivors(count, reduction) == left


def test_the_lowest_mean_over_seeds_wins_not_the_lowest_single_loss():
    losses = {0.1: [0.0, 1.0], 0.01: [0.4, 0.4], 0.001: [0.7, 0.7], 1.0: [0.9, 0.2]}
    assert verdict(losses, 2) == (0.01, 0.1)
    assert verdict(losses, 4) == (0.01,)


def test_equal_rates_are_decided_for_the_smaller():
    assert verdict({0.1: [0.5], 0.001: [0.5], 0.01: [0.5]}, 2) == (0.001, 0.01)


@pytest.mark.parametrize("lost", [math.nan, math.inf, -math.inf])
def test_a_rate_that_has_lost_a_seed_comes_after_all_that_have_not(lost):
    losses = {1e-1: [0.0, lost], 1e-2: [9.0, 9.0], 1e-3: [8.0, 9.0], 1.0: [lost, lost]}
    assert verdict(losses, 2) == (1e-3, 1e-2)
    assert verdict({1.0: [lost, lost], 1e-1: [5.0, lost], 10.0: [lost, 1.0]}, 2) == (10.0, 1e-1)
    assert verdict({1.0: [lost], 0.1: [lost]}, 2) == (0.1,)  # somebody always goes on


@given(contests(), REDUCTIONS, st.randoms())
def test_a_verdict_does_not_hang_on_the_order_in_which_trials_arrive(losses, reduction, random):
    shuffled = {}
    for rate in random.sample(list(losses), len(losses)):
        shuffled[rate] = random.sample(losses[rate], len(losses[rate]))
    assert verdict(shuffled, reduction) == verdict(losses, reduction)


@given(contests(), REDUCTIONS)
def test_a_verdict_names_as_many_rates_as_go_on_and_a_stricter_one_the_best_of_them(losses, reduction):
    best = verdict(losses, reduction)
    assert set(best) <= losses.keys()
    assert len(best) == len(set(best)) == survivors(len(losses), reduction)
    stricter = verdict(losses, reduction + 1)
    assert stricter == best[: len(stricter)]


@given(contests(st.floats(0, 100, width=32)), REDUCTIONS)
def test_no_rate_that_is_stopped_has_a_lower_mean_than_one_that_goes_on(losses, reduction):
    means = {rate: math.fsum(each) / len(each) for rate, each in losses.items()}
    best = verdict(losses, reduction)
    assert [means[rate] for rate in best] == sorted(means[rate] for rate in best)
    assert all(means[rate] >= means[best[-1]] for rate in losses if rate not in best)


@pytest.mark.parametrize(
    ("shares", "steps", "every", "rungs"),
    [
        ((0.1, 0.3), 3000, 150, (300, 900)),
        ((0.1, 0.3), 1024, 64, (128, 320)),  # rounded up to an evaluation
        ((0.07,), 100, 1, (7,)),  # 0.07 * 100 is 7.000000000000001
        ((0.29,), 100, 29, (29,)),  # 0.29 * 100 is 28.999999999999996
        ((0.1, 0.15, 0.6), 100, 50, (50,)),  # the first two fall together, the last one on the horizon
        ((0.5,), 7, 7, ()),
        ((0.5,), 10, 3, (6,)),
        ((1e-9,), 100, 5, (5,)),
    ],
)
def test_rungs_lie_at_evaluations(shares, steps, every, rungs):
    assert rung_steps(shares, steps, evaluate_every=every) == rungs


SHARES = st.lists(st.floats(1e-3, 0.999), min_size=1, max_size=5, unique=True).map(sorted)


@given(SHARES, st.integers(1, 10**6), st.integers(1, 10**4))
def test_rungs_ascend_below_the_horizon_and_none_comes_too_early(shares, steps, every):
    rungs = rung_steps(shares, steps, evaluate_every=every)
    assert list(rungs) == sorted(set(rungs))
    assert all(0 < rung < steps and rung % every == 0 for rung in rungs)
    for rung in rungs:
        assert any(
            rung - every < share * steps * (1 + 1e-12) and share * steps * (1 - 1e-12) <= rung for share in shares
        )


@given(st.integers(1, 50), st.lists(st.integers(1, 99), max_size=4, unique=True).map(sorted), REDUCTIONS)
def test_as_many_are_expected_to_stop_at_a_rung_as_will(count, rungs, reduction):
    stops = expected_stops(count, rungs, reduction=reduction)
    assert len(stops) == count
    left = count
    for rung in rungs:
        best = survivors(left, reduction)
        assert stops.count(rung) == left - best
        left = best
    assert stops[:left] == [None] * left  # the first of the file stand for the best
    stopped = [stop for stop in stops if stop is not None]
    assert stopped == sorted(stopped, reverse=True)


# --- trials and plans


def test_competitors_differ_in_learning_rate_and_seed_alone():
    competitions = Counter(counted.trial.competition for counted in expand(SWEEP, describe(DATA)))
    assert set(competitions.values()) == {4 * 3}
    assert len(competitions) == 3 * 3
    decayed = replace(SWEEP, train=replace(SWEEP.train, weight_decay=(0.0, 0.1), batch_size=(16, 32)))
    assert len({counted.trial.competition for counted in expand(decayed, describe(DATA))}) == 3 * 3 * 4


def test_a_trial_is_the_same_trial_with_and_without_halving():
    without = replace(SWEEP, train=replace(SWEEP.train, halving=None))
    halved, whole = (expand(sweep, describe(DATA)) for sweep in (SWEEP, without))
    assert [replace(each.trial, rungs=()) for each in halved] == [each.trial for each in whole]
    assert [each.trial.trial_id for each in halved] == [each.trial.trial_id for each in whole]
    assert all(each.trial.rungs == () and each.steps == each.trial.settings.steps for each in whole)


def test_every_trial_of_a_cell_has_the_rungs_and_the_first_rates_of_the_file_are_counted_as_the_best():
    steps = replace(SWEEP, train=replace(SWEEP.train, epochs=None, min_steps=None, steps=100, evaluate_every=4))
    trials = expand(steps, describe(DATA))
    assert {each.trial.rungs for each in trials} == {(12, 52)}  # 10 and 50 steps, rounded up to evaluations
    assert {(each.trial.settings.learning_rate, each.steps) for each in trials} == {
        (1e-3, 100), (1e-2, 52), (3e-3, 12), (3e-2, 12)
    }  # fmt: skip


@st.composite
def sweeps(draw: st.DrawFn) -> Sweep:
    rates = draw(st.lists(RATES, min_size=2, max_size=9, unique=True))
    budgets = [
        {"steps": draw(st.integers(1, 3000))},
        {"epochs": draw(st.floats(0.1, 50)), "min_steps": draw(st.integers(1, 100)), "max_steps": 2000},
    ]
    train = TrainSpec(
        learning_rate=tuple(rates),
        batch_size=(16, 64)[: draw(st.integers(1, 2))],
        weight_decay=(0.0, 0.1)[: draw(st.integers(1, 2))],
        evaluate_every=draw(st.none() | st.integers(1, 300)),
        halving=draw(st.none() | st.builds(HalvingSpec, SHARES.map(tuple), REDUCTIONS)),
        **draw(st.sampled_from(budgets)),
    )
    return replace(SWEEP, models=SWEEP.models[:1], train=train, seeds=tuple(range(draw(st.integers(1, 3)))))


@settings(max_examples=40, deadline=None)
@given(sweeps())
def test_counted_trials_have_the_totals_of_those_spelled_out(sweep):
    card = describe(DATA)
    counted, spelled = expand_counted(sweep, card), expand(sweep, card)

    def totals(trials):
        found: Counter[tuple] = Counter()
        for each in trials:
            kind = changed(each.trial.competition, weight_decay=0.0)
            found[kind, each.steps] += each.copies
        return found

    assert sum(each.copies * each.steps for each in counted) == sum(each.steps for each in spelled)
    assert totals(counted) == totals(spelled)
    assert len(totals(counted)) == len(counted)  # one entry for each number of steps
    by_id = {each.trial.trial_id: each for each in spelled}
    assert len({each.trial.trial_id for each in counted}) == len(counted)
    assert all(replace(by_id[each.trial.trial_id], copies=each.copies) == each for each in counted)


def test_counted_trials_are_packed_and_simulated_like_those_spelled_out():
    spec = device_spec_named("local")
    counted, spelled = make_plan(SWEEP, devices=3, spec=spec), make_plan(SWEEP, devices=3)
    assert (counted.count, counted.useful_flops, counted.waste) == (spelled.count, spelled.useful_flops, spelled.waste)
    for one, other in zip(counted.packing.buckets, spelled.packing.buckets, strict=True):
        assert replace(one, counted=()) == replace(other, counted=())
        assert one.horizons == other.horizons
        assert list(one.horizons) == sorted(one.horizons, reverse=True)
    assert simulate(counted, spec) == simulate(spelled, spec)


def test_halving_is_planned_with_the_work_that_is_left():
    spec = device_spec_named("h200")
    whole = replace(SWEEP, train=replace(SWEEP.train, halving=None, epochs=None, min_steps=None, steps=100_000))
    halved = replace(whole, train=replace(whole.train, halving=HalvingSpec((0.1, 0.5))))
    before, after = (make_plan(sweep, devices=2, spec=spec) for sweep in (whole, halved))
    # Of four rates two take a tenth of the steps, one half of them, one all.
    assert after.useful_flops == pytest.approx((0.1 + 0.1 + 0.5 + 1) / 4 * before.useful_flops)
    assert simulate(after, spec).total < simulate(before, spec).total
    facts = json.loads(json.dumps(outline(after, simulate(after, spec), device="cpu")))
    assert (facts["trials"], facts["stopped_early"]) == (108, 81)
    assert "if every trial takes all its steps, except the 81 that halving is expected to stop early" in "\n".join(
        plan_lines(facts)
    )
    unhalved = outline(before, simulate(before, spec), device="cpu")
    assert unhalved["stopped_early"] == 0
    assert "halving" not in "\n".join(plan_lines(unhalved))


def test_what_is_stopped_is_not_tested():
    spec = device_spec_named("local")
    one = replace(SWEEP, models=SWEEP.models[:1], data=replace(DATA, train_examples=(20,)), seeds=(0,))
    one = replace(one, train=replace(one.train, epochs=None, min_steps=None, steps=40, evaluate_every=20))
    halved = simulate(make_plan(one, devices=1, spec=spec), spec)
    larger = replace(one, data=replace(one.data, test_examples=60_000))
    whole = replace(larger, train=replace(larger.train, halving=None))
    tested = simulate(make_plan(larger, devices=1, spec=spec), spec).total - halved.total
    all_tested = simulate(make_plan(whole, devices=1, spec=spec), spec).total
    all_tested -= simulate(make_plan(replace(whole, data=one.data), devices=1, spec=spec), spec).total
    # At step 20 two of four rates stop, and no rung comes after it.
    assert tested == pytest.approx(all_tested * 2 / 4)


def test_halving_that_halves_nothing_is_refused():
    late = replace(SWEEP, train=replace(SWEEP.train, evaluate_every=10_000))
    with pytest.raises(SweepError, match=r"^\[train.halving\]: no rung comes before the end of any trial; expected"):
        make_plan(late, devices=1)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_one_learning_rate_is_bad_input(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "sweep.toml").write_text(
        'name = "one"\n[data]\nsource = "mnist1d"\nexamples = 200\ntrain_examples = [20]\n[[models]]\n'
        'family = "logistic"\n[train]\nlearning_rate = 1e-2\nbatch_size = 16\nsteps = 20\n'
        "[train.halving]\nrungs = 0.5\n"
    )
    assert main([command, str(tmp_path / "sweep.toml")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"scalejax {command}: {tmp_path / 'sweep.toml'}, line 12, [train.halving]: expected several learning rates to "
        "choose from, found one; give more of them, or no halving\n"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["sweep.toml"]


def test_the_example_of_the_documentation_saves_what_it_says():
    """Two rungs, of which each keeps the better half of eight rates; test_documents.py reads the page itself."""
    stops = expected_stops(8, (10, 30), reduction=2)
    assert (stops.count(10), stops.count(30)) == (4, 2)
    assert sum(100 if stop is None else stop for stop in stops) == 8 * 100 * 3 / 8


# --- the summary


def rows(cells) -> pd.DataFrame:
    """Return a trial table: for each cell (width, steps) the status of each learning rate, with the steps taken."""
    table = []
    for (width, steps), rates in cells.items():
        for rate, (status, taken) in rates.items():
            for seed in range(2):
                row = {"trial_id": f"{len(table)}", "family": "mlp", "width": width, "params": 10, "seed": seed}
                row |= {"train_examples": 20, "weight_decay": 0.0, "batch_size": 16, "learning_rate": rate}
                table.append(row | {"steps": steps, "status": status, "steps_taken": taken})
    return pd.DataFrame(table)


def test_the_summary_says_what_was_stopped_when_and_which_rates_ran_to_the_end():
    one = {1e-3: ("stopped", 300), 1e-2: ("done", 1000), 3e-3: ("stopped", 100), 3e-2: ("stopped", 100)}
    assert halving_lines(rows({(4, 1000): one})) == [
        "Halving stopped 6 of 8 trials early, 4 after 10 % and 2 after 30 % of the planned steps; "
        "stopped trials enter no curve.",
        "Learning rate 0.01 ran to the end.",
    ]
    other = {1e-3: ("done", 1024), 1e-2: ("stopped", 128), 3e-3: ("done", 1024), 3e-2: ("diverged", 7)}
    assert halving_lines(rows({(4, 1000): one, (8, 1024): other})) == [
        "Halving stopped 8 of 16 trials early, 6 after 10 to 12 % and 2 after 30 % of the planned steps; "
        "stopped trials enter no curve.",
        "Learning rate 0.001 ran to the end in 1 of 2 competitions, 0.003 in 1 and 0.01 in 1.",
    ]
    assert halving_lines(rows({(8, 1024): other}))[1] == "Learning rates 0.001 and 0.003 ran to the end."


def test_a_summary_without_halving_says_nothing_and_one_before_the_end_only_what_is_known():
    assert halving_lines(rows({(4, 100): {1e-3: ("done", 100), 1e-2: ("diverged", 3)}})) == []
    half_way = halving_lines(rows({(4, 100): {1e-3: ("pending", pd.NA), 1e-2: ("stopped", 50)}}))
    words = "Halving stopped 2 of 4 trials early, after 50 % of the planned steps; stopped trials enter no curve."
    assert half_way == [words]
