"""One trial: which examples it sees, how it moves, what it remembers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_helpers import device_data, finish, go_on, pack_of, planned, program
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax.data.host_shuffle import own_rows
from scalejax.train.lanes import blocks
from scalejax.train.padding import initial_weights
from scalejax.train.step import (
    BLOCK_STEPS,
    Cursor,
    Examples,
    batch_indices,
    learning_rate,
    loss_and_metric,
    start,
    train_step,
)

pytestmark = pytest.mark.usefixtures("compile_quickly")
POOL = 500


@functools.partial(jax.jit, static_argnums=0)
def draw(recipe, own, cursor, first):
    return batch_indices(recipe, own, cursor, pool=POOL, first=first)


def rows_seen(each, steps: int) -> np.ndarray:
    """Rows of the pool in the order in which a trial sees them, in calls of two blocks of steps."""
    seen = []
    for begin in range(0, steps, 2 * BLOCK_STEPS):
        epoch, position = divmod(begin * each.recipe.batch_size, each.settings.train_examples)
        cursor = Cursor(jnp.uint32(epoch), jnp.uint32(position))
        for first in (0, BLOCK_STEPS):
            seen.append(np.asarray(draw(each.recipe, each.settings.scalars(), cursor, jnp.int32(first))).ravel())
    return np.concatenate(seen)[: steps * each.recipe.batch_size]


@settings(max_examples=25, deadline=None)
@given(examples=st.integers(1, POOL), seed=st.integers(0, 5))
def test_a_trial_sees_exactly_its_first_examples_each_once_an_epoch(examples, seed):
    each = planned(train_examples=examples, seed=seed)
    steps = -(-3 * examples // each.recipe.batch_size)  # three epochs
    epochs = rows_seen(each, steps)[: 3 * examples].reshape(3, examples)
    own = np.sort(epochs[0])
    assert len(np.unique(own)) == examples
    assert np.array_equal(own, np.sort(own_rows(examples, pool=POOL, key=each.settings.subset_key)))
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), own)
    if examples > 20:
        assert not np.array_equal(epochs[0], epochs[1])


def test_own_rows_on_the_host_are_nested_in_order():
    assert np.array_equal(own_rows(400, pool=POOL, key=7)[:20], own_rows(20, pool=POOL, key=7))
    assert sorted(own_rows(POOL, pool=POOL, key=7)) == list(range(POOL))


def test_fractions_are_nested_and_seeds_draw_their_own():
    def own(examples, seed):
        return set(rows_seen(planned(train_examples=examples, seed=seed), -(-examples // 16))[:examples].tolist())

    assert own(20, 0) < own(60, 0) < own(400, 0)
    assert own(400, 1) != own(400, 0)
    assert own(POOL, 0) == own(POOL, 1) == set(range(POOL))


def test_examples_do_not_depend_on_size_or_rate_of_the_model():
    first = rows_seen(planned(learning_rate=1e-3, knobs={"width": 4, "depth": 2}), 10)
    assert np.array_equal(first, rows_seen(planned(learning_rate=1.0, knobs={"width": 9, "depth": 1}), 10))


def test_the_schedule_is_optax_cosine_with_warm_up():
    reference = optax.warmup_cosine_decay_schedule(0.0, 0.3, warmup_steps=10, decay_steps=100)
    own = planned(learning_rate=0.3, steps=100, warmup_steps=10).settings.scalars()
    steps = np.arange(100)
    found = jax.vmap(lambda step: learning_rate(own, step, schedule="cosine"))(jnp.asarray(steps, jnp.int32))
    # Ours is never zero: step k is taken at the rate that optax reaches after k + 1 steps of warm-up.
    np.testing.assert_allclose(found[:10], reference(steps[:10] + 1), rtol=1e-6)
    np.testing.assert_allclose(found[10:], reference(steps[10:]), rtol=1e-5, atol=1e-8)


def test_a_constant_schedule_stays():
    own = planned(learning_rate=0.25, warmup_steps=0).settings.scalars()
    assert learning_rate(own, jnp.int32(7), schedule="constant") == 0.25


REFERENCES = {
    "adamw": lambda rate, decay, mask: optax.adamw(rate, weight_decay=decay, mask=mask),
    "sgd": lambda rate, decay, mask: optax.chain(optax.add_decayed_weights(decay, mask), optax.sgd(rate)),
    "momentum": lambda rate, decay, mask: optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(decay, mask), optax.scale(-rate)
    ),
    "lion": lambda rate, decay, mask: optax.lion(rate, weight_decay=decay, mask=mask),
}


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in REFERENCES if name != "adamw")]
)
def test_ten_steps_equal_a_plain_loop_with_optax(data, optimizer):
    each = planned(optimizer=optimizer, schedule="constant", warmup_steps=0, learning_rate=1e-2, weight_decay=0.1)
    constants, own = program(each), each.settings.scalars()
    weights = initial_weights(each.architecture, 1)
    learner, params = start(each.recipe, own, weights).learner, weights[0]
    reference = REFERENCES[optimizer](1e-2, 0.1, jax.tree.map(lambda leaf: leaf.ndim >= 2, params))
    state = reference.init(params)

    def loss_of(params, batch):
        logits = each.architecture.predict(params, weights[1], batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()

    for step in range(10):
        part = slice(16 * step, 16 * step + 16)
        batch = Examples(jnp.asarray(data.train.inputs[part]), jnp.asarray(data.train.targets[part]))
        learner = train_step(constants, own, learner, batch)
        gradient = jax.grad(loss_of)(params, batch)
        update, state = reference.update(gradient, state, params)
        params = optax.apply_updates(params, update)
    for mine, theirs in zip(jax.tree.leaves(learner.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 50, 1024, 1025, 3000])
def test_blocks_measure_what_one_large_batch_measures(count):
    generator = np.random.default_rng(count)
    inputs = generator.normal(size=(count, 12)).astype(np.float32)
    labels = generator.integers(0, 3, count).astype(np.int32)
    each = planned()
    params, rest = initial_weights(each.architecture, 0)
    loss, error = loss_and_metric(
        each.architecture, each.recipe.task, params, rest, blocks=jax.device_put(blocks(inputs, labels))
    )
    logits = each.architecture.predict(params, rest, jnp.asarray(inputs))
    whole = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)).mean()
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    np.testing.assert_allclose(error, np.mean(np.asarray(logits).argmax(-1) != labels), rtol=1e-6)


def measured_at(each, step, data):
    """Return the test loss and error of a trial's parameters after so many steps."""
    pack = pack_of([each], data)
    while pack.occupied[0][1].step < step:
        go_on(pack)
    learner = jax.tree.map(lambda leaf: leaf[0], pack.lanes.learner)
    loss, error = loss_and_metric(
        each.architecture, each.recipe.task, learner.params, learner.rest, blocks=device_data(data).test
    )
    return float(loss), float(error)


