"""What is known of the padding of an array while a program is followed: the values of the proof's abstract run.

Two programs are followed side by side, that of a small model and that of a large one. An array of the large program
holds the small one's in its corner; along each axis that is longer, the entries beyond the corner are the padding.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np


class Unknown(enum.Enum):
    """What is known of entries that are no single known number, from much to nothing."""

    SHARED = "the same along the padded axis as in the corner"
    FINITE = "finite wherever real values are"
    POSITION = "finite, but counted from positions that the small program does not have"
    ANY = "any number, NaN and infinity included"


Fill = np.generic | Unknown  # a number that all entries of a region are, or how much is known of them
ZERO = np.float32(0)
ORDER = list(Unknown)


def is_zero(fill: Fill | None) -> bool:
    """Say whether a region is known to be zero."""
    return isinstance(fill, np.generic) and not fill


def is_finite(fill: Fill | None) -> bool:
    """Say whether no entry of a region is NaN or infinite."""
    return bool(np.isfinite(fill)) if isinstance(fill, np.generic) else fill is not Unknown.ANY


def join(one: Fill, other: Fill) -> Fill:
    """Return what is known of entries that are of the one or of the other region."""
    if one is other or (isinstance(one, np.generic) and isinstance(other, np.generic) and _equal(one, other)):
        return one
    return weakest(one, other)


def weakest(*fills: Fill) -> Unknown:
    """Return what is known of numbers made of all these without division by any: finite if all are."""
    worst = 1
    for fill in fills:
        if isinstance(fill, Unknown):
            worst = max(worst, ORDER.index(fill))
        elif not np.isfinite(fill):
            return Unknown.ANY
    return ORDER[worst]


@dataclass(frozen=True)
class Value:
    """An array of the large program, beside that of the small one.

    Attributes:
        small: shape in the small program.
        large: shape in the large one, of equal rank.
        fill: of each axis, what the padding along it holds; None where the axis is not padded.
        whole: what all entries are, if that is known.
        wrong: why the corner is not the small program's array; empty if it is.
        origin: the equation that first put anything but zero into the padding.
        alias: a token of the array that this one equals entry for entry.
        made_up: whether even its corner is of a step that the small program does not take.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]
    fill: tuple[Fill | None, ...]
    whole: Fill = Unknown.FINITE
    wrong: str = ""
    origin: str = ""
    alias: object = None
    made_up: bool = False

    @property
    def padded(self) -> bool:
        """Whether any axis is."""
        return self.small != self.large

    @property
    def zero_padded(self) -> bool:
        """Whether the padding is zero along every padded axis."""
        return all(fill is None or is_zero(fill) for fill in self.fill)

    @property
    def finite(self) -> bool:
        """Whether no entry is NaN or infinite, padding included."""
        return is_finite(self.whole) and all(fill is None or is_finite(fill) for fill in self.fill)

    def region(self, axis: int | None) -> Fill:
        """Return what is known along an axis, or (None) everywhere; a scalar is the same along any axis."""
        if isinstance(self.whole, np.generic) or axis is None:
            return self.whole
        if not self.large:
            return Unknown.SHARED if self.whole is Unknown.FINITE else self.whole
        found = self.fill[axis]
        return self.whole if found is None else found


def value(
    small: Sequence[int],
    large: Sequence[int],
    fills: Callable[[int], Fill],
    *,
    whole: Fill = Unknown.FINITE,
    wrong: str = "",
    origin: str = "",
    alias: object = None,
    made_up: bool = False,
) -> Value:
    """Return a value whose padding along each padded axis is what `fills` says of it."""
    known = isinstance(whole, np.generic)
    fill = tuple(
        None if have == want else whole if known else fills(axis)
        for axis, (have, want) in enumerate(zip(small, large, strict=True))
    )
    return Value(tuple(small), tuple(large), fill, whole, wrong, origin, alias, made_up)


def unknown(small: Sequence[int], large: Sequence[int], *, wrong: str) -> Value:
    """Return a value of which nothing is known but that it is wrong."""
    return value(small, large, lambda _: Unknown.ANY, whole=Unknown.ANY, wrong=wrong)


def joined(one: Value, other: Value) -> Value:
    """Return a value that is the one or the other."""
    fill = tuple(None if a is None or b is None else join(a, b) for a, b in zip(one.fill, other.fill, strict=True))
    return replace(
        one,
        fill=fill,
        whole=join(one.whole, other.whole),
        wrong=one.wrong or other.wrong,
        origin=one.origin or other.origin,
        alias=one.alias if one.alias is other.alias else None,
        made_up=one.made_up or other.made_up,
    )


def _equal(one: np.generic, other: np.generic) -> bool:
    return bool(one == other) or (one != one and other != other)


# ---- arithmetic, entry by entry ----

Arithmetic = Callable[..., Any]

