"""The multilayer perceptron, sized by width and depth."""

import jax
from flax import nnx


class MLP(nnx.Module):
    """`depth` hidden layers of `width` rectified linear units, then a linear output layer.

    Kernels start from He-normal (He et al. 2015, arXiv:1502.01852), the output from LeCun-normal. A unit whose arrays
    are zero stays zero, so a narrow network may be padded to a wide one.
    """

    def __init__(self, *, inputs: int, classes: int, width: int, depth: int, rngs: nnx.Rngs):
        he_normal = nnx.initializers.he_normal()
        fan_in = [inputs] + [width] * (depth - 1)
        self.hidden = nnx.List([nnx.Linear(size, width, kernel_init=he_normal, rngs=rngs) for size in fan_in])
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map inputs [batch, ...] to outputs [batch, classes]: logits, or the one number of a regression."""
        x = x.reshape(x.shape[0], -1)
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.output(x)
