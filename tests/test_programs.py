"""Programs are compiled once for all devices of a group, in the background, and refused if they cannot fit."""

import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from engine_helpers import FIRST, UNOPTIMISED, device_data, pack_of, planned, program, ready, slow

from scalejax.execute import pack as pack_module
from scalejax.execute import programs
from scalejax.execute.devices import groups
from scalejax.execute.pack import Pack
from scalejax.execute.programs import CompiledInBackground, Compiler, Programs, check_memory, compiled_programs
from scalejax.planning import lowering
from scalejax.planning.lowering import PLACED, lowered_place
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Counted
from scalejax.train.padding import HASTY, initial_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")


def pack_on(group, trials, data, *, lanes):
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), lanes, 1.0, 1, 50)
    placement = Placement(group, lanes)
    programs_of = ready(bucket.program, placement, data.card)
    return Pack(bucket, placement, data=device_data(data, group), programs=programs_of)


def test_the_cores_of_a_cpu_are_one_group_and_accelerators_work_alone():
    cores = jax.local_devices()
    assert groups(cores) == [tuple(cores)]
    accelerators = [SimpleNamespace(platform="gpu", id=number) for number in range(3)]
    assert groups(accelerators) == [(each,) for each in accelerators]


def test_few_trials_are_spread_over_the_devices(data):
    group = tuple(jax.local_devices())
    pack = pack_on(group, [planned()], data, lanes=3)
    assert {pack.placement.shard_of(lane) for lane in pack.free[: len(group)]} == set(range(len(group)))


@pytest.mark.parametrize("count", [1, *slow(PLACED - 1, PLACED), PLACED + 3])
def test_any_number_of_trials_is_placed_each_in_its_lane(data, count):
    group = tuple(jax.local_devices())
    trials = [planned(seed=seed, learning_rate=10.0 ** -(1 + seed % 5)) for seed in range(count)]
    lanes = 1 + count // len(group)
    pack = pack_on(group, trials, data, lanes=lanes)
    slots = np.random.default_rng(count).permutation(pack.free)[:count].tolist()
    weights = [initial_weights(each.architecture, each.key("initialise")) for each in trials]
    pack.place(list(zip(slots, trials, weights, strict=True)))
    rates = np.asarray(pack.lanes.settings.learning_rate)
    first = np.asarray(jax.tree.leaves(pack.lanes.learner.params)[1])
    for slot, each, own in zip(slots, trials, weights, strict=True):
        assert rates[slot] == np.float32(each.settings.learning_rate)
        np.testing.assert_array_equal(first[slot], jax.tree.leaves(own[0])[1])
    untouched = sorted(set(range(len(rates))) - set(slots))
    assert not rates[untouched].any()


def device_with(room: int | None):
    """Return a placement on one device that claims so many bytes of memory."""
    memory = None if room is None else {"bytes_limit": room}
    return Placement((SimpleNamespace(process_index=0, memory_stats=lambda: memory),), 2)


def test_a_program_that_cannot_fit_is_refused_before_it_runs(data):
    made = ready(program(planned()), Placement(FIRST, 2), data.card).result()
    assert check_memory(made.advance, made.place, device_with(None))
    assert check_memory(made.advance, made.place, device_with(10**9))
    with pytest.raises(MemoryError, match=r"the program needs \S+ GB of the device's 0\.0"):
        check_memory(made.advance, made.place, device_with(10_000))


def needing(*, arguments: int, output: int, temporary: int, alias: int) -> SimpleNamespace:
    """Return a program that says that it needs so many bytes."""
    needs = SimpleNamespace(
        argument_size_in_bytes=arguments,
        output_size_in_bytes=output,
        temp_size_in_bytes=temporary,
        alias_size_in_bytes=alias,
    )
    return SimpleNamespace(memory_analysis=lambda: needs)


