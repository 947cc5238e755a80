"""Which sizes share a program, how many lanes it has, and what that wastes."""

import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import RECIPE, pack_of, place, planned, program, trial_of
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax.models import FAMILIES, architecture
from scalejax.planning import packing as packing_module
from scalejax.planning.device_specs import PUBLIC_SPECS, local_spec
from scalejax.planning.packing import (
    PROVEN,
    Bucket,
    Capacity,
    Packing,
    Verdict,
    in_mode,
    makespan,
    pack,
    waste,
)
from scalejax.planning.proof.prove import prove
from scalejax.planning.trial import Counted
from scalejax.train.cost import EVALUATION_BYTES, SPEEDS, lane_bytes, step_flops
from scalejax.train.padding import fits_into, initial_weights, pad
from scalejax.train.recipe import EVALUATION_BLOCK, STATIC

CAPACITY = Capacity(devices=2, state_bytes=1e9, speed=SPEEDS["cpu"])


def yes(*_):
    return Verdict(PROVEN)


def proven(small, large):
    proof = prove(small, large)
    return Verdict(PROVEN if proof.proven else "", proof.reason)


def packing_of(trials, *, capacity=CAPACITY, judge=yes) -> Packing:
    return pack(list(map(Counted, trials)), capacity=capacity, judge=judge)


def sweep_of(widths, *, seeds=3, steps=500, depth=2, **changes):
    return [
        planned(knobs={"width": width, "depth": depth}, seed=seed, steps=steps, **changes)
        for width in widths
        for seed in range(seeds)
    ]


def widths_of(packing):
    return [sorted({dict(each.knobs)["width"] for each in bucket.trials}) for bucket in packing.buckets]


def test_every_trial_is_in_exactly_one_bucket_and_fits_its_program():
    trials = (
        sweep_of([4, 5, 64, 70, 300]) + sweep_of([4, 8], depth=1) + [planned("logistic", seed=seed) for seed in (0, 1)]
    )
    packing = packing_of(trials)
    packed = [each.trial_id for bucket in packing.buckets for each in bucket.trials]
    assert sorted(packed) == sorted(each.trial_id for each in trials)
    for bucket in packing.buckets:
        assert all(fits_into(each.architecture, bucket.program.architecture) for each in bucket.trials)
        assert 1 <= bucket.lanes <= len(bucket.trials)
        assert len({each.family for each in bucket.trials}) == 1


def test_small_neighbours_share_a_program_and_a_large_one_does_not_join_them():
    assert widths_of(packing_of(sweep_of([4, 6, 8]))) == [[4, 6, 8]]
    assert [512] in widths_of(packing_of(sweep_of([4, 6, 512], steps=3000)))


def test_the_division_is_the_best_of_all_divisions():
    trials = sweep_of([4, 40, 90, 150], seeds=8, steps=2000)

    def cost(packing):
        return sum(CAPACITY.speed.compile + bucket.seconds * bucket.makespan for bucket in packing.buckets)

    def alone_or_together(groups):
        found = []
        for group in groups:
            # Forced into one program by a compiler that takes forever otherwise.
            forced = replace(CAPACITY, speed=replace(CAPACITY.speed, compile=1e9))
            found.extend(packing_of([each for width in group for each in by_width[width]], capacity=forced).buckets)
        return sum(CAPACITY.speed.compile + bucket.seconds * bucket.makespan for bucket in found)

    by_width = {width: sweep_of([width], seeds=8, steps=2000) for width in (4, 40, 90, 150)}
    widths = sorted(by_width)
    divisions = []
    for cuts in itertools.product([False, True], repeat=3):
        edges = [0, *(number + 1 for number, cut in enumerate(cuts) if cut), 4]
        divisions.append([widths[begin:end] for begin, end in itertools.pairwise(edges)])
    best = min(alone_or_together(division) for division in divisions)
    assert cost(packing_of(trials)) == pytest.approx(best)


def test_rates_seeds_examples_and_horizons_share_a_program():
    trials = [
        planned(learning_rate=rate, seed=seed, train_examples=examples, steps=steps, weight_decay=decay)
        for rate, seed, examples, steps, decay in itertools.product(
            [1e-3, 1e-2], [0, 1], [20, 50], [100, 200], [0.0, 0.1]
        )
    ]
    packing = packing_of(trials)
    assert len(packing.buckets) == 1
    horizons = [each.settings.steps for each in packing.buckets[0].trials]
    assert horizons == sorted(horizons, reverse=True)


def test_lanes_are_limited_by_memory():
    trials = sweep_of([64], seeds=16)
    each = lane_bytes(program(trials[0]))
    few = Capacity(devices=1, state_bytes=3.5 * each, speed=SPEEDS["cpu"])
    assert packing_of(trials, capacity=few).buckets[0].lanes <= 3


def told_packing() -> str:
    """Return a packing of several families, sizes and recipes in words, for another process to compare."""
    trials = sweep_of([4, 8, 64, 256]) + sweep_of([4, 8], depth=1) + sweep_of([8], optimizer="sgd")
    trials += [planned("logistic", seed=seed) for seed in range(3)]
    packing = packing_of(trials)
    return repr([(each.lanes, each.makespan, [one.trial_id for one in each.trials]) for each in packing.buckets])


def test_the_packing_is_the_same_in_every_process():
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); from test_packing import told_packing; print(told_packing())"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "2")
    ]
    found = {process.communicate()[0].strip() for process in processes}
    assert found == {told_packing()}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 8))
