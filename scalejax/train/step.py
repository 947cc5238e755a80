"""The training of ONE model as pure functions: batch, step, evaluation. `lanes.py` lifts it over many.

Every array here belongs to a single trial, unbatched; whatever differs between trials is an array, never a constant.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax

from scalejax.data.shuffle import divide, index_shuffle, mix
from scalejax.models import Architecture
from scalejax.train.optimizers import make_optimizer
from scalejax.train.recipe import DECAY_FRACTION, LaneProgram, Leaf, Recipe, Settings
from scalejax.train.rematerialisation import rematerialised
from scalejax.train.schedules import SCHEDULES, Schedule
from scalejax.train.sharding import gather_parameters, shard_as_parameters, shard_examples
from scalejax.train.task import Task

BLOCK_STEPS = 32  # whose batches are drawn at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cursor:
    """Where a call begins in the trial's stream of examples. Computed on the host, where integers do not overflow."""

    epoch: Leaf  # uint32
    position: Leaf  # uint32, below train_examples


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Learner:
    """What a training step changes."""

    params: nnx.State
    rest: nnx.State  # state that is not trained: sizes, statistics
    optimizer: optax.OptState
    step: Leaf  # int32, steps taken
    loss_sum: Leaf  # float32, of the training loss since the last evaluation
    loss_count: Leaf  # int32, steps since the last evaluation
    diverged_step: Leaf  # int32, the first step whose loss was not finite; 0 is none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slope:
    """The loss of a batch, and what it changes by."""

    loss: Leaf  # float32
    rest: nnx.State  # updated by the forward pass
    gradient: nnx.State  # as the parameters


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Best:
    """The parameters with the lowest validation loss so far."""

    loss: Leaf  # float32
    step: Leaf  # int32
    params: nnx.State
    rest: nnx.State


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrialState:
    """A running trial."""

    settings: Settings
    learner: Learner
    best: Best


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Examples:
    """Examples on a device: inputs [n, ...], targets [n, ...], in the types in which they are stored."""

    inputs: Leaf
    targets: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Blocks:
    """Examples in blocks of one size, so that evaluation needs bounded memory.

    inputs [blocks, size, ...], targets [blocks, size, ...], weight float32 [blocks, size]: 0 where padded.
    """

    inputs: Leaf
    targets: Leaf
    weight: Leaf


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Measurement:
    """What an evaluation saw; every field a scalar, the losses and the metric NaN where the trial was not evaluated."""

    train_loss: Leaf  # mean over the steps since the last evaluation
    validation_loss: Leaf
    validation_metric: Leaf
    best_step: Leaf
    diverged_step: Leaf


def learning_rate(
    settings: Settings, step: jax.Array, *, schedule: str | Schedule, decay_fraction: jax.Array | float = 0.0
) -> jax.Array:
    """Return the learning rate of step number `step` (from 0): a linear warm-up, multiplied with a schedule.

    Args:
        settings: of the trial.
        step: int32 [].
        schedule: what comes after the warm-up: a name of `SCHEDULES`, or the user's own function of the step and the
            horizon to a factor.
        decay_fraction: share of the horizon over which "wsd" falls.
    """
    warmup = jnp.maximum(settings.warmup_steps, 1).astype(jnp.float32)
    ramp = jnp.where(settings.warmup_steps > 0, jnp.minimum(1.0, (step + 1) / warmup), 1.0)
    rate = settings.learning_rate * ramp
    if not isinstance(schedule, str):
        return rate * jnp.asarray(schedule(step, settings.steps), jnp.float32)
    factor = SCHEDULES[schedule]
    return rate * factor(step, settings.steps, warmup_steps=settings.warmup_steps, decay_fraction=decay_fraction)


def _rule(recipe: Recipe, settings: Settings) -> optax.GradientTransformation:
    """Return the optimizer of a recipe with the numbers of a trial."""
    numbers = {name: value for name, value in settings.named(recipe).items() if name != DECAY_FRACTION}
    return make_optimizer(recipe.optimizer, recipe.clip_norm, numbers=numbers)


def start(recipe: Recipe, settings: Settings, weights: tuple[nnx.State, nnx.State]) -> TrialState:
    """Return the state of a trial before its first step, from its (padded) parameters and rest."""
    params, rest = weights
    zero = jnp.zeros((), jnp.int32)
    learner = Learner(
        params=params,
        rest=rest,
        optimizer=_rule(recipe, settings).init(widened(params)),
        step=zero,
        loss_sum=jnp.zeros((), jnp.float32),
        loss_count=zero,
        diverged_step=zero,
    )
    return TrialState(settings, learner, Best(jnp.full((), jnp.inf, jnp.float32), zero, params, rest))


