"""The trials of a bucket that wait for a lane, and the groups of devices that are at work on it."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice

from scalejax.execute.devices import Group
from scalejax.execute.slot import Parked
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Trial

Waiting = Trial | Parked  # to begin, or to go on
StepsLeft = Callable[[Trial, int], float]  # that a trial at a step is expected to take


@dataclass
class Crew:
    """A group of devices at work on a bucket.

    `room` is the number of its lanes that have no trial; `flying` are the trials that it has taken, by id, as they
    were when it took them.
    """

    room: int
    flying: dict[str, Waiting] = field(default_factory=dict)


class Work:
    """A bucket, those of its trials that wait for a lane, and who works on it.

    Args:
        bucket: its trials and their program; with fewer lanes once memory turns out to be short.
        queue: trials in the order in which they get lanes.
        steps_left: of a trial at a step.
    """

    def __init__(self, bucket: Bucket, queue: deque[Waiting], *, steps_left: StepsLeft):
        self.bucket = bucket
        self.queue = queue
        self.crews: dict[Group, Crew] = {}
        self._steps_left = steps_left
        self._pace = bucket.seconds / bucket.lanes  # of a step of one trial; also where lanes become fewer

    def estimate(self) -> float:
        """Return the seconds that the queue takes on one device, by the cost model."""
        return self._seconds(0)

    def attraction(self) -> float:
        """Return the seconds of work a group that one more group would find here.

        What the groups that are here have room for they take at no cost, so it does not count.
        """
        return self._seconds(sum(crew.room for crew in self.crews.values())) / (len(self.crews) + 1)

    def join(self, team: Group) -> Crew:
        """Let a group begin to work here; it has all its lanes free."""
        self.crews[team] = Crew(self.bucket.lanes * len(self.share(team).devices))
        return self.crews[team]

    def share(self, team: Group) -> Group:
        """Return the devices of a group that have work here: three trials do not keep eight cores busy."""
        return team.first(self.bucket.count)

    def next_fresh(self, count: int) -> Iterator[Trial]:
        """Yield the first trials of the queue that begin."""
        return islice((waiting for waiting in self.queue if not isinstance(waiting, Parked)), count)

    def taken(self, but: Collection[str]) -> list[Parked]:
        """Return the trials that were taken to go on, as they were then, except for some ids."""
        flying = [waiting for crew in self.crews.values() for waiting in crew.flying.values()]
        return [each for each in flying if isinstance(each, Parked) and each.trial.trial_id not in but]

    def _seconds(self, first: int) -> float:
        """Return the seconds that the queue takes from a position on."""
        return self._pace * sum(self._left(waiting) for waiting in islice(self.queue, first, None))

    def _left(self, waiting: Waiting) -> float:
        # Of a trial whose steps are all taken the last test may be left.
        return max(1.0, self._steps_left(planned_of(waiting), step_of(waiting)))


def planned_of(waiting: Waiting) -> Trial:
    """Return the trial that waits."""
    return waiting.trial if isinstance(waiting, Parked) else waiting


def step_of(waiting: Waiting) -> int:
    """Return the step from which it trains on."""
    return waiting.slot.step if isinstance(waiting, Parked) else 0


def all_steps_left(trial: Trial, step: int) -> float:
    """Return the steps from a step to the horizon."""
    return trial.settings.steps - step
