"""What a device's own compiler says of a plan's programs, without the device: memory, launches, loops, collectives.

The compilers of TPUs (`libtpu`) and of CUDA come as packages and run on any machine. What they say is exact, and holds
for the device; the seconds made of it are an estimate: launches, bytes and FLOPs over the vendor's figures.
"""

import collections
import math
import os
import re
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax

from scalejax.errors import SweepError
from scalejax.planning.device_specs import DeviceSpec
from scalejax.planning.forecast import Timing
from scalejax.planning.lowering import lowered_place, lowered_training
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Group
from scalejax.planning.plan import Plan
from scalejax.text import first_line
from scalejax.train.cost import evaluation_block
from scalejax.train.recipe import PIECES

# Seconds from one kernel to the next in a stream, as has often been measured on GPUs; of a TPU an assumption, whose
# programs run without a host between their parts.
LAUNCH_SECONDS = {"gpu": 2.5e-6, "tpu": 1e-6}
HOST_SECONDS = 1e-5  # that a GPU waits for the host at a loop whose end only the device knows, each time
# Cores, FP32 units a core, clock in GHz, bytes of second-level cache, compute capability: NVIDIA's white papers on the
# architectures A100 (2020) and H100 (2022), and the datasheet of the H200.
GPUS = {"h200": (132, 128, 1.98, 50, 9), "h100": (132, 128, 1.98, 50, 9), "a100-80": (108, 64, 1.41, 40, 8)}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Instructions that launch nothing: names of other results, and the order of what does.
QUIET = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional", "partition-id"}
QUIET |= {"after-all", "opt-barrier", "copy-done", "slice-done", "all-reduce-done", "all-gather-done", "async-done"}


@dataclass(frozen=True)
class Loop:
    """A loop of a compiled program: how often it runs (None: only the device knows), and what each round launches."""

    trips: int | None
    launches: int


@dataclass(frozen=True)
class Reading:
    """What the text of a compiled program says.

    Attributes:
        launches: outside of all loops.
        loops: each, those inside others too, the longest first.
        collectives: how many of each kind.
    """

    launches: int
    loops: tuple[Loop, ...]
    collectives: dict[str, int]


@dataclass(frozen=True)
class Compiled:
    """One program of a bucket, as its compiler sees it; bytes are those of each device."""

    name: str  # the number of steps, "validate", "test" or "place"
    compile_seconds: float
    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    aliased_bytes: int
    reading: Reading
    seconds: float  # estimated, of one call

    @property
    def total_bytes(self) -> int:
        """What it takes in all."""
        return self.argument_bytes + self.temporary_bytes + self.output_bytes - self.aliased_bytes


@dataclass(frozen=True)
class CompiledBucket:
    """The programs of a bucket, compiled for a device.

    Attributes:
        sizes: of its models, in words.
        lanes: on each device.
        programs: as they are launched.
        memory: bytes that a device has for them.
        step_launches: of one training step of all lanes.
        timing: estimated seconds, as of a program that was timed.
    """

    sizes: str
    lanes: int
    programs: tuple[Compiled, ...]
    memory: float
    step_launches: int
    timing: Timing

    @property
    def needed(self) -> int:
        """Bytes of the largest program."""
        return max(each.total_bytes for each in self.programs)

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {**asdict(self), "needed_bytes": self.needed, "fits": self.needed <= self.memory}


def prepare_compilers() -> None:
    """Have the compilers of accelerators come up without accelerators; call it before JAX is used.

    If JAX is not in use yet, this process then uses the CPU alone.
    """
    for key, value in {"SKIP_MDS_QUERY": "1", "WORKER_HOSTNAMES": "localhost", "WORKER_ID": "0"}.items():
        os.environ.setdefault(f"TPU_{key}", value)  # there is no TPU to ask
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # nor a GPU
    if getattr(jax.config, "jax_platforms", None) is None:
        jax.config.update("jax_platforms", "cpu")


def topology(kind: str, *, devices: int | None = None) -> Group:
    """Return devices of a kind that are not here, such as "v5e", "v5e:2x2" or "h200:8".

    Args:
        kind: a name of `device_specs`, and after a colon the topology of a TPU or the number of GPUs.
        devices: how many; None: all of the topology.

    Raises:
        SweepError: the compiler for it is not installed, or there is no such topology.
    """
    from jax.experimental import topologies

    name, _, shape = kind.lower().partition(":")
    on_gpu = name in GPUS
    try:
        if on_gpu:
            count = int(shape or devices or 1)
            found = topologies.get_topology_desc(
                platform="cuda", topology_name=name, target_config=_target(name), topology=f"1x1x{count}"
            )
        elif name[0] == "v":
            chips = "2x2x1" if name == "v5p" else "2x2"
            found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape or chips}")
        else:
            known = ", ".join((*GPUS, "v5e", "v5p", "v6e"))
            raise SweepError(f"--compile: the compiler for {name} cannot be asked from here; expected one of {known}")
    except SweepError:
        raise
    except Exception as error:  # whatever JAX raises where a plugin is missing, or a topology is none
        extra = "cuda13" if on_gpu else "tpu"
        says = f'--compile: nothing compiles for "{kind}" here ({first_line(error)})'
        raise SweepError(f'{says}; pip install ".[{extra}]", and see that the topology is one') from error
    if devices and devices > len(found.devices):
        says = f"--compile: {kind} has {len(found.devices)} devices, fewer than the {devices} that are asked for"
        raise SweepError(f"{says}; name a larger topology, such as v5e:4x4 or h200:16")
    return tuple(found.devices[: devices or len(found.devices)])


