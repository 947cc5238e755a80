"""What is absurd is refused in one sentence, at once, before it is spelled out, built or given memory."""

import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

import scalejax as sx
from scalejax.data import describe
from scalejax.planning.device_specs import device_spec_named, host_memory
from scalejax.planning.limits import MOST_TRIALS
from scalejax.planning.packing import PROVEN, Capacity, Verdict, pack
from scalejax.planning.plan import check_sweep, make_plan
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import expand, horizon
from scalejax.rules import LARGEST, SpecError
from scalejax.train.cost import step_bytes

SWEEP = sx.Sweep(
    name="small",
    data=sx.DataSpec("mnist1d", train_examples=(20, 100), examples=200, validation_examples=50, test_examples=100),
    models=(sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=(4, 8), depth=1)),
    train=sx.TrainSpec(learning_rate=(1e-2, 3e-2), batch_size=(16,), steps=20),
    seeds=(0, 1),
)
MANY = tuple(range(1, 100_001))


def changed(part: str, **changes: Any) -> sx.Sweep:
    return replace(SWEEP, **{part: replace(getattr(SWEEP, part), **changes)})


def mlp(**knobs: Any) -> sx.Sweep:
    return replace(SWEEP, models=(sx.ModelGrid("mlp", **{"width": 4, "depth": 1, **knobs}),))


ABSURD = {
    "seeds": (replace(SWEEP, seeds=MANY), "seeds: the sweep has 1,200,000 trials, more than 1,000,000"),
    "sizes": (mlp(width=MANY), r"\[\[models\]\] index 0 width: .* 100,000 model sizes times batch sizes"),
    "batches": (changed("train", batch_size=MANY), r"\[train\] batch_size: .* shorten this list of 100,000"),
    "depth": (mlp(depth=101), r"\[\[models\]\] index 0 depth: expected at most 100, found 101"),
    "rungs": (
        changed("train", halving=sx.HalvingSpec(tuple(each / 1000 for each in range(1, 900)))),
        r"\[train.halving\] rungs: expected at most 100, found 899",
    ),
    "measurements": (changed("train", steps=LARGEST, evaluate_every=1), r"\[train\] evaluate_every: .* less often"),
    "epochs": (changed("train", steps=None, epochs=1e300), r"\[train\] epochs: .* give max_steps"),
    "pool": (changed("data", examples=LARGEST), r"\[data\] examples: .* GB, more than the .* that this machine"),
    "test": (changed("data", test_examples=LARGEST), r"\[data\] test_examples: .* GB, more than"),
}


@pytest.mark.parametrize("what", ABSURD)
def test_what_is_absurd_is_refused_at_once(what: str):
    sweep, says = ABSURD[what]
    tracemalloc.start()
    try:
        with pytest.raises(SpecError, match=says) as caught:
            check_sweep(sweep)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # bytes: refused before a million of anything is spelled out
    assert len(str(caught.value)) < 250
    assert caught.value.keys


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        (mlp(width=10**6, depth=2), r"\[\[models\]\]: the model MLP\(.*width=1000000\) .* needs .* GB"),
        (mlp(width=LARGEST), r"the model MLP\(.*width=2147483647\) .* needs .* GB"),
        (changed("train", batch_size=(LARGEST,)), r"\[train\] batch_size: the model .* in batches of 2147483647 needs"),
    ],
    ids=["terabytes", "largest width", "largest batch"],
)
def test_a_model_that_no_memory_holds_is_refused_and_never_built(sweep: sx.Sweep, says: str):
    with pytest.raises(SpecError, match=says):
        make_plan(sweep)


def test_the_memory_is_that_of_the_devices_planned_for():
    sweep = changed("data", test_examples=10**8)  # 16 GB
    check_sweep(sweep, spec=device_spec_named("h200"))
    with pytest.raises(SpecError, match="the 12 GB that a device may hold"):
        check_sweep(sweep, spec=device_spec_named("t4"))


def test_data_that_the_user_will_not_have_streamed_are_refused_with_that_key():
    sweep = changed("data", test_examples=10**8, stream=False)
    with pytest.raises(SpecError, match=r"ask for less, or leave out stream = false$"):
        check_sweep(sweep, spec=device_spec_named("t4"))


def test_trials_that_are_only_counted_may_be_many_more():
    spec = device_spec_named("h200")
    sweep = replace(SWEEP, seeds=MANY)
    assert make_plan(sweep, spec=spec).count == 1_200_000
    with pytest.raises(SpecError, match="trials, more than 1,000,000,000"):
        check_sweep(replace(sweep, train=replace(SWEEP.train, weight_decay=MANY)), spec=spec)


@pytest.mark.slow
def test_more_rounds_than_can_be_simulated_are_refused():
    spec = device_spec_named("h200")
    plan = make_plan(replace(changed("train", weight_decay=MANY[:800]), seeds=MANY), devices=1, spec=spec)
    with pytest.raises(sx.SweepError, match="fewer trials, or for more --devices"):
        simulate(plan, spec)


def test_the_limits_are_out_of_the_way_of_sweeps_in_earnest():
    check_sweep(replace(SWEEP, seeds=tuple(range(10_000))))
    assert host_memory() > 1e8
    assert MOST_TRIALS >= 200_000


def test_absurd_epochs_are_clipped_to_max_steps():
    train = replace(SWEEP.train, steps=None, epochs=1.7e308, max_steps=50)
    assert horizon(train, LARGEST, 1)[0] == 50


def test_lanes_are_as_few_as_their_largest_array_asks_for():
    card = describe(SWEEP.data)
    trials = expand(mlp(), card)
    capacity = Capacity(devices=1, state_bytes=1e9, speed=device_spec_named("h200").speed)
    needed = step_bytes(trials[0].trial.program)[1]

    def lanes(capacity: Capacity) -> int:
        (bucket,) = pack(trials, capacity=capacity, judge=lambda *_: Verdict(PROVEN)).buckets
        return bucket.lanes

    assert lanes(capacity) == len(trials)
    assert lanes(replace(capacity, step_bytes=2 * needed)) == 2
    assert lanes(replace(capacity, step_bytes=1.0)) == 1
