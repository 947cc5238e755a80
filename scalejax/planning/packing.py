"""Which trials share a program: buckets of sizes, and the number of lanes of each."""

import functools
import heapq
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from scalejax.models import Architecture
from scalejax.planning.trial import Counted, Trial
from scalejax.train.cost import DeviceSpeed, lane_bytes, lane_seconds, step_bytes, step_flops
from scalejax.train.padding import fits_into, structure
from scalejax.train.recipe import LaneProgram, Recipe
from scalejax.train.traced import skeleton, traced_evaluation, traced_slope

CALL_SECONDS = 2.0  # a call aims to take no longer, so that progress shows and a stop is heard
CALL_EXAMPLES = 2**30  # a lane's examples in one call are counted in 32 bits
FEW_LANES = 32  # up to which every number is considered
ROUNDING = 1e-9  # of a sum of seconds
EXACT_MAKESPAN = 4000  # trials up to which the schedule is simulated rather than bounded

PROVEN, PROBED = "proven", "probed"  # the grounds on which a size may be padded


@dataclass(frozen=True)
class Verdict:
    """Whether a size may run in the program of a larger one: on which grounds, or why not, in words."""

    grounds: str  # PROVEN, PROBED, or empty
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
    """

    program: LaneProgram
    counted: tuple[Counted, ...]
    lanes: int
    seconds: float
    makespan: int
    call_steps: int
    grounds: str = ""

    @functools.cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Its trials, in this order."""
        return tuple(each.trial for each in self.counted)

    @property
    def architectures(self) -> list[Architecture]:
        """The sizes in the bucket, in the order of their first trial."""
        return list(dict.fromkeys(trial.architecture for trial in self.trials))

    @property
    def count(self) -> int:
        """Number of trials."""
        return sum(each.copies for each in self.counted)

    @property
    def horizons(self) -> dict[int, int]:
        """The number of trials that a plan counts with each number of steps, the longest first."""
        return dict(sorted(_horizons(self.counted).items(), reverse=True))


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
        kinds = _kinds(family, recipe)
        if len(kinds) > 1:
            notes.append(_note_on_kinds(kinds, recipe, judge))
        for kind in kinds:
            group = {size: _Size(LaneProgram(size, recipe), family[size], capacity) for size in kind}
            while group:
                divided, left = [], {}
                for bucket in _divide(group, capacity):
                    own, refused, reason = _judged(bucket, judge)
                    divided.append(own)
                    left.update({size: group[size] for size in refused})
                    if reason:
                        notes.append(_note(refused[0], bucket.program.architecture, reason))
                # A bucket that has lost sizes is divided anew without them.
                buckets.extend(_rebuilt(bucket, group, left, capacity) for bucket in divided)
                group = left
    buckets.sort(key=lambda bucket: -bucket.seconds * bucket.makespan)
    return Packing(tuple(buckets), tuple(dict.fromkeys(notes)))


Sizes = dict[Architecture, list[Counted]]


def _families(trials: Sequence[Counted]) -> list[tuple[Recipe, Sizes]]:
    """Return, for each set of trials of one recipe, builder and structure of arrays, its trials by size."""
    families: dict[tuple[object, ...], tuple[Recipe, Sizes]] = {}
    for counted in trials:
        trial = counted.trial
        key = structure(trial.architecture), trial.architecture.build, trial.recipe
        _, sizes = families.setdefault(key, (trial.recipe, {}))
        sizes.setdefault(trial.architecture, []).append(counted)
    return list(families.values())


def _kinds(sizes: Iterable[Architecture], recipe: Recipe) -> list[list[Architecture]]:
    """Divide sizes by what they compute, shapes apart; each kind sorted by parameters."""
    kinds: dict[int, list[Architecture]] = {}
    ordered = sorted(sizes, key=_parameters)
    for size in ordered:
        kinds.setdefault(0 if len(ordered) == 1 else kind_of(size, recipe), []).append(size)
    return list(kinds.values())


def kind_of(architecture: Architecture, recipe: Recipe) -> int:
    """Return a hash of what a size computes in training and in evaluation, shapes apart; it holds in this process."""
    programs = traced_slope(architecture, recipe), traced_evaluation(architecture, recipe.batch_size)
    return hash(tuple(skeleton(each.program) for each in programs))


def _parameters(architecture: Architecture) -> int:
    return architecture.parameter_count


def _note(small: Architecture, large: Architecture, reason: str) -> str:
    return f"{small.title} is not packed with {large.title}: {reason}"


def _note_on_kinds(kinds: Sequence[Sequence[Architecture]], recipe: Recipe, judge: Judge) -> str:
    """Say why the first two kinds of a family are apart, and how many there are."""
    small, large = sorted((max(kind, key=_parameters) for kind in kinds[:2]), key=_parameters)
    reason = "neither fits into the other"
    if fits_into(small, large):
        verdict = judge(LaneProgram(small, recipe), LaneProgram(large, recipe))
        reason = verdict.reason or "they compute something else"
    further = f"; its sizes run {len(kinds)} different programs" if len(kinds) > 2 else ""
    return _note(small, large, reason + further)


class _Size:
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


