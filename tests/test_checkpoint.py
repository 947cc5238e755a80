"""Trials that are running when a run ends continue in the next: bit for bit in the same program, wherever that runs."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from engine_helpers import EXACT_SOLO, numbers, planned, program, slow
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax.data import DataSet
from scalejax.data.features import resolve
from scalejax.errors import RunError
from scalejax.execute import CHECKPOINT_SECONDS
from scalejax.execute.checkpoint import SEAL, Checkpoints
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.execute.slot import Finished, Paused, Slot
from scalejax.execute.snapshot import Snapshot, UnreadableError, bits, pack_up, unpack
from scalejax.execute.successive_halving import History, SuccessiveHalving
from scalejax.models import MLP
from scalejax.models.architecture import architecture
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted, Trial
from scalejax.train.lanes import empty

STEPS = 40


def trials_of(widths=(3, 4), *, rates=(0.01, 0.03), **changes) -> list[Trial]:
    """Return trials of two horizons for each width and rate."""
    return [
        planned(
            knobs={"width": width, "depth": 1},
            learning_rate=rate,
            steps=steps,
            train_examples=60,
            evaluate_every=8,
            **changes,
        )
        for width in widths
        for rate in rates
        for steps in (STEPS, STEPS // 2)
    ]


def buckets(trials, *, lanes=3, mode="vmap", largest=None) -> list[Bucket]:
    largest = largest or max(trials, key=lambda each: each.architecture.parameter_count)
    made = replace(program(largest), mode=mode)
    return [Bucket(made, tuple(map(Counted, trials)), lanes=lanes, seconds=1.0, makespan=1, call_steps=3)]


def homes(wanted) -> dict[str, tuple[Trial, Any]]:
    return {each.trial_id: (each, bucket.program) for bucket in wanted for each in bucket.trials}


def train(
    wanted: list[Bucket],
    data: DataSet,
    folder: Path | None = None,
    *,
    ended: Mapping[str, Finished] | None = None,
    stop_after: int | None = None,
    devices: int = 1,
    halved: bool = False,
    seconds: float = 0.0,
) -> tuple[dict[str, Finished], dict[str, int], dict[str, Paused]]:
    """Train what has not ended; return the ends so far, the steps that each trial took here, and what was begun."""
    ends, steps, calls = dict(ended or {}), {}, 0
    left = {name: home for name, home in homes(wanted).items() if name not in ends}
    checkpoints = Checkpoints(folder, seconds=seconds) if folder else None
    begun = checkpoints.load(left) if checkpoints else {}
    halving = None
    if halved:
        histories = {
            name: History({each.step: each.validation_loss for each in end.evaluations}, end.status)
            for name, end in ends.items()
        }
        for name, paused in begun.items():
            histories[name] = History({each.step: each.validation_loss for each in paused.slot.evaluations})
        every = [each for bucket in wanted for each in bucket.trials]
        halving = SuccessiveHalving(every, reduction=2, histories=histories)

    def finished(end: Finished):
        assert end.trial.trial_id not in ends, "a trial was trained twice"
        ends[end.trial.trial_id] = end

    def progressed(progress):
        nonlocal calls
        calls += 1
        for name, count in progress.steps.items():
            steps[name] = steps.get(name, 0) + count
        if calls == stop_after:
            scheduler.stop()

    scheduler = Scheduler(
        wanted,
        left,
        data=data,
        observer=Observer(lambda _: None, finished, progressed),
        halving=halving,
        checkpoints=checkpoints,
        begun=begun,
    )
    scheduler.run(jax.local_devices()[:devices])
    return ends, steps, begun


def same(one: Mapping[str, Finished], other: Mapping[str, Finished]) -> bool:
    return {name: numbers(end) for name, end in one.items()} == {name: numbers(end) for name, end in other.items()}


class Ends(dict[str, Finished]):
    """Spelled out they would be too long for a message."""

    def __repr__(self) -> str:
        return f"{len(self)} ends"


@pytest.fixture(scope="module")
def untouched(data) -> Ends:
    return Ends(train(buckets(trials_of()), data)[0])


@settings(max_examples=4, deadline=None)
@given(stops=st.lists(st.integers(1, 9), min_size=1, max_size=5), lanes=st.sampled_from([2, 3, 8]))
@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_is_as_one_that_never_was(data, tmp_path_factory, stops, lanes):
    wanted, folder = buckets(trials_of(), lanes=lanes), tmp_path_factory.mktemp("run") / "checkpoints"
    untouched, _, _ = train(wanted, data)
    ends, total = {}, {}
    for stop_after in [*stops, None]:
        ends, steps, begun = train(wanted, data, folder, ended=ends, stop_after=stop_after)
        for name, count in steps.items():
            total[name] = total.get(name, 0) + count
        assert all(paused.slot.step > 0 for paused in begun.values())
    assert same(ends, untouched)
    assert total == {each.trial_id: each.settings.steps for each in trials_of()}  # no step twice
    assert not folder.exists()


@pytest.mark.parametrize("mode", ["vmap", *slow("map")])
@pytest.mark.parametrize(("first", "then"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_another_number_of_devices_goes_on(data, tmp_path, mode, first, then):
    wanted = buckets(trials_of(), lanes=2, mode=mode)
    whole = train(wanted, data, devices=then)[0]
    ends, _, _ = train(wanted, data, tmp_path / "c", stop_after=4, devices=first)
    assert len(ends) < len(whole)
    ends, _, begun = train(wanted, data, tmp_path / "c", ended=ends, devices=then)
    assert begun
    assert ends.keys() == whole.keys()
    if mode == "map":  # one lane at a time is one program, wherever it runs
        assert same(ends, whole)
    for name, end in ends.items():
        found, expected = (np.array([each.validation_loss for each in one.evaluations]) for one in (end, whole[name]))
        np.testing.assert_allclose(found, expected, rtol=EXACT_SOLO)


def test_another_mode_and_another_padding_go_on(data, tmp_path, untouched):
    ends, _, _ = train(buckets(trials_of()), data, tmp_path / "c", stop_after=4)
    largest = planned(knobs={"width": 9, "depth": 1})
    ends, _, begun = train(buckets(trials_of(), mode="map", largest=largest), data, tmp_path / "c", ended=ends)
    assert begun
    for name, end in ends.items():
        for found, expected in zip(end.evaluations, untouched[name].evaluations, strict=True):
            np.testing.assert_allclose(found.validation_loss, expected.validation_loss, rtol=EXACT_SOLO)


@pytest.mark.slow
@settings(max_examples=3, deadline=None)
@given(stops=st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_halving_that_is_stopped_again_and_again_stops_the_same(data, tmp_path_factory, stops):
    rungs = {STEPS: (8, 24), STEPS // 2: (8,)}
    trials = [
        replace(each, rungs=rungs[each.settings.steps]) for each in trials_of((4,), rates=(0.001, 0.01, 0.1, 0.3))
    ]
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    whole = train(buckets(trials, lanes=3), data, halved=True)[0]
    assert {end.status for end in whole.values()} == {"done", "stopped"}
    ends = {}
    for stop_after in [*stops, None]:
        ends, _, _ = train(buckets(trials, lanes=3), data, folder, ended=ends, stop_after=stop_after, halved=True)
    assert same(ends, whole)


@pytest.mark.slow
def test_halving_that_came_later_stops_what_it_would_have_stopped(data, tmp_path):
    trials = trials_of((4,), rates=(0.001, 0.01, 0.1, 0.3))
    rungs = {STEPS: (8,), STEPS // 2: (8,)}
    ends, _, _ = train(buckets(trials, lanes=8), data, tmp_path / "c", stop_after=5)  # all are past the rung
    halved = [replace(each, rungs=rungs[each.settings.steps]) for each in trials]
    whole = train(buckets(halved, lanes=8), data, halved=True)[0]
    ends, _, _ = train(buckets(halved, lanes=8), data, tmp_path / "c", ended=ends, halved=True)
    assert ends.keys() == whole.keys()
    for name, end in whole.items():
        if end.status == "done":
            assert numbers(ends[name]) == numbers(end)


class Keyed(nnx.Module):
    """A module with random keys in its state."""

    def __init__(self, *, inputs: int, classes: int, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(inputs, width, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.output(self.dropout(nnx.relu(self.hidden(x))))


@pytest.mark.slow
def test_random_keys_go_on_too(data, tmp_path):
    built = architecture(Keyed, {"width": 5}, shape=(12,), outputs=3)
    trials = [replace(each, architecture=built) for each in trials_of((3,))]
    whole = train(buckets(trials), data)[0]
    ends, _, _ = train(buckets(trials), data, tmp_path / "c", stop_after=3)
    ends, _, begun = train(buckets(trials), data, tmp_path / "c", ended=ends)
    assert begun
    assert same(ends, whole)


@pytest.mark.slow
def test_what_features_are_fitted_to_goes_on_too(data, tmp_path):
    chain = resolve(["standardise", "fourier(8)"])
    built = architecture(MLP, {"width": 3, "depth": 2}, shape=(12,), outputs=3, features=chain)
    trials = [replace(each, architecture=built, features=("standardise", "fourier")) for each in trials_of((3,))]
    whole = train(buckets(trials), data)[0]
    ends, _, _ = train(buckets(trials), data, tmp_path / "c", stop_after=3)
    ends, _, begun = train(buckets(trials), data, tmp_path / "c", ended=ends)
    assert begun
    assert same(ends, whole)


@pytest.fixture
def interrupted(data, tmp_path) -> tuple[Path, dict[str, Finished]]:
    """The checkpoints of a run that was stopped, two of one pack, and its ends."""
    folder = tmp_path / "checkpoints"
    ends, _, _ = train(buckets(trials_of()), data, folder, stop_after=5)
    (pack,) = folder.iterdir()
    assert len(list(pack.iterdir())) == 2
    return folder, ends


def newest(folder: Path) -> Path:
    (pack,) = folder.iterdir()
    return max(pack.iterdir(), key=lambda path: int(path.name))


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content), max(1, len(content) // 7)):
        content[place] ^= 0xFF
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(data, untouched, interrupted, damage):
    folder, ends = interrupted
    for path in files(newest(folder)):
        if damage is not Path.unlink or path.name != SEAL:  # without a seal it counts as half written, as after a kill
            damage(path)
    with pytest.warns(UserWarning, match=r"cannot be read \(.*\); .*/\d+ is used instead"):
        ends, _, begun = train(buckets(trials_of()), data, folder, ended=ends)
    assert begun
    assert same(ends, untouched)
    assert not folder.exists()


def test_a_pipe_in_the_place_of_a_seal_is_not_waited_for(data, untouched, interrupted):
    folder, ends = interrupted
    (newest(folder) / SEAL).unlink()
    os.mkfifo(newest(folder) / SEAL)
    ends, _, begun = train(buckets(trials_of()), data, folder, ended=ends)
    assert begun  # from the one before
    assert same(ends, untouched)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damage_to_any_one_file_is_noticed(interrupted, damage, tmp_path):
    folder, ends = interrupted
    left = {name: home for name, home in homes(buckets(trials_of())).items() if name not in ends}
    expected = Checkpoints(folder).load(left)
    assert expected
    for number, path in enumerate(files(newest(folder))):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        damage(copy / path.relative_to(folder))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            found = Checkpoints(copy).load(left)
        assert found  # those of the one before
        assert not any(
            paused.slot.step == expected[name].slot.step for name, paused in found.items() if name in expected
        )


def test_where_all_checkpoints_are_damaged_trials_begin_again(data, untouched, interrupted):
    folder, ends = interrupted
    for path in files(folder):
        flip(path)
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        ends, steps, begun = train(buckets(trials_of()), data, folder, ended=ends)
    assert [str(each.message).split("; ")[1].split(" ")[-1] for each in caught] == ["instead.", "again."]
    assert not begun
    assert {
        name: each.settings.steps for name, (each, _) in homes(buckets(trials_of())).items() if name in steps
    } == steps
    assert same(ends, untouched)


def test_only_what_is_wanted_is_loaded_and_what_nobody_wants_is_cleared(interrupted):
    folder, _ = interrupted
    everything = homes(buckets(trials_of()))
    begun = Checkpoints(folder).load(everything)
    one = next(iter(begun))
    assert Checkpoints(folder).load({one: everything[one]}).keys() == {one}
    assert Checkpoints(folder).load({}) == {}
    assert not any(folder.iterdir())


def test_a_trial_of_another_structure_is_not_taken_for_it(interrupted):
    folder, _ = interrupted
    name, (trial, made) = next(iter(homes(buckets(trials_of())).items()))
    deeper = architecture(trial.architecture.build, {"width": 4, "depth": 2}, shape=(12,), outputs=3)
    with pytest.warns(UserWarning, match="another version"):
        Checkpoints(folder).load({name: (replace(trial, architecture=deeper), replace(made, architecture=deeper))})


def test_what_cannot_be_written_ends_the_run_with_a_sentence(data, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.write_text("a file where the folder should be")
    with pytest.raises(RunError, match="a checkpoint cannot be written") as caught:
        train(buckets(trials_of()), data, folder, stop_after=4)
    assert len(str(caught.value).splitlines()) == 1


def test_a_disk_without_room_is_noticed_before_anything_is_written(data, tmp_path, monkeypatch):
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(RunError, match=r"it takes 0\.0 MB, and the disk has 1\.0 MB left"):
        train(buckets(trials_of()), data, folder, stop_after=4)
    assert not list(files(folder))


def test_a_checkpoint_is_due_after_its_seconds_and_not_before(data, tmp_path):
    folder = tmp_path / "checkpoints"
    train(buckets(trials_of()), data, folder, seconds=1e9)
    assert not folder.exists()
    train(buckets(trials_of()), data, folder, seconds=1e9, stop_after=4)  # but at a stop
    assert len(list(newest(folder).parent.iterdir())) == 1


def test_what_is_packed_up_is_what_is_unpacked(interrupted):
    folder, _ = interrupted
    (bucket,) = buckets(trials_of())
    home = homes([bucket])
    one = next(iter(Checkpoints(folder).load(home).values()))
    arrays, manifest = pack_up(Snapshot(empty(bucket.program, 2), {}, [one]))
    (again,) = unpack(arrays, manifest, homes=home)
    assert again.slot == one.slot
    for mine, other in zip(jax.tree.leaves(again.state), jax.tree.leaves(one.state), strict=True):
        np.testing.assert_array_equal(bits(mine), bits(other))
    with pytest.raises(UnreadableError, match="format"):
        unpack(arrays, {**manifest, "format": 0}, homes=home)


def test_a_checkpoint_of_another_group_takes_no_step_back(tmp_path: Path):
    """It also holds what others have taken since, as it was then."""
    one, other = planned(steps=1000), planned(steps=1000, seed=1)
    state = jax.tree.map(lambda leaf: np.asarray(leaf)[0], jax.device_get(empty(program(one), 1)))
    checkpoints = Checkpoints(tmp_path / "c", seconds=0)
    first, second = checkpoints.open("a"), checkpoints.open("b")
    later = (Paused(Slot(other, step=300), state), Paused(Slot(one, step=100), state))
    for pack, paused in ((first, [Paused(Slot(one, step=500), state)]), (second, later)):
        checkpoints.save(pack, Snapshot(empty(program(one), 1), {}, list(paused)))
        assert pack.writing is not None
        pack.writing.result()
    assert checkpoints.steps == {one.trial_id: 500, other.trial_id: 300}
    checkpoints.close(first)
    assert first.folder.exists()
    checkpoints.finish(complete=False)
    homes = {each.trial_id: (each, program(each)) for each in (one, other)}
    found = Checkpoints(tmp_path / "c").load(homes)
    assert {name: paused.slot.step for name, paused in found.items()} == {one.trial_id: 500, other.trial_id: 300}


def test_a_checkpoint_moves_each_number_of_its_trials_once_and_that_is_little_of_the_time_between_two():
    """1,024 lanes of an MLP: parameters, two moments and the best parameters, in float32."""
    lanes, slow_disk = 1024, 1e8  # bytes/s
    each = planned(knobs={"width": 64, "depth": 2}, batch_size=128)
    learned = 4 * each.architecture.parameter_count
    arrays, _ = pack_up(Snapshot(empty(program(each), lanes), {lane: Slot(each) for lane in range(lanes)}))
    moved = sum(array.nbytes for array in arrays.values())
    assert 4 * learned <= moved / lanes <= 4 * learned + 200
    assert moved / slow_disk < CHECKPOINT_SECONDS / 10
    few, _ = pack_up(Snapshot(empty(program(each), lanes), {lane: Slot(each) for lane in range(10)}))
    assert sum(array.nbytes for array in few.values()) == 10 * moved / lanes  # idle lanes are not written
