"""The simulated schedule: against one that is spelled out trial by trial, against bounds, and against a real run."""

import heapq
import itertools
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from engine_helpers import planned, program
from hypothesis import given, settings
from hypothesis import strategies as st

from scalejax import DataSpec, ModelGrid, Sweep, SweepError, TrainSpec
from scalejax.cli import main
from scalejax.data import describe
from scalejax.execute import timing
from scalejax.execute.pack import Pack
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.planning import forecast as planning
from scalejax.planning.device_specs import PUBLIC_SPECS, device_spec_named
from scalejax.planning.forecast import Forecast, Timing
from scalejax.planning.outline import outline
from scalejax.planning.packing import STATIC, Bucket, in_mode, makespan
from scalejax.planning.placement import Placement, Spread
from scalejax.planning.plan import make_plan
from scalejax.planning.schedule import Load, schedule
from scalejax.planning.simulate import simulate
from scalejax.planning.trial import Counted, expand, expand_counted
from scalejax.report.plan import plan_lines
from scalejax.spec.file import sweep_to_toml

DATA = DataSpec("mnist1d", train_examples=(20, 200, 2000), examples=5000, validation_examples=50, test_examples=60)
SWEEP = Sweep(
    name="small",
    data=DATA,
    models=(ModelGrid("logistic"), ModelGrid("mlp", width=[4, 8], depth=1)),
    train=TrainSpec(learning_rate=(1e-3, 1e-2), batch_size=(16,), epochs=4, min_steps=40),
    seeds=(0, 1, 2),
)
# Seconds of a step are large primes, so that devices at different buckets are never done at the same moment.
PRIMES = 1_000_003, 1_299_709, 1_600_033


@st.composite
def load(draw, step: int) -> Load:
    horizons = sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=4)), reverse=True)
    return Load(
        horizons=tuple(horizons),
        copies=tuple(draw(st.integers(1, 12)) for _ in horizons),
        measuring=(0,) * len(horizons),
        lanes=draw(st.integers(1, 4)),
        step=step,
        compiling=draw(st.integers(0, 3)) * 10_000,
        rank=draw(st.sampled_from([1.0, 1.37, 2.11])),
    )


LOADS = st.integers(1, 3).flatmap(lambda count: st.tuples(*(load(step) for step in PRIMES[:count])))


def spelled_out(loads, devices):
    """Return (makespan, packs, steps) of a schedule in which every trial, lane and device is an object of its own."""
    queues = [
        [steps for steps, count in zip(each.horizons, each.copies, strict=True) for _ in range(count)] for each in loads
    ]
    working = [0] * len(loads)
    packs, steps, order = [0] * len(loads), [0] * len(loads), itertools.count()
    waiting: list[tuple[float, int, int, list[int]]] = [(0, next(order), -1, []) for _ in range(devices)]
    last = 0
    while waiting:
        now, _, bucket, lanes = heapq.heappop(waiting)
        last = max(last, now)
        if bucket >= 0:  # the device has one already
            while len(lanes) < loads[bucket].lanes and queues[bucket]:
                lanes.append(queues[bucket].pop(0))
        if not lanes:
            if bucket >= 0:
                working[bucket] -= 1
            bucket = max(
                range(len(loads)), key=lambda index: loads[index].rank * sum(queues[index]) / (working[index] + 1)
            )
            if not queues[bucket]:
                continue
            working[bucket] += 1
            packs[bucket] += 1
            now += loads[bucket].compiling
            lanes = [queues[bucket].pop(0) for _ in range(min(loads[bucket].lanes, len(queues[bucket])))]
        taken = min(lanes)
        steps[bucket] += taken
        left = [lane - taken for lane in lanes if lane > taken]
        heapq.heappush(waiting, (now + taken * loads[bucket].step, next(order), bucket, left))
    return last, tuple(packs), tuple(steps)


@settings(max_examples=300, deadline=None)
@given(LOADS, st.integers(1, 9))
def test_counts_give_the_schedule_that_is_spelled_out_trial_by_trial(loads, devices):
    done = schedule(loads, devices)
    last, packs, steps = spelled_out(loads, devices)
    assert (done.makespan, done.packs) == (last, packs)
    assert done.stepping == tuple(count * each.step for count, each in zip(steps, loads, strict=True))


