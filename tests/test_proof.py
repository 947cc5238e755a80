"""The proof that sizes may share a program, held against trainings, and the probe for what it cannot follow."""

import re
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import provable_modules
import pytest
from engine_helpers import CLASSES, EXACT_SOLO, INPUTS, quick_jit, slow
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import scalejax as sx
from scalejax.models import MLP, Logistic, architecture
from scalejax.models.architecture import Build
from scalejax.planning.plan import make_plan
from scalejax.planning.proof.prove import Proof, prove
from scalejax.train.padding import pad
from scalejax.train.recipe import LaneProgram, Recipe
from scalejax.train.step import Examples, slope
from scalejax.train.task import CLASSIFICATION

pytestmark = pytest.mark.usefixtures("compile_quickly")
SMALL, LARGE, BATCH = 3, 8, 16


def program(build: Build, optimizer: str = "adamw", **knobs: int) -> LaneProgram:
    recipe = Recipe(optimizer=optimizer, schedule="cosine", clip_norm=1.0, batch_size=BATCH)
    return LaneProgram(architecture(build, knobs, shape=(INPUTS,), outputs=CLASSES), recipe)


def proof_of(build: Build, optimizer: str = "adamw") -> Proof:
    return prove(program(build, optimizer, width=SMALL), program(build, optimizer, width=LARGE))


def assert_padding_changes_nothing(build: Build, *, seed: int) -> None:
    """Compare the loss and its gradient at weights, drawn at random, of the true size and padded."""
    small, large = (program(build, width=width).architecture for width in (SMALL, LARGE))
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(BATCH, INPUTS)).astype(np.float32)
    batch = Examples(inputs, generator.integers(0, CLASSES, BATCH).astype(np.int32))
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(leaf.dtype), small.abstract[1])
    rest = small.initialise(jax.random.key(0))[1]
    like = large.abstract[1:]
    own = quick_jit(slope, static_argnums=(0, 1))(small, CLASSIFICATION, params, rest, batch=batch)
    other = quick_jit(slope, static_argnums=(0, 1))(
        large, CLASSIFICATION, pad(params, like[0]), pad(rest, like[1]), batch=batch
    )
    for true, wide in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
        outside = np.array(wide)
        corner = tuple(slice(size) for size in true.shape)
        scale = max(float(np.abs(true).max()), 1e-3)
        np.testing.assert_allclose(outside[corner], true, rtol=0, atol=EXACT_SOLO * scale)
        outside[corner] = 0
        assert not outside.any()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum", "lion"])
def test_the_built_in_families_are_proven_with_every_optimizer(optimizer: str):
    sizes = program(MLP, optimizer, width=SMALL, depth=2), program(MLP, optimizer, width=LARGE, depth=2)
    assert prove(*sizes) == Proof(True, "")
    same = program(Logistic, optimizer)
    assert prove(same, same) == Proof(True, "")


@pytest.mark.parametrize("build", [*provable_modules.MAY, *slow(*provable_modules.MAY_TOO)])
def test_what_may_be_padded_is_proven_and_padding_changes_nothing(build: Build):
    assert proof_of(build) == Proof(True, "")
    for seed in range(3):
        assert_padding_changes_nothing(build, seed=seed)


@pytest.mark.parametrize(("build", "equation"), provable_modules.MAY_NOT.items())
def test_what_may_not_be_padded_is_refused_with_the_equation(build: Build, equation: str):
    proof = proof_of(build)
    assert not proof.proven
    named = re.findall(r"`([\w-]+)`", proof.reason)
    assert equation in named, proof.reason


def test_an_axis_of_one_entry_that_meets_many_is_not_taken_for_one_that_grows():
    proof = prove(program(provable_modules.Fixed, width=1), program(provable_modules.Fixed, width=8))
    assert not proof.proven
    assert "`mul` (provable_modules.py" in proof.reason
    assert "spreads an axis in one size" in proof.reason


Inner = Callable[..., jax.Array]  # of hidden units [batch, width], an input [batch, 1], and parameters [1, width]


def between(inner: Inner, **params: float) -> Build:
    """Return a module of one hidden layer, `inner`, and an output; `params` are vectors, each of one number."""

    class Module(nnx.Module):
        def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
            self.hidden = nnx.Linear(inputs, width, rngs=rngs)
            self.output = nnx.Linear(width, classes, rngs=rngs)
            for name, number in params.items():
                setattr(self, name, nnx.Param(jnp.full(width, number)))

        def __call__(self, x: jax.Array) -> jax.Array:
            own = [getattr(self, name)[...][None] for name in params]
            return self.output(inner(self.hidden(x), x[:, :1], *own))

    return Module


def straight_through(h: jax.Array, binary: jax.Array) -> jax.Array:
    return h + lax.stop_gradient(binary - h)


