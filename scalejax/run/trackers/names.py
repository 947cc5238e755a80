"""The trackers by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scalejax.errors import SweepError
from scalejax.rules import nearest
from scalejax.run.trackers import tensorboard, trackio, wandb
from scalejax.run.trackers.tracker import Tracker

# Each takes a project, None for its default, and the directory of the run; it raises ImportError without its package.
TRACKERS: dict[str, Callable[[str | None, Path], Tracker]] = {
    "wandb": wandb.tracker,
    "trackio": trackio.tracker,
    "tensorboard": tensorboard.tracker,
}


def tracker_of(asked: Any, directory: Path) -> Tracker | None:
    """Return the tracker that a run tells what it does, ready to begin.

    Args:
        asked: "wandb", "trackio" or "tensorboard", with "=project" behind it if wanted; or an object with the three
            methods of `Tracker`; None: there is none.
        directory: of the run.

    Raises:
        SweepError: there is no such tracker, its package is missing, or it has no account to write to.
    """
    if asked is None:
        return None
    if not isinstance(asked, str):
        if isinstance(asked, Tracker):
            return asked
        expected = f"a name ({', '.join(TRACKERS)}) or an object with the methods init, log and finish"
        raise SweepError(f"tracker: expected {expected}, found one of type {type(asked).__name__}")
    name, _, project = asked.partition("=")
    if name not in TRACKERS:
        raise SweepError(f'tracker: "{name}" is unknown; {nearest(name, TRACKERS)}')
    try:
        return TRACKERS[name](project or None, directory)
    except ImportError as error:
        remedy = f'install it with pip install "scalejax[{name}]", or leave the tracker out'
        raise SweepError(f"tracker: {name} needs a package that is not installed ({error}); {remedy}") from error
