"""Over how many devices each trial is spread: so that a sweep ends soonest, and that a large model fits at all.

Of small models each device trains lanes of its own. A trial so long that the sweep would end with it alone has its
batch sharded. A model that does not fit on a device is rematerialised, then trained in microbatches, and then has its
parameters sharded. All that follows from the cost model and from public figures, so it is the same in every run of a
sweep.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp

from scalejax.models import Architecture
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
        spec: of each, with the memory that it has beside the data.
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
        for batch in shares:
            spread = Spread(batch, parts)
            program = _fitting(bucket.program, spread, spec) if spread.devices <= group else None
            if program is None:
                continue
            found = _with_lanes(replace(bucket, program=program, spread=spread), group, spec=spec, capacity=capacity)
            if best is None or found.seconds * found.makespan < WORTHWHILE * best.seconds * best.makespan:
                best = found
        if best is not None:
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
def _fitting(program: LaneProgram, spread: Spread, spec: DeviceSpec) -> LaneProgram | None:
    """Return a program whose lane fits on devices that share it; None if none does.

    Tried are the program as it is, then rematerialised, then in ever more microbatches, whose small products leave a
    device idle. Of a model that keeps statistics no batch is taken in microbatches: its numbers would be others.
    """
    batch_size, parts = program.recipe.batch_size, spread.devices
    again = stacks(program.architecture.forward_program(batch_size).jaxpr)
    whole = _keeps_statistics(program.architecture, batch_size)
    for rematerialise in (False, True) if again else (False,):
        microbatches = 1
        while batch_size % (parts * microbatches) == 0:
            tried = replace(program, rematerialise=rematerialise, microbatches=microbatches)
            if device_bytes(tried, lanes=1, spread=spread) <= MEMORY_SHARE * spec.memory:
                return tried
            if whole or (again and not rematerialise):
                break
            microbatches *= 2
    return None


@functools.cache
def _keeps_statistics(architecture: Architecture, batch_size: int) -> bool:
    """Say whether a forward pass changes numbers that are not trained, such as the means of a batch norm.

    What it counts, such as the masks that dropout has drawn, is of whole numbers.
    """
    params, rest = (len(jax.tree.leaves(part)) for part in architecture.abstract[1:])
    traced = jax.make_jaxpr(architecture.forward)(*architecture.abstract[1:], architecture.inputs(batch_size)).jaxpr
    pairs = zip(traced.invars[params : params + rest], traced.outvars[-rest:] if rest else (), strict=True)
    return any(new is not old and jnp.issubdtype(old.aval.dtype, jnp.floating) for old, new in pairs)


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
    """Return what is wrong with a model that fits no share of these devices, and how many would hold it."""
    needed, room = (f"{size / 1e9:,.0f} GB" for size in (device_bytes(program, lanes=1), MEMORY_SHARE * spec.memory))
    why = f"the model {program.architecture.title} in batches of {program.recipe.batch_size} needs {needed}"
    why += f", more than the {room} that one {spec.name} has for it"
    why += f", and cannot be spread over {devices} so that it fits" if devices > 1 else ""
    parts = 2
    while parts <= MOST_DEVICES:
        if devices % parts and _fitting(
            program, Spread(parameters=parts), spec
        ):  # not one of the shares that were tried
            return SpecError(f"{why}; spread over {parts} of them it would fit", table="models")
        parts *= 2
    return SpecError(f"{why}; make it smaller, or its batches larger", table="models")


def spread_words(buckets: Sequence[Bucket]) -> list[str]:
    """Say how the buckets are spread, and what is done to have them fit; a sentence for each of which there is any."""
    said = []
    for bucket in buckets:
        spread, program = bucket.spread, bucket.program
        parts = f"its parameters over {spread.parameters}" if spread.parameters > 1 else ""
        batch = f"its batch over {spread.devices}" if spread.batch > 1 else ""
        shared = " and ".join(filter(None, (parts, batch)))
        words = [
            f"each trial has {shared} devices" * (spread != NOT_SPREAD),
            "its blocks are computed again in the backward pass" * program.rematerialise,
            f"a batch is taken in {program.microbatches} parts" * (program.microbatches > 1),
        ]
        if any(words):
            said.append(f"{program.architecture.title}: {'; '.join(filter(None, words))}")
    return said
