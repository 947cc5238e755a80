"""Devices to plan for: those of this machine, and public figures of some that are elsewhere."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import jax

from scalejax.errors import SweepError
from scalejax.models.precision import PRECISIONS
from scalejax.rules import nearest
from scalejax.train.cost import EVALUATION_BYTES, SPEEDS, DeviceSpeed

# Shares of a vendor's figures that are assumed to be reached: many small products of lanes are not one large product,
# and no kernel streams at the peak. Assumptions, not measurements; a plan for the local devices does not use them.
PRODUCTS_SHARE, BANDWIDTH_SHARE = 1 / 3, 0.7
GPU_MEMORY_SHARE = 0.75  # that JAX allots itself unless told otherwise
HOST_MEMORY_SHARE = 0.75  # the rest is for programs, copies in flight, and other processes
# Of its memory that the largest array of an evaluation may take. So much that on a GPU many lanes of a small model take
# no more launches than few. A TPU needs no launches, and by the compiler of a v5e blocks of twice the size would take a
# quarter longer. The cores of a CPU have a cache, and no share.
EVALUATION_SHARES = {"gpu": 1 / 100, "tpu": 1 / 400}
DEFAULT_MEMORY = 16e9  # bytes of a device that does not say
LOCAL = "local"


@dataclass(frozen=True)
class Chip:
    """A GPU as its compiler has to know it.

    Attributes:
        cores: multiprocessors.
        units: of float32 on each.
        clock: Hz.
        cache: bytes, of the second level.
        capability: of CUDA, such as (9, 0).
        memory: bytes.
        bandwidth: bytes/s.
    """

    cores: int
    units: int
    clock: float
    cache: int
    capability: tuple[int, int]
    memory: float
    bandwidth: float


@dataclass(frozen=True)
class DeviceSpec:
    """What a plan has to know of a device.

    Attributes:
        name: as given to `--device-kind`.
        platform: "cpu", "gpu" or "tpu".
        memory: bytes that JAX may use.
        speed: for the simulation, finer than what packing assumes of the platform.
        source: of the figures, in words.
        products: FLOP/s by `Precision.products`, where they are not those of the speed.
        clock: of a TPU, Hz.
        host_shape: of a TPU, how the chips of one host are connected.
        chip: of a GPU.
    """

    name: str
    platform: str
    memory: float
    speed: DeviceSpeed
    source: str
    products: Mapping[str, float] = field(default_factory=dict, hash=False)
    clock: float = 0.0
    host_shape: tuple[int, ...] = ()
    chip: Chip | None = None

    @property
    def evaluation_bytes(self) -> float:
        """Bytes that the largest array may take when all lanes are evaluated side by side."""
        return (
            self.memory * EVALUATION_SHARES[self.platform] if self.platform in EVALUATION_SHARES else EVALUATION_BYTES
        )

    def speed_in(self, precision: str) -> DeviceSpeed:
        """Return its speed where models compute in a precision."""
        return replace(self.speed, products=self.products.get(PRECISIONS[precision].products, self.speed.products))


Figures = tuple[float, float, float]  # FLOP/s of products of float32, TF32 and bfloat16


def _public(name: str, platform: str, *, products: Figures, memory: float, bandwidth: float) -> DeviceSpec:
    """Return a spec by its vendor's figures: FLOP/s, bytes, bytes/s."""
    float32, tf32, bfloat16 = (PRODUCTS_SHARE * figure for figure in products)
    speed = replace(SPEEDS[platform], products=float32, bandwidth=BANDWIDTH_SHARE * bandwidth)
    usable = memory * (GPU_MEMORY_SHARE if platform == "gpu" else 1)
    faster = {"tensorfloat32": tf32, "bfloat16": bfloat16}
    return DeviceSpec(name, platform, usable, speed, "estimated from public figures", faster)


def _gpu(name: str, chip: Chip, *, products: Figures) -> DeviceSpec:
    return replace(_public(name, "gpu", products=products, memory=chip.memory, bandwidth=chip.bandwidth), chip=chip)


def _tpu(
    name: str, *, products: float, memory: float, bandwidth: float, clock: float, host_shape: tuple[int, ...]
) -> DeviceSpec:
    """Return a spec of a TPU, which multiplies bfloat16: float32 in six passes, for TF32 in three."""
    figures = products / 6, products / 3, products
    spec = _public(name, "tpu", products=figures, memory=memory, bandwidth=bandwidth)
    return replace(spec, clock=clock, host_shape=host_shape)


