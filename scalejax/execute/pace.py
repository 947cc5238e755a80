"""How long the next call of a pack may be, by what its earlier calls have taken.

A run can stop only between calls, and what an unfinished call has done cannot be saved. So calls are planned by time
alone: a first one of a single step, a first evaluation of a single lane on each device, and from then on no call
that would last longer than CALL_SECONDS. Where all lanes are evaluated side by side, that is one piece.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from scalejax.planning.packing import CALL_SECONDS

REMEMBERED = 2  # calls; a landing that came late makes the next call look short, and the larger of two is taken
TINY = 1e-9  # seconds, by which a rate may be divided


def _recent() -> deque[float]:
    return deque(maxlen=REMEMBERED)


@dataclass
class Pace:
    """Seconds that a step of a pack's lanes, and an example of an evaluation, take at most.

    The time of a call that trained and evaluated counts in full for each of them: so these are bounds from above, and
    calls that come close to CALL_SECONDS do one of the two alone, which gives the exact figures.
    """

    _step: deque[float] = field(default_factory=_recent)
    _example: deque[float] = field(default_factory=_recent)

    def learn(self, seconds: float, *, steps: int, examples: int) -> None:
        """Take note of a call: its steps (times the lanes that run in turn), and the examples evaluated on a device."""
        seconds = max(seconds, TINY)
        if steps:
            self._step.append(seconds / steps)
        if examples:
            self._example.append(seconds / examples)

    @property
    def knows_steps(self) -> bool:
        """Whether a call with steps has landed."""
        return bool(self._step)

    @property
    def knows_examples(self) -> bool:
        """Whether a call with an evaluation has landed."""
        return bool(self._example)

    def most_steps(self, in_turn: int) -> int:
        """Return the most steps of the next call, with so many lanes that run one after the other."""
        return max(1, int(CALL_SECONDS / (max(self._step) * in_turn))) if self._step else 1

    def affordable(self, wanted: Iterable[tuple[int, int, int]], *, steps: int) -> tuple[set[int], int]:
        """Return the lanes that a call measures, all in most cases, else as many as it has the time for.

        Returned too are the examples that this takes on the busiest device.

        Args:
            wanted: (lane, its device, its examples) of the lanes that are to be measured.
            steps: that the call takes, times the lanes that run in turn; if there are none, a lane of each device is
                measured however long that takes.
        """
        left = CALL_SECONDS - (max(self._step) * steps if self._step else 0.0)
        taken: dict[int, int] = {}  # examples by device
        chosen = set()
        for lane, device, examples in wanted:
            total = taken.get(device, 0) + examples
            fits = total * max(self._example) <= left if self._example else False
            if fits or (not steps and device not in taken):
                chosen.add(lane)
                taken[device] = total
        return chosen, max(taken.values(), default=0)
