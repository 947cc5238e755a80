"""A plan simulated on its devices, here or elsewhere: how long it takes, what is wasted, what limits it."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scalejax.errors import SweepError
from scalejax.planning.device_specs import DeviceKind
from scalejax.planning.forecast import Timing
from scalejax.planning.packing import Bucket, fitting_lanes, padding_share
from scalejax.planning.plan import STATE_SHARE, Plan
from scalejax.planning.schedule import Load, Schedule, schedule
from scalejax.train.cost import compile_seconds, lane_seconds, measuring_seconds

MOST_ROUNDS = 200_000  # of trials on each device; each is an event
NEAR_FLOOR = 1.1  # times the time of the slowest trial: then nothing else limits
LARGE_SHARE = 0.25  # of the devices' time: what takes that much is called the limit


@dataclass(frozen=True)
class Simulation:
    """How a plan would go on its devices if every trial takes the steps that it is counted with.

    Attributes:
        kind: of device.
        devices: how many.
        source: of the speeds, in words.
        total: seconds of wall time.
        seconds: of each bucket in the order of the packing, its devices' time divided by the number of all devices.
        timed: of each bucket, whether its speed was measured here.
        shares: of the devices' time: training, evaluation, padding, idle_lanes, idle_devices, compilation; sum 1.
        limit: what keeps it from being shorter: horizon, compilation, idle_devices, memory or work.
        floor: seconds below which no number of devices gets.
        twice: seconds of wall time of the same programs on twice the devices.
        lanes: of the program with the most work.
    """

    kind: str
    devices: int
    source: str
    total: float
    seconds: tuple[float, ...]
    timed: tuple[bool, ...]
    shares: dict[str, float]
    limit: str
    floor: float
    twice: float
    lanes: int

    @property
    def utilisation(self) -> float:
        """Share of the devices' time that trains or evaluates; zeros and idle lanes do not count."""
        return self.shares["training"] + self.shares["evaluation"]


def simulate(plan: Plan, kind: DeviceKind, *, timings: Sequence[Timing | None] | None = None) -> Simulation:
    """Simulate a plan on its number of devices; nothing is compiled or timed.

    Args:
        plan: made for these devices; of its trials only the numbers of each horizon matter.
        kind: of the devices.
        timings: of the program of each bucket where it was timed on such a device. The others are corrected by what
            those have shown.

    Raises:
        SweepError: it would take minutes to simulate.
    """
    buckets = plan.packing.buckets
    rounds = math.ceil(sum(bucket.count / (bucket.lanes * plan.devices) for bucket in buckets))
    if rounds > MOST_ROUNDS:
        says = f"each device would train {rounds:,} rounds of trials, more than the {MOST_ROUNDS:,} that are simulated"
        raise SweepError(f"{says}; ask for fewer trials, or for more --devices")
    timings = timings or [None] * len(buckets)
    loads = _corrected([_load(bucket, plan, kind) for bucket in buckets], timings, plan)
    done = schedule(loads, plan.devices)
    shares = _shares(plan, loads, done)
    seconds = [
        packs * load.compiling + stepping + load.all_measuring
        for load, packs, stepping in zip(loads, done.packs, done.stepping, strict=True)
    ]
    heaviest = max(range(len(loads)), key=seconds.__getitem__)
    fitting = fitting_lanes(buckets[heaviest].program, STATE_SHARE * kind.memory)
    floor, lanes = max(load.floor for load in loads), loads[heaviest].lanes
    return Simulation(
        kind=kind.name,
        devices=plan.devices,
        source="from programs timed on this machine" if any(timings) else kind.source,
        total=done.makespan,
        seconds=tuple(each / plan.devices for each in seconds),
        timed=tuple(timing is not None for timing in timings),
        shares=shares,
        limit=_limit(
            shares,
            near_floor=done.makespan <= NEAR_FLOOR * floor,
            cramped=lanes == fitting < min(kind.speed.lanes, buckets[heaviest].count),
        ),
        floor=floor,
        twice=schedule(loads, 2 * plan.devices).makespan,
        lanes=lanes,
    )


def _load(bucket: Bucket, plan: Plan, kind: DeviceKind) -> Load:
    """Return a bucket as the schedule sees it, with the speed of a kind of device."""
    card, program, counts = plan.card, bucket.program, bucket.horizons
    evaluation, test = (
        measuring_seconds(program, examples, speed=kind.speed)
        for examples in (card.validation_examples, card.test_examples)
    )
    return Load(
        horizons=tuple(counts),
        copies=tuple(counts.values()),
        measuring=_measuring(bucket, evaluation, test),
        lanes=bucket.lanes,
        step=kind.speed.overhead + bucket.lanes * lane_seconds(program, kind.speed),
        compiling=compile_seconds(len(bucket.architectures), speed=kind.speed),
        rank=bucket.seconds / bucket.lanes,
        skips_idle=program.mode == "map",
    )


def _measuring(bucket: Bucket, evaluation: float, test: float) -> tuple[float, ...]:
    """Return the seconds of all evaluations and the test of a trial, for each horizon, given those of one."""
    evaluations: Counter[int] = Counter()
    tests: Counter[int] = Counter()
    for counted in bucket.counted:
        steps = counted.steps
        evaluations[steps] += counted.copies * math.ceil(steps / counted.trial.evaluate_every)
        tests[steps] += counted.copies * (counted.expected_stop is None)  # what halving stops is not tested
    return tuple(
        (test * tests[steps] + evaluation * evaluations[steps]) / count for steps, count in bucket.horizons.items()
    )


def _corrected(loads: Sequence[Load], timings: Sequence[Timing | None], plan: Plan) -> list[Load]:
    """Replace the estimated times of steps and measurements by those that are remembered."""
    ratios = [timing.step / load.step for load, timing in zip(loads, timings, strict=True) if timing]
    usual = statistics.median(ratios) if ratios else 1.0
    corrected = []
    for load, bucket, timing in zip(loads, plan.packing.buckets, timings, strict=True):
        if timing:
            measuring, step = _measuring(bucket, timing.evaluation, timing.test), timing.step
        else:
            measuring, step = tuple(usual * seconds for seconds in load.measuring), usual * load.step
        corrected.append(replace(load, step=step, measuring=measuring))
    return corrected


def _shares(plan: Plan, loads: Sequence[Load], done: Schedule) -> dict[str, float]:
    """Divide the time of all devices by what it is spent on."""
    spent = dict.fromkeys(("training", "evaluation", "padding", "idle_lanes", "idle_devices", "compilation"), 0.0)
    for load, bucket, packs, stepping in zip(loads, plan.packing.buckets, done.packs, done.stepping, strict=True):
        occupied = load.trial_steps * load.step / load.lanes
        padding = padding_share(bucket)
        spent["training"] += (1 - padding) * occupied
        spent["padding"] += padding * occupied
        spent["idle_lanes"] += max(0.0, stepping - occupied)  # below zero by rounding only
        spent["evaluation"] += load.all_measuring
        spent["compilation"] += packs * load.compiling
    every = plan.devices * done.makespan
    spent["idle_devices"] = max(0.0, every - sum(spent.values()))
    return {name: seconds / every for name, seconds in spent.items()}


def _limit(shares: Mapping[str, float], *, near_floor: bool, cramped: bool) -> str:
    """Return what keeps a schedule from being shorter, the strictest limit first."""
    if near_floor:
        return "compilation" if shares["compilation"] > shares["training"] + shares["evaluation"] else "horizon"
    largest = max(("compilation", "idle_devices"), key=shares.__getitem__)
    if shares[largest] >= LARGE_SHARE:
        return largest
    return "memory" if cramped else "work"