@settings(max_examples=100, deadline=None)
@given(LOADS, st.integers(1, 9))
def test_no_schedule_beats_the_longest_trial_or_the_capacity(loads, devices):
    done = schedule(loads, devices)
    assert done.makespan >= max(each.floor for each in loads)
    work = sum(each.trial_steps * each.step / each.lanes for each in loads)
    assert done.makespan >= work / devices * (1 - 1e-12)
    assert all(1 <= packs <= devices for packs in done.packs)


@settings(max_examples=100, deadline=None)
@given(load(1), st.integers(1, 9))
def test_one_bucket_takes_as_long_as_packing_reckons_and_more_devices_never_take_longer(only, devices):
    spelled = [steps for steps, count in zip(only.horizons, only.copies, strict=True) for _ in range(count)]
    found = schedule([only], devices).makespan
    assert found == only.compiling + makespan(only.horizons, only.lanes * devices, copies=only.copies)
    assert found == only.compiling + makespan(spelled, only.lanes * devices)
    assert schedule([only], devices + 1).makespan <= found


def test_one_device_with_one_lane_takes_the_sum():
    loads = [
        Load((50, 20), (3, 4), (0.5, 0.25), lanes=1, step=2.0, compiling=7.0, rank=1.0),
        Load((10,), (6,), (1.0,), lanes=1, step=3.0, compiling=5.0, rank=1.0),
    ]
    expected = 7 + (150 + 80) * 2 + 1.5 + 1 + 5 + 60 * 3 + 6
    assert schedule(loads, 1).makespan == pytest.approx(expected)


def test_lanes_in_turn_cost_nothing_while_they_idle():
    side_by_side = Load((10,), (5,), (0.0,), lanes=4, step=4.0, compiling=0.0, rank=1.0)
    assert schedule([side_by_side], 1).makespan == 2 * 10 * 4
    assert schedule([replace(side_by_side, skips_idle=True)], 1).makespan == 5 * 10


@pytest.mark.slow
def test_a_real_run_on_one_device_takes_the_simulated_steps_in_the_simulated_order(data, monkeypatch):
    mlps = [planned(knobs={"width": 4, "depth": 1}, seed=seed, steps=(30, 20, 10)[seed % 3]) for seed in range(8)]
    logistics = [planned("logistic", seed=seed, steps=15) for seed in range(3)]
    buckets = [
        Bucket(
            program(trials[0]),
            tuple(map(Counted, sorted(trials, key=lambda each: -each.settings.steps))),
            lanes,
            1.0,
            1,
            50,
        )
        for trials, lanes in ((logistics, 2), (sorted(mlps, key=lambda each: -each.settings.steps), 3))
    ]
    taken, launch = [], Pack.launch

    def counted(pack, **named):
        call = launch(pack, **named)
        taken.append((pack.bucket.program, call.plan.count))
        return call

    monkeypatch.setattr(Pack, "launch", counted)
    observer = Observer(lambda _: None, lambda _: None, lambda _: None)
    waiting = {each.trial_id for each in (*mlps, *logistics)}
    Scheduler(buckets, waiting, data=data, observer=observer).run(jax.local_devices()[:1])
    loads = [
        Load(
            horizons=tuple(bucket.horizons),
            copies=tuple(bucket.horizons.values()),
            measuring=(0.0,) * len(bucket.horizons),
            lanes=bucket.lanes,
            step=1.0,
            compiling=0.0,
            rank=bucket.seconds / bucket.lanes,
        )
        for bucket in buckets
    ]
    done = schedule(loads, 1)
    assert done.stepping == tuple(
        sum(steps for constants, steps in taken if constants == bucket.program) for bucket in buckets
    )
    assert done.makespan == sum(steps for _, steps in taken)
    # The bucket with the most work left came first, and each was finished before the next.
    assert [constants for constants, _ in itertools.groupby(taken, key=lambda each: each[0])] == [
        buckets[1].program,
        buckets[0].program,
    ]


