"""A run as it goes on, seen from another process."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import NoResultsError
from scalejax.run.directory import LEDGER, is_locked
from scalejax.run.store import Heartbeat, Store
from scalejax.run.watch import BEAT_SECONDS

if TYPE_CHECKING:
    import pandas as pd

LAST = 5  # trials that have ended


def states(directory: Path) -> Iterator[dict[str, Any]]:
    """Yield the state of a run every other second until it has ended, in whichever way; it may not have begun yet.

    Args:
        directory: of the run.

    Yields:
        Facts as of `report.live.live_facts`.

    Raises:
        SweepError: what is there is no ledger of ours, or damaged.
    """
    while True:
        facts = state(directory)
        yield facts
        if facts["over"]:
            return
        time.sleep(BEAT_SECONDS)


def state(directory: Path) -> dict[str, Any]:
    """Return the state of a run now; nothing is written."""
    from scalejax.report.live import live_facts, waiting_facts

    try:
        results, heartbeat, last = _read(directory)
        over = heartbeat is not None and not heartbeat.alive
        # Between its preparations and its first heartbeat, and while it draws the figures, a run has none, but a lock.
        if heartbeat is None and not is_locked(directory):
            (results, heartbeat, last), over = _read(directory), True  # once more: what it wrote last
    except NoResultsError:
        return waiting_facts(str(directory))
    return live_facts(str(directory), results, heartbeat, last=last, over=over)


def _read(directory: Path) -> "tuple[pd.DataFrame, Heartbeat | None, list[str]]":
    """Return the trial table, the heartbeat if there is one, and the trials that ended last."""
    with Store(directory / LEDGER, write=False) as store:
        return store.results(), store.heartbeat(), store.last_ended(LAST)
