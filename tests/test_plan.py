"""A plan: what is refused before anything is trained, and what is foretold."""

import math
import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from scalejax import DataSpec, ModelGrid, Sweep, SweepError, TrainSpec, load_sweep
from scalejax.data import describe
from scalejax.execute import timing
from scalejax.planning.device_specs import device_spec_named
from scalejax.planning.forecast import Forecast, forecast
from scalejax.planning.outline import outline
from scalejax.planning.plan import make_plan
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import expand, horizon
from scalejax.report.plan import plan_lines
from scalejax.train.cost import step_flops

pytestmark = pytest.mark.usefixtures("compile_quickly")
DATA = DataSpec("mnist1d", train_examples=(20, 200), examples=500, validation_examples=50, test_examples=60)
TRAIN = TrainSpec(learning_rate=(1e-3, 1e-2), batch_size=(16,), steps=40)
SWEEP = Sweep(
    name="small",
    data=DATA,
    models=(ModelGrid("logistic"), ModelGrid("mlp", width=[4, 8], depth=1)),
    train=TRAIN,
    seeds=(0, 1),
)


class Net(nnx.Module):
    """A module of the user's own."""

    def __init__(self, *, width: int, inputs: int, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.into(x)))


class Dropping(nnx.Module):
    """A module that draws random numbers while it trains and has state that is not trained."""

    def __init__(self, *, width: int, inputs: int, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(inputs, width, rngs=rngs), nnx.Linear(width, 10, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.drop(nnx.relu(self.into(x))))


def test_a_plan_has_the_product_of_the_grids():
    plan = make_plan(SWEEP, devices=2)
    assert len(plan.trials) == 3 * 2 * 2 * 2
    assert len({each.trial_id for each in plan.trials}) == len(plan.trials)
    # Of 40 steps: two products a layer, and for the inputs of all layers but the first a third.
    layers = [[(40, 10)], [(40, 4), (4, 10)], [(40, 8), (8, 10)]]
    step = sum(2 * 16 * (3 * sum(a * b for a, b in sizes) - math.prod(sizes[0])) for sizes in layers)
    assert plan.useful_flops == step * 40 * len(plan.trials) / len(layers)
    assert plan.data_bytes == 4 * 41 * (500 + 50 + 60)


def test_ids_do_not_depend_on_the_rest_of_the_sweep():
    small = {each.trial_id for each in make_plan(SWEEP, devices=1).trials}
    larger = replace(
        SWEEP,
        data=replace(DATA, train_examples=(20, 200, 400)),
        models=(ModelGrid("mlp", depth=1, width=[8, 4, 2]), ModelGrid("logistic")),
        seeds=(0, 1, 2),
    )
    assert small < {each.trial_id for each in make_plan(larger, devices=1).trials}
    other = replace(SWEEP, data=replace(DATA, seed=1))
    assert small.isdisjoint(each.trial_id for each in make_plan(other, devices=1).trials)


def test_fractions_and_numbers_are_the_same_trials():
    by_fraction = replace(SWEEP, data=replace(DATA, train_examples=None, fractions=(0.04, 0.4)))
    assert [each.trial.trial_id for each in expand(by_fraction, describe(by_fraction.data))] == [
        each.trial.trial_id for each in expand(SWEEP, describe(SWEEP.data))
    ]


@pytest.mark.parametrize(
    ("changes", "examples", "expected"),
    [
        ({"steps": 3000}, 20, (3000, 150)),
        ({"steps": 3001}, 20, (3001, 151)),
        ({"steps": 10, "evaluate_every": 3}, 20, (10, 3)),
        ({"epochs": 20, "min_steps": 1000, "max_steps": 20000}, 20, (1024, 64)),
        ({"epochs": 20, "min_steps": 1000, "max_steps": 20000}, 10**6, (20000, 1024)),
        ({"epochs": 1}, 1600, (100, 4)),
        ({"epochs": 2, "evaluate_every": 7}, 1600, (203, 7)),
        ({"epochs": 0.5}, 16, (1, 1)),
    ],
)
def test_horizons(changes, examples, expected):
    train = TrainSpec(learning_rate=(1e-3,), batch_size=(16,), **changes)
    assert horizon(train, examples, 16) == expected


def refusal(sweep) -> str:
    with pytest.raises(SweepError) as caught:
        make_plan(sweep)
    text = str(caught.value)
    assert "\n" not in text
    return text


def own(build, **knobs):
    return replace(SWEEP, models=(ModelGrid(build, **knobs),))


def test_a_module_of_the_users_own_is_planned_and_its_source_is_part_of_the_identity():
    plan = make_plan(own(Net, width=[4, 8]), devices=1)
    assert {each.family for each in plan.trials} == {"Net"}
    assert all(each.builder for each in plan.trials)
    assert plan.packing.notes == ()  # tanh(0) = 0, so it may be padded


def test_a_builder_that_fails_or_returns_something_else_is_refused_in_a_sentence():
    def failing(*, width, rngs):  # noqa: ARG001
        raise RuntimeError("no such width\nat all")

    def wrong(*, width, rngs):
        return nnx.Linear(40, width, rngs=rngs)

    def not_callable(*, width, rngs):  # noqa: ARG001
        return nnx.Dict(a=nnx.Param(jnp.zeros(width)))

    assert "failing(width=4) fails" in refusal(own(failing, width=4))
    assert "no such width" in refusal(own(failing, width=4))
    assert "expected outputs of (2, 10) for the task classification" in refusal(own(wrong, width=4))
    assert "not_callable(width=4) fails" in refusal(own(not_callable, width=4))


def test_two_families_of_one_name_are_refused():
    def mlp(*, width, inputs, rngs):
        return Net(width=width, inputs=inputs, rngs=rngs)

    assert "another family is called mlp too" in refusal(own(mlp, width=4))


def timed_forecast(plan, *, patience_seconds: float) -> Forecast:
    return forecast(plan, timing.timings_of(plan, patience_seconds=patience_seconds))


@pytest.mark.slow
def test_a_forecast_is_remembered_and_a_damaged_memory_is_timed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    plan = make_plan(SWEEP)
    timed = []
    time_bucket = timing._time
    monkeypatch.setattr(timing, "_time", lambda *each, **group: timed.append(each) or time_bucket(*each, **group))
    first = timed_forecast(plan, patience_seconds=60)
    assert all(first.timed)
    assert first.total == sum(first.seconds) > 0
    assert len(timed) == len(plan.packing.buckets)
    assert timed_forecast(plan, patience_seconds=0) == first
    assert len(timed) == len(plan.packing.buckets)
    for path in (tmp_path / "calibrations").iterdir():
        path.write_text("{")
    again = timed_forecast(plan, patience_seconds=0)
    assert again.timed == (True, *[False] * (len(plan.packing.buckets) - 1))
    assert all(seconds > 0 for seconds in again.seconds)


@pytest.mark.slow
def test_more_steps_are_foretold_to_take_longer():
    longer = replace(SWEEP, train=replace(TRAIN, steps=400_000))
    short, long = (timed_forecast(make_plan(sweep), patience_seconds=60).total for sweep in (SWEEP, longer))
    assert long > 2 * short


def computed(plan) -> int:
    """Return the FLOPs of all lanes of a plan for as long as their programs run, whatever is in them."""
    return sum(
        step_flops(bucket.program.architecture, bucket.program.recipe) * (bucket.lanes * plan.devices * bucket.makespan)
        for bucket in plan.packing.buckets
    )


def test_the_outline_is_the_plan_in_plain_data():
    plan = make_plan(SWEEP)
    facts = outline(plan, timed_forecast(plan, patience_seconds=60), device="cpu")
    assert facts["trials"] == 24 == sum(program["trials"] for program in facts["programs"])
    assert facts["lane_programs"] == len(facts["programs"]) == 2
    assert any("width 4, 8" in program["sizes"] for program in facts["programs"])
    assert facts["useful_flops"] == plan.useful_flops
    # The networks of width 4 are padded to 8 in every one of their 40 steps; logistic regressions are not.
    (padded, *_) = plan.packing.buckets
    narrow, wide = (step_flops(each, padded.program.recipe) for each in padded.architectures)
    assert facts["padding_flops"] == 8 * 40 * (wide - narrow)
    assert facts["waste"] == pytest.approx(1 - facts["useful_flops"] / computed(plan))


def test_one_of_a_kind_is_not_told_as_several():
    one = replace(
        SWEEP, data=replace(DATA, train_examples=(20,)), models=SWEEP.models[:1], seeds=(0,),
        train=replace(TRAIN, learning_rate=(1e-3,), steps=1),
    )  # fmt: skip
    spec = device_spec_named("h200")
    plan = make_plan(one, devices=1, spec=spec)
    text = "\n".join(plan_lines(outline(plan, simulate(plan, spec), device="cpu")))
    assert "1 trial on 1 x" in text
    assert "1 lane program," in text
    assert "1 trial in 1 lane (" in text
    assert "1 step," in text
    assert not re.search(r"\b1 \w+s\b(?<!1 s)", text)


@pytest.mark.slow
def test_a_module_with_random_state_trains(tmp_path):
    from scalejax import run_sweep

    sweep = replace(own(Dropping, width=[4]), data=replace(DATA, train_examples=(200,)), seeds=(0,))
    table = run_sweep(sweep, tmp_path / "run", progress=False).results()
    assert set(table["status"]) == {"done"}


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "sweeps").glob("*.toml")), ids=lambda path: path.stem
)
def test_a_shipped_sweep_leaves_room_in_its_pool_for_every_seed_to_have_its_own_examples(path: Path):
    data = load_sweep(path).data
    assert data.train_examples
    assert data.examples
    assert max(data.train_examples) <= data.examples / 2
