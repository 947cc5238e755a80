"""Halving that changes between two runs in one directory ends as in a fresh one; what is done stays done."""

from dataclasses import dataclass, replace

import pytest
from engine_helpers import planned
from hypothesis import example, given, settings
from hypothesis import strategies as st

import scalejax as sx
from scalejax.execute.slot import Evaluation, Finished, Paused, Slot, Waiting
from scalejax.execute.successive_halving import History, SuccessiveHalving
from scalejax.status import FINAL, Status

pytestmark = pytest.mark.usefixtures("compile_quickly")
RATES, SEEDS, STEPS, EVERY = (1e-4, 1e-3, 1e-2, 1e-1), (0, 1), 40, 5
TRIALS = [planned(learning_rate=rate, seed=seed, steps=STEPS, evaluate_every=EVERY) for rate in RATES for seed in SEEDS]
IDS = [each.trial_id for each in TRIALS]


@dataclass(frozen=True)
class Rules:
    """A halving; without rungs there is none."""

    rungs: tuple[int, ...]
    reduction: int = 2


@dataclass(frozen=True)
class World:
    """What each trial would measure at each evaluation, and the step at which it ends."""

    losses: dict[str, list[float]]
    ends: dict[str, tuple[int, Status]]

    def slot(self, trial, step):
        seen = [
            Evaluation(at, 0, 0.0, loss, 0.0)
            for at, loss in zip(range(EVERY, step + 1, EVERY), self.losses[trial.trial_id], strict=False)
        ]
        return Slot(trial, step, evaluations=seen)


@dataclass
class Directory:
    """What a run leaves: how trials have ended, and how far others have come."""

    ended: dict[str, tuple[Status, int]]
    begun: dict[str, int]


def carry_out(rules, world, before=None, *, calls=10**6, order=(0,), lanes=3):
    """Do what a run does, one evaluation at a time, without training; return what it leaves after so many calls."""
    trials = [replace(each, rungs=rules.rungs) for each in TRIALS]
    by_id = {each.trial_id: each for each in trials}
    before = before or Directory({}, {})
    kept = FINAL if not rules.rungs else (*FINAL, Status.STOPPED)
    ended = {name: end for name, end in before.ended.items() if end[0] in kept}
    histories = {
        name: History({each.step: each.validation_loss for each in world.slot(by_id[name], step).evaluations}, status)
        for name, (status, step) in ended.items()
    }
    for name, step in before.begun.items():
        seen = world.slot(by_id[name], step).evaluations
        histories[name] = History({each.step: each.validation_loss for each in seen})
    halving = SuccessiveHalving(trials, reduction=rules.reduction, histories=histories) if rules.rungs else None
    queue: list[Waiting] = [each for each in trials if each.trial_id not in ended and each.trial_id not in before.begun]

    def do(decision):
        queue[:0] = decision.proceed
        for paused, _ in decision.stop:
            ended[paused.trial.trial_id] = (Status.STOPPED, paused.slot.step)

    if halving:
        do(halving.opening)
    for name, step in before.begun.items():
        paused = Paused(world.slot(by_id[name], step), None)  # type: ignore[arg-type]
        if halving:
            do(halving.arrive(paused))
        else:
            queue.insert(0, paused)
    running: dict[str, int] = {}
    for call in range(calls):
        while queue and len(running) < lanes:
            each = queue.pop(0)
            fresh = not isinstance(each, Paused)
            running[each.trial_id if fresh else each.trial.trial_id] = 0 if fresh else each.slot.step
        if not running:
            break
        name = sorted(running)[order[call % len(order)] % len(running)]
        running[name] += EVERY
        slot = world.slot(by_id[name], running[name])
        if slot.step == world.ends[name][0]:
            ended[name] = (world.ends[name][1], running.pop(name))
            if halving:
                found = tuple(slot.evaluations)
                end = Finished(by_id[name], ended[name][0], "", found, None, None, None, 0.0, "vmap")
                do(halving.leave(end))
        elif halving and slot.step in rules.rungs:
            del running[name]
            do(halving.arrive(Paused(slot, None)))  # type: ignore[arg-type]
    waiting = [each for each in queue if isinstance(each, Paused)] + (halving.waiting if halving else [])
    begun = running | {each.trial.trial_id: each.slot.step for each in waiting}
    assert not (begun.keys() & {name for name, end in ended.items() if end[0] != Status.STOPPED})
    return Directory({name: end for name, end in ended.items() if name not in begun}, begun)


