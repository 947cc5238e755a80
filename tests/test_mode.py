"""The mode of a program is measured where it pays, remembered, and kept by a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
from engine_helpers import finish, numbers, pack_of, planned
from flax import nnx

from scalejax import DataSpec, ModelGrid, Sweep, TrainSpec, run_sweep
from scalejax.execute import modes
from scalejax.execute.modes import choose_mode, kept_modes, modes_to_keep, program_key, with_modes
from scalejax.execute.timing import Timing
from scalejax.planning.plan import make_plan

SWEEP = Sweep(
    name="modes",
    data=DataSpec("mnist1d", train_examples=(20, 200), examples=500, validation_examples=50, test_examples=60),
    models=(ModelGrid("mlp", width=[4, 8], depth=1),),
    train=TrainSpec(learning_rate=(1e-3,), batch_size=(16,), steps=40),
)


def ends(data, mode, *, idle=False):
    trials = [planned(knobs={"width": 2 + number, "depth": 2}, seed=number, steps=10) for number in range(3)]
    return finish(pack_of([*trials, *[None] * (2 if idle else 0)], data, mode=mode))


def test_one_lane_after_the_other_equals_side_by_side_to_the_tolerance_between_modes(data):
    side_by_side, in_turn = ends(data, "vmap"), ends(data, "map")
    for name, end in side_by_side.items():
        for one, other in zip(end.evaluations, in_turn[name].evaluations, strict=True):
            np.testing.assert_allclose(one.train_loss, other.train_loss, rtol=1e-5)
            np.testing.assert_allclose(one.validation_loss, other.validation_loss, rtol=1e-5)
    assert {end.mode for end in in_turn.values()} == {"map"}


def test_idle_lanes_change_no_bit_in_turn(data):
    assert {name: numbers(end) for name, end in ends(data, "map").items()} == {
        name: numbers(end) for name, end in ends(data, "map", idle=True).items()
    }


@pytest.fixture
def plan():
    return make_plan(SWEEP, devices=1)


def test_the_faster_mode_is_chosen_where_timing_pays(plan, monkeypatch):
    (bucket,) = plan.packing.buckets
    long = replace(bucket, makespan=10**9)
    timed = []

    def pretend(each, _):
        timed.append(each.program.mode)
        return Timing(step=1.0 if each.program.mode == "vmap" else 0.5, evaluation=1.0, test=1.0)

    monkeypatch.setattr(modes, "timed", pretend)
    monkeypatch.setattr(modes, "remembered", lambda *_: None)
    assert choose_mode(long, plan, measure=True) == "map"
    assert timed == ["vmap", "map"]
    assert choose_mode(long, plan, measure=False) == "vmap"
    assert choose_mode(bucket, plan, measure=True) == "vmap"
    assert timed == ["vmap", "map"]
    monkeypatch.setattr(modes, "remembered", pretend)
    assert choose_mode(bucket, plan, measure=False) == "map"


def test_an_accelerator_runs_lanes_side_by_side_in_programs_of_known_length(plan, monkeypatch):
    monkeypatch.setattr(modes.jax, "default_backend", lambda: "gpu")
    assert choose_mode(replace(plan.packing.buckets[0], makespan=10**9), plan, measure=True) == "static"


@pytest.mark.slow
def test_a_run_keeps_its_modes(tmp_path):
    out = tmp_path / "run"
    run_sweep(SWEEP, out, progress=False)
    path = out / "environment.json"
    written = json.loads(path.read_text())
    assert list(written["modes"].values()) == ["vmap"]
    written["modes"] = dict.fromkeys(written["modes"], "map")
    path.write_text(json.dumps(written))
    table = run_sweep(replace(SWEEP, seeds=(0, 1)), out, progress=False).results()
    assert set(table.loc[table["seed"] == 0, "mode"]) == {"vmap"}
    assert set(table.loc[table["seed"] == 1, "mode"]) == {"map"}
    assert list(json.loads(path.read_text())["modes"].values()) == ["map"]


@pytest.mark.parametrize("environment", [None, 3, {}, {"modes": 1}, {"modes": {"x": "sideways"}}])
def test_an_illegible_environment_has_no_modes(environment, plan):
    assert kept_modes(environment) == {}
    assert (
        modes_to_keep(with_modes(plan, {"other": "map"}, measure=False), {"modes": {"other": "map"}})["other"] == "map"
    )


def test_a_program_is_known_by_the_source_of_its_builder_not_by_its_address():
    def builder():
        def build(*, width, inputs, rngs):
            return nnx.Linear(inputs, width, rngs=rngs)

        return build

    def key(build):
        (bucket,) = make_plan(replace(SWEEP, models=(ModelGrid(build, width=10),)), devices=1).packing.buckets
        return program_key(bucket)

    def build(*, width, inputs, rngs):
        return nnx.Linear(inputs, width, use_bias=False, rngs=rngs)

    assert key(builder()) == key(builder())
    assert key(builder()) != key(build)
