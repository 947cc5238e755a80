"""The compiled programs of a bucket on a group of devices: made ahead of time, in threads beside the training."""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from scalejax.data import DataCard
from scalejax.execute.devices import LANE_AXIS, Group
from scalejax.models import Architecture
from scalejax.train.cost import lane_bytes
from scalejax.train.lanes import (
    DeviceData,
    Order,
    abstract_lane,
    advance,
    block_shape,
    extract,
    place,
    restore,
)
from scalejax.train.numerics import current, hold
from scalejax.train.padding import HASTY, initial_weights, initialiser
from scalejax.train.recipe import LaneProgram, Recipe, Settings
from scalejax.train.step import Blocks, Cursor, Examples, TrialState

PLACED = 8  # trials that one call of `place` writes at most: of small models eight cost hardly more than one
PLACED_BYTES = 2**24  # of lanes that one call of `place` writes; of large models it writes fewer, down to one
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY")  # in the messages of XLA's and CUDA's errors
THREADS = 2  # that compile; more would only take the cores of the training

WHOLE, LANES = PartitionSpec(), PartitionSpec(LANE_AXIS)
ORDER = Order(steps=WHOLE, cursor=Cursor(LANES, LANES), busy=LANES, due=LANES, ending=LANES)

Program = Callable[..., Any]


@dataclass(frozen=True)
class Programs:
    """What a pack runs: `advance` and `place` of `lanes.py`, each device with its own lanes, compiled.

    `extract` and `restore` are compiled when they are first called: most sweeps never do.

    Attributes:
        placed: trials that one call of `place` writes.
        room_for_copy: whether a copy of all lanes fits beside them into the memory of a device, as far as is known.
    """

    advance: Program
    place: Program
    extract: Program
    restore: Program
    placed: int
    room_for_copy: bool = True


def compiled_programs(program: LaneProgram, lanes: int, group: Group, *, card: DataCard) -> Programs:
    """Compile the programs of a bucket: one each, however many devices the group has.

    Args:
        recipe: the constants.
        lanes: on each device.
        group: the devices, each of which runs its share of the lanes.
        card: of the data, for whose shapes the programs are compiled.

    Raises:
        MemoryError: by the compiler's own account the lanes do not fit into the memory of a device.
    """
    state = _abstract_lanes(program, lanes * len(group.devices), group)
    order = _abstract_order(lanes * len(group.devices))
    advancing = _lifted(functools.partial(advance, program), group, (LANES, WHOLE, ORDER), (LANES, LANES))
    placing = _lifted(functools.partial(_place_own, program.recipe), group, (LANES, WHOLE, WHOLE, WHOLE), LANES)
    advanced = advancing.lower(state, _abstract_data(card, group), order).compile()
    placed = placed_at_once(program)
    placer = placing.lower(state, *_abstract_fresh(program, placed)).compile(HASTY)
    return Programs(
        advance=advanced,
        place=placer,
        extract=_extracting(group),
        restore=_lifted(_restore_own, group, (LANES, WHOLE, WHOLE), LANES),
        placed=placed,
        room_for_copy=check_memory(advanced, placer, group),
    )


