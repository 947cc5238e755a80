"""Devices that are not here, as their own compilers describe them: those of TPUs and of CUDA run on any machine."""

import contextlib
import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from scalejax.errors import SweepError
from scalejax.planning.device_specs import CAPABILITIES, Chip, DeviceSpec
from scalejax.planning.placement import Group
from scalejax.text import first_line

CUDA_PLUGINS = ("xla_cuda13", "xla_cuda12")
GPUS_OF_HOST = 8
# There is no TPU to ask for its surroundings; and other processes may ask its compiler at the same time.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_HOST_BOUNDS": "1,1,1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Without a driver the plugin refuses to come up, though its compiler needs none.
CUDA_ENVIRONMENT = {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}


def check_compiler(spec: DeviceSpec) -> None:
    """Check that the compiler of a kind of device is installed.

    Raises:
        SweepError: it is not; says what to install.
    """
    package, extra = ("libtpu", "tpu") if spec.platform == "tpu" else ("jax_plugins", "cuda13")
    if importlib.util.find_spec(package) is None or (spec.platform == "gpu" and not _plugin()):
        raise SweepError(f'--compile: the compiler of {spec.name} is not installed; pip install ".[{extra}]" brings it')


def topology(spec: DeviceSpec, *, shape: tuple[int, ...] = (), count: int = 1) -> Group:
    """Return `count` devices that are not here, for which programs can be compiled and not run.

    JAX may be in use, with other devices; nothing of that changes.

    Args:
        spec: of the devices.
        shape: how they are connected, as of `devices_named`; (): the smallest part of their network that has them.
        count: how many.

    Raises:
        SweepError: the compiler is not installed, does not know the topology, or this has fewer devices.
    """
    check_compiler(spec)
    chosen = shape or smallest(spec, count)
    if math.prod(chosen) < count:
        what = f"{spec.name}:{'x'.join(map(str, chosen))} has {math.prod(chosen)} devices"
        raise SweepError(f"--device-kind: {what}, and {count} work together; name a larger one")
    try:
        found = _described(spec, chosen)
    except (RuntimeError, NotImplementedError, ValueError) as error:  # JAX's own errors are of the first
        what = f"--device-kind {spec.name}:{'x'.join(map(str, chosen))}: its compiler refuses it"
        raise SweepError(f"{what} ({first_line(error)})") from error
    return found[:count]


def smallest(spec: DeviceSpec, count: int) -> tuple[int, ...]:
    """Return the shape of so many devices or more: that of one host's, doubled along its shortest axis as needed."""
    if not spec.host_shape:
        return (count,)
    shape = list(spec.host_shape)
    while math.prod(shape) < count:
        shape[min(range(len(shape)), key=lambda axis: (shape[axis], -axis))] *= 2
    return tuple(shape)


def _described(spec: DeviceSpec, shape: tuple[int, ...]) -> Group:
    from jax.experimental import topologies

    if spec.chip is None:
        # A host has four chips or more, unless that is said; a program on one chip is the same.
        single = {"chips_per_host_bounds": (1,) * 3} if math.prod(shape) == 1 else {}
        with environment(TPU_ENVIRONMENT):
            name = f"{spec.name}:{'x'.join(map(str, shape))}"
            return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, **single).devices)
    (count,) = shape
    hosts = -(-count // GPUS_OF_HOST)
    wanted: dict[str, Any] = {
        "topology_name": spec.name,
        "target_config": target(spec.name, spec.chip),
        "topology": f"1x{hosts}x{-(-count // hosts)}",
    }
    with environment(CUDA_ENVIRONMENT):
        try:
            return tuple(topologies.get_topology_desc(platform="cuda", **wanted).devices)
        except NotImplementedError:  # JAX had its plugins come up before, and without a driver this one did not
            importlib.import_module(_plugin()).initialize()
            return tuple(topologies.get_topology_desc(platform="cuda", **wanted).devices)


def target(name: str, chip: Chip) -> str:
    """Return a GPU in the words of XLA, which it also writes for one that is there."""
    major, minor = chip.capability
    shared, block, threads = CAPABILITIES[chip.capability]
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  shared_memory_per_block: {48 << 10} shared_memory_per_core: {shared << 10}
  shared_memory_per_block_optin: {block << 10}
  core_count: {chip.cores} fpus_per_core: {chip.units} clock_rate_ghz: {chip.clock / 1e9}
  block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
  registers_per_core_limit: {2**16} registers_per_block_limit: {2**16}
  memory_bandwidth: {chip.bandwidth:.0f} device_memory_size: {chip.memory:.0f} l2_cache_size: {chip.cache}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""


def _plugin() -> str:
    """Return the module of JAX's plugin for CUDA; empty where none is installed."""
    names = (f"jax_plugins.{name}" for name in CUDA_PLUGINS)
    return next((name for name in names if importlib.util.find_spec(name) is not None), "")


@contextlib.contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, and take them back."""
    fresh = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            os.environ.pop(name, None)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Write no compiled program to JAX's cache: what is compiled for devices elsewhere it cannot read back."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)