def compile_for(plan: Plan, devices: Group, spec: DeviceSpec) -> list[CompiledBucket]:
    """Compile the programs of every bucket for devices that are not here, and read what the compiler says of them.

    Args:
        plan: made for these devices.
        devices: of `topology`; those that work on a bucket together are taken from them.
        spec: of each, with the figures that the seconds are made of.
    """
    return [_compiled(bucket, plan, devices[: plan.group], spec) for bucket in plan.packing.buckets]


def _compiled(bucket: Bucket, plan: Plan, devices: Group, spec: DeviceSpec) -> CompiledBucket:
    pieces = tuple(steps for steps in PIECES if steps <= bucket.call_steps)
    block = evaluation_block(bucket.program, bucket.lanes)
    bucket = replace(bucket, program=replace(bucket.program, mode="static", block=block, pieces=pieces))
    placement = bucket.placement(devices)
    lowered = {**lowered_training(bucket.program, placement, card=plan.card)}
    lowered["place"] = lowered_place(bucket.program, placement)
    programs = {name: _asked(str(name), each, spec) for name, each in lowered.items()}
    longest, lanes = programs[pieces[0]], placement.lanes
    stepping = max((loop.launches for loop in longest.reading.loops), default=0)
    return CompiledBucket(
        sizes=", ".join(each.title for each in bucket.architectures),
        lanes=bucket.lanes,
        programs=tuple(programs.values()),
        memory=spec.memory,
        step_launches=stepping if pieces[0] > 1 else longest.reading.launches,
        timing=Timing(
            step=longest.seconds / pieces[0],
            evaluation=programs["validate"].seconds / lanes,
            test=programs["test"].seconds / lanes,
        ),
    )


def _asked(name: str, lowered: Any, spec: DeviceSpec) -> Compiled:
    options = {"xla_gpu_autotune_level": "0"} if spec.platform == "gpu" else None  # there is no GPU to try kernels on
    began = time.perf_counter()
    compiled = lowered.compile(options)
    seconds = time.perf_counter() - began
    needs, costs = compiled.memory_analysis(), compiled.cost_analysis() or {}
    reading = read(compiled.as_text())
    return Compiled(
        name=name,
        compile_seconds=seconds,
        argument_bytes=needs.argument_size_in_bytes,
        temporary_bytes=needs.temp_size_in_bytes,
        output_bytes=needs.output_size_in_bytes,
        aliased_bytes=needs.alias_size_in_bytes,
        reading=reading,
        seconds=_seconds(reading, costs, spec),
    )


def _seconds(reading: Reading, costs: dict[str, float], spec: DeviceSpec) -> float:
    """Estimate the seconds of one call: launches, and what is slower of products and memory.

    The compiler counts the body of a loop once, so its figures are taken as often as the longest loop runs.
    """
    known = [(loop.trips or 1, loop.launches) for loop in reading.loops]
    launches = reading.launches + sum(trips * count for trips, count in known)
    waits = HOST_SECONDS * sum(loop.trips is None for loop in reading.loops)
    repeats = max(known, key=lambda loop: loop[1], default=(1, 0))[0]
    flops, moved = (max(0.0, costs.get(name, 0.0)) for name in ("flops", "bytes accessed"))
    working = repeats * max(flops / spec.speed.products, moved / spec.speed.bandwidth)
    return launches * LAUNCH_SECONDS[spec.platform] + waits + working


def read(text: str) -> Reading:
    """Read the text of a compiled program, that of XLA for GPUs or for TPUs."""
    bodies, entry = _computations(re.sub(r"/\*.*?\*/", "", text))
    loops = []
    for lines in bodies.values():
        for line in lines:
            found = re.search(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)", line)
            if found:
                condition, body = found.groups()
                loops.append(Loop(_trips(line, bodies.get(condition, [])), _launches(bodies.get(body, []))))
    loops.sort(key=lambda loop: -(loop.trips or math.inf) * loop.launches)
    kinds = "|".join(COLLECTIVES)
    spoken = collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", text))
    return Reading(_launches(bodies.get(entry, [])), tuple(loops), dict(spoken))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Return the instructions of each computation of a text by name, and the name of the one that is entered."""
    bodies: dict[str, list[str]] = {}
    name, entry = "", ""
    for line in text.splitlines():
        head = re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{", line)
        if head:
            name = head[2]
            bodies[name] = []
            entry = name if head[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name:
            bodies[name].append(line.strip())
    return bodies, entry


def _launches(lines: list[str]) -> int:
    made = (re.search(r"= (?:\([^=]*?\)|\S+) ([\w\-]+)\(", line) for line in lines)
    return sum(each is not None and each[1] not in QUIET for each in made)


def _trips(line: str, condition: list[str]) -> int | None:
    """Return how often a loop runs: as a GPU's compiler notes, or from the constant that a TPU's condition compares to.

    A condition that compares with anything but one constant does not tell.
    """
    noted = re.search(r"known_trip_count[^0-9]*(\d+)", line)
    if noted:
        return int(noted[1])
    constants = [int(each[1]) for each in (re.search(r" constant\((\d+)\)", row) for row in condition) if each]
    compares = any(" compare(" in row and "direction=LT" in row for row in condition)
    return constants[0] if compares and len(constants) == 1 else None


def _target(name: str) -> str:
    """Return a GPU's figures in the words of XLA."""
    from scalejax.planning.device_specs import PUBLIC_SPECS

    cores, units, clock, cache, capability = GPUS[name]
    bandwidth, memory = PUBLIC_SPECS[name].speed.bandwidth / 0.7, PUBLIC_SPECS[name].memory / 0.75
    shared = 233_472 if capability == 9 else 167_936
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {units} block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache << 20}
  clock_rate_ghz: {clock} device_memory_size: {memory:.0f} shared_memory_per_block_optin: {shared - 1024}
  cuda_compute_capability {{ major: {capability} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
