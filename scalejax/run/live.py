"""A run as it goes on, seen from another process."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scalejax.errors import NoResultsError
from scalejax.run.directory import LEDGER, LOCK
from scalejax.run.store import Store
from scalejax.run.watch import BEAT_SECONDS

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

    # First: it is there until the last has been written.
    holds_lock = (directory / LOCK).exists()
    try:
        with Store(directory / LEDGER, write=False) as store:
            results, heartbeat, last = store.results(), store.heartbeat(), store.last_ended(LAST)
    except NoResultsError:
        return waiting_facts(str(directory))
    # Between its preparations and its first heartbeat, and while it draws the figures, a run has none.
    over = not holds_lock if heartbeat is None else not heartbeat.alive
    return live_facts(str(directory), results, heartbeat, last=last, over=over)