# Seen to be proven though padding changes them; the sizes are 3 and 8.
WRONGLY_PROVEN: dict[str, Build] = {
    "operands swapped by size": between(lambda h, x: h - nnx.tanh(x) if h.shape[1] < 5 else nnx.tanh(x) - h),
    "round half away from zero": between(lambda h, _x: straight_through(h, lax.round(nnx.sigmoid(h)))),
    "shared values chosen unit by unit": between(lambda h, x: h * jnp.where(h > 0.1, x, x**2).max(1, keepdims=True)),
    "top_k along another axis": between(
        lambda h, _x: h * lax.top_k(h[..., None] * jnp.ones((1, 1, 3)), 1, axis=1)[0][..., 0]
    ),
    "root of a known negative number": between(lambda h, _x, g: h * jnp.sqrt(2 * g - 1), g=1.0),
    "exponential of a known large number": between(lambda h, _x, g: h * jnp.exp((1 - g) / 1e-3), g=1.0),
    "lgamma at zero": between(lambda h, _x: h * lax.stop_gradient(lax.lgamma(jnp.abs(h)))),
    "remainder by zero": between(lambda h, x: h * lax.stop_gradient(lax.rem(x + 0 * h, h))),
    "power of zero": between(lambda h, x, a: h * lax.stop_gradient(jnp.abs(h) ** (x - 1 + 0 * a)), a=1.0),
    "infinite constants": between(
        lambda h, _x: h * jnp.asarray(1 / (3 - np.arange(8, dtype=np.float32) + 1e-30))[None, : h.shape[1]]
    ),
    "the sign of zero": between(lambda h, x: h * x * lax.stop_gradient(jnp.minimum(1 / (h * x), 1.0))),
    "products and sums in one": between(lambda h, _x: h + 1e4 * ((h + 0.1) * 0.3 - (jnp.float32(0.1) * 0.3))),
    "bits cut off": between(lambda h, _x: h + 100 * (lax.reduce_precision(h + 0.3, 5, 3) - jnp.float32(0.3))),
    "integers divided towards zero": between(
        lambda h, _x: h + (lax.div(h.astype(jnp.int32) * 0 - 7, jnp.full_like(h, 2, jnp.int32)) + 4).astype(jnp.float32)
    ),
    "numbers beyond the integers": between(
        lambda h, _x: h + jnp.maximum(jnp.full(h.shape, 3e9).astype(jnp.int32), 0).astype(jnp.float32)
    ),
    "logarithm of what may be negative": between(lambda h, x: h * jnp.log(nnx.softplus(x) + h * x + 0.1 * x)),
}


@pytest.mark.parametrize("what", WRONGLY_PROVEN)
def test_what_was_wrongly_proven_is_refused_or_right(what: str):
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        if proof_of(WRONGLY_PROVEN[what]).proven:
            assert_padding_changes_nothing(WRONGLY_PROVEN[what], seed=0)


