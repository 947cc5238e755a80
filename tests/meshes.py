"""Eight devices of a CPU as meshes of lanes, batches and parameters; test_meshes.py runs this where there are eight."""

from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import EXACT_SOLO, device_data, planned, program

from scalejax.execute.pack import Pack
from scalejax.execute.programs import compiled_programs
from scalejax.execute.snapshot import Snapshot, pack_up, unpack
from scalejax.planning.lowering import lowered_training
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Counted
from scalejax.train.padding import initial_weights
from scalejax.train.sharding import NOT_SPREAD, Spread

# Adam divides a gradient by its own size, also one that is nothing but rounding; eps keeps that out of the comparison.
TRIALS = [
    planned(knobs={"width": 128, "depth": 2}, learning_rate=10.0 ** -(2 + number / 4), numbers={"eps": 1e-4})
    for number in range(8)
]
MESHES = {
    "lanes": (NOT_SPREAD, 1),
    "batch": (Spread(8), 8),
    "lanes and batch": (Spread(2), 2),
    "parameters": (Spread(1, 8), 8),
    "all three": (Spread(2, 2), 4),
}


def begun(mesh: str, mode: str, data, **changes) -> Pack:
    """Return a pack with eight trials on a mesh, none of which has taken a step."""
    assert len(jax.local_devices()) == 8
    spread, lanes = MESHES[mesh]
    own = replace(program(TRIALS[0]), mode=mode, **changes)
    bucket = Bucket(own, tuple(map(Counted, TRIALS)), lanes, 1.0, 1, 50, spread=spread)
    placement = bucket.placement(tuple(jax.local_devices()))
    ready: Future = Future()
    ready.set_result(compiled_programs(own, placement, card=data.card))
    pack = Pack(bucket, placement, data=device_data(data, placement.devices), programs=ready)
    pack.place(list(zip(range(8), TRIALS, map(drawn, TRIALS), strict=True)))
    return pack


def drawn(trial):
    return initial_weights(trial.architecture, trial.key("initialise"))


def trained(mesh: str, mode: str, data, **changes):
    """Return the parameters of all lanes after ten steps, and what was measured of them."""
    pack = begun(mesh, mode, data, **changes)
    outcome = pack.call(10, due=range(8), ending=range(8))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(pack.lanes.learner.params)], outcome


@pytest.fixture(scope="session")
def alone(data):
    """What becomes of the trials with a lane on each device."""
    return trained("lanes", "vmap", data)


def assert_alike(one, other) -> None:
    for mine, theirs in zip(one[0], other[0], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=EXACT_SOLO, atol=EXACT_SOLO * np.abs(theirs).max())
    for name in ("train_loss", "validation_loss"):
        mine, theirs = (getattr(each[1].measurement, name) for each in (one, other))
        np.testing.assert_allclose(mine, theirs, rtol=EXACT_SOLO)
    np.testing.assert_allclose(one[1].test_loss, other[1].test_loss, rtol=EXACT_SOLO)


@pytest.mark.parametrize("mode", ["vmap", "static"])
@pytest.mark.parametrize("mesh", [name for name in MESHES if name != "lanes"])
def test_a_trial_that_is_spread_is_as_one_that_is_not(mesh, mode, data, alone):
    assert_alike(trained(mesh, mode, data), alone)


@pytest.mark.parametrize("mesh", ["lanes", "all three"])
def test_a_batch_in_parts_has_the_same_gradient(mesh, data, alone):
    assert_alike(trained(mesh, "static", data, microbatches=4), alone)


@pytest.mark.parametrize(("first", "then"), [("parameters", "lanes"), ("lanes", "all three")])
def test_a_trial_goes_on_on_another_mesh(first, then, data, alone):
    pack = begun(first, "static", data)
    pack.call(4, due=[], ending=[])
    pack.moved(4)
    arrays, manifest = pack_up(Snapshot(pack.lanes, dict(pack.occupied)))
    other = begun(then, "static", data)
    homes = {trial.trial_id: (trial, other.bucket.program) for trial in TRIALS}
    for number, paused in enumerate(unpack(arrays, manifest, homes=homes)):
        other.resume(number, paused)
    outcome = other.call(6, due=range(8), ending=range(8))
    params = [np.asarray(leaf) for leaf in jax.tree.leaves(other.lanes.learner.params)]
    assert_alike((params, outcome), alone)


def test_a_lane_is_read_whole_from_all_of_its_devices(data):
    pack = begun("all three", "static", data)
    weights = pack._read_lane(pack.lanes.learner.params, 5)
    for mine, own in zip(jax.tree.leaves(weights), jax.tree.leaves(drawn(TRIALS[5])[0]), strict=True):
        np.testing.assert_array_equal(np.asarray(mine)[0], own)


@pytest.mark.parametrize(
    ("mesh", "there"), [("lanes", False), ("batch", True), ("parameters", True)], ids=["lanes", "batch", "parameters"]
)
def test_only_a_mesh_that_shards_trials_has_collectives(mesh, there, data):
    spread, lanes = MESHES[mesh]
    placement = Placement(tuple(jax.local_devices()), lanes, spread)
    lowered = lowered_training(replace(program(TRIALS[0]), mode="static"), placement, card=data.card)
    text = lowered[8].compile().as_text()
    assert ("all-reduce(" in text or "reduce-scatter(" in text) == there
    assert ("all-gather(" in text) == (mesh == "parameters")
