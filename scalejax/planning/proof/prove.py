"""The proof that padding a model with zeros changes nothing, from the traced programs of both sizes.

The two programs are followed side by side. Their equations must be the same but for shapes, constants included. Of each
array it is kept which axes are padded and what the padding holds (`fills.py`), and each primitive says what it makes of
that (`rules.py`). Proven is: if parameters, state and optimizer state are zero in their padding before a step, then the
step computes in the corner what the small program computes, and they are zero in their padding after it; so it holds
for any number of steps. What does not change at all is the evaluation.

One thing is taken for granted: that nothing overflows or underflows in the padding. Where a function is not defined for
all numbers, such as a quotient or a logarithm, the padding must be known to lie where it is.
"""

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from scalejax.models.equations import called, closed, constant, settled, text
from scalejax.planning.proof.fills import ZERO, Fill, Unknown, Value, join, joined, unknown, value
from scalejax.planning.proof.rules import RULES, Equation, PaddingError, Rule, made, shapes_of
from scalejax.train.recipe import LaneProgram
from scalejax.train.traced import Traced, traced_descent, traced_evaluation, traced_slope

OTHER_PARAMETERS = "has other parameters in the larger size"
LIBRARIES = tuple(
    f"/{name}/"
    for name in ("jax", "jaxlib", "flax", "optax", *(f"scalejax/{room}" for room in ("train", "planning", "execute")))
)


@dataclass(frozen=True)
class Proof:
    """Whether a size is proven to be the same when padded to another and, if not, why in words."""

    proven: bool
    reason: str


class DifferentProgramsError(Exception):
    """Two sizes run other equations."""


def prove(small: LaneProgram, large: LaneProgram) -> Proof:
    """Prove that a model may run in the program of a larger one, padded with zeros.

    Args:
        small, large: programs that differ in their architectures alone; `fits_into` holds of these.
    """
    recipe, sizes = large.recipe, (small.architecture, large.architecture)
    for what, pair in (
        ("training", [traced_slope(size, recipe) for size in sizes]),
        ("evaluation", [traced_evaluation(size, recipe.batch_size) for size in sizes]),
    ):
        why = _difference(*pair)
        if why:
            return Proof(False, f"in {what} {why}")
    if small.decayed != large.decayed:
        name = sizes[0].parameter_names[[*map(operator.ne, small.decayed, large.decayed)].index(True)]
        return Proof(False, f"weight decay acts on {name} in one size only")
    why = _difference_of_descent(_descent(large, *(size.abstract[1] for size in sizes)))
    return Proof(not why, why and f"in the optimizer {why}")


@dataclass(frozen=True)
class _Descent:
    """The optimizer of a program on arrays that are padded along the same axes, and else as small as they can be.

    An optimizer works on arrays of any shape alike, so it is followed once for all sizes of a family.
    """

    constants: tuple[object, ...]
    tree: Any
    small: tuple[jax.ShapeDtypeStruct, ...]
    large: tuple[jax.ShapeDtypeStruct, ...]
    program: LaneProgram = field(compare=False)


