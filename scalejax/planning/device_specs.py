"""Devices to plan for: those of this machine, and public figures of some that are elsewhere."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

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
        products: FLOP/s by precision, where they are not those of the speed.
    """

    name: str
    platform: str
    memory: float
    speed: DeviceSpeed
    source: str
    products: Mapping[str, float] = field(default_factory=dict, hash=False)

    def speed_in(self, precision: str) -> DeviceSpeed:
        """Return its speed where models compute in a precision."""
        return replace(self.speed, products=self.products.get(precision, self.speed.products))


Figures = tuple[float, float, float]  # FLOP/s of products of float32, TF32 and bfloat16


def _public(name: str, platform: str, *, products: Figures, memory: float, bandwidth: float) -> DeviceSpec:
    """Return a spec by its vendor's figures: FLOP/s, bytes, bytes/s."""
    float32, tf32, bfloat16 = (PRODUCTS_SHARE * figure for figure in products)
    speed = replace(SPEEDS[platform], products=float32, bandwidth=BANDWIDTH_SHARE * bandwidth)
    usable = memory * (GPU_MEMORY_SHARE if platform == "gpu" else 1)
    others = {"tf32": tf32, **dict.fromkeys(("bfloat16", "bfloat16_parameters"), bfloat16)}
    return DeviceSpec(name, platform, usable, speed, "estimated from public figures", others)


def _passes(figure: float) -> Figures:
    """Return the products of a TPU, which multiplies bfloat16: float32 in six passes, for TF32 in three."""
    return figure / 6, figure / 3, figure


# Products: the vendor's dense figures, without the sparsity that datasheets double them by; the T4 computes all in
# float32. Sources: the datasheets of NVIDIA A100 (SXM), H100 (SXM), H200 (SXM), L4 and T4;
# cloud.google.com/tpu/docs/v5e, v5p and v6e.
_AMPERE, _HOPPER = (19.5e12, 156e12, 312e12), (67e12, 494.7e12, 989.4e12)
_PUBLIC = (
    _public("a100-40", "gpu", products=_AMPERE, memory=40e9, bandwidth=1.555e12),
    _public("a100-80", "gpu", products=_AMPERE, memory=80e9, bandwidth=2.039e12),
    _public("h100", "gpu", products=_HOPPER, memory=80e9, bandwidth=3.35e12),
    _public("h200", "gpu", products=_HOPPER, memory=141e9, bandwidth=4.8e12),
    _public("l4", "gpu", products=(30.3e12, 60e12, 121e12), memory=24e9, bandwidth=3e11),
    _public("t4", "gpu", products=(8.1e12, 8.1e12, 8.1e12), memory=16e9, bandwidth=3.2e11),
    _public("v5e", "tpu", products=_passes(197e12), memory=16e9, bandwidth=8.19e11),
    _public("v5p", "tpu", products=_passes(459e12), memory=95e9, bandwidth=2.765e12),
    _public("v6e", "tpu", products=_passes(918e12), memory=32e9, bandwidth=1.64e12),
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
