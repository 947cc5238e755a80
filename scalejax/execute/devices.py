"""The devices of this machine and what they are called in a result's row."""

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax

from scalejax.files import keep_programs
from scalejax.planning.placement import Device, Group

MOST_CPU_DEVICES = 8  # each holds the data set once


def prepare() -> None:
    """Set JAX up for sweeps: compiled programs are kept, and a CPU is one device a core. Call it before JAX is used."""
    keep_programs()
    _divide_cpu()


def _divide_cpu() -> None:
    """Make each core a device of its own: a program on one core each beats one program on all of them.

    Measured on two cores, against one device with two threads: 1.9x at width 32, 1.6x at 256, 1.1x at 512. Nothing is
    changed where the user has chosen a number of devices, or where JAX is in use already.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or getattr(jax.config, "jax_num_cpu_devices", -1) > 0:
        return
    with contextlib.suppress(RuntimeError):  # the backend runs already; its devices are used as they are
        jax.config.update("jax_num_cpu_devices", min(_cores(), MOST_CPU_DEVICES))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_beside(*, engine: bool) -> int:
    """Return how many processes of one thread each have room on the cores: all, or what the engine leaves if it runs.

    It keeps a core busy for each accelerator. On a CPU it runs on all cores itself, and half as many processes share
    them with it.
    """
    if not engine:
        return _cores()
    devices = jax.local_devices()
    return max(1, _cores() // 2 if devices[0].platform == "cpu" else _cores() - len(devices))


def groups(devices: Sequence[Device], *, size: int = 1) -> list[Group]:
    """Divide devices into groups, accelerators into groups of `size`.

    The cores of a CPU form one, because JAX compiles a program anew for each of its devices, but once for all of them
    together. Accelerators are as many groups as the plan says: each by itself can be busy with another bucket, and
    several can share a trial.
    """
    if devices[0].platform == "cpu":
        return [tuple(devices)]
    whole = len(devices) // size * size
    return [tuple(devices[begin : begin + size]) for begin in range(0, whole, size)]


def device_kind() -> str:
    """Return the kind of the local devices, for example "cpu" or "NVIDIA H200"."""
    return jax.local_devices()[0].device_kind


@functools.cache
def versions() -> Mapping[str, str]:
    """Return the versions of the packages that can change a result."""
    # Asked for every row; reading them from the packages' files each time took longer than training a small model.
    names = ("scalejax", "jax", "jaxlib", "flax", "optax", "numpy")
    return MappingProxyType({name: importlib.metadata.version(name) for name in names})