def test_the_makespan_is_that_of_a_simulated_schedule(horizons, lanes):
    horizons = sorted(horizons, reverse=True)
    busy, waiting, clock = [0] * lanes, list(horizons), 0
    while waiting or any(busy):
        for lane in range(lanes):
            if busy[lane] == 0 and waiting:
                busy[lane] = waiting.pop(0)
        clock += 1
        busy = [max(0, left - 1) for left in busy]
    assert makespan(horizons, lanes) == clock
    assert makespan(horizons, lanes) >= max(horizons[0], math.ceil(sum(horizons) / lanes))


def test_waste_counts_padding_and_idle_lanes():
    trials = sweep_of([4, 8], seeds=2, steps=100)
    packing = packing_of(trials, capacity=replace(CAPACITY, devices=1))
    assert len(packing.buckets) == 1
    useful, padding, _ = waste(packing.buckets, devices=1)
    small, large = (step_flops(planned(knobs={"width": width, "depth": 2}).architecture, RECIPE) for width in (4, 8))
    assert useful == 200 * small + 200 * large
    assert padding == 200 * (large - small)


def test_flops_of_a_step_are_those_of_its_matrix_products():
    built = planned(knobs={"width": 8, "depth": 2}).architecture
    forward = 2 * 16 * (12 * 8 + 8 * 8 + 8 * 3)
    # Backwards: as much again for the weights, and for the inputs of all layers but the first.
    assert step_flops(built, RECIPE) == 2 * forward + 2 * 16 * (8 * 8 + 8 * 3)


def test_a_lane_is_overwritten_whole_whatever_was_in_it(data):
    each, other = planned(seed=1), planned(seed=2, learning_rate=1e-3)
    fresh, used = pack_of([each, other], data), pack_of([other, other], data)
    used.lanes = jax.tree.map(lambda leaf: jax.device_put(jnp.full_like(leaf, 7), leaf.sharding), used.lanes)
    place(used, 0, each)
    leaves = zip(*(jax.tree_util.tree_leaves_with_path(pack.lanes) for pack in (fresh, used)), strict=True)
    for (path, expected), (_, found) in leaves:
        assert np.array_equal(expected[0], found[0]), jax.tree_util.keystr(path)
        assert (np.asarray(found[1]) == 7).all(), jax.tree_util.keystr(path)  # and its neighbour is left alone


def test_padding_appends_zeros_and_keeps_the_values():
    small, large = (planned(knobs={"width": width, "depth": 2}).architecture for width in (3, 7))
    own = initial_weights(small, 1)[0]
    for array, wide in zip(jax.tree.leaves(own), jax.tree.leaves(pad(own, large.abstract[1])), strict=True):
        assert np.array_equal(wide[tuple(slice(size) for size in array.shape)], array)
        assert np.abs(wide).sum() == pytest.approx(np.abs(array).sum())


class Averaging(nnx.Module):
    """Cannot be padded: its norm averages over the units, padded ones included."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(12, width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.into(x))
        return self.out(hidden / (1e-3 + jnp.abs(hidden).mean(-1, keepdims=True)))


class Gated(nnx.Module):
    """Cannot be padded: its two halves lie side by side in one kernel."""

    def __init__(self, *, width: int, rngs: nnx.Rngs):
        self.into, self.out = nnx.Linear(12, 2 * width, rngs=rngs), nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.into(x), 2, axis=-1)
        return self.out(nnx.sigmoid(gate) * value)


def own_trials(build, widths):
    return [
        trial_of(architecture(build, {"width": width}, shape=(12,), outputs=3), build.__name__, {"width": width})
        for width in widths
    ]


@pytest.mark.parametrize("build", [Averaging, Gated])
def test_a_module_that_padding_changes_is_packed_by_its_own_size_and_the_plan_says_why(build):
    packing = packing_of(own_trials(build, [4, 8]), judge=proven)
    assert len(packing.buckets) == 2
    (note,) = packing.notes
    assert build.__name__ in note
    assert "is not packed with" in note


@pytest.mark.slow
def test_planning_simulates_fewer_schedules_than_there_are_divisions(monkeypatch):
    """Every number of lanes was simulated for every run of neighbours: a hundred sizes took forty seconds."""
    simulated = []
    schedule = packing_module.makespan

    def counted(*given, **named):
        simulated.append(given)
        return schedule(*given, **named)

    monkeypatch.setattr(packing_module, "makespan", counted)
    sizes = 80
    packing = packing_of(sweep_of(list(range(4, 4 + sizes)), seeds=2))
    assert sum(len(bucket.architectures) for bucket in packing.buckets) == sizes
    assert len(simulated) < sizes * (sizes + 1) / 2


def test_how_much_an_evaluation_takes_at_once_follows_from_the_memory_of_the_device():
    size = architecture(FAMILIES["mlp"], {"width": 64, "depth": 2}, shape=(40,), outputs=10)
    trial = trial_of(size, "mlp", batch_size=128)

    def block(room: float, lanes: int) -> int:
        bucket = Bucket(trial.program, (Counted(trial),), lanes, 1.0, 1, 50)
        return in_mode(bucket, STATIC, evaluation_bytes=room).program.evaluation_block

    here, h200, v5e = (
        local_spec().evaluation_bytes,
        PUBLIC_SPECS["h200"].evaluation_bytes,
        PUBLIC_SPECS["v5e"].evaluation_bytes,
    )
    assert here == EVALUATION_BYTES
    assert [block(here, lanes) for lanes in (64, 1024)] == [EVALUATION_BLOCK, 128]  # as before there were others
    assert [block(h200, lanes) for lanes in (64, 1024)] == [
        EVALUATION_BLOCK,
        EVALUATION_BLOCK,
    ]  # as many launches for many lanes as for few
    assert block(v5e, 1024) * 1024 * 64 * 4 <= 16e9 / 400
