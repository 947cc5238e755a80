"""Short memory and badly timed stops: what has been trained is not lost, and what is lost is told."""

import threading
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from engine_helpers import planned, slow
from flax import nnx
from test_checkpoint import buckets, homes, same, train, trials_of

from scalejax.errors import Interrupted, SweepError
from scalejax.execute import pack as pack_module
from scalejax.execute import scheduler as scheduler_module
from scalejax.execute.checkpoint import Checkpoints
from scalejax.execute.pack import Pack
from scalejax.execute.refusal import Refusals, reason_of
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.models.architecture import architecture

pytestmark = pytest.mark.usefixtures("compile_quickly")
FULL = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte.")


def refuse(*_: object, **__: object):
    raise FULL


def horizons(trials) -> dict[str, int]:
    return {each.trial_id: each.settings.steps for each in trials}


def lanes_of_packs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each new pack adds its number of lanes."""
    make, lanes = Pack.__init__, []

    def made(pack, bucket, placement, **named):
        lanes.append(placement.lanes_each)
        make(pack, bucket, placement, **named)

    monkeypatch.setattr(Pack, "__init__", made)
    return lanes


@pytest.mark.slow
def test_a_copy_for_which_there_is_no_room_costs_the_training_nothing(data, tmp_path, monkeypatch):
    trials = trials_of()
    untouched = train(buckets(trials), data)[0]
    lanes = lanes_of_packs(monkeypatch)
    monkeypatch.setattr(pack_module, "_copy", refuse)
    ends, steps, _ = train(buckets(trials), data, tmp_path / "c")
    assert same(ends, untouched)
    assert steps == horizons(trials)
    assert set(lanes) == {3}


def test_what_is_fetched_lane_by_lane_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    trials = trials_of()
    untouched = train(buckets(trials), data)[0]
    monkeypatch.setattr(pack_module, "_copy", refuse)
    monkeypatch.setattr(Pack, "snapshot", lambda _: pytest.fail("the last one"))  # killed: only what was saved before
    with pytest.raises(BaseException, match="the last one"):
        train(buckets(trials), data, tmp_path / "c", stop_after=6)
    monkeypatch.undo()
    begun = Checkpoints(tmp_path / "c").load(homes(buckets(trials)))
    assert any(paused.slot.step > 0 for paused in begun.values())
    ends, _, _ = train(buckets(trials), data, tmp_path / "c")
    assert same(ends, untouched)


@pytest.mark.filterwarnings("default:Memory is too short")
def test_where_not_even_a_lane_fits_there_is_no_checkpoint_and_that_is_said(data, tmp_path, monkeypatch):
    trials = trials_of()
    untouched = train(buckets(trials), data)[0]
    monkeypatch.setattr(pack_module, "_copy", refuse)
    monkeypatch.setattr(Pack, "_read_lane", refuse)
    with pytest.warns(UserWarning, match="Memory is too short for a checkpoint"):
        ends, steps, _ = train(buckets(trials), data, tmp_path / "c")
    assert same(ends, untouched)
    assert steps == horizons(trials)


def test_only_one_copy_of_the_lanes_is_asked_for_at_a_time(tmp_path):
    checkpoints = Checkpoints(tmp_path, seconds=0.1)
    pack = checkpoints.open("pack")
    assert not checkpoints.due(pack)
    time.sleep(0.15)
    assert checkpoints.due(pack)
    assert not checkpoints.due(pack)  # the first is not saved yet: its call is still pending


@pytest.mark.parametrize(
    ("where", "lanes"),
    [
        ("launch", 3),
        ("land", 1),
        *slow(("launch", 1), ("land", 3)),
    ],
)
def test_a_refusal_in_the_middle_costs_no_more_than_the_steps_since_the_last_checkpoint(
    data, tmp_path, monkeypatch, where, lanes
):
    trials = trials_of()
    wanted = buckets(trials, lanes=lanes, mode="map")  # whose results do not depend on the number of lanes
    untouched = train(wanted, data)[0]
    original, calls, taken = getattr(Pack, where), [], []

    def refuse_once(pack, *arguments, **named):
        calls.append(pack)
        if len(calls) == 9:
            taken.extend(slot.step for _, slot in pack.occupied)
            while not list((tmp_path / "c").glob("*/*/sha256")):
                time.sleep(0.01)
            raise FULL
        return original(pack, *arguments, **named)

    monkeypatch.setattr(Pack, where, refuse_once)
    ends, steps, _ = train(wanted, data, tmp_path / "c")
    assert len(calls) > 9
    assert same(ends, untouched)
    again = sum(steps.values()) - sum(horizons(trials).values())
    assert 0 <= again < sum(taken)  # they did not all begin again


@pytest.mark.slow
def test_a_trial_that_is_refused_for_good_fails_after_a_second_try(data, tmp_path, monkeypatch):
    trials = trials_of()
    launch, tried = Pack.launch, []

    def refuse_one(pack, **named):
        slots = [slot for _, slot in pack.occupied if slot.trial is trials[0]]
        if slots and slots[0].step >= 8:
            tried.append(slots[0].step)
            raise FULL
        return launch(pack, **named)

    monkeypatch.setattr(Pack, "launch", refuse_one)
    ends, _, _ = train(buckets(trials, lanes=1), data, tmp_path / "c")
    assert [name for name, end in ends.items() if end.status != "done"] == [trials[0].trial_id]
    assert ends[trials[0].trial_id].reason.startswith("JaxRuntimeError: RESOURCE_EXHAUSTED")
    assert tried.count(max(tried)) >= 2


def test_a_trial_fails_when_it_is_refused_a_second_time_at_the_same_step_alone():
    refusals = Refusals()
    assert refusals.failing({"a": 3, "b": 0}, lanes=2, short=True) == set()
    assert refusals.failing({"a": 3, "b": 0}, lanes=1, short=True) == set()
    assert refusals.failing({"a": 5, "b": 0}, lanes=1, short=True) == {"b"}
    assert refusals.failing({"a": 5}, lanes=1, short=True) == {"a"}
    assert refusals.failing({"c": 5}, lanes=2, short=False) == {"c"}


def scheduler_of(trials, data, folder=None, *, lanes=3, call_steps=3, seconds=0.0):
    """Return a scheduler, what it tells of ends, and its calls so far."""
    wanted = [replace(each, call_steps=call_steps) for each in buckets(trials, lanes=lanes)]
    ended, calls = {}, []
    observer = Observer(lambda _: None, lambda end: ended.update({end.trial.trial_id: end}), calls.append)
    checkpoints = Checkpoints(folder, seconds=seconds) if folder else None
    made = Scheduler(wanted, set(homes(wanted)), data=data, observer=observer, checkpoints=checkpoints)
    return made, ended, calls


class Sleepy(nnx.Module):
    """A module whose steps take far longer than any count of its operations tells."""

    SECONDS = 0.05

    def __init__(self, *, inputs: int, classes: int, rngs: nnx.Rngs):
        self.output = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        def sleep(zero: np.ndarray) -> np.ndarray:
            time.sleep(self.SECONDS)
            return np.asarray(zero)

        like = jax.ShapeDtypeStruct((), np.float32)
        return self.output(x) + jax.pure_callback(sleep, like, np.float32(0), vmap_method="broadcast_all")


def test_a_model_far_slower_than_planned_hears_a_stop_and_is_saved(data, tmp_path):
    built = architecture(Sleepy, {}, shape=(12,), outputs=3)
    trials = [replace(planned(seed=seed, steps=50_000, evaluate_every=25_000), architecture=built) for seed in range(2)]
    scheduler, _, calls = scheduler_of(trials, data, tmp_path / "c", lanes=2, call_steps=20_000, seconds=1e9)
    runs = threading.Thread(target=scheduler.run, args=(jax.local_devices()[:1],))
    runs.start()
    while len(calls) < 2:
        time.sleep(0.05)
    began = time.monotonic()
    scheduler.stop()
    runs.join(timeout=60)
    assert time.monotonic() - began < scheduler_module.STOP_SECONDS
    assert scheduler.lost == {}
    found = Checkpoints(tmp_path / "c").load(homes(buckets(trials)))
    assert {paused.slot.step for paused in found.values()} == {sum(call.steps[trials[0].trial_id] for call in calls)}


@pytest.mark.parametrize("saved", [False, True])
def test_what_a_stop_could_not_save_is_told_with_the_step_and_is_not_touched_later(data, tmp_path, monkeypatch, saved):
    trials = trials_of()
    monkeypatch.setattr(scheduler_module, "STOP_SECONDS", 0.5)
    land, entered, gate = Pack.land, threading.Event(), threading.Event()
    scheduler, ended, calls = scheduler_of(trials, data, tmp_path / "c", seconds=0.0 if saved else 1e9)

    def stuck(pack, call):
        if len(calls) == 4:
            while saved and not list((tmp_path / "c").glob("*/*/sha256")):
                time.sleep(0.01)
            entered.set()
            scheduler.stop()
            gate.wait(30)
        return land(pack, call)

    monkeypatch.setattr(Pack, "land", stuck)
    assert not scheduler.run(jax.local_devices()[:1])
    assert entered.is_set()
    assert len(scheduler.lost) == 3
    told = len(calls), dict(ended), set((tmp_path / "c").rglob("sha256"))
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("Thread-"):
            thread.join(20)
    assert (len(calls), ended, set((tmp_path / "c").rglob("sha256"))) == told
    found = Checkpoints(tmp_path / "c").load(homes(buckets(trials)))
    assert {name: found[name].slot.step if name in found else 0 for name in scheduler.lost} == scheduler.lost
    assert any(scheduler.lost.values()) == saved


def test_a_refusal_during_a_stop_fails_no_trial(data, tmp_path, monkeypatch):
    scheduler, ended, calls = scheduler_of(trials_of(), data, tmp_path / "c")
    land = Pack.land

    def broken(pack, call):
        if len(calls) == 3:
            scheduler.stop()
            raise jax.errors.JaxRuntimeError("INTERNAL: the device is being taken away")
        return land(pack, call)

    monkeypatch.setattr(Pack, "land", broken)
    assert not scheduler.run(jax.local_devices()[:1])
    assert not [end for end in ended.values() if end.status == "failed"]
    assert scheduler.lost


@pytest.mark.parametrize(
    ("lost", "says"),
    [
        ((), "what was running is saved"),
        ((1200, 1200, 1200), "3 trials are not saved since step 1,200"),
        ((1200,), "1 trial is not saved since step 1,200"),
        ((0,), "1 trial is not saved since its beginning"),
        (
            (40, 0, 1200, 0),
            "2 trials are not saved since steps 40 to 1,200 and 2 since their beginning",
        ),
    ],
)
def test_an_interruption_says_what_became_of_the_running_trials(lost, says):
    assert Interrupted(2, lost=lost).outcome == says


def test_a_sentence_of_our_own_is_a_reason_as_it_is():
    def raised(error: Exception) -> str:
        try:
            raise error
        except Exception as caught:
            return reason_of(caught)

    assert raised(SweepError("the features step mine fails")) == "the features step mine fails"
    assert raised(ValueError("what")).startswith("ValueError: what (test_refusal.py, line ")
