"""The programs of ONE model, traced once for all that look at them: FLOPs, bytes, ids, and the proof of packing."""

import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.extend import core

from scalejax.builders import qualified_name
from scalejax.code_text import constant, digest
from scalejax.data.features import Chain, Shape, digests, is_own_step, shapes, title
from scalejax.errors import SweepError
from scalejax.models import Architecture
from scalejax.models.equations import SILENT, called, closed, settled, text
from scalejax.models.own import failing, named_leaves
from scalejax.train.optimizers import make_optimizer
from scalejax.train.recipe import LaneProgram, Recipe, Settings
from scalejax.train.step import Examples, Slope, descend, learned, slope, start, widened
from scalejax.train.task import Task, is_own

SCHEDULE_STEPS = 1000  # of the horizon on which a user's own schedule is tried


@dataclass(frozen=True)
class Traced:
    """A program, and what its operands and results are called: the paths of their leaves."""

    program: core.ClosedJaxpr
    takes: tuple[str, ...]
    gives: tuple[str, ...]


def traced_slope(architecture: Architecture, recipe: Recipe) -> Traced:
    """Return the loss of a batch and its gradient."""
    return _slope(architecture, recipe.task, recipe.batch_size, recipe.target)


@functools.cache
def _slope(architecture: Architecture, task: Task, batch_size: int, target: tuple[str, tuple[int, ...]]) -> Traced:
    kind, shape = target
    inputs = architecture.inputs(batch_size)
    examples = Examples(inputs, jax.ShapeDtypeStruct((batch_size, *shape), kind))

    def one(params: nnx.State, rest: nnx.State, examples: Examples) -> Slope:
        return slope(architecture, task, params, rest, batch=examples)

    with failing(f"the model {architecture.title} cannot be trained on inputs of shape {inputs.shape}"):
        return _traced(one, *architecture.abstract[1:], examples)


@functools.cache
def traced_evaluation(architecture: Architecture, batch_size: int) -> Traced:
    """Return the outputs for a batch in evaluation mode."""
    inputs = architecture.inputs(batch_size)
    with failing(f"the model {architecture.title} fails on inputs of shape {inputs.shape}"):
        return _traced(architecture.predict, *architecture.abstract[1:], inputs)


def program_digest(architecture: Architecture, recipe: Recipe) -> str:
    """Return a digest of all that a model computes: initialisation, loss and gradient, evaluation, constants included.

    It is the same in every process and on every machine, and another one once any code that the model runs computes
    something else. Other versions of JAX and Flax may trace the same model to another program.
    """
    return _program_digest(architecture, recipe.task, recipe.batch_size, recipe.target)


@functools.cache
def _program_digest(
    architecture: Architecture, task: Task, batch_size: int, target: tuple[str, tuple[int, ...]]
) -> str:
    programs = traced_initialisation(architecture), _slope(architecture, task, batch_size, target)
    return digest(*(text(each.program) for each in (*programs, traced_evaluation(architecture, batch_size))))


