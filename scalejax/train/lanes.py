"""Many trials in one program: the only place where a trial is lifted over lanes."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from scalejax.models import Architecture
from scalejax.train.convolutions import convolves, fast_on_cpu
from scalejax.train.recipe import LaneProgram, Leaf, Recipe, Settings
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
    validate,
)
from scalejax.train.task import Task

BLOCK = 1024  # examples that are evaluated at once


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

    Args:
        program: the constants.
        lanes: states with a leading axis [lanes].
        data: shared by all lanes.
        commands: as described there.
    """

    convolved = _convolves(program.architecture, program.recipe.batch_size)

    def run(function: Callable[..., Any], *operands: Any) -> Any:
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

    if program.mode == "map":
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
    a mean. A block of examples is work enough for a device.
    """
    nothing = (jnp.float32(jnp.nan), jnp.float32(jnp.nan))
    return lax.map(lambda each: lax.cond(each[0], measure, lambda _: nothing, each[1]), (wanted, lanes))


def evaluate_one(
    architecture: Architecture, task: Task, params: nnx.State, rest: nnx.State, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """Return the loss and the headline metric of one model, in the order in which lanes are measured."""

    def measure(*weights: nnx.State) -> tuple[jax.Array, jax.Array]:
        return loss_and_metric(architecture, task, *weights, blocks=blocks)

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


def block_shape(count: int) -> tuple[int, int]:
    """Return the number and the size of the blocks for `count` examples."""
    pieces = -(-count // BLOCK)
    return pieces, -(-count // pieces)


def blocks(inputs: np.ndarray, targets: np.ndarray) -> Blocks:
    """Cut examples [n, ...] into blocks of equal size, the last one padded with weight 0."""
    count = len(targets)
    pieces, size = block_shape(count)

    def cut(array: np.ndarray) -> np.ndarray:
        short = np.zeros((pieces * size - count, *array.shape[1:]), array.dtype)
        return np.concatenate([array, short]).reshape(pieces, size, *array.shape[1:])

    return Blocks(cut(inputs), cut(targets), cut(np.ones(count, np.float32)))
