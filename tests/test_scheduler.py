"""The scheduler trains every trial once, on all devices, and isolates what fails."""

import re
from collections import Counter

import jax
import numpy as np
import pytest
from engine_helpers import EXACT_SOLO, finish, pack_of, planned, program, slow

from scalejax.errors import RunError
from scalejax.execute import pack
from scalejax.execute.pack import Pack
from scalejax.execute.programs import Compiler
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted

pytestmark = pytest.mark.usefixtures("compile_quickly")


def buckets():
    """Two programs: seven MLPs of two widths in three lanes with different horizons, and three logistic regressions."""
    mlps = [
        planned(
            knobs={"width": 3 + number % 2, "depth": 1},
            seed=number,
            steps=10 * (1 + number % 3),
            train_examples=30 + number,
        )
        for number in range(7)
    ]
    mlps.sort(key=lambda each: -each.settings.steps)
    largest = max(mlps, key=lambda each: each.architecture.parameter_count)
    logistics = [planned("logistic", seed=seed) for seed in range(3)]
    return [
        Bucket(program(largest), tuple(map(Counted, mlps)), lanes=3, seconds=1.0, makespan=1, call_steps=50),
        Bucket(program(logistics[0]), tuple(map(Counted, logistics)), lanes=2, seconds=1.0, makespan=1, call_steps=50),
    ]


def train(data, devices, wanted=None):
    """Return what the observer was told: ids started, ends by id, steps by id."""
    started, ended, steps = [], {}, {}

    def finished(end):
        assert end.trial.trial_id not in ended
        ended[end.trial.trial_id] = end

    def progressed(progress):
        for name, count in progress.steps.items():
            steps[name] = steps.get(name, 0) + count

    observer = Observer(lambda trials: started.extend(each.trial_id for each in trials), finished, progressed)
    wanted = wanted or buckets()
    waiting = {each.trial_id for bucket in wanted for each in bucket.trials}
    Scheduler(wanted, waiting, data=data, observer=observer).run(devices)
    return started, ended, steps


def test_every_trial_is_trained_once_whatever_the_number_of_devices(data):
    # On another number of devices it is another program: the last bit of a sum may differ, nothing else.
    trials = {each.trial_id: each for bucket in buckets() for each in bucket.trials}
    results = []
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        started, ended, steps = train(data, devices)
        assert sorted(started) == sorted(ended) == sorted(trials)
        assert steps == {name: each.settings.steps for name, each in trials.items()}
        assert {end.status for end in ended.values()} == {"done"}
        results.append(ended)
    for name, one in results[0].items():
        for alone, shared in zip(one.evaluations, results[1][name].evaluations, strict=True):
            assert alone.step == shared.step
            np.testing.assert_allclose(alone.train_loss, shared.train_loss, rtol=EXACT_SOLO)
            np.testing.assert_allclose(alone.validation_loss, shared.validation_loss, rtol=EXACT_SOLO)


def test_a_device_error_fails_the_trials_in_its_lanes_and_no_others(data, monkeypatch):
    launch, calls = Pack.launch, []

    def refuse_the_first(pack, **named):
        calls.append(pack)
        if len(calls) == 1:
            raise jax.errors.JaxRuntimeError("INTERNAL: a broken device\nand more")
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", refuse_the_first)
    _, ended, _ = train(data, jax.local_devices()[:1])
    failed = [end for end in ended.values() if end.status == "failed"]
    assert len(failed) == 3
    assert {end.reason for end in failed} == {"JaxRuntimeError: INTERNAL: a broken device"}
    assert len(ended) == 10
    assert {end.status for end in ended.values()} == {"done", "failed"}


