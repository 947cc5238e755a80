"""FLOPs of a training step: counted by hand, a multiply-add as two, and each product once."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import lax

from scalejax.models import architecture
from scalejax.train.cost import DeviceSpeed, lane_seconds, step_flops
from scalejax.train.recipe import LaneProgram, Recipe

BATCH, CLASSES, WIDTH, DEPTH = 4, 3, 8, 5
RECIPE = Recipe(optimizer="sgd", schedule="constant", clip_norm=None, batch_size=BATCH)


def flops(build, *, inputs: int, **knobs) -> int:
    return step_flops(architecture(build, knobs, shape=(inputs,), outputs=CLASSES), RECIPE)


class Strided(nnx.Module):
    """Images of 11 x 11, convolved to 5 x 5 and 2 x 2, by windows that overlap."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.into = nnx.Conv(1, width, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.on = nnx.Conv(width, 2 * width, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.out = nnx.Linear(4 * 2 * width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.on(nnx.relu(self.into(x.reshape(-1, 11, 11, 1)))))
        return self.out(hidden.reshape(x.shape[0], -1))


def test_the_gradients_of_strided_convolutions_are_counted_without_their_zeros():
    width = 3
    into = 2 * BATCH * (5 * 5) * (3 * 3) * 1 * width
    on = 2 * BATCH * (2 * 2) * (3 * 3) * width * (2 * width)
    out = 2 * BATCH * (4 * 2 * width) * CLASSES
    # Once forwards, once for the weights, once for what comes in; nothing is passed back to the images.
    assert flops(Strided, inputs=121, width=width) == 2 * into + 3 * on + 3 * out


class Growing(nnx.Module):
    """Images of 3 x 3, convolved with zeros between their points to 7 x 7, of which the mean is taken."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.into = nnx.Linear(9, 9, rngs=rngs)
        self.grow = nnx.ConvTranspose(1, width, (3, 3), strides=2, padding="VALID", rngs=rngs)
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.grow(self.into(x).reshape(-1, 3, 3, 1)).mean((1, 2)))


def test_a_convolution_of_a_dilated_image_is_counted_without_its_zeros():
    width = 5
    grow = 2 * BATCH * (3 * 3) * (3 * 3) * 1 * width  # every point meets every tap once
    into, out = 2 * BATCH * 9 * 9, 2 * BATCH * width * CLASSES
    assert flops(Growing, inputs=9, width=width) == 2 * into + 3 * grow + 3 * out


class Padded(nnx.Module):
    """A convolution whose windows reach beyond the image."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.into = nnx.Conv(1, width, (3, 3), padding="SAME", rngs=rngs)
        self.out = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.into(x.reshape(-1, 5, 5, 1))).mean((1, 2)))


def test_the_padding_of_a_convolution_counts():
    width = 5
    into, out = 2 * BATCH * (5 * 5) * (3 * 3) * width, 2 * BATCH * width * CLASSES
    assert flops(Padded, inputs=25, width=width) == 2 * into + 3 * out


class Chain(nnx.Module):
    """Layers one after the other, each of them forgotten and computed again in the backward pass if `remat`."""

    def __init__(self, *, remat: bool, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(6, WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH)])
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(linear: nnx.Linear, hidden: jax.Array) -> jax.Array:
            return nnx.gelu(linear(hidden))

        apply = nnx.remat(layer) if self.remat else layer
        hidden = self.into(x)
        for each in self.layers:
            hidden = apply(each, hidden)
        return self.out(hidden)


class Scanned(nnx.Module):
    """The same layers as one scan."""

    def __init__(self, *, remat: bool, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(6, WIDTH, rngs=rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)
        self.kernels = nnx.Param(jax.random.normal(rngs.params(), (DEPTH, WIDTH, WIDTH)))
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(hidden: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return nnx.gelu(hidden @ kernel), None

        return self.out(lax.scan(jax.checkpoint(layer) if self.remat else layer, self.into(x), self.kernels[...])[0])


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("build", [Chain, Scanned])
def test_each_product_counts_once_however_often_it_is_computed_again(build, remat: bool):
    into, each, out = 2 * BATCH * 6 * WIDTH, 2 * BATCH * WIDTH * WIDTH, 2 * BATCH * WIDTH * CLASSES
    assert flops(build, inputs=6, remat=remat) == 2 * into + 3 * DEPTH * each + 3 * out


def test_what_is_computed_again_takes_its_time():
    speed = DeviceSpeed(products=1.0, bandwidth=float("inf"), overhead=0, compile=0, lanes=1)
    plain, again = (
        lane_seconds(LaneProgram(architecture(Scanned, {"remat": remat}, shape=(6,), outputs=CLASSES), RECIPE), speed)
        for remat in (False, True)
    )
    assert again - plain == pytest.approx(DEPTH * 2 * BATCH * WIDTH * WIDTH)


class Choosing(nnx.Module):
    """A network that takes one of two ways."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.narrow, self.wide = (nnx.Param(jnp.ones((6, n * width))) for n in (1, 4))
        self.out = nnx.Linear(1, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        ways = (lambda: (x @ self.narrow[...]).sum(-1), lambda: (x @ self.wide[...]).sum(-1))
        return self.out(lax.cond(x.sum() > 0, *ways)[:, None])


def test_of_two_ways_the_costlier_one_counts():
    wide, out = 2 * BATCH * 6 * 4 * WIDTH, 2 * BATCH * CLASSES
    assert flops(Choosing, inputs=6, width=WIDTH) == 2 * wide + 3 * out
