"""What each primitive makes of padding: whether the corner stays the small program's, and what the padding becomes.

A rule takes the equation of the small and of the large program and its operands as `Value`s, and returns its results.
Where it cannot tell that the corner is right it raises `PaddingError`; a primitive without a rule may not be padded.
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
    ZERO,
    Fill,
    Unknown,
    Value,
    any_of,
    combine,
    is_finite,
    is_zero,
    join,
    value,
    weakest,
)

Equation = Any  # jax.extend.core.JaxprEqn
Rule = Callable[[Equation, Equation, Sequence[Value]], list[Value]]

REDUCTIONS = ("sum", "prod", "max", "min", "and", "or", "xor")
CUMULATIVE = {"cumsum": "sum", "cumprod": "prod", "cummax": "max", "cummin": "min", "cumlogsumexp": None}
NEUTRAL = {"add": 0, "add_any": 0, "sub": 0, "mul": 1, "div": 1}  # beside this number the result is the other operand
UNCHANGED = {"copy", "copy_p", "stop_gradient"}


class PaddingError(Exception):
    """An equation does, or may do, something else where its operands are padded; the rest of a sentence about it."""


def shapes_of(small: Any, large: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a variable in the small and in the large program."""
    return tuple(small.aval.shape), tuple(large.aval.shape)


def made(small: Equation, large: Equation, along: Callable[[int], Fill], *, whole: Fill) -> list[Value]:
    """Return a value for each result of an equation; `along` tells what pads an axis."""
    pairs = zip(small.outvars, large.outvars, strict=True)
    return [value(*shapes_of(*pair), along, whole=whole) for pair in pairs]


def _identity_of(operation: str, dtype: np.dtype) -> float | bool:
    """Return the number that changes nothing in a reduction."""
    fixed = {"sum": 0, "prod": 1, "and": True, "or": False, "xor": 0}
    if operation in fixed:
        return fixed[operation]
    if jnp.issubdtype(dtype, jnp.inexact):
        return -np.inf if operation == "max" else np.inf
    return jnp.iinfo(dtype).min if operation == "max" else jnp.iinfo(dtype).max


def _equals(fill: Fill | None, number: Any) -> bool:
    """Say whether a region is known to be this number."""
    return isinstance(fill, np.generic) and bool(fill == number)


def _described(fill: Fill) -> str:
    """Return what padding holds in words."""
    return f"{fill.item():g}" if isinstance(fill, np.generic) else "not known to be zero"


# ---- entry by entry ----


