"""How one trial is spread over several devices: the axes of a mesh, and what of a training step is sharded over which.

A step says what is sharded (the examples of a batch, the gradient as the parameters) and the mesh around the program
says over how many devices. In a program on one device, or with a lane on each, nothing is.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import jax
from jax import lax
from jax.sharding import PartitionSpec

# Trials side by side; the examples of each one's batch; and the parameters, with the optimizer's state, over which the
# examples are sharded as well (fully sharded data parallelism: Rajbhandari et al. 2020, arXiv:1910.02054).
LANE_AXIS, BATCH_AXIS, PARAMETER_AXIS = "lane", "batch", "parameters"
SMALLEST_SHARDED = 2**14  # numbers of an array; smaller ones are replicated

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Spread:
    """Over how many devices each trial of a program is spread: the sizes of two axes of the mesh.

    Attributes:
        batch: over how many the batch is sharded, each of which has all parameters (data parallelism).
        parameters: over how many the parameters, the optimizer's state and the best parameters are sharded, and the
            batch once more (fully sharded data parallelism).
    """

    batch: int = 1
    parameters: int = 1

    @property
    def devices(self) -> int:
        """How many devices a lane has."""
        return self.batch * self.parameters


NOT_SPREAD = Spread()


def parameter_axis(shape: tuple[int, ...], count: int) -> int | None:
    """Return the axis along which an array of one trial is sharded over `count` devices; None: it is replicated.

    The longest that can be divided evenly; of two the later, since stacked blocks are on the first and pass one by one.
    """
    if count == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def shard_examples(batch: Tree) -> Tree:
    """Shard arrays [examples, ...] over the devices of a trial, where they can be divided evenly."""
    sizes = _sizes()
    axes = tuple(axis for axis in (BATCH_AXIS, PARAMETER_AXIS) if sizes.get(axis, 1) > 1)
    count = math.prod(sizes[axis] for axis in axes)

    def one(array: jax.Array) -> jax.Array:
        if not axes or array.ndim == 0 or array.shape[0] % count:
            return array
        return lax.with_sharding_constraint(array, PartitionSpec(axes))

    return jax.tree.map(one, batch)


def shard_as_parameters(tree: Tree) -> Tree:
    """Shard the arrays of a gradient as the parameters are, by the mesh around the program."""
    return jax.tree.map(_sharded, tree) if _sizes().get(PARAMETER_AXIS, 1) > 1 else tree


def gather_parameters(params: Tree) -> Tree:
    """Replicate parameters that are sharded (an all-gather), for the products that need all of them."""
    return jax.tree.map(_gathered, params) if _sizes().get(PARAMETER_AXIS, 1) > 1 else params


def _sharded(array: jax.Array) -> jax.Array:
    axis = parameter_axis(array.shape, _sizes()[PARAMETER_AXIS])
    if axis is None:
        return array
    return lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, PARAMETER_AXIS))


@jax.custom_vjp
def _gathered(array: jax.Array) -> jax.Array:
    sharded = parameter_axis(array.shape, _sizes()[PARAMETER_AXIS]) is not None
    return lax.with_sharding_constraint(array, PartitionSpec()) if sharded else array


# Backward, the devices' gradients are summed into the shards of the parameters (a reduce-scatter): the rule that JAX
# would derive has the whole sum on every device first.
_gathered.defvjp(lambda array: (_gathered(array), None), lambda _, gradient: (_sharded(gradient),))


def _sizes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)) if mesh.axis_names else {}
