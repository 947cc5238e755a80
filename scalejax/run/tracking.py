"""Hands what a run does to a tracker, so that nothing of it stops or slows the training."""

import queue
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import SweepError
from scalejax.run.trackers.tracker import Tracker
from scalejax.text import duration, first_line

if TYPE_CHECKING:
    import pandas as pd

FINISH_SECONDS = 120.0  # for a tracker to write what is left, once the run has ended

Outcome = tuple["Mapping[str, pd.DataFrame]", Sequence[Path]]
Row = Mapping[str, Any]


class Tracking:
    """Calls a tracker from a thread of its own. Use it as a context manager around a run.

    The first thing that the tracker raises is told in a sentence, and it is called no more.

    Args:
        tracker: None: nothing is tracked.
        facts: with which it begins.
        outcome: makes the tables and the figures with which it ends.
    """

    def __init__(self, tracker: Tracker | None, facts: Callable[[], Mapping[str, Any]], outcome: Callable[[], Outcome]):
        self._tracker, self._facts, self._outcome = tracker, facts, outcome
        self._waiting: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._lock = threading.Lock()
        self._trouble = ""
        self._tell: Callable[[str], None] | None = None

    def __enter__(self) -> "Tracking":
        if self._tracker is not None:
            self._waiting.put(lambda tracker: tracker.init(self._facts()))
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._tracker is None:
            return
        self._waiting.put(self._finish)
        self._waiting.put(None)
        self._thread.join(timeout=FINISH_SECONDS)
        if self._thread.is_alive():
            self._failed(f"it did not end within {duration(FINISH_SECONDS)} of the run")
        with self._lock:
            if self._trouble:
                warnings.warn(self._trouble, stacklevel=2)

    def listen(self, tell: Callable[[str], None]) -> None:
        """Have trouble told at once by `tell`; otherwise it is a warning at the end."""
        with self._lock:
            self._tell = tell
        self._failed("")

    def log(self, make: Callable[[], tuple[Row, Sequence[Row]]]) -> None:
        """Have a trial logged that has ended; its row and its measurements are made in the tracker's thread."""
        if self._tracker is not None:
            self._waiting.put(lambda tracker: tracker.log(*make()))

    def _finish(self, tracker: Tracker) -> None:
        try:
            tables, figures = self._outcome()
        except SweepError:  # the run has come to nothing
            tables, figures = {}, ()
        tracker.finish(tables, figures)

    def _work(self) -> None:
        assert self._tracker is not None
        while (call := self._waiting.get()) is not None:
            try:
                call(self._tracker)
            except BaseException as error:  # whatever a network, a disk or the user's own object raises, Ctrl-C too
                self._failed(first_line(error))
                return

    def _failed(self, why: str) -> None:
        """Tell of trouble once: now, if anyone listens, or at the end."""
        with self._lock:
            if why:
                name = type(self._tracker).__name__
                self._trouble = f"the tracker {name} failed ({why}): nothing more is tracked, and the run goes on"
            if self._trouble and self._tell:
                self._tell(self._trouble)
                self._trouble = ""
