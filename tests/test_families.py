"""The families of sized models: what they compute, and that sizes share a program without changing a number."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import slow, trial_of
from flax import nnx
from jax import lax
from test_lanes import assert_equal_to_solo

import scalejax as sx
from scalejax.data import DataSet, Split
from scalejax.models import CNN, Transformer, architecture, own
from scalejax.planning.proof.prove import Proof, prove
from scalejax.planning.trial import Trial
from scalejax.train.padding import pad
from scalejax.train.step import Examples, slope
from scalejax.train.task import NextToken

pytestmark = pytest.mark.usefixtures("compile_quickly")
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


@pytest.mark.parametrize("optimizer", ["adamw", *slow("momentum")])
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
    h, numbers = x, ("NHWC", "HWIO", "NHWC")
    for layer, stride in zip(module.hidden, (1, 2), strict=True):
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
    with pytest.raises(sx.SweepError, match=r"cnn convolves images.* the shape \(40,\); expected images \[height"):
        sx.plan(sweep)


TOKENS, LENGTH = 7, 6


@pytest.fixture(scope="module")
def text(data: DataSet) -> DataSet:
    """Windows of six tokens, and the one that follows: a sum of the two before it, with some noise."""

    def windows(split: Split, seed: int) -> Split:
        generator = np.random.default_rng(seed)
        tokens = generator.integers(0, TOKENS, (len(split.targets), LENGTH + 1)).astype(np.uint8)
        for place in range(2, LENGTH + 1):
            tokens[:, place] = (tokens[:, place - 1] + tokens[:, place - 2] + (tokens[:, place] == 0)) % TOKENS
        return Split(tokens[:, :-1], tokens[:, -1])

    card = replace(
        data.card, shape=(LENGTH,), inputs="uint8", vocabulary=TOKENS, classes=None, targets="uint8", target_shape=()
    )
    splits = (windows(split, seed) for seed, split in enumerate((data.train, data.validation, data.test)))
    return DataSet(card, *splits)


def decoder(depth: int, **knobs) -> Trial:
    changes = {name: knobs.pop(name) for name in ("optimizer", "seed", "clip_norm", "numbers") if name in knobs}
    sizes = {"depth": depth, "head_size": 4, **knobs}
    built = architecture(
        Transformer, sizes, shape=(LENGTH,), outputs=TOKENS, dtype="int32", vocabulary=TOKENS, occasion=None
    )
    return trial_of(built, "transformer", sizes, task=NextToken(), target=("int32", ()), **changes)


MANY = [(1, 1), (3, 1), (1, 2), (2, 3)]  # depths and heads


@pytest.mark.parametrize(
    ("optimizer", "sizes", "largest"),
    [
        ("adamw", [(1, 1)], (2, 2)),
        *(pytest.param(name, MANY, (3, 3), marks=pytest.mark.slow) for name in ("adamw", "lion")),
    ],
)
def test_packed_equals_solo_for_decoders_of_several_heads_and_depths(text: DataSet, optimizer: str, sizes, largest):
    # The first gradients of all but the output are near zero, and Adam's update there is the sign of their rounding
    # unless its eps is above them.
    recipe = {"optimizer": optimizer, "clip_norm": 1.0, "numbers": {"eps": 1e-4} if optimizer == "adamw" else {}}
    trials = [decoder(depth, heads=heads, seed=heads, **recipe) for depth, heads in sizes]
    large = decoder(largest[0], heads=largest[1], **recipe)
    for trial in trials:
        assert prove(trial.program, large.program) == Proof(True, "")
    assert_equal_to_solo([*trials, large], text)


@pytest.mark.slow
def test_padding_a_decoder_changes_no_gradient_at_weights_that_have_left_their_start():
    """Its output starts from zero, so that in a first step nothing else moves; here all weights are at random."""
    generator = np.random.default_rng(0)
    small, large = decoder(2, heads=1).architecture, decoder(3, heads=2).architecture
    tokens = generator.integers(0, TOKENS, (5, LENGTH)).astype(np.int32)
    batch = Examples(tokens, tokens[:, 0])
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(leaf.dtype), small.abstract[1])
    rest = small.initialise(jax.random.key(0))[1]
    like = large.abstract[1:]
    assert float(jax.tree.leaves(pad(rest, like[1]))[0]) == 4  # the true width
    true_slope = slope(small, NextToken(), params, rest, batch=batch)
    wide = slope(large, NextToken(), pad(params, like[0]), pad(rest, like[1]), batch=batch)
    np.testing.assert_allclose(wide.loss, true_slope.loss, rtol=1e-5)
    for true, padded in zip(jax.tree.leaves(true_slope.gradient), jax.tree.leaves(wide.gradient), strict=True):
        corner, outside = tuple(slice(size) for size in true.shape), np.array(padded)
        np.testing.assert_allclose(outside[corner], true, rtol=1e-5, atol=1e-5 * float(np.abs(true).max()))
        assert np.abs(true).max() > 0
        outside[corner] = 0
        assert not outside.any()


def test_a_decoder_computes_what_its_docstring_says():
    """Against the same written with loops, in float64, at random weights."""
    built = decoder(2, heads=2).architecture
    module, generator = built.module(jax.random.key(0)), np.random.default_rng(0)
    _, params, rest = nnx.split(module, nnx.Param, ...)
    params = jax.tree.map(lambda leaf: generator.normal(0, 0.5, leaf.shape).astype(leaf.dtype), params)
    named = {name: np.asarray(leaf, np.float64) for name, leaf in own.named_leaves(params)}
    tokens = generator.integers(0, TOKENS, LENGTH)

    def norm(x, gain):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * gain

    def turned(x, position):
        angle = position * 10_000.0 ** (-np.arange(2) / 2)
        pairs = (x[:2] + 1j * x[2:]) * np.exp(1j * angle)
        return np.concatenate([pairs.real, pairs.imag])

    x = named["embed.embedding"][tokens]
    for block in range(2):
        h, added = norm(x, named["attention_gain"][block]), np.zeros_like(x)
        for head in range(2):
            query, key, value = (h @ named["attention"][block][:, part, head] for part in range(3))
            for place in range(LENGTH):
                scores = [turned(query[place], place) @ turned(key[past], past) / 2 for past in range(place + 1)]
                weights = np.exp(scores) / np.exp(scores).sum()
                added[place] += weights @ value[: place + 1] @ named["merge"][block][head]
        x = x + added
        h = norm(x, named["perceptron_gain"][block])
        x = x + np.maximum(h @ named["up"][block], 0) ** 2 @ named["down"][block]
    expected = norm(x, named["gain"]) @ named["output.kernel"]
    found = built.predict(params, rest, jnp.asarray(tokens[None], jnp.int32))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_decoder_starts_at_the_loss_of_guessing_with_kernels_of_its_true_size():
    wide = Transformer(vocabulary=50, width=128, depth=8, rngs=nnx.Rngs(0))
    assert not wide(jnp.zeros((1, 3), jnp.int32)).any()
    assert float(wide.attention[...].std()) == pytest.approx(128**-0.5, rel=0.02)
    assert wide.attention[...].shape == (8, 128, 3, 4, 32)
    assert float(wide.down[...].std()) == pytest.approx((512 * 16) ** -0.5, rel=0.02)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({}, "exactly one of heads and width, found neither"),
        ({"heads": 2, "width": 64}, "exactly one of heads and width, found both"),
        ({"width": 48}, "a width that is a multiple of it, found width = 48, head_size = 32"),
        ({"heads": 2, "head_size": 5}, "an even head_size, and a width that is a multiple of it, found head_size = 5"),
    ],
)
def test_sizes_that_no_decoder_has_are_refused_in_a_sentence(knobs: dict[str, int], says: str):
    with pytest.raises(sx.SweepError, match=says):
        Transformer(vocabulary=5, depth=1, **knobs, rngs=nnx.Rngs(0))


def test_a_decoder_of_what_are_no_tokens_is_refused_in_a_sentence():
    sweep = sx.Sweep(
        name="line",
        data=sx.DataSpec("mnist1d", train_examples=(20,), examples=40),
        models=(sx.ModelGrid("transformer", heads=1, depth=1),),
        train=sx.TrainSpec(learning_rate=(1e-2,), batch_size=(4,), steps=4),
    )
    with pytest.raises(sx.SweepError, match="the family transformer reads tokens, and these data have none; expected"):
        sx.plan(sweep)
