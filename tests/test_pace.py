"""Calls are as long as measured time allows, whatever was planned, and results do not depend on their lengths."""

import time
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from engine_helpers import FIRST, device_data, finish, numbers, pack_of, place, planned, slow

from scalejax.execute import pace
from scalejax.execute.pack import Pack
from scalejax.execute.programs import Programs
from scalejax.execute.slot import Paused
from scalejax.planning.packing import CALL_SECONDS, Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Counted, Trial
from scalejax.train.lanes import Outcome
from scalejax.train.padding import initial_weights
from scalejax.train.step import Measurement


def long(seed: int = 0) -> Trial:
    """Return a trial whose evaluations are far away."""
    return planned(seed=seed, steps=10**7, evaluate_every=10**7)


class Clock:
    """A clock that stands still but for the calls of a pack: each takes as long as its steps and evaluations do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, step: float, evaluation: float = 0.0):
        self.now, self.calls = 0.0, []
        dispatch = Pack._dispatch

        def slow(pack, steps, *, due, ending):
            busiest = pack.placement.busiest((*due, *ending))
            busiest = min(busiest, 1) if pack.bucket.program.mode == "static" else busiest
            in_turn = (
                pack.placement.busiest(lane for lane, _ in pack.occupied) if pack.bucket.program.mode == "map" else 1
            )
            self.calls.append((steps, in_turn * steps * step + busiest * evaluation))
            self.now += self.calls[-1][1]
            return dispatch(pack, min(steps, 3) if steps > 1000 else steps, due=due, ending=ending)

        monkeypatch.setattr(Pack, "_dispatch", slow)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    @property
    def seconds(self) -> list[float]:
        return [seconds for _, seconds in self.calls]


@pytest.mark.parametrize("step", [1e-5, 1e-3, 0.3, 1.9])
def test_no_call_lasts_longer_than_it_should_however_wrong_the_plan_was(data, monkeypatch, step):
    pack = pack_of([long()], data, call_steps=10**9)
    clock = Clock(monkeypatch, step=step)
    for _ in range(4):
        pack.land(pack.launch())
    assert max(clock.seconds) <= CALL_SECONDS * 1.001
    assert sum(seconds < min(0.4, CALL_SECONDS - step) for seconds in clock.seconds[:-1]) <= 2  # and few are short


def test_calls_become_shorter_when_steps_become_slower(data, monkeypatch):
    pack = pack_of([long()], data, call_steps=1000)
    Clock(monkeypatch, step=1e-3)
    for _ in range(3):
        pack.land(pack.launch())
    monkeypatch.undo()
    clock = Clock(monkeypatch, step=0.1)
    pack._landed = 0.0
    for _ in range(3):
        pack.land(pack.launch())
    assert clock.seconds[0] > CALL_SECONDS  # nothing told of it
    assert max(clock.seconds[1:]) <= CALL_SECONDS * 1.001


def test_lanes_that_run_in_turn_share_the_time_of_a_call(data, monkeypatch):
    pack = pack_of([long(), None, None, None], data, call_steps=10**9, mode="map")
    clock = Clock(monkeypatch, step=0.01)
    for _ in range(3):
        pack.land(pack.launch())
    for seed in (1, 2, 3):  # the other lanes get to work
        place(pack, seed, long(seed))
    pack.land(pack.launch())
    assert max(clock.seconds) <= CALL_SECONDS * 1.001


@pytest.mark.slow
def test_slow_evaluations_are_spread_over_calls(data, monkeypatch):
    pack = pack_of([planned(seed=seed) for seed in range(7)], data)
    clock = Clock(monkeypatch, step=1e-3, evaluation=0.9)
    assert {end.status for end in finish(pack).values()} == {"done"}
    assert max(clock.seconds) <= CALL_SECONDS * 1.001


def test_an_evaluation_longer_than_a_call_is_made_one_lane_at_a_time(data, monkeypatch):
    pack = pack_of([planned(seed=seed, steps=5) for seed in range(3)], data)
    clock = Clock(monkeypatch, step=1e-3, evaluation=5.0)
    assert {end.status for end in finish(pack).values()} == {"done"}
    assert max(clock.seconds) == 10.0  # validation and test of one lane


def test_lanes_that_are_evaluated_side_by_side_are_so_however_long_that_takes(data, monkeypatch):
    def advance(lanes: Any, *_: Any) -> tuple[Any, Outcome]:
        some, steps = np.full(3, 0.5, np.float32), np.full(3, 5)
        return lanes, Outcome(Measurement(some, some, some, steps, np.zeros_like(steps)), some, some)

    trials, made = [planned(seed=seed, steps=5) for seed in range(3)], Future()
    made.set_result(Programs(advance, lambda: lambda lanes, *_: lanes, *[lambda lanes, *_: lanes] * 2, placed=8))
    bucket = Bucket(replace(trials[0].program, mode="static"), tuple(map(Counted, trials)), 3, 1.0, 1, 50)
    pack = Pack(bucket, Placement(FIRST, 3), data=device_data(data), programs=made)
    weights = initial_weights(trials[0].architecture, 0)
    pack.place([(number, trial, weights) for number, trial in enumerate(trials)])
    clock = Clock(monkeypatch, step=1e-3, evaluation=5.0)
    assert {end.status for end in finish(pack).values()} == {"done"}
    assert sum(clock.seconds) < 6.0


@pytest.mark.parametrize("devices", [*slow(1), 2])
@pytest.mark.parametrize("patience", [*slow(None), 1])
@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_results_do_not_depend_on_how_evaluations_are_spread(data, monkeypatch, devices, patience, mode):
    trials = [planned(seed=seed, steps=20, evaluate_every=2 + seed % 2, patience=patience) for seed in range(4)]
    group = tuple(jax.local_devices()[:devices])
    fast = finish(pack_of(trials, data, group=group, mode=mode))
    monkeypatch.setattr(pace, "CALL_SECONDS", 1e-9)  # one step, or one evaluation, at a time
    pack, calls = pack_of(trials, data, group=group, mode=mode), []
    dispatch = Pack._dispatch
    monkeypatch.setattr(
        Pack, "_dispatch", lambda *each, **lanes: calls.append((each[1], lanes)) or dispatch(*each, **lanes)
    )
    slow = finish(pack)
    assert all(steps <= 1 and len(set(lanes["due"]) | set(lanes["ending"])) <= devices for steps, lanes in calls)
    assert {name: numbers(end) for name, end in slow.items()} == {name: numbers(end) for name, end in fast.items()}


def test_what_is_saved_between_a_step_and_its_evaluation_is_evaluated_when_it_resumes(data, monkeypatch):
    trials = [planned(seed=seed, patience=1) for seed in range(3)]
    whole = finish(pack_of(trials, data))
    monkeypatch.setattr(pace, "CALL_SECONDS", 1e-9)
    ends, pack = {}, pack_of(trials, data)
    for _ in range(100):
        if not pack.occupied:
            break
        ends |= {end.trial.trial_id: end for end in pack.land(pack.launch()).ended}
        saved = pack.snapshot()
        states = jax.device_get(saved.lanes)
        other = pack_of([None] * 3, data, largest=trials[0])
        for number, slot in saved.slots.items():
            state = jax.tree.map(lambda leaf, at=number: leaf[at], states)
            other.resume(number, Paused(slot, state))
        other.fill_idle()
        pack = other
    assert {name: numbers(end) for name, end in ends.items()} == {name: numbers(end) for name, end in whole.items()}
