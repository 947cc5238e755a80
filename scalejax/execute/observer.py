"""What a run tells while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from scalejax.errors import RunError
from scalejax.execute.refusal import broke_off
from scalejax.execute.slot import Finished
from scalejax.planning.trial import Trial

Event = TypeVar("Event")


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


def _guarded(call: Callable[[Event], None]) -> Callable[[Event], None]:
    def guarded_call(event: Event) -> None:
        try:
            call(event)
        except RunError:
            raise
        except Exception as error:
            raise broke_off(error) from error

    return guarded_call


def deferred(observer: Observer, defer: Callable[[RunError], None]) -> Observer:
    """Return an observer whose `RunError` goes to `defer`: hosts have to launch the same calls until all stop."""
    each = observer.started, observer.finished, observer.progressed
    return Observer(*(_deferred(call, defer) for call in each))


def _deferred(call: Callable[[Any], None], defer: Callable[[RunError], None]) -> Callable[[Any], None]:
    def deferring_call(event: Any) -> None:
        try:
            call(event)
        except RunError as error:
            defer(error)

    return deferring_call
