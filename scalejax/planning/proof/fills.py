"""What is known of the padding of an array while a program is followed: the values of the proof's abstract run.

Two programs are followed side by side, that of a small model and that of a large one. An array of the large program
holds the small one's in its corner; along each axis that is longer, the entries beyond the corner are the padding.
"""

import enum
import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np


class Unknown(enum.Enum):
    """What is known of entries that are no single known number, from much to nothing."""

    SHARED = "the same along the padded axis as in the corner"
    POSITIVE = "finite and above zero"
    FINITE = "finite"
    POSITION = "finite, but as large as no number of the small program, such as a position beyond its own"
    ANY = "any number, NaN and infinity included"


Fill = np.generic | Unknown  # a number that all entries of a region are, or how much is known of them
ZERO = np.float32(0)
CERTAINTY = list(Unknown)  # from much to nothing


def is_zero(fill: Fill | None) -> bool:
    """Say whether a region is known to be zero."""
    return isinstance(fill, np.generic) and not fill


def is_finite(fill: Fill | None) -> bool:
    """Say whether no entry of a region is NaN or infinite."""
    return bool(np.isfinite(fill)) if isinstance(fill, np.generic) else fill is not Unknown.ANY


def join(one: Fill, other: Fill) -> Fill:
    """Return what is known of entries that are of the one or of the other region."""
    if one is other:
        return one
    numbers = isinstance(one, np.generic) and isinstance(other, np.generic)
    both_nan = numbers and one != one and other != other
    if both_nan or (numbers and one == other):
        return one
    return Unknown.POSITIVE if _above_zero(one) and _above_zero(other) else weakest(one, other)


def weakest(*fills: Fill) -> Unknown:
    """Return what is known of numbers made of all these without division by any: finite if all are."""
    if len(fills) == 1 and fills[0] is Unknown.POSITIVE:
        return Unknown.POSITIVE
    worst = CERTAINTY.index(Unknown.FINITE)
    for fill in fills:
        if isinstance(fill, Unknown):
            worst = max(worst, CERTAINTY.index(fill))
        elif not np.isfinite(fill):
            return Unknown.ANY
    return CERTAINTY[worst]


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
        fill = self.fill[axis]
        return self.whole if fill is None else fill


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


# ---- arithmetic, entry by entry ----

Arithmetic = Callable[..., Any]

