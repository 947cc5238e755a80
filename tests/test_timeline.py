"""How a sweep ran: spans of trials in lanes, as they are told, kept and shown."""

import os
import time
from concurrent.futures import Future
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from engine_helpers import FIRST, planned
from test_lane_table import Instant
from test_store import SWEEP

import scalejax as sx
from scalejax.errors import RunError
from scalejax.execute.observer import Leaving, Moves, Observer, Place
from scalejax.execute.pack import Pack
from scalejax.execute.peak import known_peak, remember_peak
from scalejax.execute.programs import Compiler, Programs
from scalejax.execute.scheduler import Scheduler
from scalejax.planning.device_specs import spec_of_kind
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted, Trial
from scalejax.run.store import HOST, Heartbeat, SessionRow, SpanRow, Store
from scalejax.run.timeline import Recorder, group_names
from scalejax.train.cost import step_flops
from scalejax.train.padding import initial_weights

SESSION = SessionRow(1, 100.0, None, "h", "cpu", 2, 1, 5e9, 60.0, 1e9, 2e8, 1e8)


def bucket_of(trials: list[Trial], lanes: int) -> Bucket:
    return Bucket(trials[0].program, tuple(map(Counted, trials)), lanes, 1.0, 1, call_steps=10)


def moves(began: float, ended: float, *, entered: dict[str, int] | None = None, left: Any = None, steps: int = 10):
    """Return what is told of a call in a pack of two lanes."""
    place = Place(0, 0, bucket_of([planned("logistic")], 2), 2)
    return Moves(place, began, ended, steps, entered or {}, left or {})


def told(*calls: Moves) -> list[SpanRow]:
    recorder = Recorder(SESSION, groups=["cpu 0-1"])
    for each in calls:
        recorder.moved(each)
    return list(recorder.take().spans)


def test_a_span_goes_from_the_first_call_of_a_trial_to_its_last():
    first, second = told(
        moves(0.0, 1.0, entered={"a": 0, "b": 1}),
        moves(1.0, 2.0, left={"a": "done"}),
        moves(2.0, 4.0, entered={"c": 0}, left={"b": Leaving.RUNG}),
    )[:2]
    assert (first.trial_id, first.lane, first.began, first.ended, first.steps, first.outcome) == (
        *("a", 0, 0.0, 2.0, 20), "done",
    )  # fmt: skip
    assert (second.lane, second.ended, second.steps, second.outcome) == (1, 4.0, 30, "rung")
    assert (first.group, first.bucket, first.lanes, first.pack) == ("cpu 0-1", "logistic", 2, 0)
    logistic = planned("logistic")
    assert first.step_flops == step_flops(logistic.architecture, logistic.recipe)


def test_a_trial_that_waits_in_its_lane_for_its_test_has_one_span():
    spans = told(moves(0.0, 1.0, entered={"a": 0}), moves(1.0, 2.0, entered={"a": 0}, steps=0, left={"a": "done"}))
    assert [(each.ended, each.steps) for each in spans] == [(2.0, 10)]


def test_what_has_not_changed_is_not_written_again_and_the_end_closes_all():
    recorder = Recorder(SESSION, groups=["cpu 0"])
    recorder.moved(moves(0.0, 1.0, entered={"a": 0}))
    first, second = recorder.take(), recorder.take()
    assert (first.session, len(first.spans)) == (SESSION, 1)
    assert (second.session, len(second.spans)) == (None, 0)
    recorder.close()
    last = recorder.take()
    assert last.session is not None
    assert last.session.ended == last.spans[0].ended
    assert last.spans[0].outcome == "interrupted"


def test_older_algorithms_are_in_processes_of_the_host():
    recorder = Recorder(SESSION, groups=[])
    recorder.fits("a", 1, processes=2)
    recorder.fitted("a", "done", steps=1)
    (span,) = recorder.take().spans
    assert (span.group, span.lanes, span.lane, span.steps, span.outcome) == (HOST, 2, 1, 1, "done")


