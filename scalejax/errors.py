"""The ways in which scalejax stops: the caller's mistake, trouble while it works, and a signal."""

import signal
from collections.abc import Sequence

from scalejax.text import number_of


class SweepError(ValueError):
    """A mistake in what was asked for: one sentence that says what, where and what to do.

    Raised before anything is trained or written. The command line prints it and exits with code 2.
    """


class NoResultsError(SweepError):
    """A directory has no results, or none yet."""


class RunError(RuntimeError):
    """Trouble during a run, such as a full disk: one sentence that says what, where and what to do.

    What has been done is kept, and the same command resumes from there. The command line prints it and exits with
    code 1.
    """


class HostError(RunError):
    """Trouble of one host of several, of which the others cannot hear: all processes of the job have to end."""


class Interrupted(KeyboardInterrupt):
    """A run was told to stop by a signal.

    Attributes:
        signal: the signal. The command line exits with 128 plus its number.
        lost: of each trial whose latest steps could not be saved, the step at which it was last saved, 0 for none.
    """

    def __init__(self, number: int = signal.SIGINT, *, lost: Sequence[int] = ()):
        self.signal = number
        self.lost = tuple(sorted(lost))
        super().__init__(f"stopped by {signal.Signals(number).name}: {self.outcome}; the same call resumes the run")

    @property
    def outcome(self) -> str:
        """What became of the trials that were running, in words."""
        if not self.lost:
            return "what was running is saved"
        begun = [step for step in self.lost if step]
        parts: dict[str, int] = {}  # where they were last saved -> number of trials
        if begun:
            since = f"step {begun[0]:,}" if begun[0] == begun[-1] else f"steps {begun[0]:,} to {begun[-1]:,}"
            parts[since] = len(begun)
        if count := len(self.lost) - len(begun):
            parts["its beginning" if count == 1 else "their beginning"] = count
        (first, count), *others = parts.items()
        verb = "is" if count == 1 else "are"
        lost = f"{number_of(count, 'trial')} {verb} not saved since {first}"
        return " and ".join([lost, *(f"{count:,} since {since}" for since, count in others)])


class FitError(RuntimeError):
    """A law that cannot be fitted to these data at all: one sentence that says why and what to do.

    Softer trouble (a parameter that the data cannot identify, one at its bound) is in `Fit.status` instead.
    """
