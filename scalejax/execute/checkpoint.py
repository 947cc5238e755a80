"""Checkpoints: one a pack, written by Orbax in a thread of its own, and read by the next run.

    checkpoints/0003-2f1c9a/17/    the seventeenth of a pack of the third run in this directory

Of several hosts each writes the trials in its own lanes, in folders of its own (0003-001-2f1c9a-host1) and in a file
of NumPy's, because in Orbax all hosts write one thing together. All of them read all folders.

A folder is written by one pack alone and never again, so what an interrupted run has left stays whole until each of
its trials has ended or is in a newer checkpoint.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import shutil
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.errors import RunError
from scalejax.execute import CHECKPOINT_SECONDS, hosts
from scalejax.execute.refusal import short_of_memory, warn_of_no_checkpoint
from scalejax.execute.slot import Paused, step_of
from scalejax.execute.snapshot import Arrays, Homes, Manifest, Snapshot, UnreadableError, pack_up, unpack
from scalejax.files import write_atomically
from scalejax.planning.outline import CHECKPOINTS_KEPT
from scalejax.text import first_line, number_of

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

PART, PART_MANIFEST = "arrays.npz", "manifest.json"  # of a checkpoint of one host of several
SEAL = "sha256"  # the file in a checkpoint that vouches for the others
SPARE_BYTES = 1_000_000  # for the files around the arrays, and for the ledger
LONGEST_REASON = 120  # characters
_ORBAX = threading.Lock()  # held by the thread that uses it


@dataclass(eq=False)
class PackCheckpoints:
    """The checkpoints of one pack: `needed` are the trials that they are kept for, `steps` where these are in it."""

    folder: Path
    needed: set[str]
    open: bool  # its pack is running
    steps: dict[str, int] = field(default_factory=dict)
    saved: float = field(default_factory=time.monotonic)  # when the latest was begun
    number: int = 0
    writing: "Future[None] | None" = None
    checkpointer: "ocp.training.Checkpointer | None" = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being written."""
        return self.writing is None or self.writing.done()


