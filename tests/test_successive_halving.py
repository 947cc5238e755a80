"""Halving stops the same trials whatever ran beside them, and those that go on are as if it did not exist."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import numbers, planned, program, slow
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec, run_sweep
from scalejax.execute.checkpoint import Checkpoints
from scalejax.execute.pack import Pack
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.execute.slot import Evaluation, Finished, Paused, Slot
from scalejax.execute.successive_halving import History, SuccessiveHalving
from scalejax.planning.halving import survivors, verdict
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted

pytestmark = pytest.mark.usefixtures("compile_quickly")
RATES, SEEDS, RUNGS = (1e-4, 1e-3, 1e-2, 1e-1), (0, 1), (10, 20)
REDUCTION = 2


def competitors(widths=(4,), rates=RATES, **changes):
    return [
        replace(
            planned(
                knobs={"width": width, "depth": 1},
                learning_rate=rate,
                seed=seed,
                steps=40,
                train_examples=60,
                **changes,
            ),
            rungs=RUNGS,
        )
        for width in widths
        for rate in rates
        for seed in SEEDS
    ]


def train(trials, data, *, lanes=3, histories=None, devices=1, halved=True):
    """Return the ends by id, and how many steps each trial took."""
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    histories = histories or {}
    ends, steps = {}, {}

    def finished(end: Finished):
        assert end.trial.trial_id not in ends
        ends[end.trial.trial_id] = end

    def progressed(progress):
        for name, count in progress.steps.items():
            steps[name] = steps.get(name, 0) + count

    Scheduler(
        [Bucket(program(largest), tuple(map(Counted, trials)), lanes=lanes, seconds=1.0, makespan=1, call_steps=50)],
        {each.trial_id for each in trials} - histories.keys(),
        data=data,
        observer=Observer(lambda _: None, finished, progressed),
        halving=SuccessiveHalving(trials, reduction=REDUCTION, histories=histories) if halved else None,
    ).run(jax.local_devices()[:devices])
    return ends, steps


def expected_stops(trials, full):
    """Return the rung at which each trial must stop, None if it goes on, from the ends of trials never stopped."""
    stops = dict.fromkeys((each.trial_id for each in trials), None)
    for width in {each.knobs for each in trials}:
        cell = [each for each in trials if each.knobs == width]
        left = {each.settings.learning_rate for each in cell}
        for rung in RUNGS:
            losses = {}
            for each in cell:
                if each.settings.learning_rate in left:
                    score = score_at(full[each.trial_id], rung)
                    losses.setdefault(each.settings.learning_rate, []).append(score)
            best = set(verdict(losses, REDUCTION))
            for each in cell:
                if each.settings.learning_rate in left - best and full[each.trial_id].status == "done":
                    stops[each.trial_id] = rung
            left = best
    return stops


def score_at(end, rung):
    if end.status != "done":
        return float("inf")
    return min(each.validation_loss for each in end.evaluations if each.step <= rung)


@pytest.fixture(scope="module")
def full(data):
    """The ends of all competitors of two sizes without halving, in the program that the others use."""
    return train([replace(each, rungs=()) for each in competitors((3, 4))], data, halved=False)[0]


def test_the_stopped_are_those_with_the_worst_losses_and_the_others_do_not_notice(data, full):
    trials = competitors((3, 4))
    ends, steps = train(trials, data)
    stops = expected_stops(trials, full)
    assert len(ends) == len(trials) == 16
    assert sum(stop == 10 for stop in stops.values()) == 8
    assert sum(stop == 20 for stop in stops.values()) == 4
    for each in trials:
        end, whole, stop = ends[each.trial_id], full[each.trial_id], stops[each.trial_id]
        if stop is None:
            assert numbers(end) == numbers(whole)
            assert steps[each.trial_id] == 40
        else:
            assert end.status == "stopped"
            assert f"at step {stop} " in end.reason
            assert end.evaluations == tuple(one for one in whole.evaluations if one.step <= stop)
            assert end.test_metric is None
            assert steps[each.trial_id] == stop


@pytest.mark.parametrize(("lanes", "devices"), [(5, 2), *slow((1, 1), (20, 1))])
def test_neither_lanes_nor_devices_decide_who_stops(data, full, lanes, devices):
    trials = competitors((3, 4))
    ends, _ = train(trials, data, lanes=lanes, devices=devices)
    stopped = {name for name, end in ends.items() if end.status == "stopped"}
    assert stopped == {name for name, stop in expected_stops(trials, full).items() if stop}


@pytest.mark.slow
def test_a_diverging_rate_is_stopped_first_and_keeps_nobody_waiting(data):
    trials = competitors(rates=(1e-3, 1e-2, 1e30), optimizer="sgd")
    ends, _ = train(trials, data)
    assert {end.status for end in ends.values() if end.trial.settings.learning_rate == 1e30} == {"diverged"}
    assert {end.status for end in ends.values() if end.trial.settings.learning_rate < 1} == {"stopped", "done"}
    assert sum(end.status == "done" for end in ends.values()) == len(SEEDS)


@pytest.mark.slow
def test_out_of_memory_in_the_middle_loses_no_trial(data, monkeypatch, full):
    launch, calls = Pack.launch, []

    def refuse_sometimes(pack, **named):
        calls.append(pack.bucket.lanes)
        if pack.bucket.lanes > 1 and len(calls) in (2, 9):
            raise MemoryError
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", refuse_sometimes)
    trials = competitors((3, 4))
    ends, _ = train(trials, data, lanes=6)
    assert {name for name, end in ends.items() if end.status == "stopped"} == {
        name for name, stop in expected_stops(trials, full).items() if stop
    }
    assert {end.status for end in ends.values()} == {"stopped", "done"}


def history(end):
    return History({each.step: each.validation_loss for each in end.evaluations}, end.status)


@pytest.mark.parametrize("count", [1, 11])
def test_a_run_that_was_cut_short_goes_on_to_the_same_ends(data, count):
    trials = competitors((3, 4))
    whole, _ = train(trials, data)
    kept = dict(list(whole.items())[:count])
    rest, _ = train(trials, data, histories={name: history(end) for name, end in kept.items()})
    assert {name: numbers(end) for name, end in (kept | rest).items()} == {
        name: numbers(end) for name, end in whole.items()
    }


def test_the_stopped_come_back_when_the_sweep_lets_more_rates_through(data):
    few, _ = train(competitors(rates=(1e-3, 1e-2)), data)
    worse = {name: history(end) for name, end in few.items()}
    trials = competitors(rates=(1e-3, 1e-2, 1e-9, 1e-10))
    assert {each.status for each in worse.values()} == {"stopped", "done"}
    ends, _ = train(trials, data, histories=worse)
    back = [name for name, each in worse.items() if each.status == "stopped" and name in ends]
    assert len(back) == len(SEEDS)  # past the first rung the second best goes on as well ...
    assert {ends[name].reason.split()[2] for name in back} == {"20"}  # ... and is stopped at the second


def arrivals(trials, losses, order):
    """Let trials arrive at their rungs in an order; return at which rung each stops."""
    halving = SuccessiveHalving(trials, reduction=REDUCTION, histories={})
    running = {each.trial_id: Slot(each) for each in trials}
    stops, finished = {}, []
    queue = [each.trial_id for each in trials]
    for pick in order:
        if not queue:
            break
        name = queue.pop(pick % len(queue))
        slot = running[name]
        if slot.step == RUNGS[-1]:
            finished.append(name)
            continue
        step = RUNGS[0] if slot.step == 0 else RUNGS[1]
        loss = losses[slot.trial.settings.learning_rate, slot.trial.seed]
        seen = [*slot.evaluations, Evaluation(step, 0, 0.0, loss, 0.0)]
        running[name] = Slot(slot.trial, step, evaluations=seen)
        decision = halving.arrive(Paused(running[name], None))  # type: ignore[arg-type]
        queue.extend(each.trial.trial_id for each in decision.proceed if isinstance(each, Paused))
        stops.update({each.trial.trial_id: each.slot.step for each, _ in decision.stop})
    return stops, finished, queue


@settings(max_examples=60, deadline=None)
@given(
    drawn=st.lists(st.sampled_from([0.1, 0.2, 0.3, float("inf")]), min_size=8, max_size=8),
    order=st.lists(st.integers(0, 100), min_size=40, max_size=40),
)
def test_the_order_of_arrival_decides_nothing(drawn, order):
    trials = competitors()
    losses = {(each.settings.learning_rate, each.seed): loss for each, loss in zip(trials, drawn, strict=True)}
    stops, finished, left = arrivals(trials, losses, order)
    usual_stops, usual_finished, _ = arrivals(trials, losses, [0] * 40)
    assert (stops, sorted(finished)) == (usual_stops, sorted(usual_finished))
    assert not left
    assert len(finished) == len(SEEDS) * survivors(survivors(len(RATES), REDUCTION), REDUCTION)
    assert len(stops) + len(finished) == len(trials)


@pytest.mark.parametrize("lanes", [3, *slow(2)])
def test_every_checkpoint_holds_all_trials_that_have_been_at_a_rung(data, tmp_path, monkeypatch, lanes):
    """A trial that goes on from a rung is in a checkpoint even before the first call in its new lane has landed."""
    arrived, ended, saved = set(), set(), []
    arrive, save = SuccessiveHalving.arrive, Checkpoints.save

    def arriving(halving, paused):
        arrived.add(paused.trial.trial_id)
        return arrive(halving, paused)

    def saving(checkpoints, pack, snapshot):
        saved.append(arrived - ended - snapshot.steps.keys())
        assert len([*snapshot.slots, *snapshot.paused]) == len(snapshot.steps), "a trial is in it twice"
        save(checkpoints, pack, snapshot)

    monkeypatch.setattr(SuccessiveHalving, "arrive", arriving)
    monkeypatch.setattr(Checkpoints, "save", saving)
    monkeypatch.setattr(Checkpoints, "due", lambda *_: True)
    trials = competitors((3, 4))
    Scheduler(
        [Bucket(program(trials[-1]), tuple(map(Counted, trials)), lanes=lanes, seconds=1.0, makespan=1, call_steps=5)],
        {each.trial_id for each in trials},
        data=data,
        observer=Observer(lambda _: None, lambda end: ended.add(end.trial.trial_id), lambda _: None),
        halving=SuccessiveHalving(trials, reduction=REDUCTION, histories={}),
        checkpoints=Checkpoints(tmp_path / "checkpoints"),
    ).run(jax.local_devices()[:1])
    assert len(ended) == len(trials)
    assert len(saved) > 10
    assert not set().union(*saved)


SWEEP = Sweep(
    name="halved",
    seeds=(0, 1),
    data=DataSpec("mnist1d", train_examples=(40, 400), examples=500, validation_examples=60, test_examples=60),
    models=(ModelGrid("mlp", width=[4, 8], depth=1),),
    train=TrainSpec(
        learning_rate=(1e-4, 1e-3, 1e-2, 1e-1),
        batch_size=(16,),
        steps=60,
        evaluate_every=10,
        halving=HalvingSpec(rungs=(0.3, 0.6)),
    ),
)


@pytest.mark.slow
def test_a_run_with_halving_resumes_and_without_it_trains_the_stopped_to_their_end(tmp_path):
    run = run_sweep(SWEEP, tmp_path, progress=False)
    table = run.results()
    assert run.counts() | {"done": 8, "stopped": 24} == run.counts()
    assert set(table.loc[table["status"] == "stopped", "steps_taken"]) == {20, 40}
    assert table.loc[table["status"] == "stopped", "test_error"].isna().all()
    curves = run.curves()
    assert np.isfinite(curves["value"]).all()
    again = run_sweep(SWEEP, tmp_path, progress=False).results()
    assert again.equals(table)
    whole = run_sweep(replace(SWEEP, train=replace(SWEEP.train, halving=None)), tmp_path, progress=False).results()
    assert set(whole["status"]) == {"done"}
    kept = table["status"] == "done"
    assert whole.loc[kept, "seconds"].equals(table.loc[kept, "seconds"])  # not trained again