# The same number on every device, whatever the operands.
EXACT: dict[str, Arithmetic] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": lambda a, b: np.divide(a, b) if jnp.issubdtype(np.result_type(a), jnp.inexact) else a // b if b else a,
    "rem": np.fmod,
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "square": np.square,
    "is_finite": np.isfinite,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq_to": np.equal,
    "lt_to": np.less,
    "le_to": np.less_equal,
    "not": np.logical_not,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "real": np.real,
    "imag": np.imag,
    "stop_gradient": lambda x: x,
    "reduce_precision": lambda x: x,
}
# Rounded by each device in its own way: of these only the value at zero is known to the last bit.
AT_ZERO: dict[str, float] = {
    **dict.fromkeys(("expm1", "log1p", "sqrt", "cbrt", "tanh", "sinh", "sin", "tan", "asin", "atan"), 0.0),
    **dict.fromkeys(("asinh", "atanh", "erf", "erf_inv"), 0.0),
    **dict.fromkeys(("exp", "exp2", "cosh", "cos", "erfc"), 1.0),
    "logistic": 0.5,
    "log": -np.inf,
    "rsqrt": np.inf,
    "acos": np.pi / 2,
}
OTHERS = {"pow", "integer_pow", "select_n", "convert_element_type", "atan2", "nextafter", "lgamma", "digamma"}
BITWISE = {"shift_left", "shift_right_logical", "shift_right_arithmetic", "bitcast_convert_type", "population_count"}
ELEMENTWISE = EXACT.keys() | AT_ZERO.keys() | OTHERS | BITWISE
# Defined everywhere: of finite numbers they make finite ones, however large those are.
TOTAL = EXACT.keys() - {"div", "rem"} | {
    "tanh",
    "sin",
    "cos",
    "logistic",
    "erf",
    "erfc",
    "atan",
    "convert_element_type",
}
INFINITE_IDENTITIES = {"max": -np.inf, "min": np.inf}
BOOLEAN_ABSORBING = {"and": False, "or": True}


def combine(primitive: str, parameters: dict[str, Any], fills: Sequence[Fill], *, integers: bool) -> Fill:
    """Return what is known of the result of a primitive that works entry by entry.

    Args:
        primitive: its name, one of ELEMENTWISE.
        parameters: of the equation.
        fills: of its operands, in one region.
        integers: whether the operands are integers, of which `not`, `and`, `or` and `xor` work on bits.
    """
    known = [fill for fill in fills if isinstance(fill, np.generic)]
    if primitive == "select_n":
        if isinstance(fills[0], np.generic):
            return fills[1 + int(fills[0])]
        return any_of(fills[1:])
    if len(known) == len(fills):
        found = _evaluated(primitive, parameters, known, integers=integers)
        if found is not None:
            return found
    if primitive == "mul" and any(map(is_zero, fills)):
        return next(fill for fill in fills if is_zero(fill)) if all(map(is_finite, fills)) else Unknown.ANY
    if primitive == "div" and is_zero(fills[0]):
        divides = fills[1] in (Unknown.SHARED, Unknown.FINITE) or (known[1:] and np.isfinite(known[1]) and known[1])
        return fills[0] if divides else Unknown.ANY
    if primitive in INFINITE_IDENTITIES and len(known) == 1 and known[0] == INFINITE_IDENTITIES[primitive]:
        return next(fill for fill in fills if isinstance(fill, Unknown))
    absorbing = BOOLEAN_ABSORBING.get(primitive)
    if absorbing is not None and not integers and any(fill == np.bool_(absorbing) for fill in known):
        return np.bool_(absorbing)
    if Unknown.ANY in fills or not all(map(is_finite, known)):
        return Unknown.ANY
    if Unknown.POSITION in fills:
        return Unknown.POSITION if primitive in TOTAL or primitive in BITWISE else Unknown.ANY
    if primitive == "div" and is_zero(fills[1]):
        return Unknown.ANY
    return Unknown.FINITE


def any_of(fills: Sequence[Fill]) -> Fill:
    """Return what is known of entries that are of any of these regions."""
    found = fills[0]
    for fill in fills[1:]:
        found = join(found, fill)
    return found


def _evaluated(
    primitive: str, parameters: dict[str, Any], numbers: Sequence[np.generic], *, integers: bool
) -> np.generic | None:
    """Return the result for known numbers, None where devices may round it each in their way."""
    with np.errstate(all="ignore"):
        if primitive == "convert_element_type":
            return _scalar(np.asarray(numbers[0]).astype(parameters["new_dtype"]))
        if primitive == "integer_pow":
            return _scalar(np.power(np.asarray(numbers[0], np.float64), parameters["y"]).astype(numbers[0].dtype))
        if primitive == "pow" and is_zero(numbers[0]):
            return _scalar(np.power(np.asarray(numbers[0]), np.asarray(numbers[1])))
        if integers and primitive in ("and", "or", "xor", "not"):
            return None
        if primitive in EXACT:
            return _scalar(np.asarray(EXACT[primitive](*numbers)))
        if primitive in AT_ZERO and is_zero(numbers[0]):
            return _scalar(np.asarray(AT_ZERO[primitive], numbers[0].dtype))
    return None


def _scalar(array: np.ndarray) -> np.generic:
    return array.reshape(-1)[0]
