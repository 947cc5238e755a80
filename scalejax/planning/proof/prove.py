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
from scalejax.planning.proof.indexing import INDEXING_RULES
from scalejax.planning.proof.rules import RULES, Equation, first_wrong, made, refused, shapes_of
from scalejax.train.recipe import LaneProgram
from scalejax.train.traced import Traced, traced_descent, traced_evaluation, traced_slope

ALL_RULES = {**RULES, **INDEXING_RULES}
OWN = "scalejax/train", "scalejax/planning", "scalejax/execute"
LIBRARIES = tuple(f"/{name}/" for name in ("jax", "jaxlib", "flax", "optax", *OWN))


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
    recipe, own, other = large.recipe, small.architecture, large.architecture
    for what, one, two in (
        ("training", traced_slope(own, recipe), traced_slope(other, recipe)),
        ("evaluation", traced_evaluation(own, recipe.batch_size), traced_evaluation(other, recipe.batch_size)),
    ):
        why = _difference(one, two)
        if why:
            return Proof(False, f"in {what} {why}")
    if small.decayed != large.decayed:
        name = own.parameter_names[[*map(operator.ne, small.decayed, large.decayed)].index(True)]
        return Proof(False, f"weight decay acts on {name} in one size only")
    why = _difference_of_descent(_descent(large, own.abstract[1], other.abstract[1]))
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
    constants = program.recipe, program.decayed
    pairs = list(zip(jax.tree.leaves(small), jax.tree.leaves(large), strict=True))

    def arrays(padded: int) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(
            jax.ShapeDtypeStruct(
                tuple(2 if have == want else padded for have, want in zip(one.shape, other.shape, strict=True)),
                one.dtype,
            )
            for one, other in pairs
        )

    return _Descent(constants, jax.tree.structure(large), arrays(2), arrays(3), program)


@functools.cache
def _difference_of_descent(descent: _Descent) -> str:
    """Say what padding changes in the optimizer; empty if nothing."""
    small, large = (jax.tree.unflatten(descent.tree, each) for each in (descent.small, descent.large))
    pairs = zip(traced_descent(descent.program, small), traced_descent(descent.program, large), strict=True)
    return next(filter(None, (_difference(*pair) for pair in pairs)), "")


def _difference(small: Traced, large: Traced) -> str:
    """Say what padding changes in a program whose operands are zero in their padding; empty if nothing."""
    for name, one, other in zip(large.takes, small.program.jaxpr.invars, large.program.jaxpr.invars, strict=True):
        if one.aval.shape != other.aval.shape and jnp.issubdtype(other.aval.dtype, jax.dtypes.extended):
            return f"{name} holds random keys, one for each entry of an axis that would be padded"
    operands = [
        value(*shapes_of(one, other), lambda _: ZERO)
        for one, other in zip(small.program.jaxpr.invars, large.program.jaxpr.invars, strict=True)
    ]
    try:
        found = follow(small.program, large.program, operands)
    except DifferentProgramsError as error:
        return str(error)
    for name, each in zip(large.gives, found, strict=True):
        if each.wrong:
            return each.wrong
        if not each.zero_padded:
            return f"{each.origin} puts numbers into the padding of {name} that are not zero"
    return ""


