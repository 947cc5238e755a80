"""With which numbers a model computes, and in which its parameters are stored: what a sweep calls its precision.

How exactly float32 is multiplied is told to JAX where a program is made for a device, since each kind of device has its
own default: TF32 on GPUs that have it, one pass of bfloat16 on TPUs. So it is no part of the traced model: neither an
id nor the proof of packing depends on it. To compute in bfloat16, a model is called on parameters and inputs that are
rounded to it, which is.
"""

import contextlib
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
        multiplies: how float32 is multiplied, a name of JAX's. Its "float32" is that on every device; "tensorfloat32"
            is TF32 on a GPU that has it, on a TPU three passes of bfloat16, which round less, and else float32.
        computes: the type of a model's parameters and inputs when it is called.
        stores: the type of its parameters.
    """

    multiplies: str = FLOAT32
    computes: str = FLOAT32
    stores: str = FLOAT32

    @property
    def products(self) -> str:
        """What matrix products multiply: "float32", "tensorfloat32" or "bfloat16"."""
        return self.multiplies if self.computes == FLOAT32 else self.computes


# A sweep file takes the names of `spec.sweep.PRECISIONS`; a test holds both equal.
PRECISIONS = {
    FLOAT32: Precision(),
    "tf32": Precision(multiplies="tensorfloat32"),
    "bfloat16": Precision(computes="bfloat16"),
    "bfloat16_parameters": Precision(computes="bfloat16", stores="bfloat16"),
}


def multiplied(how: str) -> contextlib.AbstractContextManager[Any]:
    """Let products of float32, and convolutions, that are traced within a block be computed as JAX calls it.

    What a model tells a product of its own stays, and so does the setting of JAX where there is one.
    """
    own = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return jax.default_matmul_precision(own or how)


def fast_products(computes: str) -> contextlib.AbstractContextManager[Any]:
    """Let a model that is called in another type than float32 multiply as fast what it makes float32 again.

    Batch statistics do so, and sizes that are carried in float32. A GPU then multiplies in TF32, a TPU in one pass of
    bfloat16, a CPU in float32.
    """
    return contextlib.nullcontext() if computes == FLOAT32 else jax.default_matmul_precision(computes)


def rounded(tree: Tree, dtype: str) -> Tree:
    """Return arrays, those of float32 in another type; any other type, such as of tokens, was chosen and stays."""
    if dtype == FLOAT32:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype == jnp.float32 else leaf, tree)


def typed_as(tree: Tree, before: Any) -> Tree:
    """Return state after a call in the types of before: a statistic of bfloat16 numbers is one of float32 again."""
    return jax.tree.map(lambda new, old: new if new.dtype == old.dtype else new.astype(old.dtype), tree, before)