# The same number on every device, whatever the operands.
EXACT: dict[str, Arithmetic] = {
    "max": np.maximum,
    "min": np.minimum,
    "neg": np.negative,
    "abs": np.abs,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
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
}
# The same number on every device where nothing is rounded. Where something is, a compiler that contracts a product and
# a sum into one operation, or reorders sums, comes to another last digit.
UNROUNDED: dict[str, Arithmetic] = {
    "add": operator.add,
    "add_any": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "square": lambda x: x * x,
}
# Rounded by each device in its own way: of these only the value at zero is known to the last bit.
AT_ZERO: dict[str, float] = {
    **dict.fromkeys(("expm1", "log1p", "sqrt", "cbrt", "tanh", "sinh", "sin", "tan", "asin", "atan"), 0.0),
    **dict.fromkeys(("asinh", "atanh", "erf", "erf_inv", "reduce_precision", "round"), 0.0),
    **dict.fromkeys(("exp", "exp2", "cosh", "cos", "erfc"), 1.0),
    "logistic": 0.5,
}
# What is known of the value elsewhere is whether it is finite.
ROUNDED: dict[str, Arithmetic] = {
    **{name: getattr(np, name) for name in ("add", "square", "exp", "exp2", "expm1", "log", "log1p", "sqrt", "cbrt")},
    **{name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "atan2": np.arctan2,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "round": np.rint,
    "reduce_precision": lambda x: x,
    "convert_element_type": lambda x: x,
}
OTHERS = {"integer_pow", "select_n", "convert_element_type", "nextafter", "lgamma", "digamma", "rem"}
BITWISE = {"shift_left", "shift_right_logical", "shift_right_arithmetic", "bitcast_convert_type", "population_count"}
ELEMENTWISE = EXACT.keys() | UNROUNDED.keys() | AT_ZERO.keys() | ROUNDED.keys() | OTHERS | BITWISE
# Not defined for all numbers. In the corner they are finite, as in the small program; the padding holds other numbers,
# of which at least the sign has to be known.
PARTIAL = {
    *("div", "rem", "pow", "log", "log1p", "sqrt", "rsqrt", "asin", "acos", "acosh", "atanh", "erf_inv", "tan"),
    *("lgamma", "digamma", "integer_pow", "atan2"),
}
OF_POSITIVE = {"log", "log1p", "sqrt", "rsqrt", "lgamma", "digamma", "integer_pow"}  # defined for all of these
# Of finite numbers they make finite ones, however large those are.
TOTAL = (EXACT.keys() | UNROUNDED.keys()) - {"div"} | {
    *("tanh", "sin", "cos", "logistic", "erf", "erfc", "atan", "convert_element_type", "round", "reduce_precision")
}
LARGE = 50.0  # beyond which an exponential, its powers and its sums may overflow
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
        result = _evaluated(primitive, parameters, known, integers=integers)
        return _finiteness(primitive, parameters, known) if result is None else result
    if primitive == "mul" and any(map(is_zero, fills)):
        return next(fill for fill in fills if is_zero(fill)) if all(map(is_finite, fills)) else Unknown.ANY
    if primitive == "div" and is_zero(fills[0]):
        return fills[0] if fills[1] in (Unknown.SHARED, Unknown.POSITIVE) else Unknown.ANY
    if primitive in INFINITE_IDENTITIES and len(known) == 1 and known[0] == INFINITE_IDENTITIES[primitive]:
        return next(fill for fill in fills if isinstance(fill, Unknown))
    absorbing = BOOLEAN_ABSORBING.get(primitive)
    if absorbing is not None and not integers and any(fill == np.bool_(absorbing) for fill in known):
        return np.bool_(absorbing)
    if Unknown.ANY in fills or not all(map(is_finite, known)):
        return Unknown.ANY
    if Unknown.POSITION in fills:
        divided = primitive == "div" and isinstance(fills[1], np.generic) and bool(fills[1])
        return Unknown.POSITION if divided or primitive in TOTAL or primitive in BITWISE else Unknown.ANY
    if primitive in PARTIAL and not all(fill is Unknown.SHARED for fill in fills):
        return _of_partial(primitive, fills)
    return Unknown.POSITIVE if _is_positive(primitive, fills) else Unknown.FINITE


def _of_partial(primitive: str, fills: Sequence[Fill]) -> Unknown:
    """Return what is known of a function that is not defined everywhere, of finite numbers that are not all known."""
    if primitive == "div":
        divisor = fills[1]
        known = isinstance(divisor, np.generic) and bool(divisor)
        if not (known or divisor in (Unknown.SHARED, Unknown.POSITIVE)):
            return Unknown.ANY
        return Unknown.POSITIVE if all(map(_above_zero, fills)) else Unknown.FINITE
    if primitive in OF_POSITIVE and _above_zero(fills[0]):
        return Unknown.POSITIVE if primitive in ("sqrt", "rsqrt", "integer_pow") else Unknown.FINITE
    return Unknown.ANY


def _above_zero(fill: Fill) -> bool:
    if isinstance(fill, Unknown):
        return fill is Unknown.POSITIVE
    return fill.dtype != np.bool_ and bool(np.isfinite(fill) and np.sign(fill) == 1)


def _is_positive(primitive: str, fills: Sequence[Fill]) -> bool:
    """Say whether a function of finite numbers, not all of them known, is above zero; short of underflow."""
    if primitive in ("exp", "exp2", "logistic", "cosh"):
        return True
    if primitive in ("add", "add_any") and any(map(is_zero, fills)):
        return any(map(_above_zero, fills))
    if primitive in ("mul", "min", "add", "add_any", "copy", "stop_gradient", "convert_element_type"):
        return all(map(_above_zero, fills))
    return primitive == "max" and any(map(_above_zero, fills))


def any_of(fills: Sequence[Fill]) -> Fill:
    """Return what is known of entries that are of any of these regions."""
    return functools.reduce(join, fills)


def _evaluated(
    primitive: str, parameters: dict[str, Any], numbers: Sequence[np.generic], *, integers: bool
) -> np.generic | None:
    """Return the result for known numbers, None where a device may come to another one."""
    with np.errstate(all="ignore"):
        if primitive == "convert_element_type":
            converted = _scalar(np.asarray(numbers[0]).astype(parameters["new_dtype"]))
            # Beyond an integer's range devices differ, and a compiler may leave out a rounding to fewer bits and back.
            return converted if bool(converted == numbers[0]) else None
        if integers and primitive in ("and", "or", "xor", "not"):
            return None
        if primitive in EXACT:
            return _scalar(np.asarray(EXACT[primitive](*numbers)))
        if primitive in UNROUNDED:
            return _unrounded(primitive, numbers)
        if primitive == "integer_pow" and numbers[0] in (0, 1) and parameters["y"] > 0:
            return numbers[0]
        if primitive in AT_ZERO and is_zero(numbers[0]):
            return _scalar(np.asarray(AT_ZERO[primitive], numbers[0].dtype))
    return None


def _unrounded(primitive: str, numbers: Sequence[np.generic]) -> np.generic | None:
    """Return a sum, product or quotient of known numbers if it is exact, None if it has to be rounded."""
    if not all(map(np.isfinite, numbers)) or (primitive == "div" and is_zero(numbers[1])):
        return None
    exact = UNROUNDED[primitive](*(Fraction(number.item()) for number in numbers))
    if not jnp.issubdtype(numbers[0].dtype, jnp.inexact):
        if primitive == "div":
            exact = Fraction(int(exact))  # towards zero
        if numbers[0].dtype == np.bool_:
            return None
        representable = jnp.iinfo(numbers[0].dtype)
        if not representable.min <= exact <= representable.max:
            return None
    number = float(exact) if exact.denominator > 1 else int(exact)
    rounded = _scalar(np.asarray(number).astype(numbers[0].dtype))
    return rounded if np.isfinite(rounded) and Fraction(rounded.item()) == exact else None


def _finiteness(primitive: str, parameters: dict[str, Any], numbers: Sequence[np.generic]) -> Unknown:
    """Say whether a function of known numbers is finite, where its value may differ by device in the last digits."""
    if primitive == "integer_pow":
        primitive, numbers = "pow", [*numbers, _scalar(np.asarray(parameters["y"], numbers[0].dtype))]
    if primitive not in ROUNDED or not jnp.issubdtype(numbers[0].dtype, jnp.inexact):
        return Unknown.POSITION if primitive in BITWISE else Unknown.ANY
    with np.errstate(all="ignore"):
        result = np.asarray(ROUNDED[primitive](*(np.asarray(number).astype(np.float32) for number in numbers)))
    if not np.isfinite(result):
        return Unknown.ANY
    if abs(result) > LARGE:
        return Unknown.POSITION
    return Unknown.POSITIVE if result > 0 else Unknown.FINITE


def _scalar(array: np.ndarray) -> np.generic:
    return array.reshape(-1)[0]
