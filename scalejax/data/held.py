"""Sources of examples that are in memory as soon as anything is asked of them."""

import abc
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np

from scalejax.data.encoding import Encoding
from scalejax.data.examples import Examples, Options
from scalejax.data.in_memory import InMemory
from scalejax.data.source import Facts, Split


@dataclass(frozen=True, kw_only=True)
class Held(abc.ABC):
    """Examples of the user's own; where they come from is part of no id.

    Attributes:
        options: what was said of them.
        task: "classification" or "regression", as which their targets are read; None: as they are.
    """

    name: ClassVar[str] = InMemory.name
    options: Options
    task: str | None = None

    @abc.abstractmethod
    def held(self) -> InMemory:
        """Return the data set itself, its targets read for the task."""

    def for_task(self, task: str | None) -> Self:
        """Return the same data, their targets read as a task needs them."""
        return replace(self, task=task)

    def facts(self) -> Facts:
        """Describe them."""
        return self.held().facts()

    def settled(self, seed: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes that are possible."""
        return self.held().settled(seed, sizes)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Divide them."""
        return self.held().splits(seed, sizes)

    def encoded(self, seed: int, sizes: Mapping[str, int]) -> Encoding:
        """Return what they were before they were read."""
        return self.held().encoded(seed, sizes)

    def test_differs(self, seed: int, sizes: Mapping[str, int]) -> bool:
        """Say whether there are two test targets that differ."""
        return self.held().test_differs(seed, sizes)

    def notes(self, seed: int, sizes: Mapping[str, int], smallest: int) -> tuple[str, ...]:
        """Say what is to be known of them."""
        return self.held().notes(seed, sizes, smallest)


@dataclass(frozen=True)
class Given(Held):
    """Examples that were read from an object; equal to others of the same content and options."""

    examples: Examples = field(compare=False, repr=False)
    sha256: str

    @classmethod
    def of(cls, examples: Examples, options: Options) -> "Given":
        """Make the source."""
        digest = hashlib.sha256(examples.target.encode())
        for array in (examples.inputs, _plain(examples.targets), examples.groups, examples.parts):
            if array is not None:
                digest.update(f"{array.dtype} {array.shape} ".encode())
                digest.update(np.ascontiguousarray(array).data if array.dtype.kind != "U" else array.tobytes())
        return cls(examples, digest.hexdigest(), options=options)

    def held(self) -> InMemory:
        """Return the data set itself, made once."""
        return self._decided

    @functools.cached_property
    def _decided(self) -> InMemory:
        return self.examples.decided(self.task, self.options)


def _plain(targets: np.ndarray) -> np.ndarray:
    """Return targets in the one type of their kind, for the same numbers are the same targets in any."""
    if targets.dtype.kind in "bi" or (targets.dtype.kind == "u" and targets.dtype.itemsize < 8):
        return targets.astype(np.int64)
    return targets.astype(np.float64) if targets.dtype.kind == "f" else targets
