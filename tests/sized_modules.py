"""Flax modules as users write them, to be padded with zeros; of some the probe has to find that they may not be."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

HEAD = 4  # dimensions of an attention head
TOKENS = 4  # that a transformer makes of an example's inputs


class Carried(nnx.Variable):
    """A number that depends on the size. It is state, not an attribute, so that every lane has its own."""


def normed(x: jax.Array, size: jax.Array) -> jax.Array:
    """Divide by the root mean square over the last axis, of which `size` entries are no padding."""
    return x * lax.rsqrt((x * x).sum(-1, keepdims=True) / size + 1e-6)


class CarriedNorm(nnx.Module):
    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.width = Carried(jnp.float32(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return normed(x, self.width[...]) * jnp.expand_dims(self.scale[...], range(x.ndim - 1))


class Block(nnx.Module):
    """Adds zero if its arrays are zero; a bias added to its output would then have a gradient all the same."""

    def __init__(self, width: int, *, bias: bool, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, width, rngs=rngs)
        self.down = nnx.Linear(width, width, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.relu(self.up(x)))


class ResidualMLP(nnx.Module):
    """Blocks stacked along the first axis of their arrays, [depth, ...]."""

    bias = False

    def __init__(self, *, inputs: int, classes: int, width: int, depth: int, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(width, bias=self.bias, rngs=rngs)

        self.embed = nnx.Linear(inputs, width, rngs=rngs)
        self.blocks = stack(rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        graph, blocks = nnx.split(self.blocks)
        x, _ = lax.scan(lambda x, own: (nnx.merge(graph, own)(x), None), self.embed(x), blocks)
        return self.output(x)


class OutputBias(ResidualMLP):
    bias = True


class ScannedMLP(ResidualMLP):
    """The same, run by Flax's own scan."""

    def __call__(self, x: jax.Array) -> jax.Array:
        run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.output(run(self.embed(x), self.blocks))


class Transformer(nnx.Module):
    """Attention and MLPs in plain arrays. Three axes to pad: heads, and with them the model; depth; the MLPs' width."""

    def __init__(self, *, inputs: int, classes: int, heads: int, depth: int, width: int, rngs: nnx.Rngs):
        def kernel(*shape: int) -> nnx.Param:
            return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))

        model = HEAD * heads
        self.embed = kernel(inputs // TOKENS, model)
        self.attend = kernel(depth, 3, model, heads, HEAD)  # queries, keys and values
        self.merge = kernel(depth, heads, HEAD, model)
        self.up, self.bias = kernel(depth, model, width), nnx.Param(jnp.zeros((depth, width)))
        self.down = kernel(depth, width, model)
        self.norm = CarriedNorm(model)
        self.output = kernel(model, classes)
        self.fan_in_scale = Carried(jnp.float32(model**-0.5))

    def __call__(self, x: jax.Array) -> jax.Array:
        # Beside the stacked arrays, not among them: a padded block would divide by a size of zero.
        size = self.norm.width[...]

        def block(x: jax.Array, own: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            attend, merge, up, bias, down = own
            query, key, value = jnp.einsum("btm,cmhd->cbthd", normed(x, size), attend)
            attention = jax.nn.softmax(HEAD**-0.5 * jnp.einsum("bthd,bshd->bhts", query, key))
            x = x + jnp.einsum("bhts,bshd,hdm->btm", attention, value, merge)
            return x + nnx.relu(normed(x, size) @ up + bias[None, None]) @ down, None

        stacked = (self.attend, self.merge, self.up, self.bias, self.down)
        tokens = x.reshape(x.shape[0], TOKENS, -1) @ self.embed[...]
        tokens, _ = lax.scan(block, tokens, tuple(each[...] for each in stacked))
        return self.norm(tokens).mean(1) @ self.output[...] * self.fan_in_scale[...]


class Shallow(nnx.Module):
    """One hidden layer; where its norm and its scale have the width from is what differs below."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.norm = self.norm_of(width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)
        self.scale = self.scale_of(width)

    def norm_of(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        del rngs  # Flax's norms ask for it
        return CarriedNorm(width)

    def scale_of(self, width: int) -> Carried | float:
        return Carried(jnp.float32(width**-0.5))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.scale[...] if isinstance(self.scale, Carried) else self.scale
        return self.output(nnx.relu(self.norm(self.hidden(x)))) * scale


class PlainLayerNorm(Shallow):
    def norm_of(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.LayerNorm(width, rngs=rngs)


class PlainScale(Shallow):
    def scale_of(self, width: int) -> Carried | float:
        return width**-0.5


class OverExamples(Shallow):
    """Statistics of each unit over the batch: a padded unit has its own, and they are zero."""

    def norm_of(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        return nnx.BatchNorm(width, rngs=rngs)


class RunningNorm(nnx.Module):
    """Divides by a mean square over units and batches, which training only takes down."""

    def __init__(self) -> None:
        self.square = nnx.BatchStat(jnp.float32(1))
        self.use_running_average = False

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.use_running_average:
            return x * lax.rsqrt(self.square[...])
        self.square[...] = 0.9 * self.square[...] + 0.1 * (x * x).mean()
        return x


class OverUnitsInEvaluation(Shallow):
    """Trains the same when padded, but its validation loss is another."""

    def norm_of(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        del width, rngs
        return RunningNorm()


class FusedGates(nnx.Module):
    """The gates of an LSTM lie side by side in one kernel, so that zeros appended to it fall into the wrong gate."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.gates = nnx.Linear(inputs, 4 * width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        admit, forget, emit, cell = jnp.split(self.gates(x), 4, axis=-1)
        return self.output(nnx.sigmoid(emit) * nnx.tanh(nnx.sigmoid(admit) * nnx.tanh(cell) - nnx.sigmoid(forget)))
