"""The rules that values of a sweep are held to, and the sentences that say what is wrong with one.

The ground on which `data` and `spec` declare their fields.
"""

import difflib
import functools
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from scalejax.errors import SweepError

Knob = int | float | str | bool
Check = Callable[[Any], Any]  # raises SpecError, else returns the value in its final type

TOP_ERROR = r"top([1-9]\d{0,3})_error"  # the metrics of a classification that have a number in their name
LARGEST = 2**31 - 1  # steps, sizes and seeds travel as int32 on the devices
TABLES = "data", "data.features", "train", "train.halving"
HEADERS = {"models": "[[models]]", **{table: f"[{table}]" for table in TABLES}}

_Class = TypeVar("_Class")


class SpecError(SweepError):
    """A `SweepError` that remembers which keys it is about, so that the reader of a file can add the line.

    `table` is "", "models" or one of `TABLES`; `index` the [[models]] table, counted from 0; the
    first of `keys` is named in the sentence, the others share the blame.
    """

    def __init__(self, says: str, *, table: str = "", keys: tuple[str, ...] = (), index: int | None = None):
        self.says, self.table, self.keys, self.index = says, table, keys, index
        super().__init__(f"{self.place}: {says}" if self.place else says)

    @property
    def place(self) -> str:
        """Where the mistake is, for instance "[train] steps" or "[[models]] index 1 width"."""
        key = shown_name(self.keys[0]) if self.keys else ""
        dotted = ".".join(part for part in (self.table, key) if part)
        if dotted in HEADERS and "." not in key and self.index is None:
            return HEADERS[dotted]
        index = "" if self.index is None else f"index {self.index}"
        return " ".join(part for part in (HEADERS.get(self.table, ""), index, key) if part)


