"""What a run tells while it trains, and how it puts its trouble into words."""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import jax

from scalejax.engine.slot import Finished
from scalejax.engine.trial import PlannedTrial
from scalejax.errors import RunError

Told = TypeVar("Told")


@dataclass(frozen=True)
class Progress:
    """What a call of a program has brought: the steps that each trial took in it."""

    steps: dict[PlannedTrial, int]


@dataclass(frozen=True)
class Observer:
    """Whom the scheduler tells; each is called by one thread at a time."""

    started: Callable[[Sequence[PlannedTrial]], None]
    finished: Callable[[Finished], None]
    progressed: Callable[[Progress], None]


def guarded(observer: Observer) -> Observer:
    """Return an observer whose mistakes are trouble of the run, a `RunError`: the trials have done nothing wrong."""
    return Observer(_guarded(observer.started), _guarded(observer.finished), _guarded(observer.progressed))


def _guarded(tell: Callable[[Told], None]) -> Callable[[Told], None]:
    def told(what: Told) -> None:
        try:
            tell(what)
        except RunError:
            raise
        except Exception as error:
            raise broke_off(error) from error

    return told


def reason_of(error: BaseException) -> str:
    """Return what went wrong in one line, and in which line of the code."""
    said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, jax.errors.JaxRuntimeError | MemoryError):
        return said  # of the device; the line says nothing
    frames = traceback.extract_tb(error.__traceback__)
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said


def broke_off(error: BaseException) -> RunError:
    """Return the trouble of a run whose training broke off."""
    says = f"training broke off: {reason_of(error)}; finished trials are kept, and the same command goes on from there"
    trouble = RunError(says)
    trouble.__cause__ = error
    return trouble


def left_over(count: int) -> RunError:
    """Return the trouble of a run in which trials wait for others that never came."""
    says = f"{count} trials have not ended, though no other trial is left that they could wait for"
    return RunError(f"{says}; this is a mistake in scalejax; finished trials are kept, and the same command goes on")