def test_the_best_step_is_remembered_and_tested(data):
    # So high a rate on so few examples overfits: the best step lies before the last.
    each = planned(train_examples=20, steps=200, evaluate_every=10, learning_rate=3e-2, warmup_steps=0)
    end = finish(pack_of([each], data))[each.trial_id]
    losses = [one.validation_loss for one in end.evaluations]
    assert [one.step for one in end.evaluations] == list(range(10, 201, 10))
    best_step = 10 * (1 + int(np.argmin(losses)))
    assert end.best_step == best_step < 200
    assert (end.test_loss, end.test_metric) == pytest.approx(measured_at(each, best_step, data), rel=1e-5)


def test_patience_ends_a_trial_and_keeps_its_best_step(data):
    eager = planned(train_examples=20, steps=400, evaluate_every=10, learning_rate=3e-2, warmup_steps=0, patience=3)
    patient = planned(train_examples=20, steps=400, evaluate_every=10, learning_rate=3e-2, warmup_steps=0)
    ends = finish(pack_of([eager, patient], data))
    short, long = ends[eager.trial_id], ends[patient.trial_id]
    last = short.evaluations[-1].step
    assert last - 30 == short.best_step
    assert last < 400
    assert short.evaluations == long.evaluations[: len(short.evaluations)]
    assert short.status == "done"
    assert (short.test_loss, short.test_metric) == pytest.approx(measured_at(patient, short.best_step, data), rel=1e-5)
    assert short.test_loss != pytest.approx(measured_at(patient, last, data)[0], rel=1e-2)  # not that of its last step


@pytest.mark.parametrize("rate", [1e30, 1e5])
def test_a_diverged_trial_says_at_which_step_and_has_no_result(data, rate):
    wild = planned(learning_rate=rate, optimizer="sgd", steps=50, warmup_steps=0, schedule="constant")
    end = finish(pack_of([wild], data))[wild.trial_id]
    pack, first = pack_of([wild], data), 0
    while np.isfinite(pack.lanes.learner.loss_sum).all():
        pack.call(1, due=[], ending=[])
        first += 1
        pack.moved(1)
    assert end.status == "diverged"
    assert end.reason.endswith(f"not finite at step {first}")
    assert [each.step for each in end.evaluations] == list(range(5, first + 5, 5))  # up to the next one, and no further
    assert (end.best, end.best_step, end.test_loss, end.test_metric) == (None, None, None, None)


def test_a_trial_is_its_content():
    assert planned().trial_id == planned().trial_id
    changes = {"seed": 1, "learning_rate": 0.5, "train_examples": 7, "steps": 11, "data": "x", "patience": 2}
    ids = {planned(**{name: value}).trial_id for name, value in changes.items()} | {planned().trial_id}
    assert len(ids) == len(changes) + 1
    assert planned().key("subset") == planned(learning_rate=0.5).key("subset")
    assert planned().key("subset") != planned().key("shuffle")
    assert planned().key("initialise") != planned(seed=1).key("initialise")