def _descent(program: LaneProgram, small: nnx.State, large: nnx.State) -> _Descent:
    pairs = list(zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True))

    def arrays(padded: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        shapes = (zip(leaf.shape, wide.shape, strict=True) for leaf, wide in pairs)
        shrunk = (tuple(2 if have == want else padded for have, want in shape) for shape in shapes)
        return tuple(jax.ShapeDtypeStruct(shape, leaf.dtype) for shape, (leaf, _) in zip(shrunk, pairs, strict=True))

    constants = program.recipe, program.decayed, program.architecture.occasion
    return _Descent(constants, jax.tree.structure(large), arrays(2), arrays(3), program)


@functools.cache
def _difference_of_descent(descent: _Descent) -> str:
    """Say what padding changes in the optimizer; empty if nothing."""
    small, large = (jax.tree.unflatten(descent.tree, arrays) for arrays in (descent.small, descent.large))
    pairs = zip(traced_descent(descent.program, small), traced_descent(descent.program, large), strict=True)
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def _difference(small: Traced, large: Traced) -> str:
    """Say what padding changes in a program whose operands are zero in their padding; empty if nothing."""
    operands = []
    for name, *variables in zip(large.takes, small.program.jaxpr.invars, large.program.jaxpr.invars, strict=True):
        shapes = shapes_of(*variables)
        if shapes[0] != shapes[1] and jnp.issubdtype(variables[1].aval.dtype, jax.dtypes.extended):
            return f"{name} holds random keys, one for each entry of an axis that would be padded"
        operands.append(value(*shapes, lambda _: ZERO))
    try:
        results = follow(small.program, large.program, operands)
    except DifferentProgramsError as error:
        return str(error)
    for name, result in zip(large.gives, results, strict=True):
        if result.wrong:
            return result.wrong
        if not result.zero_padded:
            return f"{result.origin} puts numbers into the padding of {name} that are not zero"
    return ""


def follow(small: core.ClosedJaxpr, large: core.ClosedJaxpr, operands: Sequence[Value]) -> list[Value]:
    """Follow two programs side by side and return what is known of the results.

    Raises:
        DifferentProgramsError: their equations are not the same.
    """
    for what, few, many in (
        ("constants", small.consts, large.consts),
        ("operands", small.jaxpr.invars, large.jaxpr.invars),
        ("results", small.jaxpr.outvars, large.jaxpr.outvars),
    ):
        if len(few) != len(many):
            raise DifferentProgramsError(f"the two sizes have {len(few)} and {len(many)} {what}")
    known: dict[Any, Value] = dict(zip(large.jaxpr.invars, operands, strict=True))
    twin: dict[Any, Any] = dict(zip(small.jaxpr.invars, large.jaxpr.invars, strict=True))  # small to large
    twin.update(zip(small.jaxpr.constvars, large.jaxpr.constvars, strict=True))
    for variable, *constants in zip(large.jaxpr.constvars, small.consts, large.consts, strict=True):
        known[variable] = _constant(*map(constant, constants))

    def read(one: Any, two: Any, equation: Equation | None) -> Value:
        """Return what is known of an operand of an equation, or (None) of a result of the program."""
        literals = [isinstance(variable, core.Literal) for variable in (one, two)]
        if literals[0] != literals[1]:
            raise DifferentProgramsError(
                f"{_name(equation)} reads a constant in one size and a computed value in the other"
            )
        if literals[0]:
            literal = _constant(constant(one.val), constant(two.val))
            told = literal.wrong and equation is not None
            return replace(literal, wrong=f"{_name(equation)} {literal.wrong}") if told else literal
        if twin[one] is not two:
            raise DifferentProgramsError(f"{_name(equation)} reads another value in the larger size")
        return known[two]

    for one, two in itertools.zip_longest(small.jaxpr.eqns, large.jaxpr.eqns):
        # The same primitive, on as many operands, with results that are no smaller.
        if one is None or two is None or one.primitive.name != two.primitive.name:
            names = ("nothing" if equation is None else _name(equation) for equation in (one, two))
            where = " in the smaller and ".join(names)
            raise DifferentProgramsError(f"the two sizes run different programs, {where} in the larger")
        for what, few, many in (("operands", one.invars, two.invars), ("results", one.outvars, two.outvars)):
            if len(few) != len(many):
                raise DifferentProgramsError(f"{_name(two)} has {len(few)} {what}, and {len(many)} in the larger size")
        for before, after in _shapes(one, two):
            if len(before) != len(after) or any(have > want for have, want in zip(before, after, strict=True)):
                raise DifferentProgramsError(f"{_name(two)} makes {list(before)}, and {list(after)} in the larger size")
        # What padding does to it, given what is known of the operands.
        operands = [read(*pair, two) for pair in zip(one.invars, two.invars, strict=True)]
        twin.update(zip(one.outvars, two.outvars, strict=True))
        known.update(zip(two.outvars, _applied(one, two, operands), strict=True))
    return [read(*pair, None) for pair in zip(small.jaxpr.outvars, large.jaxpr.outvars, strict=True)]


def _applied(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Return the results of one equation, each with what is wrong with it or where its padding comes from."""
    name, inner = large.primitive.name, (called(small), called(large))
    if inner[0] is not None and inner[1] is not None:
        return [_located(result, operands, large) for result in follow(inner[0], inner[1], operands)]
    wrong = next((operand.wrong for operand in operands if operand.wrong), "")
    try:
        if name in FLOWS:
            results = FLOWS[name](small, large, operands)
        else:
            if not _same_parameters(small, large):
                raise PaddingError(OTHER_PARAMETERS)
            if name in RULES:
                results = RULES[name](small, large, operands)
            elif any(operand.padded for operand in operands) or any(one != two for one, two in _shapes(small, large)):
                raise PaddingError("cannot be followed through padding")
            else:
                results = made(small, large, lambda _: Unknown.ANY, whole=Unknown.FINITE)
            results = [replace(result, wrong=wrong or result.wrong) for result in results]
    except (PaddingError, KeyError, IndexError, TypeError, ValueError) as error:
        unfamiliar = "has a form that cannot be followed"  # a form of the primitive that the rule does not know
        why = wrong or (str(error) if isinstance(error, PaddingError) else unfamiliar)
        results = [unknown(*shapes, wrong=why) for shapes in _shapes(small, large)]
    return [_explained(result, operands, large) for result in results]


def _explained(result: Value, operands: Sequence[Value], equation: Equation) -> Value:
    """Name the equation in what is wrong, and as the origin of padding that is not zero."""
    if any(operand.made_up for operand in operands):
        result = replace(result, made_up=True)
    elif isinstance(result.whole, Unknown) and not result.made_up and not _positive_scalar(result):
        result = replace(result, whole=Unknown.FINITE)  # the corner is what the small program computes
    origin = next((operand.origin for operand in operands if operand.origin), "")
    if result.wrong:
        if any(operand.wrong == result.wrong for operand in operands):
            return result
        put = origin and f", which {origin} has put there"
        return replace(result, wrong=f"{_name(equation)} {result.wrong}{put}")
    if result.origin or result.zero_padded:
        return result
    return replace(result, origin=origin or _name(equation))


def _positive_scalar(result: Value) -> bool:
    """Say whether a number is known to be above zero, which matters where it meets the padding of an array."""
    return not result.large and result.whole is Unknown.POSITIVE


def _located(result: Value, operands: Sequence[Value], call: Equation) -> Value:
    """Add the line of the user's code to what is wrong inside a call, where the inside does not know it."""
    if not result.wrong or ", line " in result.wrong or any(operand.wrong == result.wrong for operand in operands):
        return result
    return replace(result, wrong=f"{result.wrong}, called by {_name(call)}")


def _shapes(small: Equation, large: Equation) -> Iterable[tuple[tuple[int, ...], tuple[int, ...]]]:
    return (shapes_of(*pair) for pair in zip(small.outvars, large.outvars, strict=True))


def _constant(small: np.ndarray, large: np.ndarray) -> Value:
    """Return a constant of both programs as a value."""
    same_type = small.dtype == large.dtype and small.ndim == large.ndim
    same_type = same_type and all(have <= want for have, want in zip(small.shape, large.shape, strict=True))
    corner = large[tuple(slice(size) for size in small.shape)] if same_type else large
    wrong = ""
    if not same_type or corner.shape != small.shape or corner.tobytes() != small.tobytes():
        wrong = "uses another constant in the larger size"
        if small.size == large.size == 1:
            wrong = f"uses the constant {small.item()!r}, and {large.item()!r} in the larger size"
    if not same_type:
        return unknown(large.shape, large.shape, wrong=wrong)
    flat = large.reshape(-1)
    finite = not jnp.issubdtype(large.dtype, jnp.inexact) or bool(np.isfinite(large).all())
    whole: Fill = Unknown.FINITE if finite else Unknown.ANY
    if flat.size and bool((flat == flat[0]).all()):
        whole = flat[0]

    def along(axis: int) -> Fill:
        beyond = np.take(large, range(small.shape[axis], large.shape[axis]), axis).reshape(-1)
        if bool((beyond == beyond[0]).all()):
            return beyond[0]
        return Unknown.POSITION if finite else Unknown.ANY

    return value(small.shape, large.shape, along, whole=whole, wrong=wrong)


# ---- loops and branches ----


def _scan(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Follow a scan. Along a padded leading axis the larger size takes more steps: they must change nothing.

    A step's results that are stacked are padding where the step is one of these.
    """
    params = large.params
    bodies = closed(small.params["jaxpr"]), closed(params["jaxpr"])
    if any(small.params[name] != params[name] for name in ("reverse", "num_consts", "num_carry")):
        raise PaddingError(OTHER_PARAMETERS)
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, start, stacked = operands[:first], operands[first:second], operands[second:]
    carry, results = _settled_carry(bodies, constants, start, [_row(operand) for operand in stacked])
    rows = results[len(carry) :]
    lengths = small.params["length"], params["length"]
    further: list[Value | None] = [None] * len(rows)
    if lengths[0] != lengths[1]:
        tokens = [replace(carried, alias=object(), made_up=True) for carried in carry]
        after = follow(*bodies, [*constants, *tokens, *(_padding_row(operand) for operand in stacked)])
        if any(one.alias is not two.alias for one, two in zip(tokens, after[: len(carry)], strict=True)):
            raise PaddingError("takes more steps in the larger size, and they change what it carries")
        further = list(after[len(carry) :])
    return [*carry, *(_stacked(*pair, lengths) for pair in zip(rows, further, strict=True))]


def _settled_carry(
    bodies: tuple[core.ClosedJaxpr, core.ClosedJaxpr],
    constants: Sequence[Value],
    start: Sequence[Value],
    rows: Sequence[Value],
) -> tuple[list[Value], list[Value]]:
    """Return what is known of a carry before and after any step, and of a step's results."""

    def facts(carried: Value) -> tuple[Any, ...]:
        """Return what may still change while a loop is followed again; NaN equals itself."""
        return (repr(carried.fill), repr(carried.whole), bool(carried.wrong), id(carried.alias))

    carry = list(start)
    while True:
        results = follow(*bodies, [*constants, *carry, *rows])
        after = [joined(*pair) for pair in zip(carry, results[: len(carry)], strict=True)]
        if list(map(facts, after)) == list(map(facts, carry)):
            return after, results
        carry = after


def _row(stacked: Value) -> Value:
    """Return what a step of a scan sees of a stacked operand."""
    return replace(stacked, small=stacked.small[1:], large=stacked.large[1:], fill=stacked.fill[1:], alias=None)


def _padding_row(stacked: Value) -> Value:
    """Return what a step sees that only the larger size takes."""
    row, fill = _row(stacked), stacked.fill[0]
    if fill is None:
        return replace(row, made_up=True)
    return value(row.small, row.large, row.region, whole=fill, origin=row.origin, made_up=True)


def _stacked(row: Value, further: Value | None, lengths: tuple[int, int]) -> Value:
    """Return the results of all steps; `further` is one of a step that only the larger size takes."""
    small, large = (lengths[0], *row.small), (lengths[1], *row.large)
    if further is None:
        return replace(row, small=small, large=large, fill=(None, *row.fill), alias=None)

    def along(axis: int) -> Fill:
        fill = further.region(axis)
        if fill is Unknown.SHARED and further.whole is Unknown.POSITIVE:
            fill = Unknown.POSITIVE  # the same as in the corner, which is above zero
        return join(row.region(axis), fill)

    fills = [further.whole, *map(along, range(len(row.large)))]
    whole = row.whole if isinstance(join(row.whole, further.whole), np.generic) else Unknown.FINITE
    return value(small, large, fills.__getitem__, whole=whole, wrong=row.wrong, origin=row.origin or further.origin)


def _while(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Follow a loop until what it carries does not change any more; its end must not depend on padding."""
    params = large.params
    if any(small.params[name] != params[name] for name in ("cond_nconsts", "body_nconsts")):
        raise PaddingError(OTHER_PARAMETERS)
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    bodies = closed(small.params["body_jaxpr"]), closed(params["body_jaxpr"])
    carry, _ = _settled_carry(bodies, operands[first:second], operands[second:], ())
    conditions = closed(small.params["cond_jaxpr"]), closed(params["cond_jaxpr"])
    (ends,) = follow(*conditions, [*operands[:first], *carry])
    return [replace(carried, wrong=carried.wrong or ends.wrong, alias=None) for carried in carry]


def _cond(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Follow all branches."""
    which, *rest = operands
    if len(small.params["branches"]) != len(large.params["branches"]):
        raise PaddingError("has other branches in the larger size")
    branches = zip(small.params["branches"], large.params["branches"], strict=True)
    by_branch = [follow(closed(one), closed(two), rest) for one, two in branches]
    results = [functools.reduce(joined, alternatives) for alternatives in zip(*by_branch, strict=True)]
    return [replace(result, wrong=result.wrong or which.wrong) for result in results]


def _barrier(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Pass all operands on."""
    del small, large
    return list(operands)


# What is wrong with an operand of these is not wrong with all results.
FLOWS: dict[str, Rule] = {"scan": _scan, "while": _while, "cond": _cond, "optimization_barrier": _barrier}


def _same_parameters(small: Equation, large: Equation) -> bool:
    """Say whether two equations differ in nothing but what follows from their shapes."""
    one, two = (settled(each.primitive.name, each.params) for each in (small, large))
    return one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)


def _equal(one: Any, two: Any) -> bool:
    if one is two:
        return True
    if isinstance(one, core.Jaxpr | core.ClosedJaxpr):
        return text(closed(one), shapes=False) == text(closed(two), shapes=False)
    if isinstance(one, tuple) and isinstance(two, tuple):
        return len(one) == len(two) and all(_equal(*pair) for pair in zip(one, two, strict=True))
    if isinstance(one, np.ndarray | jax.Array):
        return constant(one).tobytes() == constant(two).tobytes()
    return bool(one == two)


def _name(equation: Equation | None) -> str:
    """Return what an equation is called in a sentence: its primitive, and where known the line that it stems from."""
    if equation is None:
        return "the end of the program"
    name = equation.params.get("name", equation.primitive.name) if called(equation) else equation.primitive.name
    traceback = getattr(equation.source_info, "traceback", None)
    for frame in traceback.frames if traceback is not None else ():
        path = Path(frame.file_name).as_posix()
        if not any(library in path for library in LIBRARIES):
            return f"`{name}` ({Path(path).name}, line {frame.line_num})"
    return f"`{name}`"
