"""A plan simulated on its devices, here or elsewhere: how long it takes, what is wasted, what limits it."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalejax.errors import SweepError
from scalejax.planning.device_specs import DeviceSpec
from scalejax.planning.forecast import Timing, completed
from scalejax.planning.packing import Bucket, fitting_lanes, padding_share
from scalejax.planning.plan import STATE_SHARE, Plan
from scalejax.planning.schedule import Load, Schedule, schedule
from scalejax.train.cost import compile_seconds, lane_seconds, measuring_seconds
from scalejax.train.recipe import MAP

MOST_ROUNDS = 200_000  # of trials on each device; each is an event
NEAR_FLOOR = 1.1  # times the time of the slowest trial: then nothing else limits
TIMED_HERE = "from programs timed on this machine"
LARGE_SHARE = 0.25  # of the devices' time: what takes that much is called the limit


@dataclass(frozen=True)
class Simulation:
    """How a plan runs on its devices if every trial takes the steps that it is counted with.

    Attributes:
        device: the name of their spec.
        devices: how many.
        source: of the speeds, in words.
        total: seconds of wall time.
        seconds: of each bucket in the order of the packing, its devices' time divided by the number of all devices.
        timed: of each bucket, whether its speed was measured here.
        shares: of the devices' time: training, evaluation, padding, idle_lanes, idle_devices, compilation; sum 1.
        limit: what keeps it from being shorter: horizon, compilation, idle_devices, memory or work.
        floor: seconds below which no number of devices gets that share each trial as these do.
        twice: seconds of wall time of the same programs on twice the devices.
        lanes: of the program with the most work.
    """

    device: str
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


def simulate(
    plan: Plan,
    spec: DeviceSpec,
    *,
    timings: Sequence[Timing | None] | None = None,
    source: str = TIMED_HERE,
) -> Simulation:
    """Simulate a plan on its number of devices; nothing is compiled or timed.

    Args:
        plan: made for these devices; of its trials only the numbers of each horizon matter.
        spec: of the devices.
        timings: of the program of each bucket where it was timed on such a device, or where its compiler was asked. The
            others are corrected by what those have shown.
        source: where the timings are from, in words.

    Raises:
        SweepError: it would take minutes to simulate.
    """
    card, buckets, speed = plan.card, plan.packing.buckets, spec.speed_in(plan.sweep.train.precision)
    groups, lanes_of = plan.devices // plan.group_size, [bucket.lanes_on(plan.group_size) for bucket in buckets]
    rounds = math.ceil(sum(bucket.count / (n * groups) for bucket, n in zip(buckets, lanes_of, strict=True)))
    if rounds > MOST_ROUNDS:
        why = f"each device would train {rounds:,} rounds of trials, more than the {MOST_ROUNDS:,} that are simulated"
        raise SweepError(f"{why}; ask for fewer trials, or for more --devices")
    timings = timings or [None] * len(buckets)
    estimates = [
        Timing(
            step=speed.overhead + bucket.lanes * lane_seconds(bucket.program, speed, spread=bucket.spread),
            # Devices with lanes of their own measure these at the same time.
            evaluation=bucket.lanes * measuring_seconds(bucket.program, card.validation_examples, speed=speed) / shared,
            test=bucket.lanes * measuring_seconds(bucket.program, card.test_examples, speed=speed) / shared,
        )
        for bucket, shared in ((bucket, bucket.spread.devices * n) for bucket, n in zip(buckets, lanes_of, strict=True))
    ]
    loads = [
        Load(
            horizons=tuple(bucket.horizons),
            copies=tuple(bucket.horizons.values()),
            measuring=_measuring(bucket, timing),
            lanes=lanes,
            step=timing.step,
            compiling=compile_seconds(len(bucket.architectures), speed=speed),
            rank=bucket.seconds / lanes,
            skips_idle=bucket.program.mode == MAP,
        )
        for bucket, timing, lanes in zip(buckets, completed(timings, estimates), lanes_of, strict=True)
    ]
    result = schedule(loads, groups)
    shares = _shares(plan, loads, result)
    seconds = [
        packs * load.compiling + stepping + load.all_measuring
        for load, packs, stepping in zip(loads, result.packs, result.stepping, strict=True)
    ]
    heaviest = max(range(len(loads)), key=seconds.__getitem__)
    fitting = fitting_lanes(buckets[heaviest].program, STATE_SHARE * spec.memory)
    floor, lanes = max(load.floor for load in loads), buckets[heaviest].lanes
    return Simulation(
        device=spec.name,
        devices=plan.devices,
        source=source if any(timings) else spec.source,
        total=result.makespan,
        seconds=tuple(total / groups for total in seconds),
        timed=tuple(timing is not None and source == TIMED_HERE for timing in timings),
        shares=shares,
        limit=_limit(
            shares,
            near_floor=result.makespan <= NEAR_FLOOR * floor,
            cramped=lanes == fitting < min(speed.lanes, buckets[heaviest].count),
        ),
        floor=floor,
        twice=schedule(loads, 2 * groups).makespan,
        lanes=lanes,
    )


def _measuring(bucket: Bucket, timing: Timing) -> tuple[float, ...]:
    """Return the mean seconds of all evaluations and the test of a trial, for each horizon."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for counted in bucket.counted:
        evaluations = math.ceil(counted.steps / counted.trial.evaluate_every)
        tests = counted.expected_stop is None  # what halving stops is not tested
        seconds[counted.steps] += counted.copies * (evaluations * timing.evaluation + tests * timing.test)
    return tuple(seconds[steps] / count for steps, count in bucket.horizons.items())


def _shares(plan: Plan, loads: Sequence[Load], result: Schedule) -> dict[str, float]:
    """Divide the time of all devices by what it is spent on."""
    spent = dict.fromkeys(("training", "evaluation", "padding", "idle_lanes", "idle_devices", "compilation"), 0.0)
    for load, bucket, packs, stepping in zip(loads, plan.packing.buckets, result.packs, result.stepping, strict=True):
        occupied = load.trial_steps * load.step / load.lanes
        padding = padding_share(bucket)
        spent["training"] += (1 - padding) * occupied
        spent["padding"] += padding * occupied
        spent["idle_lanes"] += max(0.0, stepping - occupied)  # below zero by rounding only
        spent["evaluation"] += load.all_measuring
        spent["compilation"] += packs * load.compiling
    every = plan.devices // plan.group_size * result.makespan
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
