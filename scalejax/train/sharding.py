"""How one trial is spread over several devices: the axes of a mesh, and what of a training step lies along which.

A step says what is spread (the examples of a batch, the gradient as the parameters) and the mesh around the program
says over what. In a program on one device, or with a lane on each, nothing is.
"""

import math
from typing import TypeVar

import jax
from jax import lax
from jax.sharding import PartitionSpec

# Trials side by side; the examples of each one's batch; and the parameters, with what the optimizer keeps of them, over
# which the examples are spread as well (fully sharded data parallelism: Rajbhandari et al. 2020, arXiv:1910.02054).
LANE_AXIS, BATCH_AXIS, PARAMETER_AXIS = "lane", "batch", "parameters"
SMALLEST_SHARDED = 2**14  # numbers of an array; what is smaller is held by every device

Tree = TypeVar("Tree")


def parameter_axis(shape: tuple[int, ...], count: int) -> int | None:
    """Return the axis along which an array of one trial is cut for `count` devices; None: each of them holds it.

    The longest that can be cut evenly; of two the later, since stacked blocks are on the first and pass one by one.
    """
    if count == 1 or math.prod(shape) < SMALLEST_SHARDED:
        return None
    fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
    return max(fitting, key=lambda axis: (shape[axis], axis), default=None)


def over_examples(batch: Tree) -> Tree:
    """Spread arrays [examples, ...] over the devices that share a trial, as far as they can be cut evenly."""
    sizes = _sizes()
    axes = tuple(axis for axis in (BATCH_AXIS, PARAMETER_AXIS) if sizes.get(axis, 1) > 1)
    count = math.prod(sizes[axis] for axis in axes)

    def one(array: jax.Array) -> jax.Array:
        if not axes or array.ndim == 0 or array.shape[0] % count:
            return array
        return lax.with_sharding_constraint(array, PartitionSpec(axes))

    return jax.tree.map(one, batch)


def as_parameters(tree: Tree) -> Tree:
    """Cut the arrays of a gradient, or of parameters, as the mesh around the program has parameters cut."""
    return jax.tree.map(_cut, tree) if _sizes().get(PARAMETER_AXIS, 1) > 1 else tree


def whole(params: Tree) -> Tree:
    """Bring the arrays of parameters together that are cut, for the products that need all of them."""
    return jax.tree.map(_whole, params) if _sizes().get(PARAMETER_AXIS, 1) > 1 else params


def _cut(array: jax.Array) -> jax.Array:
    axis = parameter_axis(array.shape, _sizes()[PARAMETER_AXIS])
    if axis is None:
        return array
    return lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, PARAMETER_AXIS))


@jax.custom_vjp
def _whole(array: jax.Array) -> jax.Array:
    cut = parameter_axis(array.shape, _sizes()[PARAMETER_AXIS]) is not None
    return lax.with_sharding_constraint(array, PartitionSpec()) if cut else array


# Backward, the parts that devices have of a gradient are added up where they are kept (a reduce-scatter): the rule that
# JAX would derive has all of them on every device first.
_whole.defvjp(lambda array: (_whole(array), None), lambda _, gradient: (_cut(gradient),))


def _sizes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True)) if mesh.axis_names else {}