def placed_at_once(program: LaneProgram) -> int:
    """Return how many trials one call of `place` writes: few enough that large ones cost about the memory of one."""
    return int(np.clip(PLACED_BYTES // lane_bytes(program), 1, PLACED))


def _lifted(function: Program, group: Group, wanted: Any, given: Any) -> Any:
    """Let every device of a group run `function` on its own lanes; the lanes given in are used up."""
    here = jax.shard_map(function, mesh=group.mesh, in_specs=wanted, out_specs=given, check_vma=False)
    return jax.jit(here, donate_argnums=0)


def check_memory(advanced: Any, placer: Any, group: Group) -> bool:
    """Refuse programs that will not fit, where the compiler and the device tell, before they fail half way.

    Counted is what is in memory at the same time: the data set lies beside `placer`, and while `advanced` runs the next
    trials wait to be written. To extract or restore a lane takes less than to place one.

    Returns:
        Whether a copy of all lanes fits beside them; True where nothing tells.

    Raises:
        MemoryError: they do not fit.
    """
    advancing, placing = advanced.memory_analysis(), placer.memory_analysis()
    room = (group.devices[0].memory_stats() or {}).get("bytes_limit")
    if advancing is None or placing is None or room is None:
        return True
    lanes = placing.alias_size_in_bytes  # are given in and come out in the same place
    fresh, data = (each.argument_size_in_bytes - each.alias_size_in_bytes for each in (placing, advancing))
    needs = max(_bytes_of(advancing) + fresh, _bytes_of(placing) + data)
    if needs > room:
        raise MemoryError(f"the program needs {needs / 1e9:.1f} GB of the device's {room / 1e9:.1f}")
    return needs + lanes <= room


def short_of_memory(error: BaseException) -> bool:
    """Say whether an error means that the memory of a device, or of the host, does not suffice."""
    return isinstance(error, MemoryError) or any(word in str(error) for word in OUT_OF_MEMORY)


def _bytes_of(needs: Any) -> int:
    total = needs.argument_size_in_bytes + needs.output_size_in_bytes + needs.temp_size_in_bytes
    return total - needs.alias_size_in_bytes


@functools.cache
def _extracting(group: Group) -> Any:
    """Return a program from lanes and a number below the lanes of a device to that lane of every device."""
    here = jax.shard_map(extract, mesh=group.mesh, in_specs=(LANES, WHOLE), out_specs=LANES, check_vma=False)
    return jax.jit(here)


def _own(slots: jax.Array, lanes: TrialState) -> jax.Array:
    """Return slots as numbered on this device, beyond its lanes where they are another's."""
    count = lanes.learner.step.shape[0]
    own = slots - lax.axis_index(LANE_AXIS) * count
    return jnp.where(own < 0, count, own)  # a negative index would count from the end


def _place_own(recipe: Recipe, lanes: TrialState, slots: jax.Array, settings: Settings, weights: Any) -> TrialState:
    return place(recipe, lanes, _own(slots, lanes), settings, weights)


def _restore_own(lanes: TrialState, slot: jax.Array, state: TrialState) -> TrialState:
    return restore(lanes, _own(slot, lanes), state)


def _abstract_lanes(program: LaneProgram, lanes: int, group: Group) -> TrialState:
    def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((lanes, *leaf.shape), leaf.dtype, sharding=group.by_lane)

    return jax.tree.map(one, abstract_lane(program))


def _abstract_fresh(program: LaneProgram, placed: int) -> tuple[Any, Settings, Any]:
    """Return slots, settings and weights of `placed` trials as shapes."""

    def one(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((placed, *leaf.shape), leaf.dtype)

    settings = Settings.abstract(placed)
    slots = jax.ShapeDtypeStruct((placed,), np.int32)
    return slots, settings, jax.tree.map(one, program.architecture.abstract[1:])


def _abstract_order(lanes: int) -> Order:
    def each(kind: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((lanes,), kind)

    cursor = Cursor(each(np.uint32), each(np.uint32))
    return Order(jax.ShapeDtypeStruct((), np.int32), cursor, each(np.bool_), each(np.bool_), each(np.bool_))


def _abstract_data(card: DataCard, group: Group) -> DeviceData:
    def array(kind: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.dtype(kind), sharding=group.whole)

    def examples(*count: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        return array("float32", *count, *card.shape), array(card.targets, *count, *card.target_shape)

    def cut(count: int) -> Blocks:
        cells = block_shape(count)
        return Blocks(*examples(*cells), array("float32", *cells))

    return DeviceData(Examples(*examples(card.examples)), cut(card.validation_examples), cut(card.test_examples))


class Workshop:
    """Compiles the programs of a sweep in background threads, in the order in which they are asked for."""

    def __init__(self, card: DataCard):
        self._card = card
        # What is set for the thread that asks holds in those that compile.
        self._threads = ThreadPoolExecutor(THREADS, "compile", initializer=hold, initargs=(current(),))
        self._lock = threading.Lock()
        self._orders: dict[Any, Future[Any]] = {}

    def order(self, program: LaneProgram, lanes: int, group: Group) -> "Future[Programs]":
        """Ask for the programs of a bucket; whoever needs them waits for the result."""
        return self._order(
            (program, lanes, group),
            lambda: compiled_programs(program, lanes, group, card=self._card),
        )

    def order_initialiser(self, architecture: Architecture) -> "Future[Program]":
        """Ask for the program that draws the initial weights of a size."""
        return self._order(architecture, lambda: initialiser(architecture))

    def initial_weights(self, architecture: Architecture, key: int) -> Any:
        """Return a size's parameters and rest on the host, drawn from 32 random bits."""
        self.order_initialiser(architecture).result()
        return initial_weights(architecture, key)

    def _order(self, what: Any, make: Callable[[], Any]) -> "Future[Any]":
        with self._lock:
            if what not in self._orders:
                self._orders[what] = self._threads.submit(make)
            return self._orders[what]

    def close(self, *, wait: bool = True) -> None:
        """Give up what nobody waits for; wait for what is being compiled unless there is no time."""
        self._threads.shutdown(wait=wait, cancel_futures=True)
