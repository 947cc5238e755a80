"""The probe: a size that could not be proven to bear padding is trained padded and unpadded, side by side.

It can refute and never prove, so a sweep has to ask for it (`packing = "probed"`). It does what it can to refute: real
examples, the sweep's own optimizer, weights drawn far from their initialisation, and hundreds of steps. It computes in
float32 whatever the sweep's precision is: in fewer bits the rounding of sums in another order would hide what padding
does.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scalejax.data import load
from scalejax.data.features import as_seen, fit
from scalejax.models.behind import with_fitted
from scalejax.models.own import named_leaves
from scalejax.models.precision import FLOAT32, multiplied
from scalejax.planning.plan import Probe
from scalejax.spec import Sweep
from scalejax.spec.sweep import OWN_NUMBERS, default_numbers
from scalejax.text import first_line
from scalejax.train.convolutions import fast_on_cpu
from scalejax.train.lanes import abstract_lane
from scalejax.train.padding import HASTY, SOLO_TOLERANCE, initial_weights, pad
from scalejax.train.recipe import LaneProgram, Leaf, Settings
from scalejax.train.step import Examples, Learner, seen, start, train_step

SEGMENTS, SEGMENT_STEPS = 30, 10  # the padded run begins anew from the solo run in each segment
DISTANCE = 1.0  # of the weights from their initialisation, in their own root mean square
SMALLEST_SPREAD = 0.3  # for weights that begin at zero
RATE = 1e-2
FITTED_ON = 1000  # examples, of the features before the model
FLOOR = 1e-3  # of an array's scale: what is smaller is rounding around zero


def prober(sweep: Sweep) -> Probe:
    """Return the probe on the data of a sweep, which are loaded when the first two sizes are tried."""
    given = {name: getattr(sweep.train, name) for name in OWN_NUMBERS}
    numbers = {name: values[0] for name, values in given.items() if values is not None}

    def on_data(small: LaneProgram, large: LaneProgram) -> str:
        train = load(sweep.data).train
        return probe(small, large, Examples(train.inputs, train.targets), numbers=numbers)

    return on_data


def probe(
    small: LaneProgram, large: LaneProgram, examples: Examples, *, numbers: Mapping[str, float] | None = None
) -> str:
    """Say what padding changes in a training of some hundred steps, in words; empty if nothing was found.

    Args:
        small, large: recipes that differ in their architectures alone; `fits_into` holds of these.
        examples: of the data set, on the host.
        numbers: of the optimizer and the schedule, by name; those left out have their default.
    """
    small, large = map(_in_float32, (small, large))
    known = {**default_numbers(small.recipe.optimizer, small.recipe.schedule), **(numbers or {})}
    own = tuple(known[name] for name in small.recipe.numbers)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(examples.targets), (SEGMENTS, SEGMENT_STEPS, small.recipe.batch_size))
    batches = seen(
        small.architecture, Examples(jnp.asarray(examples.inputs[rows]), jnp.asarray(examples.targets[rows]))
    )
    try:
        params, rest = initial_weights(small.architecture, 0)
        if chain := small.architecture.features:
            rest = with_fitted(rest, fit(chain, as_seen(np.asarray(examples.inputs[:FITTED_ON])), 0))
        params = jax.tree.map(functools.partial(_far_from, generator=generator), params)
        running = jax.jit(functools.partial(fast_on_cpu, functools.partial(_side_by_side, small, large, own)))
        with multiplied(FLOAT32):
            lowered = running.lower((params, rest), batches)
        found = jax.device_get(lowered.compile(HASTY)((params, rest), batches))
    except Exception as error:  # what only the module itself knows to be wrong
        return f"padded, the module fails: {first_line(error)}"
    (losses, padded_losses), (logits, padded_logits), outside = found
    for what, one, other in (
        ("the loss", losses, padded_losses),
        ("the outputs of evaluation", logits, padded_logits),
    ):
        worst = _difference(one, other)
        if not worst <= SOLO_TOLERANCE:
            return f"padded and solo differ by {worst:.1e} in {what} within {SEGMENT_STEPS} steps"
    for (name, _), largest in zip(named_leaves(abstract_lane(large).learner), outside, strict=True):
        if largest:  # to the last bit: an optimizer that divides a gradient by its own size makes it large
            return f"padding grows to {largest:.1e} in {name} within {SEGMENT_STEPS} steps"
    return ""


def _in_float32(program: LaneProgram) -> LaneProgram:
    same = program.architecture.precision == FLOAT32
    return program if same else replace(program, architecture=replace(program.architecture, precision=FLOAT32))


def _far_from(initial: np.ndarray, *, generator: np.random.Generator) -> np.ndarray:
    """Return weights about as far from their initial values as these are from zero."""
    spread = max(DISTANCE * float(np.sqrt(np.mean(np.square(initial, dtype=np.float64)))), SMALLEST_SPREAD)
    return (initial + generator.normal(0, spread, initial.shape)).astype(initial.dtype)


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the array's own scale; NaN if only one of them is finite."""
    with np.errstate(invalid="ignore"):
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        gap = np.where(same, 0.0, np.abs(one - other)).max(initial=0.0)
    scale = np.abs(one, where=np.isfinite(one), out=np.zeros_like(one)).max(initial=0.0)
    return float(gap) / max(float(scale), FLOOR)