def _divide(group: Mapping[Architecture, _Size], capacity: Capacity) -> list[Bucket]:
    """Cut the sorted sizes into runs of least total cost: best[j] = min over i of best[i] + cost of sizes i..j-1."""
    sizes = list(group)
    best: list[tuple[float, int]] = [(0.0, 0)]  # cost of the sizes so far, and where their last run begins
    for end in range(1, len(sizes) + 1):
        largest = group[sizes[end - 1]]
        counts: Counter[int] = Counter()
        chosen = (math.inf, 0)
        for begin in reversed(range(end)):
            if not fits_into(sizes[begin], sizes[end - 1]):
                break
            counts = counts + group[sizes[begin]].horizons
            before = best[begin][0] + capacity.speed.compile
            chosen = min(
                chosen, (before + _filled(counts, largest, capacity, at_most=chosen[0] - before).seconds, begin)
            )
        best.append(chosen)
    buckets, end = [], len(sizes)
    while end:
        begin = best[end][1]
        buckets.append(_bucket({size: group[size] for size in sizes[begin:end]}, capacity))
        end = begin
    return buckets[::-1]


@dataclass(frozen=True, order=True)
class _Filling:
    """A number of lanes, and what the cost model says of it."""

    seconds: float  # of the whole bucket
    fewer_lanes: int  # the number of lanes, negative: of two equally fast ones the larger is better
    makespan: int = 0


def _filled(counts: Mapping[int, int], size: _Size, capacity: Capacity, *, at_most: float = math.inf) -> _Filling:
    """Return the best number of lanes for a bucket of these horizons; beyond `at_most` seconds any will do."""
    horizons, copies = zip(*sorted(counts.items(), reverse=True), strict=True)
    trials, steps = sum(copies), sum(map(operator.mul, horizons, copies))
    most = min(trials, size.most_lanes)

    def bounded() -> Iterator[tuple[float, int, float]]:
        """Yield what each number of lanes costs at least, and for each step."""
        for lanes in _lane_counts(trials, most, devices=capacity.devices):
            seconds = capacity.speed.overhead + lanes * size.lane_seconds
            yield seconds * max(horizons[0], steps / (lanes * capacity.devices)), lanes, seconds

    best = _Filling(math.inf, 0)
    for least, lanes, seconds in sorted(bounded()):
        if least > min(best.seconds, at_most) * (1 + ROUNDING):
            break
        longest = makespan(horizons, lanes * capacity.devices, copies=copies)
        best = min(best, _Filling(seconds * longest, -lanes, longest))
    return best


def _bucket(sizes: Mapping[Architecture, _Size], capacity: Capacity) -> Bucket:
    """Form a bucket of sizes, the largest last, with the number of lanes that its horizons pack best into."""
    largest = sizes[list(sizes)[-1]]
    trials = [counted for size in sizes.values() for counted in size.trials]
    filling = _filled(functools.reduce(operator.add, (size.horizons for size in sizes.values())), largest, capacity)
    lanes = -filling.fewer_lanes
    seconds = capacity.speed.overhead + lanes * largest.lane_seconds
    return Bucket(
        program=largest.program,
        counted=tuple(sorted(trials, key=lambda counted: -counted.trial.settings.steps)),
        lanes=lanes,
        seconds=seconds,
        makespan=filling.makespan,
        call_steps=max(1, int(min(CALL_SECONDS / seconds, CALL_EXAMPLES / largest.program.recipe.batch_size))),
    )


def _judged(bucket: Bucket, judge: Judge) -> tuple[Bucket, list[Architecture], str]:
    """Return a bucket with the grounds of its packing, the sizes that may not be in it, and why the first may not."""
    grounds, refused, reason = "", [], ""
    for size in bucket.architectures:
        if size == bucket.program.architecture:
            continue
        verdict = judge(replace(bucket.program, architecture=size), bucket.program)
        if not verdict.grounds:
            refused.append(size)
            reason = reason or verdict.reason
        elif grounds != PROBED:
            grounds = verdict.grounds
    return replace(bucket, grounds=grounds), refused, reason


def _rebuilt(
    bucket: Bucket, group: Mapping[Architecture, _Size], left: Mapping[Architecture, _Size], capacity: Capacity
) -> Bucket:
    """Return a bucket without the sizes that have left it."""
    sizes = [size for size in group if size in set(bucket.architectures)]
    kept = {size: group[size] for size in sizes if size not in left}
    if len(kept) == len(sizes):
        return bucket
    return replace(_bucket(kept, capacity), grounds=bucket.grounds)


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
    """Return (useful FLOPs of all trials, FLOPs added by padding, FLOPs of lanes that idle at the end)."""
    useful = padding = idle = 0
    for bucket in buckets:
        own, padded = _bucket_flops(bucket)
        useful += own
        padding += padded - own
        busy = sum(steps * count for steps, count in bucket.horizons.items())
        step = step_flops(bucket.program.architecture, bucket.program.recipe)
        idle += step * max(0, bucket.makespan * bucket.lanes * devices - busy)
    return useful, padding, idle


def padding_share(bucket: Bucket) -> float:
    """Return the share of a bucket's FLOPs that is spent on the zeros of its smaller sizes."""
    own, padded = _bucket_flops(bucket)
    return 1 - own / padded


def _bucket_flops(bucket: Bucket) -> tuple[int, int]:
    """Return the FLOPs of all trials of a bucket, at their own sizes and padded to the largest."""
    recipe, own, padded = bucket.program.recipe, 0, 0
    step = step_flops(bucket.program.architecture, recipe)
    for counted in bucket.counted:
        steps = counted.steps * counted.copies
        own += step_flops(counted.trial.architecture, recipe) * steps
        padded += step * steps
    return own, padded
