"""What a run tells while it trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

from scalejax.errors import RunError
from scalejax.execute.refusal import broke_off
from scalejax.execute.slot import Finished
from scalejax.planning.packing import Bucket
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
class Place:
    """A pack, as those outside know it: some lanes of a bucket on a group of devices.

    Attributes:
        number: of the pack, from 0 on in the order in which workers take them.
        group: the number of the group, that of its worker.
        bucket: of the trials.
        lanes: how many trials are trained at the same time.
    """

    number: int
    group: int
    bucket: Bucket
    lanes: int


@dataclass(frozen=True)
class Moves:
    """The trials that came into lanes of a pack with a call, and those that left them after it.

    Attributes:
        place: the pack.
        began: when the devices began with the call, in seconds since 1970.
        ended: when they had done it.
        steps: that all lanes took.
        entered: lane by id.
        left: why, by id: the status with which a trial has ended, or one of the words of `Leaving`.
    """

    place: Place
    began: float
    ended: float
    steps: int
    entered: Mapping[str, int]
    left: Mapping[str, str]


class Leaving(StrEnum):
    """Why a trial that has not ended left its lane."""

    RUNG = "rung"  # halving decides whether it continues
    REFUSED = "refused"  # a device refused, such as for want of memory, and it trains again what is not saved
    INTERRUPTED = "interrupted"  # the run was stopped, or killed


def _nothing(_: Any) -> None: ...


@dataclass(frozen=True)
class Observer:
    """What the scheduler calls when something happens; one thread at a time."""

    started: Callable[[Sequence[Trial]], None]
    finished: Callable[[Finished], None]
    progressed: Callable[[Progress], None]
    moved: Callable[[Moves], None] = _nothing


SILENT = Observer(_nothing, _nothing, _nothing)


def guarded(observer: Observer) -> Observer:
    """Return an observer whose mistakes are trouble of the run, a `RunError`: the trials have done nothing wrong."""
    return Observer(*map(_guarded, _calls(observer)))


def _calls(observer: Observer) -> tuple[Callable[[Any], None], ...]:
    return observer.started, observer.finished, observer.progressed, observer.moved


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
    return Observer(*(_deferred(call, defer) for call in _calls(observer)))


def _deferred(call: Callable[[Any], None], defer: Callable[[RunError], None]) -> Callable[[Any], None]:
    def deferring_call(event: Any) -> None:
        try:
            call(event)
        except RunError as error:
            defer(error)

    return deferring_call
