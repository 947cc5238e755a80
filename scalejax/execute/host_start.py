"""The states of trials before their first step, made on the host: what a pack begins with costs no compiled program.

Most optimizers begin with zeros, and then a fresh state is nothing but copies of the settings and the weights, and
constants. Such a state is laid out in NumPy, to the last bit as `step.start` makes it, and copied to the devices once.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from jax.extend import core

from scalejax.train.cost import lane_bytes
from scalejax.train.recipe import LaneProgram, Leaf, Settings
from scalejax.train.step import TrialState, start

MOST_BYTES = 2**24  # of all lanes: laid out on the host, they are there twice for a moment


def starts_on_host(program: LaneProgram, lanes: int) -> bool:
    """Say whether the states of so many lanes can be made here: they are small, and nothing has to be computed."""
    return lanes * lane_bytes(program) <= MOST_BYTES and _plan(program) is not None


def started(program: LaneProgram, settings: Settings, weights: Any, *, rows: Sequence[int]) -> TrialState:
    """Return the fresh states of lanes, [lanes, ...], on the host.

    Args:
        program: one that `starts_on_host`.
        settings: of each trial, [trials].
        weights: padded parameters and rest, [trials, ...].
        rows: of each lane: the trial in it.
    """
    plan = _plan(program)
    if plan is None:
        raise ValueError("the optimizer computes the state that it begins with; place its trials on the devices")
    shape, sources = plan
    given, chosen = jax.tree.leaves((settings, weights)), np.array(rows)

    def lanes(source: int | np.ndarray) -> Leaf:
        if isinstance(source, int):
            return given[source][chosen]
        return np.broadcast_to(source, (len(chosen), *source.shape)).copy()

    return jax.tree.unflatten(shape, map(lanes, sources))


@cache
def _plan(program: LaneProgram) -> tuple[Any, tuple[int | np.ndarray, ...]] | None:
    """Return the structure of a fresh state and where each of its leaves comes from; None if any is computed.

    A leaf is the operand of that number of `step.start`, or a constant, which takes the memory of one number.
    """
    operands = Settings.abstract(program.recipe), program.architecture.abstract[1:]
    traced, state = jax.make_jaxpr(partial(start, program.recipe), return_shape=True)(*operands)
    made_by = {result: equation for equation in traced.jaxpr.eqns for result in equation.outvars}
    numbers = {variable: number for number, variable in enumerate(traced.jaxpr.invars)}

    def source(variable: Any, leaf: jax.ShapeDtypeStruct) -> int | np.ndarray | None:
        if isinstance(variable, core.Literal):
            return np.asarray(variable.val, leaf.dtype)
        if variable in numbers:
            return numbers[variable]
        equation = made_by.get(variable)
        if equation is None or equation.primitive.name != "broadcast_in_dim" or len(equation.invars) != 1:
            return None
        filling = equation.invars[0]
        if not isinstance(filling, core.Literal) or np.ndim(filling.val):
            return None
        return np.broadcast_to(np.asarray(filling.val, leaf.dtype), leaf.shape)

    sources = tuple(map(source, traced.jaxpr.outvars, jax.tree.leaves(state)))
    known = tuple(each for each in sources if each is not None)
    return (jax.tree.structure(state), known) if len(known) == len(sources) else None
