"""What each primitive makes of padding: whether the corner stays the small program's, and what the padding becomes.

A rule takes the equation of the small and of the large program and its operands as `Value`s, and returns its results.
Where it cannot tell that the corner is right it says so in `wrong`; a primitive without a rule may not be padded.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from scalejax.planning.proof.fills import (
    ELEMENTWISE,
    Fill,
    Unknown,
    Value,
    combine,
    is_finite,
    is_zero,
    unknown,
    value,
    weakest,
)

Equation = Any  # jax.extend.core.JaxprEqn
Rule = Callable[[Equation, Equation, Sequence[Value]], list[Value]]

KINDS = ("sum", "prod", "max", "min", "and", "or", "xor")  # of reductions
CUMULATIVE = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min", "cumlogsumexp": None}
SAME = {"add": 0, "add_any": 0, "sub": 0, "mul": 1, "div": 1}  # beside this number the result is the other operand
UNCHANGED = {"copy", "copy_p", "stop_gradient"}


def identity_of(kind: str, dtype: np.dtype) -> float | bool:
    """Return the number that adds nothing to a reduction."""
    fixed = {"sum": 0, "prod": 1, "and": True, "or": False, "xor": 0}
    if kind in fixed:
        return fixed[kind]
    inexact, sign = jnp.issubdtype(dtype, jnp.inexact), -1 if kind == "max" else 1
    return sign * np.inf if inexact else jnp.iinfo(dtype).min if kind == "max" else jnp.iinfo(dtype).max


def shapes_of(small: Any, large: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a variable in the small and in the large program."""
    return tuple(small.aval.shape), tuple(large.aval.shape)


def made(
    small: Equation,
    large: Equation,
    along: Callable[[int], Fill],
    *,
    whole: Fill = Unknown.FINITE,
    wrong: str = "",
    origin: str = "",
) -> list[Value]:
    """Return a value for each result of an equation; `along` tells what pads an axis."""
    pairs = zip(small.outvars, large.outvars, strict=True)
    return [value(*shapes_of(*pair), along, whole=whole, wrong=wrong, origin=origin) for pair in pairs]


def first_wrong(operands: Sequence[Value]) -> str:
    """Return what is wrong with the first operand that is."""
    return next((each.wrong for each in operands if each.wrong), "")


def refused(small: Equation, large: Equation, operands: Sequence[Value], why: str) -> list[Value]:
    """Return results that are wrong, for the reason of an operand or, if there is none, for this one."""
    pairs = zip(small.outvars, large.outvars, strict=True)
    return [unknown(*shapes_of(*pair), wrong=first_wrong(operands) or why) for pair in pairs]