def test_what_is_in_memory_at_the_same_time_is_added_up():
    # Lanes of 100 bytes and data of 50; a call needs 30 more, the trials that wait to be written 20.
    advanced = needing(arguments=150, output=100, temporary=30, alias=100)
    placer = needing(arguments=120, output=100, temporary=0, alias=100)
    with pytest.raises(MemoryError):
        check_memory(advanced, placer, device_with(199))
    assert not check_memory(advanced, placer, device_with(200))
    assert not check_memory(advanced, placer, device_with(299))
    assert check_memory(advanced, placer, device_with(300))  # a copy of the lanes fits too


def test_a_placing_program_that_cannot_fit_beside_the_data_is_refused():
    advanced = needing(arguments=150, output=100, temporary=0, alias=100)
    placer = needing(arguments=120, output=100, temporary=80, alias=100)
    with pytest.raises(MemoryError):
        check_memory(advanced, placer, device_with(249))
    check_memory(advanced, placer, device_with(250))


@pytest.mark.parametrize(("width", "most"), [(4, None), (1024, 1.3)])
def test_placing_a_large_trial_takes_about_the_memory_of_that_trial(data, width, most):
    own = planned(knobs={"width": width, "depth": 2}).program
    compiled = compiled_programs(own, Placement(FIRST, 2), card=data.card)
    placer: Any = compiled.place
    needs = placer.memory_analysis()
    beyond = needs.argument_size_in_bytes - needs.alias_size_in_bytes + needs.temp_size_in_bytes
    lane = needs.alias_size_in_bytes / 2
    assert compiled.placed == (1 if most else PLACED)
    assert most is None or beyond < most * lane


@pytest.mark.parametrize("large", [False, True])
def test_trials_large_and_small_are_placed_without_compiling_again(data, monkeypatch, large):
    if large:
        monkeypatch.setattr(lowering, "PLACED_BYTES", 1)
    group = tuple(jax.local_devices())
    trials = [planned(seed=seed, learning_rate=10.0 ** -(1 + seed)) for seed in range(5)]
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), 5, 1.0, 1, 50)
    future: Future[Programs] = Future()
    future.set_result(compiled_programs(bucket.program, Placement(group, 5), card=data.card))
    pack = Pack(bucket, Placement(group, 5), data=device_data(data, group), programs=future)
    for count in (1, 3, 1):
        some = [trials.pop() for _ in range(count)]
        weights = [initial_weights(each.architecture, each.key("initialise")) for each in some]
        slots = pack.free[:count]
        pack.place(list(zip(slots, some, weights, strict=True)))
        rates = np.asarray(pack.lanes.settings.learning_rate)
        assert rates[slots].tolist() == [np.float32(each.settings.learning_rate) for each in some]


@pytest.mark.parametrize("free", [0, 1])
@pytest.mark.parametrize("count", [1, 3, PLACED, PLACED + 2])
def test_placing_trials_moves_those_trials_to_the_devices_and_no_others(data, monkeypatch, count, free):
    monkeypatch.setattr(pack_module, "COPIED_BYTES", free)
    trials = [planned("logistic", seed=seed) for seed in range(count)]
    moved, made = [], Future()

    def place(lanes, *operands):
        moved.append([len(leaf) for leaf in jax.tree.leaves(operands)])
        return lanes

    alone = CompiledInBackground(lambda: place)
    made.set_result(Programs(place, lambda: place, place, place, placed=PLACED, placing_one=alone))
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), count, 1.0, 1, 50)
    pack = Pack(bucket, Placement(FIRST, count), data=device_data(data), programs=made)
    weights = [initial_weights(each.architecture, 0) for each in trials]
    with ThreadPoolExecutor(1) as threads:
        alone.compile_in(threads)
        alone()
    for at_first in (True, False):
        moved.clear()
        pack.place(list(zip(range(count), trials, weights, strict=True)))
        copies = -count % PLACED if at_first and free else 0  # a few at first, on a CPU
        assert {sum(rows) for rows in zip(*moved, strict=True)} == {count + copies}


