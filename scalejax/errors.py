"""The ways in which scalejax stops: the caller's mistake, trouble on the way, and being told to."""

import signal


class SweepError(ValueError):
    """A mistake in what was asked for: one sentence that says what, where and what to do.

    Raised before anything is trained or written. The command line prints it and exits with code 2.
    """


class RunError(RuntimeError):
    """Trouble on the way, such as a full disk: one sentence that says what, where and what to do.

    What has been done is kept, and the same command goes on from there. The command line prints it and exits with
    code 1.
    """


class Interrupted(KeyboardInterrupt):
    """A run was told to stop by a signal, and has saved what was on its way.

    Attributes:
        signal: the signal. The command line exits with 128 plus its number.
    """

    def __init__(self, number: int = signal.SIGINT):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


def said(error: BaseException) -> str:
    """Return what an error says in one line: the first, or the last where a whole traceback was wrapped into it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "Traceback" in lines[0] else lines[0]


class FitError(RuntimeError):
    """A law that cannot be fitted to these data at all: one sentence that says why and what to do.

    Softer trouble (a parameter that the data cannot identify, one at its bound) is told by `Fit.status` instead.
    """
