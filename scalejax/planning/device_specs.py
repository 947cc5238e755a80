"""Devices to plan for: those of this machine, and public figures of some that are elsewhere."""

import math
import os
from dataclasses import dataclass, replace

import jax

from scalejax.errors import SweepError
from scalejax.rules import nearest
from scalejax.train.cost import SPEEDS, DeviceSpeed

# Shares of a vendor's figures that are assumed to be reached: many small products of lanes are not one large product,
# and no kernel streams at the peak. Assumptions, not measurements; a plan for the local devices does not use them.
PRODUCTS_SHARE, BANDWIDTH_SHARE = 1 / 3, 0.7
GPU_MEMORY_SHARE = 0.75  # that JAX allots itself unless told otherwise
HOST_MEMORY_SHARE = 0.75  # the rest is for programs, copies in flight, and other processes
DEFAULT_MEMORY = 16e9  # bytes of a device that does not say
LOCAL = "local"


@dataclass(frozen=True)
class DeviceSpec:
    """What a plan has to know of a device.

    Attributes:
        name: as given to `--device-kind`.
        platform: "cpu", "gpu" or "tpu".
        memory: bytes that JAX may use.
        speed: for the simulation, finer than what packing assumes of the platform.
        source: of the figures, in words.
    """

    name: str
    platform: str
    memory: float
    speed: DeviceSpeed
    source: str


def _public(name: str, platform: str, *, products: float, memory: float, bandwidth: float) -> DeviceSpec:
    """Return a spec by its vendor's figures: FLOP/s, bytes, bytes/s."""
    speed = replace(SPEEDS[platform], products=PRODUCTS_SHARE * products, bandwidth=BANDWIDTH_SHARE * bandwidth)
    usable = memory * (GPU_MEMORY_SHARE if platform == "gpu" else 1)
    return DeviceSpec(name, platform, usable, speed, "estimated from public figures")


# Products: the vendor's dense figure for what JAX by default multiplies float32 with: TF32 on GPUs that have it
# (without the sparsity that datasheets double it by), FP32 on the T4, one bfloat16 pass on TPUs. Sources: the
# datasheets of NVIDIA A100 (SXM), H100 (SXM), H200 (SXM), L4 and T4; cloud.google.com/tpu/docs/v5e, v5p and v6e.
_PUBLIC = (
    _public("a100-40", "gpu", products=156e12, memory=40e9, bandwidth=1.555e12),
    _public("a100-80", "gpu", products=156e12, memory=80e9, bandwidth=2.039e12),
    _public("h100", "gpu", products=494.7e12, memory=80e9, bandwidth=3.35e12),
    _public("h200", "gpu", products=494.7e12, memory=141e9, bandwidth=4.8e12),
    _public("l4", "gpu", products=60e12, memory=24e9, bandwidth=3e11),
    _public("t4", "gpu", products=8.1e12, memory=16e9, bandwidth=3.2e11),
    _public("v5e", "tpu", products=197e12, memory=16e9, bandwidth=8.19e11),
    _public("v5p", "tpu", products=459e12, memory=95e9, bandwidth=2.765e12),
    _public("v6e", "tpu", products=918e12, memory=32e9, bandwidth=1.64e12),
)
PUBLIC_SPECS = {spec.name: spec for spec in _PUBLIC}


def device_spec_named(name: str) -> DeviceSpec:
    """Return a device's spec by its name, "local" for the devices of this machine.

    Raises:
        SweepError: there is no such device; the sentence names the nearest.
    """
    if name.lower() == LOCAL:
        return local_spec()
    if name.lower() not in PUBLIC_SPECS:
        raise SweepError(f'--device-kind: "{name}" is unknown; {nearest(name.lower(), (*PUBLIC_SPECS, LOCAL))}')
    return PUBLIC_SPECS[name.lower()]


def host_memory() -> float:
    """Return the bytes of this machine's memory that a sweep may take, infinite where the system does not say."""
    try:
        return HOST_MEMORY_SHARE * float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def local_spec() -> DeviceSpec:
    """Return the spec of this machine's devices, with the rounded speeds of their platform."""
    platform = jax.default_backend() if jax.default_backend() in SPEEDS else "gpu"
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", DEFAULT_MEMORY)
    return DeviceSpec(LOCAL, platform, memory, SPEEDS[platform], "estimated by the cost model of this platform")
