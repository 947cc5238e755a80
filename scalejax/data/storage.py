"""Arrays kept on disk between runs: one file each, checked by its own SHA-256, written atomically.

A file is one line of JSON (the checksum of the payload; name, type and shape of each array), padded with spaces to
`_HEADER_BYTES`, then the arrays' bytes one after the other. Header and payload are in one file, so that there is no
moment at which one is there without the other.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_HEADER_BYTES = 4096  # a page, so that mapped arrays start aligned
_STALE_SECONDS = 3600.0


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
    except (_DamagedError, OSError) as error:
        warnings.warn(f"The cached data in {path} are damaged ({error}); they are made again.", stacklevel=2)
    arrays = {name: np.ascontiguousarray(array) for name, array in make().items()}
    try:
        _write(path, arrays)
    except OSError as error:
        warnings.warn(
            f"The data could not be kept in {path} ({error}); they are made again next time, unless you free space "
            "or set SCALEJAX_CACHE to a folder that can be written.",
            stacklevel=2,
        )
    return arrays


def _write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a complete file under a temporary name in the same folder, then give it its name."""
    digest = hashlib.sha256()
    for array in arrays.values():
        digest.update(_bytes_of(array))
    entries = [{"name": name, "dtype": array.dtype.str, "shape": array.shape} for name, array in arrays.items()]
    header = json.dumps({"sha256": digest.hexdigest(), "arrays": entries}).encode()
    if len(header) >= _HEADER_BYTES:
        raise ValueError(f"{len(arrays)} arrays are too many for the header of one cache file")
    for stale in path.parent.glob(f"{path.name}*.part"):  # of a process that was killed while it wrote
        with contextlib.suppress(OSError):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:
                stale.unlink()
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(header.ljust(_HEADER_BYTES - 1) + b"\n")
            for array in arrays.values():
                file.write(_bytes_of(array))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read(path: Path, *, mapped: bool) -> dict[str, np.ndarray]:
    """Read or map the arrays of a file, after checking every byte of them."""
    with path.open("rb") as file:
        entries, expected = _parse_header(file.read(_HEADER_BYTES))
        sizes = [int(np.prod(shape)) * dtype.itemsize for _, dtype, shape in entries]
        if path.stat().st_size != _HEADER_BYTES + sum(sizes):
            raise _DamagedError("its length is wrong")
        arrays: dict[str, np.ndarray] = {}
        digest = hashlib.sha256()
        offset = _HEADER_BYTES
        for (name, dtype, shape), size in zip(entries, sizes, strict=True):
            if mapped and size:
                arrays[name] = np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
            else:
                arrays[name] = np.fromfile(file, dtype=dtype, count=size // dtype.itemsize).reshape(shape)
            digest.update(_bytes_of(arrays[name]))
            offset += size
            file.seek(offset)
    if digest.hexdigest() != expected:
        raise _DamagedError("its checksum does not match")
    return arrays


def _parse_header(header: bytes) -> tuple[list[tuple[str, np.dtype[Any], tuple[int, ...]]], str]:
    """Return name, type and shape of each array, and the payload's checksum."""
    try:
        fields = json.loads(header)
        entries = [(str(e["name"]), np.dtype(e["dtype"]), tuple(int(n) for n in e["shape"])) for e in fields["arrays"]]
        return entries, str(fields["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise _DamagedError("its header cannot be read") from error


def _bytes_of(array: np.ndarray) -> memoryview:
    """View a contiguous array as bytes, without a copy (an empty one has no such view)."""
    return array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
