"""Flax modules as users write them: with random keys, statistics, other number types, and what may not be trained."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx


class Layers(nnx.Module):
    """Two layers and what is between them; how they are called is what differs below."""

    param_dtype = jnp.float32

    def __init__(self, *, inputs: int, classes: int, width: int = 8, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, param_dtype=self.param_dtype, rngs=rngs)
        self.output = nnx.Linear(width, classes, param_dtype=self.param_dtype, rngs=rngs)
        self.extend(width, rngs)

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width, rngs


class Hidden(Layers):
    """One hidden layer; what happens between it and the output is what differs below."""

    def between(self, x: jax.Array) -> jax.Array:
        return x

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.between(nnx.relu(self.hidden(x))))


class Dropout(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        return self.drop(x)


class BatchNorm(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(width, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


class InBfloat16(Hidden):
    param_dtype = jnp.bfloat16


class PartlyBfloat16(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.middle = nnx.Linear(width, width, param_dtype=jnp.bfloat16, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        return self.middle(x)


class Float16(Hidden):
    param_dtype = jnp.float16


class Sows(Hidden):
    def between(self, x: jax.Array) -> jax.Array:
        self.sow(nnx.Intermediate, "activations", x)
        return x


class Table(Hidden):
    """A plain array as an attribute."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.table = jnp.arange(width, dtype=jnp.float32) / width

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.table[None]


