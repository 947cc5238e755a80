"""Which trials share a program: buckets of sizes, and the number of lanes of each."""

import functools
import heapq
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from scalejax.models import Architecture
from scalejax.planning.placement import Group, Placement
from scalejax.planning.trial import Counted, Trial
from scalejax.spec.sweep import PROBED, PROVEN
from scalejax.train.cost import (
    EVALUATION_BYTES,
    DeviceSpeed,
    evaluation_block,
    lane_bytes,
    lane_seconds,
    step_bytes,
    step_flops,
)
from scalejax.train.padding import fits_into, structure
from scalejax.train.recipe import EVALUATION_BLOCK, PIECES, STATIC, LaneProgram, Recipe
from scalejax.train.sharding import NOT_SPREAD, Spread
from scalejax.train.traced import skeleton, traced_evaluation, traced_slope

CALL_SECONDS = 2.0  # a call aims to take no longer, so that progress shows and a stop is heard
CALL_EXAMPLES = 2**30  # a lane's examples in one call are counted in 32 bits
FEW_LANES = 32  # up to which every number is considered
ROUNDING = 1e-9  # of a sum of seconds
EXACT_MAKESPAN = 4000  # trials up to which the schedule is simulated rather than bounded


@dataclass(frozen=True)
class Verdict:
    """Whether a size may run in the program of a larger one: on which grounds, or why not, in words."""

    grounds: str  # PROVEN, PROBED, or empty: it may not
    reason: str = ""


Judge = Callable[[LaneProgram, LaneProgram], Verdict]  # of a size and of a larger one


