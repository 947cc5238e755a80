"""Twenty kinds of modules: of ten every size may be padded, of ten none may, and each says what it is made of."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


class Carried(nnx.Variable):
    """A number that depends on the size, in the state."""


class Between(nnx.Module):
    """One hidden layer, then what `inner` makes of it, then the output."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)
        self.build(width, rngs)

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        """Add what `inner` needs."""

    def inner(self, h: jax.Array) -> jax.Array:
        return h

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.inner(self.hidden(x.reshape(x.shape[0], -1))))


# ---- may be padded ----


class Gelu(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return nnx.gelu(h)


class GatedUnits(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(width, width, rngs=rngs)

    def inner(self, h: jax.Array) -> jax.Array:
        return nnx.sigmoid(self.gate(h)) * h


class Gains(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.gain = nnx.Param(jnp.ones(width))

    def inner(self, h: jax.Array) -> jax.Array:
        return nnx.tanh(h) * self.gain[None]


class CarriedRMSNorm(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.width = Carried(jnp.float32(width))

    def inner(self, h: jax.Array) -> jax.Array:
        return h * lax.rsqrt((h * h).sum(-1, keepdims=True) / self.width[...] + 1e-6)


class ConvBatchNorm(nnx.Module):
    def __init__(self, *, classes: int, width: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm(self.first(x.reshape(-1, 3, 4, 1))))
        return self.output(nnx.max_pool(nnx.relu(self.second(h)), (2, 2)).mean((1, 2)))


class HeadedAttention(nnx.Module):
    """Causal attention, whose padded heads weigh tokens without ever giving a value."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        def kernel(*shape: int) -> nnx.Param:
            return nnx.Param(0.3 * jax.random.normal(rngs.params(), shape))

        self.qkv, self.merge = kernel(3, inputs // 4, width, 2), kernel(width, 2, 5)
        self.output = nnx.Linear(5, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = x.reshape(x.shape[0], 4, -1)
        query, key, value = jnp.einsum("bti,cihd->cbthd", tokens, self.qkv[...])
        scores = jnp.einsum("bthd,bshd->bhts", query, key)
        past = jnp.tril(jnp.ones((4, 4), bool))[None, None]
        weights = jax.nn.softmax(jnp.where(past, scores, jnp.finfo(jnp.float32).min))
        return self.output(jnp.einsum("bhts,bshd,hdm->btm", weights, value, self.merge[...])[:, -1])


class Embedded(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(7, width, rngs=rngs)

    def inner(self, h: jax.Array) -> jax.Array:
        return nnx.relu(h + self.embed(jnp.arange(h.shape[0]) % 7))


class Residuals(nnx.Module):
    """Blocks of width `width`, stacked, of which a padded one adds nothing."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.embed = nnx.Linear(inputs, 6, rngs=rngs)
        self.up = nnx.Param(0.3 * jax.random.normal(rngs.params(), (width, 6, 5)))
        self.down = nnx.Param(0.3 * jax.random.normal(rngs.params(), (width, 5, 6)))
        self.output = nnx.Linear(6, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def block(h: jax.Array, own: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return h + nnx.silu(h @ own[0]) @ own[1], None

        h, _ = lax.scan(block, self.embed(x), (self.up[...], self.down[...]))
        return self.output(h)


class Recurrent(Between):
    """The hidden units go round in a loop."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.again = nnx.Linear(width, width, use_bias=False, rngs=rngs)

    def inner(self, h: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 3, lambda _, state: nnx.tanh(self.again(state)), h)


class Remat(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.more = nnx.Linear(width, width, rngs=rngs)

    def inner(self, h: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda h: nnx.relu(self.more(h)))(h)


# ---- may not ----


class Maximum(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return h * h.max(-1, keepdims=True)


class Mean(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return h - h.mean(-1, keepdims=True)


class Softmax(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return jax.nn.softmax(h)


class Sorted(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.sort(h)


class Product(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return h + jnp.prod(h, -1, keepdims=True)


class PlainNorm(Between):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def inner(self, h: jax.Array) -> jax.Array:
        return self.norm(h)


class Ceiling(Between):
    """A static constant that goes with the size."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.ceiling = 8.0 if width < 5 else 1e9

    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.clip(h, 0, self.ceiling)


class WhereZero(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.where(h == 0, 1.0, h)


class Variance(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return h / (1 + h.var(-1, keepdims=True))


class TopK(Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.where(h >= lax.top_k(h, 2)[0][:, 1:], h, 0)


class Fixed(Between):
    """Two layers are multiplied of which one grows; where it has one unit, that one meets all of the other."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del width
        self.other = nnx.Linear(12, 8, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(lax.stop_gradient(self.hidden(x)) * self.other(x)) + 0 * self.output(self.hidden(x))


MAY = [Gelu, CarriedRMSNorm, ConvBatchNorm, HeadedAttention, Embedded, Residuals]
MAY_TOO = [GatedUnits, Gains, Recurrent, Remat]
# The equation that a refusal names.
MAY_NOT = {
    Maximum: "reduce_max",
    Mean: "div",
    Softmax: "reduce_max",
    Sorted: "sort",
    Product: "mul",
    PlainNorm: "div",
    Ceiling: "clip",
    WhereZero: "eq",
    Variance: "sub",
    TopK: "top_k",
}
