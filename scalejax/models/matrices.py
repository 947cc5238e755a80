"""Which parameters are matrices, told by what the model does with them: those and no others get weight decay.

A parameter is a matrix if an axis of it is contracted, in a product or a convolution, and another one is not, or it is
a vector contracted by itself; or if the data look it up, as an embedding. Biases and gains are added to and multiplied
with activations, or with a kernel; how many axes they have says nothing: stacked over layers, or of attention heads,
they have two or three. A kernel that is multiplied and then summed, without a product, is not recognised.
"""

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend import core

from scalejax.models.equations import called, closed

Numbers = frozenset[int]  # of parameters
NONE: Numbers = frozenset()


@dataclass(frozen=True)
class Weight:
    """An array that follows from parameters alone; for each of its axes, the parameters whose axis that is."""

    axes: tuple[Numbers, ...]

    @property
    def all(self) -> Numbers:
        """The parameters that any axis belongs to."""
        return _union(self.axes)


Origin = Weight | None  # None is an activation: whatever the data or a product have gone into


def matrices(program: core.ClosedJaxpr, params: int) -> tuple[bool, ...]:
    """Say of each parameter of a model whether it is a matrix.

    Args:
        program: of the model's forward pass; its first operands are the parameters.
        params: how many these are.
    """
    operands: list[Origin] = []
    for number, variable in enumerate(program.jaxpr.invars):
        rank = len(getattr(variable.aval, "shape", ()))
        operands.append(Weight((frozenset({number}),) * rank) if number < params else None)
    reader = _Reader(set())
    reader.read(program, operands)
    return tuple(number in reader.matrices for number in range(params))


