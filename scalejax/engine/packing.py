"""Which trials share a program: buckets of sizes, and the number of lanes of each."""

import functools
import heapq
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from scalejax.engine.cost import DeviceSpeed, lane_bytes, lane_seconds, step_bytes, step_flops
from scalejax.engine.padding import Probe, fits_into, structure
from scalejax.engine.step import Recipe
from scalejax.engine.trial import PlannedTrial
from scalejax.models import Architecture

CALL_SECONDS = 2.0  # a call aims to take no longer, so that progress shows and a stop is heard
CALL_EXAMPLES = 2**30  # a lane's examples in one call are counted in 32 bits
FEW_LANES = 32  # up to which every number is considered
PROBES = 2  # that are compiled at a time
EXACT_MAKESPAN = 4000  # trials up to which the schedule is simulated rather than bounded

Prober = Callable[[Architecture, Architecture, Recipe], Probe]


@dataclass(frozen=True)
class Bucket:
    """Trials that share one compiled program.

    Attributes:
        recipe: the program's constants; its architecture is the largest of the bucket.
        trials: longest horizon first, then in the order of the sweep, so that competitors are close together.
        lanes: slots of the program on each device.
        seconds: the cost model's estimate of a step of all lanes.
        makespan: steps that the program takes until its last trial ends, on each device.
        call_steps: the most steps that are taken in one call.
    """

    recipe: Recipe
    trials: tuple[PlannedTrial, ...]
    lanes: int
    seconds: float
    makespan: int
    call_steps: int

    @property
    def architectures(self) -> list[Architecture]:
        """The sizes in the bucket, in the order of their first trial."""
        return list(dict.fromkeys(planned.architecture for planned in self.trials))

    @property
    def count(self) -> int:
        """Number of trials."""
        return sum(planned.copies for planned in self.trials)

    @property
    def horizons(self) -> dict[int, int]:
        """The number of trials that a plan counts with each number of steps, the longest first."""
        counts: Counter[int] = Counter()
        for planned in self.trials:
            counts[planned.expected_steps] += planned.copies
        return dict(sorted(counts.items(), reverse=True))


