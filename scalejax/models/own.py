"""A user's own Flax module, called as its user would call it, and what about it a sweep cannot train.

What is found here is one sentence before any training: it would else come up as an error about loops, or as a number
that is wrong without an error.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from flax.core import DenyList
from jax.core import Tracer
from jax.extend import core

from scalejax.errors import SweepError
from scalejax.models.equations import called, inner_programs
from scalejax.text import first_line

# Parameters of __call__ that say what it is called for, and their values in training; else the opposite.
FLAGS = {
    **dict.fromkeys(("train", "training", "is_training"), True),
    **dict.fromkeys(("deterministic", "inference", "use_running_average"), False),
}
CONTAINERS = "; put lists of modules or arrays in nnx.List, and dictionaries in nnx.Dict"
VARIABLE = "keep what a call changes in an nnx.Variable"


def with_all_state(module: nnx.Module) -> nnx.Module:
    """Return a module that was just built, with arrays that are plain attributes as part of its state.

    Flax takes them for data only where they are no tracers, and a module is built while its program is traced.

    Raises:
        SweepError: an array lies in a list or a dictionary, where Flax refuses to see it.
    """
    if not isinstance(module, nnx.Module):
        raise SweepError(f"its builder returns {type(module).__name__}; expected a flax.nnx.Module, or one of Linen")
    nnx.pop(module, nnx.Intermediate)  # of a call in the builder
    for path, node in nnx.iter_graph(module):
        if not isinstance(node, nnx.Pytree):
            continue
        for name, value in list(vars(node).items()):
            if isinstance(value, jax.Array):
                setattr(node, name, nnx.data(value))
            elif isinstance(value, list | tuple | dict) and _holds_arrays(value):
                where = ".".join(map(str, (*path, name)))
                raise SweepError(f"the {type(value).__name__} {where} holds arrays{CONTAINERS}")
    return module


def from_linen(module: linen.Module, rngs: nnx.Rngs, inputs: jax.ShapeDtypeStruct) -> nnx.Module:
    """Return a Linen module as one of NNX, with what it has in its collections: parameters, statistics.

    Args:
        module: as its user made it.
        rngs: from which the keys of its two streams come, "params" and "dropout".
        inputs: of a batch; zeros of this shape initialise it, in evaluation mode.
    """
    streams = nnx.Rngs(params=rngs.params(), dropout=rngs.dropout())
    wrapped = nnx.bridge.ToNNX(module, rngs=streams)
    nnx.bridge.lazy_init(wrapped, jnp.zeros(inputs.shape, inputs.dtype), **_flags(type(module), training=False))
    return wrapped


def run(
    graph: Any, params: nnx.State, rest: nnx.State, *, inputs: jax.Array, training: bool
) -> tuple[Any, nnx.State, nnx.State]:
    """Call a module on inputs [batch, ...]; return what it returns, and its parameters and the rest after the call.

    What it sows is dropped: intermediate values are of one call, and training does not carry them.
    """
    module = _merged(graph, params, rest, training=training)
    found = _call(module, inputs, training=training)
    _, params, rest = nnx.split(module, nnx.Param, ...)
    return found, params, rest


def _merged(graph: Any, params: nnx.State, rest: nnx.State, *, training: bool) -> Any:
    # A copy: the states given belong to whoever differentiates this, random state changes in here, and Flax's own
    # transformations refuse variables that were made outside of the loop they run in.
    module = nnx.merge(graph, params, rest, copy=True)
    module.train() if training else module.eval()
    return module


def _call(module: Any, inputs: jax.Array, *, training: bool) -> Any:
    found = called_for(module, inputs, training=training)
    nnx.pop(module, nnx.Intermediate)
    return found


def called_for(module: Any, inputs: jax.Array, *, training: bool) -> Any:
    """Return what a module makes of inputs [batch, ...], called for training or for evaluation."""
    kind, more = type(module), dict[str, Any]()
    if isinstance(module, nnx.bridge.ToNNX):
        kind = type(module.to_nnx__module)
        changes = DenyList(("params", "intermediates"))
        more["mutable"] = changes if training else False
    return module(inputs, **_flags(kind, training=training), **more)


def wide(outputs: jax.Array) -> jax.Array:
    """Return outputs in float32: a loss in bfloat16 has three digits."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def fault(
    graph: Any, params: nnx.State, rest: nnx.State, *, inputs: jax.ShapeDtypeStruct, outputs: tuple[int, ...], task: str
) -> str:
    """Say what of a module cannot be trained in a sweep, as the rest of a sentence; empty if all can.

    It is called in both modes in the abstract; nothing is computed. Raises whatever the user's own code raises.
    """

    graphs = []

    def traced(params: nnx.State, rest: nnx.State, inputs: jax.Array, *, training: bool) -> Any:
        module = _merged(graph, params, rest, training=training)
        graphs.append(nnx.graphdef(module))
        logits = _call(module, inputs, training=training)
        after, *states = nnx.split(module, nnx.Param, ...)
        graphs.append(after)
        return logits, *states

    for training in (False, True):
        tracing = jax.make_jaxpr(functools.partial(traced, training=training), return_shape=True)
        program, (found, *after) = tracing(params, rest, inputs)
        wrong = _wrong_outputs(found, inputs, outputs, task=task) or _wrong_parameters(params) or _wrong_calls(program)
        if wrong:
            return wrong
        if any(isinstance(each, Tracer) for each in program.consts):
            return "hides an array that was made in __init__ from Flax, such as in a function; make it an attribute"
    wrong = _wrong_state((params, rest), after) or _wrong_changes(params, program)
    if not wrong and graphs[-2] != graphs[-1]:
        return f"changes attributes when it is called; {VARIABLE}"
    return wrong


