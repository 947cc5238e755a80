"""The schedule on any number of devices as a calculation: what the scheduler does, with counts instead of trials.

Trials of one bucket and one horizon are alike to a schedule, and so are devices that took the same trials at the same
moment. A million trials on thousands of devices are then some thousand events.
"""

import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

Fill = tuple[tuple[int, int], ...]  # trials that a device takes at once: (index of their horizon, how many)


@dataclass(frozen=True)
class Load:
    """A bucket as the schedule sees it; times in seconds.

    Attributes:
        horizons: steps, distinct, longest first.
        copies: number of trials of each horizon.
        measuring: of all evaluations and the test of one trial, for each horizon.
        lanes: slots of the program on each device.
        step: of all lanes together.
        compiling: before the first step on a device.
        rank: estimated work in a step of one trial, by which the scheduler chooses the next bucket.
        skips_idle: whether a lane without a trial costs nothing.
    """

    horizons: tuple[int, ...]
    copies: tuple[int, ...]
    measuring: tuple[float, ...]
    lanes: int
    step: float
    compiling: float
    rank: float
    skips_idle: bool = False

    def pace(self, occupied: int) -> float:
        """Return the seconds of a step when so many lanes have a trial."""
        return self.step * occupied / self.lanes if self.skips_idle else self.step

    @property
    def trial_steps(self) -> int:
        """Steps of all trials together."""
        return sum(steps * count for steps, count in zip(self.horizons, self.copies, strict=True))

    @property
    def all_measuring(self) -> float:
        """Seconds of the evaluations and the tests of all trials."""
        return sum(seconds * count for seconds, count in zip(self.measuring, self.copies, strict=True))

    @property
    def floor(self) -> float:
        """Seconds below which no number of devices gets: compilation and the slowest trial, alone in its program."""
        each = zip(self.horizons, self.measuring, strict=True)
        return self.compiling + max(steps * self.pace(1) + measuring for steps, measuring in each)


@dataclass(frozen=True)
class Schedule:
    """What came of a schedule; one entry a load.

    Attributes:
        makespan: seconds until the last trial has ended.
        packs: devices that ran the load's program.
        stepping: seconds of the program's steps, on all devices together.
    """

    makespan: float
    packs: tuple[int, ...]
    stepping: tuple[float, ...]


def schedule(loads: Sequence[Load], devices: int) -> Schedule:
    """Calculate what the scheduler does: every device works on a load until its queue and its lanes are empty.

    A device then takes the load with the most work waiting for each device on it, and fills every lane that becomes
    free with the longest trial that waits. Packs in the same state at the same moment are counted together, and split
    only where a queue hands them different trials.
    """
    return _Schedule(loads).run(devices)


def work_for_one_more(seconds: float, workers: int) -> float:
    """Return the share of a load's waiting work that one more worker would get; the next one takes the load with most.

    Args:
        seconds: of the work that waits, on one device.
        workers: that are at it.
    """
    return seconds / (workers + 1)


@dataclass(frozen=True)
class _Packs:
    """Packs in the same state, one on each of some devices.

    `step` is that of their program; `lanes` are (the step at which trials end, index of their horizon, how many).
    """

    load: int
    devices: int
    step: int
    lanes: tuple[tuple[int, int, int], ...]


class _Schedule:
    """The queues and the events of one schedule."""

    def __init__(self, loads: Sequence[Load]):
        self._loads = loads
        self._waiting = [list(load.copies) for load in loads]  # trials of each horizon
        self._left = [load.trial_steps for load in loads]  # steps of the trials that wait
        self._working = [0] * len(loads)  # devices on each
        self._events: list[tuple[float, int, _Packs]] = []
        self._order = itertools.count()  # of events at one moment
        self._packs = [0] * len(loads)
        self._stepping = [0.0] * len(loads)

    def run(self, devices: int) -> Schedule:
        """Return what comes of it; can be called once."""
        now = 0.0
        self._start(now, devices)
        while self._events:
            now, _, packs = heapq.heappop(self._events)
            self._refill(now, packs)
        return Schedule(now, tuple(self._packs), tuple(self._stepping))

    def _start(self, now: float, devices: int) -> None:
        """Let devices that have nothing to do take a load each, one after the other; without any left they stop."""
        alike: Counter[tuple[int, Fill]] = Counter()
        for _ in range(devices):
            index = self._take_fullest()
            if index is None:
                break
            self._working[index] += 1
            ((_, fill),) = self._deal(index, 1, self._loads[index].lanes)
            alike[index, fill] += 1
        for (index, fill), count in alike.items():
            load = self._loads[index]
            self._packs[index] += count
            self._advance(now + load.compiling, index, count, step=0, busy=(), fill=fill)

    def _take_fullest(self) -> int | None:
        """Return the load with the most work waiting for each of its devices and one more; None if nothing waits."""

        def attraction(index: int) -> float:
            return work_for_one_more(self._loads[index].rank * self._left[index], self._working[index])

        index = max(range(len(self._loads)), key=attraction)
        return index if self._left[index] else None

    def _refill(self, now: float, packs: _Packs) -> None:
        """End the trials that are due, and give their lanes to the next ones."""
        end, load = min(packs.lanes)[0], self._loads[packs.load]
        busy = tuple(lane for lane in packs.lanes if lane[0] != end)
        freed = load.lanes - sum(number for _, _, number in busy)
        for count, fill in self._deal(packs.load, packs.devices, freed):
            if busy or fill:
                self._advance(now, packs.load, count, step=end, busy=busy, fill=fill)
            else:
                self._working[packs.load] -= count
                self._start(now, count)

    def _advance(
        self, now: float, index: int, devices: int, *, step: int, busy: tuple[tuple[int, int, int], ...], fill: Fill
    ) -> None:
        """Let devices work until the first of their trials ends: those in the busy lanes, and those just taken."""
        load = self._loads[index]
        lanes = busy + tuple((step + load.horizons[kind], kind, number) for kind, number in fill)
        steps = min(lanes)[0] - step
        stepping = steps * load.pace(sum(number for _, _, number in lanes))
        # Evaluations are spread evenly over a trial's steps; where exactly they fall changes little.
        measuring = sum(number * load.measuring[kind] * steps / load.horizons[kind] for _, kind, number in lanes)
        self._stepping[index] += devices * stepping
        packs = _Packs(index, devices, step, lanes)
        heapq.heappush(self._events, (now + stepping + measuring, next(self._order), packs))

    def _deal(self, index: int, devices: int, lanes: int) -> list[tuple[int, Fill]]:
        """Take trials from a queue for the free lanes of some devices; return (how many devices, what each takes)."""
        waiting, horizons, dealt = self._waiting[index], self._loads[index].horizons, []
        while devices:
            fill, room, count = [], lanes, 1
            for kind, number in enumerate(waiting):
                if not number:
                    continue
                if number >= lanes and not fill:
                    count = min(devices, number // lanes)  # these all take the same
                taken = min(room, number)
                fill.append((kind, taken))
                waiting[kind] -= count * taken
                self._left[index] -= count * taken * horizons[kind]
                room -= taken
                if not room:
                    break
            count = count if fill else devices  # the others find nothing either
            dealt.append((count, tuple(fill)))
            devices -= count
        return dealt