def test_counted_trials_are_packed_and_simulated_like_those_spelled_out():
    card = describe(DATA)
    assert sum(each.copies for each in expand_counted(SWEEP, card)) == len(expand(SWEEP, card)) == 54
    spec = device_spec_named("local")
    counted, spelled = make_plan(SWEEP, devices=3, spec=spec), make_plan(SWEEP, devices=3)
    assert (counted.count, counted.waste) == (spelled.count, spelled.waste)
    for one, other in zip(counted.packing.buckets, spelled.packing.buckets, strict=True):
        assert replace(one, counted=()) == replace(other, counted=())
        assert one.horizons == other.horizons
    assert simulate(counted, spec) == simulate(spelled, spec)


@pytest.mark.parametrize("devices", [1, 2, 64])
@pytest.mark.parametrize("name", PUBLIC_SPECS)
def test_the_shares_of_a_simulation_add_up(name, devices):
    spec = device_spec_named(name)
    done = simulate(make_plan(SWEEP, devices=devices, spec=spec), spec)
    assert sum(done.shares.values()) == pytest.approx(1)
    assert 0 < done.utilisation < 1
    assert done.floor <= done.total * (1 + 1e-12)
    assert done.source == "estimated from public figures"


def limits(sweep, devices, spec=None):
    spec = spec or device_spec_named("h200")
    return simulate(make_plan(sweep, devices=devices, spec=spec), spec)


def test_what_limits_is_named():
    long = replace(SWEEP, train=replace(SWEEP.train, epochs=None, min_steps=None, steps=10_000_000))
    assert limits(long, 4096).limit == "horizon"
    assert limits(long, 4096).total == pytest.approx(limits(long, 4096).floor, rel=0.1)
    many = replace(long, seeds=10_000)
    assert limits(many, 2).limit == "work"
    assert limits(many, 2).twice == pytest.approx(limits(many, 2).total / 2, rel=0.05)
    assert limits(SWEEP, 1).limit == "compilation"
    tiny = replace(device_spec_named("h200"), memory=1e6)
    assert limits(many, 2, tiny).limit == "memory"


def test_a_million_trials_on_four_thousand_devices():
    sweep = replace(
        SWEEP,
        data=replace(DATA, train_examples=tuple(range(100, 3100, 100))),
        train=replace(SWEEP.train, learning_rate=tuple(1e-4 * number for number in range(1, 13))),
        seeds=926,
    )
    done = limits(sweep, 4096)
    assert make_plan(sweep, devices=4096, spec=device_spec_named("h200")).count == 1_000_080
    assert done.total >= done.floor
    assert sum(done.shares.values()) == pytest.approx(1)


def test_what_was_timed_here_sets_the_speed_of_the_local_kind():
    spec = device_spec_named("local")
    plan = make_plan(SWEEP, devices=2, spec=spec)
    guessed = simulate(plan, spec)
    slow = Timing(step=1.0, evaluation=0.0, test=0.0)
    first = plan.packing.buckets[0]
    timed = simulate(plan, spec, timings=[slow, *[None] * (len(plan.packing.buckets) - 1)])
    assert timed.source == "from programs timed on this machine"
    assert timed.timed == (True, *[False] * (len(plan.packing.buckets) - 1))
    assert timed.total > guessed.total
    assert timed.total >= max(first.horizons)
    assert all(after > before for after, before in zip(timed.seconds, guessed.seconds, strict=True))


APART = replace(SWEEP, train=replace(SWEEP.train, epochs=None, min_steps=None, steps=10**6, batch_size=(8, 16, 32, 64)))


def test_accelerators_that_work_apart_idle_no_more_than_one():
    spec = device_spec_named("h200")
    one, four = (make_plan(APART, devices=devices, spec=spec) for devices in (1, 4))
    assert four.group_size == 1
    assert four.idle_flops == one.idle_flops
    measuring = [simulate(replace(four, group_size=size), spec) for size in (1, 2, 4)]
    seconds = [done.shares["evaluation"] * done.total for done in measuring]
    assert seconds == pytest.approx([seconds[0]] * 3)  # of each device: the same work on as many


def test_a_forecast_of_accelerators_that_work_apart_lets_them_work_at_the_same_time(monkeypatch):
    spec = device_spec_named("h200")
    plan = make_plan(APART, devices=4, spec=spec)
    monkeypatch.setattr(planning, "local_spec", lambda: spec)
    found = planning.forecast(plan, [None] * len(plan.packing.buckets))
    assert len(plan.packing.buckets) >= 4
    assert found.total == pytest.approx(max(*found.seconds, sum(found.seconds) / 4))
    assert Forecast((5.0, 1.0), (True, True), groups=2).total == 5.0