def shown(value: object) -> str:
    """Describe a found value on one short line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a table"
    if not isinstance(value, str | int | float | list | tuple):
        return f"a value of type {type(value).__name__}"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits; arrays within arrays without end
        return "a value too large to show"
    return text if len(text) <= 60 else f"{text[:56]} ..."


def shown_name(name: str) -> str:
    """Write a name as it is, or quoted and shortened where it would not fit into a sentence."""
    return name if name.isprintable() and name and len(name) <= 60 else shown(name)


def nearest(name: str, valid: Iterable[str], *, sure: bool = False) -> str:
    """Say which valid name was probably meant, or which ones there are, as a clause that ends the sentence.

    With `sure` the nearest is named however far it is.
    """
    names = list(valid)
    close = difflib.get_close_matches(name[:100], names, n=1, cutoff=0.0 if sure else 0.6)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"


@dataclass(frozen=True)
class Rule:
    """What one value must be: a type, an interval or some choices; with `grid`, one or several distinct such values.

    A grid that is `ascending` is a list in which the order means something. A number that programs get in `float32`
    keeps to the interval as that too: 0.99999999 is 1 there.
    """

    kind: type[int] | type[float] | type[str]
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    grid: bool = False
    ascending: bool = False
    float32: bool = False

    @property
    def beside(self) -> dict[str, Check]:
        """The metadata of the field that it rules: `field(metadata=Rule(int, at_least=1).beside)`; see `strict`."""
        return {"rule": self}

    @property
    def expected(self) -> str:
        """Describe the values allowed, for instance "a number > 0"."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        bounds = ((">=", self.at_least), (">", self.above), ("<=", self.at_most), ("<", self.below))
        limits = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if bound is not None)
        noun = {int: "a whole number", float: "a finite number", str: "a non-empty text on one line"}[self.kind]
        several = f", or {'an ascending' if self.ascending else 'a'} list of such values"
        return f"{noun} {limits}".rstrip() + (several if self.grid else "")

    def __call__(self, value: Any) -> Any:
        """Return `value` as an int, a float, a str or a tuple of them, or raise `SpecError`."""
        if not self.grid:
            return self._one(plain(value))
        grid = distinct([self._one(plain(item)) for item in listed(value)])
        if self.ascending and list(grid) != sorted(grid):
            raise SpecError(f"expected the smallest first, found {shown(list(grid))}")
        return grid

    def _one(self, value: Any) -> Any:
        if self.kind is str:
            if not isinstance(value, str) or not value or not value.isprintable():
                raise SpecError(f"expected {self.expected}, found {shown(value)}")
            if self.choices and value not in self.choices:
                raise SpecError(f"{shown(value)} is unknown; {nearest(value, self.choices)}")
            return value
        number = as_number(value, self.kind)
        if number is None or not self._inside(number):
            raise SpecError(f"expected {self.expected}, found {shown(value)}")
        if self.float32 and not (self._inside(rounded := as_float32(number)) and math.isfinite(rounded)):
            raise SpecError(f"expected {self.expected}, found {shown(value)}, which is {rounded:g} in float32")
        if self.kind is int and number > LARGEST:
            raise SpecError(f"expected at most {LARGEST}, found {shown(value)}")
        return number

    def _inside(self, number: float) -> bool:
        return (
            (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def plain(value: Any) -> Any:
    """Turn NumPy and JAX numbers and arrays into Python's."""
    return value.tolist() if hasattr(value, "tolist") else value


def listed(value: Any) -> tuple[Any, ...]:
    """Return the values of a grid, of which a scalar is the only one."""
    value = plain(value)
    return tuple(value) if isinstance(value, list | tuple | range) else (value,)


def as_number(value: Any, kind: type) -> Any:
    """Return `value` as a finite number of `kind`, or None."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return None
    try:
        number = kind(value)
    except OverflowError:  # a whole number beyond the range of floats
        return None
    if kind is int:
        return number
    return number + 0.0 if math.isfinite(number) else None  # + 0.0 makes -0.0 the same content as 0.0


def as_float32(number: float) -> float:
    """Return the float32 number that is nearest, infinity beyond the largest."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except OverflowError:
        return math.copysign(math.inf, number)


def distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    """Return a grid's values as a tuple, or raise `SpecError` if there is none or one comes twice."""
    grid = tuple(values)
    if not grid:
        raise SpecError("expected at least one value, found an empty list")
    seen = set()
    for value in grid:
        if identity(value) in seen:
            raise SpecError(f"{shown(value)} is given twice; expected distinct values")
        seen.add(identity(value))
    return grid


def identity(value: Knob) -> tuple[bool, Knob]:
    """Return what distinguishes two values of a grid: in Python True == 1, here they differ."""
    return isinstance(value, bool), value


def true_or_false(value: Any) -> bool:
    """Return a truth value, or raise `SpecError`."""
    if not isinstance(value, bool):
        raise SpecError(f"expected true or false, found {shown(value)}")
    return value


def as_knob(value: Any) -> Knob:
    """Return one value of a size knob, or raise `SpecError`."""
    value = plain(value)
    if isinstance(value, bool) or (isinstance(value, str) and value and value.isprintable()):
        return value
    number = as_number(value, int if isinstance(value, int) else float)
    if number is None or (isinstance(number, int) and abs(number) > LARGEST):
        limits = f"a whole number up to {LARGEST}, a finite number, a non-empty text or a boolean"
        raise SpecError(f"expected {limits}, or a list of such values, found {shown(value)}")
    return number


def strict(table: str, *, extra: str | None = None) -> Callable[[type[_Class]], type[_Class]]:
    """Make a dataclass hold the names and the values that it is given against the rules beside its fields.

    Args:
        table: of the sweep file, for the sentences of `SpecError`.
        extra: the field that takes names that no field has, as a mapping; None: there are none.
    """

    def decorate(cls: type[_Class]) -> type[_Class]:
        store: Callable[..., None] = cls.__init__
        known = {each.name: each for each in fields(cls)}  # pyright: ignore[reportArgumentType]

        def settle(name: str, value: Any) -> Any:
            if value is None and known[name].default is None:
                return None
            try:
                return known[name].metadata["rule"](value)
            except SpecError as fault:
                raise SpecError(fault.says, table=table, keys=(name,)) from None

        @functools.wraps(store)
        def init(self: Any, /, *values: Any, **named: Any) -> None:
            if len(values) > len(known) or known.keys() & set(list(known)[: len(values)]) & named.keys():
                raise SpecError(f"expected at most one value for each of {', '.join(known)}", table=table)
            given = {**dict(zip(known, values, strict=False)), **named}
            if extra is not None:
                more = {name: given.pop(name) for name in [*given] if name not in known}
                twice = more.keys() & given.get(extra, {}).keys()
                if twice:
                    raise SpecError(f"given twice, as a keyword and in {extra}", table=table, keys=(min(twice),))
                given[extra] = {**given.get(extra, {}), **more}
            for name in given:
                if name not in known:
                    raise SpecError(f"unknown key; {nearest(name, known)}", table=table, keys=(name,))
            for name, each in known.items():
                if each.default is MISSING and each.default_factory is MISSING and name not in given:
                    expected = getattr(each.metadata["rule"], "expected", "")
                    message = "needed but missing" + (f"; expected {expected}" if expected else "")
                    raise SpecError(message, table=table, keys=(name,))
            store(self, **{name: settle(name, value) for name, value in given.items()})

        cls.__init__ = init  # pyright: ignore[reportAttributeAccessIssue]
        return cls

    return decorate


def beyond(places: int, above: Any, equal: Any) -> Any:
    """Return the chance that a class is not among the first `places`, float [n].

    Where several are equal, each order of them is as likely: an answer without information has the error of guessing.

    Args:
        places: how many count as right.
        above: how many classes come before it, [n].
        equal: how many are equal to it, itself among them, [n].
    """
    return 1.0 - ((places - above) / equal).clip(0.0, 1.0)