class Checkpoints:
    """All checkpoints in the directory of a run. Only one process may use it at a time.

    Args:
        folder: made when the first one is written.
        seconds: between two checkpoints of a pack.
    """

    def __init__(self, folder: Path, *, seconds: float = CHECKPOINT_SECONDS):
        self._folder = folder
        self._seconds = seconds
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._packs = [PackCheckpoints(path, set(), open=False) for path in _subfolders(folder)]
        last = max((_number(pack.folder.name.partition("-")[0]) for pack in self._packs), default=0)
        self._run = hosts.broadcast(lambda: 1 + last)
        self._numbers = itertools.count(1)
        self._trouble: BaseException | None = None
        self._finished = False
        self.steps: dict[str, int] = {}  # by trial, as far as it is in a checkpoint that can be read

    def load(self, homes: Homes) -> dict[str, Paused]:
        """Return the trials that an earlier run has left, each as far as it has come, by id.

        Args:
            homes: the trials that are wanted.

        Warns:
            UserWarning: a checkpoint is damaged; the one before it is used, or its trials begin again.
        """
        furthest: dict[str, Paused] = {}
        for pack in self._packs:
            trials = _latest(pack.folder, homes)
            # A damaged one is kept until all trials have ended: what cannot be read today may be read tomorrow.
            pack.steps = {paused.trial.trial_id: paused.slot.step for paused in trials or ()}
            pack.needed = set(homes) if trials is None else set(pack.steps)
            for paused in trials or ():
                name = paused.trial.trial_id
                furthest[name] = max(furthest.get(name, paused), paused, key=step_of)
        if not hosts.is_single():
            furthest = _read_alike(furthest, homes)
        if not hosts.is_primary():
            self._packs = []  # the primary host removes what earlier runs have left
        self._clear()
        self.steps = {name: paused.slot.step for name, paused in furthest.items()}
        return furthest

    def latest(self, pack: PackCheckpoints, homes: Homes) -> dict[str, Paused]:
        """Return the wanted trials as a pack of this run has last saved them, by id; waits for what is being written.

        Warns:
            UserWarning: a checkpoint is damaged.
        """
        if pack.writing:
            wait([pack.writing])
        return {paused.trial.trial_id: paused for paused in _latest(pack.folder, homes) or ()}

    def open(self, name: str) -> PackCheckpoints:
        """Return the place for the checkpoints of a pack that begins; `name` tells its program."""
        with self._lock:
            of_host = "" if hosts.is_primary() else f"-host{hosts.index()}"
            folder = self._folder / f"{self._run:04}-{next(self._numbers):03}-{name}{of_host}"
            self._packs.append(PackCheckpoints(folder, set(), open=True))
            return self._packs[-1]

    def due(self, pack: PackCheckpoints) -> bool:
        """Say whether it is time for a checkpoint; never while the one before is still being written.

        The time for the next one counts from here, whether or not this one can be made.

        Raises:
            RunError: an earlier one could not be written.
        """
        self._check()
        due = pack.idle and time.monotonic() - pack.saved >= self._seconds
        if due:
            pack.saved = time.monotonic()
        return due

    def save(self, pack: PackCheckpoints, snapshot: Snapshot) -> None:
        """Have a snapshot written; returns at once. After `finish` nothing is written any more."""
        with self._lock:
            if snapshot.steps and not self._finished:
                pack.writing = self._writer.submit(self._write, pack, snapshot)

    def ended(self, trial_id: str) -> None:
        """Take note that a trial needs no checkpoint any more."""
        with self._lock:
            for pack in self._packs:
                pack.needed.discard(trial_id)
        self._clear()

    def close(self, pack: PackCheckpoints) -> None:
        """Take note that a pack has ended; its checkpoints are removed as soon as no trial needs them."""
        pack.open = False
        self._clear()

    def finish(self, *, complete: bool, seconds: float | None = None) -> None:
        """Wait for what is being written. `steps` tells what was written in time.

        Args:
            complete: whether all trials have ended; then nothing is left on the disk.
            seconds: to wait at most.

        Raises:
            RunError: a checkpoint could not be written.
        """
        with self._lock:
            self._finished = True
            writing = [pack.writing for pack in self._packs if pack.writing]
        late = wait(writing, timeout=seconds).not_done
        self._writer.shutdown(wait=not late, cancel_futures=True)
        if complete:
            hosts.all_gather(None)  # a barrier: no host writes any more
            if hosts.is_primary():
                shutil.rmtree(self._folder, ignore_errors=True)
            return
        self._check()

    def _write(self, pack: PackCheckpoints, snapshot: Snapshot) -> None:
        try:
            arrays, manifest = pack_up(snapshot)
            # A write that fails half way is loud and leaves a mess, so there must be room beforehand.
            self._folder.mkdir(parents=True, exist_ok=True)
            size, free = sum(array.nbytes for array in arrays.values()), shutil.disk_usage(self._folder).free
            if free < size + SPARE_BYTES:
                raise OSError(f"it takes {size / 1e6:.1f} MB, and the disk has {free / 1e6:.1f} MB left")
            pack.number += 1
            _store(pack, arrays, manifest)
            seal(pack.folder / str(pack.number))
        except Exception as error:  # whatever Orbax and the file system raise
            if short_of_memory(error):
                warn_of_no_checkpoint()
            else:
                self._trouble = error
            return
        with self._lock:
            # A pack also saves what other workers have taken since, as it was then: theirs may have come further.
            self.steps |= {name: max(step, self.steps.get(name, 0)) for name, step in snapshot.steps.items()}
            for other in self._packs:
                other.needed -= {name for name, step in snapshot.steps.items() if step >= other.steps.get(name, 0)}
            pack.needed, pack.steps = set(snapshot.steps), snapshot.steps
        self._clear()

    def _check(self) -> None:
        if self._trouble is not None:
            says = f"a checkpoint cannot be written ({_reason(self._trouble)})"
            remedy = "see that the disk has room, then run the same command again: finished trials are kept"
            raise RunError(f"{self._folder}: {says}; {remedy}") from self._trouble

    def _clear(self) -> None:
        """Remove the folders that no trial needs."""
        with self._lock:
            done = [pack for pack in self._packs if not (pack.open or pack.needed) and pack.idle]
            self._packs = [pack for pack in self._packs if pack not in done]
        for pack in done:
            shutil.rmtree(pack.folder, ignore_errors=True)


def _store(pack: PackCheckpoints, arrays: Arrays, manifest: Manifest) -> None:
    """Write the next checkpoint of a pack, and remove those that it makes needless."""
    if not hosts.is_single():
        _store_part(pack.folder / str(pack.number), arrays, manifest)
        for old in range(1, pack.number - CHECKPOINTS_KEPT + 1):
            shutil.rmtree(pack.folder / str(old), ignore_errors=True)
        return
    with orbax() as ocp:
        kept = ocp.training.preservation_policies.LatestN(CHECKPOINTS_KEPT)
        checkpointer = pack.checkpointer or ocp.training.Checkpointer(
            str(pack.folder.absolute()), preservation_policy=kept
        )
        pack.checkpointer = checkpointer
        checkpointer.save(pack.number, arrays, custom_metadata=manifest, force=True)


def _store_part(path: Path, arrays: Arrays, manifest: Manifest) -> None:
    """Write what this host of several saves, when it has it; in Orbax all of them would have to save the same."""
    path.mkdir(parents=True)
    kinds = {name: array.dtype.name for name, array in arrays.items()}
    plain: Any = {
        name: array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")  # such as bfloat16
        for name, array in arrays.items()
    }
    np.savez(path / PART, **plain)
    write_atomically(path / PART_MANIFEST, json.dumps({"kinds": kinds, "manifest": manifest}))


