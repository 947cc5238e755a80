"""The compiled programs of a bucket on a group of devices: made ahead of time, in threads beside the training."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from scalejax.data import DataCard
from scalejax.execute.host_start import starts_on_host
from scalejax.models import Architecture
from scalejax.planning.lowering import (
    ADVANCE,
    TEST,
    VALIDATE,
    lowered_place,
    lowered_training,
    placed_at_once,
    reading,
    writing,
)
from scalejax.planning.memory import memory_of, needed_bytes
from scalejax.planning.placement import Placement
from scalejax.train.lanes import Commands, DeviceData, Outcome
from scalejax.train.numerics import current, hold
from scalejax.train.padding import HASTY, initial_weights, initialiser
from scalejax.train.recipe import LaneProgram
from scalejax.train.step import Measurement, TrialState
from scalejax.train.tracing import tracing

THREADS = 2  # that compile; more would only take the cores of the training

Program = Callable[..., Any]


@dataclass(frozen=True)
class Programs:
    """What a pack runs: `advance` and `place` of `lanes.py`, each device with its own lanes, compiled.

    `read_lane` and `write_lane` are compiled when they are first called: most sweeps never do. Neither is `place` where
    lanes get their first trials from the host and none comes later.

    Attributes:
        placing: returns `place`, compiled.
        placed: trials that one call of `place` writes.
        placing_one: returns a `place` that writes a single trial if it is compiled by now, and asks for it if not.
        room_for_copy: whether a copy of all lanes fits beside them into the memory of a device, as far as is known.
    """

    advance: Program
    placing: Callable[[], Program]
    read_lane: Program
    write_lane: Program
    placed: int
    room_for_copy: bool = True
    placing_one: "CompiledInBackground" = field(default_factory=lambda: CompiledInBackground(None))

    @property
    def place(self) -> Program:
        """The program that writes trials into lanes; waits until it is compiled."""
        return self.placing()


class CompiledOnDemand:
    """A program that is compiled when it is first asked for, in whichever thread that is; others wait for it."""

    def __init__(self, compile_it: Callable[[], Program]):
        self._compile, self._lock = compile_it, threading.Lock()
        self._made: Program | None = None

    def __call__(self) -> Program:
        """Return the program."""
        with self._lock:
            if self._made is None:
                self._made = self._compile()
            return self._made


class CompiledInBackground:
    """A program that training can do without: compiled in the background once it is first asked for.

    Args:
        compile_it: None, if there is no such program.
    """

    def __init__(self, compile_it: Callable[[], Program] | None):
        self._compile = compile_it
        self._threads: ThreadPoolExecutor | None = None
        self._made: Future[Program] | None = None

    def compile_in(self, threads: ThreadPoolExecutor) -> None:
        """Set the threads in which it is compiled; without them it never is."""
        self._threads = threads

    def __call__(self) -> Program | None:
        """Return the program; None while it is not compiled, or if compiling failed."""
        if self._made is None and self._compile and self._threads:
            with contextlib.suppress(RuntimeError):  # the run is over
                self._made = self._threads.submit(self._compile)
        made = self._made
        return made.result() if made and made.done() and not made.cancelled() and not made.exception() else None


def compiled_programs(program: LaneProgram, placement: Placement, *, card: DataCard) -> Programs:
    """Compile the programs of a bucket: one each, however many devices there are.

    Args:
        program: the constants.
        placement: of its lanes.
        card: of the data, for whose shapes the programs are compiled.

    Raises:
        MemoryError: by the compiler's own account the lanes do not fit into the memory of a device.
    """
    with tracing():
        lowered = lowered_training(program, placement, card=card)
    training = {name: each.compile() for name, each in lowered.items()}

    def compile_placer(count: int) -> Program:
        with tracing():
            lowered = lowered_place(program, placement, count=count)
        return lowered.compile(HASTY)

    placed = placed_at_once(program)
    # Else the last bit of a state might depend on which program has made it, and that on when which was compiled.
    nothing_computed = starts_on_host(program, 0)
    placer = CompiledOnDemand(partial(compile_placer, placed))
    # Where nothing tells how much memory there is, nothing is to be checked, and the training need not wait for it.
    checked = placement.local_device.memory_stats() is not None
    fits = [check_memory(each, placer(), placement) for each in training.values()] if checked else []
    return Programs(
        advance=training[ADVANCE] if ADVANCE in training else PiecewiseAdvance(training),
        placing=placer,
        read_lane=reading(placement),
        write_lane=writing(program, placement),
        placed=placed,
        room_for_copy=all(fits),
        placing_one=CompiledInBackground(partial(compile_placer, 1) if placed > 1 and nothing_computed else None),
    )


@dataclass(frozen=True)
class PiecewiseAdvance:
    """`advance` of `lanes.py` in the mode STATIC: what a call asks for, in programs of known length.

    Attributes:
        programs: by the number of steps, VALIDATE and TEST; compiled.
    """

    programs: Mapping[str | int, Program]

    def __call__(self, lanes: TrialState, data: DeviceData, commands: Commands) -> tuple[TrialState, Outcome]:
        """Launch the programs that a call needs; `commands` are on the host."""
        taken, steps = 0, int(commands.steps)
        for piece in sorted((each for each in self.programs if isinstance(each, int)), reverse=True):
            while taken + piece <= steps:
                lanes = self.programs[piece](lanes, data, commands.cursor, np.int32(taken))
                taken += piece
        nothing = np.full(len(commands.due), np.nan, np.float32)
        measurement, tested = Measurement(nothing, nothing, nothing, nothing, nothing), (nothing, nothing)
        if commands.due.any():
            lanes, measurement = self.programs[VALIDATE](lanes, data, commands.due)
        if commands.ending.any():
            tested = self.programs[TEST](lanes, data)
        return lanes, Outcome(measurement, *tested)


def check_memory(advanced: Any, placer: Any, placement: Placement) -> bool:
    """Refuse programs that will not fit, where the compiler and the device tell, before they fail half way.

    Returns:
        Whether a copy of all lanes fits beside them; True where nothing tells.

    Raises:
        MemoryError: they do not fit.
    """
    advancing, placing = memory_of(advanced), memory_of(placer)
    room = (placement.local_device.memory_stats() or {}).get("bytes_limit")
    if advancing is None or placing is None or room is None:
        return True
    needs = needed_bytes([advancing], placing)
    if needs > room:
        raise MemoryError(f"the program needs {needs / 1e9:.1f} GB of the device's {room / 1e9:.1f}")
    return needs + placing.aliased_bytes <= room  # lanes are given in and come out in the same place


class Compiler:
    """Compiles the programs of a sweep in background threads, in the order in which they are asked for."""

    def __init__(self, card: DataCard):
        self._card = card
        # What is set for the thread that asks holds in those that compile.
        self._threads = ThreadPoolExecutor(THREADS, "compile", initializer=hold, initargs=(current(),))
        # One more: what places the second trial of a lane is not to wait behind the programs of other buckets.
        self._placer_thread = ThreadPoolExecutor(1, "place", initializer=hold, initargs=(current(),))
        self._lock = threading.Lock()
        self._programs: dict[Any, Future[Any]] = {}

    def programs(self, program: LaneProgram, placement: Placement, *, refills: bool = True) -> "Future[Programs]":
        """Ask for the programs of a bucket.

        Args:
            program: the constants.
            placement: of its lanes.
            refills: whether trials will follow others in their lanes.
        """

        def make() -> Programs:
            made = compiled_programs(program, placement, card=self._card)
            made.placing_one.compile_in(self._placer_thread)
            if refills or not starts_on_host(program, placement.lanes):
                with contextlib.suppress(RuntimeError):  # the run is over
                    self._placer_thread.submit(made.placing)
            return made

        return self._once((program, placement), make)

    def initialiser(self, architecture: Architecture) -> "Future[Program]":
        """Ask for the program that draws the initial weights of a size."""
        return self._once(architecture, lambda: initialiser(architecture))

    def initial_weights(self, architecture: Architecture, key: int) -> Any:
        """Return a size's parameters and rest on the host, drawn from 32 random bits."""
        self.initialiser(architecture).result()
        return initial_weights(architecture, key)

    def close(self, *, wait: bool = True) -> None:
        """Compile nothing more; what has begun is waited for unless there is no time."""
        for threads in (self._threads, self._placer_thread):
            threads.shutdown(wait=wait, cancel_futures=True)

    def _once(self, what: Any, make: Callable[[], Any]) -> "Future[Any]":
        with self._lock:
            if what not in self._programs:
                self._programs[what] = self._threads.submit(make)
            return self._programs[what]