@dataclass(frozen=True)
class _Reader:
    """Reads a program from top to bottom, and notes the parameters that turn out to be matrices."""

    matrices: set[int]

    def read(self, program: core.ClosedJaxpr, operands: Sequence[Origin]) -> list[Origin]:
        """Return what the results of a program are."""
        known: dict[Any, Origin] = dict(zip(program.jaxpr.invars, operands, strict=True))
        for variable in program.jaxpr.constvars:
            known[variable] = _constant(variable)

        def value(operand: Any) -> Origin:
            return _constant(operand) if isinstance(operand, core.Literal) else known[operand]

        for equation in program.jaxpr.eqns:
            results = self._results(equation, [value(each) for each in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [value(each) for each in program.jaxpr.outvars]

    def _results(self, equation: Any, operands: Sequence[Origin]) -> Sequence[Origin]:
        name, params = equation.primitive.name, equation.params
        inner = called(equation)
        if inner is not None:
            return self.read(inner, operands)
        match name:
            case "scan":
                return self._scan(params, operands)
            case "while":
                first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
                body = closed(params["body_jaxpr"])
                carry = _counters(body, operands[first:second], operands[second:], ())
                self.read(closed(params["cond_jaxpr"]), [*operands[:first], *carry])
                return self.read(body, [*operands[first:second], *carry])
            case "cond":
                found = [self.read(closed(branch), operands[1:]) for branch in params["branches"]]
                return [_either(each, operands[0]) for each in zip(*found, strict=True)]
            case "dot_general":
                contracted, batched = params["dimension_numbers"]
                self._contract(operands, contracted, batched)
                return [None]
            case "conv_general_dilated":
                numbers = params["dimension_numbers"]
                batch, out = numbers.lhs_spec[0], numbers.rhs_spec[0]
                ranks = [len(each.aval.shape) for each in equation.invars]
                self._contract(
                    operands, [[i for i in range(ranks[0]) if i != batch], [i for i in range(ranks[1]) if i != out]]
                )
                return [None]
            case "gather" if operands[0] is not None and operands[1] is None:
                self.matrices.update(
                    _union(operands[0].axes[axis] for axis in params["dimension_numbers"].start_index_map)
                )
                return [None]
        if any(each is None for each in operands):
            return [None] * len(equation.outvars)
        return [
            _moved(equation, [each for each in operands if each is not None], variable) for variable in equation.outvars
        ]

    def _scan(self, params: Mapping[str, Any], operands: Sequence[Origin]) -> list[Origin]:
        """Read a step of a scan, which sees a row of each stacked operand; what goes round is an activation."""
        first, second = params["num_consts"], params["num_consts"] + params["num_carry"]
        rows = [each and Weight(each.axes[1:]) for each in operands[second:]]
        body = closed(params["jaxpr"])
        carry = _counters(body, operands[:first], operands[first:second], rows)
        found = self.read(body, [*operands[:first], *carry, *rows])
        return [*carry, *(each and Weight((NONE, *each.axes)) for each in found[len(carry) :])]

    def _contract(
        self, operands: Sequence[Origin], axes: Sequence[Sequence[int]], batched: Sequence[Sequence[int]] = ((), ())
    ) -> None:
        for operand, contracted, batch in zip(operands, axes, batched, strict=True):
            if operand is None:
                continue
            left = (own for axis, own in enumerate(operand.axes) if axis not in (*contracted, *batch))
            kept, gone = _union(left), _union(operand.axes[axis] for axis in contracted)
            self.matrices.update(gone if gone == operand.all and len(gone) == 1 else gone & kept)


def _counters(
    body: core.ClosedJaxpr, constants: Sequence[Origin], carry: Sequence[Origin], rows: Sequence[Origin]
) -> list[Origin]:
    """Return what a loop carries: what depends on no parameter and no data, as a counter does; else activations."""
    carried = [each if each is not None and not each.all else None for each in carry]
    while True:
        found = _Reader(set()).read(body, [*constants, *carried, *rows])[: len(carry)]
        left = [each if new is not None and not new.all else None for each, new in zip(carried, found, strict=True)]
        if left == carried:
            return left
        carried = left


def _constant(variable: Any) -> Weight:
    return Weight((NONE,) * len(getattr(variable.aval, "shape", ())))


def _union(sets: Any) -> Numbers:
    return functools.reduce(operator.or_, sets, NONE)


def _either(results: Sequence[Origin], which: Origin) -> Origin:
    """Return what a branch gives, if all give the same and no data choose between them."""
    first = results[0]
    return first if which is not None and all(each == first for each in results) else None


def _moved(equation: Any, operands: Sequence[Weight], result: Any) -> Weight:
    """Return the axes of a result that follows from parameters alone."""
    name, params, rank = equation.primitive.name, equation.params, len(getattr(result.aval, "shape", ()))
    # An axis of one entry may be spread over many, which are then no parameter's own.
    spread = [
        [NONE if size == 1 else numbers for size, numbers in zip(variable.aval.shape, operand.axes, strict=True)]
        for variable, operand in zip(equation.invars, operands, strict=True)
    ]
    first = list(operands[0].axes) if operands else []
    match name:
        case "broadcast_in_dim":
            source = dict(zip(params["broadcast_dimensions"], spread[0], strict=True))
            return Weight(tuple(source.get(axis, NONE) for axis in range(rank)))
        case "transpose":
            return Weight(tuple(first[axis] for axis in params["permutation"]))
        case "squeeze":
            return Weight(tuple(each for axis, each in enumerate(first) if axis not in params["dimensions"]))
        case _ if name.startswith("reduce_") and "axes" in params:
            return Weight(tuple(each for axis, each in enumerate(first) if axis not in params["axes"]))
        case "reshape" if first:
            return _reshaped(first, equation.invars[0].aval.shape, result.aval.shape)
    if all(len(axes) in (0, rank) for axes in spread):  # entry by entry, or a part of an array
        own = [axes for axes in spread if len(axes) == rank]
        return Weight(tuple(_union(axes) for axes in zip(*own, strict=True)) if own else (NONE,) * rank)
    return Weight((_union(each.all for each in operands),) * rank)


def _reshaped(axes: Sequence[Numbers], before: Sequence[int], after: Sequence[int]) -> Weight:
    """Return the axes after a reshape: axes of one entry come and go, others are merged and divided."""
    long_before = [(size, each) for size, each in zip(before, axes, strict=True) if size != 1]
    if [size for size, _ in long_before] == [size for size in after if size != 1]:
        left = iter(long_before)
        return Weight(tuple(NONE if size == 1 else next(left)[1] for size in after))
    return Weight((_union(axes),) * len(after))
