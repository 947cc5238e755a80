"""The record of how a sweep runs: which lane each trial has, from when to when."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scalejax.run.store import HOST, INTERRUPTED, Recorded, SessionRow, SpanRow

if TYPE_CHECKING:
    from scalejax.execute.observer import Moves, Place
    from scalejax.planning.placement import Group

OLDER_PACK = -1  # the number of the pack of host processes
OLDER_BUCKET = "classical baselines"


@dataclass(frozen=True)
class Open:
    """A span of a trial that is in its lane, and the steps that its pack had taken before it came."""

    row: SpanRow
    before: int


class Recorder:
    """Keeps the spans of a session until a heartbeat writes them. What it is told costs the more, the more trials move.

    Of several hosts the primary one records: hosts train in lockstep, so that its packs have the lanes of all.

    Args:
        session: as it begins.
        groups: what to call the groups of devices, in the order of the workers.
    """

    def __init__(self, session: SessionRow, *, groups: Sequence[str]):
        self._session, self._groups = session, groups
        self._lock = threading.Lock()
        self._new_session = True
        self._spans = 0
        self._open: dict[str, Open] = {}  # by trial
        self._changed: dict[int, SpanRow] = {}  # not written yet, by number
        self._steps: dict[int, int] = {}  # of each pack
        self._facts: dict[int, tuple[str, int]] = {}  # of each pack: its bucket in words, FLOPs of a step

    def moved(self, moves: "Moves") -> None:
        """Take note of a call."""
        place = moves.place
        with self._lock:
            before = self._steps.get(place.number, 0)
            self._steps[place.number] = before + moves.steps
            for trial_id, lane in moves.entered.items():
                if trial_id not in self._open:  # one that waits in its lane for its test is told twice
                    bucket, step_flops = self._known(place)
                    self._enter(
                        trial_id, place.number, self._groups[place.group], bucket, place.lanes, lane, step_flops,
                        began=moves.began, before=before,
                    )  # fmt: skip
            for trial_id, why in moves.left.items():
                self._leave(trial_id, why, at=moves.ended)

    def fits(self, trial_id: str, process: int, *, processes: int) -> None:
        """Take note of a classical baseline that a host process, from 0 on, begins to fit."""
        with self._lock:
            self._enter(trial_id, OLDER_PACK, HOST, OLDER_BUCKET, processes, process, 0, began=time.time(), before=0)

    def fitted(self, trial_id: str, status: str, *, steps: int) -> None:
        """Take note of a classical baseline that has ended."""
        with self._lock:
            self._leave(trial_id, status, at=time.time(), steps=steps)

    def close(self) -> None:
        """End the session, and the spans of what is still in a lane."""
        with self._lock:
            now = time.time()
            for trial_id in list(self._open):
                self._leave(trial_id, INTERRUPTED, at=now)
            self._session, self._new_session = replace(self._session, ended=now), True

    def take(self) -> Recorded:
        """Return what is new since it was last taken."""
        with self._lock:
            recorded = Recorded(self._session if self._new_session else None, list(self._changed.values()))
            self._changed, self._new_session = {}, False
            return recorded

    def _known(self, place: "Place") -> tuple[str, int]:
        if place.number not in self._facts:
            from scalejax.planning.outline import sizes_of
            from scalejax.train.cost import step_flops

            program = place.bucket.program
            self._facts[place.number] = sizes_of(place.bucket), step_flops(program.architecture, program.recipe)
        return self._facts[place.number]

    def _enter(
        self, trial_id: str, pack: int, group: str, bucket: str, lanes: int, lane: int, step_flops: int,
        *, began: float, before: int,
    ) -> None:  # fmt: skip
        self._spans += 1
        row = SpanRow(
            self._session.session, self._spans, trial_id, pack, group, bucket, lanes, lane, began, None, 0,
            step_flops, "",
        )  # fmt: skip
        self._open[trial_id] = Open(row, before)
        self._changed[row.span] = row

    def _leave(self, trial_id: str, why: str, *, at: float, steps: int | None = None) -> None:
        if trial_id not in self._open:
            return
        opened = self._open.pop(trial_id)
        steps = self._steps.get(opened.row.pack, 0) - opened.before if steps is None else steps
        row = replace(opened.row, ended=max(at, opened.row.began), steps=steps, outcome=str(why))
        self._changed[row.span] = row


def group_names(groups: "Sequence[Group]") -> list[str]:
    """Return what the timeline calls groups of devices: their platform and ids, such as "cpu 0-3" or "gpu 2"."""
    return [_group_name([(device.platform, device.id) for device in group]) for group in groups]


def _group_name(devices: Sequence[tuple[str, int]]) -> str:
    ids = [number for _, number in devices]
    return f"{devices[0][0]} {ids[0]}" + (f"-{ids[-1]}" if len(ids) > 1 else "")
