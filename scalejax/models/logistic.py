"""Logistic regression: the traditional algorithm that flattens out."""

import jax
from flax import nnx


class Logistic(nnx.Module):
    """Multinomial logistic regression on the flattened inputs."""

    def __init__(self, *, inputs: int, classes: int, rngs: nnx.Rngs):
        self.output = nnx.Linear(inputs, classes, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map inputs [batch, ...] to outputs [batch, classes]: logits, or the one number of a regression."""
        return self.output(x.reshape(x.shape[0], -1))
