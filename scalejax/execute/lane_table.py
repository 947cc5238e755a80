"""Which trial is in which lane, and at which step each is evaluated next.

All lanes of a pack take the same steps. So what the host has to know of them between two calls stands in arrays
[lanes] against one counter, and a call in which nothing is due touches no trial, however many there are.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalejax.execute.slot import Slot, next_stop
from scalejax.planning.placement import Placement
from scalejax.train.step import Cursor

NEVER = np.iinfo(np.int64).max  # the next stop of an idle lane


@dataclass(frozen=True, eq=False)
class Occupancy:
    """The trials in lanes at one moment; the same object as long as no lane is assigned or released.

    Attributes:
        slots: by lane, in their order; nothing changes which they are.
        placement: of the lanes.
    """

    slots: Mapping[int, Slot]
    placement: Placement

    @functools.cached_property
    def lanes(self) -> np.ndarray:
        """Its lanes, int64 [trials]."""
        return np.fromiter(self.slots, np.int64, len(self.slots))

    @functools.cached_property
    def ids(self) -> tuple[str, ...]:
        """The ids of its trials, in the order of the lanes."""
        return tuple(slot.trial.trial_id for slot in self.slots.values())

    @functools.cached_property
    def with_patience(self) -> frozenset[int]:
        """The lanes of trials that end early if they do not improve."""
        return frozenset(lane for lane, slot in self.slots.items() if slot.trial.patience is not None)

    @functools.cached_property
    def with_rungs(self) -> frozenset[int]:
        """The lanes of trials that have rungs, at which they leave the lane."""
        return frozenset(lane for lane, slot in self.slots.items() if slot.trial.rungs)

    @functools.cached_property
    def busiest(self) -> int:
        """How many of its lanes are on the devices that have most of them."""
        return self.placement.busiest(self.slots)


class LaneTable:
    """The trials in the lanes of a pack, and the steps of all of them.

    Args:
        placement: of the lanes.
        batch_size: of all trials.

    Attributes:
        steps: that every lane has taken since the pack began.
        deferred: lanes that the next call evaluates or tests: the one that brought them here had no time for that.
    """

    def __init__(self, placement: Placement, *, batch_size: int):
        count = placement.lanes
        self.steps = 0
        self.deferred: set[int] = set()
        self._placement, self._batch_size = placement, batch_size
        self._order = placement.round_robin(range(count))
        self._slots: dict[int, Slot] = {}
        self._busy = np.zeros(count, bool)
        self._examples = np.ones(count, np.int64)
        self._begun = np.zeros(count, np.int64)  # `steps` when the trial of a lane was at its step 0
        self._every = np.ones(count, np.int64)  # steps between two of its evaluations
        self._horizon = np.full(count, NEVER)  # its steps in all
        self._stop = np.full(count, NEVER)  # `steps` at its next stop
        self._occupancy: Occupancy | None = None
        self._free: list[int] | None = None

    @property
    def occupancy(self) -> Occupancy:
        """The trials in lanes; the steps of their slots may be older, see `synced`."""
        if self._occupancy is None:
            self._occupancy = Occupancy(dict(sorted(self._slots.items())), self._placement)
        return self._occupancy

    @property
    def free(self) -> list[int]:
        """Lanes without a trial, in the order in which they get one."""
        if self._free is None:
            self._free = [lane for lane in self._order if lane not in self._slots]
        return list(self._free)

    @property
    def busy(self) -> np.ndarray:
        """Which lanes have a trial, bool [lanes]."""
        return self._busy.copy()

    @property
    def cursor(self) -> Cursor:
        """Epoch and position in it of the next example of every lane; zeros where it is idle."""
        seen = np.where(self._busy, (self.steps - self._begun) * self._batch_size, 0)
        epoch, position = np.divmod(seen, self._examples)
        return Cursor(epoch.astype(np.uint32), position.astype(np.uint32))

    @property
    def steps_to_stop(self) -> int:
        """Steps to the next stop of any trial."""
        return int(self._stop.min()) - self.steps

    def stopping(self, count: int) -> list[int]:
        """Return the lanes whose trial is at a stop after so many steps."""
        return np.flatnonzero(self._stop == self.steps + count).tolist()

    def finishing(self, count: int) -> set[int]:
        """Return the lanes whose trial is at its horizon after so many steps."""
        return set(np.flatnonzero(self._horizon == self.trial_steps() + count).tolist())

    def trial_steps(self) -> np.ndarray:
        """Return the steps of the trials, int64 [lanes]."""
        return self.steps - self._begun

    def assign(self, lane: int, slot: Slot) -> None:
        """Put a trial into a free lane, at the step of its slot."""
        self._slots[lane] = slot
        self._busy[lane] = True
        trial = slot.trial
        self._examples[lane], self._every[lane] = trial.settings.train_examples, trial.evaluate_every
        self._horizon[lane], self._begun[lane] = trial.settings.steps, self.steps - slot.step
        self._occupancy = self._free = None
        self._schedule_stops([lane])

    def release(self, lane: int) -> None:
        """Take the trial out of a lane; the step of its slot is brought up to date."""
        self._slots.pop(lane).step = self.steps - int(self._begun[lane])
        self._busy[lane], self._examples[lane] = False, 1
        self._stop[lane] = self._horizon[lane] = NEVER
        self.deferred.discard(lane)
        self._occupancy = self._free = None

    def advance(self, count: int) -> None:
        """Count the steps of a call."""
        stopped = self.stopping(count)
        self.steps += count
        self._schedule_stops(stopped)

    def _schedule_stops(self, lanes: list[int]) -> None:
        """Set the next stop of the trials in lanes."""
        if lanes:
            step = self.trial_steps()[lanes]
            following = next_stop(step, every=self._every[lanes], horizon=self._horizon[lanes])
            self._stop[lanes] = self.steps + following - step

    def synced(self) -> Occupancy:
        """Bring the steps of all slots up to date, and return the trials in lanes."""
        steps = self.trial_steps().tolist()
        for lane, slot in self._slots.items():
            slot.step = steps[lane]
        return self.occupancy

    def holds(self, lane: int, slot: Slot) -> bool:
        """Say whether this slot is in a lane."""
        return self._slots.get(lane) is slot