def _side_by_side(
    small: LaneProgram,
    large: LaneProgram,
    numbers: tuple[float, ...],
    own: tuple[nnx.State, nnx.State],
    batches: Examples,
):
    """Return (losses, logits) of the solo and of the padded run, and the largest number in the padding of each leaf."""
    settings = Settings(
        learning_rate=jnp.float32(RATE),
        weight_decay=jnp.float32(RATE),
        steps=jnp.int32(SEGMENTS * SEGMENT_STEPS),
        warmup_steps=jnp.int32(0),
        train_examples=jnp.uint32(1),
        subset_key=jnp.uint32(0),
        shuffle_key=jnp.uint32(0),
        numbers=tuple(map(np.float32, numbers)),
    )
    like = abstract_lane(large).learner

    def step(program: LaneProgram, learner: Learner, batch: Examples) -> tuple[Learner, jax.Array]:
        after = train_step(program, settings, learner, batch)
        return after, after.loss_sum - learner.loss_sum

    def segment(solo: Learner, batches: Examples):
        padded, padded_losses = jax.lax.scan(functools.partial(step, large), pad(solo, like), batches)
        shapes = jax.tree.map(lambda leaf: leaf.shape, solo)
        outside = jax.tree.leaves(
            jax.tree.map(_outside, padded, shapes, is_leaf=lambda leaf: isinstance(leaf, jax.Array))
        )
        solo, losses = jax.lax.scan(functools.partial(step, small), solo, batches)
        # Evaluation may read what training only writes, such as statistics over the units, padded ones included.
        last = batches.inputs[-1]
        logits = small.architecture.predict(solo.params, solo.rest, last)
        padded_logits = large.architecture.predict(padded.params, padded.rest, last)
        return solo, ((losses, padded_losses), (logits, padded_logits), outside)

    _, (losses, logits, outside) = jax.lax.scan(segment, start(small.recipe, settings, own).learner, batches)
    return losses, logits, [each.max() for each in outside]


def _outside(wide: Leaf, shape: tuple[int, ...]) -> jax.Array:
    """Return the largest number, by its absolute value, that lies beyond a shape; NaN counts as one."""
    if wide.shape == shape:
        return jnp.float32(0)  # also random keys
    inside = tuple(slice(size) for size in shape)
    beyond = jnp.abs(wide.at[inside].set(0)).astype(jnp.float32)
    return jnp.where(jnp.isnan(beyond), jnp.inf, beyond).max()