def follow(small: core.ClosedJaxpr, large: core.ClosedJaxpr, operands: Sequence[Value]) -> list[Value]:
    """Follow two programs side by side and return what is known of the results.

    Raises:
        DifferentProgramsError: their equations are not the same.
    """
    for what, one, two in (
        ("constants", small.consts, large.consts),
        ("operands", small.jaxpr.invars, large.jaxpr.invars),
        ("results", small.jaxpr.outvars, large.jaxpr.outvars),
    ):
        if len(one) != len(two):
            raise DifferentProgramsError(f"the two sizes have {len(one)} and {len(two)} {what}")
    known: dict[Any, Value] = dict(zip(large.jaxpr.invars, operands, strict=True))
    twin: dict[Any, Any] = dict(zip(small.jaxpr.invars, large.jaxpr.invars, strict=True))  # small to large
    twin.update(zip(small.jaxpr.constvars, large.jaxpr.constvars, strict=True))
    for variable, one, two in zip(large.jaxpr.constvars, small.consts, large.consts, strict=True):
        known[variable] = _constant(constant(one), constant(two))

    def read(one: Any, two: Any, reader: Equation | None) -> Value:
        if isinstance(one, core.Literal) != isinstance(two, core.Literal):
            says = "reads a constant in one size and a computed value in the other"
            raise DifferentProgramsError(f"{_reader(reader)} {says}")
        if isinstance(two, core.Literal):
            return _constant(constant(one.val), constant(two.val))
        if twin[one] is not two:
            raise DifferentProgramsError(f"{_reader(reader)} reads another value in the larger size")
        return known[two]

    def operand(pair: tuple[Any, Any], equation: Equation) -> Value:
        found = read(*pair, equation)
        literal = isinstance(pair[1], core.Literal) and found.wrong
        return replace(found, wrong=f"{_name(equation)} {found.wrong}") if literal else found

    for one, two in itertools.zip_longest(small.jaxpr.eqns, large.jaxpr.eqns):
        if one is None or two is None or one.primitive.name != two.primitive.name:
            names = ("nothing" if each is None else _name(each) for each in (one, two))
            where = " in the smaller and ".join(names)
            raise DifferentProgramsError(f"the two sizes run different programs, {where} in the larger")
        for what, own, other in (("operands", one.invars, two.invars), ("results", one.outvars, two.outvars)):
            if len(own) != len(other):
                raise DifferentProgramsError(f"{_name(two)} has {len(own)} {what}, and {len(other)} in the larger size")
        for before, after in _shapes(one, two):
            if len(before) != len(after) or any(have > want for have, want in zip(before, after, strict=True)):
                raise DifferentProgramsError(f"{_name(two)} makes {list(before)}, and {list(after)} in the larger size")
        operands = [operand(pair, two) for pair in zip(one.invars, two.invars, strict=True)]
        found = _applied(one, two, operands)
        for own, variable, each in zip(one.outvars, two.outvars, found, strict=True):
            known[variable], twin[own] = each, variable
    results = zip(small.jaxpr.outvars, large.jaxpr.outvars, strict=True)
    return [read(*pair, None) for pair in results]


def _reader(equation: Equation | None) -> str:
    return "the end of the program" if equation is None else _name(equation)