def test_what_accelerators_do_together_is_timed_on_all_of_them(monkeypatch):
    spread = Bucket(program(planned()), (Counted(planned()),) * 2, 2, 1.0, 1, 50, spread=Spread(2))
    placements = []

    def refused(_: object, placement: object, **__: object) -> None:
        placements.append(placement)
        raise MemoryError

    monkeypatch.setattr(timing, "compiled_programs", refused)
    here = [SimpleNamespace(platform="gpu", process_index=0) for _ in range(8)]
    monkeypatch.setattr(jax, "local_devices", lambda: here)
    assert timing.timed(spread, describe(DATA), group_size=4) is None
    assert placements == [Placement(tuple(here[:4]), 2, Spread(2))]


def test_an_evaluation_of_all_lanes_at_once_is_timed_as_that_of_each(monkeypatch):
    now = 0.0

    def call(steps: int, *, due: list[int], ending: list[int]) -> None:
        nonlocal now
        now += 0.01 * steps + 6.0 * bool(due) + 12.0 * bool(ending)

    pack = SimpleNamespace(call=call, placement=SimpleNamespace(lanes=4))
    monkeypatch.setattr(timing, "ready_pack", lambda *_, **__: pack)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    bucket = Bucket(program(planned()), (Counted(planned()),) * 4, 4, 1.0, 1, 50)
    found = [timing._time(in_mode(bucket, mode), describe(DATA), group_size=1) for mode in ("vmap", STATIC)]
    assert [number for each in found for number in (each.evaluation, each.test)] == pytest.approx([6, 12, 1.5, 3])


@pytest.mark.parametrize("limit", ["horizon", "compilation", "idle_devices", "memory", "work"])
def test_every_limit_has_a_sentence(limit):
    spec = device_spec_named("v5e")
    plan = make_plan(SWEEP, devices=2, spec=spec)
    facts = outline(plan, replace(simulate(plan, spec), limit=limit), device="cpu")
    lines = plan_lines(json.loads(json.dumps(facts)))
    assert "2 x v5e" in lines[0]
    assert "estimated from public figures" in "\n".join(lines)
    assert lines[-1].startswith("limit ")


def test_an_unknown_kind_is_one_sentence_with_the_nearest_name(tmp_path, capsys):
    with pytest.raises(SweepError, match="did you mean h200"):
        device_spec_named("H20")
    with pytest.raises(SweepError, match=r"expected one of a100-40, .*local"):
        device_spec_named("abacus")
    (tmp_path / "sweep.toml").write_text(sweep_to_toml(SWEEP))
    assert main(["plan", str(tmp_path / "sweep.toml"), "--device-kind", "h20"]) == 2
    told = capsys.readouterr()
    assert told.err == 'scalejax plan: --device-kind: "h20" is unknown; did you mean h200?\n'
    assert told.out == ""


def test_the_command_line_simulates_and_times_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "sweep.toml").write_text(
        'name = "small"\nseeds = 2\n[data]\nsource = "mnist1d"\nexamples = 200\ntrain_examples = [20, 100]\n'
        '[[models]]\nfamily = "logistic"\n[train]\nlearning_rate = 1e-2\nbatch_size = 16\nsteps = 20\n'
    )
    monkeypatch.setattr(Pack, "_dispatch", lambda *_, **__: pytest.fail("a program was run"))
    for kind, device in (("h200", "h200"), ("local", jax.local_devices()[0].device_kind)):
        assert main(["plan", str(tmp_path / "sweep.toml"), "--devices", "1", "--device-kind", kind, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["trials"], facts["devices"], facts["device_kind"]) == (4, 1, device)
        assert facts["forecast_seconds"] == facts["simulation"]["makespan_seconds"] > 0
        assert math.isclose(sum(facts["simulation"]["shares"].values()), 1)
    monkeypatch.undo()
    assert main(["plan", str(tmp_path / "sweep.toml"), "--devices", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["simulation"]["source"] == "from programs timed on this machine"