def _wrong_outputs(found: Any, inputs: jax.ShapeDtypeStruct, outputs: tuple[int, ...], *, task: str) -> str:
    expected = (inputs.shape[0], *outputs)
    shape = getattr(found, "shape", type(found).__name__)
    if shape != expected:
        says = f"maps inputs of shape {inputs.shape} to {shape}; expected outputs of {expected} for the task {task}"
        return f"{says}; {_remedy(shape, outputs, task)}"
    if not jnp.issubdtype(found.dtype, jnp.floating):
        return f"returns outputs of {found.dtype}; expected a floating type"
    return ""


def _remedy(shape: Any, outputs: tuple[int, ...], task: str) -> str:
    """Say what to do about outputs of another shape than [batch, *outputs]."""
    if not isinstance(shape, tuple):
        return "return one array"
    if task == "next_token":
        return "take the family transformer, or return one output a position"
    return "take outputs (or classes) in your builder" if outputs else "return one number an example"


def _wrong_parameters(params: nnx.State) -> str:
    for name, leaf in named_leaves(params):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            remedy = "two real parameters" if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else "an nnx.Variable"
            return f"has the parameter {name} of {leaf.dtype}, which gradients do not train; make it {remedy}"
    return ""


def _wrong_state(before: Sequence[nnx.State], after: Sequence[nnx.State]) -> str:
    """Say which variable a call in training mode makes, removes or makes of another type; empty if none."""
    given, found = (
        {name: leaf for state in states for name, leaf in named_leaves(state)} for states in (before, after)
    )
    for name in sorted(found.keys() - given.keys()):
        remedy = "make it in __init__, or sow it as an nnx.Intermediate if it is of one call"
        return f"makes the variable {name} when it is called; {remedy}"
    for name, leaf in given.items():
        if name not in found:
            return f"replaces {name} when it is called; {VARIABLE}"
        if (leaf.shape, leaf.dtype) != (found[name].shape, found[name].dtype):
            becomes = f"{leaf.dtype}{list(leaf.shape)} to {found[name].dtype}{list(found[name].shape)}"
            return f"changes its variable {name} from {becomes} when it is called; keep its type and shape"
    return ""


def _wrong_changes(params: nnx.State, program: core.ClosedJaxpr) -> str:
    """Say which parameter a call gives another value: training would not see it; empty if none.

    Args:
        params: before the call; the first operands of the program.
        program: from (parameters, rest, inputs) to (logits, parameters, rest).
    """
    for (name, _), given, found in zip(
        named_leaves(params), program.jaxpr.invars, program.jaxpr.outvars[1:], strict=False
    ):
        if given is not _origin(program.jaxpr, found):
            return f"changes its parameter {name} when it is called; {VARIABLE}, which is no nnx.Param"
    return ""


