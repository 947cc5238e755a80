"""Numbers of optimizers, and schedules: what is trained, what ids know of them, and that lanes share programs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from engine_helpers import EXACT_SOLO, pack_of, planned, program, quick_jit, summed_losses
from test_lanes import assert_equal_to_solo

import scalejax as sx
from scalejax.data import DataSet
from scalejax.planning.plan import describe
from scalejax.planning.proof.prove import Proof, prove
from scalejax.planning.trial import Trial, expand
from scalejax.run.rows import hyperparameters_text
from scalejax.train.lanes import abstract_lane
from scalejax.train.padding import initial_weights
from scalejax.train.step import Examples, learning_rate, start, train_step

pytestmark = pytest.mark.usefixtures("compile_quickly")
OTHERS = {
    "adamw": {"b1": 0.8, "b2": 0.95, "eps": 1e-3},
    "momentum": {"momentum": 0.5},
    "lion": {"b1": 0.8, "b2": 0.9},
}
REFERENCES = {"adamw": optax.adamw, "lion": optax.lion}


def own_sweep(**train) -> sx.Sweep:
    return sx.Sweep(
        name="numbers",
        data=sx.DataSpec("mnist1d", train_examples=(20,), examples=40, validation_examples=20, test_examples=20),
        models=(sx.ModelGrid("mlp", width=4, depth=1),),
        train=sx.TrainSpec(**{"learning_rate": (1e-2,), "batch_size": (4,), "steps": 4, **train}),
    )


def trials_of(**train) -> list[Trial]:
    sweep = own_sweep(**train)
    return [counted.trial for counted in expand(sweep, describe(sweep.data))]


@pytest.mark.parametrize("optimizer", OTHERS)
def test_ten_steps_with_other_numbers_equal_a_plain_loop_with_optax(data: DataSet, optimizer: str):
    each = planned(
        optimizer=optimizer, numbers=OTHERS[optimizer], schedule="constant", warmup_steps=0, weight_decay=0.0
    )
    constants, own = program(each), each.settings.scalars()
    weights = initial_weights(each.architecture, 1)
    learner, params = start(each.recipe, own, weights).learner, weights[0]
    if optimizer == "momentum":
        reference = optax.sgd(1e-2, momentum=OTHERS[optimizer]["momentum"])
    else:
        reference = REFERENCES[optimizer](1e-2, weight_decay=0.0, **OTHERS[optimizer])
    state = reference.init(params)

    def loss_of(params, batch):
        logits = each.architecture.predict(params, weights[1], batch.inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets).mean()

    step = quick_jit(lambda learner, batch: train_step(constants, own, learner, batch))
    for number in range(10):
        part = slice(16 * number, 16 * number + 16)
        batch = Examples(jnp.asarray(data.train.inputs[part]), jnp.asarray(data.train.targets[part]))
        learner = step(learner, batch)
        update, state = reference.update(jax.grad(loss_of)(params, batch), state, params)
        params = optax.apply_updates(params, update)
    for mine, theirs in zip(jax.tree.leaves(learner.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=EXACT_SOLO, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer", [name if name == "adamw" else pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
)
def test_sizes_with_other_numbers_share_a_program_and_equal_their_solo_runs(data: DataSet, optimizer: str):
    """Each lane has numbers of its own; the default among them."""
    usual = dict(zip(OTHERS[optimizer], (0.9, 0.999, 1e-8), strict=False))
    trials = [
        planned(knobs={"width": width, "depth": 1}, optimizer=optimizer, numbers=numbers, schedule="wsd")
        for width, numbers in (
            (3, {**OTHERS[optimizer], "decay_fraction": 0.5}),
            (8, {**usual, "decay_fraction": 0.2}),
        )
    ]
    assert prove(*(each.program for each in trials)) == Proof(True, "")
    assert_equal_to_solo(trials, data)


def test_numbers_make_a_difference(data: DataSet):
    trials = [planned(numbers=OTHERS["adamw"] | {"b2": b2}, learning_rate=0.1) for b2 in (0.5, 0.95, 0.999)]
    losses = summed_losses(pack_of(trials, data), 10)[-1]
    assert len({round(float(loss), 4) for loss in losses}) == 3


def test_numbers_at_their_default_are_no_part_of_ids_or_programs():
    plain, given = trials_of(), trials_of(b1=0.9, b2=[0.999], eps=1e-8)
    assert given == plain
    assert given[0].trial_id == plain[0].trial_id
    assert jax.tree.structure(abstract_lane(given[0].program)) == jax.tree.structure(abstract_lane(plain[0].program))
    wsd, same = trials_of(schedule="wsd"), trials_of(schedule="wsd", decay_fraction=0.2)
    assert same == wsd
    assert wsd[0].hyperparameters == ()


def test_a_grid_of_numbers_names_those_that_are_not_at_their_default():
    found = trials_of(b2=[0.95, 0.999], eps=[1e-8, 1e-6], schedule="wsd", decay_fraction=[0.2, 0.5])
    assert [trial.hyperparameters for trial in found] == [
        (("b2", 0.95),),
        (("b2", 0.95), ("decay_fraction", 0.5)),
        (("b2", 0.95), ("eps", 1e-6)),
        (("b2", 0.95), ("eps", 1e-6), ("decay_fraction", 0.5)),
        (),
        (("decay_fraction", 0.5),),
        (("eps", 1e-6),),
        (("eps", 1e-6), ("decay_fraction", 0.5)),
    ]
    assert len({trial.trial_id for trial in found}) == 8
    assert len({trial.recipe for trial in found}) == 2  # the defaults as constants, and all others in one program


def test_numbers_that_agree_in_six_digits_have_texts_of_their_own():
    texts = [hyperparameters_text((("b2", b2), ("eps", 1e-8))) for b2 in (0.9, 0.999999, 0.9999999)]
    assert texts == ["b2=0.9, eps=1e-08", "b2=0.999999, eps=1e-08", "b2=0.9999999, eps=1e-08"]


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ({"b2": 0.99999999}, "b2: expected a finite number >= 0 and < 1, .* found 0.99999999, which is 1 in float32"),
        ({"b1": [0.9, 1 - 1e-9]}, "b1: .* found 0.999999999, which is 1 in float32"),
        ({"eps": 1e39}, "eps: .* found 1e[+]39, which is inf in float32"),
        ({"schedule": "wsd", "decay_fraction": 1e-50}, "decay_fraction: .* found 1e-50, which is 0 in float32"),
    ],
)
def test_a_number_keeps_its_rule_in_float32(numbers: dict, says: str):
    with pytest.raises(sx.SweepError, match=says):
        own_sweep(**numbers)


@pytest.mark.slow
def test_a_grid_of_numbers_is_run_and_its_column_says_which(tmp_path):
    run = sx.run_sweep(own_sweep(b2=[0.9, 0.999], optimizer="lion"), tmp_path, progress=False)
    assert sorted(run.results()["hyperparameters"].fillna("")) == ["b2=0.9", "b2=0.999"]
    assert sx.plan(own_sweep(b2=[0.9, 0.95, 0.999])).facts["lane_programs"] == 2


def rates(schedule, *, steps: int = 100, **numbers) -> np.ndarray:
    own = planned(learning_rate=0.3, steps=steps, warmup_steps=numbers.pop("warmup_steps", 0)).settings.scalars()
    each = jnp.arange(steps, dtype=jnp.int32)
    return np.asarray(jax.vmap(lambda step: learning_rate(own, step, schedule=schedule, **numbers))(each))


def test_the_linear_schedule_is_that_of_optax():
    np.testing.assert_allclose(rates("linear"), optax.linear_schedule(0.3, 0.0, 100)(np.arange(100)), rtol=1e-5)
    warm = rates("linear", warmup_steps=20)
    np.testing.assert_allclose(warm[:20], 0.3 * np.arange(1, 21) / 20, rtol=1e-6)
    np.testing.assert_allclose(warm[20:], 0.3 * (1 - np.arange(80) / 80), rtol=1e-5)


def test_wsd_warms_up_stays_and_falls_as_one_minus_a_square_root():
    found = rates("wsd", warmup_steps=10, decay_fraction=0.2)
    np.testing.assert_allclose(found[:10], 0.3 * np.arange(1, 11) / 10, rtol=1e-6)
    assert (found[10:81] == np.float32(0.3)).all()
    np.testing.assert_allclose(found[80:], 0.3 * (1 - np.sqrt(np.arange(20) / 20)), rtol=1e-5)
    assert found[-1] > 0


def one_to_zero(step, steps):
    return 1.0 - step / steps


def squared(step, steps):
    return (1.0 - step / steps) ** 2


def test_a_schedule_of_ones_own_is_multiplied_in_and_what_it_computes_is_part_of_the_id(monkeypatch):
    np.testing.assert_allclose(rates(one_to_zero), rates("linear"), rtol=1e-6)
    ids = {trials_of(schedule=schedule)[0].trial_id for schedule in ("linear", one_to_zero, squared)}
    assert len(ids) == 3
    before = trials_of(schedule=one_to_zero)[0].trial_id
    monkeypatch.setattr(one_to_zero, "__code__", squared.__code__)
    assert trials_of(schedule=one_to_zero)[0].trial_id != before
    assert trials_of(schedule=f"{__name__}:squared")[0].trial_id == trials_of(schedule=squared)[0].trial_id


FACTOR = 1.0


def scaled_by_factor(step, steps):
    return FACTOR * (1.0 - step / steps)


def test_a_number_that_a_schedule_of_ones_own_reads_is_part_of_the_id(monkeypatch: pytest.MonkeyPatch):
    before = trials_of(schedule=scaled_by_factor)[0].trial_id
    assert trials_of(schedule=scaled_by_factor)[0].trial_id == before
    monkeypatch.setitem(globals(), "FACTOR", 0.5)
    assert trials_of(schedule=scaled_by_factor)[0].trial_id != before


def pushed(updates, state, params=None):
    del params
    return jax.tree.map(lambda leaf: leaf + FACTOR - 1.0, updates), state


PUSHED = optax.GradientTransformation(lambda params: optax.EmptyState(), pushed)  # noqa: ARG005


def pushing() -> optax.GradientTransformation:
    return PUSHED


def test_nothing_is_remembered_of_a_family_whose_optimizer_has_changed(monkeypatch: pytest.MonkeyPatch):
    sweep = own_sweep(optimizer=pushing)
    sweep = replace(sweep, models=(sx.ModelGrid("mlp", width=[4, 8], depth=1),))

    def known() -> tuple[str, bool]:
        small, large = (counted.trial for counted in expand(sweep, describe(sweep.data)))
        return small.trial_id, prove(small.program, large.program).proven

    before, proven = known()
    assert proven
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    after, proven = known()
    assert after != before
    assert not proven  # it puts numbers into the padding now


@pytest.mark.slow
def test_a_schedule_of_ones_own_runs_with_the_horizon_of_each_lane(data: DataSet):
    trials = [planned(schedule=one_to_zero, steps=steps, seed=steps) for steps in (10, 20)]
    assert_equal_to_solo(trials, data)


def too_large(step, steps):
    return 3.0 * step / steps


def undefined(step, steps):
    return jnp.sqrt((step - 1) / steps)


def whole(step, steps):
    return step - steps


def on_the_host(step, steps):
    return float(step) / steps


@pytest.mark.parametrize(
    ("schedule", "says"),
    [
        (too_large, r"returns 1.002 at step 334 of 1000; expected a factor in \[0, 1\]"),
        (undefined, r"returns nan at step 0 of 1000; expected a factor in \[0, 1\]"),
        (whole, "expected one number, the factor at a step"),
        (on_the_host, "ConcretizationTypeError"),
    ],
)
def test_a_schedule_of_ones_own_that_is_none_is_refused_in_a_sentence(schedule, says: str):
    with pytest.raises(sx.SweepError, match=says) as raised:
        trials_of(schedule=schedule)
    assert str(raised.value).startswith("the schedule ")
    assert "\n" not in str(raised.value)