def elementwise(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Combine operands entry by entry; scalars stand beside arrays."""
    name = large.primitive.name
    integers = large.invars[0].aval.dtype != np.bool_ and name in ("and", "or", "xor", "not")

    def along(axis: int | None) -> Fill:
        fills = [_met(each, axis) for each in operands]
        if axis is not None and Unknown.SHARED in fills:
            constant = [isinstance(each.whole, np.generic) for each in operands]
            if all(fill is Unknown.SHARED or same for fill, same in zip(fills, constant, strict=True)):
                return Unknown.SHARED
        found = combine(name, large.params, fills, integers=integers)
        # Shared by an operand alone: in the corner each entry may be of another operand than its neighbour.
        return Unknown.FINITE if found is Unknown.SHARED else found

    wrong = first_wrong(operands)
    (result,) = made(small, large, along, whole=along(None), wrong=wrong)
    for each in operands:
        if each.large and _spread(each.small, result.small) != _spread(each.large, result.large):
            return refused(small, large, operands, "spreads an axis in one size and keeps it in the other")
    kept = _the_operand_itself(name, large, operands)
    if kept is not None and kept.large == result.large:
        return [replace(kept, small=result.small, wrong=wrong)]
    return [result]


def _met(operand: Value, axis: int | None) -> Fill:
    """Return what an operand shows to the padding of the result along an axis, or (None) to its corner.

    Where it is not padded itself, it has one entry there, which the padding meets as the corner does.
    """
    found = operand.region(axis)
    corner = axis is None or (bool(operand.large) and operand.fill[axis] is None)
    return Unknown.SHARED if corner and found is Unknown.FINITE else found


def _spread(shape: Sequence[int], result: Sequence[int]) -> list[bool]:
    """Say of each axis whether an operand has a single entry where the result has many, which all see that one."""
    return [have == 1 != want for have, want in zip(shape, result, strict=True)]


def _the_operand_itself(name: str, equation: Equation, operands: Sequence[Value]) -> Value | None:
    """Return the operand that the result equals entry for entry, None if there is no such."""
    if name in UNCHANGED:
        return operands[0]
    if name == "convert_element_type":
        return operands[0] if equation.invars[0].aval.dtype == equation.params["new_dtype"] else None
    if name == "select_n" and isinstance(operands[0].whole, np.generic):
        return operands[1 + int(operands[0].whole)]
    if name not in SAME:
        return None
    first, second = operands
    if isinstance(second.whole, np.generic) and second.whole == SAME[name]:
        return first
    if name in ("add", "add_any", "mul") and isinstance(first.whole, np.generic) and first.whole == SAME[name]:
        return second
    return None


def reduction(kind: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reduce some axes; a padded one only where its padding adds nothing."""
    (operand,) = operands
    axes = large.params["axes"]
    identity = identity_of(kind, large.invars[0].aval.dtype)
    for axis in axes:
        fill = operand.fill[axis]
        if fill is not None and not equals(fill, identity) and not (kind in ("max", "min") and fill is Unknown.SHARED):
            return refused(small, large, operands, f"runs over padding that is {said(fill)}")
    kept = [axis for axis in range(len(operand.large)) if axis not in axes]
    count = math.prod(operand.large[axis] for axis in axes)
    exact = all(operand.fill[axis] is None for axis in axes)

    def reduced(fill: Fill) -> Fill:
        if not isinstance(fill, np.generic):
            return fill
        if equals(fill, identity) or kind in ("max", "min", "and", "or") or (kind == "prod" and is_zero(fill)):
            return fill
        if kind == "sum" and exact:
            return np.multiply(fill, count).astype(fill.dtype).reshape(-1)[0]  # pyright: ignore[reportAttributeAccessIssue]
        return weakest(fill)

    whole = reduced(operand.whole)
    return made(small, large, lambda axis: reduced(operand.region(kept[axis])), whole=whole, wrong=operand.wrong)


def cumulative(kind: str | None, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Accumulate along one axis: what comes before the padding never sees it."""
    (operand,) = operands
    axis, identity = large.params["axis"], None if kind is None else identity_of(kind, large.invars[0].aval.dtype)
    fill = operand.fill[axis]
    if large.params["reverse"] and fill is not None and not equals(fill, identity):
        return refused(small, large, operands, f"accumulates from padding that is {said(fill)}")

    def along(number: int) -> Fill:
        own = operand.region(number)
        if identity is not None and equals(own, identity) and (number != axis or large.params["reverse"]):
            return own
        return weakest(own)

    whole = operand.whole if identity is not None and equals(operand.whole, identity) else weakest(operand.whole)
    return made(small, large, along, whole=whole, wrong=operand.wrong)


def dot_general(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Contract axes; of two padded ones at least one has to be zero there."""
    left, right = operands
    (of_left, of_right), (batch_left, batch_right) = large.params["dimension_numbers"]
    for i, j in zip(of_left, of_right, strict=True):
        fills = (left.fill[i], right.fill[j])
        if fills != (None, None) and not _adds_nothing(left.region(i), right.region(j)):
            return refused(small, large, operands, f"sums over padding that is {said(left.region(i))}")
    free_left = [axis for axis in range(len(left.large)) if axis not in (*of_left, *batch_left)]
    free_right = [axis for axis in range(len(right.large)) if axis not in (*of_right, *batch_right)]
    axes: list[tuple[int | None, int | None]] = [
        *zip(batch_left, batch_right, strict=True),
        *((axis, None) for axis in free_left),
        *((None, axis) for axis in free_right),
    ]
    return _contracted(small, large, operands, axes)


def _contracted(
    small: Equation, large: Equation, operands: Sequence[Value], axes: Sequence[tuple[int | None, int | None]]
) -> list[Value]:
    """Return a sum of products; `axes` are those of the left and of the right operand that each result axis is."""
    left, right = operands

    def along(axis: int) -> Fill:
        i, j = axes[axis]
        fills = (left.region(i), right.region(j))
        if any(map(is_zero, fills)):
            return np.float32(0) if left.finite and right.finite else Unknown.ANY
        own = [fill for fill, number in zip(fills, (i, j), strict=True) if number is not None]
        return Unknown.SHARED if all(fill is Unknown.SHARED for fill in own) else weakest(*fills)

    known_zero = (is_zero(left.whole) or is_zero(right.whole)) and left.finite and right.finite
    whole = np.float32(0) if known_zero else weakest(left.whole, right.whole)
    return made(small, large, along, whole=whole, wrong=first_wrong(operands))


def _adds_nothing(one: Fill, other: Fill) -> bool:
    """Say whether the products of two regions are zero."""
    return (is_zero(one) and is_finite(other)) or (is_zero(other) and is_finite(one))


def convolution(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Convolve; features may be padded as the axes of a product, positions not at all."""
    left, right = operands
    numbers, params = large.params["dimension_numbers"], large.params
    (batch, feature, *places), (out, into, *kernel) = numbers.lhs_spec, numbers.rhs_spec
    if any(left.fill[axis] is not None for axis in places) or any(right.fill[axis] is not None for axis in kernel):
        return refused(small, large, operands, "slides over padding")
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if grouped and (left.padded or right.padded):
        return refused(small, large, operands, "works in groups of features, whose borders padding would move")
    fills = (left.fill[feature], right.fill[into])
    if fills != (None, None) and not _adds_nothing(left.region(feature), right.region(into)):
        return refused(small, large, operands, f"sums over padding that is {said(left.region(feature))}")
    axes: list[tuple[int | None, int | None]] = [(None, None)] * len(left.large)
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = (batch, None), (None, out)
    return _contracted(small, large, operands, axes)


def broadcast_in_dim(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Spread an array along new axes, along which it is then the same."""
    operand = operands[0]
    from_axis = {target: source for source, target in enumerate(large.params["broadcast_dimensions"])}
    (before_small, before_large) = shapes_of(small.invars[0], large.invars[0])
    ((after_small, after_large),) = [shapes_of(*pair) for pair in zip(small.outvars, large.outvars, strict=True)]
    for target, source in from_axis.items():
        stays = before_small[source] == after_small[target] and before_large[source] == after_large[target]
        if not stays and not before_small[source] == before_large[source] == 1:
            return refused(small, large, operands, "spreads an axis in one size and keeps it in the other")

    def along(axis: int) -> Fill:
        source = from_axis.get(axis)
        return Unknown.SHARED if source is None or operand.fill[source] is None else operand.region(source)

    alias = operand.alias if before_large == after_large else None
    whole, wrong, origin = operand.whole, operand.wrong, operand.origin
    return [value(after_small, after_large, along, whole=whole, wrong=wrong, origin=origin, alias=alias)]


def reshape(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Merge and divide axes; a padded one only as the first of those that it is merged with."""
    (operand,) = operands
    ((after_small, after_large),) = [shapes_of(*pair) for pair in zip(small.outvars, large.outvars, strict=True)]
    if large.params.get("dimensions") is not None and operand.padded:
        return refused(small, large, operands, "changes the order of axes")
    if (operand.small, operand.large) == (after_small, after_large):
        return [operand]
    fills: dict[int, Fill] = {}
    for before, after in _blocks(operand, after_small, after_large):
        own = [axis for axis in before if operand.fill[axis] is not None]
        made = [axis for axis in after if after_small[axis] != after_large[axis]]
        if not own and not made:
            continue
        leads = (
            len(own) == len(made) == 1 and _leads(own[0], before, operand.large) and _leads(made[0], after, after_large)
        )
        if not leads:
            return refused(small, large, operands, "merges or divides axes so that padding lies between real entries")
        fill = operand.region(own[0])
        alone = math.prod(after_large[axis] for axis in after) == after_large[made[0]] == operand.large[own[0]]
        fills[made[0]] = fill if isinstance(fill, np.generic) or alone else weakest(fill)
    along, whole, wrong = fills.__getitem__, operand.whole, operand.wrong
    return [value(after_small, after_large, along, whole=whole, wrong=wrong, origin=operand.origin)]


def _blocks(operand: Value, small: Sequence[int], large: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Divide the axes before and after a reshape into the shortest runs of equal size, in both programs."""
    blocks = []
    i = j = 0
    while i < len(operand.large) or j < len(large):
        before, after = [], []
        sizes_before, sizes_after = (1, 1), (1, 1)  # in the large and in the small program
        while not (before or after) or sizes_before != sizes_after:
            if i < len(operand.large) and (j == len(large) or sizes_before <= sizes_after):
                sizes_before = (sizes_before[0] * operand.large[i], sizes_before[1] * operand.small[i])
                before.append(i)
                i += 1
            else:
                sizes_after = (sizes_after[0] * large[j], sizes_after[1] * small[j])
                after.append(j)
                j += 1
        blocks.append((before, after))
    return blocks


def _leads(axis: int, block: Sequence[int], shape: Sequence[int]) -> bool:
    """Say whether all axes of a block that come before one have a single entry."""
    return all(shape[other] == 1 for other in block if other < axis)


def transpose(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Permute axes."""
    (operand,) = operands
    return _moved(small, large, operand, large.params["permutation"])


def squeeze(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Drop axes of one entry."""
    (operand,) = operands
    gone = large.params["dimensions"]
    return _moved(small, large, operand, [axis for axis in range(len(operand.large)) if axis not in gone])


def _moved(small: Equation, large: Equation, operand: Value, sources: Sequence[int]) -> list[Value]:
    def along(axis: int) -> Fill:
        return operand.region(sources[axis])

    return made(small, large, along, whole=operand.whole, wrong=operand.wrong, origin=operand.origin)


def iota(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Count along one axis."""
    del operands
    counted = large.params["dimension"]

    def along(axis: int) -> Fill:
        return Unknown.POSITION if axis == counted else Unknown.SHARED

    return made(small, large, along, whole=Unknown.POSITION)


def equals(fill: Fill | None, number: Any) -> bool:
    """Say whether a region is known to be this number."""
    return isinstance(fill, np.generic) and bool(fill == number)


def said(fill: Fill) -> str:
    """Return what padding holds in words."""
    return f"{fill.item():g}" if isinstance(fill, np.generic) else "not known to be zero"


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **{f"reduce_{kind}": functools.partial(reduction, kind) for kind in KINDS},
    **{name: functools.partial(cumulative, kind) for name, kind in CUMULATIVE.items()},
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "transpose": transpose,
    "squeeze": squeeze,
    "iota": iota,
}
