"""A model behind features: one module, whose fitted arrays are state that is never trained.

So to all that trains, packs, saves or proves, features are a part of the model like any other.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from scalejax.data.features import Chain, Fitted, Shape, apply_step, shapes
from scalejax.models import own
from scalejax.models.precision import FLOAT32, fast_products, rounded


class FittedArray(nnx.Variable):
    """An array that a step has fitted; zero until its trial's own fit is filled in."""


class Behind(nnx.Module):
    """A model that sees its inputs through a chain of features.

    Args:
        model: any module.
        chain: the steps.
        shape: of one example before them.
        computes: the type of the inputs of the model. The steps themselves are float32, as what they were fitted on.
    """

    def __init__(self, model: nnx.Module, chain: Chain, shape: Shape, computes: str = FLOAT32):
        self.model = model
        self.computes = computes
        self.chain = nnx.static(chain)
        self.fitted = nnx.List(
            [
                nnx.Dict({name: FittedArray(jnp.zeros(of)) for name, of in step.arrays(before).items()})
                for step, before in zip(chain, shapes(chain, shape), strict=False)
            ]
        )

    def __call__(self, x: jax.Array, *, training: bool = False) -> jax.Array:
        """Map inputs [batch, *shape] to the outputs of the model; `training` is its flag, whatever that is called."""
        for step, arrays in zip(self.chain, self.fitted, strict=True):
            x = apply_step(step, {name: array[...] for name, array in arrays.items()}, x)
        with fast_products(self.computes):
            return own.called_for(self.model, rounded(x, self.computes), training=training)


def with_fitted(rest: nnx.State, fitted: Sequence[Fitted]) -> nnx.State:
    """Return the rest of a model behind features, on the host, with what its steps have fitted."""
    found = {f"fitted.{place}.{name}": array for place, arrays in enumerate(fitted) for name, array in arrays.items()}
    named = own.named_leaves(rest)
    return jax.tree.unflatten(jax.tree.structure(rest), [found.get(name, leaf) for name, leaf in named])
