"""Weight decay acts on matrices, told by what a model does with a parameter and not by how many axes it has."""

import functools
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import CLASSES, INPUTS, quick_jit, trial_of
from flax import nnx
from jax import lax

import scalejax as sx
from scalejax.data import DataSet
from scalejax.errors import SweepError
from scalejax.models import architecture
from scalejax.planning.plan import make_plan
from scalejax.planning.proof.prove import prove
from scalejax.train.step import Examples, start, train_step

pytestmark = pytest.mark.usefixtures("compile_quickly")


def matrices_of(build: Callable[..., nnx.Module], shape: tuple[int, ...] = (INPUTS,), **knobs: int) -> set[str]:
    built = architecture(build, knobs, shape=shape, outputs=CLASSES)
    return {name for name, matrix in zip(built.parameter_names, built.matrices(2), strict=True) if matrix}


class Model(nnx.Module):
    """A first and a last layer; what is between them is that of a class that inherits from it."""

    def __init__(self, *, inputs: int, classes: int, width: int = 4, rngs: nnx.Rngs):
        self.first = nnx.Linear(inputs, width, rngs=rngs)
        self.last = nnx.Linear(width, classes, rngs=rngs)
        self.build(width, rngs)

    def build(self, width: int, rngs: nnx.Rngs) -> None: ...

    def inner(self, h: jax.Array) -> jax.Array:
        return h

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.inner(self.first(x.reshape(x.shape[0], -1))))


ENDS = {"first.kernel", "last.kernel"}


class Stacked(Model):
    """Three layers with kernels, biases and gains on a leading axis; the gain of a unit that is never read is 1."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(0.5 * jax.random.normal(rngs.params(), (3, width, width)))
        self.bias = nnx.Param(jnp.zeros((3, width)))
        self.gain = nnx.Param(jnp.ones((3, width)))

    def inner(self, h: jax.Array) -> jax.Array:
        def layer(h: jax.Array, own: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            kernel, bias, gain = own
            return nnx.relu((h * gain[None]) @ kernel + bias[None]), None

        return lax.scan(layer, h, (self.kernel[...], self.bias[...], self.gain[...]))[0]


class Indexed(Stacked):
    """The same, layer by layer in Python."""

    def inner(self, h: jax.Array) -> jax.Array:
        for layer in range(3):
            h = nnx.relu((h * self.gain[layer][None]) @ self.kernel[layer] + self.bias[layer][None])
        return h


class Looping(Stacked):
    """The same, in a loop that counts."""

    def inner(self, h: jax.Array) -> jax.Array:
        def layer(number: jax.Array, h: jax.Array) -> jax.Array:
            bias = jnp.take(self.bias[...], number, axis=0)
            return nnx.relu((h * self.gain[...][number][None]) @ self.kernel[...][number] + bias[None])

        return lax.fori_loop(0, 3, layer, h)


class Normalised(Model):
    """A kernel written as direction and length (Salimans & Kingma 2016)."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.direction = nnx.Param(jax.random.normal(rngs.params(), (width, width)))
        self.length = nnx.Param(jnp.ones((1, width)))

    def inner(self, h: jax.Array) -> jax.Array:
        direction = self.direction[...]
        return h @ (self.length[...] * direction / jnp.sqrt((direction**2).sum(0, keepdims=True)))


