"""The convolutional network, sized by width and depth."""

import math

import jax
from flax import nnx

from scalejax.errors import SweepError

SMALLEST = 4  # the shorter side from which an image is not halved any more


class CNN(nnx.Module):
    """`depth` convolutions of 3 x 3 with rectified linear units, the mean over all places, then a linear output.

    The first has `width` channels and keeps the image's size. Each further one halves both sides and doubles the
    channels, by a stride of two (Springenberg et al. 2015, arXiv:1412.6806), until the shorter side is 4 or less; those
    after that keep both. So an image of 8 x 8 is halved once, one of 64 x 64 four times.

    Kernels start from He-normal (He et al. 2015, arXiv:1502.01852), the output from LeCun-normal. Raises `SweepError`
    unless `shape` is that of an image, [height, width] or [height, width, channels].
    """

    def __init__(self, *, shape: tuple[int, ...], outputs: int, width: int, depth: int, rngs: nnx.Rngs):
        if len(shape) not in (2, 3):
            expected = "expected images [height, width] or [height, width, channels]"
            raise SweepError(f"the family cnn convolves images, and an example here has the shape {shape}; {expected}")
        rows, columns, features = (*shape, 1)[:3]
        he_normal = nnx.initializers.he_normal()
        layers, channels = [], width
        for layer in range(depth):
            halves = layer > 0 and min(rows, columns) > SMALLEST
            if halves:
                rows, columns, channels = math.ceil(rows / 2), math.ceil(columns / 2), 2 * channels
            strides = 2 if halves else 1
            layers.append(nnx.Conv(features, channels, (3, 3), strides=strides, kernel_init=he_normal, rngs=rngs))
            features = channels
        self.hidden = nnx.List(layers)
        self.output = nnx.Linear(features, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map images [batch, height, width] or [batch, height, width, channels] to outputs [batch, outputs]."""
        x = x if x.ndim == 4 else x[..., None]
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.output(x.mean((1, 2)))