@dataclass(frozen=True)
class Bucket:
    """Trials that share one compiled program.

    Attributes:
        program: its architecture is the largest of the bucket.
        counted: its trials, longest horizon first, then in the order of the sweep: competitors are close together.
        lanes: slots of the program on each device.
        seconds: the cost model's estimate of a step of all lanes.
        makespan: steps that the program takes until its last trial ends, on each device.
        call_steps: the most steps that are taken in one call.
        grounds: on which its sizes share a program, PROVEN or PROBED; empty if there is one size.
        spread: over how many devices each of its trials is spread.
    """

    program: LaneProgram
    counted: tuple[Counted, ...]
    lanes: int
    seconds: float
    makespan: int
    call_steps: int
    grounds: str = ""
    spread: Spread = NOT_SPREAD

    def placement(self, group: Group) -> Placement:
        """Return its place on a group of devices: on no more of them than it has trials for.

        Those of several hosts all have a part: each of the hosts runs the program, and none could without a device.
        """
        each = self.spread.devices
        rows = len(group) // each
        if len({device.process_index for device in group}) == 1:
            rows = min(rows, self.count)
        return Placement(group[: each * rows], self.lanes, self.spread)

    def lanes_on(self, devices: int) -> int:
        """Return its lanes on a group of so many devices together."""
        return self.lanes * max(1, devices // self.spread.devices)

    @functools.cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Its trials, in this order."""
        return tuple(counted.trial for counted in self.counted)

    @property
    def architectures(self) -> list[Architecture]:
        """The sizes in the bucket, in the order of their first trial."""
        return list(dict.fromkeys(trial.architecture for trial in self.trials))

    @property
    def count(self) -> int:
        """Number of trials."""
        return sum(counted.copies for counted in self.counted)

    @property
    def horizons(self) -> dict[int, int]:
        """The number of trials that a plan counts with each number of steps, the longest first."""
        return dict(sorted(_horizons(self.counted).items(), reverse=True))


def in_mode(bucket: Bucket, mode: str, *, evaluation_bytes: float = EVALUATION_BYTES) -> Bucket:
    """Return a bucket whose lanes run in `mode`.

    Args:
        bucket: any.
        mode: as of `LaneProgram`.
        evaluation_bytes: that the largest array may take when all lanes are evaluated side by side.
    """
    block, pieces = EVALUATION_BLOCK, PIECES
    if mode == STATIC:
        block = evaluation_block(bucket.program, bucket.lanes, room=evaluation_bytes)
        pieces = tuple(steps for steps in PIECES if steps <= bucket.call_steps)
    return replace(bucket, program=replace(bucket.program, mode=mode, evaluation_block=block, pieces=pieces))


@dataclass(frozen=True)
class Packing:
    """The buckets of a sweep, and in words which sizes could not share a program and why."""

    buckets: tuple[Bucket, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Capacity:
    """What packing has to fit into."""

    devices: int
    state_bytes: float  # that all lanes of a program may take on one device
    speed: DeviceSpeed
    step_bytes: float = math.inf  # that the largest array of a step of all lanes may take


def pack(trials: Sequence[Counted], *, capacity: Capacity, judge: Judge) -> Packing:
    """Group trials into buckets that minimise the estimated wall time, compilation included.

    Only trials of one recipe whose models differ in nothing but shapes can share a program. Among such sizes, sorted by
    parameters, the cheapest division into runs of neighbours is found by dynamic programming. In a run of several sizes
    each is judged against the largest; those that may not be padded to it are divided among themselves again.
    """
    buckets: list[Bucket] = []
    notes: list[str] = []
    for recipe, family in _families(trials):
        # Sizes that compute something else, shapes apart, are never tried together.
        variants: dict[int, list[Architecture]] = {}
        for size in sorted(family, key=_parameters):
            variants.setdefault(skeletons(size, recipe) if len(family) > 1 else 0, []).append(size)
        if len(variants) > 1:
            notes.append(_note_on_variants(list(variants.values()), recipe, judge))
        for variant in variants.values():
            left = {size: Size(LaneProgram(size, recipe), family[size], capacity) for size in variant}
            while left:
                refused: dict[Architecture, Size] = {}
                for run in _divide(left, capacity):
                    *smaller, largest = run
                    verdicts = {size: judge(left[size].program, left[largest].program) for size in smaller}
                    grounds = {verdict.grounds for verdict in verdicts.values()}
                    weakest = next((ground for ground in (PROBED, PROVEN) if ground in grounds), "")
                    kept = [left[size] for size in run if size == largest or verdicts[size].grounds]
                    buckets.append(_bucket(kept, capacity, weakest))
                    apart = [size for size in smaller if not verdicts[size].grounds]
                    refused |= {size: left[size] for size in apart}
                    reasons = [verdicts[size].reason for size in apart if verdicts[size].reason]
                    if reasons:
                        notes.append(_note(apart[0], largest, reasons[0]))
                left = refused
    buckets.sort(key=lambda bucket: -bucket.seconds * bucket.makespan)
    return Packing(tuple(buckets), tuple(dict.fromkeys(notes)))


Sizes = dict[Architecture, list[Counted]]


def _families(trials: Sequence[Counted]) -> list[tuple[Recipe, Sizes]]:
    """Return, for each set of trials of one recipe, builder and structure of arrays, its trials by size."""
    families: dict[tuple[object, ...], tuple[Recipe, Sizes]] = {}
    for counted in trials:
        trial = counted.trial
        key = structure(trial.architecture), trial.architecture.build, trial.architecture.features, trial.recipe
        _, sizes = families.setdefault(key, (trial.recipe, {}))
        sizes.setdefault(trial.architecture, []).append(counted)
    return list(families.values())


def skeletons(architecture: Architecture, recipe: Recipe) -> int:
    """Return a hash of what a size computes in training and in evaluation, shapes apart; it holds in this process."""
    programs = traced_slope(architecture, recipe), traced_evaluation(architecture, recipe.batch_size)
    return hash(tuple(skeleton(traced.program) for traced in programs))


def _parameters(architecture: Architecture) -> int:
    return architecture.parameter_count


def _note(small: Architecture, large: Architecture, reason: str) -> str:
    return f"{small.title} is not packed with {large.title}: {reason}"


def _note_on_variants(variants: Sequence[Sequence[Architecture]], recipe: Recipe, judge: Judge) -> str:
    """Say why the first two variants of a family are apart, and how many there are."""
    small, large = sorted((variant[-1] for variant in variants[:2]), key=_parameters)
    reason = "neither fits into the other"
    if fits_into(small, large):
        verdict = judge(LaneProgram(small, recipe), LaneProgram(large, recipe))
        reason = verdict.reason or "they compute something else"
    further = f"; its sizes run {len(variants)} different programs" if len(variants) > 2 else ""
    return _note(small, large, reason + further)


class Size:
    """The trials of one size, and what a lane of its program costs."""

    def __init__(self, program: LaneProgram, trials: Sequence[Counted], capacity: Capacity):
        self.program = program
        self.trials = trials
        self.horizons = _horizons(trials)
        self.lane_seconds = lane_seconds(program, capacity.speed)
        stepping = max(1, int(min(capacity.speed.lanes, capacity.step_bytes / step_bytes(program)[1])))
        room = min(capacity.state_bytes, capacity.speed.cache)
        self.most_lanes = min(capacity.speed.lanes, fitting_lanes(program, room), stepping)


def _horizons(trials: Iterable[Counted]) -> Counter[int]:
    counts: Counter[int] = Counter()
    for counted in trials:
        counts[counted.steps] += counted.copies
    return counts


def _divide(group: Mapping[Architecture, Size], capacity: Capacity) -> list[list[Architecture]]:
    """Cut the sorted sizes into runs of least total cost: best[j] = min over i of best[i] + cost of sizes i..j-1."""
    sizes = list(group)
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the sizes so far, and where their last run begins
    for end in range(1, len(sizes) + 1):
        largest = group[sizes[end - 1]]
        horizons: Counter[int] = Counter()
        cheapest = (math.inf, 0)
        for begin in reversed(range(end)):
            if not fits_into(sizes[begin], sizes[end - 1]):
                break
            horizons = horizons + group[sizes[begin]].horizons
            before = best[begin][0] + capacity.speed.compile
            filling = filled(horizons, largest, capacity, at_most=cheapest[0] - before)
            cheapest = min(cheapest, (before + filling.seconds, begin))
        best.append(cheapest)
    runs, end = [], len(sizes)
    while end:
        begin = best[end][1]
        runs.append(sizes[begin:end])
        end = begin
    return runs[::-1]


class Filling(NamedTuple):
    """A number of lanes, and what the cost model says of it."""

    seconds: float  # of the whole bucket
    lanes: int
    makespan: int


def filled(counts: Mapping[int, int], size: Size, capacity: Capacity, *, at_most: float = math.inf) -> Filling:
    """Return the best number of lanes for a bucket of these horizons; beyond `at_most` seconds any will do."""
    horizons, copies = zip(*sorted(counts.items(), reverse=True), strict=True)
    trials, steps = sum(copies), sum(map(operator.mul, horizons, copies))
    # What each number of lanes costs at least: no makespan is calculated for one that cannot be the best.
    bounds = []
    for lanes in _lane_counts(trials, min(trials, size.most_lanes), devices=capacity.devices):
        seconds = capacity.speed.overhead + lanes * size.lane_seconds
        bounds.append((seconds * max(horizons[0], steps / (lanes * capacity.devices)), lanes, seconds))
    best = Filling(math.inf, 0, 0)
    for least, lanes, seconds in sorted(bounds):
        if least > min(best.seconds, at_most) * (1 + ROUNDING):
            break
        longest = makespan(horizons, lanes * capacity.devices, copies=copies)
        # Of two equally fast numbers of lanes the larger is better.
        best = min(
            best, Filling(seconds * longest, lanes, longest), key=lambda filling: (filling.seconds, -filling.lanes)
        )
    return best


def _bucket(sizes: Sequence[Size], capacity: Capacity, grounds: str) -> Bucket:
    """Form a bucket of sizes, the largest last, with the number of lanes that its horizons pack best into."""
    largest = sizes[-1]
    trials = [counted for size in sizes for counted in size.trials]
    filling = filled(_horizons(trials), largest, capacity)
    seconds = capacity.speed.overhead + filling.lanes * largest.lane_seconds
    return Bucket(
        program=largest.program,
        counted=tuple(sorted(trials, key=lambda counted: -counted.trial.settings.steps)),
        lanes=filling.lanes,
        seconds=seconds,
        makespan=filling.makespan,
        call_steps=most_call_steps(largest.program, seconds),
        grounds=grounds,
    )


def most_call_steps(program: LaneProgram, seconds: float) -> int:
    """Return the most steps of one call of a program whose step takes so many seconds."""
    return max(1, int(min(CALL_SECONDS / seconds, CALL_EXAMPLES / program.recipe.batch_size)))


def _lane_counts(trials: int, most: int, *, devices: int) -> list[int]:
    """Return the numbers of lanes worth considering: all small ones, and those that end with a full round."""
    full_rounds = {-(-trials // (devices * rounds)) for rounds in range(1, FEW_LANES + 1)}
    return sorted(lanes for lanes in {*range(1, FEW_LANES + 1), *full_rounds, most} if lanes <= most)


def fitting_lanes(program: LaneProgram, state_bytes: float) -> int:
    """Return how many lanes of a program fit into `state_bytes`, at least one."""
    return max(1, int(state_bytes // lane_bytes(program)))


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


def waste(buckets: Sequence[Bucket], *, devices: int) -> tuple[int, int, int]:
    """Return (useful FLOPs of all trials, FLOPs added by padding, FLOPs of lanes that idle at the end).

    Args:
        buckets: all of them.
        devices: that work on a bucket together, those of its makespan.
    """
    useful = padding = idle = 0
    for bucket in buckets:
        true, padded = _flops(bucket)
        useful += true
        padding += padded - true
        busy = sum(steps * count for steps, count in bucket.horizons.items())
        step = step_flops(bucket.program.architecture, bucket.program.recipe)
        idle += step * max(0, bucket.makespan * bucket.lanes * (devices // bucket.spread.devices) - busy)
    return useful, padding, idle


def padding_share(bucket: Bucket) -> float:
    """Return the share of a bucket's FLOPs that is spent on the zeros of its smaller sizes."""
    true, padded = _flops(bucket)
    return 1 - true / padded


def _flops(bucket: Bucket) -> tuple[int, int]:
    """Return the FLOPs of all trials of a bucket, at their true sizes and padded to the largest."""
    recipe, true, padded = bucket.program.recipe, 0, 0
    step = step_flops(bucket.program.architecture, recipe)
    for counted in bucket.counted:
        steps = counted.steps * counted.copies
        true += step_flops(counted.trial.architecture, recipe) * steps
        padded += step * steps
    return true, padded
