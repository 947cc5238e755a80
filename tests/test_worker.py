"""What a scheduler and a worker exchange: a worker that trains without JAX is driven as the real one is."""

import threading
from collections import Counter
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import numbers, planned

from scalejax.errors import RunError
from scalejax.execute.checkpoint import Checkpoints
from scalejax.execute.pack import CallResult
from scalejax.execute.programs import Compiler
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.execute.slot import Evaluation, Paused, Slot
from scalejax.execute.snapshot import Snapshot
from scalejax.execute.successive_halving import SuccessiveHalving
from scalejax.execute.worker import Feed, Report
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted
from scalejax.status import Status
from scalejax.train.lanes import abstract_lane

RATES, STEPS, RUNGS = (1e-4, 1e-3, 1e-2, 1e-1), 40, (10, 20)


def loss(trial, step: int) -> float:
    """A curve that a trial follows: the larger its rate the better."""
    return 1.0 / (1.0 + 100 * trial.settings.learning_rate * step) + 1e-3 * trial.seed


class HostWorker:
    """Trains by arithmetic; `refuse` is asked before each call and may raise."""

    def __init__(self, refuse=lambda *_: None):
        self.refuse, self.prepared, self.lanes_used = refuse, [], []

    def lanes(self, bucket: Bucket) -> int:
        return bucket.lanes

    def prepare(self, bucket: Bucket) -> None:
        self.prepared.append(bucket)

    def run(self, bucket: Bucket, feed: Feed, report: Report) -> None:
        slots: list[Slot] = []
        # Zeros for every trial: what is trained here is a formula.
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_lane(bucket.program))
        self.lanes_used.append(bucket.lanes)
        while not feed.stopping():
            for each in feed.take(bucket.lanes - len(slots)):
                slots.append(each.slot.copy() if isinstance(each, Paused) else Slot(each[0]))
            assert len(slots) <= bucket.lanes
            if not slots:
                break
            self.refuse(self, bucket, slots)
            wanted, count = feed.snapshot_due(), min(slot.next_stop - slot.step for slot in slots)
            for slot in slots:
                slot.step += count
            result = CallResult({slot.trial.trial_id: count for slot in slots}, [], [], None)
            report.launched({slot.trial.trial_id: slot.step for slot in slots}, bucket.lanes - len(slots))
            for slot in list(slots):
                if slot.step % slot.trial.evaluate_every and slot.step < slot.trial.settings.steps:
                    continue
                value = loss(slot.trial, slot.step)
                slot.note(Evaluation(slot.step, slot.step, value, value, value), best_step=slot.step)
                if slot.step == slot.trial.settings.steps:
                    result.ended.append(slot.end(Status.DONE, "", (value, value), mode="host"))
                    slots.remove(slot)
                elif slot.step in slot.trial.rungs:
                    result.paused.append(paused(slot, state))
                    slots.remove(slot)
            snapshot = Snapshot(None, {}, [paused(slot, state) for slot in slots]) if wanted else None
            report.landed(replace(result, snapshot=snapshot))
        report.saved(Snapshot(None, {}, [paused(slot, state) for slot in slots]))


def paused(slot: Slot, state) -> Paused:
    return Paused(slot.copy(), state)


def bucket(*, lanes=3, rungs=(), seeds=3, batch_size=16) -> Bucket:
    trials = [
        replace(
            planned("logistic", learning_rate=rate, seed=seed, steps=STEPS, batch_size=batch_size, evaluate_every=5),
            rungs=rungs,
        )
        for rate in RATES
        for seed in range(seeds)
    ]
    return Bucket(trials[0].program, tuple(map(Counted, trials)), lanes, 1.0, 1, 50)


