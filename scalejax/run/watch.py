"""What a run does beside the training: it counts the work, writes heartbeats, and listens for signals."""

import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from scalejax.errors import RunError
from scalejax.run.store import Heartbeat, Store
from scalejax.run.timeline import Recorder

if TYPE_CHECKING:
    from scalejax.execute.observer import Progress
    from scalejax.execute.slot import Paused
    from scalejax.planning.plan import Plan
    from scalejax.planning.trial import Trial
    from scalejax.report.progress import ProgressDisplay

BEAT_SECONDS = 2.0  # between two heartbeats


class Accountant:
    """Counts the work that is done and the work that is left; each step of each trial is its share.

    Args:
        plan: of the sweep.
        waiting: the trials that are to be trained.
        begun: those of them that resume where an earlier run left them, by id.

    Attributes:
        total: work that is left at the beginning, in the cost model's seconds of one device.
        share: of the work of all trials of the plan.
    """

    def __init__(self, plan: "Plan", waiting: Sequence["Trial"], *, begun: Mapping[str, "Paused"]):
        from scalejax.train.cost import step_flops

        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._horizons = {trial.trial_id: trial.settings.steps for trial in waiting}
        self._left = dict(self._horizons)  # steps of each trial
        self._expected = set(self._left)
        for trial_id, paused in begun.items():
            self._left[trial_id] -= paused.slot.step
        self._cost: dict[str, tuple[float, int]] = {}  # work and useful FLOPs of one step
        whole = 0.0  # work of all trials
        for bucket in plan.packing.buckets:
            for trial in bucket.trials:
                flops = step_flops(trial.architecture, trial.recipe)
                self._cost[trial.trial_id] = (bucket.seconds / bucket.lanes, flops)
                whole += bucket.seconds / bucket.lanes * trial.settings.steps
        self.total = sum(self._cost[trial][0] * steps for trial, steps in self._left.items())
        self.share = self.total / whole if whole else 1.0

    def begin(self, trials: Sequence["Trial"], display: "ProgressDisplay") -> None:
        """Count all steps of trials that start, or start again, as left; those that halving recalls are new work."""
        with self._lock:
            horizons = {trial.trial_id: trial.settings.steps for trial in trials}
            self._horizons |= horizons
            self._left |= horizons
            recalled = [trial for trial in trials if trial.trial_id not in self._expected]
            self._expected.update(trial.trial_id for trial in recalled)
            work = sum(self._cost[trial.trial_id][0] * trial.settings.steps for trial in recalled)
        if recalled:
            display.expect(trials=len(recalled), work=work)

    def show(self, progress: "Progress", display: "ProgressDisplay") -> None:
        """Report a call of a program."""
        work = flops = 0.0
        with self._lock:
            self._running |= progress.steps.keys() | progress.back.keys()
            for name, steps in progress.steps.items():
                seconds, each = self._cost[name]
                self._left[name] -= steps
                work += seconds * steps
                flops += each * steps
            for name, step in progress.back.items():
                left = self._horizons[name] - step
                work -= self._cost[name][0] * (left - self._left[name])
                self._left[name] = left
        display.advance(steps=sum(progress.steps.values()), flops=flops, work=work)

    def spared(self, trial: "Trial") -> float:
        """Return the work of the steps that a trial that has ended did not take."""
        with self._lock:
            self._running.discard(trial.trial_id)
            return self._cost[trial.trial_id][0] * self._left.pop(trial.trial_id)

    @property
    def steps_taken(self) -> dict[str, int]:
        """The steps that each running trial has taken, by id."""
        with self._lock:
            return {name: self._horizons[name] - self._left[name] for name in self._running}


class Pulse:
    """Writes a heartbeat into the ledger every other second, from a thread of its own. Use it as a context manager.

    Args:
        store: open for writing.
        accountant: has the steps of each trial.
        display: has the time left.
        recorder: has how it runs.
    """

    def __init__(self, store: Store, *, accountant: Accountant, display: "ProgressDisplay", recorder: Recorder):
        self._store, self._accountant, self._display, self._recorder = store, accountant, display, recorder
        self._began = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_the_end, daemon=True)

    def __enter__(self) -> "Pulse":
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._recorder.close()
        with suppress(RunError):
            self._beat()  # so that what was interrupted shows how far it has come

    def _beat_until_the_end(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(RunError):  # a result that is written meets the same trouble, and raises it
                self._beat()

    def _beat(self) -> None:
        recorded = self._recorder.take()  # before the time of the beat, with which spans end if this process is killed
        heartbeat = Heartbeat(os.getpid(), platform.node(), self._began, time.time(), self._display.eta_seconds)
        self._store.beat(heartbeat, self._accountant.steps_taken, recorded)


class Preparation:
    """Does in a thread during training what its end needs: imports for the figure, traced programs for the ledger.

    Args:
        plan: of the sweep.
    """

    def __init__(self, plan: "Plan"):
        from scalejax.train.numerics import current

        self._plan, self._numerics = plan, current()
        self._thread = threading.Thread(target=self._prepare, name="preparation", daemon=True)

    def begin(self) -> None:
        """Begin, unless it has, as soon as the programs that are asked for are traced; returns at once."""
        if self._thread.ident is None:
            self._thread.start()

    def _prepare(self) -> None:
        from scalejax.train.numerics import hold
        from scalejax.train.traced import traced_evaluation, traced_initialisation
        from scalejax.train.tracing import tracing

        hold(self._numerics)
        with tracing():  # what the training waits for comes first
            pass
        # Whatever goes wrong here goes wrong once more where it is needed, and is told there.
        with suppress(Exception):
            import scalejax.analysis
            import scalejax.report.figures.learning_curves  # noqa: F401
        with suppress(Exception):
            for size, batch in dict.fromkeys((each.architecture, each.recipe.batch_size) for each in self._plan.trials):
                traced_initialisation(size)
                traced_evaluation(size, batch)


class Interruption:
    """Listens for SIGINT and SIGTERM: the first stops the run cleanly, the second ends the process at once.

    Use it as a context manager. Only the main thread can hear signals; in any other this does nothing.

    Args:
        stop: asks the run to stop, for a signal; returns at once.

    Attributes:
        signal: the signal that was heard, None so far.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, stop: Callable[[int], None]):
        self._stop = stop
        self._before: dict[int, object] = {}
        self.signal: int | None = None

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # None is of a handler that is not Python's, such as that of `jax.distributed`: there is no way back to it.
            back: Any = signal.SIG_DFL if handler is None else handler
            signal.signal(number, back)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = number
        # Not print: it may be what the signal has interrupted.
        os.write(2, b"\nscalejax: stopping and saving what is running; a second signal ends it at once, unsaved\n")
        self._stop(number)
