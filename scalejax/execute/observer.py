"""What a run tells while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scalejax.errors import RunError
from scalejax.execute.refusal import broke_off
from scalejax.execute.slot import Finished
from scalejax.planning.trial import Trial

Told = TypeVar("Told")


@dataclass(frozen=True)
class Progress:
    """The steps that each trial took in a call; `back` are trials that a refusal has sent back, and to which steps.

    Both are by id.
    """

    steps: Mapping[str, int]
    back: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observer:
    """What the scheduler calls when something happens; one thread at a time."""

    started: Callable[[Sequence[Trial]], None]
    finished: Callable[[Finished], None]
    progressed: Callable[[Progress], None]


SILENT = Observer(started=lambda _: None, finished=lambda _: None, progressed=lambda _: None)


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


def deferred(observer: Observer, put_off: Callable[[RunError], None]) -> Observer:
    """Return an observer whose trouble is put off: other hosts go on until they hear of it, and this one with them."""
    each = observer.started, observer.finished, observer.progressed
    return Observer(*(_deferred(tell, put_off) for tell in each))


def _deferred(tell: Callable[[Any], None], put_off: Callable[[RunError], None]) -> Callable[[Any], None]:
    def told(what: Any) -> None:
        try:
            tell(what)
        except RunError as error:
            put_off(error)

    return told
