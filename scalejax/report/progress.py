"""Live progress of a run: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import threading
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from scalejax.text import duration, number_of, quantity

PLAIN_INTERVAL = 10.0  # seconds between lines where there is no terminal
WARM_UP_SHARE = 0.02  # of the work; before it an estimate of the time left would be a guess


class ProgressDisplay:
    """Trials done, steps a second, useful FLOP/s and the time left. Use it as a context manager.

    Args:
        trials: how many are to be trained.
        work: total cost in any unit that is proportional to time.
        stream: where to write; standard error by default, so that standard output stays clean.
    """

    def __init__(self, *, trials: int, work: float, stream: TextIO | None = None):
        # In a notebook rich would show a cell's output whatever the stream is: also where progress is not wanted.
        self._console = Console(file=stream or sys.stderr, force_jupyter=False if stream else None)
        self._trials, self._work = trials, work
        self._ended: dict[str, int] = {}
        self._done = self._flops = 0.0
        self._steps = 0
        self._began = self._spoke = time.monotonic()
        self._lock = threading.Lock()  # networks and classical baselines report from different threads
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task("compiling", total=work)

    def __enter__(self) -> "ProgressDisplay":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        """Print a sentence above the progress."""
        self._console.print(sentence, soft_wrap=True, highlight=False, markup=False)

    def expect(self, *, trials: int, work: float) -> None:
        """Add trials that are to be trained after all, and their work."""
        self._trials += trials
        self._work += work
        if self._bar:
            self._bar.update(self._task, total=self._work)

    def advance(self, *, steps: int, flops: float, work: float) -> None:
        """Add what was done: training steps of all trials, their useful FLOPs, and their share of the work."""
        with self._lock:
            self._steps += steps
            self._flops += flops
            self._done += work
            self._show()

    def end_trial(self, status: str, *, spared: float) -> None:
        """Count a trial that ended with `status`, and the work that it was spared by ending early."""
        with self._lock:
            self._ended[status] = self._ended.get(status, 0) + 1
            self._done += spared
            self._show(last=sum(self._ended.values()) == self._trials)

    @property
    def eta_seconds(self) -> float | None:
        """The time left, by the pace so far; None while it would be a guess."""
        share = min(self._done / self._work, 1.0) if self._work else 1.0
        return (time.monotonic() - self._began) * (1 - share) / share if share > WARM_UP_SHARE else None

    def line(self) -> str:
        """Return the state in one line."""
        elapsed = max(time.monotonic() - self._began, 1e-9)
        bad = [f"{count} {status}" for status, count in sorted(self._ended.items()) if status != "done"]
        eta = self.eta_seconds
        parts = [
            f"{sum(self._ended.values()):,}/{number_of(self._trials, 'trial')}",
            *bad,
            f"{self._steps / elapsed:,.0f} steps/s",
            quantity(self._flops / elapsed, "FLOP/s"),
            f"{duration(elapsed)} elapsed",
            f"ETA {'...' if eta is None else duration(eta)}",
        ]
        return ", ".join(parts)

    def _show(self, *, last: bool = False) -> None:
        if self._bar:
            self._bar.update(self._task, completed=self._done, description=self.line())
        elif last or time.monotonic() - self._spoke >= PLAIN_INTERVAL:
            self._spoke = time.monotonic()
            self._console.print(self.line(), soft_wrap=True, highlight=False)