def elementwise(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Combine operands entry by entry; scalars stand beside arrays."""
    name = large.primitive.name
    integers = large.invars[0].aval.dtype != np.bool_ and name in ("and", "or", "xor", "not")

    def shown(operand: Value, axis: int | None) -> Fill:
        """Return what an operand shows to the padding of the result along an axis, or (None) to its corner.

        Where it is not padded itself, it has one entry there, which the padding meets as the corner does.
        """
        region = operand.region(axis)
        corner = axis is None or (bool(operand.large) and operand.fill[axis] is None)
        return Unknown.SHARED if corner and region is Unknown.FINITE else region

    def along(axis: int | None) -> Fill:
        fills = [shown(operand, axis) for operand in operands]
        if axis is not None and Unknown.SHARED in fills:
            constant = [
                isinstance(operand.whole, np.generic) or (not operand.large and operand.whole is Unknown.POSITIVE)
                for operand in operands
            ]
            if all(fill is Unknown.SHARED or same for fill, same in zip(fills, constant, strict=True)):
                return Unknown.SHARED
        fill = combine(name, large.params, fills, integers=integers)
        # Shared by an operand alone: in the corner each entry may be of another operand than its neighbour.
        return Unknown.FINITE if fill is Unknown.SHARED else fill

    (result,) = made(small, large, along, whole=along(None))
    for operand in operands:
        if operand.large and _spread(operand.small, result.small) != _spread(operand.large, result.large):
            raise PaddingError("spreads an axis in one size and keeps it in the other")
    kept = _the_operand_itself(name, large, operands)
    if kept is not None and kept.large == result.large:
        return [replace(kept, small=result.small)]
    return [result]


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
    if name not in NEUTRAL:
        return None
    first, second = operands
    if _equals(second.whole, NEUTRAL[name]):
        return first
    return second if name in ("add", "add_any", "mul") and _equals(first.whole, NEUTRAL[name]) else None


# ---- sums and products over axes ----


def reduction(operation: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reduce some axes; a padded one only where its padding adds nothing."""
    (operand,) = operands
    axes = large.params["axes"]
    identity = _identity_of(operation, large.invars[0].aval.dtype)
    for fill in (operand.fill[axis] for axis in axes):
        shared = operation in ("max", "min") and fill is Unknown.SHARED
        if fill is not None and not shared and not _equals(fill, identity):
            raise PaddingError(f"runs over padding that is {_described(fill)}")
    kept = [axis for axis in range(len(operand.large)) if axis not in axes]
    count = math.prod(operand.large[axis] for axis in axes)
    exact = all(operand.fill[axis] is None for axis in axes)

    def reduced(fill: Fill) -> Fill:
        if not isinstance(fill, np.generic):
            return fill
        if _equals(fill, identity) or operation in ("max", "min", "and", "or"):
            return fill
        if operation == "prod" and is_zero(fill):
            return fill
        if operation == "sum" and exact:
            return np.multiply(fill, count).astype(fill.dtype).reshape(-1)[0]  # pyright: ignore[reportAttributeAccessIssue]
        return weakest(fill)

    return made(small, large, lambda axis: reduced(operand.region(kept[axis])), whole=reduced(operand.whole))


def cumulative(operation: str | None, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Accumulate along one axis: what comes before the padding never sees it."""
    (operand,) = operands
    along_axis, reverse = large.params["axis"], large.params["reverse"]
    dtype = large.invars[0].aval.dtype

    def neutral(fill: Fill) -> bool:
        return operation is not None and _equals(fill, _identity_of(operation, dtype))

    fill = operand.fill[along_axis]
    if reverse and fill is not None and not neutral(fill):
        raise PaddingError(f"accumulates from padding that is {_described(fill)}")

    def along(axis: int) -> Fill:
        fill = operand.region(axis)
        return fill if neutral(fill) and (axis != along_axis or reverse) else weakest(fill)

    return made(small, large, along, whole=operand.whole if neutral(operand.whole) else weakest(operand.whole))


def dot_general(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Contract axes; of two padded ones at least one has to be zero there."""
    left, right = operands
    (of_left, of_right), (batch_left, batch_right) = large.params["dimension_numbers"]
    for axes in zip(of_left, of_right, strict=True):
        _check_contracted(left, right, *axes)
    free_left = [axis for axis in range(len(left.large)) if axis not in (*of_left, *batch_left)]
    free_right = [axis for axis in range(len(right.large)) if axis not in (*of_right, *batch_right)]
    axes = [*zip(batch_left, batch_right, strict=True)]
    axes += [(axis, None) for axis in free_left] + [(None, axis) for axis in free_right]
    return _contracted(small, large, operands, axes)


def convolution(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Convolve; features may be padded as the axes of a product, positions not at all."""
    left, right = operands
    numbers, params = large.params["dimension_numbers"], large.params
    (batch, feature, *places), (out, into, *kernel) = numbers.lhs_spec, numbers.rhs_spec
    if any(left.fill[axis] is not None for axis in places) or any(right.fill[axis] is not None for axis in kernel):
        raise PaddingError("slides over padding")
    grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
    if grouped and (left.padded or right.padded):
        raise PaddingError("works in groups of features, whose borders padding would move")
    _check_contracted(left, right, feature, into)
    axes: list[tuple[int | None, int | None]] = [(None, None)] * len(left.large)
    axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = (batch, None), (None, out)
    return _contracted(small, large, operands, axes)


def _check_contracted(left: Value, right: Value, i: int, j: int) -> None:
    """Refuse to sum over axis i of the left and j of the right operand unless the products of their padding are 0."""
    one, other = left.region(i), right.region(j)
    nothing = (is_zero(one) and is_finite(other)) or (is_zero(other) and is_finite(one))
    if (left.fill[i], right.fill[j]) != (None, None) and not nothing:
        raise PaddingError(f"sums over padding that is {_described(one)}")


def _contracted(
    small: Equation, large: Equation, operands: Sequence[Value], axes: Sequence[tuple[int | None, int | None]]
) -> list[Value]:
    """Return a sum of products; `axes` are those of the left and of the right operand that each result axis is."""
    left, right = operands

    def along(axis: int) -> Fill:
        fills = [operand.region(source) for operand, source in zip(operands, axes[axis], strict=True)]
        if any(map(is_zero, fills)):
            return ZERO if left.finite and right.finite else Unknown.ANY
        kept = [fill for fill, source in zip(fills, axes[axis], strict=True) if source is not None]
        return Unknown.SHARED if all(fill is Unknown.SHARED for fill in kept) else weakest(*fills)

    known_zero = (is_zero(left.whole) or is_zero(right.whole)) and left.finite and right.finite
    return made(small, large, along, whole=ZERO if known_zero else weakest(left.whole, right.whole))


# ---- shapes ----


def broadcast_in_dim(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Spread an array along new axes, along which it is then the same."""
    operand = operands[0]
    sources = {target: source for source, target in enumerate(large.params["broadcast_dimensions"])}
    before_small, before_large = shapes_of(small.invars[0], large.invars[0])
    after_small, after_large = shapes_of(small.outvars[0], large.outvars[0])
    for target, source in sources.items():
        stays = before_small[source] == after_small[target] and before_large[source] == after_large[target]
        if not stays and not before_small[source] == before_large[source] == 1:
            raise PaddingError("spreads an axis in one size and keeps it in the other")

    def along(axis: int) -> Fill:
        source = sources.get(axis)
        return Unknown.SHARED if source is None or operand.fill[source] is None else operand.region(source)

    (result,) = made(small, large, along, whole=operand.whole)
    return [replace(result, alias=operand.alias if before_large == after_large else None)]


def reshape(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Merge and divide axes; a padded one only as the first of those that it is merged with."""
    (operand,) = operands
    after_small, after_large = shapes_of(small.outvars[0], large.outvars[0])
    if large.params.get("dimensions") is not None and operand.padded:
        raise PaddingError("changes the order of axes")
    if (operand.small, operand.large) == (after_small, after_large):
        return [operand]
    fills: dict[int, Fill] = {}
    for before, after in _blocks(operand, after_small, after_large):
        sources = [axis for axis in before if operand.fill[axis] is not None]
        targets = [axis for axis in after if after_small[axis] != after_large[axis]]
        if not sources and not targets:
            continue
        single = len(sources) == len(targets) == 1
        if not (single and _leads(sources[0], before, operand.large) and _leads(targets[0], after, after_large)):
            raise PaddingError("merges or divides axes so that padding lies between real entries")
        (source,), (target,) = sources, targets
        fill = operand.region(source)
        alone = math.prod(after_large[axis] for axis in after) == after_large[target] == operand.large[source]
        fills[target] = fill if isinstance(fill, np.generic) or alone else weakest(fill)
    return made(small, large, fills.__getitem__, whole=operand.whole)


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
    sources = large.params["permutation"]
    return made(small, large, lambda axis: operand.region(sources[axis]), whole=operand.whole)


def squeeze(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Drop axes of one entry."""
    (operand,) = operands
    sources = [axis for axis in range(len(operand.large)) if axis not in large.params["dimensions"]]
    return made(small, large, lambda axis: operand.region(sources[axis]), whole=operand.whole)


def iota(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Count along one axis."""
    del operands
    counted = large.params["dimension"]
    along = {counted: Unknown.POSITION}
    return made(small, large, lambda axis: along.get(axis, Unknown.SHARED), whole=Unknown.POSITION)


# ---- entries moved by their position ----


def slice_rule(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Take a box out of an array."""
    (operand,) = operands

    def box(equation: Equation) -> list[tuple[int, int, int]]:
        params = equation.params
        strides = params["strides"] or (1,) * len(params["start_indices"])
        return list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))

    return made(small, large, _sliced(operand, box(small), box(large)).__getitem__, whole=operand.whole)


def split(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Divide an axis into pieces, one behind the other; those before the first padding are right."""
    (operand,) = operands
    axis, pieces, start_small, start_large = large.params["axis"], [], 0, 0
    sizes = zip(small.params["sizes"], large.params["sizes"], strict=True)
    for (have, want), *piece in zip(sizes, small.outvars, large.outvars, strict=True):
        box_small, box_large = ([(0, size, 1) for size in shape] for shape in (operand.small, operand.large))
        box_small[axis] = (start_small, start_small + have, 1)
        box_large[axis] = (start_large, start_large + want, 1)
        start_small, start_large = start_small + have, start_large + want
        try:
            along, wrong = _sliced(operand, box_small, box_large).__getitem__, ""
        except PaddingError as error:
            along, wrong = lambda _: Unknown.ANY, str(error)
        pieces.append(value(*shapes_of(*piece), along, whole=operand.whole, wrong=wrong))
    return pieces


def _sliced(
    operand: Value, small: Sequence[tuple[int, int, int]], large: Sequence[tuple[int, int, int]]
) -> dict[int, Fill]:
    """Return what pads each axis of slices of (start, limit, stride) an axis, which must be of the same entries."""
    fills: dict[int, Fill] = {}
    for axis, (box_small, box_large) in enumerate(zip(small, large, strict=True)):
        if operand.fill[axis] is None and box_small == box_large:
            continue
        if box_small[0] != box_large[0] or box_small[2] != box_large[2]:
            raise PaddingError("begins at another place in the larger size")
        to_the_end = box_small[1] == operand.small[axis] and box_large[1] == operand.large[axis]
        fills[axis] = operand.region(axis) if to_the_end else weakest(operand.region(axis))
    return fills


def concatenate(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Put arrays one behind the other; along a padded axis only the last may be padded."""
    joined_axis = large.params["dimension"]
    if any(operand.fill[joined_axis] is not None for operand in operands[:-1]):
        raise PaddingError("puts padding between real entries")

    def along(axis: int) -> Fill:
        if axis == joined_axis:
            return operands[-1].region(axis)
        return any_of([operand.region(axis) for operand in operands])

    return made(small, large, along, whole=any_of([operand.whole for operand in operands]))


def pad(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Put a number around an array, which the padding behind it must then be too."""
    operand, number = operands
    borders = large.params["padding_config"]
    for axis, fill in enumerate(operand.fill):
        if small.params["padding_config"][axis] != borders[axis]:
            raise PaddingError("pads each size in its own way")
        low, high, between = borders[axis]
        same = isinstance(number.whole, np.generic) and _equals(fill, number.whole)
        if fill is not None and ((high != 0 or between) and not same):
            raise PaddingError("puts numbers behind padding")
        if fill is not None and (low < 0 or high < 0):
            raise PaddingError("cuts entries off an axis that is padded")

    def along(axis: int) -> Fill:
        return join(operand.region(axis), number.whole) if any(map(any, borders)) else operand.region(axis)

    return made(small, large, along, whole=join(operand.whole, number.whole))


def rev(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reverse axes, none of them padded."""
    (operand,) = operands
    if any(operand.fill[axis] is not None for axis in large.params["dimensions"]):
        raise PaddingError("brings padding to the front")
    return made(small, large, operand.region, whole=operand.whole)


def comparison(name: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Sort, or choose the largest: never along a padded axis."""
    params, rank = large.params, len(operands[0].large)
    axes = params["axes"] if "axes" in params else (params.get("dimension", params.get("axis", rank - 1)),)
    axes = [axis % rank for axis in axes]
    if any(operand.fill[axis] is not None for operand in operands for axis in axes):
        raise PaddingError("compares real entries with padding")
    kept = [axis for axis in range(rank) if axis not in axes or name in ("sort", "top_k")]

    def along(axis: int) -> Fill:
        fills = [operand.region(kept[axis]) for operand in operands]
        return fills[0] if len(operands) == 1 and name == "sort" else weakest(*fills)

    return made(small, large, along, whole=weakest(operands[0].whole))


def dynamic_slice(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Take a box at a place that is computed; of a padded axis all."""
    operand = operands[0]
    sizes = zip(small.params["slice_sizes"], large.params["slice_sizes"], strict=True)
    for axis, (have, want) in enumerate(sizes):
        if have != want and (have, want) != (operand.small[axis], operand.large[axis]):
            raise PaddingError("takes another share of an axis in the larger size")
        if have == want and operand.fill[axis] is not None:
            raise PaddingError("takes a part of a padded axis")
    return made(small, large, operand.region, whole=operand.whole)


def dynamic_update_slice(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Write a box at a place that is computed; of a padded axis all."""
    operand, update = operands[:2]
    for axis in range(len(operand.large)):
        padded = operand.fill[axis] is not None or update.fill[axis] is not None
        if padded and (update.small[axis], update.large[axis]) != (operand.small[axis], operand.large[axis]):
            raise PaddingError("writes a part of a padded axis")

    def along(axis: int) -> Fill:
        return join(operand.region(axis), update.region(axis))

    return made(small, large, along, whole=join(operand.whole, update.whole))


def gather(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Look rows up: the axes that the indices count must not be padded, of the others all is taken."""
    operand, indices = operands
    numbers = large.params["dimension_numbers"]
    if indices.padded:
        raise PaddingError("looks up places that only padding has")
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    sizes = zip(small.params["slice_sizes"], large.params["slice_sizes"], strict=True)
    for axis, (have, want) in enumerate(sizes):
        if operand.fill[axis] is None and have == want:
            continue
        all_of_it = (have, want) == (operand.small[axis], operand.large[axis])
        if axis in gone or axis in numbers.start_index_map or not all_of_it:
            raise PaddingError("looks entries up along a padded axis")
    window = [axis for axis in range(len(operand.large)) if axis not in gone]
    source = dict(zip(numbers.offset_dims, window, strict=True))

    # What is looked up beyond the end is this number, in the padding of its row too; NaN is NaN in the corner as well.
    number = large.params.get("fill_value")
    beyond = None if number is None or np.isnan(number) else np.full(1, number, large.outvars[0].aval.dtype)

    def either(fill: Fill) -> Fill:
        return fill if beyond is None else join(fill, beyond[0])

    return made(small, large, lambda axis: either(operand.region(source[axis])), whole=either(operand.whole))


def scatter(adding: bool, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Write or add rows at places that are computed, along axes that are not padded."""
    operand, indices, update = operands
    numbers = large.params["dimension_numbers"]
    if indices.padded:
        raise PaddingError("writes to places that only padding has")
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [axis for axis in range(len(operand.large)) if axis not in gone]
    target = dict(zip(window, numbers.update_window_dims, strict=True))
    padded = [axis for axis, fill in enumerate(operand.fill) if fill is not None]
    written = {axis for axis, fill in enumerate(update.fill) if fill is not None}
    if not written <= {target.get(axis) for axis in padded}:
        raise PaddingError("writes more in the larger size")
    for axis in padded:
        if axis in numbers.scatter_dims_to_operand_dims or axis not in target:
            raise PaddingError("writes along a padded axis")
        from_axis = target[axis]
        if (update.small[from_axis], update.large[from_axis]) != (operand.small[axis], operand.large[axis]):
            raise PaddingError("writes a part of a padded axis")

    def along(axis: int) -> Fill:
        fills = (operand.region(axis), update.region(target[axis]))
        return fills[0] if all(map(is_zero, fills)) else weakest(*fills) if adding else join(*fills)

    both_zero = is_zero(operand.whole) and is_zero(update.whole)
    return made(small, large, along, whole=operand.whole if both_zero else weakest(operand.whole, update.whole))


def windowed(operation: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reduce windows, as pooling does: a padded axis must have windows of one entry."""
    operand, params, rank = operands[0], large.params, len(operands[0].large)
    names = ("window_dimensions", "window_strides", "window_dilation")
    sizes, strides, dilation = (params.get(name) or (1,) * rank for name in names)
    borders = params.get("padding") or ((0, 0),) * rank
    reach = [(size - 1) * gap + 1 for size, gap in zip(sizes, dilation, strict=True)]
    outside = any(max(border) >= length for border, length in zip(borders, reach, strict=True))
    holes = any(gap != 1 for gap in params.get("base_dilation") or ())
    if any(operand.padded for operand in operands) and (outside or holes):
        raise PaddingError("has windows in which there is nothing of a padded array")
    for axis, fill in ((axis, fill) for operand in operands for axis, fill in enumerate(operand.fill)):
        one_entry = sizes[axis] == strides[axis] == dilation[axis] == 1 and not any(borders[axis])
        if fill is not None and not one_entry:
            raise PaddingError(f"slides over padding that is {_described(fill)}")
    chooses = operation in ("max", "min") and len(operands) == 1

    def along(axis: int) -> Fill:
        fills = [operand.region(axis) for operand in operands]
        return fills[0] if all(map(is_zero, fills)) or chooses else weakest(*fills)

    known_zero = is_zero(operand.whole) and operation == "sum"
    return made(small, large, along, whole=operand.whole if known_zero else weakest(operand.whole))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **{f"reduce_{name}": functools.partial(reduction, name) for name in REDUCTIONS},
    **{name: functools.partial(cumulative, operation) for name, operation in CUMULATIVE.items()},
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "broadcast_in_dim": broadcast_in_dim,
    "reshape": reshape,
    "transpose": transpose,
    "squeeze": squeeze,
    "iota": iota,
    "slice": slice_rule,
    "split": split,
    "concatenate": concatenate,
    "pad": pad,
    "rev": rev,
    **{name: functools.partial(comparison, name) for name in ("sort", "argmax", "argmin", "top_k")},
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "scatter": functools.partial(scatter, False),
    "scatter-add": functools.partial(scatter, True),
    "scatter_add": functools.partial(scatter, True),
    **{f"reduce_window_{name}": functools.partial(windowed, name) for name in ("sum", "max", "min")},
    "select_and_scatter_add": functools.partial(windowed, "scatter"),
}
