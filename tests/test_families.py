"""The families of sized models: what they compute, and that sizes share a program without changing a number."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import trial_of
from flax import nnx
from jax import lax
from test_lanes import assert_equal_to_solo

import scalejax as sx
from scalejax.data import DataSet, Split
from scalejax.models import CNN, architecture
from scalejax.planning.proof.prove import Proof, prove
from scalejax.planning.trial import Trial

CLASSES, SIDE = 3, 8


@pytest.fixture(scope="module")
def images(data: DataSet) -> DataSet:
    """The usual examples, each as the first entries of an image of 8 x 8."""

    def image(split: Split) -> Split:
        inputs = np.pad(split.inputs, [(0, 0), (0, SIDE * SIDE - split.inputs.shape[1])])
        return Split(inputs.reshape(-1, SIDE, SIDE), split.targets)

    splits = (image(split) for split in (data.train, data.validation, data.test))
    return DataSet(replace(data.card, shape=(SIDE, SIDE)), *splits)


def cnn(width: int, depth: int, **changes) -> Trial:
    sizes = {"width": width, "depth": depth}
    return trial_of(architecture(CNN, sizes, shape=(SIDE, SIDE), outputs=CLASSES), "cnn", sizes, **changes)


@pytest.mark.parametrize("optimizer", ["adamw", "momentum"])
def test_packed_equals_solo_for_convolutional_networks_of_several_widths(images: DataSet, optimizer: str):
    trials = [cnn(width, 3, optimizer=optimizer, seed=width) for width in (1, 2, 5)]
    assert prove(trials[0].program, trials[-1].program) == Proof(True, "")
    assert_equal_to_solo(trials, images)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((8, 8), [4, 8, 8]), ((64, 64, 3), [4, 8, 16, 32, 64, 64]), ((5, 40), [4, 8, 8]), ((3, 3), [4, 4])],
)
def test_a_cnn_halves_its_image_until_a_side_is_four(shape: tuple[int, ...], channels: list[int]):
    module = CNN(shape=shape, outputs=2, width=4, depth=len(channels), rngs=nnx.Rngs(0))
    assert [layer.out_features for layer in module.hidden] == channels
    assert module(jnp.ones((7, *shape))).shape == (7, 2)


def test_a_cnn_computes_what_its_docstring_says():
    module = CNN(shape=(6, 6, 2), outputs=3, width=2, depth=2, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6, 6, 2)), jnp.float32)
    for layer, stride in zip(module.hidden, (1, 2), strict=True):
        numbers = ("NHWC", "HWIO", "NHWC")
        if layer is module.hidden[0]:
            h = x
        h = lax.conv_general_dilated(h, layer.kernel[...], (stride, stride), "SAME", dimension_numbers=numbers)
        h = jnp.maximum(h, 0)
    expected = h.reshape(5, 9, 4).mean(1) @ module.output.kernel[...]
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-6)
    # He-normal at the true size: a variance of two over the 3 x 3 x width numbers that a unit adds up.
    wide = CNN(shape=(6, 6), outputs=3, width=64, depth=2, rngs=nnx.Rngs(0)).hidden[1].kernel[...]
    assert float(wide.std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)


def test_a_cnn_of_what_is_no_image_is_refused_in_a_sentence():
    sweep = sx.Sweep(
        name="line",
        data=sx.DataSpec("mnist1d", train_examples=(20,), examples=40),
        models=(sx.ModelGrid("cnn", width=4, depth=1),),
        train=sx.TrainSpec(learning_rate=(1e-2,), batch_size=(4,), steps=4),
    )
    with pytest.raises(
        sx.SweepError, match=r"family cnn convolves images.* the shape \(40,\); expected images \[height"
    ):
        sx.plan(sweep)
