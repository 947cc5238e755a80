"""Convolutions on a CPU: written so that its compiler uses its fast routine for them inside loops too.

XLA's CPU compiler has a fast convolution for inputs and kernels whose channels come last, and a plain loop nest for the
rest. It reorders the axes itself only outside loops (github.com/jax-ml/jax/issues/12868). Training and evaluation
are loops, and the gradients of a convolution are convolutions over other axes: in the loop nest that of a kernel takes
up to seventy times as long. So the axes are reordered here, by transpositions in the traced program.

Side by side, the kernels of many lanes would make one convolution in groups, which is slower than one after the other.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.extend import core

from scalejax.models.equations import called, closed, inner_programs

CONVOLUTION = "conv_general_dilated"
LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}  # by number of axes


def contains(program: core.Jaxpr, primitives: Collection[str]) -> bool:
    """Say whether a program, or a program inside it, has an equation of one of these primitives."""
    return any(
        equation.primitive.name in primitives
        or any(contains(inner, primitives) for inner in inner_programs(equation.params))
        for equation in program.eqns
    )


def convolves(program: core.Jaxpr) -> bool:
    """Say whether a program, or a program inside it, has a convolution."""
    return contains(program, (CONVOLUTION,))


def fast_on_cpu(function: Callable[..., Any], *operands: Any) -> Any:
    """Call a function whose convolutions, where the program runs on a CPU, have their channels last.

    Only rounding differs. A function without convolutions, and any on an accelerator, is called as it is. The function
    may not be differentiated after this: what is differentiated inside it already is.

    Args:
        function: of arrays or trees of them, to the same.
        operands: of the function.
    """
    program, result = jax.make_jaxpr(function, return_shape=True)(*operands)
    if not convolves(program.jaxpr):
        return function(*operands)

    def reordered(*operands: Any) -> Any:
        return jax.tree.unflatten(jax.tree.structure(result), _run(program, *jax.tree.leaves(operands)))

    return lax.platform_dependent(*operands, cpu=reordered, default=function)


def _run(program: core.ClosedJaxpr, *operands: Any) -> list[Any]:
    """Run a program equation by equation, its convolutions with their channels last."""
    values: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    values |= zip(program.jaxpr.invars, operands, strict=True)

    def read(operand: Any) -> Any:
        return operand.val if isinstance(operand, core.Literal) else values[operand]

    for equation in program.jaxpr.eqns:
        made = _result(equation, list(map(read, equation.invars)))
        values |= zip(equation.outvars, made, strict=True)
    return list(map(read, program.jaxpr.outvars))


def _result(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name == CONVOLUTION and operands[0].ndim in LAYOUTS:
        inputs, kernel = operands
        return [_channels_last(inputs, kernel, parameters)]
    inner = called(equation)
    if inner is not None and name.startswith("custom"):  # its rule of differentiation is not needed any more
        return _run(inner, *operands)
    if any(map(convolves, inner_programs(parameters))):
        parameters = {key: _reordered(value) for key, value in parameters.items()}
    made = equation.primitive.bind(*operands, **parameters)
    return made if equation.primitive.multiple_results else [made]


def _reordered(parameter: Any) -> Any:
    """Return a parameter of an equation, the programs in it with their channels last."""
    if isinstance(parameter, tuple | list):
        return type(parameter)(map(_reordered, parameter))
    if not isinstance(parameter, core.Jaxpr | core.ClosedJaxpr):
        return parameter
    program = closed(parameter)
    operands = [variable.aval for variable in program.jaxpr.invars]
    rewritten = jax.make_jaxpr(functools.partial(_run, program))(*operands)
    return rewritten if isinstance(parameter, core.ClosedJaxpr) else rewritten.jaxpr


def _channels_last(inputs: jax.Array, kernel: jax.Array, parameters: dict[str, Any]) -> jax.Array:
    """Convolve with the channels last: the batch first, then space; of the kernel space first, then inputs, outputs."""
    numbers, groups = parameters["dimension_numbers"], parameters["batch_group_count"]
    batch, channels, *space = numbers.lhs_spec
    outputs, taken, *window = numbers.rhs_spec
    first, last, *between = numbers.out_spec
    inputs = lax.transpose(inputs, (batch, *space, channels))
    kernel = lax.transpose(kernel, (*window, taken, outputs))
    changed: dict[str, Any] = {"dimension_numbers": LAYOUTS[inputs.ndim]}
    if groups > 1:  # of examples: as groups of channels, or the compiler makes a further axis of them
        split = inputs.reshape(groups, -1, *inputs.shape[1:])
        inputs = jnp.moveaxis(split, 0, -2).reshape(*split.shape[1:-1], -1)
        changed |= {"batch_group_count": 1, "feature_group_count": groups}
    result = sequential_vmap(functools.partial(lax.conv_general_dilated, **{**parameters, **changed}))(inputs, kernel)
    wanted = (first, *between, last)
    return lax.transpose(result, [wanted.index(axis) for axis in range(result.ndim)])