class Folded(Model):
    """A gain that is multiplied into the kernel after it, on either side."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (width, width)))
        self.before, self.after = nnx.Param(jnp.ones(width)), nnx.Param(jnp.ones(width))

    def inner(self, h: jax.Array) -> jax.Array:
        return h @ (self.before[...][:, None] * self.kernel[...] * self.after[...][None])


class Words(Model):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(9, width, rngs=rngs)
        self.places = nnx.Param(jnp.zeros((INPUTS, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        tokens = jnp.clip(jnp.abs(x) * 3, 0, 8).astype(jnp.int32)
        return self.last((self.words(tokens) + self.places[...][None]).mean(1))


class Readout(Model):
    """A vector that is contracted is a matrix of one column."""

    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.vector = nnx.Param(jnp.ones(width))

    def inner(self, h: jax.Array) -> jax.Array:
        return h * (h @ self.vector[...])[:, None]


class Einsummed(Model):
    def build(self, width: int, rngs: nnx.Rngs) -> None:
        del rngs
        self.gain = nnx.Param(jnp.ones((2, width // 2)))

    def inner(self, h: jax.Array) -> jax.Array:
        heads = h.reshape(h.shape[0], 2, -1)
        return jnp.einsum("bhd,hd->bhd", heads, self.gain[...]).reshape(h.shape)


class Attending(nnx.Module):
    def __init__(self, *, classes: int, rngs: nnx.Rngs):
        self.attention = nnx.MultiHeadAttention(2, in_features=4, qkv_features=6, decode=False, rngs=rngs)
        self.last = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.attention(x).mean(1))


class Convolving(nnx.Module):
    def __init__(self, *, classes: int, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.apart = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=rngs)
        self.last = nnx.Linear(4, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(self.apart(nnx.relu(self.norm(self.first(x)))).mean((1, 2)))


class Reading(nnx.Module):
    """A recurrent network: its kernels are used in a loop."""

    def __init__(self, *, classes: int, rngs: nnx.Rngs):
        self.cell = nnx.RNN(nnx.GRUCell(4, 5, rngs=rngs))
        self.last = nnx.Linear(5, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.last(jnp.asarray(self.cell(x))[:, -1])


@pytest.mark.parametrize("build", [Stacked, Indexed, Looping])
def test_biases_and_gains_stacked_over_layers_are_no_matrices(build: Callable[..., nnx.Module]):
    assert matrices_of(build) == {*ENDS, "kernel"}


def test_a_direction_is_a_matrix_and_its_length_is_a_gain():
    assert matrices_of(Normalised) == {*ENDS, "direction"}


def test_a_gain_that_is_folded_into_a_kernel_is_no_matrix():
    assert matrices_of(Folded) == {*ENDS, "kernel"}


def test_what_the_data_look_up_is_a_matrix_and_what_is_added_is_not():
    assert matrices_of(Words) == {"last.kernel", "words.embedding"}


def test_a_vector_that_is_contracted_is_a_matrix():
    assert matrices_of(Readout) == {*ENDS, "vector"}


def test_a_gain_of_heads_is_no_matrix_however_it_is_multiplied():
    assert matrices_of(Einsummed) == ENDS


def test_of_attention_the_kernels_are_matrices_and_the_biases_are_not():
    kernels = {f"attention.{name}.kernel" for name in ("query", "key", "value", "out")}
    assert matrices_of(Attending, (3, 4)) == {*kernels, "last.kernel"}


def test_kernels_of_convolutions_are_matrices():
    assert matrices_of(Convolving, (4, 4, 1)) == {"first.kernel", "apart.kernel", "last.kernel"}


def test_kernels_of_a_recurrent_network_are_matrices():
    found = matrices_of(Reading, (6, 4))
    assert found
    assert all(name.endswith("kernel") for name in found)
    built = architecture(Reading, {}, shape=(6, 4), outputs=CLASSES)
    assert found == {name for name in built.parameter_names if name.endswith("kernel")}


# ---- in training ----


def trained(build: Callable[..., nnx.Module], data: DataSet, **changes) -> dict[str, np.ndarray]:
    """Return the parameters after five steps without any gradient, from ones."""
    built = architecture(build, {}, shape=(INPUTS,), outputs=CLASSES)
    trial = trial_of(built, learning_rate=0.1, weight_decay=0.5, schedule="constant", **changes)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), built.abstract[1])
    settings = trial.settings.scalars()
    learner = start(trial.recipe, settings, (params, built.initialise(jax.random.key(0))[1])).learner
    batch = Examples(jnp.zeros((4, INPUTS)), jnp.asarray(data.train.targets[:4]))
    step = quick_jit(functools.partial(train_step, trial.program))
    for _ in range(5):
        learner = step(settings, learner, batch)
    return dict(zip(built.parameter_names, map(np.asarray, jax.tree.leaves(learner.params)), strict=True))


class Unread(Stacked):
    """Its stacked parameters change nothing that anybody reads, so all of their gradients are zero."""

    def inner(self, h: jax.Array) -> jax.Array:
        return h + 0 * super().inner(h)


def test_what_has_no_gradient_and_is_no_matrix_stays_as_it_is(data: DataSet):
    found = trained(Unread, data)
    assert (found["gain"] == 1).all()
    assert (found["bias"] == 1).all()
    # Five steps of a constant rate 0.1, the first two of them warming up at a half of it and at all of it.
    np.testing.assert_allclose(found["kernel"], (1 - 0.025) * (1 - 0.05) ** 4, rtol=1e-5)


def test_a_mask_of_the_user_decides_instead(data: DataSet):
    found = trained(Unread, data, weight_decay_on=("gain", "last.*"))
    assert (found["kernel"] == 1).all()
    assert (found["gain"] < 1).all()


SWEEP = sx.Sweep(
    name="decay",
    data=sx.DataSpec(source="mnist1d", examples=60, train_examples=(20,), validation_examples=20, test_examples=20),
    models=(sx.ModelGrid("mlp", width=[4], depth=1),),
    train=sx.TrainSpec(learning_rate=(1e-2,), weight_decay=(0.1,), batch_size=(4,), steps=4),
)


def with_mask(*patterns: str) -> sx.Sweep:
    return replace(SWEEP, train=replace(SWEEP.train, weight_decay_on=patterns))


def test_a_mask_makes_other_trials_and_no_mask_leaves_ids_as_they_were():
    plain, masked = (make_plan(sweep).trials[0] for sweep in (SWEEP, with_mask("*.bias")))
    assert plain.trial_id != masked.trial_id
    assert plain.recipe.weight_decay_on is None


def test_a_pattern_that_is_no_parameter_is_refused_in_a_sentence():
    with pytest.raises(SweepError, match=r"\[train\] weight_decay_on: 'hidden.0.kernal' is the name of no parameter"):
        make_plan(with_mask("hidden.0.kernal"))


def test_a_size_in_which_another_parameter_decays_is_not_packed():
    def build(*, inputs: int, classes: int, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return Stacked(inputs=inputs, classes=classes, width=width, rngs=rngs)

    sizes = [architecture(build, {"width": width}, shape=(INPUTS,), outputs=CLASSES) for width in (3, 5)]
    small, large = (trial_of(built).program for built in sizes)
    assert prove(small, large).proven
    other = replace(large, recipe=replace(large.recipe, weight_decay_on=("bias",)))
    proof = prove(small, other)
    assert not proof.proven
    assert "weight decay acts on" in proof.reason
