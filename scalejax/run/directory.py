"""The directory of a run: what lies where, which process may write in it, and what it was run on."""

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from scalejax.data import Held
from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.store import Store
from scalejax.spec import Sweep
from scalejax.spec.file import data_key, located, sweep_to_toml

if TYPE_CHECKING:
    from scalejax.planning.plan import Plan

LEDGER, ENVIRONMENT, SWEEP = "results.sqlite", "environment.json", "sweep.toml"
CHECKPOINTS, FIGURES, MODELS = "checkpoints", "figures", "models"
OLDER = ".older-inputs"  # while the classical baselines are fitted: what their processes read
STANDARDISED = "standard deviations of the targets"
LOCK = ".lock"  # an empty file; the lock on it ends with its process, in whichever way that ends
PATIENCE, AGAIN = 0.3, 0.05  # seconds for which a run asks for the lock, and between two tries: who watches may try it


def directory_of(sweep: Sweep, out: str | os.PathLike[str] | None) -> Path:
    """Return the directory of a sweep's run: `out`, or by default runs/<name>."""
    return default_directory(sweep.name) if out is None else Path(out)


def default_directory(name: str) -> Path:
    """Return where a sweep of a name runs unless another place is given."""
    return Path("runs") / name


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Make a directory if needed, and keep all other runs out of it.

    Raises:
        SweepError: another process runs in it, or nothing can be written there.
    """
    lock = filelock.FileLock(directory / LOCK)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE, poll_interval=AGAIN)
    except filelock.Timeout:
        owner = None
        with contextlib.suppress(SweepError), Store(directory / LEDGER, write=False) as store:  # if there is one yet
            owner = store.heartbeat()
        name = "another process"
        if owner is not None:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner.began))
            name = f"process {owner.pid} on {owner.host}, since {since},"
        problem = f"{name} runs in it; wait until it ends, stop it, or give another directory with --out"
        raise SweepError(f"{directory}: {problem}") from None
    except OSError as error:
        raise _unwritable(directory, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # While it is held: a process that waits for it sees that it is gone, and makes another.
            (directory / LOCK).unlink()
        lock.release()


def is_locked(directory: Path) -> bool:
    """Say whether a process runs in a directory; nothing is written there.

    That its file is there says nothing: it stays where a process was killed. Where the lock cannot be tried, it counts
    as held.
    """
    path = directory / LOCK
    if not path.exists():
        return False
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=False)
    except (filelock.Timeout, OSError):
        return True
    lock.release()
    return False


def prepare(directory: Path, plan: "Plan") -> None:
    """Write down the sweep as resolved and what it runs on.

    Raises:
        SweepError: the directory cannot be written.
    """
    try:
        write_atomically(directory / SWEEP, sweep_to_toml(located(plan.sweep)))
        write_atomically(directory / ENVIRONMENT, json.dumps(_environment(plan, directory), indent=2) + "\n")
    except OSError as error:
        raise _unwritable(directory, error) from error


def read_environment(directory: Path) -> object:
    """Return what an earlier process wrote down, or None."""
    try:
        return json.loads((directory / ENVIRONMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def standardises(directory: Path, sweep: Sweep | None) -> bool:
    """Say whether the targets of a run were standardised, as its sweep says, or else the file of that.

    The file is not made a sweep again: its data, or the user's code, may be elsewhere by now.
    """
    if sweep is not None:
        origin = sweep.data.origin
        return isinstance(origin, Held) and origin.options.standardise_target
    return data_key(directory / SWEEP, "standardise_target") is True


def unit_of(directory: Path, sweep: Sweep | None, metric: str) -> str:
    """Return the unit of the values of a metric where it is not that of the user's targets, else nothing.

    The rows do not know it. A directory tells it of a sweep file; of data that are objects only the process that has
    made the run knows.
    """
    return STANDARDISED if metric == "test_RMSE" and standardises(directory, sweep) else ""


def _unwritable(directory: Path, error: OSError) -> SweepError:
    return SweepError(f"{directory}: cannot be written ({error.strerror or error}); give another directory with --out")


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
        "data": plan.card.fingerprint,
        "modes": modes_to_keep(plan, read_environment(directory)),
    }
