"""Zero padding: a small model's arrays inside a larger model's shapes, and the probe that checks it changes nothing.

Zero is a fixed point of gradient training: a unit whose arrays are all zero puts out zero, receives a zero gradient,
and every optimizer here maps zero to zero. So models of different sizes share one program, without masks.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scalejax.engine.step import Examples, Leaf, Learner, Recipe, Settings, start, train_step
from scalejax.models import Architecture

# For programs that run for a millisecond: optimised they would take a second to compile, so a third of it.
HASTY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
PROBE_STEPS = 4
PROBE_BATCH = 8
PROBE_FLOOR = 1e-3  # of an array's scale: what is smaller is rounding around zero
PROBE_TOLERANCE = 1e-5  # relative; packed against solo over at most ten steps


def weights(architecture: Architecture) -> tuple[nnx.State, nnx.State]:
    """Return the abstract parameters and rest of an architecture."""
    return architecture.abstract[1:]


@functools.cache
def structure(architecture: Architecture) -> tuple[object, ...]:
    """Return what must be equal for two sizes to share a program: the tree, and each leaf's type and rank."""
    leaves, tree = jax.tree.flatten(weights(architecture))
    return (tree, *((str(leaf.dtype), len(leaf.shape)) for leaf in leaves))


def fits_into(small: Architecture, large: Architecture) -> bool:
    """Say whether every array of `small` fits into the corresponding array of `large`."""
    if structure(small) != structure(large):
        return False
    return all(inner <= outer for inner, outer in zip(_axes(small), _axes(large), strict=True))


@functools.cache
def _axes(architecture: Architecture) -> tuple[int, ...]:
    """Return the sizes of all axes of all arrays."""
    return tuple(size for leaf in jax.tree.leaves(weights(architecture)) for size in leaf.shape)


def initial_weights(architecture: Architecture, key: int) -> tuple[nnx.State, nnx.State]:
    """Return parameters and rest at the true size, on the host, drawn from 32 random bits.

    One size at a time: compiled over lanes or at the padded size, initialisation would cost more than it saves.
    """
    return jax.device_get(initialiser(architecture)(np.uint32(key)))


@functools.cache
def initialiser(architecture: Architecture):
    """Return the compiled program from 32 random bits to parameters and rest at the true size."""
    drawing = jax.jit(lambda key: architecture.initialise(jax.random.key(key)))
    return drawing.lower(jax.ShapeDtypeStruct((), np.uint32)).compile(HASTY)


def pad(tree: nnx.State, like: nnx.State) -> nnx.State:
    """Return `tree` with zeros appended to every axis until its arrays have the shapes of `like`."""

    def one(array: Leaf, target: jax.ShapeDtypeStruct) -> Leaf:
        if array.shape == target.shape:
            return array  # also what cannot be padded, such as random keys
        widths = [(0, want - have) for have, want in zip(array.shape, target.shape, strict=True)]
        return np.pad(array, widths) if isinstance(array, np.ndarray) else jnp.pad(array, widths)

    return jax.tree.map(one, tree, like)


def stack_padded(trees: Sequence[nnx.State], like: nnx.State) -> nnx.State:
    """Return trees of arrays on the host, zeros appended to the shapes of `like`, with a leading axis over trees."""

    def one(target: jax.ShapeDtypeStruct, *arrays: Leaf) -> Leaf:
        if not isinstance(arrays[0], np.ndarray):
            return jnp.stack(arrays)  # random keys, which know no zeros
        stacked = np.zeros((len(arrays), *target.shape), target.dtype)
        for row, array in enumerate(arrays):
            stacked[row, *(slice(size) for size in array.shape)] = array
        return stacked

    return jax.tree.map(one, like, *trees)


@dataclass(frozen=True)
class Probe:
    """What the probe found: whether a size may be padded to another and, if not, why in words."""

    packable: bool
    reason: str