@pytest.mark.parametrize("where", ["land", *slow("__init__", "place", "launch")])
@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"),
        *slow(MemoryError()),
    ],
)
def test_out_of_memory_halves_the_lanes_and_loses_no_trial(data, monkeypatch, where, error):
    expected = {each.trial_id for bucket in buckets() for each in bucket.trials}
    original, sizes = getattr(Pack, where), []

    def refuse_many_lanes(pack, *arguments, **named):
        lanes = arguments[0].lanes if where == "__init__" else pack.bucket.lanes
        sizes.append(lanes)
        if lanes > 1:
            raise error
        return original(pack, *arguments, **named)

    monkeypatch.setattr(Pack, where, refuse_many_lanes)
    _, ended, _ = train(data, jax.local_devices()[:1])
    assert {end.status for end in ended.values()} == {"done"}
    assert ended.keys() == expected
    assert set(sizes) == {3, 2, 1}


@pytest.mark.slow
def test_a_trial_that_does_not_fit_alone_fails_and_the_others_go_on(data, monkeypatch):
    launch = Pack.launch

    def refuse(pack, **named):
        if any(slot.trial.family == "mlp" for _, slot in pack.occupied):
            raise MemoryError
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", refuse)
    _, ended, _ = train(data, jax.local_devices())
    statuses = {
        family: {end.status for end in ended.values() if end.trial.family == family} for family in ("mlp", "logistic")
    }
    assert statuses == {"mlp": {"failed"}, "logistic": {"done"}}
    assert len(ended) == 10


def test_what_a_module_raises_fails_its_own_trials_and_says_where(data, monkeypatch):
    launch = Pack.launch

    def fail(pack, **named):
        if any(slot.trial.family == "mlp" for _, slot in pack.occupied):
            raise ZeroDivisionError("a mistake\nand more")
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", fail)
    _, ended, _ = train(data, jax.local_devices())
    bad = [end for end in ended.values() if end.trial.family == "mlp"]
    assert {end.status for end in bad} == {"failed"}
    assert all(re.fullmatch(r"ZeroDivisionError: a mistake \(test_scheduler.py, line \d+\)", end.reason) for end in bad)
    assert {end.status for end in ended.values() if end not in bad} == {"done"}


def test_a_size_whose_weights_cannot_be_drawn_fails_alone(data, monkeypatch):
    initial = Compiler.initial_weights

    def refuse(compiler, architecture, key):
        if dict(architecture.arguments).get("width") == 3:
            raise ValueError("no width of three")
        return initial(compiler, architecture, key)

    monkeypatch.setattr(Compiler, "initial_weights", refuse)
    _, ended, _ = train(data, jax.local_devices())
    statuses = {(dict(end.trial.knobs).get("width"), end.status) for end in ended.values()}
    assert statuses == {(3, "failed"), (4, "done"), (None, "done")}


@pytest.mark.parametrize("error", [RunError("the disk is full"), ZeroDivisionError("a mistake")])
def test_trouble_that_is_not_of_a_trial_ends_the_run_with_a_sentence(data, error):
    def finished(_):
        raise error

    wanted = buckets()
    waiting = {each.trial_id for bucket in wanted for each in bucket.trials}
    observer = Observer(lambda _: None, finished, lambda _: None)
    with pytest.raises(RunError, match=str(error)) as caught:
        Scheduler(wanted, waiting, data=data, observer=observer).run(jax.local_devices())
    assert len(str(caught.value).splitlines()) == 1


class Ticking:
    """Stands in for the time module: a second passes between any two looks at it."""

    now = 0.0

    def perf_counter(self) -> float:
        self.now += 1
        return self.now


def test_seconds_are_shared_among_the_lanes_that_have_a_trial(data, monkeypatch):
    short, *long = (planned(seed=seed, steps=steps) for seed, steps in enumerate([10, 20, 20]))
    lanes = pack_of([short, None, *long], data)
    monkeypatch.setattr(pack, "time", Ticking())
    land, shares = lanes.land, Counter()

    def landed(call):
        shares.update({slot.trial.trial_id: 1 / len(call.slots) for slot in call.slots.values()})
        return land(call)

    monkeypatch.setattr(lanes, "land", landed)
    ended = finish(lanes)  # every call takes a second: of three trials, then of the two that are left
    assert {name: end.seconds for name, end in ended.items()} == pytest.approx(dict(shares))
    assert ended[short.trial_id].seconds < ended[long[0].trial_id].seconds
