"""With which numbers a model computes, and in which its parameters are stored: what a sweep calls its precision.

A product of float32 has the precision that JAX is told for it, and each kind of device its own default: TF32 on GPUs
that have it, one pass of bfloat16 on TPUs. It is told where a program is made for a device (`scalejax.train.numerics`),
and is no part of the traced model: an id does not depend on it, nor the proof of packing. Products of bfloat16 are: the
model is called on parameters and inputs that are rounded to it.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

FLOAT32 = "float32"
Tree = TypeVar("Tree")  # of arrays: a state, a batch of inputs


@dataclass(frozen=True)
class Precision:
    """A precision.

    Attributes:
        products: of float32, as JAX calls it. Its highest is float32 on every device; with "tensorfloat32" a GPU takes
            TF32, a TPU three passes of bfloat16, which round less, and a CPU float32.
        computes: the type of a model's parameters and inputs when it is called.
        stores: the type of its parameters.
    """

    products: str = "highest"
    computes: str = FLOAT32
    stores: str = FLOAT32


# A sweep file takes the names of `spec.sweep.PRECISIONS`; a test holds both equal.
PRECISIONS = {
    FLOAT32: Precision(),
    "tf32": Precision(products="tensorfloat32"),
    "bfloat16": Precision(computes="bfloat16"),
    "bfloat16_parameters": Precision(computes="bfloat16", stores="bfloat16"),
}


def rounded(tree: Tree, dtype: str) -> Tree:
    """Return arrays, those of float32 in another type; any other type, such as of tokens, was chosen and stays."""
    if dtype == FLOAT32:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, tree)


def typed_as(tree: Tree, before: Any) -> Tree:
    """Return state after a call in the types of before: a statistic of bfloat16 numbers is one of float32 again."""
    return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), tree, before)
