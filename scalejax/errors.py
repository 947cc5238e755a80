"""The two ways in which scalejax refuses: the caller's mistake, and trouble on the way."""


class SweepError(ValueError):
    """A mistake in what was asked for: one sentence that says what, where and what to do.

    Raised before anything is trained or written. The command line prints it and exits with code 2.
    """


class FitError(RuntimeError):
    """A law that cannot be fitted to these data at all: one sentence that says why and what to do.

    Softer trouble (a parameter that the data cannot identify, one at its bound) is told by `Fit.status` instead.
    """