@dataclass(frozen=True)
class Packing:
    """The buckets of a sweep, and in words which sizes could not share a program and why."""

    buckets: tuple[Bucket, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What packing has to fit into."""

    devices: int
    state_bytes: float  # that all lanes of a program may take on one device
    shape: tuple[int, ...]  # of one example
    speed: DeviceSpeed
    step_bytes: float = math.inf  # that the largest array of a step of all lanes may take


def pack(trials: Sequence[PlannedTrial], *, limits: Limits, prober: Prober) -> Packing:
    """Group trials into buckets that minimise the estimated wall time, compilation included.

    Only sizes of one structure, batch size, optimizer, schedule and clipping can share a program. Among them, sorted
    by parameters, the cheapest division into runs of neighbours is found by dynamic programming. A run of more than
    one size is probed before it is used; where padding changes the numbers, every size keeps to itself.
    """
    buckets, notes = [], []
    for group in _groups(trials):
        sizes = sorted(group, key=lambda architecture: architecture.parameter_count)
        divided = _divide(sizes, group, limits=limits)
        reasons = [_refusal(bucket, prober) for bucket in divided]
        if any(reasons):
            notes.extend(reason for reason in reasons if reason)
            divided = [_bucket(group[size], size, limits=limits) for size in sizes]
        buckets.extend(divided)
    return Packing(tuple(sorted(buckets, key=lambda one: -one.seconds * one.makespan)), tuple(notes))


def _groups(trials: Sequence[PlannedTrial]) -> list[dict[Architecture, list[PlannedTrial]]]:
    """Return, for each set of trials that may share programs at all, its trials by architecture."""
    structures = functools.cache(structure)
    groups: dict[tuple, dict[Architecture, list[PlannedTrial]]] = {}
    for planned in trials:
        trial = planned.trial
        shared = (trial.batch_size, trial.optimizer, trial.schedule, trial.clip_norm)
        group = groups.setdefault((structures(planned.architecture), planned.architecture.build, shared), {})
        group.setdefault(planned.architecture, []).append(planned)
    return list(groups.values())


def _divide(
    sizes: list[Architecture], group: dict[Architecture, list[PlannedTrial]], *, limits: Limits
) -> list[Bucket]:
    """Cut the sorted sizes into runs of least total cost: best[j] = min over i of best[i] + cost of sizes i..j-1."""
    best: list[tuple[float, list[Bucket]]] = [(0.0, [])]
    for end in range(1, len(sizes) + 1):
        options = []
        for begin in range(end):
            run = sizes[begin:end]
            if all(fits_into(size, run[-1]) for size in run[:-1]):
                bucket = _bucket([planned for size in run for planned in group[size]], run[-1], limits=limits)
                cost = best[begin][0] + limits.speed.compile + bucket.seconds * bucket.makespan
                options.append((cost, [*best[begin][1], bucket]))
        best.append(min(options, key=lambda option: option[0]))
    return best[-1][1]


def _bucket(trials: Sequence[PlannedTrial], largest: Architecture, *, limits: Limits) -> Bucket:
    """Form a bucket, with the number of lanes that its horizons pack best into."""
    first = trials[0].trial
    recipe = Recipe(largest, first.optimizer, first.schedule, first.clip_norm, first.batch_size)
    each, overhead = lane_seconds(recipe, limits.shape, speed=limits.speed), limits.speed.overhead
    room = min(limits.state_bytes, limits.speed.cache)
    stepping = max(1, int(min(limits.speed.lanes, limits.step_bytes / step_bytes(recipe, limits.shape)[1])))
    ordered = tuple(sorted(trials, key=lambda planned: -planned.trial.steps))
    bucket = Bucket(recipe, ordered, lanes=1, seconds=overhead + each, makespan=0, call_steps=1)
    counts, most = bucket.horizons, min(limits.speed.lanes, bucket.count, fitting_lanes(recipe, room), stepping)
    horizons, copies = list(counts), list(counts.values())

    def cost(lanes: int) -> tuple[float, int]:
        return (overhead + lanes * each) * makespan(horizons, lanes * limits.devices, copies=copies), -lanes

    lanes = min(_lane_counts(bucket.count, most, devices=limits.devices), key=cost)
    seconds = overhead + lanes * each
    return replace(
        bucket,
        lanes=lanes,
        seconds=seconds,
        makespan=makespan(horizons, lanes * limits.devices, copies=copies),
        call_steps=max(1, int(min(CALL_SECONDS / seconds, CALL_EXAMPLES / recipe.batch_size))),
    )


def _lane_counts(trials: int, most: int, *, devices: int) -> list[int]:
    """Return the numbers of lanes worth considering: all small ones, and those that end with a full round."""
    full_rounds = {-(-trials // (devices * rounds)) for rounds in range(1, FEW_LANES + 1)}
    return sorted(lanes for lanes in {*range(1, FEW_LANES + 1), *full_rounds, most} if lanes <= most)


def fitting_lanes(recipe: Recipe, state_bytes: float) -> int:
    """Return how many lanes of a program fit into `state_bytes`, at least one."""
    return max(1, int(state_bytes // lane_bytes(recipe)))


def makespan(horizons: Sequence[int], lanes: int, *, copies: Sequence[int] | None = None) -> int:
    """Return the steps until the last trial ends when free lanes always take the longest trial that is left.

    Args:
        horizons: steps of each trial, longest first.
        lanes: lanes on all devices together.
        copies: how many trials each of `horizons` stands for; default: one.
    """
    copies = copies or [1] * len(horizons)
    trials = sum(copies)
    if trials <= lanes:
        return horizons[0]
    if horizons[0] == horizons[-1]:
        return math.ceil(trials / lanes) * horizons[0]
    if trials > EXACT_MAKESPAN:
        return max(horizons[0], math.ceil(sum(map(operator.mul, horizons, copies)) / lanes))
    ends = [0] * lanes
    for steps, count in zip(horizons, copies, strict=True):
        for _ in range(count):
            heapq.heapreplace(ends, ends[0] + steps)
    return max(ends)


def waste(buckets: Sequence[Bucket], shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (useful FLOPs of all trials, FLOPs added by padding, FLOPs of lanes that idle at the end)."""
    useful = padding = idle = 0
    for bucket in buckets:
        padded = step_flops(bucket.recipe.architecture, bucket.recipe.batch_size, shape)
        for planned in bucket.trials:
            own = step_flops(planned.architecture, bucket.recipe.batch_size, shape)
            useful += own * planned.expected_steps * planned.copies
            padding += (padded - own) * planned.expected_steps * planned.copies
        busy = sum(steps * count for steps, count in bucket.horizons.items())
        idle += padded * max(0, bucket.makespan * bucket.lanes - busy)
    return useful, padding, idle


def padding_share(bucket: Bucket, shape: tuple[int, ...]) -> float:
    """Return the share of a bucket's FLOPs that is spent on the zeros of its smaller sizes."""
    batch_size = bucket.recipe.batch_size
    padded = step_flops(bucket.recipe.architecture, batch_size, shape) * sum(
        p.expected_steps * p.copies for p in bucket.trials
    )
    own = sum(step_flops(p.architecture, batch_size, shape) * p.expected_steps * p.copies for p in bucket.trials)
    return 1 - own / padded


def _refusal(bucket: Bucket, prober: Prober) -> str:
    """Say why the sizes of a bucket may not share its program; empty if they may."""
    largest = bucket.recipe.architecture
    smaller = [size for size in bucket.architectures if size != largest]
    with ThreadPoolExecutor(PROBES) as threads:
        probes = list(threads.map(lambda size: prober(size, largest, bucket.recipe), smaller))
    name = getattr(largest.build, "__name__", "module")
    return next(
        (f"{name}: sizes are not packed together, because {each.reason}" for each in probes if not each.packable), ""
    )
