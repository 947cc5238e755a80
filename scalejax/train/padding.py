"""Zero padding: a small model's arrays inside a larger model's shapes.

Zero is a fixed point of gradient training: a unit whose arrays are all zero puts out zero, receives a zero gradient,
and every optimizer here maps zero to zero. So models of different sizes share one program, without masks. Which sizes
may is proven (`scalejax.planning.proof`) or, where the user asks for it, tried (`scalejax.execute.probe`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scalejax.data.host import beside_the_training
from scalejax.models import Architecture
from scalejax.train.numerics import Numerics, current
from scalejax.train.recipe import Leaf
from scalejax.train.tracing import tracing

# For programs that run for a millisecond: optimised they would take a second to compile, so a third of it.
HASTY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
Tree = TypeVar("Tree")  # of arrays: a state, a learner

SOLO_TOLERANCE = 1e-5  # relative; packed against solo over at most ten steps


@functools.cache
def structure(architecture: Architecture) -> tuple[object, ...]:
    """Return what must be equal for two sizes to share a program: precision, tree, and each leaf's type and rank."""
    leaves, tree = jax.tree.flatten(architecture.abstract[1:])
    return (architecture.precision, tree, *((str(leaf.dtype), len(leaf.shape)) for leaf in leaves))


def fits_into(small: Architecture, large: Architecture) -> bool:
    """Say whether every array of `small` fits into the corresponding array of `large`."""
    if structure(small) != structure(large):
        return False
    return all(inner <= outer for inner, outer in zip(_axes(small), _axes(large), strict=True))


@functools.cache
def _axes(architecture: Architecture) -> tuple[int, ...]:
    """Return the sizes of all axes of all arrays."""
    return tuple(size for leaf in jax.tree.leaves(architecture.abstract[1:]) for size in leaf.shape)


def initial_weights(architecture: Architecture, key: int) -> tuple[nnx.State, nnx.State]:
    """Return parameters and rest at the true size, on the host, drawn from 32 random bits.

    One size at a time: compiled over lanes or at the padded size, initialisation would cost more than it saves.
    """
    return jax.device_get(initialiser(architecture)(np.uint32(key)))


def initialiser(architecture: Architecture) -> Callable[[np.uint32], tuple[nnx.State, nnx.State]]:
    """Return the compiled program from 32 random bits to parameters and rest at the true size.

    It runs on the CPU if there is one: on an accelerator each draw would wait behind the training.
    """
    return _initialiser(architecture, current())


@functools.cache
def _initialiser(architecture: Architecture, numerics: Numerics) -> Callable[[np.uint32], tuple[nnx.State, nnx.State]]:
    del numerics  # a program compiled under other settings draws other numbers
    drawing = jax.jit(lambda key: architecture.initialise(jax.random.key(key)))
    with beside_the_training():
        with tracing():
            lowered = drawing.lower(jax.ShapeDtypeStruct((), np.uint32))
        return lowered.compile(HASTY)


def pad(tree: Tree, like: Tree) -> Tree:
    """Return `tree` with zeros appended to every axis until its arrays have the shapes of `like`."""

    def one(array: Leaf, target: jax.ShapeDtypeStruct) -> Leaf:
        if array.shape == target.shape:
            return array  # also what cannot be padded, such as random keys
        widths = [(0, want - have) for have, want in zip(array.shape, target.shape, strict=True)]
        return np.pad(array, widths) if isinstance(array, np.ndarray) else jnp.pad(array, widths)

    return jax.tree.map(one, tree, like)


def crop(tree: Tree, like: Tree) -> Tree:
    """Return `tree` cut to the shapes of `like`: undoes `pad` and `stack_padded`, and what is cut off is zero."""
    return jax.tree.map(lambda array, own: array[tuple(slice(size) for size in own.shape)], tree, like)


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