def probe(small: Architecture, large: Architecture, *, recipe: Recipe, shape: tuple[int, ...]) -> Probe:
    """Train `small` solo and padded to `large` side by side for a few steps and compare losses and parameters.

    Args:
        small: the size to pad.
        large: the size to pad it to; `fits_into(small, large)` holds.
        recipe: schedule and clipping to probe with; its architecture and its optimizer are not used.
        shape: of one example's inputs.
    """
    generator = np.random.default_rng(0)
    batch = Examples(
        generator.normal(size=(PROBE_STEPS, PROBE_BATCH, *shape)).astype(np.float32),
        generator.integers(0, 2, (PROBE_STEPS, PROBE_BATCH)).astype(np.int32),
    )
    try:
        training = jax.jit(functools.partial(_side_by_side, small, large, recipe))
        own = initial_weights(small, 0)
        solo, padded = training.lower(own, batch).compile(HASTY)(own, batch)
    except (TypeError, ValueError) as error:  # shapes that only the module itself knows to be wrong
        return Probe(False, f"padded, the module fails: {str(error).splitlines()[0]}")
    worst, where = -1.0, ""
    for (name, one), (_, other) in zip(_named(*solo), _named(*padded), strict=True):
        difference = _difference(np.asarray(one), np.asarray(other))
        if difference > worst or not np.isfinite(difference):
            worst, where = difference, name
    if not worst <= PROBE_TOLERANCE:
        return Probe(False, f"padded and solo differ by {worst:.1e} in {where} after {PROBE_STEPS} steps")
    for (name, one), like in zip(_named(*padded), (*padded[:2], *jax.tree.leaves(own[0])), strict=True):
        outside = np.array(one)
        outside[tuple(slice(size) for size in like.shape)] = 0
        if outside.any():  # to the last bit: an optimizer that divides a gradient by its own size makes it large
            return Probe(False, f"padding grows to {np.abs(outside).max():.1e} in {name} after {PROBE_STEPS} steps")
    return Probe(True, f"padded equals solo to {worst:.0e}")


def _named(losses: Leaf, logits: Leaf, params: nnx.State) -> Iterator[tuple[str, Leaf]]:
    """Yield what is compared, each with its name in words."""
    yield "the loss", losses
    yield "the logits of evaluation", logits
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the array's own scale."""
    scale = max(float(np.abs(one).max(initial=0.0)), PROBE_FLOOR)
    return float(np.abs(one - other).max(initial=0.0)) / scale


def _side_by_side(
    small: Architecture, large: Architecture, recipe: Recipe, own: tuple[nnx.State, nnx.State], batches: Examples
):
    """Return (losses [steps], final logits, final parameters padded to `large`) of the solo and of the padded run."""
    settings = Settings(
        learning_rate=jnp.float32(1e-1),
        weight_decay=jnp.float32(1e-2),
        steps=jnp.int32(PROBE_STEPS),
        warmup_steps=jnp.int32(0),
        train_examples=jnp.uint32(1),
        subset_key=jnp.uint32(0),
        shuffle_key=jnp.uint32(0),
    )
    results = []
    for architecture in (small, large):
        # Plain descent, where rounding stays rounding: Adam divides a gradient that is zero but for rounding, such as
        # that of a bias on attention keys, by its own size. That zeros stay zero is asked of the padding, exactly.
        here = Recipe(architecture, "sgd", recipe.schedule, recipe.clip_norm, PROBE_BATCH)
        params, rest = (pad(one, like) for one, like in zip(own, weights(architecture), strict=True))

        def step(learner: Learner, each: Examples, here: Recipe = here) -> tuple[Learner, jax.Array]:
            after = train_step(here, settings, learner, each)
            return after, after.loss_sum - learner.loss_sum

        learner, losses = jax.lax.scan(step, start(here, settings, (params, rest)).learner, batches)
        # Evaluation may read what training only writes, such as statistics over the units, padded ones included.
        logits = architecture.predict(learner.params, learner.rest, batches.inputs[-1])
        results.append((losses, logits, pad(learner.params, weights(large)[0])))
    return results