def _read_part(path: Path) -> tuple[Arrays, Manifest]:
    said = json.loads((path / PART_MANIFEST).read_text(encoding="utf-8"))
    with np.load(path / PART) as file:
        return {name: file[name].view(np.dtype(kind)) for name, kind in said["kinds"].items()}, said["manifest"]


def _read_alike(furthest: dict[str, Paused], homes: Homes) -> dict[str, Paused]:
    """Return the trials that every host has read at the same step, in one order; once all have read.

    Warns:
        UserWarning: there are others.
    """
    steps = {name: step_of(paused) for name, paused in furthest.items()}
    steps_of_hosts = hosts.all_gather(steps)
    known = set().union(*steps_of_hosts)
    if differing := {name for name in known if len({each.get(name) for each in steps_of_hosts}) > 1}:
        says = "Not all hosts read the same of the checkpoints, so {} again; see that the directory is one for all."
        one = len(differing) == 1
        warnings.warn(says.format(f"{number_of(len(differing), 'trial')} {'begins' if one else 'begin'}"), stacklevel=3)
    return {name: furthest[name] for name in homes if name in known - differing}


def _latest(folder: Path, homes: Homes) -> list[Paused] | None:
    """Return the wanted trials of the newest checkpoint that can be read, None if there are some but none can."""
    paths = sorted(_subfolders(folder), key=lambda path: _number(path.name), reverse=True)
    paths = [path for path in paths if _number(path.name) and (path / SEAL).is_file()]  # others are half written
    for path, before in zip(paths, [*paths, None][1:], strict=True):
        try:
            return unpack(*_read(path), homes=homes)
        except Exception as error:  # whatever Orbax raises at damaged files
            remedy = f"{before} is used instead" if before else "its trials begin again"
            warnings.warn(f"The checkpoint {path} cannot be read ({_reason(error)}); {remedy}.", stacklevel=2)
    return None if paths else []


def seal(path: Path) -> None:
    """Write a digest of all files of a checkpoint beside them; without it the checkpoint counts as half written."""
    write_atomically(path / SEAL, _digest(path))


def intact(path: Path) -> bool:
    """Say whether a sealed folder holds what was sealed."""
    return (path / SEAL).read_bytes() == _digest(path).encode()


def _digest(path: Path) -> str:
    """Return a SHA-256 of the names and contents of all files in a folder, the seal apart."""
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file() and each.stem != SEAL):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(path).as_posix()} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def _read(path: Path) -> tuple[Arrays, Manifest]:
    if not intact(path):  # looked at first: damaged files are not parsed
        raise UnreadableError("its checksum does not match")
    if (path / PART_MANIFEST).exists():
        return _read_part(path)
    with orbax() as ocp:
        manifest: Any = ocp.metadata(str(path.absolute())).custom_metadata
        arrays: Any = ocp.load(str(path.absolute()))
    if not isinstance(arrays, dict) or not all(isinstance(each, np.ndarray) for each in arrays.values()):
        raise UnreadableError("it holds something else")
    return arrays, manifest


def _subfolders(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir()) if folder.is_dir() else []


def _number(name: str) -> int:
    return int(name) if name.isascii() and name.isdigit() else 0


@contextlib.contextmanager
def orbax() -> Iterator[Any]:
    """Give Orbax to one thread at a time, and keep it from printing the errors that it also raises.

    It counts its operations in one number for the whole process: a second thread that saves or loads in the meantime
    changes the number under the first, which then fails or writes nothing.
    """
    from orbax.checkpoint import v1 as ocp

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_not_of_orbax)  # added once, however often this is called
    with _ORBAX, _of_this_host(ocp):
        yield ocp


def _of_this_host(ocp: Any) -> contextlib.AbstractContextManager[Any]:
    """Have Orbax write and read for this process alone, without waiting for the others of the job."""
    if hosts.is_single():
        return contextlib.nullcontext()
    context, number = ocp.Context(), hosts.index()
    context.multiprocessing.primary_host = number
    context.multiprocessing.active_processes = {number}
    context.multiprocessing.barrier_sync_key_prefix = f"host{number}"
    return context


def _not_of_orbax(record: logging.LogRecord) -> bool:
    frames = traceback.extract_tb(record.exc_info[2]) if record.exc_info else []
    return not any("orbax" in Path(each).parts for each in (record.pathname, *(frame.filename for frame in frames)))


def _reason(error: BaseException) -> str:
    """Return what an error says, short: Orbax and its storage append how they were configured."""
    line = first_line(error).split(" [")[0]
    return line if len(line) <= LONGEST_REASON else f"... {line[-LONGEST_REASON:]}"