# Products: the vendor's dense figures, without the sparsity that datasheets double them by; the T4 computes all in
# float32. Sources: the datasheets of NVIDIA A100 (SXM), H100 (SXM), H200 (SXM), L4 and T4, and for multiprocessors,
# clocks and caches the white papers on Turing (2018), A100 (2020), H100 (2022) and Ada (2022);
# cloud.google.com/tpu/docs/v5e, v5p and v6e. Clocks of TPUs follow from the products, each matrix unit of 128 x 128
# doing two FLOPs a cycle for each number: 197e12 of 4 units of a v5e, 459e12 of 8 units of a v5p. That of a v6e is not
# published and does not follow; it is taken for that of a v5p.
_AMPERE, _HOPPER = (19.5e12, 156e12, 312e12), (67e12, 494.7e12, 989.4e12)
_A100 = Chip(108, 64, 1.41e9, 40 << 20, (8, 0), memory=80e9, bandwidth=2.039e12)
_H100 = Chip(132, 128, 1.98e9, 50 << 20, (9, 0), memory=80e9, bandwidth=3.35e12)
_H200 = replace(_H100, memory=141e9, bandwidth=4.8e12)
_L4 = Chip(58, 128, 2.04e9, 48 << 20, (8, 9), memory=24e9, bandwidth=3e11)
_T4 = Chip(40, 64, 1.59e9, 4 << 20, (7, 5), memory=16e9, bandwidth=3.2e11)
# By compute capability, KiB of shared memory of a multiprocessor and of a block, and threads of a multiprocessor: the
# technical specifications in NVIDIA's CUDA programming guide.
CAPABILITIES = {(7, 5): (64, 64, 1024), (8, 0): (164, 163, 2048), (8, 9): (100, 99, 1536), (9, 0): (228, 227, 2048)}
_PUBLIC = (
    _gpu("a100-40", replace(_A100, memory=40e9, bandwidth=1.555e12), products=_AMPERE),
    _gpu("a100-80", _A100, products=_AMPERE),
    _gpu("h100", _H100, products=_HOPPER),
    _gpu("h200", _H200, products=_HOPPER),
    _gpu("l4", _L4, products=(30.3e12, 60e12, 121e12)),
    _gpu("t4", _T4, products=(8.1e12, 8.1e12, 8.1e12)),
    _tpu("v5e", products=197e12, memory=16e9, bandwidth=8.19e11, clock=1.5e9, host_shape=(2, 2)),
    _tpu("v5p", products=459e12, memory=95e9, bandwidth=2.765e12, clock=1.75e9, host_shape=(2, 2, 1)),
    _tpu("v6e", products=918e12, memory=32e9, bandwidth=1.64e12, clock=1.75e9, host_shape=(2, 2)),
)
PUBLIC_SPECS = {spec.name: spec for spec in _PUBLIC}


SHORT_NAMES = {"a100": "a100-80"}


def device_spec_named(name: str) -> DeviceSpec:
    """Return a device's spec by its name, "local" for the devices of this machine.

    Raises:
        SweepError: there is no such device; the sentence names the nearest.
    """
    full = SHORT_NAMES.get(name.lower(), name.lower())
    if full == LOCAL:
        return local_spec()
    if full not in PUBLIC_SPECS:
        raise SweepError(f'--device-kind: "{name}" is unknown; {nearest(full, (*PUBLIC_SPECS, LOCAL))}')
    return PUBLIC_SPECS[full]


def devices_named(kind: str) -> tuple[DeviceSpec, tuple[int, ...]]:
    """Return a spec, and how its devices are connected: a TPU's topology, the number of GPUs, or () if it is not said.

    Args:
        kind: a name, and after a colon the shape if there is one, such as "v5e", "v5e:4x4" or "h200:8".

    Raises:
        SweepError: there is no such device, or what stands after the colon is no shape of such devices.
    """
    name, colon, written = kind.partition(":")
    spec = device_spec_named(name)
    if not colon:
        return spec, ()
    if spec.name == LOCAL:
        raise SweepError(f'--device-kind {kind}: the devices of this machine have no shape to choose; write "{LOCAL}"')
    shape = tuple(int(size) if size.isdecimal() and len(size) < 5 else 0 for size in written.lower().split("x"))
    if 0 in shape or len(shape) != max(1, len(spec.host_shape)):
        expected = (
            f"a topology such as {name}:{'x'.join(map(str, spec.host_shape))}" if spec.host_shape else f"{name}:8"
        )
        raise SweepError(f"--device-kind {kind}: expected {expected}")
    return spec, shape


def spec_of_kind(kind: str) -> DeviceSpec | None:
    """Return the public spec of devices that JAX calls so, such as "NVIDIA H200" or "TPU v5 lite"; None if unknown."""
    words = kind.lower().replace("-", " ").split()
    if words[:1] == ["tpu"]:
        name = "".join(words[1:]).replace("lite", "e")
        return PUBLIC_SPECS.get("v5p" if name == "v5" else name)
    if "mig" in words:  # a part of a GPU
        return None
    found = next((name for name in ("h200", "h100", "a100", "l4", "t4") if name in words), None)
    if found == "a100":
        found = "a100-40" if "40gb" in words else "a100-80"
    return None if found is None else PUBLIC_SPECS[found]


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
