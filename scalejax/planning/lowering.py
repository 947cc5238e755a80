"""The programs of a bucket, traced and lowered for devices, which need not be of this machine; compiled elsewhere."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from scalejax.data import DataCard
from scalejax.planning.placement import Placement
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
from scalejax.train.recipe import STATIC, LaneProgram, Settings
from scalejax.train.sharding import LANE_AXIS, NOT_SPREAD
from scalejax.train.step import Blocks, Cursor, Examples, TrialState

TPU_LANES_BYTES = 2**26  # of lanes that a TPU trains at a time
PLACED = 8  # trials that one call of `place` writes at most: of small models eight cost hardly more than one
PLACED_BYTES = 2**24  # of lanes that one call of `place` writes; of large models it writes fewer, down to one

ADVANCE, VALIDATE, TEST, PLACE = "advance", "validate", "test", "place"  # names of programs
REPLICATED, LANES = PartitionSpec(), PartitionSpec(LANE_AXIS)
COMMANDS = Commands(steps=REPLICATED, cursor=Cursor(LANES, LANES), busy=LANES, due=LANES, ending=LANES)

Lowered = Any  # jax.stages.Lowered
Program = Callable[..., Any]


def lowered_training(program: LaneProgram, placement: Placement, *, card: DataCard) -> dict[str | int, Lowered]:
    """Lower what trains and measures: ADVANCE, or in the mode STATIC each of its pieces, VALIDATE and TEST.

    Args:
        program: the constants.
        placement: of its lanes.
        card: of the data, for whose shapes the programs are made.
    """
    state, data = abstract_lanes(program, placement), abstract_data(card, placement, program=program)
    commands, made = _abstract_commands(placement.lanes), _made(state, placement)
    given: Any = REPLICATED
    if program.stream_steps:
        parts: tuple[Any, ...] = (LANES, REPLICATED, REPLICATED)
        given = DeviceData(*parts)
    if program.mode != STATIC:
        advancing = on_each(
            functools.partial(advance, program),
            placement,
            (LANES, given, COMMANDS),
            (LANES, LANES),
            made=(made, None),
        )
        return {ADVANCE: _lowered(advancing, placement, state, data, commands)}

    stepping = functools.partial(train_steps, program, lanes_at_once=_lanes_at_once(program, placement))
    validating, testing = (functools.partial(function, program) for function in (validate_lanes, test_lanes))
    first = jax.ShapeDtypeStruct((), np.int32)
    wanted = (LANES, given, COMMANDS.cursor, REPLICATED)
    found: dict[str | int, Lowered] = {}
    for steps in program.pieces:
        if not program.stream_steps or steps <= program.stream_steps:
            piece = on_each(functools.partial(stepping, steps=steps), placement, wanted, LANES, made=made)
            found[steps] = _lowered(piece, placement, state, data, commands.cursor, first)
    validate = on_each(validating, placement, (LANES, given, LANES), (LANES, LANES), made=(made, None))
    test = on_each(testing, placement, (LANES, given), LANES, donate=False)
    return {
        **found,
        VALIDATE: _lowered(validate, placement, state, data, commands.due),
        TEST: _lowered(test, placement, state, data),
    }


def _lowered(program: Any, placement: Placement, *operands: Any) -> Lowered:
    """Lower a program for the devices of a placement, which may be of another kind than those of this process."""
    platform = placement.devices[0].platform
    if platform == jax.default_backend():
        return program.lower(*operands)
    return program.trace(*operands).lower(lowering_platforms=("cuda" if platform == "gpu" else platform,))


def _made(state: TrialState, placement: Placement) -> Any:
    """Return how the states lie that a program makes: as those that it is given, where that does not follow."""
    return None if placement.spread == NOT_SPREAD else placement.shardings(state)


def _lanes_at_once(program: LaneProgram, placement: Placement) -> int:
    """Return how many lanes of a device train at a time: all of them, or on a TPU few enough for `TPU_LANES_BYTES`.

    In its loops a TPU holds arrays whose last axis is padded to 128, so states of small models take several times
    their bytes there.
    """
    count = placement.lanes_each
    if placement.devices[0].platform != "tpu":
        return count
    fitting = max(1, TPU_LANES_BYTES // lane_bytes(program))
    return max(each for each in range(1, count + 1) if count % each == 0 and each <= max(1, fitting))


def lowered_place(program: LaneProgram, placement: Placement, *, count: int | None = None) -> Lowered:
    """Lower `place`, for so many trials; default: as many as `placed_at_once` says."""

    def place_own(lanes: TrialState, numbers: jax.Array, settings: Settings, weights: Any) -> TrialState:
        return place(program.recipe, lanes, placement.indices_in_shard(numbers), settings, weights)

    state = abstract_lanes(program, placement)
    wanted = (LANES, REPLICATED, REPLICATED, REPLICATED)
    placing = on_each(place_own, placement, wanted, LANES, made=_made(state, placement))
    return _lowered(placing, placement, state, *_abstract_trials(program, placement, count or placed_at_once(program)))


@functools.cache
def reading(placement: Placement) -> Any:
    """Return a program from lanes and a slot to the lane in that slot of every device; it is compiled when called."""
    return on_each(read_lane, placement, (LANES, REPLICATED), LANES, donate=False)


def writing(program: LaneProgram, placement: Placement) -> Any:
    """Return a program that writes a state into a lane; it is compiled when called."""

    def write_own(lanes: TrialState, number: jax.Array, state: TrialState) -> TrialState:
        return write_lane(lanes, placement.indices_in_shard(number), state)

    made = _made(abstract_lanes(program, placement), placement)
    return on_each(write_own, placement, (LANES, REPLICATED, REPLICATED), LANES, made=made)


def placed_at_once(program: LaneProgram) -> int:
    """Return how many trials one call of `place` writes: few enough that large ones cost about the memory of one."""
    return int(np.clip(PLACED_BYTES // lane_bytes(program), 1, PLACED))


def on_each(
    function: Program, placement: Placement, wanted: Any, given: Any, *, donate: bool = True, made: Any = None
) -> Any:
    """Let every device run `function` on its own lanes; the lanes given in are used up, unless said otherwise.

    Where a lane is spread over several devices, the compiler divides the work along the other axes of the mesh, as
    the step asks for (`train.sharding`).

    Args:
        function, placement: as described.
        wanted, given: specs of its arguments and results along the axis of the lanes.
        donate: whether the lanes are used up.
        made: how the results lie on the devices, where that does not follow; None: it does.
    """
    here = jax.shard_map(
        function, mesh=placement.mesh, in_specs=wanted, out_specs=given, axis_names={LANE_AXIS}, check_vma=False
    )
    return jax.jit(here, donate_argnums=(0,) if donate else (), out_shardings=made)


def abstract_lanes(program: LaneProgram, placement: Placement) -> TrialState:
    """Return the states of all lanes as shapes, where they are placed."""

    def all_lanes(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = placement.state_sharding(leaf.shape)
        return jax.ShapeDtypeStruct((placement.lanes, *leaf.shape), leaf.dtype, sharding=sharding)

    return jax.tree.map(all_lanes, abstract_lane(program))


def _abstract_trials(program: LaneProgram, placement: Placement, count: int) -> tuple[Any, Settings, Any]:
    """Return the lanes, the settings and the weights of `count` trials as shapes."""

    def all_trials(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # Of a model that is spread no device could hold all weights.
        sharding = None if placement.spread == NOT_SPREAD else placement.state_sharding(leaf.shape, lanes=False)
        return jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype, sharding=sharding)

    numbers = jax.ShapeDtypeStruct((count,), np.int32)
    weights = jax.tree.map(all_trials, program.architecture.abstract[1:])
    return numbers, Settings.abstract(program.recipe, count), weights


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