RULES = st.builds(
    Rules,
    st.lists(st.sampled_from(range(EVERY, STEPS, EVERY)), max_size=3, unique=True).map(
        lambda each: tuple(sorted(each))
    ),
    st.integers(2, 4),
)


@st.composite
def worlds(draw):
    losses = {name: draw(st.lists(st.integers(1, 9).map(float), min_size=8, max_size=8)) for name in IDS}
    early = st.tuples(st.sampled_from(range(EVERY, STEPS, EVERY)), st.sampled_from(FINAL))
    return World(losses, {name: draw(st.just((STEPS, Status.DONE)) | early) for name in IDS})


ORDERS = st.lists(st.integers(0, 7), min_size=1, max_size=12)
FALLING = World(
    {name: [9.0 - IDS.index(name) // 2 - step / 100 for step in range(8)] for name in IDS},
    dict.fromkeys(IDS, (STEPS, Status.DONE)),
)


@settings(max_examples=80, deadline=None)
@given(
    worlds(),
    st.lists(st.tuples(RULES, st.integers(0, 70) | st.just(10**6)), min_size=1, max_size=3),
    RULES,
    ORDERS,
    st.integers(1, 8),
)
@example(FALLING, [(Rules((10, 20), 4), 10**6)], Rules((20,), 2), [0], 3)
def test_after_any_changes_and_interruptions_halving_ends_as_in_a_fresh_directory(world, earlier, last, order, lanes):
    fresh = carry_out(last, world)
    left = None
    for rules, calls in earlier:
        left = carry_out(rules, world, left, calls=calls, order=order, lanes=lanes)
    kept = {name: end for name, end in (left.ended.items() if left else ()) if end[0] in FINAL}
    again = carry_out(last, world, left, order=order, lanes=lanes)
    assert fresh.ended.keys() == again.ended.keys() == set(IDS)
    assert not again.begun
    for name, (status, step) in again.ended.items():
        if name in kept:
            assert (status, step) == kept[name]
        else:
            assert status == fresh.ended[name][0]
            assert step >= fresh.ended[name][1]  # of what is stopped more may be known
            assert status == Status.STOPPED or step == fresh.ended[name][1]


SWEEP = sx.Sweep(
    name="changed",
    seeds=(0, 1),
    data=sx.DataSpec("mnist1d", train_examples=(100,), examples=200, validation_examples=60, test_examples=60),
    models=(sx.ModelGrid("logistic"),),
    train=sx.TrainSpec(learning_rate=RATES, batch_size=(16,), steps=40, evaluate_every=5),
)


def halved(rungs, reduction):
    halving = sx.HalvingSpec(rungs, reduction) if rungs else None
    return replace(SWEEP, train=replace(SWEEP.train, halving=halving))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """The table of a milder halving in a directory of its own."""
    run = sx.run_sweep(halved((0.5,), 2), tmp_path_factory.mktemp("fresh"), progress=False)
    assert run.counts() | {"done": 4, "stopped": 4} == run.counts()
    return run


@pytest.mark.slow
def test_a_milder_halving_in_a_finished_directory_trains_what_it_lets_go_on(tmp_path, fresh):
    run = sx.run_sweep(halved((0.25, 0.5), 4), tmp_path, progress=False)
    assert run.counts() | {"done": 2, "stopped": 6} == run.counts()
    run = sx.run_sweep(halved((0.5,), 2), tmp_path, progress=False)
    assert run.results().drop(columns="seconds").equals(fresh.results().drop(columns="seconds"))
    assert run.measurements().equals(fresh.measurements())


def test_a_harsher_halving_keeps_what_is_done_and_a_run_that_trains_nothing_says_nothing(tmp_path, fresh, capsys):
    run = sx.run_sweep(halved((0.5,), 2), tmp_path, progress=False)
    capsys.readouterr()
    again = sx.run_sweep(halved((0.25, 0.5), 4), tmp_path)
    assert capsys.readouterr().err == ""
    assert again.results().equals(run.results())
    assert run.results().drop(columns="seconds").equals(fresh.results().drop(columns="seconds"))
