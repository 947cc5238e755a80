"""The directory of a run: what lies where, who may write in it, and what it was run on."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from scalejax.errors import SweepError
from scalejax.run.store import Heartbeat, Store
from scalejax.spec.file import sweep_to_toml

if TYPE_CHECKING:
    from scalejax.planning.plan import Plan

LEDGER, ENVIRONMENT, SWEEP, CHECKPOINTS, FIGURES = (
    "results.sqlite",
    "environment.json",
    "sweep.toml",
    "checkpoints",
    "figures",
)
LOCK = ".lock"  # an empty file; the lock on it ends with its process, in whichever way that ends


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory if needed, and keep all other runs out of it.

    Raises:
        SweepError: another process runs in it, or nothing can be written there.
    """
    lock = filelock.FileLock(directory / LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except filelock.Timeout:
        owner, who = _owner(directory), "another process"
        if owner is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.began))
            who = f"process {owner.pid} on {owner.host}, since {since},"
        says = f"{who} runs in it; wait until it ends, stop it, or give another directory with --out"
        raise SweepError(f"{directory}: {says}") from None
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (
                directory / LOCK
            ).unlink()  # while it is held: whoever waits for it sees that it is gone, and makes another
        lock.release()


def prepare(directory: Path, plan: "Plan") -> None:
    """Write down the sweep as resolved and what it runs on.

    Raises:
        SweepError: the directory cannot be written.
    """
    try:
        _write(directory / SWEEP, sweep_to_toml(plan.sweep))
        _write(directory / ENVIRONMENT, json.dumps(_environment(plan, directory), indent=2) + "\n")
    except OSError as error:
        raise _unwritable(directory, error) from error


def read_environment(directory: Path) -> object:
    """Return what an earlier process wrote down, or None."""
    if not (directory / ENVIRONMENT).is_file():  # a pipe would be waited for
        return None
    try:
        return json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _owner(directory: Path) -> Heartbeat | None:
    """Return who writes the ledger; None if that cannot be known, for instance because there is none yet."""
    try:
        with Store(directory / LEDGER, write=False) as store:
            return store.heartbeat()
    except SweepError:
        return None


def _write(path: Path, text: str) -> None:
    """Replace a file whole: a reader never sees half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # a pipe would be waited for
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _unwritable(directory: Path, error: OSError) -> SweepError:
    reason = error.strerror or error
    return SweepError(f"{directory}: cannot be written ({reason}); give another directory with --out")


def _environment(plan: "Plan", directory: Path) -> dict[str, object]:
    from scalejax.execute.devices import device_kind, versions
    from scalejax.execute.modes import modes_to_keep

    return {
        "device": device_kind(),
        "devices": plan.devices,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "process": os.getpid(),
        "host": platform.node(),
        "versions": dict(versions()),
        "modes": modes_to_keep(plan, read_environment(directory)),
    }
