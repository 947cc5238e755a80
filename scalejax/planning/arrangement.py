"""Over how many devices each trial is spread: so that a sweep ends soonest, and that a large model fits at all.

Of small models each device trains lanes of its own. A trial so long that the sweep would end with it alone has its
batch sharded. A model that does not fit on a device is rematerialised, then trained in microbatches, and then has its
parameters sharded. All that follows from the cost model and from public figures, so it is the same in every run of a
sweep.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

from scalejax.planning.device_specs import DeviceSpec
from scalejax.planning.packing import Bucket, Capacity, Packing, Size, filled, most_call_steps
from scalejax.planning.schedule import Load, schedule
from scalejax.rules import SpecError
from scalejax.train.cost import compile_seconds, device_bytes, lane_seconds
from scalejax.train.recipe import LaneProgram
from scalejax.train.rematerialisation import stacks
from scalejax.train.sharding import NOT_SPREAD, Spread

MEMORY_SHARE = 0.9  # of a device's memory that a program may be estimated to take
WORTHWHILE = 0.9  # of the time without: devices share a trial if the sweep then ends in less
MOST_DEVICES = 4096  # that a model is tried on, to say what would hold it


def arrange(
    packing: Packing, *, devices: int, spec: DeviceSpec, capacity: Capacity, one_group: bool = False
) -> tuple[Packing, int]:
    """Return the packing with every bucket spread, and how many devices work on a bucket together.

    On a CPU nothing is spread: its cores share one memory, and lanes of their own keep them busier.

    Args:
        packing: made for devices with lanes of their own.
        devices: how many there are.
        spec: of each.
        capacity: that the packing was made for.
        one_group: whether all devices work on each bucket together, as those of several hosts do.

    Raises:
        SpecError: a model does not fit, however it is spread over these devices; says what would hold it.
    """
    if spec.platform == "cpu":
        return packing, 1
    sizes = [devices] if one_group else _powers_of_two(devices)
    best: tuple[float, int, tuple[Bucket, ...]] | None = None
    for group in sizes:
        spread = [_spread(bucket, group, spec=spec, capacity=capacity) for bucket in packing.buckets]
        if any(each is None for each in spread):
            continue
        buckets = tuple(each for each in spread if each is not None)
        loads = [_load(bucket, group, spec=spec) for bucket in buckets]
        seconds = schedule(loads, devices // group).makespan if loads else 0.0
        if best is None or seconds < WORTHWHILE * best[0]:
            best = seconds, group, buckets
    if best is None:
        for bucket in packing.buckets:
            if _spread(bucket, sizes[-1], spec=spec, capacity=capacity) is None:
                raise _too_large(bucket.program, spec, devices)
        return packing, sizes[0]
    return replace(packing, buckets=best[2]), best[1]


def _powers_of_two(count: int) -> list[int]:
    """Return those that divide a number."""
    return [1 << power for power in range(count.bit_length()) if count % (1 << power) == 0]


def _spread(bucket: Bucket, group: int, *, spec: DeviceSpec, capacity: Capacity) -> Bucket | None:
    """Return a bucket on a group of devices, spread so that it ends soonest; None if it does not fit."""
    best: Bucket | None = None
    shares = _powers_of_two(group)
    for parts in shares:
        program = _fitting(bucket.program, parts, spec)
        if program is None:
            continue
        for batch in shares:
            spread = Spread(batch, parts)
            if spread.devices > group or bucket.program.recipe.batch_size % (spread.devices * program.microbatches):
                continue
            found = _with_lanes(replace(bucket, program=program, spread=spread), group, spec=spec, capacity=capacity)
            if best is None or found.seconds * found.makespan < WORTHWHILE * best.seconds * best.makespan:
                best = found
        break  # more parts than it takes only communicate more
    return best


def _with_lanes(bucket: Bucket, group: int, *, spec: DeviceSpec, capacity: Capacity) -> Bucket:
    """Return a bucket with the number of lanes that its horizons pack best into."""
    program, spread = bucket.program, bucket.spread
    size = Size(program, bucket.counted, capacity)
    speed = spec.speed_in(program.architecture.precision)
    size.lane_seconds = lane_seconds(program, speed, spread=spread)
    if spread != NOT_SPREAD:
        size.most_lanes = max(
            1, min(size.most_lanes, int(MEMORY_SHARE * spec.memory // device_bytes(program, lanes=1, spread=spread)))
        )
    rows = replace(capacity, devices=max(1, group // spread.devices))
    filling = filled(bucket.horizons, size, rows)
    seconds = speed.overhead + filling.lanes * size.lane_seconds
    return replace(
        bucket,
        lanes=filling.lanes,
        seconds=seconds,
        makespan=filling.makespan,
        call_steps=most_call_steps(program, seconds),
    )


@functools.cache
def _fitting(program: LaneProgram, parts: int, spec: DeviceSpec) -> LaneProgram | None:
    """Return a program whose lane fits on devices that share its parameters; None if none does.

    Tried are the program as it is, then rematerialised, then in ever more microbatches, whose small products leave a
    device idle.
    """
    batch_size = program.recipe.batch_size
    if batch_size % parts:
        return None
    again = stacks(program.architecture.forward_program(batch_size).jaxpr)
    for rematerialise in (False, True) if again else (False,):
        microbatches = 1
        while batch_size % (parts * microbatches) == 0:
            tried = replace(program, rematerialise=rematerialise, microbatches=microbatches)
            if device_bytes(tried, lanes=1, spread=Spread(parameters=parts)) <= MEMORY_SHARE * spec.memory:
                return tried
            if again and not rematerialise:
                break
            microbatches *= 2
    return None


def _load(bucket: Bucket, group: int, *, spec: DeviceSpec) -> Load:
    """Return a bucket as the schedule of groups sees it."""
    horizons = bucket.horizons
    lanes = bucket.lanes_on(group)
    return Load(
        horizons=tuple(horizons),
        copies=tuple(horizons.values()),
        measuring=(0.0,) * len(horizons),
        lanes=lanes,
        step=bucket.seconds,
        compiling=compile_seconds(len(bucket.architectures), speed=spec.speed),
        rank=bucket.seconds / lanes,
    )


def _too_large(program: LaneProgram, spec: DeviceSpec, devices: int) -> SpecError:
    needed = device_bytes(program, lanes=1) / 1e9
    has = f"{spec.memory / 1e9:,.0f} GB of one {spec.name}" if devices == 1 else f"memory of {devices} {spec.name}"
    why = f"the model {program.architecture.title} in batches of {program.recipe.batch_size} needs {needed:,.0f} GB"
    parts = 2 * devices
    while parts <= MOST_DEVICES:
        if _fitting(program, parts, spec):
            return SpecError(f"{why}, more than the {has}; spread over {parts} of them it would fit", table="models")
        parts *= 2
    return SpecError(f"{why}, more than the {has}; make it smaller, or its batches larger", table="models")


def spread_words(buckets: Sequence[Bucket]) -> list[str]:
    """Say how the buckets are spread, a sentence for each that is."""
    said = []
    for bucket in buckets:
        spread, program = bucket.spread, bucket.program
        if spread == NOT_SPREAD:
            continue
        parts = f"its parameters over {spread.parameters}" if spread.parameters > 1 else ""
        batch = f"its batch over {spread.devices}" if spread.batch > 1 or not parts else ""
        words = f"{program.architecture.title}: each trial has {' and '.join(filter(None, (parts, batch)))} devices"
        words += "; its blocks are computed again in the backward pass" * program.rematerialise
        words += f"; a batch is taken in {program.microbatches} parts" * (program.microbatches > 1)
        said.append(words)
    return said
