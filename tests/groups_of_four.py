"""Four devices, each a group of its own, as accelerators are; test_groups.py runs this on four devices of a CPU."""

import functools
import threading
from collections import Counter
from dataclasses import replace

import jax
import pytest
from engine_helpers import numbers, planned, program
from flax import nnx

from scalejax.errors import RunError
from scalejax.execute import programs
from scalejax.execute import scheduler as scheduling
from scalejax.execute.checkpoint import Checkpoints
from scalejax.execute.pack import Pack
from scalejax.execute.programs import Compiler
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.execute.successive_halving import History, SuccessiveHalving
from scalejax.models.architecture import architecture
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted

RATES, RUNGS = (1e-4, 1e-3, 1e-2, 1e-1), (10, 20)
PATIENCE = 60.0  # seconds; reached only where the scheduler hangs

_compiled = functools.cache(programs.compiled_programs)  # once for all tests that share them


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Let each device be a group, as accelerators are."""
    assert len(jax.local_devices()) == 4
    monkeypatch.setattr(scheduling, "groups", lambda devices, **_: [(device,) for device in devices])
    monkeypatch.setattr(programs, "compiled_programs", _compiled)


def bucket_of(trials, *, lanes=2, seconds=1.0):
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    return Bucket(
        program(largest), tuple(map(Counted, trials)), lanes=lanes, seconds=seconds, makespan=1, call_steps=50
    )


def grid(sizes=(1,), *, seeds=4, halved=True, **changes):
    """Return competitors for each number of examples."""
    return [
        replace(
            planned("logistic", learning_rate=rate, seed=seed, steps=40, train_examples=60 + size, **changes),
            rungs=RUNGS if halved else (),
        )
        for size in sizes
        for rate in RATES
        for seed in range(seeds)
    ]


class Log:
    """Which device took how many steps of what, call by call, on a clock of its own: a step takes a second.

    A device launches a call only when none that is at work is behind it; compilation and everything else take no time.
    """

    def __init__(self, monkeypatch):
        self.calls = []  # (device, recipe, begin, end)
        self._clock, self._at_work = Counter(), set()
        self._moved = threading.Condition()
        launch, choose, leave = Pack.launch, Scheduler._choose, Scheduler._next

        def chosen(scheduler, worker):
            assignment = choose(scheduler, worker)
            if assignment:
                with self._moved:
                    self._at_work.add(worker.group[0].id)
            return assignment

        def left(scheduler, worker, last):
            with self._moved:
                self._at_work.discard(worker.group[0].id)
                self._moved.notify_all()
            return leave(scheduler, worker, last)

        def logged(pack, **named):
            device = pack.placement.devices[0].id
            with self._moved:
                assert self._moved.wait_for(lambda: not self._behind(device), PATIENCE)
                begin = self._clock[device]
                call = launch(pack, **named)
                self._clock[device] = begin + call.plan.count
                self.calls.append((device, pack.bucket.program, begin, self._clock[device]))
                self._moved.notify_all()
            return call

        monkeypatch.setattr(Pack, "launch", logged)
        monkeypatch.setattr(Scheduler, "_choose", chosen)
        monkeypatch.setattr(Scheduler, "_next", left)

    def _behind(self, device):
        return [other for other in self._at_work if self._clock[other] < self._clock[device]]

    @property
    def steps(self):
        """Steps that each device took."""
        return {device: sum(end - begin for one, _, begin, end in self.calls if one == device) for device in range(4)}


def train(wanted, data, *, devices=4, halved=False, folder=None, ended=None, stop_after=None, told=lambda _: None):
    """Return the ends by id, those of earlier runs included, and the steps that each trial took here."""
    ends, steps, started, calls = dict(ended or {}), Counter(), Counter(), 0
    trials = {each.trial_id: each for bucket in wanted for each in bucket.trials}
    left = trials.keys() - ends.keys()
    checkpoints = Checkpoints(folder, seconds=0.0) if folder else None
    homes = {each.trial_id: (each, bucket.program) for bucket in wanted for each in bucket.trials}
    begun = checkpoints.load({name: homes[name] for name in left}) if checkpoints else {}
    halving = None
    if halved:
        known = {name: (end.evaluations, end.status) for name, end in ends.items()}
        known |= {name: (paused.slot.evaluations, "running") for name, paused in begun.items()}
        histories = {
            name: History({each.step: each.validation_loss for each in seen}, status)
            for name, (seen, status) in known.items()
        }
        halving = SuccessiveHalving(list(trials.values()), reduction=2, histories=histories)

    def finished(end):
        assert end.trial.trial_id not in ends, "told twice"
        ends[end.trial.trial_id] = end

    def progressed(progress):
        nonlocal calls
        told(progress)
        calls += 1
        steps.update(progress.steps)
        if calls == stop_after:
            scheduler.stop()

    scheduler = Scheduler(
        wanted,
        left,
        data=data,
        observer=Observer(lambda new: started.update(each.trial_id for each in new), finished, progressed),
        halving=halving,
        checkpoints=checkpoints,
        begun=begun,
    )
    complete = scheduler.run(jax.local_devices()[:devices])
    assert set(started.values()) <= {1}, "begun twice"
    assert complete == (stop_after is None)
    assert not [each for each in threading.enumerate() if each.name.startswith(("Thread", "compile"))]
    return ends, steps


def same(one, other):
    return {name: numbers(end) for name, end in one.items()} == {name: numbers(end) for name, end in other.items()}


def two_buckets(*, halved, sizes=(1, 2, 3, 4)):
    """Return one bucket and another half as large, which could be one: the same program is compiled once for both."""
    others = [size + 10 for size in sizes[: len(sizes) // 2]]
    return [bucket_of(grid(sizes, halved=halved)), bucket_of(grid(others, halved=halved))]


@pytest.mark.parametrize("halved", [False, True])
def test_all_groups_are_busy_until_the_end_and_the_results_are_those_of_one(data, monkeypatch, halved):
    wanted = two_buckets(halved=halved)
    alone, usual = train(wanted, data, devices=1, halved=halved)
    log = Log(monkeypatch)
    ends, steps = train(wanted, data, halved=halved)
    assert same(ends, alone)
    assert steps == usual
    assert {end.status for end in ends.values()} == ({"done", "stopped"} if halved else {"done"})
    # Were all of them busy to the end, each would have taken a quarter; the last trials leave lanes empty.
    assert min(log.steps.values()) > 0.75 * sum(log.steps.values()) / 4
    lanes_steps = sum(usual.values()) / 2
    assert sum(log.steps.values()) < 1.25 * lanes_steps  # and nobody ran half empty for most of the time


@pytest.mark.parametrize("halved", [False, True])
def test_a_run_on_four_groups_that_is_stopped_again_and_again_ends_as_one_that_never_was(data, tmp_path, halved):
    wanted = two_buckets(halved=halved, sizes=(1, 2))
    whole, usual = train(wanted, data, devices=1, halved=halved)
    ends, total = {}, Counter()
    for stop_after in (4, 12, None):
        ends, steps = train(
            wanted, data, halved=halved, folder=tmp_path / "checkpoints", ended=ends, stop_after=stop_after
        )
        total.update(steps)
    assert same(ends, whole)
    assert total == usual  # no step twice
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("halved", [True])
def test_a_group_that_breaks_off_ends_the_run_of_all_and_those_that_wait(data, monkeypatch, halved):
    init = Pack.__init__

    def broken(pack, bucket, placement, **named):
        if placement.devices[0].id == 2:
            raise RunError("the third device is broken")
        init(pack, bucket, placement, **named)

    monkeypatch.setattr(Pack, "__init__", broken)
    with pytest.raises(RunError, match="the third device is broken"):
        train(two_buckets(halved=halved), data, halved=halved)
    assert not [each for each in threading.enumerate() if each.name.startswith("Thread")]


def test_a_group_that_waits_is_told_when_another_breaks_off(data, monkeypatch):
    """One pack has lanes for all trials, so the other groups wait; then it breaks off."""
    launch, calls = Pack.launch, []

    def breaks(pack, **named):
        calls.append(pack)
        if len(calls) == 2:
            raise RunError("broken in the middle")
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", breaks)
    with pytest.raises(RunError, match="broken in the middle"):
        train([bucket_of(grid(), lanes=16)], data, halved=True)
    assert {pack.placement.devices for pack in calls} == {(jax.local_devices()[0],)}
    assert not [each for each in threading.enumerate() if each.name.startswith("Thread")]


@pytest.mark.parametrize("halved", [True])
def test_a_trial_that_fails_on_one_group_keeps_no_other_from_its_end(data, monkeypatch, halved):
    wanted = two_buckets(halved=halved, sizes=(1, 2))
    doomed = wanted[0].trials[0]
    initial = Compiler.initial_weights

    def refuse(compiler, built, key):
        if built == doomed.architecture and key == doomed.key("initialise"):
            raise ValueError("no such weights")
        return initial(compiler, built, key)

    monkeypatch.setattr(Compiler, "initial_weights", refuse)
    ends, _ = train(wanted, data, halved=halved)
    failing = {name for name, end in ends.items() if end.trial.seed == doomed.seed}
    assert {name for name, end in ends.items() if end.status == "failed"} == failing
    assert ends.keys() == {each.trial_id for bucket in wanted for each in bucket.trials}


def test_short_memory_on_one_group_loses_no_trial_and_the_others_help(data, monkeypatch):
    launch = Pack.launch

    def refuse(pack, **named):
        if pack.placement.devices[0].id == 1 and pack.bucket.lanes > 1:
            raise MemoryError
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", refuse)
    observed = []
    wanted = [bucket_of(grid((1, 2), halved=False), lanes=4)]
    observer = Observer(lambda _: None, lambda end: observed.append(end), lambda _: None)
    waiting = {each.trial_id for each in wanted[0].trials}
    assert Scheduler(wanted, waiting, data=data, observer=observer).run(jax.local_devices())
    assert sorted(end.trial.trial_id for end in observed) == sorted(waiting)
    assert {end.status for end in observed} == {"done"}


class Keyed(nnx.Module):
    """A module with random keys in its state."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.dropout(nnx.relu(self.hidden(x))))


def test_random_keys_go_to_every_group(data):
    built = architecture(Keyed, {"width": 5}, shape=(12,), outputs=3)
    wanted = [bucket_of([replace(each, architecture=built) for each in grid(seeds=3)])]
    alone, _ = train(wanted, data, devices=1, halved=True)
    assert same(train(wanted, data, halved=True)[0], alone)