def test_groups_are_named_by_their_devices():
    devices = [SimpleNamespace(platform="gpu", id=number) for number in range(4)]
    assert group_names([(devices[2],), tuple(devices[:2])]) == ["gpu 2", "gpu 0-1"]


def test_a_call_in_which_no_trial_moves_costs_the_recorder_nothing_with_many_lanes():
    recorder = Recorder(SESSION, groups=["gpu 0"])
    recorder.moved(moves(0.0, 1.0, entered={str(lane): lane for lane in range(1024)}))
    began = time.perf_counter()
    for number in range(1000):
        recorder.moved(moves(number + 1.0, number + 2.0))
    assert time.perf_counter() - began < 1.0  # a millisecond each, on a busy machine too


def trained(data, trials: list[Trial], *, lanes: int, monkeypatch: pytest.MonkeyPatch) -> list[SpanRow]:
    """Train without compiling anything; return the spans."""
    made: Future[Programs] = Future()

    def place(lanes: Any, *_: Any) -> Any:
        return lanes

    made.set_result(Programs(Instant(0, 0).advance, lambda: place, place, place, placed=8))
    weights = initial_weights(trials[0].architecture, 0)
    monkeypatch.setattr(Compiler, "programs", lambda *_, **__: made)
    monkeypatch.setattr(Compiler, "initialiser", lambda *_: None)
    monkeypatch.setattr(Compiler, "initial_weights", lambda *_: weights)
    recorder, ends = Recorder(SESSION, groups=["cpu 0"]), []
    observer = Observer(lambda _: None, ends.append, lambda _: None, recorder.moved)
    scheduler = Scheduler([bucket_of(trials, lanes)], {each.trial_id for each in trials}, data=data, observer=observer)
    try:
        scheduler.run(FIRST)
    except RunError:
        recorder.close()
    return list(recorder.take().spans)


def test_the_scheduler_tells_of_every_trial_one_lane_and_no_lane_has_two_at_a_time(data, monkeypatch):
    trials = [planned("logistic", seed=seed, steps=10 + 10 * (seed % 3), evaluate_every=5) for seed in range(11)]
    spans = trained(data, trials, lanes=4, monkeypatch=monkeypatch)
    assert {each.trial_id: each.steps for each in spans} == {each.trial_id: each.settings.steps for each in trials}
    assert len(spans) == len(trials)
    assert {each.outcome for each in spans} == {"done"}
    for lane in range(4):
        own = sorted((each.began, each.ended or 0.0) for each in spans if each.lane == lane)
        assert own
        assert all(began <= ended for began, ended in own)
        assert all(ended <= later for (_, ended), (later, _) in pairwise(own))


