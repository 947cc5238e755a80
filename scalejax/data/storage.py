"""Arrays kept on disk between runs: one safetensors file each, checked by its own SHA-256, written atomically."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from scalejax.files import replacing

TYPES = {
    "U8": np.uint8,
    "U16": np.uint16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
}  # in a safetensors header


class _DamagedError(Exception):
    """The file is there, but it is not what was written."""


def recall(path: Path, make: Callable[[], Mapping[str, np.ndarray]], *, mapped: bool = False) -> dict[str, np.ndarray]:
    """Return the arrays kept in `path`; where it is missing or damaged, make them and keep them.

    Two processes may do so at once: each writes a file of its own and renames it, and both files hold the same arrays.

    Args:
        path: the cache file.
        make: makes the arrays. What it returns must be determined by the file's name.
        mapped: memory-map the arrays of an existing file instead of reading them.

    Returns:
        The arrays by name. Treat them as read-only: mapped ones are.

    Warns:
        UserWarning: the file was damaged (and is made again), or could not be written (and is made again next time).
    """
    try:
        return _read(path, mapped=mapped)
    except FileNotFoundError:
        pass
    except (_DamagedError, SafetensorError, OSError, ValueError, KeyError) as error:
        warnings.warn(f"The cached data in {path} are damaged ({error}); they are made again.", stacklevel=2)
    arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
    try:
        with replacing(path) as partial:
            save_file(arrays, partial, metadata={"sha256": _digest(arrays)})
    except OSError as error:
        warnings.warn(
            f"The data could not be kept in {path} ({error}); they are made again next time, unless you free space "
            "or set SCALEJAX_CACHE to a folder that can be written.",
            stacklevel=2,
        )
    return arrays


def _read(path: Path, *, mapped: bool) -> dict[str, np.ndarray]:
    """Read or map the arrays of a file, after checking every byte of them."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= path.stat().st_size - 8:
            raise _DamagedError("its header cannot be read")
        header = json.loads(file.read(length)) if mapped else {}
    with safe_open(path, framework="numpy") as opened:
        expected = (opened.metadata() or {}).get("sha256")
        if mapped:  # safetensors itself copies what it is asked for
            begin = 8 + length
            arrays: dict[str, np.ndarray] = {
                name: np.memmap(
                    path, TYPES[entry["dtype"]], "r", begin + entry["data_offsets"][0], tuple(entry["shape"])
                )
                for name, entry in header.items()
                if name != "__metadata__"
            }
        else:
            arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    if _digest(arrays) != expected:
        raise _DamagedError("its checksum does not match")
    return arrays


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return digest.hexdigest()
