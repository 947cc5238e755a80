"""The compiled programs of a bucket on a group of devices: made ahead of time, in threads beside the training."""

import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from scalejax.data import DataCard
from scalejax.execute.host_start import starts_on_host
from scalejax.execute.placement import LANE_AXIS, Placement
from scalejax.models import Architecture
from scalejax.train.cost import lane_bytes
from scalejax.train.lanes import (
    Commands,
    DeviceData,
    abstract_lane,
    advance,
    block_shape,
    place,
    read_lane,
    write_lane,
)
from scalejax.train.numerics import current, hold
from scalejax.train.padding import HASTY, initial_weights, initialiser
from scalejax.train.recipe import LaneProgram, Settings
from scalejax.train.step import Blocks, Cursor, Examples, TrialState
from scalejax.train.tracing import tracing

PLACED = 8  # trials that one call of `place` writes at most: of small models eight cost hardly more than one
PLACED_BYTES = 2**24  # of lanes that one call of `place` writes; of large models it writes fewer, down to one
THREADS = 2  # that compile; more would only take the cores of the training

REPLICATED, LANES = PartitionSpec(), PartitionSpec(LANE_AXIS)
COMMANDS = Commands(steps=REPLICATED, cursor=Cursor(LANES, LANES), busy=LANES, due=LANES, ending=LANES)

Program = Callable[..., Any]


@dataclass(frozen=True)
class Programs:
    """What a pack runs: `advance` and `place` of `lanes.py`, each device with its own lanes, compiled.

    `read_lane` and `write_lane` are compiled when they are first called: most sweeps never do. Neither is `place` where
    lanes get their first trials from the host and none comes later.

    Attributes:
        placing: returns `place`, compiled.
        placed: trials that one call of `place` writes.
        room_for_copy: whether a copy of all lanes fits beside them into the memory of a device, as far as is known.
    """

    advance: Program
    placing: Callable[[], Program]
    read_lane: Program
    write_lane: Program
    placed: int
    room_for_copy: bool = True

    @property
    def place(self) -> Program:
        """The program that writes trials into lanes; waits until it is compiled."""
        return self.placing()


class Once:
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


def compiled_programs(program: LaneProgram, placement: Placement, *, card: DataCard) -> Programs:
    """Compile the programs of a bucket: one each, however many devices there are.

    Args:
        program: the constants.
        placement: of its lanes.
        card: of the data, for whose shapes the programs are compiled.

    Raises:
        MemoryError: by the compiler's own account the lanes do not fit into the memory of a device.
    """

    def place_own(lanes: TrialState, numbers: jax.Array, settings: Settings, weights: Any) -> TrialState:
        return place(program.recipe, lanes, placement.own_slots(numbers), settings, weights)

    def write_own(lanes: TrialState, number: jax.Array, state: TrialState) -> TrialState:
        return write_lane(lanes, placement.own_slots(number), state)

    with tracing():
        state, data = _abstract_lanes(program, placement), _abstract_data(card, placement, program=program)
        given: Any = REPLICATED
        if program.stream_steps:
            parts: tuple[Any, ...] = (LANES, REPLICATED, REPLICATED)
            given = DeviceData(*parts)
        advancing = _on_each(functools.partial(advance, program), placement, (LANES, given, COMMANDS), (LANES, LANES))
        lowered = advancing.lower(state, data, _abstract_commands(placement.lanes))
    advanced = lowered.compile()
    placed = placed_at_once(program)
    placing = _on_each(place_own, placement, (LANES, REPLICATED, REPLICATED, REPLICATED), LANES)

    def compile_placer() -> Program:
        with tracing():
            lowered = placing.lower(state, *_abstract_trials(program, placed))
        return lowered.compile(HASTY)

    placer = Once(compile_placer)
    # Where nothing tells how much memory there is, nothing is to be checked, and the training need not wait for it.
    checked = placement.devices[0].memory_stats() is not None
    return Programs(
        advance=advanced,
        placing=placer,
        read_lane=_reading(placement),
        write_lane=_on_each(write_own, placement, (LANES, REPLICATED, REPLICATED), LANES),
        placed=placed,
        room_for_copy=check_memory(advanced, placer(), placement) if checked else True,
    )


