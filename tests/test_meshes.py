"""Trials that are spread over several devices train as those that are not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import own_modules
import pytest
from engine_helpers import EXACT_SOLO, FIRST, device_data, pack_of, params_of, place, planned, program, ready, trial_of
from many_devices import assert_passed, inner_tests, told_by

import scalejax as sx
from scalejax.data.shuffle import index_shuffle
from scalejax.execute.pack import Pack
from scalejax.models.architecture import architecture
from scalejax.planning import arrangement
from scalejax.planning import plan as planning
from scalejax.planning.arrangement import arrange
from scalejax.planning.device_specs import device_spec_named
from scalejax.planning.packing import Bucket, Capacity, Packing
from scalejax.planning.placement import Placement
from scalejax.planning.plan import make_plan
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import Counted
from scalejax.rules import SpecError
from scalejax.train.cost import SPEEDS, device_bytes
from scalejax.train.rematerialisation import rematerialised, stacks
from scalejax.train.sharding import NOT_SPREAD, Spread, parameter_axis

MESHES = Path(__file__).parent / "meshes.py"


@pytest.fixture(scope="module")
def told_by_eight() -> SimpleNamespace:
    """What pytest says of the tests that need eight devices, in a process that has them."""
    return told_by(MESHES, devices=8, seconds=1800)


@pytest.mark.slow
@pytest.mark.parametrize("name", inner_tests(MESHES))
def test_eight_devices(name: str, told_by_eight: SimpleNamespace):
    assert_passed(name, told_by_eight)


@pytest.mark.slow
def test_programs_of_known_length_give_the_same_however_a_call_is_divided(data):
    trials = [planned(learning_rate=1e-2), planned(learning_rate=3e-2, seed=1)]

    def after(*calls: int) -> list[np.ndarray]:
        pack = pack_of(trials, data, mode="static")
        for steps in calls:
            outcome = pack.call(steps, due=[], ending=[])
            pack.moved(steps)
            assert np.isnan(outcome.measurement.validation_loss).all()
        return [np.asarray(leaf) for leaf in jax.tree.leaves(pack.lanes.learner)]

    whole = after(43)  # 32 + 8 + 3 * 1
    for mine, theirs in zip(after(8, 35), whole, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_walk_of_known_length_ends_where_the_other_does():
    shuffled = [
        jax.jit(lambda index, size, key, known=known: index_shuffle(index % size, size=size, key=key, known=known))
        for known in (True, False)
    ]
    for size in (1, 2, 3, 5, 17, 100, 257, 1000, 65_537, 999_983):
        for key in (0, 0xDEADBEEF):
            known, walked = (
                each(np.arange(2048, dtype=np.uint32), np.uint32(size), np.uint32(key)) for each in shuffled
            )
            np.testing.assert_array_equal(known, walked)


@pytest.mark.slow
@pytest.mark.parametrize("spread", [Spread(2), Spread(1, 2)], ids=["batch", "parameters"])
def test_two_devices_that_share_a_trial_train_it_as_one(data, spread):
    trial = planned(knobs={"width": 128, "depth": 2}, numbers={"eps": 1e-4})
    found = []
    for group, own in ((FIRST, NOT_SPREAD), (tuple(jax.local_devices()[:2]), spread)):
        bucket = Bucket(
            replace(trial.program, mode="static", pieces=(8, 1)), (Counted(trial),), 1, 1.0, 1, 50, spread=own
        )
        placement = bucket.placement(group)
        pack = Pack(
            bucket, placement, data=device_data(data, group), programs=ready(bucket.program, placement, data.card)
        )
        place(pack, 0, trial)
        outcome = pack.call(9, due=[0], ending=[0])
        found.append((params_of(pack, 0), outcome))
    (mine, one), (theirs, other) = found
    for each, its in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(each, its, rtol=EXACT_SOLO, atol=EXACT_SOLO * np.abs(its).max())
    np.testing.assert_allclose(one.test_loss, other.test_loss, rtol=EXACT_SOLO)


@pytest.mark.parametrize(
    ("devices", "batch_size", "says"),
    [
        (1, 64, r"needs 100 GB, more than the 95 GB that one h200 has for it; spread over 2 of them it would fit"),
        (3, 64, r"has for it, and cannot be spread over 3 so that it fits; spread over 2 of them it would fit"),
        (8, 1, r"and cannot be spread over 8 so that it fits; make it smaller, or its batches larger"),
    ],
)
def test_what_is_said_of_a_model_that_does_not_fit_is_so(devices, batch_size, says):
    large = planned(knobs={"width": 50_000, "depth": 3}, batch_size=batch_size)
    packing = Packing((Bucket(program(large), (Counted(large),), 1, 1.0, 1, 50),), ())
    spec = device_spec_named("h200")
    capacity = Capacity(devices=devices, state_bytes=1e10, step_bytes=1e10, speed=SPEEDS["gpu"])
    with pytest.raises(SpecError, match=says):
        arrange(packing, devices=devices, spec=spec, capacity=capacity)


@pytest.mark.parametrize(
    ("shape", "count", "axis"),
    [
        ((24, 2048, 8192), 8, 2),
        ((24, 2048, 2048), 8, 2),
        ((8192, 2048), 8, 0),
        ((100,), 2, None),
        ((257, 255), 2, None),
    ],
)
def test_the_longest_axis_is_cut_and_small_arrays_are_not(shape, count, axis):
    assert parameter_axis(shape, count) == axis


def test_devices_that_share_a_trial_are_a_shard_of_the_mesh():
    placement = Placement(tuple(jax.local_devices()[:1]) * 12, 3, Spread(2, 3))
    assert (placement.lane_shards, placement.lanes) == (2, 6)
    assert [placement.shard_of(lane) for lane in range(6)] == [0, 0, 0, 1, 1, 1]


def test_blocks_that_are_computed_again_give_the_same_numbers():
    def blocks(x, weights):
        return jax.lax.scan(lambda h, w: (jax.numpy.tanh(h @ w), h.sum()), x, weights)

    generator = np.random.default_rng(0)
    x, weights = generator.normal(size=(4, 8)).astype("f"), generator.normal(size=(5, 8, 8)).astype("f")
    assert stacks(jax.make_jaxpr(blocks)(x, weights).jaxpr)
    again = rematerialised(blocks)

    def gradient(function):
        return jax.jit(jax.grad(lambda w: function(x, w)[0].sum() + function(x, w)[1].sum()))(weights)

    np.testing.assert_allclose(gradient(again), gradient(blocks), rtol=1e-6, atol=1e-6)
    kept = str(jax.make_jaxpr(jax.grad(lambda w: again(x, w)[0].sum()))(weights))
    assert "remat" in kept or "checkpoint" in kept


@pytest.mark.parametrize(("module", "parts"), [(own_modules.Dropout, True), (own_modules.BatchNorm, False)])
def test_the_batch_of_a_model_that_keeps_statistics_is_not_taken_in_parts(module, parts):
    own = architecture(module, {}, shape=(12,), outputs=3)
    large = program(trial_of(own, batch_size=4096))
    room = device_bytes(large, lanes=1) / 3
    found = arrangement._fitting(
        large, NOT_SPREAD, replace(device_spec_named("h200"), memory=room / arrangement.MEMORY_SHARE)
    )
    assert (found is not None and found.microbatches > 1) == parts
    assert device_bytes(replace(large, microbatches=8), lanes=1) < room


def test_devices_that_share_a_batch_do_no_work_twice_that_each_would_alone():
    large, spec = program(planned(batch_size=4096)), device_spec_named("h200")
    tight = replace(spec, memory=device_bytes(large, lanes=1, spread=Spread(4)) / arrangement.MEMORY_SHARE)
    alone, shared = (arrangement._fitting(large, spread, tight) for spread in (NOT_SPREAD, Spread(4)))
    assert shared == large
    assert alone is not None
    assert alone.microbatches > 1
    (note,) = arrangement.spread_words([Bucket(alone, (Counted(planned()),), 1, 1.0, 1, 50)])
    assert note.endswith(f": a batch is taken in {alone.microbatches} parts")


def test_a_model_shares_the_memory_of_a_device_with_the_data():
    data = sx.DataSpec(source="mnist1d", examples=40_000, train_examples=(500,), validation_examples=50)
    train = sx.TrainSpec(learning_rate=(1e-3,), batch_size=(64,), steps=10)
    sweep = sx.Sweep(name="beside", data=data, models=(sx.ModelGrid("mlp", width=[700], depth=3),), train=train)
    alone = make_plan(sweep, devices=1, spec=device_spec_named("h200"))
    need = device_bytes(alone.packing.buckets[0].program, lanes=1)
    tight = replace(device_spec_named("h200"), memory=1.2 * need)  # of which the data take more than a fifth
    assert 0.2 * tight.memory < alone.data_bytes < 0.4 * tight.memory
    with pytest.raises(SpecError, match=r"that one h200 has for it; spread over \d of them it would fit"):
        make_plan(sweep, devices=1, spec=tight)


def sweep_of(tmp_path, *, length=1024, batch_size=64, **sizes):
    path = tmp_path / "tokens.bin"
    np.random.default_rng(0).integers(0, 32_000, length * 400, dtype=np.uint16).tofile(path)
    data = sx.DataSpec(
        source="tokens",
        options={"path": str(path), "vocabulary": 32_000, "sequence_length": length},
        validation_examples=64,
        test_examples=64,
        fractions=(1.0,),
    )
    return sx.Sweep(
        name="tokens",
        task="next_token",
        data=data,
        models=(sx.ModelGrid("transformer", **sizes),),
        train=sx.TrainSpec(learning_rate=(3e-4,), batch_size=(batch_size,), steps=3000),
    )


def test_a_sweep_that_one_trial_dominates_ends_three_times_earlier_with_its_batch_spread(tmp_path, monkeypatch):
    sweep, spec = sweep_of(tmp_path, width=[64, 1024], head_size=64, depth=12), device_spec_named("h200")
    spread = make_plan(sweep, devices=64, spec=spec)
    assert any("its batch over" in note for note in spread.packing.notes)
    monkeypatch.setattr(planning, "arrange", lambda packing, **_: (packing, 1))
    apart = make_plan(sweep, devices=64, spec=spec)
    assert simulate(apart, spec).total >= 3 * simulate(spread, spec).total


def test_a_model_that_fits_no_device_is_spread_or_refused_with_what_would_hold_it(tmp_path):
    sweep = sweep_of(tmp_path, length=2048, width=2048, head_size=128, depth=24)
    with pytest.raises(SpecError, match=r"more than the 14 GB that one v5e has for it; spread over \d+ of them it w"):
        make_plan(sweep, devices=1, spec=device_spec_named("v5e"))
    large = make_plan(sweep, devices=32, spec=device_spec_named("v5e"))
    (bucket,) = large.packing.buckets
    assert bucket.spread.parameters > 1
    assert bucket.program.rematerialise
    assert large.group_size >= bucket.spread.devices
