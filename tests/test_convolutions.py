"""Convolutions have their channels last where a program runs on a CPU, and give the same numbers."""

import functools
import math
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import CLASSES, EXACT_SOLO, planned, program
from flax import nnx
from jax import lax

from scalejax.models import Architecture
from scalejax.train import lanes as lanes_module
from scalejax.train.convolutions import fast_on_cpu
from scalejax.train.cost import CONVOLUTION_PASSES, SPEEDS, lane_seconds, measuring_seconds
from scalejax.train.lanes import Commands, DeviceData, advance, blocks
from scalejax.train.padding import initial_weights
from scalejax.train.step import Cursor, Examples, start

pytestmark = pytest.mark.usefixtures("compile_quickly")
LABELS = re.compile(r"dim_labels=(\w+->\w+)")
LAST = {"b0f_0io->b0f", "b01f_01io->b01f", "b012f_012io->b012f"}


def convolutions(program: str) -> list[str]:
    """Return the lines of a compiled program that convolve."""
    return [line for line in program.splitlines() if " convolution(" in line]


def text(compiled: Any) -> str:
    """Return a compiled program as the text of XLA."""
    return compiled.as_text() or ""


def assert_fast(program: str) -> None:
    """Hold every convolution of a compiled program against what XLA's CPU compiler has a fast routine for."""
    found = convolutions(program)
    assert found
    for line in found:
        assert set(LABELS.findall(line)) <= LAST, line


