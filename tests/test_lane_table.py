"""What the host knows of the lanes between two calls, and that many lanes cost it no more than few."""

import os
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_helpers import FIRST, planned

from scalejax.execute.lane_table import LaneTable
from scalejax.execute.observer import Observer
from scalejax.execute.programs import Compiler, Programs
from scalejax.execute.scheduler import Scheduler
from scalejax.execute.slot import Slot
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Counted
from scalejax.report.progress import ProgressDisplay
from scalejax.run.store import SessionRow
from scalejax.run.timeline import Recorder
from scalejax.run.watch import Accountant
from scalejax.train.lanes import Outcome
from scalejax.train.padding import initial_weights
from scalejax.train.step import Measurement

BATCH = 16  # of the trials of the helpers
SESSION = SessionRow(1, 0.0, None, "h", "cpu", 1, 1, None, None, 0.0, 0.0, 0.0)


def test_a_lane_table_says_what_each_slot_by_itself_would():
    generator = np.random.default_rng(0)
    table, apart = LaneTable(Placement(FIRST, 7), batch_size=BATCH), {}
    for _ in range(200):
        free = table.free
        assert sorted([*free, *apart]) == list(range(7))
        if free and generator.random() < 0.5:
            steps, every, examples = (int(each) for each in generator.integers((1, 1, 1), (40, 15, 90)))
            trial = planned(steps=steps, evaluate_every=every, train_examples=examples)
            at = int(generator.integers(steps))
            table.assign(free[0], Slot(trial, at))
            apart[free[0]] = Slot(trial, at)
        assert table.occupancy.slots.keys() == apart.keys()
        assert table.busy.tolist() == [lane in apart for lane in range(7)]
        cursor = table.cursor
        for lane in range(7):
            slot = apart.get(lane)
            wanted = divmod(slot.step * BATCH, slot.trial.settings.train_examples) if slot else (0, 0)
            assert (cursor.epoch[lane], cursor.position[lane]) == wanted
        if not apart:
            continue
        count = int(min(table.steps_to_stop, generator.integers(1, 20)))
        assert table.steps_to_stop == min(slot.next_stop - slot.step for slot in apart.values())
        stops = table.stopping(count)
        assert stops == [lane for lane, slot in sorted(apart.items()) if slot.step + count == slot.next_stop]
        ended = {lane for lane, slot in apart.items() if slot.step + count == slot.trial.settings.steps}
        assert table.finishing(count) == ended
        table.advance(count)
        for slot in apart.values():
            slot.step += count
        before = table.occupancy.slots
        for lane in ended:
            table.release(lane)
            assert before[lane].step == apart.pop(lane).step
        assert {lane: slot.step for lane, slot in table.synced().slots.items()} == {
            lane: slot.step for lane, slot in apart.items()
        }
        assert before.keys() == apart.keys() | ended  # what a call was launched with stays as it was


class Instant:
    """Programs that answer at once, and count what the host does from one call to another."""

    def __init__(self, first: int, last: int):
        self.calls, self.events, self._within = 0, 0, range(first, last)

    def advance(self, lanes: Any, _: Any, commands: Any) -> tuple[Any, Outcome]:
        self.calls += 1
        sys.setprofile(self.count if self.calls in self._within else None)
        some = np.full(len(commands.due), 0.5, np.float32)
        step = (commands.cursor.epoch * 100 + commands.cursor.position) // BATCH + commands.steps
        return lanes, Outcome(Measurement(some, some, some, step, np.zeros_like(step)), some, some)

    def count(self, _: Any, event: str, __: Any) -> None:
        self.events += event in ("call", "c_call")


def counted(data, lanes: int) -> tuple[int, int]:
    """Train some trials side by side; return the calls of programs, and of Python's functions in ten of them."""
    programs, made = Instant(6, 16), Future()
    trials = [planned("logistic", seed=seed, steps=250, evaluate_every=250) for seed in range(lanes)]

    def place(lanes: Any, *_: Any) -> Any:
        return lanes

    made.set_result(Programs(programs.advance, lambda: place, place, place, placed=8))
    weights = initial_weights(trials[0].architecture, 0)
    bucket = Bucket(trials[0].program, tuple(map(Counted, trials)), lanes, 1.0, 1, call_steps=10)
    plan: Any = SimpleNamespace(packing=SimpleNamespace(buckets=[bucket]))
    accountant = Accountant(plan, trials, begun={})
    ends = []
    with pytest.MonkeyPatch.context() as patch, Path(os.devnull).open("w") as nowhere:
        patch.setattr(Compiler, "programs", lambda *_, **__: made)
        patch.setattr(Compiler, "initialiser", lambda *_: None)
        patch.setattr(Compiler, "initial_weights", lambda *_: weights)
        with ProgressDisplay(trials=lanes, work=accountant.total, stream=nowhere) as display:
            moved = Recorder(SESSION, groups=["cpu 0"]).moved
            observer = Observer(lambda _: None, ends.append, lambda each: accountant.show(each, display), moved)
            assert Scheduler([bucket], {each.trial_id for each in trials}, data=data, observer=observer).run(FIRST)
    assert {end.status for end in ends} == {"done"}
    assert [len(end.evaluations) for end in ends] == [1] * lanes
    return programs.calls, programs.events


def test_a_call_in_which_nothing_is_due_costs_the_host_no_more_with_many_lanes(data):
    few, many = counted(data, 4), counted(data, 100)
    assert few == many
    assert 0 < few[1] < 10 * 1000