def batch_indices(
    recipe: Recipe,
    settings: Settings,
    cursor: Cursor,
    *,
    pool: int,
    first: jax.Array,
    batches: int = BLOCK_STEPS,
    known: bool = False,
) -> jax.Array:
    """Return the rows of the pool for some batches, int32 [batches, batch_size], without replacement.

    The batches are those from step `first` after the cursor on. One vectorised call for all of them: drawn step by
    step the indices of a small network's batch would cost as much as its training. `known` is that of `index_shuffle`.
    """
    count, size = batches * recipe.batch_size, settings.train_examples
    begin = cursor.position + first.astype(jnp.uint32) * recipe.batch_size
    further, offset = divide(begin % size + jnp.arange(count, dtype=jnp.uint32), size)
    epoch_key = mix(settings.shuffle_key ^ mix(cursor.epoch + begin // size + further + 1))
    # Twice the same loop, not two loops: the shuffle is a quarter of what there is to compile.
    sizes, keys = jnp.stack([size, jnp.uint32(pool)]), (epoch_key, jnp.broadcast_to(settings.subset_key, count))

    def shuffle(index: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return index_shuffle(index, size=given[0], key=given[1], known=known), None

    row, _ = lax.scan(shuffle, offset, (sizes, jnp.stack(keys)))
    return row.astype(jnp.int32).reshape(batches, recipe.batch_size)


def seen(architecture: Architecture, batch: Examples) -> Examples:
    """Return examples as a model and its task see them: pixels as float32 from 0 to 1, tokens and classes as int32."""
    inputs, targets = batch.inputs, batch.targets
    scale = 255 if architecture.dtype == "float32" and inputs.dtype == jnp.uint8 else 1
    inputs = inputs.astype(architecture.dtype)
    if targets.dtype != jnp.float32:
        targets = targets.astype(jnp.int32)
    return Examples(inputs if scale == 1 else inputs / scale, targets)


def learned(task: Task, batch: Examples) -> jax.Array:
    """Return what a task has a model learn of a batch, as the two see it: its targets, unless the task says else."""
    makes = getattr(task, "targets", None)
    return batch.targets if makes is None else makes(batch.inputs, batch.targets)


def train_step(program: LaneProgram, settings: Settings, learner: Learner, batch: Examples) -> Learner:
    """Take one step of gradient descent on the mean loss of one batch."""
    found = accumulated(program, learner, batch)
    return descend(program, settings, learner, replace(found, gradient=shard_as_parameters(found.gradient)))


def accumulated(program: LaneProgram, learner: Learner, batch: Examples) -> "Slope":
    """Return the slope of a batch, or its mean over `program.microbatches` parts, which are in memory one at a time.

    A part has one example of each so many neighbours, so that examples stay on their devices. Gradients are added up
    in float32, whatever the parameters are stored in.
    """
    architecture, task, parts = program.architecture, program.recipe.task, program.microbatches

    def found(rest: nnx.State, batch: Examples) -> Slope:
        return slope(architecture, task, learner.params, rest, batch=batch, rematerialise=program.rematerialise)

    if parts == 1:
        return found(learner.rest, batch)

    def apart(array: jax.Array) -> jax.Array:
        return jnp.moveaxis(array.reshape(array.shape[0] // parts, parts, *array.shape[1:]), 1, 0)

    def one(total: Slope, part: Examples) -> tuple[Slope, None]:
        own = found(total.rest, shard_examples(part))
        gradient = shard_as_parameters(widened(own.gradient))
        gradient = jax.tree.map(lambda sum, each: sum + each / parts, total.gradient, gradient)
        return Slope(total.loss + own.loss / parts, own.rest, gradient), None

    nothing = Slope(
        jnp.float32(0), learner.rest, shard_as_parameters(jax.tree.map(jnp.zeros_like, widened(learner.params)))
    )
    total, _ = lax.scan(one, nothing, jax.tree.map(apart, batch))
    return total


def slope(
    architecture: Architecture,
    task: Task,
    params: nnx.State,
    rest: nnx.State,
    *,
    batch: Examples,
    rematerialise: bool = False,
) -> Slope:
    """Return the mean loss of a batch and its gradient: all of a step that depends on the model and the task.

    Where asked for, what the blocks of a stacked model compute is computed again in the backward pass.
    """
    forward = rematerialised(architecture.forward) if rematerialise else architecture.forward

    def loss_of(params: nnx.State) -> tuple[jax.Array, nnx.State]:
        outputs, updated = forward(gather_parameters(params), rest, batch.inputs)
        return task.loss(outputs, learned(task, batch)).mean(), updated

    (loss, updated), gradient = jax.value_and_grad(loss_of, has_aux=True)(params)
    return Slope(loss, updated, gradient)


def descend(program: LaneProgram, settings: Settings, learner: Learner, slope: Slope) -> Learner:
    """Move the parameters against a gradient: all of a step that depends on the optimizer, for arrays of any shape.

    It computes in float32 and rounds to each parameter's own type at the end. The optimizer's state is float32 too: in
    bfloat16 a moment that decays by a thousandth a step would never move, because a thousandth is below its rounding.
    """
    recipe, gradient, wide = program.recipe, widened(slope.gradient), widened(learner.params)
    update, optimizer = _rule(recipe, settings).update(gradient, learner.optimizer, wide)
    fraction = settings.named(recipe).get(DECAY_FRACTION, 0.0)
    rate = learning_rate(settings, learner.step, schedule=recipe.schedule, decay_fraction=fraction)

    def moved(parameter: jax.Array, change: jax.Array, decays: bool) -> jax.Array:
        return parameter - rate * (change + settings.weight_decay * parameter if decays else change)

    decays = jax.tree.unflatten(jax.tree.structure(learner.params), program.decayed)
    params = jax.tree.map(moved, wide, update, decays)
    params = jax.tree.map(lambda new, old: new.astype(old.dtype), params, learner.params)
    step = learner.step + 1
    first_bad = (learner.diverged_step == 0) & ~jnp.isfinite(slope.loss)
    return Learner(
        params=params,
        rest=slope.rest,
        optimizer=optimizer,
        step=step,
        loss_sum=learner.loss_sum + slope.loss,
        loss_count=learner.loss_count + 1,
        diverged_step=jnp.where(first_bad, step, learner.diverged_step),
    )


def widened(tree: nnx.State) -> nnx.State:
    """Return parameters or their gradient in float32, where they are in fewer bits."""
    return jax.tree.map(lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree)


def train(program: LaneProgram, state: TrialState, cursor: Cursor, *, pool: Examples, steps: jax.Array) -> TrialState:
    """Take `steps` (a traced integer) training steps from `cursor` on, block by block.

    Args:
        program: the constants.
        state: of the trial.
        cursor: as described there.
        pool: [n, ...]; of a streamed program the batches themselves, [most steps, batch_size, ...].
        steps: to take.
    """

    def block(number: jax.Array, state: TrialState) -> TrialState:
        first = number * BLOCK_STEPS
        left = jnp.minimum(BLOCK_STEPS, steps - first)
        return train_block(program, state, cursor, pool=pool, first=first, drawn=BLOCK_STEPS, steps=left)

    return lax.fori_loop(0, (steps + BLOCK_STEPS - 1) // BLOCK_STEPS, block, state)


def train_block(
    program: LaneProgram,
    state: TrialState,
    cursor: Cursor,
    *,
    pool: Examples,
    first: jax.Array,
    drawn: int,
    steps: jax.Array | int,
) -> TrialState:
    """Take some training steps, whose batches are drawn at once.

    Args:
        program, state, cursor, pool: as for `train`.
        first: steps between the cursor and the first of these.
        drawn: batches that are drawn.
        steps: to take, at most as many; a number of Python's makes all loops of the program as long as it says.
    """
    if program.stream_steps:
        rows = first + jnp.arange(drawn)
    else:
        known, count = isinstance(steps, int), pool.targets.shape[0]
        rows = batch_indices(
            program.recipe, state.settings, cursor, pool=count, first=first, batches=drawn, known=known
        )

    def batch(chosen: jax.Array) -> Examples:
        found = jax.tree.map(lambda array: array.at[chosen].get(mode="promise_in_bounds"), pool)
        return shard_examples(seen(program.architecture, found))

    if isinstance(steps, int):
        return _known_steps(program, state, batch, rows=rows)

    def step(within: jax.Array, learner: Learner) -> Learner:
        return train_step(program, state.settings, learner, batch(rows[within]))

    return replace(state, learner=lax.fori_loop(0, steps, step, state.learner))


def _known_steps(
    program: LaneProgram, state: TrialState, batch: Callable[[jax.Array], Examples], *, rows: jax.Array
) -> TrialState:
    """Take a step on each batch of rows int32 [steps, batch_size], as `train_step` does.

    What it counts is counted afterwards, for all steps: in each step it would be a launch or two of an accelerator.
    """
    start = state.learner

    def step(weights: tuple[Any, ...], each: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, ...], jax.Array]:
        number, chosen = each
        params, rest, optimizer = weights
        learner = replace(start, params=params, rest=rest, optimizer=optimizer, step=number, loss_sum=jnp.float32(0))
        after = train_step(program, state.settings, learner, batch(chosen))
        return (after.params, after.rest, after.optimizer), after.loss_sum

    count = len(rows)
    begun = start.params, start.rest, start.optimizer
    (params, rest, optimizer), losses = lax.scan(step, begun, (start.step + jnp.arange(count), rows))
    bad = ~jnp.isfinite(losses)
    first_bad = (start.diverged_step == 0) & bad.any()
    learner = Learner(
        params=params,
        rest=rest,
        optimizer=optimizer,
        step=start.step + count,
        loss_sum=sum(losses, start.loss_sum),  # one after the other: it must not depend on how a call is divided
        loss_count=start.loss_count + count,
        diverged_step=jnp.where(first_bad, start.step + 1 + bad.argmax(), start.diverged_step),
    )
    return replace(state, learner=learner)


def loss_and_metric(
    architecture: Architecture, task: Task, params: nnx.State, rest: nnx.State, *, blocks: Blocks
) -> tuple[jax.Array, jax.Array]:
    """Return the mean loss and the headline metric over all blocks."""

    @functools.partial(jax.jit, inline=True)  # traced once for its shape and the loop; no call is left of it
    def sums(block: Blocks) -> jax.Array:
        batch = shard_examples(seen(architecture, Examples(block.inputs, block.targets)))
        outputs = architecture.predict(params, rest, batch.inputs)
        targets = learned(task, batch)
        # A padded example must not turn a finite sum into NaN through 0 * inf.
        kept = block.weight > 0

        def total(each: jax.Array) -> jax.Array:
            return jnp.where(kept.reshape(-1, *[1] * (each.ndim - 1)), each, 0.0).sum(0).reshape(-1)

        return jnp.concatenate([total(task.loss(outputs, targets)), total(task.score(outputs, targets))])

    def one(totals: jax.Array, block: Blocks) -> tuple[jax.Array, None]:
        return totals + sums(block), None

    size = jax.eval_shape(sums, jax.tree.map(lambda array: array[0], blocks)).shape
    totals, _ = lax.scan(one, jnp.zeros(size, jnp.float32), blocks)
    means = totals / blocks.weight.sum()
    return means[0], task.headline(means[1] if size == (2,) else means[1:])


def validate(program: LaneProgram, state: TrialState, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Return the validation loss and metric of the parameters as they stand."""
    weights = state.learner.params, state.learner.rest
    return loss_and_metric(program.architecture, program.recipe.task, *weights, blocks=blocks)


def record_evaluation(
    state: TrialState, due: jax.Array, validated: tuple[jax.Array, jax.Array]
) -> tuple[TrialState, Measurement]:
    """Record a validation loss and metric; keep the parameters if they are the best so far.

    Nothing changes unless the trial was `due`.
    """
    learner, best = state.learner, state.best
    loss, metric = validated
    better = due & (learner.diverged_step == 0) & (loss < best.loss)

    def keep(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(better, new, old)

    best = Best(
        loss=keep(loss, best.loss),
        step=keep(learner.step, best.step),
        params=jax.tree.map(keep, learner.params, best.params),
        rest=jax.tree.map(keep, learner.rest, best.rest),
    )
    measurement = Measurement(
        train_loss=learner.loss_sum / learner.loss_count,
        validation_loss=loss,
        validation_metric=metric,
        best_step=best.step,
        diverged_step=learner.diverged_step,
    )
    cleared = replace(
        learner,
        loss_sum=jnp.where(due, 0.0, learner.loss_sum),
        loss_count=jnp.where(due, 0, learner.loss_count),
    )
    return TrialState(state.settings, cleared, best), measurement


def test(program: LaneProgram, state: TrialState, *, blocks: Blocks) -> tuple[jax.Array, jax.Array]:
    """Return the test loss and metric of the best parameters."""
    weights = state.best.params, state.best.rest
    return loss_and_metric(program.architecture, program.recipe.task, *weights, blocks=blocks)