class NumpyTable(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.table = np.arange(width, dtype=np.float32) / width

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.table[None]


class Everything(BatchNorm):
    """Parameters in bfloat16, statistics, a table, and values that are sown."""

    param_dtype = jnp.bfloat16

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        super().extend(width, rngs)
        self.table = 1 + jnp.arange(width, dtype=jnp.float32) / 8

    def between(self, x: jax.Array) -> jax.Array:
        self.sow(nnx.Intermediate, "activations", x)
        return self.norm(x) * self.table[None]


class Train(Layers):
    """Asks whether it is trained, without a default."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array, train) -> jax.Array:
        return self.output(self.drop(nnx.relu(self.hidden(x)), deterministic=not train))


class Deterministic(Layers):
    """May be told that it is not trained; in training it is not told so."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array, *, deterministic: bool = False) -> jax.Array:
        return self.output(self.drop(nnx.relu(self.hidden(x)), deterministic=deterministic))


class Training(Layers):
    """Takes it that it is not trained, unless it is told so."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        return self.output(self.drop(nnx.relu(self.hidden(x)), deterministic=not training))


class Mask(Layers):
    def __call__(self, x: jax.Array, mask) -> jax.Array:
        return self.output(nnx.relu(self.hidden(x)) * mask)


class Prints(Hidden):
    def between(self, x: jax.Array) -> jax.Array:
        jax.debug.print("mean {}", x.mean())
        return x


class RaisesInCallback(Hidden):
    """Fails when it runs, and not when it is traced."""

    def between(self, x: jax.Array) -> jax.Array:
        def fail(_: np.ndarray) -> np.ndarray:
            raise RuntimeError("the table has no such row")

        stopped = jax.lax.stop_gradient(x)
        return x + jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), stopped, vmap_method="sequential")


class NoGradient(Hidden):
    def between(self, x: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: np.asarray(x), shape, x, vmap_method="sequential")


class NoMethod(Hidden):
    """Calls Python without saying how for many lanes."""

    def between(self, x: jax.Array) -> jax.Array:
        stopped = jax.lax.stop_gradient(x)
        return x + jax.pure_callback(lambda x: np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), stopped)


class PythonCounter(Hidden):
    """Counts its calls in an attribute, which a compiled program does once."""

    calls = 0

    def between(self, x: jax.Array) -> jax.Array:
        self.calls += 1
        return x / self.calls


class ChangesParameter(Hidden):
    """Normalises its own weights in every call."""

    def between(self, x: jax.Array) -> jax.Array:
        self.output.kernel[...] = self.output.kernel[...] / jnp.linalg.norm(self.output.kernel[...])
        return x


class ReplacesTable(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.table = jnp.ones(width)

    def between(self, x: jax.Array) -> jax.Array:
        self.table = self.table + 1
        return x * self.table[None]


class HiddenArray(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        scale = jnp.arange(width) + jax.random.normal(rngs.params(), (width,))
        self.scaled = lambda x: x * scale[None]

    def between(self, x: jax.Array) -> jax.Array:
        return self.scaled(x)


class Tables(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.tables = [jax.random.normal(rngs.params(), (width,))]

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.tables[0][None]


class Rematerialised(Hidden):
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.remat(lambda hidden, x: nnx.relu(hidden(x)))(self.hidden, x))


class Branches(Hidden):
    """Its output layer goes through a branch, where Flax returns all its variables."""

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.hidden(x))
        return nnx.cond(x.sum() > 0, lambda output, x: output(x), lambda output, x: 2 * output(x), self.output, hidden)


class Repeats(Hidden):
    """Its hidden layer is used in a loop that carries it."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.middle = nnx.Linear(width, width, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        @nnx.scan(in_axes=(nnx.StateAxes({...: nnx.Carry}), nnx.Carry), out_axes=nnx.Carry, length=3)
        def again(middle: nnx.Linear, x: jax.Array) -> jax.Array:
            return nnx.relu(middle(x))

        return again(self.middle, x)


class CallsBack(Hidden):
    def between(self, x: jax.Array) -> jax.Array:
        mask = jax.pure_callback(
            lambda x: (np.asarray(x) > 0.5).astype(np.float32),
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.lax.stop_gradient(x),
            vmap_method="sequential",
        )
        return x * mask


class Recurrent(nnx.Module):
    """Reads the inputs one by one; its cell's state begins from keys of the module's own."""

    def __init__(self, *, inputs: int, classes: int, width: int = 4, rngs: nnx.Rngs):
        del inputs
        self.rnn = nnx.RNN(nnx.LSTMCell(1, width, rngs=rngs), rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        read: Any = self.rnn(x[..., None])
        return self.output(read[:, -1])


class GRU(Recurrent):
    def __init__(self, *, inputs: int, classes: int, width: int = 4, rngs: nnx.Rngs):
        super().__init__(inputs=inputs, classes=classes, width=width, rngs=rngs)
        self.rnn = nnx.RNN(nnx.GRUCell(1, width, rngs=rngs))


class Attention(nnx.Module):
    def __init__(self, *, inputs: int, classes: int, heads: int = 2, rngs: nnx.Rngs):
        self.embed = nnx.Linear(inputs // 4, 4 * heads, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(heads, 4 * heads, dropout_rate=0.2, decode=False, rngs=rngs)
        self.output = nnx.Linear(4 * heads, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = self.embed(x.reshape(x.shape[0], 4, -1))
        return self.output((tokens + self.attend(tokens)).mean(1))


class LayerNorm(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


class RMSNorm(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def between(self, x: jax.Array) -> jax.Array:
        return self.norm(x)


class ConvBatchNorm(nnx.Module):
    """A convolution over images of 3 x 4, batch statistics, pooling."""

    def __init__(self, *, classes: int, width: int = 4, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm(self.conv(x.reshape(-1, 3, 4, 1))))
        return self.output(nnx.max_pool(h, (2, 2)).mean((1, 2)))


class Tokens(nnx.Module):
    """Takes whole numbers, and averages what they are looked up as."""

    def __init__(self, *, vocabulary: int, classes: int, width: int = 4, rngs: nnx.Rngs):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.embed(x)).mean(1))


class Linen(linen.Module):
    """One of Linen, with statistics, dropout and a flag."""

    width: int
    classes: int

    @linen.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = linen.Dense(self.width)(x)
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.5, deterministic=not train)(linen.relu(x))
        return linen.Dense(self.classes)(x)


def linen_module(*, classes: int, width: int = 8, rngs: nnx.Rngs) -> linen.Module:
    del rngs
    return Linen(width, classes)


class Embeds(nnx.Module):
    """Takes the inputs for whole numbers."""

    def __init__(self, *, inputs: int, classes: int, width: int = 4, rngs: nnx.Rngs):
        self.embed = nnx.Embed(16, width, rngs=rngs)
        self.output = nnx.Linear(inputs * width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        numbers = jnp.clip(jnp.round(4 * x) + 8, 0, 15).astype(jnp.int32)
        return self.output(self.embed(numbers).reshape(x.shape[0], -1))


class Tied(nnx.Module):
    """One layer under two names: its parameters are trained once, by the sum of both gradients."""

    def __init__(self, *, inputs: int, classes: int, width: int = 6, rngs: nnx.Rngs):
        self.embed = nnx.Linear(inputs, width, rngs=rngs)
        self.first = nnx.Linear(width, width, rngs=rngs)
        self.second = self.first
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(nnx.relu(self.second(nnx.relu(self.first(nnx.relu(self.embed(x)))))))


class Listed(nnx.Module):
    def __init__(self, *, inputs: int, classes: int, width: int = 6, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.Linear(size, width, rngs=rngs) for size in (inputs, width)])
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x)


class PlainList(nnx.Module):
    """A list of layers that Flax will not take as an attribute."""

    def __init__(self, *, inputs: int, classes: int, width: int = 6, rngs: nnx.Rngs):
        self.layers = [nnx.Linear(size, width, rngs=rngs) for size in (inputs, width)]
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers:
            x = nnx.relu(layer(x))
        return self.output(x)


class IntegerParameter(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.offsets = nnx.Param(jnp.arange(width))

    def between(self, x: jax.Array) -> jax.Array:
        return x + self.offsets[...][None]


class ComplexParameter(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.phases = nnx.Param(jnp.ones(width, jnp.complex64))

    def between(self, x: jax.Array) -> jax.Array:
        return (x * self.phases[...][None]).real


class Float64Parameter(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.scale = nnx.Param(np.ones(width, np.float64))

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...][None]


class FloatVariable(Hidden):
    """A Variable whose value is a Python number."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs, width
        self.scale = nnx.Variable(0.5)

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.scale.get_value()


class FloatParameter(Hidden):
    """A parameter whose value is a Python number."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs, width
        self.scale = nnx.Param(0.5)

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.scale.get_value()


class Count(nnx.Variable):
    pass


class Counts(Hidden):
    """Counts its calls, and learns less from later ones."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs, width
        self.calls = Count(jnp.int32(0))

    def between(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        return x / self.calls[...]


class CountsFloat(Hidden):
    """State whose number type changes in a call."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs, width
        self.calls = Count(jnp.int32(0))

    def between(self, x: jax.Array) -> jax.Array:
        self.calls.set_value(self.calls.get_value() + 1.0)
        return x


class Grows(Hidden):
    """State whose shape changes in a call."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs, width
        self.seen = Count(jnp.zeros(1))

    def between(self, x: jax.Array) -> jax.Array:
        self.seen.set_value(jnp.concatenate([self.seen.get_value(), jnp.ones(1)]))
        return x


class AppendsParameter(Hidden):
    """Makes a parameter in its first call, as Linen does."""

    def between(self, x: jax.Array) -> jax.Array:
        self.late = nnx.Param(jnp.ones(x.shape[-1]))
        return x * self.late[...][None]


class Frozen(Hidden):
    """Random features that are not trained."""

    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        self.features = nnx.Variable(jax.random.normal(rngs.params(), (width, width)))

    def between(self, x: jax.Array) -> jax.Array:
        return x @ self.features[...]


class Tuple(Layers):
    def __call__(self, x: jax.Array):
        hidden = nnx.relu(self.hidden(x))
        return self.output(hidden), hidden


class Nan(Hidden):
    def extend(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.scale = nnx.Param(jnp.full(width, jnp.nan))

    def between(self, x: jax.Array) -> jax.Array:
        return x * self.scale[...][None]


class SingleLogit(nnx.Module):
    def __init__(self, *, inputs: int, rngs: nnx.Rngs):
        self.output = nnx.Linear(inputs, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(x)[:, 0]


class NoParameters(nnx.Module):
    def __init__(self, *, classes: int, rngs: nnx.Rngs):
        del rngs
        self.classes = classes

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, : self.classes]


class Bfloat16Logits(Hidden):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(jnp.bfloat16)


class Stacked(nnx.Module):
    """Layers made by nnx.vmap and run by nnx.scan, with dropout."""

    def __init__(self, *, inputs: int, classes: int, width: int = 6, depth: int = 2, rngs: nnx.Rngs):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Dropout:
            return Dropout(inputs=width, classes=width, width=width, rngs=rngs)

        self.embed = nnx.Linear(inputs, width, rngs=rngs)
        self.blocks = stack(rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        run = nnx.scan(lambda x, block: x + block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return self.output(run(self.embed(x), self.blocks))


def loose(*, inputs: int, classes: int, width: int, gain: float, rngs: nnx.Rngs) -> nnx.Module:
    """A builder of which a part is filled in by functools.partial."""
    return nnx.Sequential(
        nnx.Linear(inputs, width, kernel_init=nnx.initializers.normal(gain), rngs=rngs),
        nnx.relu,
        nnx.Linear(width, classes, rngs=rngs),
    )


gentle = functools.partial(loose, gain=0.1)
