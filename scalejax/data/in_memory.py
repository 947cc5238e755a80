"""Arrays of the user's own as a data set: `sx.DataSpec(source=sx.arrays(x, y), fractions=[0.1, 1.0])`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from scalejax.data.source import Facts, Split, cut
from scalejax.errors import SweepError

SHARE = 0.15  # of the examples for validation, and as many for the test, where the sweep does not say


@dataclass(frozen=True)
class InMemory:
    """A data set in two arrays, made and checked by `arrays`; equal to another of the same content."""

    name: ClassVar[str] = "arrays"
    inputs: np.ndarray = field(compare=False, repr=False)  # float32 [n, ...]
    targets: np.ndarray = field(compare=False, repr=False)  # int32 or float32 [n]
    sha256: str  # of content, types and shapes

    def facts(self) -> Facts:
        """Return what is known of them."""
        count = len(self.inputs)
        share = max(1, round(SHARE * count))
        classes = int(self.targets.max()) + 1 if self.targets.dtype == np.int32 else None
        return Facts(
            shape=self.inputs.shape[1:],
            classes=classes,
            examples=count,
            validation_examples=share,
            test_examples=share,
            content={"sha256": self.sha256},
        )

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Cut them into three parts, in an order drawn from the data's seed."""
        order = np.random.default_rng(seed).permutation(len(self.inputs))
        return cut(self.inputs[order], self.targets[order], sizes)


def arrays(x: Any, y: Any) -> InMemory:
    """Make a data set of arrays, for `DataSpec(source=arrays(x, y), ...)`.

    Args:
        x: inputs [n, ...], whatever `np.asarray` takes, a pandas table too; copied as float32.
        y: targets [n]. Integers or booleans are classes, which must be 0, 1, ..., and become int32; floats are numbers
            for a regression, and become float32.

    Returns:
        The source. Unless the sweep says otherwise, 15 % of the examples are for validation and 15 % for the test. The
        fingerprint is a hash of the content, and nothing is copied to the cache on disk.

    Raises:
        SweepError: they are not numbers or not finite, have other lengths or ranks, or the classes are not 0, 1, ...
    """
    inputs, targets = _numbers(x, "x"), _numbers(y, "y")
    if inputs.ndim < 2 or inputs.size == 0:
        message = f"expected at least one example in an array [n, ...], found the shape {list(inputs.shape)}"
        remedy = "; x.reshape(-1, 1) makes examples of one number each" if inputs.ndim == 1 and inputs.size else ""
        raise SweepError(f"arrays(x, y): x: {message}{remedy}")
    if targets.shape != inputs.shape[:1]:
        message = (
            f"expected one target for each of the {len(inputs)} examples of x, found the shape {list(targets.shape)}"
        )
        remedy = "; y.ravel() makes it a list" if targets.size == len(inputs) else ""
        raise SweepError(f"arrays(x, y): y: {message}{remedy}")
    if targets.dtype.kind == "f":
        targets = _float32(targets, "y")
    else:
        found = np.unique(targets)
        if len(found) < 2 or not np.array_equal(found, np.arange(len(found))):
            message = (
                f"expected at least two classes, numbered 0, 1, ..., found {len(found)} from {found[0]} to {found[-1]}"
            )
            remedy = "np.unique(y, return_inverse=True)[1] numbers them, y.astype(float) makes it a regression"
            raise SweepError(f"arrays(x, y): y: {message}; {remedy}")
        targets = targets.astype(np.int32)
    inputs = _float32(inputs, "x")
    digest = hashlib.sha256()
    for array in (inputs, targets):
        digest.update(f"{array.dtype.name} {list(array.shape)} ".encode())
        digest.update(array.data)
        array.flags.writeable = False
    return InMemory(inputs, targets, digest.hexdigest())


def _numbers(value: Any, name: str) -> np.ndarray:
    """Return an array of numbers or booleans; refuse all else."""
    if np.ma.is_masked(value):
        raise SweepError(
            f"arrays(x, y): {name}: expected numbers, found masked ones; fill them in or drop their examples"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors that NumPy cannot read
        reason = str(error).partition("\n")[0]
        raise SweepError(f"arrays(x, y): {name}: NumPy can make no array of it ({reason})") from None
    if array.dtype.kind not in "fiub":
        message = (
            f"expected numbers, found an array of type {array.dtype}; turn texts, dates and gaps into numbers first"
        )
        raise SweepError(f"arrays(x, y): {name}: {message}")
    return array


def _float32(array: np.ndarray, name: str) -> np.ndarray:
    """Return a contiguous copy as float32; refuse what is not finite, or too large for it."""
    with np.errstate(over="ignore"):
        copy = np.array(array, np.float32, order="C")
    if not np.isfinite(copy).all():
        count = np.count_nonzero(~np.isfinite(copy))
        message = f"expected finite numbers, found {count} of {copy.size} that are not, or not as float32"
        raise SweepError(f"arrays(x, y): {name}: {message}; fill them in or drop their examples")
    return copy
