"""Processes on host cores that fit the classical baselines, beside whatever else runs here."""

import contextlib
import importlib.metadata
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scalejax.classical.fit import Scores, inputs_folder, rows_file
from scalejax.classical.trial import OlderTrial
from scalejax.data import DataSet
from scalejax.data.host_shuffle import own_rows
from scalejax.data.own_examples import FeatureFits
from scalejax.errors import RunError, SweepError
from scalejax.status import Status

PACKAGE = "scikit-learn"
DEATH_SECONDS = 5.0  # after a process has closed its pipe
SHORT_OF_MEMORY = "its features need more memory than there is"


@dataclass(frozen=True)
class OlderFinished:
    """A trial that has ended; without `scores` if it failed, and `reason` says why in words."""

    trial: OlderTrial
    status: Status
    reason: str
    scores: Scores | None
    seconds: float
    package: str  # what computed it, such as "scikit-learn 1.7.2"


def package() -> str:
    """Return what would compute a trial here."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


class HostPool:
    """Fits trials, each in a process that is killed when its time is over. Use it as a context manager.

    The processes are started as commands and not forked: a fork of a process with the threads of JAX may hang, and a
    child of `multiprocessing` would run the user's script once more.

    Args:
        trials: that are to be fitted, in this order; but those that share the inputs that features make follow each
            other, so that few of these are on the disk at a time.
        data: in memory; the processes map a copy of it.
        folder: of that copy; it is made, and deleted at the end. If this process is killed it stays for its owner to
            delete.
        processes: at most so many at a time.
        started, finished: are told what happens, by one thread at a time.
        placed: is told in which process, from 0 on, a trial is fitted that has started.
        failed: is called if something else than a trial fails; `close` then raises it.
        within: is called first in each thread, to let settings of JAX hold there, which features run in.
    """

    def __init__(
        self,
        trials: Sequence[OlderTrial],
        data: DataSet,
        *,
        folder: Path,
        processes: int,
        started: Callable[[OlderTrial], None],
        finished: Callable[[OlderFinished], None],
        placed: Callable[[OlderTrial, int], None] = lambda *_: None,
        failed: Callable[[], None] = lambda: None,
        within: Callable[[], None] = lambda: None,
    ):
        places = {folder: place for place, folder in enumerate(dict.fromkeys(map(inputs_folder, trials)))}
        self._waiting = deque(sorted(trials, key=lambda trial: places[inputs_folder(trial)]))
        self._data, self._folder, self._within = data, folder, within
        self._made = MadeInputs(trials, FeatureFits(data))
        self._started, self._finished, self._failed, self._placed = started, finished, failed, placed
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._children: dict[int, Child] = {}
        self._error: BaseException | None = None
        self.dropped = 0
        numbers = range(min(processes, len(trials)))
        self._threads = [threading.Thread(target=self._work, args=(number,), daemon=True) for number in numbers]

    def __enter__(self) -> "HostPool":
        if not self._threads:
            return self
        try:
            self._write()
        except BaseException:
            self._clear()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._threads:
            return
        if error[0] is not None:
            self.stop()
        try:
            self.join()
        finally:
            self._clear()

    def _clear(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self) -> None:
        """Write what is fitted and measured on: of the pool, which may be large, only what some trial sees."""
        folder, most = self._folder, {}
        for trial in self._waiting:
            count, _ = most.get(trial.seed, (0, 0))
            most[trial.seed] = max(count, trial.train_examples), trial.subset_key
        pool = self._data.card.examples
        rows = {seed: own_rows(count, pool=pool, key=key) for seed, (count, key) in most.items()}
        seen = np.unique(np.concatenate(list(rows.values())))
        with _writing(folder):
            folder.mkdir(parents=True)
            for seed, own in rows.items():
                np.save(folder / rows_file(seed), np.searchsorted(seen, own))
            for split in ("train", "validation", "test"):
                for part in ("inputs", "targets"):
                    array = getattr(getattr(self._data, split), part)
                    np.save(folder / f"{split}_{part}.npy", array[seen] if split == "train" else array)

    def stop(self) -> None:
        """Drop what is running, and begin nothing more; returns at once."""
        self._stopping.set()
        for child in list(self._children.values()):
            child.kill()

    def join(self) -> bool:
        """Wait until all trials have ended; returns whether they have, which they have not if it was stopped.

        Raises:
            RunError, or what else made it impossible to go on.
        """
        for thread in self._threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # so that the main thread hears a signal
        if self._error is not None:
            raise self._error
        return not self._stopping.is_set()

    def _work(self, number: int) -> None:
        """Fit trial after trial in one process, and in another one where that has ended."""
        try:
            self._within()
            while not self._stopping.is_set():
                with self._lock:
                    if not self._waiting:
                        break
                    trial = self._waiting.popleft()
                    self._started(trial)
                    self._placed(trial, number)
                folder = self._folder
                if number not in self._children:
                    self._children[number] = Child(folder, number)
                    if self._stopping.is_set():  # `stop` may have come too early to see it
                        break
                try:
                    self._made.write(trial, folder)
                    finished = self._children[number].fit(trial)
                except (SweepError, MemoryError) as error:  # of the features
                    reason = SHORT_OF_MEMORY if isinstance(error, MemoryError) else str(error)
                    finished = OlderFinished(trial, Status.FAILED, reason, None, 0.0, package())
                self._made.ended(trial, folder)
                if self._children[number].ended:
                    self._children.pop(number).close()
                with self._lock:
                    if self._stopping.is_set():
                        self.dropped += 1
                    else:
                        self._finished(finished)
        except BaseException as error:
            self._error = self._error or error
            self.stop()
            self._failed()
        finally:
            if child := self._children.pop(number, None):
                child.close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"{folder}: cannot be written ({error.strerror or error})"
        remedy = "free some space or see that nothing else has its place, then run the same command again"
        raise RunError(f"{problem}; {remedy}: finished trials are kept") from error


class MadeInputs:
    """Inputs that features make, in files: written for the first trial that needs them, deleted after the last one.

    Args:
        trials: that will need them.
        fits: of the data.
    """

    def __init__(self, trials: Sequence[OlderTrial], fits: FeatureFits):
        self._needed = Counter(map(inputs_folder, trials))  # by trials that have not ended
        self._fits = fits
        self._lock = threading.Lock()  # also while they are made: others would wait for the same inputs or cores

    def write(self, trial: OlderTrial, folder: Path) -> None:
        """See that the inputs of a trial are there.

        Raises:
            SweepError: a step fails, or what the features make is not finite.
            RunError: the disk is full.
        """
        own, place = trial.own_examples, folder / inputs_folder(trial)
        with self._lock:
            if own is None or place.exists():
                return
            made = self._fits.transformed(trial.chain, own)
            with _writing(folder):
                place.mkdir()
                for split, inputs in made.items():
                    np.save(place / f"{split}_inputs.npy", inputs)

    def ended(self, trial: OlderTrial, folder: Path) -> None:
        """Take note of a trial that needs its inputs no more."""
        name = inputs_folder(trial)
        with self._lock:
            self._needed[name] -= 1
            if name and not self._needed[name]:
                shutil.rmtree(folder / name, ignore_errors=True)  # there is none where the features have failed


class Child:
    """One process that fits, in the given folder; see `scalejax.classical.child`."""

    def __init__(self, folder: Path, number: int):
        paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100  # "" is the folder here
        self._errors = folder / f"errors-{number}"
        # Not its standard output, on which Python itself may print before the first line of the child is run.
        receiving, answering = os.pipe()
        self._answers = os.fdopen(receiving, "rb")
        try:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "scalejax.classical.child", str(folder), str(answering)],
                    env={**os.environ, "PYTHONPATH": paths},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=(answering,),
                    start_new_session=True,  # Ctrl-C in a terminal is for this process alone
                )
        finally:
            os.close(answering)
        self._version: object = None
        self.ended = False

    def kill(self) -> None:
        """End the process."""
        self.ended = True
        self._process.kill()

    def close(self) -> None:
        """End the process and what leads to it."""
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._answers):
            with contextlib.suppress(OSError):  # what is still to be written to it
                if pipe is not None:
                    pipe.close()

    def fit(self, trial: OlderTrial) -> OlderFinished:
        """Return how a trial has ended; the process has too if it took too long or died."""
        self._version = self._version or self._receive()  # the time begins once it is there
        began, late = time.monotonic(), threading.Event()

        def give_up() -> None:
            late.set()
            self.kill()

        timer = threading.Timer(trial.time_limit, give_up)
        timer.start()
        try:
            answer = self._ask(trial)
        finally:
            timer.cancel()
            timer.join()
        reason = answer if isinstance(answer, str) else ""
        if answer is None:
            reason = f"took longer than time_limit = {trial.time_limit:g} s" if late.is_set() else self._death()
            self.kill()
        scores = answer if isinstance(answer, Scores) else None
        status = Status.FAILED if scores is None else Status.DONE
        if scores is not None and not np.isfinite([scores.train_loss, scores.validation_loss, scores.test_loss]).all():
            status, reason = Status.DIVERGED, "its loss is not finite"
        return OlderFinished(
            trial, status, reason, scores, time.monotonic() - began, f"{PACKAGE} {self._version or 'unknown'}"
        )

    def _ask(self, trial: OlderTrial) -> object:
        """Return what the process answers, None if it ends instead."""
        if self._process.stdin is None or self._version is None:
            return None
        try:
            pickle.dump(replace(trial, chain=()), self._process.stdin)  # a step of one's own may not be pickled
            self._process.stdin.flush()
        except OSError:  # it is gone
            return None
        return self._receive()

    def _receive(self) -> object:
        try:
            return pickle.load(self._answers)
        except (EOFError, OSError, pickle.UnpicklingError):
            return None

    def _death(self) -> str:
        """Say how the process has ended, which has closed its pipe."""
        killed = self.ended
        try:
            code = self._process.wait(timeout=DEATH_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process gave no answer that can be read; the next run tries again"
        last = self._errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        short = code == -signal.SIGKILL and not killed
        why = f" ({last[0]})" if last else ", probably because memory ran out" if short else ""
        return f"its process ended with exit code {code}{why}; the next run tries again"
