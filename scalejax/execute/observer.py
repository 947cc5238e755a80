"""What a run tells while it trains, and how it puts its trouble into words."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from scalejax.errors import RunError
from scalejax.execute.refusal import broke_off
from scalejax.execute.slot import Finished
from scalejax.planning.trial import Trial
from scalejax.text import number_of

Told = TypeVar("Told")


@dataclass(frozen=True)
class Progress:
    """What a call of a program has brought: the steps that each trial took in it.

    `back` are trials that a refusal has sent back, and the steps that they resume from.
    """

    steps: dict[Trial, int]
    back: dict[Trial, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observer:
    """Whom the scheduler tells; each is called by one thread at a time."""

    started: Callable[[Sequence[Trial]], None]
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


def left_over(count: int) -> RunError:
    """Return the trouble of a run in which trials wait for others that never came."""
    says = f"{number_of(count, 'trial')} did not end, and no other trial is left to wait for"
    return RunError(f"{says}; this is a mistake in scalejax; finished trials are kept, and the same command resumes")