def task_digest(recipe: Recipe, outputs: tuple[int, ...], *, inputs: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    """Return the digest of what a user's own task computes; nothing for those of scalejax.

    Args:
        recipe: with the task.
        outputs: shape of what the task asks for.
        inputs: of two examples.

    Raises:
        SweepError: the task does not return what the step needs.
    """
    if not is_own(recipe.task):
        return ()
    name, (kind, shape) = f"the task {recipe.task.name}", recipe.target
    if not outputs or not all(type(each) is int and each >= 1 for each in outputs):
        asked = outputs[0] if len(outputs) == 1 else outputs
        raise SweepError(f"{name} asks for {asked!r} outputs of a model; expected a whole number from 1 on")
    returned, targets = jax.ShapeDtypeStruct((2, *outputs), jnp.float32), jax.ShapeDtypeStruct((2, *shape), kind)
    programs = {}
    with failing(f"{name} fails on outputs of shape {returned.shape}"):
        if hasattr(recipe.task, "targets"):
            programs["targets"] = _traced(functools.partial(learned, recipe.task), Examples(inputs, targets))
            targets = jax.eval_shape(functools.partial(learned, recipe.task), Examples(inputs, targets))
        programs |= {part: _traced(getattr(recipe.task, part), returned, targets) for part in ("loss", "score")}
        scores = programs["score"].program.out_avals
        several = scores[0].shape[1:] if len(scores) == 1 and len(scores[0].shape) == 2 else ()
        programs["headline"] = _traced(recipe.task.headline, jax.ShapeDtypeStruct(several, jnp.float32))
    for part, expected in (("loss", (2,)), ("score", (2, *several)), ("headline", ())):
        found = [each.aval.shape for each in programs[part].program.jaxpr.outvars]
        if found != [expected]:
            of = "of a mean" if part == "headline" else "for two examples"
            shapes = ", ".join(map(str, found)) or "no array"
            raise SweepError(f"{name} returns as {part} {of} {shapes}; expected the shape {expected}")
    return (digest(recipe.task.metric, *(text(each.program) for each in programs.values())),)


def features_digest(chain: Chain, shape: Shape) -> tuple[str, ...]:
    """Return the digest of each step before a model; of a user's own its program is a part.

    Args:
        chain: the steps.
        shape: of one example before them.

    Raises:
        SweepError: a step computes something else each time: its trials would never be found again.
    """
    found, before = [], shapes(chain, shape)
    for step, said, shape in zip(chain, digests(chain), before, strict=False):
        if not is_own_step(step):
            found.append(said)
            continue
        fitted = {name: jax.ShapeDtypeStruct(of, jnp.float32) for name, of in step.arrays(shape).items()}
        batch = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
        programs = [text(_traced(step.apply, fitted, batch).program) for _ in range(2)]
        if programs[0] != programs[1]:
            why = "computes something else each time it is called, for instance from NumPy's random numbers"
            raise SweepError(f"the features step {title((step,))} {why}; draw in `fit`, from its seed")
        found.append(f"{said} {digest(programs[0])}")
    return tuple(found)


def optimizer_digest(program: LaneProgram) -> tuple[str, ...]:
    """Return the digest of what a user's own optimizer computes; nothing for those of scalejax.

    An optimizer may treat parameters by their names, ranks or shapes, so it is traced on those of a model's true size.

    Raises:
        SweepError: the optimizer does not return what the step needs.
    """
    optimizer, params = program.recipe.optimizer, program.architecture.abstract[1]
    if isinstance(optimizer, str):
        return ()
    name = f"the optimizer {qualified_name(optimizer)}"
    with failing(f"{name} fails"):
        given = jax.eval_shape(widened, params)
        rule = make_optimizer(optimizer, None)
        state = jax.eval_shape(lambda *each: rule.init(*each), given)  # see `_traced`
        made = jax.eval_shape(lambda *each: rule.update(*each), given, state, given)
    if jax.tree.map(lambda leaf: leaf.shape, made) != jax.tree.map(lambda leaf: leaf.shape, (given, state)):
        problem = "returns updates or a state of another structure than those it is given"
        raise SweepError(f"{name} {problem}; expected an optax transformation")
    return (digest(*(text(each.program) for each in traced_descent(program, params))),)


def schedule_digest(recipe: Recipe) -> tuple[str, ...]:
    """Return the digest of what a user's own schedule computes; nothing for those of scalejax.

    Raises:
        SweepError: the schedule does not return a factor in [0, 1].
    """
    schedule, steps = recipe.schedule, SCHEDULE_STEPS
    if isinstance(schedule, str):
        return ()
    name, number = f"the schedule {qualified_name(schedule)}", jax.ShapeDtypeStruct((), jnp.int32)
    with failing(f"{name} fails"):
        traced = _traced(schedule, number, number)
    found = [(each.shape, jnp.issubdtype(each.dtype, jnp.floating)) for each in traced.program.out_avals]
    if found != [((), True)]:
        returns = ", ".join(str(each) for each in traced.program.out_avals) or "no array"
        raise SweepError(f"{name} returns {returns}; expected one number, the factor at a step")
    factors = np.asarray(lax.map(lambda step: schedule(step, jnp.int32(steps)), jnp.arange(steps, dtype=jnp.int32)))
    wrong = ~((factors >= 0) & (factors <= 1))
    if wrong.any():
        at = int(wrong.argmax())
        raise SweepError(f"{name} returns {factors[at]:g} at step {at} of {steps}; expected a factor in [0, 1]")
    return (digest(text(traced.program)),)


@functools.cache
def traced_initialisation(architecture: Architecture) -> Traced:
    """Return the drawing of parameters and rest from 32 random bits."""
    return _traced(lambda key: architecture.initialise(jax.random.key(key)), jax.ShapeDtypeStruct((), jnp.uint32))


def traced_descent(program: LaneProgram, params: nnx.State) -> tuple[Traced, Traced]:
    """Return what makes a trial's state of its weights, and what moves it against a gradient; `params` are abstract."""
    nothing = nnx.State({})
    settings = Settings.abstract(program.recipe)
    starting = functools.partial(start, program.recipe)
    learner = jax.eval_shape(starting, settings, (params, nothing)).learner
    found = Slope(jax.ShapeDtypeStruct((), jnp.float32), nothing, params)
    moving = functools.partial(descend, program)
    return _traced(starting, settings, (params, nothing)), _traced(moving, settings, learner, found)


def _traced(function: Any, *operands: Any) -> Traced:
    # Traced anew each time, as another function: JAX remembers the program of one, which may read what has changed.
    program, given = jax.make_jaxpr(lambda *each: function(*each), return_shape=True)(*operands)
    return Traced(program, _paths(operands), _paths(given))


def _paths(tree: Any) -> tuple[str, ...]:
    return tuple(name for name, _ in named_leaves(tree))


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