def train(wanted, workers, data, *, halved=False, folder=None, ended=None, stop_after=None):
    """Return the ends by id and the steps that each trial took here."""
    ends, steps, calls = dict(ended or {}), Counter(), 0
    trials = {trial.trial_id: trial for one in wanted for trial in one.trials}
    homes = {trial.trial_id: (trial, one.program) for one in wanted for trial in one.trials}
    left = trials.keys() - ends.keys()
    checkpoints = Checkpoints(folder, seconds=0.0) if folder else None
    begun = checkpoints.load({name: homes[name] for name in left}) if checkpoints else {}
    halving = SuccessiveHalving(list(trials.values()), reduction=2, histories={}) if halved else None

    def finished(end):
        assert end.trial.trial_id not in ends, "told twice"
        ends[end.trial.trial_id] = end

    def progressed(progress):
        nonlocal calls
        calls += 1
        steps.update(progress.steps)
        if calls == stop_after:
            scheduler.stop()

    scheduler = Scheduler(
        wanted,
        left,
        data=data,
        observer=Observer(lambda _: None, finished, progressed),
        halving=halving,
        checkpoints=checkpoints,
        begun=begun,
    )
    complete = scheduler.run_on(workers)
    assert complete == (stop_after is None)
    assert scheduler.lost == {}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("Thread")]
    return ends, steps


def same(one, other) -> bool:
    return {name: numbers(end) for name, end in one.items()} == {name: numbers(end) for name, end in other.items()}


@pytest.fixture(autouse=True)
def weightless(monkeypatch):
    """A worker that computes a formula needs no weights."""
    monkeypatch.setattr(Compiler, "initialiser", lambda *_: None)
    monkeypatch.setattr(Compiler, "initial_weights", lambda *_: ({}, {}))


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("halved", [False, True])
def test_any_worker_will_do_and_their_number_changes_no_result(data, workers, halved):
    wanted = [bucket(rungs=RUNGS if halved else ()), bucket(batch_size=8, lanes=2, rungs=RUNGS if halved else ())]
    crew = [HostWorker() for _ in range(workers)]
    ends, steps = train(wanted, crew, data, halved=halved)
    trials = [trial for one in wanted for trial in one.trials]
    assert ends.keys() == {trial.trial_id for trial in trials}
    assert same(ends, train(wanted, [HostWorker()], data, halved=halved)[0])
    for trial in trials:
        position = RATES.index(trial.settings.learning_rate)
        stop = {0: 10, 1: 10, 2: 20}.get(position, STEPS) if halved else STEPS
        assert steps[trial.trial_id] == stop
        assert ends[trial.trial_id].status == ("done" if stop == STEPS else "stopped")
    assert {id(one.program) for worker in crew for one in worker.prepared} == {id(one.program) for one in wanted}


@pytest.mark.parametrize("workers", [1, 3])
def test_what_a_worker_saves_resumes_in_another(data, tmp_path, workers):
    wanted = [bucket()]
    whole, usual = train(wanted, [HostWorker()], data)
    ends, total = {}, Counter()
    for stop_after in (3, 7, None):
        crew = [HostWorker() for _ in range(workers)]
        ends, steps = train(wanted, crew, data, folder=tmp_path / "c", ended=ends, stop_after=stop_after)
        total.update(steps)
    assert same(ends, whole)
    assert total == usual  # no step twice
    assert not (tmp_path / "c").exists()


def test_a_worker_that_is_short_of_memory_gets_fewer_lanes_and_loses_no_trial(data):
    def refuse(_, bucket, __):
        if bucket.lanes > 1:
            raise MemoryError

    worker = HostWorker(refuse)
    ends, _ = train([bucket(lanes=4)], [worker], data)
    assert {end.status for end in ends.values()} == {"done"}
    assert len(ends) == 12
    assert worker.lanes_used == [4, 2, 1]


def test_what_a_worker_raises_fails_the_trials_that_it_has_and_no_others(data):
    def refuse(worker, _, __):
        if len(worker.lanes_used) == 1:
            raise ZeroDivisionError("a mistake")

    ends, _ = train([bucket(lanes=3)], [HostWorker(refuse)], data)
    assert Counter(end.status for end in ends.values()) == {"failed": 3, "done": 9}


def test_trouble_of_a_worker_that_is_not_of_a_trial_ends_the_run(data):
    def refuse(*_):
        raise RunError("the machine is gone")

    with pytest.raises(RunError, match="the machine is gone"):
        train([bucket()], [HostWorker(refuse), HostWorker(refuse)], data)
