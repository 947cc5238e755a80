"""The matrix-multiply peak of the devices here, where it is known without measuring anything."""

import hashlib
import json
from pathlib import Path

import jax

from scalejax.execute.devices import device_kind, versions
from scalejax.files import cache_directory, write_atomically
from scalejax.planning.device_specs import PRODUCTS_SHARE, spec_of_kind

FLOAT32 = "float32"  # the precision in which a benchmark multiplies


def known_peak(devices: int, *, precision: str) -> float | None:
    """Return the FLOP/s of matrix products on so many devices of the kind here together, or None.

    It is what `scalejax bench` has last measured on this machine, or else the vendor's figure of an accelerator.

    Args:
        devices: how many.
        precision: as of a sweep; a benchmark knows that of float32.
    """
    if precision == FLOAT32 and (measured := _remembered()) is not None:
        return devices * measured
    spec = spec_of_kind(device_kind())
    return None if spec is None else devices * spec.speed_in(precision).products / PRODUCTS_SHARE


def remember_peak(flops: float) -> None:
    """Keep what a benchmark has measured, in FLOP/s of one device."""
    write_atomically(_path(), json.dumps({"peak": flops}))


def _remembered() -> float | None:
    try:
        return float(json.loads(_path().read_text())["peak"])
    except (OSError, ValueError, TypeError, KeyError):
        return None  # never measured, or damaged


def _path() -> Path:
    content = [device_kind(), len(jax.local_devices()), versions()["jaxlib"]]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]
    return cache_directory("calibrations") / f"peak-{digest}.json"
