"""Initial weights are drawn for the trials that come next, shared where they are equal, and not kept without bound."""

import threading
from collections.abc import Iterable
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import planned, program, slow
from flax import nnx

from scalejax.errors import RunError
from scalejax.execute import initial_weights as module
from scalejax.execute.initial_weights import InitialWeights
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted
from scalejax.train.padding import initial_weights, initialiser

pytestmark = pytest.mark.usefixtures("compile_quickly")
WIDTHS, SEEDS, RATES = (3, 4, 5), range(50), (1e-3, 1e-2)


def trials_of(widths: Iterable[int] = WIDTHS, seeds: Iterable[int] = SEEDS, rates: Iterable[float] = RATES):
    return [
        planned(knobs={"width": width, "depth": 1}, seed=seed, learning_rate=rate, steps=2, evaluate_every=2)
        for width in widths
        for rate in rates
        for seed in seeds
    ]


class Draws:
    """Draws arrays of a hundred bytes and counts them."""

    def __init__(self):
        self.made, self._lock = [], threading.Lock()

    def __call__(self, architecture, key):
        with self._lock:
            self.made.append((architecture, key))
        return nnx.State({"kernel": np.zeros(25, np.float32)}), nnx.State({})


def drawn_and_most(trials, weights, *, lanes=8):
    """Place trials so many at a time, as a pack does; return the most weights that were in memory at once."""
    weights.expect(trials)
    most = 0
    for begin in range(0, len(trials), lanes):
        taken = trials[begin : begin + lanes]
        assert not any(isinstance(each, Exception) for each in weights.take(taken))
        weights.ahead(trials[begin + lanes : begin + 2 * lanes])
        most = max(most, weights.count)
        for each in taken:
            weights.ended(each)
    weights.close()
    return most


def test_weights_that_fit_are_drawn_once_and_all_are_gone_in_the_end():
    draws = Draws()
    weights = InitialWeights(draws)
    drawn_and_most(trials_of(), weights)
    assert len(draws.made) == len(set(draws.made)) == len(WIDTHS) * len(SEEDS)
    assert weights.count == 0


@pytest.mark.parametrize("kept", [0, 10])
def test_weights_that_do_not_fit_are_drawn_again_and_memory_is_bounded(monkeypatch, kept):
    monkeypatch.setattr(module, "KEPT_BYTES", 100 * kept + 99)
    draws = Draws()
    most = drawn_and_most(trials_of(), InitialWeights(draws))
    assert most <= kept + 8  # and the lanes that come next
    assert len(draws.made) == 2 * len(WIDTHS) * len(SEEDS) - kept * len(WIDTHS)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0, *slow(1000)])
def test_a_sweep_of_many_seeds_holds_few_weights(data, monkeypatch, kept):
    """50 seeds of 3 sizes are 150 weights; each is some hundred bytes."""
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    alive, least = [], min(each.architecture.parameter_count for each in trials_of()) * 4

    def started(_):
        alive.append(scheduler._weights.count)

    trials = trials_of()
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    bucket = Bucket(program(largest), tuple(map(Counted, trials)), lanes=4, seconds=1.0, makespan=1, call_steps=50)
    ends = []
    scheduler = Scheduler(
        [bucket], {each.trial_id for each in trials}, data=data, observer=Observer(started, ends.append, lambda _: None)
    )
    assert scheduler.run(jax.local_devices()[:1])
    assert {end.status for end in ends} == {"done"}
    assert len(ends) == len(trials)
    assert len(alive) > 50
    assert max(alive) <= kept // least + 2 * 4
    assert scheduler._weights.count == 0


def test_what_a_module_raises_is_returned_and_what_a_device_lacks_is_raised():
    first, second = trials_of(widths=(3,), seeds=(0, 1), rates=(1e-3,))

    def draw(_, key):
        if key == second.key("initialise"):
            raise ValueError("a mistake")
        return nnx.State({"kernel": np.zeros(3)}), nnx.State({})

    weights = InitialWeights(draw)
    good, bad = weights.take([first, second])
    assert not isinstance(good, Exception)
    assert isinstance(bad, ValueError)
    assert good[0]["kernel"].shape == (3,)

    def refuse(*_):
        raise MemoryError

    with pytest.raises(MemoryError):
        InitialWeights(refuse).take([first])


@pytest.mark.parametrize("which", ["started", "finished", "progressed"])
def test_a_mistake_in_an_observer_ends_the_run_and_fails_no_trial(data, which):
    ends = []

    def mistaken(_):
        raise ZeroDivisionError("a mistake")

    tells = {"started": lambda _: None, "finished": ends.append, "progressed": lambda _: None, which: mistaken}
    trials = trials_of(widths=(3,), seeds=(0, 1), rates=(1e-3,))
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), lanes=2, seconds=1.0, makespan=1, call_steps=50)
    scheduler = Scheduler([bucket], {each.trial_id for each in trials}, data=data, observer=Observer(**tells))
    with pytest.raises(RunError, match="training broke off: ZeroDivisionError: a mistake"):
        scheduler.run(jax.local_devices()[:1])
    assert ends == []


@pytest.mark.parametrize("cpu", [True, False])
def test_beside_an_accelerator_weights_are_drawn_on_the_cpu_if_there_is_one(monkeypatch, cpu):
    """Another device than the usual one stands for the CPU."""
    devices = jax.local_devices()

    def local_devices(*, backend):
        if not cpu:
            raise RuntimeError(f"no {backend}")
        return devices[-1:]

    first = trials_of(widths=(7,), seeds=(0,), rates=(1e-3,))[0]
    again = replace(first.architecture, occasion=object())  # programs are remembered by architecture
    usual = initial_weights(first.architecture, 1)
    with monkeypatch.context() as patched:
        patched.setattr(jax, "default_backend", lambda: "gpu")
        patched.setattr(jax, "local_devices", local_devices)
        beside = initialiser(again)
    drawn = beside(np.uint32(1))
    assert {device for leaf in jax.tree.leaves(drawn) for device in leaf.devices()} == {devices[-1 if cpu else 0]}
    for one, other in zip(jax.tree.leaves(usual), jax.tree.leaves(drawn), strict=True):
        np.testing.assert_array_equal(one, other)
