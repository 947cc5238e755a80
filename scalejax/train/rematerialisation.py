"""Rematerialisation: the blocks of a stacked model are computed again in the backward pass, instead of being kept.

It is done to the traced program of a model, so that it holds for any: the body of each of its scans, which is one
block, keeps nothing but what it is given (Chen et al. 2016, arXiv:1604.06174).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core

CALLS = {"jit", "pjit", "closed_call"}  # what a function that is called in a program is called, by version


def rematerialised(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose scans keep only what each of their steps is given; its results are the same."""

    def run(*operands: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*operands)
        made = _evaluated(traced.jaxpr, traced.consts, jax.tree.leaves(operands))
        return jax.tree.unflatten(jax.tree.structure(shapes), made)

    return run


def stacks(program: core.Jaxpr) -> bool:
    """Say whether a program has a scan that `rematerialised` would find."""
    return any(
        equation.primitive.name == "scan"
        or (equation.primitive.name in CALLS and stacks(equation.params["jaxpr"].jaxpr))
        for equation in program.eqns
    )


def _evaluated(program: core.Jaxpr, constants: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """Evaluate a program, equation by equation."""
    known: dict[Any, Any] = dict(zip(program.constvars, constants, strict=True))
    known |= zip(program.invars, operands, strict=True)

    def value(of: Any) -> Any:
        return of.val if isinstance(of, core.Literal) else known[of]

    for equation in program.eqns:
        given, params = [value(each) for each in equation.invars], equation.params
        if equation.primitive.name == "scan":
            made = _scan(params, given)
        elif equation.primitive.name in CALLS:
            made = _evaluated(params["jaxpr"].jaxpr, params["jaxpr"].consts, given)
        else:
            taken = [each for each in equation.invars if not isinstance(each, core.Literal)]
            alone = core.Jaxpr((), list(dict.fromkeys(taken)), equation.outvars, [equation])
            made = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*(known[each] for each in alone.invars))
        known |= zip(equation.outvars, made, strict=True)
    return [value(each) for each in program.outvars]


def _scan(params: dict[str, Any], given: Sequence[Any]) -> list[Any]:
    """Run a scan whose body is rematerialised."""
    first, count = params["num_consts"], params["num_carry"]
    fixed, begun, passing = given[:first], given[first : first + count], given[first + count :]
    body = jax.checkpoint(core.jaxpr_as_fun(params["jaxpr"]))

    def step(carry: list[Any], each: list[Any]) -> tuple[list[Any], list[Any]]:
        made = body(*fixed, *carry, *each)
        return list(made[:count]), list(made[count:])

    ended, stacked = lax.scan(
        step, list(begun), list(passing), length=params["length"], reverse=params["reverse"], unroll=params["unroll"]
    )
    return [*ended, *stacked]