# Name -> (inputs, kernel, arguments of `conv_general_dilated`).
VARIANTS = {
    "1d": ((4, 9, 2), (3, 2, 3), {"dimension_numbers": ("NWC", "WIO", "NWC")}),
    "2d": ((4, 6, 7, 2), (3, 3, 2, 5), {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "3d": ((2, 4, 5, 6, 2), (2, 3, 2, 2, 3), {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}),
    "4d": ((2, 4, 4, 3, 3, 2), (2, 2, 2, 2, 2, 3), {"dimension_numbers": ("N1234C", "1234IO", "N1234C")}),
    "channels first": ((4, 2, 6, 7), (5, 2, 3, 3), {}),
    "valid": ((4, 2, 6, 7), (5, 2, 3, 3), {"padding": "VALID"}),
    "strides": ((4, 6, 7, 2), (3, 3, 2, 5), {"window_strides": (2, 3), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "dilated kernel": ((4, 2, 6, 7), (5, 2, 3, 2), {"rhs_dilation": (2, 1)}),
    "dilated inputs": ((4, 2, 6, 7), (5, 2, 3, 2), {"lhs_dilation": (1, 2), "padding": ((1, 1), (0, 2))}),
    "groups": ((4, 6, 6, 4), (3, 3, 2, 6), {"feature_group_count": 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "one group a channel": ((4, 4, 6, 6), (4, 1, 3, 3), {"feature_group_count": 4}),
    "groups of examples": ((4, 2, 6, 6), (4, 2, 3, 3), {"batch_group_count": 2}),
    "other orders": ((6, 4, 7, 2), (5, 3, 2, 3), {"dimension_numbers": ("HNWC", "OWIH", "CHNW")}),
}


SLOW = {"4d", "dilated inputs"}  # not even outside of loops has the compiler a fast routine for these


def steps(convolve):
    """Return two steps of gradient descent on a kernel, as a function of inputs and kernel to numbers."""

    def loss(kernel, inputs):
        return (jnp.tanh(convolve(inputs, kernel)) ** 2).mean()

    def step(kernel, inputs):
        value, (slope, back) = jax.value_and_grad(loss, (0, 1))(kernel, inputs)
        return kernel - 0.1 * slope, value + (back**2).sum()

    return lambda inputs, kernel: lax.scan(lambda kernel, _: step(kernel, inputs), kernel, length=2)


def operands(*shapes):
    generator = np.random.default_rng(0)
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


def assert_close(found, expected):
    for other, one in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(other, one, rtol=EXACT_SOLO, atol=EXACT_SOLO * np.abs(one).max())


def fast_program(function, *given) -> str:
    """Hold the fast form of a function against the function itself; return the fast program, compiled."""
    fast = jax.jit(functools.partial(fast_on_cpu, function)).lower(*given).compile()
    assert_close(fast(*given), jax.jit(function)(*given))
    return text(fast)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_convolution_gives_the_same_numbers(variant):
    inputs, kernel, arguments = VARIANTS[variant]
    arguments = {"window_strides": (1,) * (len(inputs) - 2), "padding": "SAME", **arguments}
    trained = steps(functools.partial(lax.conv_general_dilated, **arguments))
    program = fast_program(trained, *operands(inputs, kernel))
    if variant not in SLOW:
        assert_fast(program)


@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)])
def test_side_by_side_each_lane_gives_what_it_gives_alone(axes):
    trained = steps(functools.partial(lax.conv, window_strides=(1, 1), padding="SAME"))
    given = operands((2, 4, 2, 6, 7), (2, 5, 2, 3, 3))
    given = [each if axis == 0 else each[0] for each, axis in zip(given, axes, strict=True)]
    lifted = jax.jit(jax.vmap(functools.partial(fast_on_cpu, trained), axes)).lower(*given).compile()
    assert_fast(text(lifted))
    assert "feature_group_count" not in text(lifted)
    alone = jax.jit(trained)
    for lane in range(2):
        own = [each[lane] if axis == 0 else each for each, axis in zip(given, axes, strict=True)]
        assert_close([leaf[lane] for leaf in lifted(*given)], alone(*own))


@jax.custom_jvp
def own(inputs, kernel):
    return lax.conv(inputs, kernel, (1, 1), "SAME")


own.defjvp(
    lambda values, slopes: jax.jvp(functools.partial(lax.conv, window_strides=(1, 1), padding="SAME"), values, slopes)
)


@jax.custom_vjp
def own_reversed(inputs, kernel):
    return lax.conv(inputs, kernel, (1, 1), "SAME")


own_reversed.defvjp(
    lambda *values: jax.vjp(functools.partial(lax.conv, window_strides=(1, 1), padding="SAME"), *values),
    lambda back, slope: back(slope),
)

AROUND = {
    "jit": jax.jit,
    "remat": jax.checkpoint,
    "cond": lambda function: lambda x, k: lax.cond(k.sum() > 0, function, lambda x, k: -function(x, k), x, k),
    "scan": lambda function: lambda x, k: lax.scan(lambda x, _: (function(x, k), None), x, length=2)[0],
    "custom_jvp": lambda _: own,
    "custom_vjp": lambda _: own_reversed,
    "vmap": lambda function: lambda x, k: jax.vmap(function)(x[None], k[None])[0],
}


@pytest.mark.parametrize("around", AROUND)
def test_a_convolution_is_found_wherever_it_is(around):
    def convolve(inputs, kernel):
        return lax.conv(inputs, kernel, (1, 1), "SAME")

    around = AROUND[around](convolve)

    def trained_and_evaluated(inputs, kernel):  # where nothing is differentiated, other equations hold what is called
        return steps(around)(inputs, kernel), lax.map(lambda x: around(x, kernel), inputs[None])

    assert_fast(fast_program(trained_and_evaluated, *operands((4, 3, 6, 6), (3, 3, 3, 3))))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_form_is_for_cpus_alone(platform):
    trained = steps(functools.partial(lax.conv, window_strides=(1, 1), padding="SAME"))
    given = operands((4, 3, 6, 6), (3, 3, 3, 3))

    def orders(function):
        lowered = jax.jit(function).trace(*given).lower(lowering_platforms=(platform,)).as_text()
        return sorted(re.findall(r"dim_numbers = (.*?),", lowered))

    native, fast = orders(trained), orders(lambda *given: fast_on_cpu(trained, *given))
    assert native
    assert (native == fast) == (platform != "cpu")


def test_a_function_without_convolutions_is_called_as_it_is():
    def plain(x):
        return {"a": jnp.tanh(x) @ x.T}

    x = np.ones((3, 4), np.float32)
    assert str(jax.make_jaxpr(functools.partial(fast_on_cpu, plain))(x)) == str(jax.make_jaxpr(plain)(x))


class Net(nnx.Module):
    def __init__(self, *, classes: int, width: int, rngs: nnx.Rngs):
        # No bias: its gradient, before a norm, is nothing but rounding, which Adam makes as large as any.
        self.first = nnx.Conv(1, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), strides=2, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = nnx.relu(self.norm(self.first(x.reshape(-1, 6, 6, 1))))
        return self.output(nnx.relu(self.second(h)).mean((1, 2)))


@pytest.fixture(scope="module")
def images() -> DeviceData:
    """Noise of 6 x 6 pixels."""
    inputs = np.random.default_rng(0).normal(size=(200, 36)).astype(np.float32)
    labels = (np.abs(inputs[:, :CLASSES])).argmax(1).astype(np.int32)
    held_out = blocks(inputs[100:], labels[100:])
    return DeviceData(Examples(inputs[:100], labels[:100]), held_out, held_out)


def advanced(images, mode):
    """Return the lane program of three trials, and its operands."""
    each = replace(planned(), architecture=Architecture(Net, (("classes", CLASSES), ("width", 5)), (36,)))
    constants = replace(program(each), mode=mode)
    weights = [initial_weights(each.architecture, seed) for seed in range(3)]
    states = [start(each.recipe, each.settings.scalars(), own) for own in weights]
    lanes = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    zeros = np.zeros(3, np.uint32)
    commands = Commands(np.int32(10), Cursor(zeros, zeros), *np.ones((3, 3), bool))
    return jax.jit(functools.partial(advance, constants)), (lanes, images, commands)


@pytest.fixture(scope="module")
def native(images):
    """Return what ten steps of the same lanes come to with convolutions as they were written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes_module, "fast_on_cpu", lambda function, *operands: function(*operands))
        compiled, given = advanced(images, "map")
        return compiled(*given)[1]


@pytest.mark.parametrize("mode", ["vmap", "map"])
def test_lanes_of_a_convolutional_network_train_and_evaluate_with_fast_convolutions(images, native, mode):
    traced, given = advanced(images, mode)
    compiled = traced.lower(*given).compile()
    assert_fast(text(compiled))
    assert "feature_group_count" not in text(compiled)
    for found, expected in zip(jax.tree.leaves(compiled(*given)[1]), jax.tree.leaves(native), strict=True):
        np.testing.assert_allclose(found, expected, rtol=EXACT_SOLO)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_convolve_side_by_side(images, platform):
    traced, given = advanced(images, "vmap")
    assert "feature_group_count = 3" in traced.trace(*given).lower(lowering_platforms=(platform,)).as_text()


def test_the_estimate_of_a_step_counts_what_convolutions_move():
    narrow = replace(program(planned()), architecture=Architecture(Net, (("classes", CLASSES), ("width", 1)), (36,)))
    speed = replace(SPEEDS["cpu"], products=math.inf, lane_overhead=0.0)
    images = 4 * 16 * (2 * (36 + 36) + 3 * (36 + 9))  # bytes: of the first, twice, and of the second, three times
    assert lane_seconds(narrow, speed) * speed.bandwidth > CONVOLUTION_PASSES * images
    assert measuring_seconds(narrow, 16, speed=speed) * speed.bandwidth > CONVOLUTION_PASSES * images / 3
