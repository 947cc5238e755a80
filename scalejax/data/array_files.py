"""Arrays in files of NumPy as examples: .npz archives and .npy arrays."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from scalejax.data.examples import Examples, Options, fault, from_arrays, from_mapping
from scalejax.text import first_line


def read_npz(path: Path, options: Options, place: str) -> Examples:
    """Read an archive: x and y, or inputs and targets, or train_x, train_y, test_x ...

    Raises:
        SpecError: it cannot be read, or holds no examples.
    """
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if not hasattr(loaded, "files"):
                raise ValueError("it holds one array, as a .npy file does")
            with loaded as archive:
                found = {name: archive[name] for name in archive.files}
    except Exception as error:
        raise _unreadable(place, ".npz", error) from None
    return from_mapping(found, options, place)


def read_npy(path: Path, options: Options, place: str) -> Examples:
    """Read the inputs from one file and the targets from another.

    Raises:
        SpecError: one of them cannot be read, or they do not fit each other.
    """
    if options.targets is None:
        raise fault(place, 'a .npy file holds the inputs alone; name that of the targets, targets = "y.npy"', "targets")
    targets = Path(options.targets)
    return from_arrays(_array(path, place), _array(targets, str(targets)), place, names=("inputs", str(targets)))


def _array(path: Path, place: str) -> np.ndarray:
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(found, np.ndarray):
            found.close()
            raise ValueError("it is an archive, as a .npz file is")
        return found
    except OSError as error:
        raise fault(place, f"cannot be read ({error.strerror or error})") from None
    except Exception as error:
        raise _unreadable(place, ".npy", error) from None


def _unreadable(place: str, kind: str, error: Exception) -> Exception:
    """Say in one sentence why NumPy could not read a file."""
    reason = first_line(error)
    if "allow_pickle" in reason:
        reason = "it holds Python objects; save arrays of numbers or texts"
    elif isinstance(error, zipfile.BadZipFile | EOFError | MemoryError | KeyError):
        reason = "it is damaged, or not complete"
    return fault(place, f"not a {kind} file that NumPy can read: {reason}")
