"""Many trials in one program give what each gives alone, whoever their neighbours are."""

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import (
    EXACT_SOLO,
    device_data,
    finish,
    go_on,
    numbers,
    pack_of,
    params_of,
    place,
    planned,
    program,
    slow,
)

from scalejax.execute.pack import Pack
from scalejax.execute.snapshot import pack_up
from scalejax.models import FAMILIES
from scalejax.train.lanes import Commands, abstract_lane, advance
from scalejax.train.padding import initial_weights
from scalejax.train.step import Cursor


def together_and_alone(trials, data, *, steps=10):
    """Return (packed, solo) losses of every step and final parameters at the padded size, for each trial."""
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    packed = pack_of(trials, data, largest=largest)
    alone = [pack_of([each], data, largest=each) for each in trials]
    losses = []
    for _ in range(steps):
        row = []
        for pack in (packed, *alone):
            outcome = pack.call(1, due=[], ending=[])
            assert np.isnan(outcome.measurement.validation_loss).all()
            row.append(np.asarray(pack.lanes.learner.loss_sum))
        losses.append((row[0], np.concatenate(row[1:])))
        for pack in (packed, *alone):
            pack.moved(1)
    return packed, alone, losses


def assert_equal_to_solo(trials, data):
    packed, alone, losses = together_and_alone(trials, data)
    for in_pack, solo in losses:
        np.testing.assert_allclose(in_pack, solo, rtol=EXACT_SOLO)
    for number, pack in enumerate(alone):
        for wide, own in zip(params_of(packed, number), params_of(pack, 0), strict=True):
            inside = wide[tuple(slice(size) for size in own.shape)]
            scale = np.abs(own).max()
            np.testing.assert_allclose(inside, own, rtol=EXACT_SOLO, atol=EXACT_SOLO * scale)
            # And the padding is zero still, to the last bit.
            wide[tuple(slice(size) for size in own.shape)] = 0
            assert not wide.any()


def test_every_family_is_among_the_cases_below():
    assert set(FAMILIES) == {"logistic", "mlp", "cnn", "transformer"}  # the last two in test_families.py


@pytest.mark.parametrize("optimizer", ["adamw", *slow("lion", "sgd", "momentum")])
def test_packed_equals_solo_for_mlps_of_several_widths(data, optimizer):
    trials = [planned(knobs={"width": width, "depth": 2}, optimizer=optimizer, seed=width) for width in (1, 3, 13)]
    assert_equal_to_solo(trials, data)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [1, *slow(3)])
def test_packed_equals_solo_at_other_depths_with_clipping(data, depth):
    trials = [planned(knobs={"width": width, "depth": depth}, clip_norm=0.5) for width in (2, 16)]
    assert_equal_to_solo(trials, data)


def test_packed_equals_solo_for_logistic_regression(data):
    trials = [planned("logistic", seed=seed, learning_rate=rate) for seed in (0, 1) for rate in (1e-3, 1e-1)]
    assert_equal_to_solo(trials, data)


def varied(count, **changes):
    """Trials that differ in everything that may differ within a program."""
    return [
        planned(
            knobs={"width": 2 + number % 4, "depth": 2},
            seed=number,
            learning_rate=10.0 ** -(1 + number % 3),
            train_examples=20 + 7 * number,
            **changes,
        )
        for number in range(count)
    ]


def test_permuted_lanes_are_bit_equal(data):
    trials = varied(8)
    plain = finish(pack_of(trials, data))
    order = np.random.default_rng(0).permutation(8)
    permuted = finish(pack_of([trials[number] for number in order], data))
    assert [numbers(plain[each.trial_id]) for each in trials] == [numbers(permuted[each.trial_id]) for each in trials]


def test_the_number_of_lanes_is_another_program_and_changes_no_more_than_rounding(data):
    # The compiler vectorises two lanes otherwise than eight: the last bit of a sum may differ, nothing else.
    trials = varied(8)
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    all_at_once = finish(pack_of(trials, data))
    for first in range(0, 8, 2):
        for name, end in finish(pack_of(trials[first : first + 2], data, largest=largest)).items():
            for few, many in zip(end.evaluations, all_at_once[name].evaluations, strict=True):
                assert few.step == many.step
                np.testing.assert_allclose(few.train_loss, many.train_loss, rtol=EXACT_SOLO)
                np.testing.assert_allclose(few.validation_loss, many.validation_loss, rtol=EXACT_SOLO)