def _applied(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Return the results of one equation, each with what is wrong with it or where its padding comes from."""
    name = large.primitive.name
    inner = called(small), called(large)
    if inner[0] is not None and inner[1] is not None:
        return [_located(each, operands, large) for each in follow(inner[0], inner[1], operands)]
    if name in FLOWS:
        found = FLOWS[name](small, large, operands)
    elif not _same_parameters(small, large):
        found = refused(small, large, operands, "has other parameters in the larger size")
    elif name in ALL_RULES:
        try:
            found = ALL_RULES[name](small, large, operands)
        except (KeyError, IndexError, TypeError, ValueError):  # a form of the primitive that the rule does not know
            found = refused(small, large, operands, "has a form that cannot be followed")
    elif any(each.padded for each in operands) or any(one != other for one, other in _shapes(small, large)):
        found = refused(small, large, operands, "cannot be followed through padding")
    else:
        found = made(small, large, lambda _: Unknown.ANY, wrong=first_wrong(operands))
    return [_explained(each, operands, large) for each in found]


def _explained(result: Value, operands: Sequence[Value], equation: Equation) -> Value:
    """Name the equation in what is wrong, and as the origin of padding that is not zero."""
    if any(each.made_up for each in operands):
        result = replace(result, made_up=True)
    elif isinstance(result.whole, Unknown) and not result.made_up:
        result = replace(result, whole=Unknown.FINITE)  # the corner is what the small program computes
    if result.wrong:
        if any(each.wrong == result.wrong for each in operands):
            return result
        origin = next((f", which {each.origin} has put there" for each in operands if each.origin), "")
        return replace(result, wrong=f"{_name(equation)} {result.wrong}{origin}")
    if result.origin or result.zero_padded:
        return result
    origin = next((each.origin for each in operands if each.origin), "")
    return replace(result, origin=origin or _name(equation))


def _located(result: Value, operands: Sequence[Value], call: Equation) -> Value:
    """Add the line of the user's code to what is wrong inside a call, where the inside does not know it."""
    if not result.wrong or ", line " in result.wrong or any(each.wrong == result.wrong for each in operands):
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
    for name in ("reverse", "num_consts", "num_carry"):
        if small.params[name] != params[name]:
            return refused(small, large, operands, "has other parameters in the larger size")
    first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, start, stacked = operands[:first], operands[first:second], operands[second:]
    carry, results = _settled_carry(bodies, constants, start, [_row(each) for each in stacked])
    rows = results[len(carry) :]
    lengths = small.params["length"], params["length"]
    further: list[Value | None] = [None] * len(rows)
    if lengths[0] != lengths[1]:
        tokens = [replace(each, alias=object(), made_up=True) for each in carry]
        after = follow(*bodies, [*constants, *tokens, *(_padding_row(each) for each in stacked)])
        if any(one.alias is not two.alias for one, two in zip(tokens, after[: len(carry)], strict=True)):
            return refused(
                small, large, operands, "takes more steps in the larger size, and they change what it carries"
            )
        further = list(after[len(carry) :])
    return [*carry, *(_stacked(row, other, lengths) for row, other in zip(rows, further, strict=True))]


def _settled_carry(
    bodies: tuple[core.ClosedJaxpr, core.ClosedJaxpr],
    constants: Sequence[Value],
    start: Sequence[Value],
    rows: Sequence[Value],
) -> tuple[list[Value], list[Value]]:
    """Return what is known of a carry before and after any step, and of a step's results."""
    carry = list(start)
    while True:
        results = follow(*bodies, [*constants, *carry, *rows])
        after = [joined(one, two) for one, two in zip(carry, results[: len(carry)], strict=True)]
        if [_facts(each) for each in after] == [_facts(each) for each in carry]:
            return after, results
        carry = after


def _facts(each: Value) -> tuple[Any, ...]:
    """Return what may still change while a loop is followed again; NaN equals itself."""
    return (repr(each.fill), repr(each.whole), bool(each.wrong), id(each.alias))


def _row(stacked: Value) -> Value:
    """Return what a step of a scan sees of a stacked operand."""
    return replace(stacked, small=stacked.small[1:], large=stacked.large[1:], fill=stacked.fill[1:], alias=None)


def _padding_row(stacked: Value) -> Value:
    """Return what a step sees that only the larger size takes."""
    row = _row(stacked)
    fill = stacked.fill[0]
    if fill is None:
        return replace(row, made_up=True)
    return value(row.small, row.large, row.region, whole=fill, origin=row.origin, made_up=True)


def _stacked(row: Value, further: Value | None, lengths: tuple[int, int]) -> Value:
    """Return the results of all steps; `further` is one of a step that only the larger size takes."""
    small, large = (lengths[0], *row.small), (lengths[1], *row.large)
    if further is None:
        return replace(row, small=small, large=large, fill=(None, *row.fill), alias=None)
    fills = [further.whole, *(join(row.region(axis), further.region(axis)) for axis in range(len(row.large)))]
    whole = row.whole if isinstance(join(row.whole, further.whole), np.generic) else Unknown.FINITE
    return value(small, large, fills.__getitem__, whole=whole, wrong=row.wrong, origin=row.origin or further.origin)


def _while(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Follow a loop until what it carries does not change any more; its end must not depend on padding."""
    params = large.params
    first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    if (small.params["cond_nconsts"], small.params["body_nconsts"]) != (first, second - first):
        return refused(small, large, operands, "has other parameters in the larger size")
    bodies = closed(small.params["body_jaxpr"]), closed(params["body_jaxpr"])
    carry, _ = _settled_carry(bodies, operands[first:second], operands[second:], ())
    conditions = closed(small.params["cond_jaxpr"]), closed(params["cond_jaxpr"])
    (ends,) = follow(*conditions, [*operands[:first], *carry])
    return [replace(each, wrong=each.wrong or ends.wrong, alias=None) for each in carry]


def _cond(small: Equation, large: Equation, operands: Sequence[Value]) -> list[Value]:
    """Follow all branches."""
    which, *rest = operands
    if len(small.params["branches"]) != len(large.params["branches"]):
        return refused(small, large, operands, "has other branches in the larger size")
    branches = zip(small.params["branches"], large.params["branches"], strict=True)
    results = [follow(closed(one), closed(two), rest) for one, two in branches]
    found = [functools.reduce(joined, each) for each in zip(*results, strict=True)]
    return [replace(each, wrong=each.wrong or which.wrong) for each in found]


FLOWS = {"scan": _scan, "while": _while, "cond": _cond}


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


def _name(equation: Equation) -> str:
    """Return what an equation is called in a sentence: its primitive, and where known the line that it stems from."""
    name = equation.params.get("name", equation.primitive.name) if called(equation) else equation.primitive.name
    traceback = getattr(equation.source_info, "traceback", None)
    frames = traceback.frames if traceback is not None else ()
    for frame in frames:
        path = Path(frame.file_name).as_posix()
        if not any(library in path for library in LIBRARIES):
            return f"`{name}` ({Path(path).name}, line {frame.line_num})"
    return f"`{name}`"
