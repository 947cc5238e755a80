"""What a device's own compiler says of a plan's programs, without the device: memory, launches, loops, collectives.

What it says is exact, and holds for the device. The seconds made of it are an estimate: on a GPU its launches, and what
is slower of the products and the bytes of its programs; on a TPU its compiler's estimates of the cycles, or the bytes.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import jax

from scalejax.planning.device_specs import DeviceSpec
from scalejax.planning.forecast import Timing
from scalejax.planning.hlo import Reading, Work, read
from scalejax.planning.lowering import PLACE, TEST, VALIDATE, lowered_place, lowered_training
from scalejax.planning.memory import Memory, memory_of, needed_bytes
from scalejax.planning.packing import Bucket, in_mode
from scalejax.planning.placement import Group
from scalejax.planning.plan import Plan
from scalejax.planning.topology import topology, without_compilation_cache
from scalejax.text import first_line
from scalejax.train.cost import DeviceSpeed, evaluation_flops, performed_flops
from scalejax.train.recipe import STATIC

# Seconds from one kernel of a GPU to the next, if they have hardly anything to do; an assumption. In the example of
# Gray ("Getting started with CUDA graphs", NVIDIA 2019) it is 3.4 us in a graph and 3.8 us in a stream, of which 2.9 us
# are what the kernel itself has to do.
LAUNCH_SECONDS = 2.5e-6
HOST_SECONDS = 1e-5  # that a GPU waits for the host where only a number on the device tells how to go on; an assumption


@dataclass(frozen=True)
class Compiled:
    """One program of a bucket, as its compiler sees it; on each device.

    Attributes:
        name: the number of its steps, "validate", "test" or "place".
        compile_seconds: on this machine.
        memory: that it takes.
        reading: of its text.
        seconds: of one call, estimated.
    """

    name: str
    compile_seconds: float
    memory: Memory
    reading: Reading
    seconds: float


@dataclass(frozen=True)
class CompiledBucket:
    """The programs of a bucket, compiled for devices that are not here.

    Attributes:
        lanes: on each device.
        lanes_together: on all devices that run a program together.
        devices: how many these are.
        programs: as they are launched; after one that the compiler refuses there are no more.
        room_bytes: that a device has for them.
        step_launches: of one training step of all lanes.
        timing: estimated, as of a program that was timed; None: a program was refused.
        measuring_share: of a trial's time, for evaluations and its test.
        refused: why the compiler refuses a program; empty if it does not.
    """

    lanes: int
    lanes_together: int
    devices: int
    programs: tuple[Compiled, ...]
    room_bytes: float
    step_launches: int = 0
    timing: Timing | None = None
    measuring_share: float = 0.0
    refused: str = ""

    @property
    def needed_bytes(self) -> int:
        """The most that is in the memory of a device at the same time, of the programs that were compiled."""
        memories = {each.name: each.memory for each in self.programs}
        placing = memories.pop(PLACE, Memory(0, 0, 0, 0))
        return needed_bytes(list(memories.values()), placing)

    @property
    def fits(self) -> bool:
        """Whether that is no more than there is."""
        return not self.refused and self.needed_bytes <= self.room_bytes

    @property
    def waits(self) -> int:
        """How many loops and conditions have to ask how to go on."""
        return sum(each.reading.work.waits for each in self.programs)

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {**asdict(self), "needed_bytes": self.needed_bytes, "fits": self.fits, "waits": self.waits}


def compile_for(plan: Plan, spec: DeviceSpec, *, shape: tuple[int, ...] = ()) -> list[CompiledBucket]:
    """Compile the programs of every bucket for devices that are not here, and read what the compiler says of them.

    Args:
        plan: made for these devices.
        spec: of each of them.
        shape: how they are connected, as of `devices_named`.

    Raises:
        SweepError: there is no such compiler here, or no such topology.
    """
    devices = topology(spec, shape=shape, count=plan.group_size)
    with without_compilation_cache():
        return [compiled_bucket(bucket, plan, devices=devices, spec=spec) for bucket in plan.packing.buckets]


def compiled_bucket(bucket: Bucket, plan: Plan, *, devices: Group, spec: DeviceSpec) -> CompiledBucket:
    """Compile the programs of one bucket for a group of devices of `topology`; see `compile_for`."""
    bucket = in_mode(bucket, STATIC, evaluation_bytes=spec.evaluation_bytes)
    program, placement = bucket.program, bucket.placement(devices)
    speed = spec.speed_in(plan.sweep.train.precision)
    examples = {VALIDATE: plan.card.validation_examples, TEST: plan.card.test_examples}
    programs: list[Compiled] = []
    refused = ""
    try:
        lowered = {**lowered_training(program, placement, card=plan.card), PLACE: lowered_place(program, placement)}
        for name, each in lowered.items():
            flops = name * performed_flops(program) if isinstance(name, int) else 0.0
            if name in examples:
                flops = evaluation_flops(program, examples[name])
            flops *= bucket.lanes / bucket.spread.devices
            programs.append(_compiled(str(name), each, spec, speed=speed, flops=flops))
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:  # or an operation that it does not have
        refused = first_line(error)
    by_name = {each.name: each for each in programs}
    common = bucket.lanes, placement.lanes, len(placement.devices), tuple(programs), spec.memory
    if refused:
        return CompiledBucket(*common, refused=refused)
    longest = program.pieces[0]
    advancing = by_name[str(longest)]
    timing = Timing(
        step=advancing.seconds / longest,
        evaluation=by_name[VALIDATE].seconds / placement.lanes,
        test=by_name[TEST].seconds / placement.lanes,
    )
    return CompiledBucket(
        *common,
        step_launches=advancing.reading.launches_of_round(longest),
        timing=timing,
        measuring_share=measuring_share(bucket, timing, lanes=placement.lanes),
    )


def measuring_share(bucket: Bucket, timing: Timing, *, lanes: int) -> float:
    """Return the share of the time of a bucket's trials that their evaluations and tests take.

    Args:
        bucket: of the trials.
        timing: of its program.
        lanes: that take a step together.
    """
    counted = bucket.counted
    steps = sum(each.copies * each.steps for each in counted)
    evaluations = sum(each.copies * math.ceil(each.steps / each.trial.evaluate_every) for each in counted)
    tests = sum(each.copies * (each.expected_stop is None) for each in counted)  # what halving stops is not tested
    measuring = evaluations * timing.evaluation + tests * timing.test
    return measuring / (measuring + steps * timing.step / lanes)


def _compiled(name: str, lowered: Any, spec: DeviceSpec, *, speed: DeviceSpeed, flops: float) -> Compiled:
    options = {"xla_gpu_autotune_level": 0} if spec.platform == "gpu" else None  # there is no GPU to try kernels on
    began = time.perf_counter()
    compiled = lowered.compile(options)
    seconds = time.perf_counter() - began
    reading = read(compiled.as_text())
    memory = memory_of(compiled) or Memory(0, 0, 0, 0)
    return Compiled(name, seconds, memory, reading, call_seconds(reading.work, spec, speed=speed, flops=flops))


def call_seconds(work: Work, spec: DeviceSpec, *, speed: DeviceSpeed, flops: float) -> float:
    """Estimate the seconds of one call of a program on each device.

    Args:
        work: that a call comes to.
        spec: of the device.
        speed: of it, in the precision of the program.
        flops: of its products.
    """
    memory, link = work.bytes / speed.bandwidth, work.sent / speed.link
    if spec.clock:  # a TPU's compiler knows its matrix units, and runs all parts of a program without a host
        return max(work.cycles / spec.clock, memory) + link
    launches = work.launches * LAUNCH_SECONDS + work.waits * HOST_SECONDS
    return launches + max(flops / speed.products, memory) + link
