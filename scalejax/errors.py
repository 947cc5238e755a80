"""The two ways in which scalejax refuses: the caller's mistake, and trouble on the way."""


class SweepError(ValueError):
    """A mistake in what was asked for: one sentence that says what, where and what to do.

    Raised before anything is trained or written. The command line prints it and exits with code 2.
    """