def test_a_trial_that_memory_sends_back_has_a_span_for_each_time(data, monkeypatch):
    trials = [planned("logistic", seed=seed, steps=20, evaluate_every=5) for seed in range(4)]
    land, calls = Pack.land, []

    def refuse(self: Pack, call: Any) -> Any:
        calls.append(self.placement.lanes)
        if len(calls) == 2:
            raise MemoryError
        return land(self, call)

    monkeypatch.setattr(Pack, "land", refuse)
    spans = trained(data, trials, lanes=4, monkeypatch=monkeypatch)
    outcomes = [each.outcome for each in spans]
    assert (outcomes.count("refused"), outcomes.count("done")) == (4, 4)
    assert {each.lanes for each in spans if each.outcome == "done"} == {2}
    assert {each.pack for each in spans} == {0, 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def test_a_killed_run_ends_with_its_last_heartbeat_once_it_is_opened_again(path: Path):
    beat = Heartbeat(os.getpid(), "h", 100.0, 130.0, None)
    recorder = Recorder(SESSION, groups=["cpu 0-1"])
    recorder.moved(moves(110.0, 120.0, entered={"a": 0, "b": 1}, left={"b": "done"}))
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        store.start(["a"])
        store.beat(beat, {"a": 7}, recorder.take())
        running = store.timeline()
        assert running["ended"].isna().tolist() == [True, False]
        assert np.isnan(store.sessions()["ended"].iloc[0])
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        closed = store.timeline().set_index("trial_id")
        assert closed.loc["a", ["ended", "steps", "outcome"]].tolist() == [130.0, 7, "interrupted"]
        assert closed.loc["b", ["ended", "outcome"]].tolist() == [120.0, "done"]
        assert store.sessions()["ended"].tolist() == [130.0]
        assert store.next_session() == 2


def test_sessions_say_what_was_planned_and_how_it_came_out(path: Path):
    recorder = Recorder(SESSION, groups=["cpu 0-1"])
    recorder.moved(moves(100.0, 110.0, entered={"a": 0, "b": 1}, steps=20, left={"a": "done"}))
    recorder.moved(moves(110.0, 120.0, steps=10, left={"b": "done"}))
    recorder.fits("c", 0, processes=1)
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        store.beat(Heartbeat(1, "h", 0.0, 0.0, None), {}, recorder.take())
        (found,) = store.sessions().to_dict("records")
        assert store.timeline().columns.tolist()[:3] == ["trial_id", "session", "pack"]
    logistic = planned("logistic")
    step = step_flops(logistic.architecture, logistic.recipe)
    assert (found["lane_seconds"], found["idle_seconds"], found["training_seconds"]) == (40.0, 10.0, 20.0)
    assert found["useful_flops"] == 50 * 1000 // 20  # 1,000 FLOPs of 20 steps each
    assert found["padding_flops"] == 50 * (step - 50)
    assert {each.name for each in fields(SessionRow)} <= found.keys()
    assert (found["forecast_seconds"], found["peak_flops"]) == (60.0, 5e9)


def test_a_run_without_spans_has_empty_tables_of_the_right_types(path: Path):
    with Store(path, write=True) as store:
        store.plan(SWEEP)
    run = sx.Run(path.parent)
    assert len(run.timeline()) == len(run.sessions()) == 0
    assert run.timeline()["began"].dtype == run.sessions()["idle_seconds"].dtype == float
    assert pd.api.types.is_integer_dtype(run.timeline()["lane"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA A100-SXM4-80GB", "a100-80")),
        *(("Tesla T4", "t4"), ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e")),
        *(("NVIDIA H200 MIG 1g.18gb", None), ("cpu", None), ("TPU v4", None)),
    ],
)
def test_the_figures_of_a_vendor_are_found_by_what_jax_calls_the_device(kind: str, name: str | None):
    spec = spec_of_kind(kind)
    assert (spec and spec.name) == name


def test_a_peak_is_known_once_it_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    assert known_peak(2, precision="float32") is None  # a CPU, whose vendor says nothing
    remember_peak(3e9)
    assert known_peak(2, precision="float32") == 6e9
    assert known_peak(2, precision="bfloat16") is None
    monkeypatch.setattr("scalejax.execute.peak.device_kind", lambda: "NVIDIA H200")
    assert known_peak(2, precision="float32") == pytest.approx(2 * 67e12)
    assert known_peak(1, precision="bfloat16") == pytest.approx(989.4e12)


def test_rows_are_replaced_by_their_number(path: Path):
    span = SpanRow(1, 1, "a", 0, "cpu 0", "mlp", 1, 0, 5.0, None, 0, 10, "")
    with Store(path, write=True) as store:
        store.plan(SWEEP)
        for row in (span, replace(span, ended=6.0, steps=3, outcome="done")):
            recorded = Recorder(SESSION, groups=[]).take()
            store.beat(Heartbeat(1, "h", 0.0, 0.0, None), {}, replace(recorded, spans=[row]))
        assert store.timeline()["steps"].tolist() == [3]
        assert len(store.sessions()) == 1
