"""The programs of a bucket, traced and lowered for devices, which need not be of this machine; compiled elsewhere."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from scalejax.data import DataCard
from scalejax.planning.placement import LANE_AXIS, Placement
from scalejax.train.cost import lane_bytes
from scalejax.train.lanes import (
    Commands,
    DeviceData,
    abstract_lane,
    advance,
    block_shape,
    place,
    read_lane,
    test_lanes,
    train_steps,
    validate_lanes,
    write_lane,
)
from scalejax.train.recipe import LaneProgram, Settings
from scalejax.train.step import Blocks, Cursor, Examples, TrialState

PIECES = (32, 8, 1)  # steps of the programs of the mode "static": a call is made up of them
ABREAST_BYTES = 2**26  # of lanes that a TPU trains at a time
PLACED = 8  # trials that one call of `place` writes at most: of small models eight cost hardly more than one
PLACED_BYTES = 2**24  # of lanes that one call of `place` writes; of large models it writes fewer, down to one

REPLICATED, LANES = PartitionSpec(), PartitionSpec(LANE_AXIS)
COMMANDS = Commands(steps=REPLICATED, cursor=Cursor(LANES, LANES), busy=LANES, due=LANES, ending=LANES)

Lowered = Any  # jax.stages.Lowered
Program = Callable[..., Any]


def lowered_training(program: LaneProgram, placement: Placement, *, card: DataCard) -> dict[str | int, Lowered]:
    """Lower what trains and measures: "advance", or in the mode "static" each of PIECES, "validate" and "test".

    Args:
        program: the constants.
        placement: of its lanes.
        card: of the data, for whose shapes the programs are made.
    """
    state, data = abstract_lanes(program, placement), abstract_data(card, placement, program=program)
    commands = _abstract_commands(placement.lanes)
    given: Any = REPLICATED
    if program.stream_steps:
        parts: tuple[Any, ...] = (LANES, REPLICATED, REPLICATED)
        given = DeviceData(*parts)
    if program.mode != "static":
        advancing = on_each(functools.partial(advance, program), placement, (LANES, given, COMMANDS), (LANES, LANES))
        return {"advance": advancing.lower(state, data, commands)}

    def lowered(function: Program, wanted: tuple[Any, ...], made: Any, *operands: Any, donate: bool = True) -> Lowered:
        whole = on_each(functools.partial(function, program), placement, (LANES, given, *wanted), made, donate=donate)
        return whole.lower(state, data, *operands)

    first = jax.ShapeDtypeStruct((), np.int32)
    lengths = [steps for steps in PIECES if not program.stream_steps or steps <= program.stream_steps]
    return {
        **{
            steps: lowered(
                functools.partial(train_steps, steps=steps, abreast=_abreast(program, placement)),
                (COMMANDS.cursor, REPLICATED),
                LANES,
                commands.cursor,
                first,
            )
            for steps in lengths
        },
        "validate": lowered(validate_lanes, (LANES,), (LANES, LANES), commands.due),
        "test": lowered(test_lanes, (), LANES, donate=False),
    }


def _abreast(program: LaneProgram, placement: Placement) -> int:
    """Return how many lanes of a device train at a time: all of them, or on a TPU few enough for `ABREAST_BYTES`.

    In its loops a TPU holds arrays whose last axis is padded to 128, so states of small models take several times
    their bytes there.
    """
    count = placement.lanes_each
    if placement.devices[0].platform != "tpu":
        return count
    fitting = max(1, ABREAST_BYTES // lane_bytes(program))
    return max(each for each in range(1, count + 1) if count % each == 0 and each <= max(1, fitting))


def lowered_place(program: LaneProgram, placement: Placement) -> Lowered:
    """Lower `place`, for as many trials as `placed_at_once` says."""

    def place_own(lanes: TrialState, numbers: jax.Array, settings: Settings, weights: Any) -> TrialState:
        return place(program.recipe, lanes, placement.own_slots(numbers), settings, weights)

    placing = on_each(place_own, placement, (LANES, REPLICATED, REPLICATED, REPLICATED), LANES)
    return placing.lower(abstract_lanes(program, placement), *_abstract_trials(program, placed_at_once(program)))


@functools.cache
def reading(placement: Placement) -> Any:
    """Return a program from lanes and a slot to the lane in that slot of every device; it is compiled when called."""
    return on_each(read_lane, placement, (LANES, REPLICATED), LANES, donate=False)


def writing(placement: Placement) -> Any:
    """Return a program that writes a state into a lane; it is compiled when called."""

    def write_own(lanes: TrialState, number: jax.Array, state: TrialState) -> TrialState:
        return write_lane(lanes, placement.own_slots(number), state)

    return on_each(write_own, placement, (LANES, REPLICATED, REPLICATED), LANES)


def placed_at_once(program: LaneProgram) -> int:
    """Return how many trials one call of `place` writes: few enough that large ones cost about the memory of one."""
    return int(np.clip(PLACED_BYTES // lane_bytes(program), 1, PLACED))


def on_each(function: Program, placement: Placement, wanted: Any, given: Any, *, donate: bool = True) -> Any:
    """Let every device run `function` on its own lanes; the lanes given in are used up, unless said otherwise."""
    here = jax.shard_map(function, mesh=placement.mesh, in_specs=wanted, out_specs=given, check_vma=False)
    return jax.jit(here, donate_argnums=(0,) if donate else ())


def abstract_lanes(program: LaneProgram, placement: Placement) -> TrialState:
    """Return the states of all lanes as shapes, where they are placed."""

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


def abstract_data(card: DataCard, placement: Placement, *, program: LaneProgram) -> DeviceData:
    """Return the data set as shapes, as it lies on every device of a placement."""

    def array(kind: str, *shape: int, sharding: NamedSharding = placement.replicated) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.dtype(kind), sharding=sharding)

    def examples(
        *count: int, sharding: NamedSharding = placement.replicated
    ) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        inputs = array(card.inputs, *count, *card.shape, sharding=sharding)
        return inputs, array(card.targets, *count, *card.target_shape, sharding=sharding)

    def cut(count: int) -> Blocks:
        shape = block_shape(count, multiple=placement.block_multiple)
        return Blocks(*examples(*shape), array("float32", *shape))

    if program.stream_steps:
        count = placement.lanes, program.stream_steps, program.recipe.batch_size
        pool = examples(*count, sharding=placement.lane_sharded)
    else:
        pool = examples(card.examples)
    return DeviceData(Examples(*pool), cut(card.validation_examples), cut(card.test_examples))
