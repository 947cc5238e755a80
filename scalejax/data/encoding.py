"""What columns and targets became when they were read, so that new examples become the same, and answers go back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from scalejax.data.source import Request

Value = str | int | float | bool | None  # as JSON can hold it; None is a missing one


@dataclass(frozen=True)
class Column:
    """A column of a table that became inputs.

    Attributes:
        name: its name.
        values: those that became one input each, in order; None: it is one input, a number.
    """

    name: str
    values: tuple[Value, ...] | None = None


@dataclass(frozen=True)
class Encoding:
    """How the inputs and targets of a data set follow from what the user has.

    Attributes:
        columns: in the order of their inputs; none: the inputs are arrays.
        classes: what the classes 0, 1, ... are called; None: these numbers, or there are no classes.
        mean, scale: of the targets in their own unit; they were taken out of those that a model learns.
    """

    columns: tuple[Column, ...] = ()
    classes: tuple[Value, ...] | None = None
    mean: float = 0.0
    scale: float = 1.0

    def written(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)

    @classmethod
    def read(cls, says: Mapping[str, Any]) -> "Encoding":
        """Return what was written."""
        columns = (Column(each["name"], _tuple(each["values"])) for each in says["columns"])
        return cls(tuple(columns), _tuple(says["classes"]), says["mean"], says["scale"])


@runtime_checkable
class Encoded(Protocol):
    """A source that knows what its examples were before they were read."""

    def encoded(self, seed: int, sizes: Mapping[str, int]) -> Encoding:
        """Return that; of a standardised target it depends on the training pool, so on these two."""
        ...


def encoding_of(spec: "Request", sizes: Mapping[str, int]) -> Encoding:
    """Return the encoding of the data of a sweep, whose splits have these sizes."""
    source = spec.origin
    return source.encoded(spec.seed, sizes) if isinstance(source, Encoded) else Encoding()


def plain_values(values: Any) -> tuple[Value, ...]:
    """Return values of NumPy or pandas as JSON can hold them; what it cannot hold, such as an interval, as a text."""
    return tuple(
        each if isinstance(each, str | int | float | bool) else str(each) for each in np.asarray(values).tolist()
    )


def _tuple(values: Any) -> tuple[Value, ...] | None:
    return None if values is None else tuple(values)