def placed_at_once(program: LaneProgram) -> int:
    """Return how many trials one call of `place` writes: few enough that large ones cost about the memory of one."""
    return int(np.clip(PLACED_BYTES // lane_bytes(program), 1, PLACED))


def _on_each(function: Program, placement: Placement, wanted: Any, given: Any) -> Any:
    """Let every device run `function` on its own lanes; the lanes given in are used up."""
    here = jax.shard_map(function, mesh=placement.mesh, in_specs=wanted, out_specs=given, check_vma=False)
    return jax.jit(here, donate_argnums=0)


@functools.cache
def _reading(placement: Placement) -> Any:
    """Return a program from lanes and a slot to the lane in that slot of every device."""
    specs = {"in_specs": (LANES, REPLICATED), "out_specs": LANES}
    return jax.jit(jax.shard_map(read_lane, mesh=placement.mesh, **specs, check_vma=False))


def check_memory(advanced: Any, placer: Any, placement: Placement) -> bool:
    """Refuse programs that will not fit, where the compiler and the device tell, before they fail half way.

    Counted is what is in memory at the same time: the data set lies beside `placer`, and while `advanced` runs the next
    trials wait to be written. To read or write a lane takes less than to place one.

    Returns:
        Whether a copy of all lanes fits beside them; True where nothing tells.

    Raises:
        MemoryError: they do not fit.
    """
    advancing, placing = advanced.memory_analysis(), placer.memory_analysis()
    room = (placement.devices[0].memory_stats() or {}).get("bytes_limit")
    if advancing is None or placing is None or room is None:
        return True
    lanes = placing.alias_size_in_bytes  # are given in and come out in the same place
    fresh, data = (each.argument_size_in_bytes - each.alias_size_in_bytes for each in (placing, advancing))
    needs = max(_bytes_of(advancing) + fresh, _bytes_of(placing) + data)
    if needs > room:
        raise MemoryError(f"the program needs {needs / 1e9:.1f} GB of the device's {room / 1e9:.1f}")
    return needs + lanes <= room


def _bytes_of(needs: Any) -> int:
    total = needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
    return total - needs.alias_size_in_bytes


def _abstract_lanes(program: LaneProgram, placement: Placement) -> TrialState:
    def all_lanes(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((placement.lanes, *leaf.shape), leaf.dtype, sharding=placement.lane_sharded)

    return jax.tree.map(all_lanes, abstract_lane(program))


def _abstract_trials(program: LaneProgram, count: int) -> tuple[Any, Settings, Any]:
    """Return the lanes, the settings and the weights of `count` trials as shapes."""

    def all_trials(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype)

    numbers = jax.ShapeDtypeStruct((count,), np.int32)
    return (
        numbers,
        Settings.abstract(program.recipe, count),
        jax.tree.map(all_trials, program.architecture.abstract[1:]),
    )


def _abstract_commands(lanes: int) -> Commands:
    def each(kind: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((lanes,), kind)

    cursor = Cursor(each(np.uint32), each(np.uint32))
    return Commands(jax.ShapeDtypeStruct((), np.int32), cursor, each(np.bool_), each(np.bool_), each(np.bool_))


def _abstract_data(card: DataCard, placement: Placement, *, program: LaneProgram) -> DeviceData:
    def array(kind: str, *shape: int, sharding: NamedSharding = placement.replicated) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.dtype(kind), sharding=sharding)

    def examples(
        *count: int, sharding: NamedSharding = placement.replicated
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        inputs = array(card.inputs, *count, *card.shape, sharding=sharding)
        return inputs, array(card.targets, *count, *card.target_shape, sharding=sharding)

    def cut(count: int) -> Blocks:
        shape = block_shape(count)
        return Blocks(*examples(*shape), array("float32", *shape))

    if program.stream_steps:
        count = placement.lanes, program.stream_steps, program.recipe.batch_size
        pool = examples(*count, sharding=placement.lane_sharded)
    else:
        pool = examples(card.examples)
    return DeviceData(Examples(*pool), cut(card.validation_examples), cut(card.test_examples))


class Compiler:
    """Compiles the programs of a sweep in background threads, in the order in which they are asked for."""

    def __init__(self, card: DataCard):
        self._card = card
        # What is set for the thread that asks holds in those that compile.
        self._threads = ThreadPoolExecutor(THREADS, "compile", initializer=hold, initargs=(current(),))
        # One more: what places the second trial of a lane is not to wait behind the programs of other buckets.
        self._placers = ThreadPoolExecutor(1, "place", initializer=hold, initargs=(current(),))
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
            if refills or not starts_on_host(program, placement.lanes):
                with contextlib.suppress(RuntimeError):  # the run is over
                    self._placers.submit(made.placing)
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
        for threads in (self._threads, self._placers):
            threads.shutdown(wait=wait, cancel_futures=True)

    def _once(self, what: Any, make: Callable[[], Any]) -> "Future[Any]":
        with self._lock:
            if what not in self._programs:
                self._programs[what] = self._threads.submit(make)
            return self._programs[what]
