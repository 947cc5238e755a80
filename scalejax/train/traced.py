"""The programs of ONE model, traced once for all that look at them: FLOPs, bytes, ids, and the proof of packing."""

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from scalejax.models import Architecture
from scalejax.models.equations import SILENT, called, closed, constant, digest, settled, text
from scalejax.models.own import failing, named
from scalejax.train.lanes import abstract_settings
from scalejax.train.step import Examples, Recipe, Slope, descend, slope, start


@dataclass(frozen=True)
class Traced:
    """A program, and what its operands and results are called: the paths of their leaves."""

    program: core.ClosedJaxpr
    takes: tuple[str, ...]
    gives: tuple[str, ...]


@functools.cache
def traced_slope(architecture: Architecture, batch: tuple[int, ...]) -> Traced:
    """Return the loss of a batch and its gradient; `batch` is the shape of its inputs."""

    def one(params: nnx.State, rest: nnx.State, examples: Examples) -> Slope:
        return slope(architecture, params, rest, batch=examples)

    examples = Examples(jax.ShapeDtypeStruct(batch, jnp.float32), jax.ShapeDtypeStruct(batch[:1], jnp.int32))
    with failing(f"the model {architecture.title} cannot be trained on inputs of shape {batch}"):
        return _traced(one, *architecture.abstract[1:], examples)


@functools.cache
def traced_evaluation(architecture: Architecture, batch: tuple[int, ...]) -> Traced:
    """Return the logits of a batch in evaluation mode; `batch` is the shape of its inputs."""
    with failing(f"the model {architecture.title} fails on inputs of shape {batch}"):
        return _traced(architecture.predict, *architecture.abstract[1:], jax.ShapeDtypeStruct(batch, jnp.float32))


@functools.cache
def program_digest(architecture: Architecture, batch: tuple[int, ...]) -> str:
    """Return a digest of all that a model computes: initialisation, loss and gradient, evaluation, constants included.

    It is the same in every process and on every machine, and another one once any code that the model runs computes
    something else. Other versions of JAX and Flax may trace the same model to another program.
    """
    programs = (traced_initialisation(architecture), traced_slope(architecture, batch))
    return digest(*(text(each.program) for each in (*programs, traced_evaluation(architecture, batch))))


@functools.cache
def traced_initialisation(architecture: Architecture) -> Traced:
    """Return the drawing of parameters and rest from 32 random bits."""
    return _traced(lambda key: architecture.initialise(jax.random.key(key)), jax.ShapeDtypeStruct((), jnp.uint32))


def traced_descent(recipe: Recipe, params: nnx.State) -> tuple[Traced, Traced]:
    """Return what makes a trial's state of its weights, and what moves it against a gradient; `params` are abstract."""
    nothing = nnx.State({})
    settings = abstract_settings()
    starting = functools.partial(start, recipe)
    learner = jax.eval_shape(starting, settings, (params, nothing)).learner
    found = Slope(jax.ShapeDtypeStruct((), jnp.float32), nothing, params)
    moving = functools.partial(descend, recipe)
    return _traced(starting, settings, (params, nothing)), _traced(moving, settings, learner, found)


def _traced(function: Any, *operands: Any) -> Traced:
    program, given = jax.make_jaxpr(function, return_shape=True)(*operands)
    return Traced(program, _paths(operands), _paths(given))


def _paths(tree: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in named(tree))


def skeleton(program: core.ClosedJaxpr) -> int:
    """Return a hash of a program without its shapes; of programs with equal ones a proof may say more.

    It holds in this process alone, and is many times faster than the text of the program.
    """
    return hash(tuple(_words(program)))


def _words(program: core.ClosedJaxpr) -> Iterator[Hashable]:
    numbers: dict[Any, int] = {}

    def define(variables: Sequence[Any]) -> None:
        numbers.update((each, len(numbers) + place) for place, each in enumerate(variables))

    def use(operands: Sequence[Any]) -> Iterator[Hashable]:
        for each in operands:
            yield _number(each.val) if isinstance(each, core.Literal) else numbers[each]

    define([*program.jaxpr.invars, *program.jaxpr.constvars])
    for equation in program.jaxpr.eqns:
        yield equation.primitive.name
        yield from use(equation.invars)
        define(equation.outvars)
        inner = called(equation)
        if inner is not None:
            yield from _words(inner)
            continue
        for name, parameter in settled(equation.primitive.name, equation.params).items():
            if name not in SILENT:
                yield from _parameter(parameter)
    yield from use(program.jaxpr.outvars)


def _parameter(value: Any) -> Iterator[Hashable]:
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        yield from _words(closed(value))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _parameter(each)
    elif isinstance(value, str | int | float | bool | None):
        yield value


def _number(value: Any) -> Hashable:
    array = constant(value)
    return array.tobytes() if array.ndim == 0 else array.ndim
