"""What the primitives that move entries by position make of padding; see `rules.py`."""

import functools
from collections.abc import Sequence

import numpy as np

from scalejax.planning.proof.fills import Fill, Unknown, Value, is_zero, join, value, weakest
from scalejax.planning.proof.rules import Equation, Rule, equals, first_wrong, made, refused, said, shapes_of


def _sliced(
    operand: Value, small: Sequence[tuple[int, int, int]], large: Sequence[tuple[int, int, int]]
) -> tuple[str, dict[int, Fill]]:
    """Return why slices of (start, limit, stride) an axis are not of the same entries, and what pads them."""
    fills: dict[int, Fill] = {}
    for axis, (own, other) in enumerate(zip(small, large, strict=True)):
        if operand.fill[axis] is None and own == other:
            continue
        if own[0] != other[0] or own[2] != other[2]:
            return "begins at another place in the larger size", fills
        to_the_end = own[1] == operand.small[axis] and other[1] == operand.large[axis]
        fills[axis] = operand.region(axis) if to_the_end else weakest(operand.region(axis))
    return "", fills


def slice_rule(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Take a box out of an array."""
    (operand,) = operands

    def box(equation: Equation) -> list[tuple[int, int, int]]:
        params = equation.params
        strides = params["strides"] or (1,) * len(params["start_indices"])
        return list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))

    why, fills = _sliced(operand, box(small), box(large))
    return _cut(small, large, operand, why, fills)


def _cut(small: Equation, large: Equation, operand: Value, why: str, fills: dict[int, Fill]) -> list[Value]:
    if why:
        return refused(small, large, [operand], why)
    along = functools.partial(_found, fills)
    return made(small, large, along, whole=operand.whole, wrong=operand.wrong, origin=operand.origin)


def split(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Divide an axis into pieces, one behind the other."""
    (operand,) = operands
    axis, pieces, start_small, start_large = large.params["axis"], [], 0, 0
    pairs = zip(small.params["sizes"], large.params["sizes"], small.outvars, large.outvars, strict=True)
    for have, want, one, other in pairs:
        whole_small = [(0, size, 1) for size in operand.small]
        whole_large = [(0, size, 1) for size in operand.large]
        whole_small[axis] = (start_small, start_small + have, 1)
        whole_large[axis] = (start_large, start_large + want, 1)
        why, fills = _sliced(operand, whole_small, whole_large)
        wrong = operand.wrong or why
        pieces.append(value(*shapes_of(one, other), functools.partial(_found, fills), whole=operand.whole, wrong=wrong))
        start_small, start_large = start_small + have, start_large + want
    return pieces


def _found(fills: dict[int, Fill], axis: int) -> Fill:
    return fills.get(axis, Unknown.ANY)


def concatenate(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Put arrays one behind the other; along a padded axis only the last may be padded."""
    axis = large.params["dimension"]
    if any(each.fill[axis] is not None for each in operands[:-1]):
        return refused(small, large, operands, "puts padding between real entries")

    def along(number: int) -> Fill:
        if number == axis:
            return operands[-1].region(axis)
        return functools.reduce(join, (each.region(number) for each in operands))

    whole = functools.reduce(join, (each.whole for each in operands))
    return made(small, large, along, whole=whole, wrong=first_wrong(operands))


def pad(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Put a number around an array, which the padding behind it must then be too."""
    operand, number = operands
    own, other = small.params["padding_config"], large.params["padding_config"]
    for axis, fill in enumerate(operand.fill):
        if own[axis] != other[axis]:
            return refused(small, large, operands, "pads each size in its own way")
        low, high, between = other[axis]
        same = isinstance(number.whole, np.generic) and equals(fill, number.whole)
        if fill is not None and ((high != 0 or between) and not same):
            return refused(small, large, operands, "puts numbers behind padding")
        if fill is not None and (low < 0 or high < 0):
            return refused(small, large, operands, "cuts entries off an axis that is padded")

    def along(axis: int) -> Fill:
        return (
            join(operand.region(axis), number.whole) if other != own or any(map(any, other)) else operand.region(axis)
        )

    whole = join(operand.whole, number.whole)
    return made(small, large, along, whole=whole, wrong=first_wrong(operands))


def rev(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reverse axes, none of them padded."""
    (operand,) = operands
    if any(operand.fill[axis] is not None for axis in large.params["dimensions"]):
        return refused(small, large, operands, "brings padding to the front")
    return made(small, large, operand.region, whole=operand.whole, wrong=operand.wrong)


def along_one_axis(name: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Sort, or choose the largest: never along a padded axis."""
    params = large.params
    last = len(operands[0].large) - 1
    axes = params["axes"] if "axes" in params else (params.get("dimension", params.get("axis", last)),)
    axes = [axis % len(operands[0].large) for axis in axes]
    if any(each.fill[axis] is not None for each in operands for axis in axes):
        return refused(small, large, operands, "compares real entries with padding")
    kept = [axis for axis in range(len(operands[0].large)) if axis not in axes or name in ("sort", "top_k")]

    def along(axis: int) -> Fill:
        fills = [each.region(kept[axis]) for each in operands]
        return fills[0] if len(operands) == 1 and name == "sort" else weakest(*fills)

    wrong = first_wrong(operands)
    return made(small, large, along, whole=weakest(operands[0].whole), wrong=wrong)


def dynamic_slice(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Take a box at a place that is computed; of a padded axis all."""
    operand = operands[0]
    own, other = small.params["slice_sizes"], large.params["slice_sizes"]
    for axis in range(len(own)):
        if own[axis] != other[axis] and (own[axis], other[axis]) != (operand.small[axis], operand.large[axis]):
            return refused(small, large, operands, "takes another share of an axis in the larger size")
        if own[axis] == other[axis] and operand.fill[axis] is not None:
            return refused(small, large, operands, "takes a part of a padded axis")
    return made(small, large, operand.region, whole=operand.whole, wrong=first_wrong(operands), origin=operand.origin)


def dynamic_update_slice(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Write a box at a place that is computed; of a padded axis all."""
    operand, update = operands[:2]
    for axis in range(len(operand.large)):
        padded = operand.fill[axis] is not None or update.fill[axis] is not None
        if padded and (update.small[axis], update.large[axis]) != (operand.small[axis], operand.large[axis]):
            return refused(small, large, operands, "writes a part of a padded axis")
    return _written(small, large, operand, update, first_wrong(operands))


def _written(small: Equation, large: Equation, operand: Value, update: Value, wrong: str) -> list[Value]:
    def along(axis: int) -> Fill:
        other = update.region(axis) if len(update.large) == len(operand.large) else update.whole
        return join(operand.region(axis), other)

    whole = join(operand.whole, update.whole)
    return made(small, large, along, whole=whole, wrong=wrong)


def gather(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Look rows up: the axes that the indices count must not be padded, of the others all is taken."""
    operand, indices = operands
    numbers = large.params["dimension_numbers"]
    own, other = small.params["slice_sizes"], large.params["slice_sizes"]
    if indices.padded:
        return refused(small, large, operands, "looks up places that only padding has")
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    for axis, fill in enumerate(operand.fill):
        if fill is None and own[axis] == other[axis]:
            continue
        all_of_it = (own[axis], other[axis]) == (operand.small[axis], operand.large[axis])
        if axis in gone or axis in numbers.start_index_map or not all_of_it:
            return refused(small, large, operands, "looks entries up along a padded axis")
    window = [axis for axis in range(len(operand.large)) if axis not in gone]
    source = dict(zip(numbers.offset_dims, window, strict=True))

    # What is looked up beyond the end is this number, in the padding of its row too; NaN is NaN in the corner as well.
    number = large.params.get("fill_value")
    beyond = None if number is None or np.isnan(number) else np.full(1, number, large.outvars[0].aval.dtype)

    def either(fill: Fill) -> Fill:
        return fill if beyond is None else join(fill, beyond[0])

    def along(axis: int) -> Fill:
        return either(operand.region(source[axis]))

    return made(small, large, along, whole=either(operand.whole), wrong=first_wrong(operands))


def scatter(adding: bool, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Write or add rows at places that are computed, along axes that are not padded."""
    operand, indices, update = operands
    numbers = large.params["dimension_numbers"]
    if indices.padded:
        return refused(small, large, operands, "writes to places that only padding has")
    gone = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = [axis for axis in range(len(operand.large)) if axis not in gone]
    target = dict(zip(window, numbers.update_window_dims, strict=True))
    spread = {axis for axis, fill in enumerate(update.fill) if fill is not None}
    if not spread <= {target[axis] for axis in target if operand.fill[axis] is not None}:
        return refused(small, large, operands, "writes more in the larger size")
    for axis, fill in enumerate(operand.fill):
        if fill is None:
            continue
        from_axis = target.get(axis)
        if axis in numbers.scatter_dims_to_operand_dims or from_axis is None:
            return refused(small, large, operands, "writes along a padded axis")
        if (update.small[from_axis], update.large[from_axis]) != (operand.small[axis], operand.large[axis]):
            return refused(small, large, operands, "writes a part of a padded axis")

    def along(axis: int) -> Fill:
        fills = (operand.region(axis), update.region(target[axis]))
        return fills[0] if all(map(is_zero, fills)) else weakest(*fills) if adding else join(*fills)

    both_zero = is_zero(operand.whole) and is_zero(update.whole)
    whole = operand.whole if both_zero else weakest(operand.whole, update.whole)
    return made(small, large, along, whole=whole, wrong=first_wrong(operands))


def windowed(kind: str, small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Reduce windows, as pooling does: a padded axis must have windows of one entry."""
    operand, params = operands[0], large.params
    rank = len(operand.large)
    sizes, strides, spread = (
        params.get(name) or (1,) * rank for name in ("window_dimensions", "window_strides", "window_dilation")
    )
    parts = (sizes, strides, spread)
    borders = params.get("padding") or ((0, 0),) * rank
    reach = [(size - 1) * gap + 1 for size, gap in zip(sizes, spread, strict=True)]
    outside = any(max(border) >= own for border, own in zip(borders, reach, strict=True))
    holes = any(gap != 1 for gap in params.get("base_dilation") or ())
    if any(each.padded for each in operands) and (outside or holes):
        return refused(small, large, operands, "has windows in which there is nothing of a padded array")
    for each in operands:
        for axis, fill in enumerate(each.fill):
            if fill is not None and (any(part[axis] != 1 for part in parts) or any(borders[axis])):
                return refused(small, large, operands, f"slides over padding that is {said(fill)}")
    chooses = kind in ("max", "min") and len(operands) == 1

    def along(axis: int) -> Fill:
        fills = [each.region(axis) for each in operands]
        if all(map(is_zero, fills)) or chooses:
            return fills[0]
        return weakest(*fills)

    whole = operand.whole if is_zero(operand.whole) and kind == "sum" else weakest(operand.whole)
    return made(small, large, along, whole=whole, wrong=first_wrong(operands))


def unchanged(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Pass all operands on."""
    del small, large
    return list(operands)


INDEXING_RULES: dict[str, Rule] = {
    "slice": slice_rule,
    "split": split,
    "concatenate": concatenate,
    "pad": pad,
    "rev": rev,
    **{name: functools.partial(along_one_axis, name) for name in ("sort", "argmax", "argmin", "top_k")},
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
    "gather": gather,
    "scatter": functools.partial(scatter, False),
    "scatter-add": functools.partial(scatter, True),
    "scatter_add": functools.partial(scatter, True),
    **{f"reduce_window_{kind}": functools.partial(windowed, kind) for kind in ("sum", "max", "min")},
    "select_and_scatter_add": functools.partial(windowed, "scatter"),
    "optimization_barrier": unchanged,
}
