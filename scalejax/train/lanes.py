"""Many trials in one program: the only place where a trial is lifted over lanes."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from scalejax.models import Architecture
from scalejax.models.precision import multiplied
from scalejax.train.convolutions import convolves, fast_on_cpu
from scalejax.train.recipe import EVALUATION_BLOCK, MAP, LaneProgram, Leaf, Recipe, Settings
from scalejax.train.step import (
    Blocks,
    Cursor,
    Examples,
    Measurement,
    TrialState,
    loss_and_metric,
    record_evaluation,
    start,
    test,
    train,
    train_block,
    validate,
)
from scalejax.train.task import Task, comparing


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeviceData:
    """A data set on one device: the training pool, and validation and test in blocks.

    For a streamed program the pool is the batches of one call, [lanes, most steps, batch_size, ...].
    """

    pool: Examples
    validation: Blocks
    test: Blocks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Commands:
    """What one call shall do, lane by lane.

    steps int32 [] for all lanes alike; cursor uint32 [lanes]; busy bool [lanes] (has a trial); due bool [lanes]
    (evaluate); ending bool [lanes] (test).
    """

    steps: Leaf
    cursor: Cursor
    busy: Leaf
    due: Leaf
    ending: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outcome:
    """What one call saw: measurements [lanes], test loss and metric [lanes], NaN where a lane did not end."""

    measurement: Measurement
    test_loss: Leaf
    test_metric: Leaf


def advance(
    program: LaneProgram, lanes: TrialState, data: DeviceData, commands: Commands
) -> tuple[TrialState, Outcome]:
    """Take commands.steps steps in every lane, evaluate where due, and test the best parameters of ending lanes.

    One program for calls of any length: on a CPU nothing has to be asked of a host.

    Args:
        program: the constants, in the mode VMAP or MAP.
        lanes: states with a leading axis [lanes].
        data: shared by all lanes.
        commands: as described there.
    """

    convolved = _convolves(program.architecture, program.recipe.batch_size)

    def run(function: Callable[..., Any], *operands: Any) -> Any:
        with multiplied(program.architecture.numbers.multiplies):
            return fast_on_cpu(function, *operands) if convolved else function(*operands)

    # What each lane has of the pool: its own batches if they are streamed, else nothing, and all see the same one.
    own = data.pool if program.stream_steps else None

    def train_one(state: TrialState, cursor: Cursor, own: Examples | None) -> TrialState:
        pool = data.pool if own is None else own
        return run(lambda state, cursor: train(program, state, cursor, pool=pool, steps=commands.steps), state, cursor)

    def validate_one(state: TrialState) -> tuple[jax.Array, jax.Array]:
        return run(lambda state: validate(program, state, blocks=data.validation), state)

    def test_one(state: TrialState) -> tuple[jax.Array, jax.Array]:
        return run(lambda state: test(program, state, blocks=data.test), state)

    if program.mode == MAP:
        # One lane at a time keeps its parameters in the cache for all its steps, and an idle lane costs nothing.
        lanes = lax.map(
            lambda each: lax.cond(each[0], train_one, lambda state, *_: state, *each[1:]),
            (commands.busy, lanes, commands.cursor, own),
        )
    else:
        lanes = jax.vmap(train_one)(lanes, commands.cursor, own)
    validated = _where(commands.due, lanes, validate_one)
    lanes, measurement = jax.vmap(record_evaluation)(lanes, commands.due, validated)
    test_loss, test_metric = _where(commands.ending, lanes, test_one)
    return lanes, Outcome(measurement, test_loss, test_metric)


def _where(
    wanted: jax.Array, lanes: TrialState, measure: Callable[[TrialState], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array]:
    """Measure the lanes that are wanted, one after the other; NaN for the rest.

    Under vmap every lane would be measured whenever one is, and how many lanes there are would change the last bit of
    a mean. A block of examples is work enough for a core.
    """
    nothing = (jnp.float32(jnp.nan), jnp.float32(jnp.nan))
    return lax.map(lambda each: lax.cond(each[0], measure, lambda _: nothing, each[1]), (wanted, lanes))


# The same in the mode STATIC, for accelerators: three programs without a decision in them, of which the host launches
# what it needs. In a loop of unknown length, or at a condition, a GPU waits for the host each time.


def train_steps(
    program: LaneProgram,
    lanes: TrialState,
    data: DeviceData,
    cursor: Cursor,
    first: jax.Array,
    *,
    steps: int,
    lanes_at_once: int | None = None,
) -> TrialState:
    """Take `steps` steps in every lane, side by side.

    Args:
        program: the constants.
        lanes: states with a leading axis [lanes].
        data: shared by all lanes.
        cursor: of the call, uint32 [lanes].
        first: int32 [], steps of the call that were taken before these.
        steps: to take.
        lanes_at_once: a divisor of the number of lanes, so many of which are trained after the others: what is in
            memory beside the states is theirs alone. None: all of them.
    """

    def train_one(state: TrialState, cursor: Cursor, own: Examples | None) -> TrialState:
        pool = data.pool if own is None else own
        with multiplied(program.architecture.numbers.multiplies), comparing():
            return train_block(program, state, cursor, pool=pool, first=first, drawn=steps, steps=steps)

    own = data.pool if program.stream_steps else None
    count = cursor.epoch.shape[0]
    if lanes_at_once in (None, count):
        return jax.vmap(train_one)(lanes, cursor, own)

    def train_group(number: jax.Array, lanes: TrialState) -> TrialState:
        begin = number * lanes_at_once
        group = jax.tree.map(lambda each: lax.dynamic_slice_in_dim(each, begin, lanes_at_once), (lanes, cursor, own))
        trained = jax.vmap(train_one)(*group)
        return jax.tree.map(lambda all, some: lax.dynamic_update_slice_in_dim(all, some, begin, 0), lanes, trained)

    return lax.fori_loop(0, count // lanes_at_once, train_group, lanes)


def validate_lanes(
    program: LaneProgram, lanes: TrialState, data: DeviceData, due: jax.Array
) -> tuple[TrialState, Measurement]:
    """Evaluate all lanes side by side, and keep what is found where it is due, bool [lanes]."""
    blocks = _cut(data.validation, program.evaluation_block)
    with multiplied(program.architecture.numbers.multiplies), comparing():
        validated = jax.vmap(lambda state: validate(program, state, blocks=blocks))(lanes)
    return jax.vmap(record_evaluation)(lanes, due, validated)


def test_lanes(program: LaneProgram, lanes: TrialState, data: DeviceData) -> tuple[jax.Array, jax.Array]:
    """Return the test loss and metric [lanes] of the best parameters of all lanes, side by side."""
    blocks = _cut(data.test, program.evaluation_block)
    with multiplied(program.architecture.numbers.multiplies), comparing():
        return jax.vmap(lambda state: test(program, state, blocks=blocks))(lanes)


def _cut(blocks: Blocks, size: int) -> Blocks:
    """Cut blocks into smaller ones of about `size` examples: many lanes side by side would take too much memory."""
    size = math.gcd(blocks.weight.shape[1], size)
    return jax.tree.map(lambda array: array.reshape(-1, size, *array.shape[2:]), blocks)


def evaluate_one(
    architecture: Architecture, task: Task, params: nnx.State, rest: nnx.State, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """Return the loss and the headline metric of one model, in the order in which lanes are measured."""

    def measure(*weights: nnx.State) -> tuple[jax.Array, jax.Array]:
        return loss_and_metric(architecture, task, *weights, blocks=blocks)

    with multiplied(architecture.numbers.multiplies):
        return fast_on_cpu(measure, params, rest) if _convolves(architecture, 1) else measure(params, rest)


def _convolves(architecture: Architecture, batch_size: int) -> bool:
    return convolves(architecture.forward_program(batch_size).jaxpr)


def place(
    recipe: Recipe, lanes: TrialState, slots: jax.Array, settings: Settings, weights: tuple[nnx.State, nnx.State]
) -> TrialState:
    """Write new trials into slots; nothing is compiled again.

    Args:
        recipe: the constants of the program.
        lanes: states with a leading axis [lanes].
        slots: int32 [trials]; a trial whose slot lies beyond the lanes is written nowhere.
        settings: of each trial, [trials].
        weights: padded parameters and rest, with a leading axis [trials].
    """
    fresh = jax.vmap(functools.partial(start, recipe))(settings, weights)
    return jax.tree.map(lambda all_lanes, new: all_lanes.at[slots].set(new, mode="drop"), lanes, fresh)


def read_lane(lanes: TrialState, slot: jax.Array) -> TrialState:
    """Return the state in one slot, with a leading axis of one."""
    return jax.tree.map(lambda all_lanes: all_lanes[slot][None], lanes)


def write_lane(lanes: TrialState, slot: jax.Array, state: TrialState) -> TrialState:
    """Write the state of a trial that has begun into a slot; beyond the lanes it is written nowhere."""
    return jax.tree.map(lambda all_lanes, one: all_lanes.at[slot].set(one, mode="drop"), lanes, state)


@functools.cache
def abstract_lane(program: LaneProgram) -> TrialState:
    """Return the state of one lane as shapes."""
    return jax.eval_shape(
        functools.partial(start, program.recipe), Settings.abstract(program.recipe), program.architecture.abstract[1:]
    )


def empty(program: LaneProgram, lanes: int) -> TrialState:
    """Return zeros [lanes, ...] in the shape of a program's state; every slot has to be written before it runs."""

    def zeros(leaf: jax.ShapeDtypeStruct) -> Leaf:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros((lanes, *leaf.shape), leaf.dtype)  # NumPy knows no random keys
        return np.zeros((lanes, *leaf.shape), leaf.dtype)

    return jax.tree.map(zeros, abstract_lane(program))


def block_shape(count: int, *, multiple: int = 1) -> tuple[int, int]:
    """Return the number and the size of the blocks for `count` examples, the size a multiple as asked."""
    pieces = -(-count // EVALUATION_BLOCK)
    return pieces, -(-count // (pieces * multiple)) * multiple


def blocks(inputs: np.ndarray, targets: np.ndarray, *, multiple: int = 1) -> Blocks:
    """Cut examples [n, ...] into blocks of equal size, a multiple as asked, the last one padded with weight 0."""
    count = len(targets)
    pieces, size = block_shape(count, multiple=multiple)

    def cut(array: np.ndarray) -> np.ndarray:
        short = np.zeros((pieces * size - count, *array.shape[1:]), array.dtype)
        return np.concatenate([array, short]).reshape(pieces, size, *array.shape[1:])

    return Blocks(cut(inputs), cut(targets), cut(np.ones(count, np.float32)))
