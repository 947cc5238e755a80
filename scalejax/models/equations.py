"""A traced program as text: what a model computes, down to its constants.

An id hashes it, so that whatever changes a number changes the id, wherever in the user's code it was written. The proof
of packing compares programs by it that are parameters of an equation, without their shapes.

The text is the same in every process and on every machine: variables are numbered, names of functions and addresses
are left out, and a call is replaced by what it calls.
"""

import enum
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from scalejax.code_text import ADDRESS, LIBRARIES, array_text, code_digest, constant

# Primitives that do nothing but call the program in one of their parameters.
CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_lin"),
}
CALLED = ("jaxpr", "call_jaxpr", "fun_jaxpr")
# Parameters that follow from the shapes of a primitive's operands and results.
SHAPE_PARAMETERS: Mapping[str, frozenset[str]] = {
    "broadcast_in_dim": frozenset({"shape"}),
    "dynamic_slice": frozenset({"slice_sizes"}),
    "gather": frozenset({"slice_sizes"}),
    "iota": frozenset({"shape"}),
    "pad": frozenset({"padding_config"}),
    "random_bits": frozenset({"shape"}),
    "reshape": frozenset({"new_sizes"}),
    "scan": frozenset({"length"}),
    "slice": frozenset({"start_indices", "limit_indices"}),
    "split": frozenset({"sizes"}),
}
# Parameters that say where a value lies or how fast it is computed, and never which value it is.
SILENT = {"sharding", "out_sharding", "unroll", "compiler_options_kvs", "ctx_mesh", "_split_transpose", "linear"}
NOTHING: frozenset[str] = frozenset()


def called(equation: Any) -> core.ClosedJaxpr | None:
    """Return the program that an equation only calls, None if it does anything else."""
    if equation.primitive.name not in CALLS:
        return None
    found = next((equation.params[name] for name in CALLED if name in equation.params), None)
    return None if found is None else closed(found)


def closed(program: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Return a program with its constants, of which an open one has none."""
    return program if isinstance(program, core.ClosedJaxpr) else core.ClosedJaxpr(program, ())


def inner_programs(parameters: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
    """Yield the programs among the parameters of an equation."""
    for value in parameters.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(each, "jaxpr", each)
            if isinstance(inner, core.Jaxpr):
                yield inner


def settled(primitive: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a primitive that do not follow from shapes, and that say which value it makes."""
    dropped = SHAPE_PARAMETERS.get(primitive, NOTHING)
    return {name: value for name, value in parameters.items() if name not in dropped and name not in SILENT}


def text(program: core.ClosedJaxpr, *, shapes: bool = True) -> str:
    """Return a program in words: one line an equation, its operands by number.

    Args:
        program: as `jax.make_jaxpr` returns it.
        shapes: whether shapes, and what follows from them, are part of the text.
    """
    lines: list[str] = []
    names: dict[Any, str] = {}
    numbers = itertools.count()

    def define(variables: Sequence[Any]) -> str:
        for each in variables:
            names[each] = f"%{next(numbers)}"
        return " ".join(_kind(each.aval, shapes=shapes) for each in variables)

    def use(operand: Any) -> str:
        return _constant_text(operand.val, shapes=True) if isinstance(operand, core.Literal) else names[operand]

    def write(program: core.ClosedJaxpr) -> None:
        for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
            names[variable] = _constant_text(value, shapes=shapes)
        for equation in program.jaxpr.eqns:
            inner = called(equation)
            if inner is None:
                operands = " ".join(map(use, equation.invars))
                parameters = equation.params if shapes else settled(equation.primitive.name, equation.params)
                kept = {name: value for name, value in parameters.items() if name not in SILENT}
                made = define(equation.outvars)
                lines.append(f"{equation.primitive.name} {operands} {_plain(kept, shapes=shapes)} -> {made}")
                continue
            for outer, formal in zip(equation.invars, inner.jaxpr.invars, strict=True):
                names[formal] = use(outer)
            write(inner)
            for outer, result in zip(equation.outvars, inner.jaxpr.outvars, strict=True):
                names[outer] = use(result)

    lines.append(f"takes {define(program.jaxpr.invars)}")
    write(program)
    lines.append(f"gives {' '.join(map(use, program.jaxpr.outvars))}")
    return "\n".join(lines)


def _kind(aval: Any, *, shapes: bool) -> str:
    """Return the type of a value: its number type, and its shape or only how many axes it has."""
    shape = getattr(aval, "shape", ())
    return f"{getattr(aval, 'dtype', aval)}{list(shape)}" if shapes else f"{getattr(aval, 'dtype', aval)}/{len(shape)}"


def _constant_text(value: Any, *, shapes: bool) -> str:
    """Return a constant: a number in full, an array by its hash, or by its type alone where shapes are left out."""
    array = constant(value)
    return array_text(array) if shapes or array.ndim == 0 else f"constant {array.dtype}/{array.ndim}"


def _plain(value: Any, *, shapes: bool) -> str:
    """Return a parameter as a text in which no address and no name of a function appears."""
    match value:
        case core.ClosedJaxpr() | core.Jaxpr():
            return "{" + text(closed(value), shapes=shapes) + "}"
        case Mapping():
            return "{" + ", ".join(f"{key}: {_plain(each, shapes=shapes)}" for key, each in sorted(value.items())) + "}"
        case np.ndarray() | jax.Array():
            return _constant_text(value, shapes=True)
        case enum.Enum():
            return value.name
        case set() | frozenset():
            return "{" + ", ".join(sorted(_plain(each, shapes=shapes) for each in value)) + "}"
        case tuple() | list():
            return "(" + ", ".join(_plain(each, shapes=shapes) for each in value) + ")"
        case np.dtype() | type() | str() | int() | float() | bool() | None:
            return repr(value)
        case Callable():
            return _code_text(value)
    return ADDRESS.sub("", repr(value))


def _code_text(function: Any) -> str:
    """Return what is known of a function that a program calls on the host: its code and what that reads."""
    return code_digest(getattr(function, "callback_func", function), libraries=LIBRARIES)