def _origin(program: core.Jaxpr, variable: Any) -> Any:
    """Return the variable of a program of which another is a copy: calls, loops and branches may pass it through."""
    equation = next((each for each in program.eqns if any(made is variable for made in each.outvars)), None)
    if equation is None:
        return variable
    number = next(n for n, made in enumerate(equation.outvars) if made is variable)
    params, inner, skipped, carried = equation.params, called(equation), 0, None
    programs = () if inner is None else (inner,)
    match equation.primitive.name:
        case "cond":
            programs, skipped = params["branches"], 1
        case "scan":
            programs = (params["jaxpr"],)
            carried = params["num_consts"] + number if number < params["num_carry"] else None
        case "while":
            programs, skipped = (params["body_jaxpr"],), params["cond_nconsts"]
            carried = params["body_nconsts"] + number
    sources = set()
    for each in programs:
        found = _origin(each.jaxpr, each.jaxpr.outvars[number])
        sources.add(next((n for n, given in enumerate(each.jaxpr.invars) if given is found), None))
    source = sources.pop() if len(sources) == 1 else None
    constant = equation.primitive.name == "scan" and source is not None and source < params["num_consts"]
    if source is None or constant or (carried is not None and source != carried):
        return variable
    return _origin(program, equation.invars[skipped + source])


def _wrong_calls(program: core.ClosedJaxpr) -> str:
    """Say how a program calls Python in a way that lanes cannot; empty if it does not."""
    if program.effects:
        why = "idle lanes, evaluations and timings would call too, and nothing would say which trial it was"
        return f"prints or calls Python (jax.debug.print, jax.debug.callback or io_callback): {why}; take it out"
    if _lacks_method(program.jaxpr):
        return 'calls Python without saying how for many lanes; give jax.pure_callback vmap_method="sequential"'
    return ""


def _lacks_method(program: core.Jaxpr) -> bool:
    own = any(each.primitive.name == "pure_callback" and not each.params["vmap_method"] for each in program.eqns)
    return own or any(_lacks_method(inner) for each in program.eqns for inner in inner_programs(each.params))


@contextlib.contextmanager
def failing(what: str) -> Iterator[None]:
    """Turn whatever the user's own code raises into one sentence.

    Raises:
        SweepError: `what`, and the first line of the error.
    """
    try:
        yield
    except SweepError as error:
        raise SweepError(f"{what}: {error}") from error
    except Exception as error:
        first = first_line(error)
        if "assigned to static attribute" in first:  # Flax, which tells in twenty lines what to do
            first = first.split(". ")[0] + CONTAINERS
        raise SweepError(f"{what}: {type(error).__name__}: {first}") from error


def _flags(kind: type[nnx.Module] | type[linen.Module], *, training: bool) -> dict[str, bool]:
    """Return the arguments that __call__ wants beside the inputs.

    Raises:
        SweepError: it wants something that training does not have.
    """
    takes = list(inspect.signature(kind.__call__).parameters.values())[2:]  # self and the inputs are the first two
    named = {each.name: each for each in takes if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    for each in takes:
        variable = each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        if each.default is each.empty and not variable and (each.name not in FLAGS or each.name not in named):
            says = f"expected __call__(self, x), or a flag beside x: {', '.join(FLAGS)}"
            raise SweepError(f"its __call__ asks for {each.name} beside its inputs; {says}")
    return {name: FLAGS[name] == training for name in named if name in FLAGS}


def _holds_arrays(value: Any) -> bool:
    leaves = jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    return any(isinstance(leaf, jax.Array) for leaf in leaves)


def named_leaves(state: Any) -> list[tuple[str, Any]]:
    """Return the leaves of a state with the names of their variables, for example "hidden.0.kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    names = (jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value") for path, _ in leaves)
    return [(name, leaf) for name, (_, leaf) in zip(names, leaves, strict=True)]