def test_rows_beyond_the_end_of_a_table_are_of_one_number_in_the_padding_too():
    class Looking(nnx.Module):
        def __init__(self, *, classes: int, width: int, rngs: nnx.Rngs):
            self.table = nnx.Param(jax.random.normal(rngs.params(), (5, width)))
            self.output = nnx.Linear(width, classes, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            rows = jnp.take(self.table[...], jnp.arange(x.shape[0]), axis=0, mode="fill", fill_value=1.0)
            return self.output(rows * x[:, :1])

    assert not proof_of(Looking).proven


@pytest.mark.parametrize("small", [1, 2])
@pytest.mark.parametrize("step", ["gain", "bias", "batch maximum", "mask"])
def test_sizes_of_one_unit_are_proven_or_refused(step: str, small: int):
    build = type("Drawn", (Drawn,), {"steps": (step,)})
    assert prove(program(build, width=small), program(build, width=2)).proven == (small == 2) or small == 1


class OneMore(provable_modules.Between):
    """One size uses a table that the other has not."""

    def inner(self, h: jax.Array) -> jax.Array:
        return h + jnp.asarray(np.arange(h.shape[1], dtype=np.float32))[None] if h.shape[1] > 5 else h


class Repeated(provable_modules.Between):
    def inner(self, h: jax.Array) -> jax.Array:
        return jnp.concatenate([h] * (2 if h.shape[1] < 5 else 4)).reshape(-1, *h.shape).mean(0)


class Branching(provable_modules.Between):
    def inner(self, h: jax.Array) -> jax.Array:
        branches = [nnx.relu, nnx.tanh, nnx.gelu][: 2 if h.shape[1] < 5 else 3]
        return lax.switch(jnp.int32(0), branches, h)


class Shrinking(provable_modules.Between):
    """What one size makes is larger than what the larger one makes."""

    def inner(self, h: jax.Array) -> jax.Array:
        table = np.ones((100 if h.shape[1] < 5 else 4, 1), np.float32)
        return h * jnp.asarray(table).mean()


@pytest.mark.parametrize("build", [OneMore, Repeated, Branching, Shrinking])
def test_sizes_with_other_operands_constants_or_branches_are_refused_in_a_sentence(build: Build):
    proof = proof_of(build)
    assert not proof.proven
    assert proof.reason.startswith("in training ")
    data = sx.DataSpec(source="mnist1d", examples=60, train_examples=(20,), validation_examples=20, test_examples=20)
    train = sx.TrainSpec(learning_rate=(1e-2,), batch_size=(4,), steps=4)
    plan = make_plan(sx.Sweep(name="proof", data=data, models=(sx.ModelGrid(build, width=[3, 8]),), train=train))
    assert len(plan.packing.buckets) == 2
    assert len(plan.packing.notes) == 1


# ---- programs drawn at random ----

Step = Callable[[jax.Array, nnx.Param, nnx.Param], jax.Array]

STEPS: dict[str, Step] = {
    "kernel": lambda h, kernel, _gain: h @ kernel[...],
    "gain": lambda h, _kernel, gain: h * gain[...][None],
    "bias": lambda h, _kernel, gain: h + gain[...][None],
    "relu": lambda h, _kernel, _gain: nnx.relu(h),
    "tanh": lambda h, _kernel, _gain: nnx.tanh(h),
    "sigmoid": lambda h, _kernel, _gain: nnx.sigmoid(h),
    "cosine": lambda h, _kernel, _gain: jnp.cos(h),
    "one more": lambda h, _kernel, _gain: h + 1,
    "square": lambda h, _kernel, _gain: h * h,
    "reciprocal": lambda h, _kernel, gain: h / (2 + jnp.abs(gain[...])[None]),
    "batch mean": lambda h, _kernel, _gain: h - h.mean(0, keepdims=True),
    "batch maximum": lambda h, _kernel, _gain: h - h.max(0, keepdims=True),
    "sum": lambda h, _kernel, _gain: h + 0.1 * h.sum(-1, keepdims=True),
    "norm": lambda h, _kernel, _gain: h * lax.rsqrt((h * h).sum(-1, keepdims=True) + 0.1),
    "maximum": lambda h, _kernel, _gain: h - h.max(-1, keepdims=True),
    "count": lambda h, _kernel, _gain: h * jnp.arange(h.shape[1], dtype=jnp.float32)[None],
    "add count": lambda h, _kernel, _gain: h + 0.1 * jnp.arange(h.shape[1], dtype=jnp.float32)[None],
    "mask": lambda h, _kernel, gain: jnp.where(h > 0, h, gain[...][None]),
    "mask zeros": lambda h, _kernel, _gain: jnp.where(h == 0, 1.0, h),
    "outer": lambda h, kernel, _gain: jnp.einsum("bi,bj,ij->bi", h, nnx.tanh(h), kernel[...]),
    "halves": lambda h, _kernel, _gain: jnp.concatenate([h[:, :2], nnx.tanh(h[:, 2:])], -1),
    "roll": lambda h, _kernel, _gain: jnp.roll(h, 1, axis=-1),
    "reverse": lambda h, _kernel, _gain: h[:, ::-1],
    "running sum": lambda h, _kernel, _gain: jnp.cumsum(h, -1),
    "transposed": lambda h, kernel, _gain: (kernel[...].T @ h.T).T,
    "exponential": lambda h, _kernel, _gain: jnp.exp(-jnp.abs(h)),
    "difference": lambda h, _kernel, _gain: jnp.exp(-jnp.abs(h)) - 1,
    "loop": lambda h, kernel, _gain: lax.fori_loop(0, 2, lambda _, h: nnx.tanh(h @ kernel[...]), h),
    "two axes": lambda h, _kernel, _gain: (h.reshape(-1, 2, 2, h.shape[1]) * 0.5).reshape(h.shape),
}


class Drawn(nnx.Module):
    """A hidden layer and steps after it, each with a kernel and a gain of its own."""

    steps: Sequence[str] = ()

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), shape))

        self.embed = normal(inputs, width)
        self.kernels = nnx.List([normal(width, width) for _ in self.steps])
        self.gains = nnx.List([normal(width) for _ in self.steps])
        self.output = normal(width, classes)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = x @ self.embed[...]
        for name, kernel, gain in zip(self.steps, self.kernels, self.gains, strict=True):
            h = STEPS[name](h, kernel, gain)
        return h @ self.output[...]


def check_drawn(steps: Sequence[str], *, seed: int) -> bool:
    """Hold the proof of a drawn program against its numbers; return whether there was one."""
    build = type("Drawn", (Drawn,), {"steps": tuple(steps)})
    proven = proof_of(build).proven
    if proven:
        assert_padding_changes_nothing(build, seed=seed)
    return proven


@settings(max_examples=12, deadline=None, derandomize=True)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_nothing_is_proven_that_padding_changes(steps: list[str], seed: int):
    check_drawn(steps, seed=seed)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_nothing_is_proven_that_padding_changes_in_four_hundred_programs(steps: list[str], seed: int):
    check_drawn(steps, seed=seed)


@pytest.mark.parametrize(
    ("steps", "proven"),
    [
        (["kernel", "relu", "gain"], True),
        (["sigmoid", "gain"], True),  # a half in the padding, times a gain that stays zero: nothing reads its unit
        (["norm", "kernel"], True),
        (["count", "tanh"], True),
        (["batch maximum", "relu"], True),
        (["maximum"], False),
        (["roll"], False),
        (["cosine"], False),
    ],
)
def test_single_steps(steps: list[str], proven: bool):
    assert check_drawn(steps, seed=0) == proven