def test_a_diverging_neighbour_changes_no_bit(data):
    trials = varied(4, steps=20)
    wild = planned(knobs={"width": 4, "depth": 2}, seed=9, learning_rate=1e30, steps=20)
    calm = finish(pack_of([*trials, planned(seed=9, steps=20)], data))
    shaken = finish(pack_of([*trials, wild], data))
    assert shaken[wild.trial_id].status == "diverged"
    assert shaken[wild.trial_id].test_metric is None
    for each in trials:
        assert numbers(calm[each.trial_id]) == numbers(shaken[each.trial_id])
        assert calm[each.trial_id].status == "done"


def test_an_idle_lane_changes_no_bit(data):
    trials = varied(3)
    largest = max(trials, key=lambda each: each.architecture.parameter_count)
    full = finish(pack_of(trials, data, largest=largest))
    gaps = finish(pack_of([None, trials[0], None, trials[1], trials[2]], data, largest=largest))
    assert {name: numbers(end) for name, end in full.items()} == {name: numbers(end) for name, end in gaps.items()}


def test_a_refilled_lane_is_bit_equal_to_a_fresh_one(data):
    late = planned(seed=5, steps=15, train_examples=70)
    fresh = finish(pack_of([late, *varied(3)], data))[late.trial_id]
    pack = pack_of([*varied(3, steps=20), planned(seed=3, steps=5)], data)
    while 3 not in pack.free:
        go_on(pack)
    place(pack, 3, late)
    assert pack.occupied[0][1].step > 0  # its neighbours are in the middle of theirs
    assert numbers(finish(pack)[late.trial_id]) == numbers(fresh)


@pytest.mark.parametrize("call_steps", [1, 7, 32, 33])
def test_the_length_of_a_call_changes_no_bit(data, call_steps):
    trials = varied(3, steps=80, evaluate_every=40)
    usual = finish(pack_of(trials, data))
    other = finish(pack_of(trials, data, call_steps=call_steps))
    assert {name: numbers(end) for name, end in usual.items()} == {name: numbers(end) for name, end in other.items()}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("family", ["mlp", "logistic"])
def test_the_lane_program_lowers_for_accelerators(data, platform, family):
    constants = program(planned(family))
    lanes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), abstract_lane(constants))
    zeros = np.zeros(3, np.uint32)
    commands = Commands(np.int32(5), Cursor(zeros, zeros), *np.ones((3, 3), bool))
    traced = jax.jit(functools.partial(advance, constants)).trace(lanes, device_data(data), commands)
    assert "while" in traced.lower(lowering_platforms=(platform,)).as_text()


def held() -> tuple[int, int]:
    """Return the number and the bytes of the arrays that are on devices."""
    arrays = jax.live_arrays()
    return len(arrays), sum(array.nbytes for array in arrays)


def run(pack: Pack, fresh, *, calls: int) -> None:
    """Run a pack as a worker does, a call ahead of what has landed; what is paused goes on in any free lane."""
    pending, waiting = [], []
    for number in range(calls):
        pack.fill([waiting.pop() if waiting else next(fresh) for _ in pack.free])
        pending.append(pack.launch(copy=number % 7 == 0))
        if len(pending) == 1 and not pending[0].decisive:
            continue
        while pending and (len(pending) == 2 or pending[-1].decisive):
            result = pack.land(pending.pop(0))
            waiting += result.paused
            if result.snapshot and result.snapshot.slots:
                pack_up(result.snapshot)
    while pending:
        pack.land(pending.pop(0))


@pytest.mark.parametrize(("calls", "mode"), [(60, "vmap"), *slow((1000, "vmap"), (1000, "static"))])
def test_nothing_is_left_on_the_devices_by_calls_that_have_landed(data, calls, mode):
    first = planned("logistic", steps=20)
    weights = jax.device_get(initial_weights(first.architecture, 0))

    def endless():
        seed = 0
        while True:
            seed += 1
            trial = planned("logistic", seed=seed, steps=8 + seed % 9, patience=2 if seed % 3 else None)
            yield replace(trial, rungs=(5,)), weights

    pack, fresh = pack_of([first] * 4, data, mode=mode, call_steps=3, keep_weights=True), endless()
    run(pack, fresh, calls=30)  # all that is compiled or made once
    before = held()
    run(pack, fresh, calls=calls)
    assert held() == before