def test_a_trial_that_is_placed_alone_begins_as_among_others(data):
    trials = [planned("logistic", seed=seed, learning_rate=10.0 ** -(1 + seed)) for seed in range(3)]
    weights = [initial_weights(each.architecture, each.key("initialise")) for each in trials]
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), 3, 1.0, 1, 50)
    placement, states = Placement(FIRST, 3), []
    for count in (1, PLACED):
        placer, made = lowered_place(bucket.program, placement, count=count).compile(HASTY), Future()
        made.set_result(Programs(placer, lambda placer=placer: placer, placer, placer, placed=count))
        pack = Pack(bucket, placement, data=device_data(data), programs=made)
        pack.place(list(zip((2, 0, 1), trials, weights, strict=True)))
        states.append([np.asarray(leaf) for leaf in jax.tree.leaves(pack.lanes)])
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trial_at_a_rung_is_kept_once_however_many_devices_there_are(data):
    group = tuple(jax.local_devices())
    assert len(group) > 1
    trials = [replace(planned(seed=seed), rungs=(5,)) for seed in range(len(group))]
    pack = pack_of(trials, data, group=group)
    while not (call := pack.launch()).paused:
        pack.land(call)
    for number, state in call.paused.items():
        for leaf in jax.tree.leaves(state):
            assert leaf.devices() == {group[number]}
            assert leaf.shape[0] == 1
    result = pack.land(call)
    assert len(result.paused) == len(trials)
    for each, seed in zip(result.paused, range(len(trials)), strict=True):
        for leaf in jax.tree.leaves(each.state):
            held = leaf
            while held.base is not None and isinstance(held.base, np.ndarray):
                held = held.base
            assert held.nbytes == leaf.nbytes
        key = np.uint32(trials[seed].key("shuffle"))
        assert each.state.settings.shuffle_key == key


def test_programs_are_made_once_and_errors_reach_all_that_wait(data, monkeypatch):
    made = []

    def make(program, placement, *, card):
        made.append(placement.lanes)
        if placement.lanes > 4:
            raise MemoryError("too many")
        return compiled_programs(program, placement, card=card)

    monkeypatch.setattr(programs, "compiled_programs", make)
    compiler = Compiler(data.card)
    constants = program(planned())
    first, second = compiler.programs(constants, Placement(FIRST, 2)), compiler.programs(constants, Placement(FIRST, 2))
    assert first is second
    assert first.result().advance
    with pytest.raises(MemoryError, match="too many"):
        compiler.programs(constants, Placement(FIRST, 5)).result()
    compiler.close()
    assert made == [2, 5]


SWEEP = """
name = "twice"
seeds = 2
[data]
source = "mnist1d"
train_examples = [20, 200]
validation_examples = 50
test_examples = 50
[[models]]
family = "mlp"
width = [4, 8]
depth = 1
[train]
learning_rate = [1e-3, 1e-2]
batch_size = 16
steps = 30
"""


def test_a_second_run_compiles_nothing_anew(tmp_path: Path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    environment = os.environ | {"SCALEJAX_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": UNOPTIMISED}
    kept = []
    for out in ("one", "two"):
        command = [
            sys.executable,
            "-c",
            "import sys; from scalejax.cli import main; sys.exit(main())",
            "run",
            "sweep.toml",
            "--no-report",
            "--out",
            out,
        ]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
        kept.append({path.name for path in (tmp_path / "cache").rglob("*-cache")})
    assert kept[0]
    assert kept[1] == kept[0]


@pytest.mark.parametrize(("mode", "scatters"), [("vmap", True), ("static", False)])
def test_only_a_cpu_picks_the_logit_of_a_class_by_looking_it_up(data, mode, scatters):
    # The two round differently: a CPU keeps giving the results that it has given under the same ids.
    own = replace(program(planned()), mode=mode, pieces=(1,))
    lowered = lowering.lowered_training(own, Placement(FIRST, 2), card=data.card)
    assert any("stablehlo.scatter" in each.as_text() for each in lowered.values()) == scatters
