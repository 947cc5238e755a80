"""The decoder-only transformer, sized by heads (or width) and depth."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from scalejax.errors import SweepError

PERIOD = 10_000.0  # in positions, of the slowest rotation: 2 pi times this


class Size(nnx.Variable):
    """A number that depends on the model's size, in its state: padding does not change it."""


class Transformer(nnx.Module):
    """A language model: an embedding, `depth` blocks of causal attention and a perceptron, and an output layer.

    Blocks are those of Vaswani et al. (2017, arXiv:1706.03762) with the norm before each part (Xiong et al. 2020,
    arXiv:2002.04745). The norm is RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467); positions are rotations of queries
    and keys (Su et al. 2021, arXiv:2104.09864); the perceptron is four times as wide, of squared rectified linear units
    (So et al. 2021, arXiv:2109.08668). There are no biases.

    The width is `heads` times `head_size`; give the one or the other. Kernels start from normal numbers of variance
    1 / fan-in; those that add to the residual stream of 1 / (2 depth) of that (Radford et al. 2019); the output from
    zero, so that training begins at the loss of guessing.

    Blocks are stacked on a leading axis. A head or a block of zeros adds nothing and stays zero, and the norms divide
    by a width that is state; so few heads may be padded to many, and a shallow model to a deep one.

    Where it is called on parameters of bfloat16, its products and its residual stream are of that, while norms,
    rotations and the weights of attention are computed in float32.
    """

    def __init__(
        self,
        *,
        vocabulary: int | None,
        depth: int,
        heads: int = 0,
        width: int = 0,
        head_size: int = 32,
        rngs: nnx.Rngs,
    ):
        if vocabulary is None:
            expected = 'expected data with a vocabulary, and the task "next_token"'
            raise SweepError(f"the family transformer reads tokens, and these data have none; {expected}")
        if bool(heads) == bool(width):
            found = "both" if heads else "neither"
            raise SweepError(f"the family transformer: expected exactly one of heads and width, found {found}")
        if head_size % 2 or width % head_size:
            wrong = f"width = {width}, head_size = {head_size}" if width else f"head_size = {head_size}"
            expected = "an even head_size, and a width that is a multiple of it"
            raise SweepError(f"the family transformer: expected {expected}, found {wrong}")
        heads = heads or width // head_size
        width = heads * head_size

        def stacked(*shape: int, variance: float) -> nnx.Param:
            return nnx.Param(np.sqrt(variance) * jax.random.normal(rngs.params(), (depth, *shape), jnp.float32))

        small = 1 / (2 * depth)
        # Looked up in float32, so that the gradients of a token's many places are added up in that.
        self.embed = nnx.Embed(
            vocabulary,
            width,
            dtype=jnp.float32,
            embedding_init=nnx.initializers.normal(1 / np.sqrt(width)),
            rngs=rngs,
        )
        self.attention_gain = nnx.Param(jnp.ones((depth, width)))
        self.attention = stacked(width, 3, heads, head_size, variance=1 / width)
        self.merge = stacked(heads, head_size, width, variance=small / width)
        self.perceptron_gain = nnx.Param(jnp.ones((depth, width)))
        self.up = stacked(width, 4 * width, variance=1 / width)
        self.down = stacked(4 * width, width, variance=small / (4 * width))
        self.gain = nnx.Param(jnp.ones(width))
        self.output = nnx.Linear(
            width, vocabulary, use_bias=False, kernel_init=nnx.initializers.zeros_init(), rngs=rngs
        )
        self.width = Size(jnp.float32(width))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map tokens int32 [batch, length] to logits [batch, length, vocabulary] of the token after each."""

        def block(x: jax.Array, own: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            attention_gain, attention, merge, perceptron_gain, up, down = own
            h = normed(x, attention_gain, width=self.width[...])
            # Heads and examples are one axis, heads first: an axis of a single head would make other equations than
            # one of many, and no proof could follow it.
            apart = jnp.einsum("btw,wchd->chbtd", h, attention)
            query, key, value = apart.reshape(3, -1, *apart.shape[3:])
            found = attended(rotated(query), rotated(key), value).reshape(apart.shape[1:])
            x = x + jnp.einsum("hbtd,hdw->btw", found, merge)
            h = normed(x, perceptron_gain, width=self.width[...])
            return x + jnp.square(nnx.relu(h @ up)) @ down, None

        own = (self.attention_gain, self.attention, self.merge, self.perceptron_gain, self.up, self.down)
        x, _ = lax.scan(block, self.embed(tokens).astype(self.up.dtype), tuple(each[...] for each in own))
        return self.output(normed(x, self.gain[...], width=self.width[...]))


def normed(x: jax.Array, gain: jax.Array, *, width: jax.Array) -> jax.Array:
    """Return x [batch, length, width] over its root mean square, times gains [width].

    The sum of squares is divided by the `width` given, and not by the length of an axis that may be padded.
    """
    wide = x.astype(jnp.float32)
    scale = lax.rsqrt(jnp.square(wide).sum(-1, keepdims=True) / width + 1e-6)
    return (wide * scale * gain[None, None]).astype(x.dtype)


def rotated(x: jax.Array) -> jax.Array:
    """Rotate pairs of x [..., length, head_size] by angles that grow with the position."""
    length, half = x.shape[-2], x.shape[-1] // 2
    angles = np.arange(length)[:, None] * PERIOD ** (-np.arange(half) / half)
    cos, sin = (jnp.asarray(each[None], jnp.float32) for each in (np.cos(angles), np.sin(angles)))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)


def attended(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Return causal attention, softmax(query key' / sqrt(head_size)) value, of arrays [heads, length, head_size]."""
    length, size = query.shape[-2:]
    scores = jnp.einsum("ntd,nsd->nts", query, key).astype(jnp.float32) / np.float32(np.sqrt(size))
    past = jnp.tril(jnp.ones((length, length), bool))[None]
    weights = jax.nn.softmax(jnp.where(past, scores, jnp.finfo(scores.dtype).min))
    return jnp.einsum("nts,nsd->ntd", weights.astype(value.dtype), value)
