"""Features: steps between the inputs and a model, fitted on a trial's own training examples and then held.

With few examples features can change which algorithm is best (sweeps/small_data.toml). A step says which arrays it
fits, fits them on the host, and applies them as a pure JAX function of a batch. Steps are chained: each is fitted on
what those before it make of the same examples.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from scalejax.builders import load_object, name_of, qualified_name
from scalejax.code_text import code_digest
from scalejax.data.source import plain_value
from scalejax.errors import SweepError
from scalejax.rules import Rule, SpecError, nearest, shown
from scalejax.text import exact, first_line

if TYPE_CHECKING:
    import jax

Shape = tuple[int, ...]
Fitted = Mapping[str, np.ndarray]

NONE = "none"  # the name of no features
JOINT = " + "  # between the steps of a chain that is written as one text
LARGEST_PRODUCTS = 20_000  # numbers that `polynomial` makes of one example: some 200 inputs
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of float32 inputs: a spread below it is none
BLOCK = 1024  # examples that are looked at at once, so that float64 copies stay small


@runtime_checkable
class Features(Protocol):
    """One step of the features. One's own is any object with these methods, best a frozen dataclass.

    A step that fits nothing is easier given as a function of a batch, float32 [batch, *shape] to [batch, *new shape].
    Either treats each example by itself, and has the same shapes for any number of examples.
    """

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:
        """Return the names and the shapes of what is fitted, for examples of a shape; empty if nothing is.

        Raises:
            SpecError: examples of this shape are not for this step.
        """
        ...

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:
        """Return those arrays, fitted on a trial's own examples, float32 [n, *shape] with n from 1 on.

        The same inputs and seed give the same numbers. `seed` is 32 bits that differ between data sets and between
        seeds of a sweep, not between numbers of examples.
        """
        ...

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":
        """Map a batch float32 [batch, *shape] to [batch, *new shape], as a pure JAX function."""
        ...


Step = str | Features | Callable[[Any], Any]  # as a user gives it
Chain = tuple[Features, ...]
Program = Callable[[Sequence[Fitted], Any], Any]


@dataclass(frozen=True)
class Standardise:
    """Each number to mean 0 and standard deviation 1 over the trial's own examples; what is constant there becomes 0.

    Without the last rule a pixel that is first seen after training would put out millions.
    """

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        return {"mean": shape, "scale": shape}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        del seed
        mean = _mean(inputs)
        deviation = np.sqrt(sum(((each - mean) ** 2).sum(0) for each in _blocks(inputs)) / len(inputs))
        varies = deviation > ROUNDING * np.abs(inputs).max(0)
        return {"mean": mean, "scale": np.where(varies, 1 / np.where(varies, deviation, 1), 0)}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        return (inputs - fitted["mean"][None]) * fitted["scale"][None]


@dataclass(frozen=True)
class Polynomial:
    """The d numbers of an example, and their d (d + 1) / 2 products of degree 2, squares included."""

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        count = math.prod(shape)
        made = count + count * (count + 1) // 2
        if made > LARGEST_PRODUCTS:
            says = f"polynomial would make {made:,} numbers of {count:,}, more than {LARGEST_PRODUCTS:,}"
            raise SpecError(f"{says}; put a step before it that leaves fewer, such as pca(32)")
        return {}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        del inputs, seed
        return {}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        import jax.numpy as jnp

        del fitted
        flat = inputs.reshape(inputs.shape[0], -1)
        first, second = np.triu_indices(flat.shape[1])
        return jnp.concatenate([flat, flat[:, first] * flat[:, second]], axis=1)


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features of a Gaussian kernel (Rahimi & Recht 2007): sqrt(2) cos(W x + b).

    W is normal with standard deviation 1 / (scale sqrt(d)) and b uniform in [0, 2 pi): the kernel is
    exp(-|x - y|^2 / (2 scale^2 d)), which suits inputs of unit variance. The paper's features are these over
    sqrt(number); here they have about unit variance, as a model likes its inputs.
    """

    number: int = field(metadata=Rule(int, at_least=1, at_most=100_000).beside)
    scale: float = field(default=1.0, metadata=Rule(float, above=0).beside)

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        return {"frequency": (math.prod(shape), self.number), "phase": (self.number,)}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        count, generator = math.prod(inputs.shape[1:]), np.random.default_rng(seed)
        frequency = generator.normal(0, 1 / (self.scale * math.sqrt(count)), (count, self.number))
        return {"frequency": frequency, "phase": generator.uniform(0, 2 * np.pi, self.number)}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        import jax.numpy as jnp

        flat = inputs.reshape(inputs.shape[0], -1)
        return math.sqrt(2) * jnp.cos(flat @ fitted["frequency"] + fitted["phase"][None])


@dataclass(frozen=True)
class PrincipalComponents:
    """The projections on the principal components of the trial's own examples, largest variance first.

    n examples have at most n - 1 of them: the others are zero.
    """

    components: int = field(metadata=Rule(int, at_least=1).beside)

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        count = math.prod(shape)
        if self.components > count:
            raise SpecError(f"pca({self.components}) asks for more components than the {count} numbers of an example")
        return {"mean": (count,), "axes": (count, self.components)}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        del seed
        flat = inputs.reshape(len(inputs), -1)
        mean = _mean(flat)
        if len(flat) > flat.shape[1]:  # many examples: only their covariance is small
            covariance = sum((each - mean).T @ (each - mean) for each in _blocks(flat))
            variance, axes = np.linalg.eigh(covariance)
            spread, axes = np.sqrt(np.maximum(variance[::-1], 0)), axes[:, ::-1]
        else:
            _, spread, axes = np.linalg.svd(flat - mean, full_matrices=False)
            axes = axes.T
        axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])  # a sign of one's own is luck
        axes = (axes * (spread > ROUNDING * math.sqrt(len(flat)) * np.abs(flat).max()))[:, : self.components]
        return {"mean": mean, "axes": np.pad(axes, ((0, 0), (0, self.components - axes.shape[1])))}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        return (inputs.reshape(inputs.shape[0], -1) - fitted["mean"][None]) @ fitted["axes"]


@dataclass(frozen=True)
class Spectrum:
    """The magnitudes of the Fourier transform along the last axis, L // 2 + 1 of L: no circular shift changes them.

    Divided by sqrt(L), so that noise of unit variance has magnitudes of about 1.
    """

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        del shape
        return {}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        del inputs, seed
        return {}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        import jax.numpy as jnp

        del fitted
        return jnp.abs(jnp.fft.rfft(inputs, axis=-1)) / math.sqrt(inputs.shape[-1])


@dataclass(frozen=True)
class Function:
    """A user's own function of a batch, as a step that fits nothing."""

    call: Callable[[Any], Any]

    @property
    def name(self) -> str:
        """What it is called in rows and sentences."""
        return name_of(self.call)

    def arrays(self, shape: Shape) -> Mapping[str, Shape]:  # noqa: D102
        del shape
        return {}

    def fit(self, inputs: np.ndarray, seed: int) -> Fitted:  # noqa: D102
        del inputs, seed
        return {}

    def apply(self, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":  # noqa: D102
        del fitted
        return self.call(inputs)


# The one table that the sweep file needs: name -> step, whose fields are written in brackets, as in "fourier(256)".
FEATURES: Mapping[str, Callable[..., Features]] = {
    "fourier": Fourier,
    "pca": PrincipalComponents,
    "polynomial": Polynomial,
    "spectrum": Spectrum,
    "standardise": Standardise,
}


# What a user writes


def listed_steps(value: Any) -> tuple[Step, ...]:
    """Return the steps of a chain as its user wrote them, texts one a step: "none" and nothing at all have none.

    Args:
        value: a text such as "standardise + pca(16)", a step, or a list of these.

    Raises:
        SpecError: an element is no step.
    """
    if isinstance(value, list | tuple):
        return tuple(step for each in value for step in listed_steps(each))
    if isinstance(value, str):
        steps = tuple(part.strip() for part in value.split(JOINT.strip()))
        return () if steps == (NONE,) else steps
    return (value,)


def title(steps: Sequence[Step]) -> str:
    """Return what a chain is called in rows and sentences, for example "standardise + pca(16)"."""
    return JOINT.join(map(_step_name, steps)) or NONE


def _step_name(step: Step) -> str:
    kind = {made: name for name, made in FEATURES.items()}.get(type(step))  # pyright: ignore[reportCallIssue]
    if isinstance(step, str) or kind is None or not dataclasses.is_dataclass(step):
        return step if isinstance(step, str) else str(getattr(step, "name", None) or name_of(step))  # pyright: ignore
    values = [getattr(step, each.name) for each in dataclasses.fields(step) if getattr(step, each.name) != each.default]
    return f"{kind}({', '.join(map(exact, values))})" if values else kind


def written(step: Step) -> str:
    """Return a step as a text; one of the user's own by the name by which it can be loaded, if it can."""
    if isinstance(step, str) or type(step) in FEATURES.values():
        return _step_name(step)
    own = step.call if isinstance(step, Function) else step
    return qualified_name(own if callable(own) else type(own))


def canonical(step: Step) -> Step:
    """Return a step as it is written everywhere: "pca(components=3)" is "pca(3)".

    Raises:
        SpecError: there is no such step.
    """
    return _step_name(_built_in(step)) if isinstance(step, str) and ":" not in step else step


def resolve(steps: Sequence[Step]) -> Chain:
    """Return the objects that steps stand for: texts, functions and objects.

    Raises:
        SpecError: there is no such step, or it is none.
    """
    return tuple(map(_resolved, steps))


def _resolved(step: Step) -> Features:
    try:
        found: Any = load_object(step) if isinstance(step, str) and ":" in step else step
    except SweepError as error:
        raise SpecError(str(error)) from error
    if isinstance(found, str):
        return _built_in(found)
    if isinstance(found, type):
        raise SpecError(f"expected an object, found the class {found.__name__}; give an object of it")
    if not isinstance(found, Features):
        if not callable(found):
            expected = "a text, a function of a batch, or an object with the methods arrays, fit and apply"
            raise SpecError(f"expected a step of the features: {expected}; found {shown(found)}")
        found = Function(found)
    try:
        hash(found)
    except TypeError:
        what = f"an object of {type(found).__name__} cannot be hashed, as what a program is compiled for must be"
        raise SpecError(f"{what}; make it a frozen dataclass") from None
    return found


def _built_in(text: str) -> Features:
    match = re.fullmatch(r"(\w+)\s*(?:\(([^()]*)\))?", text)
    name = match[1] if match else text
    if not match or name not in FEATURES:
        hint = nearest(name.split("(")[0], [*FEATURES, NONE])
        raise SpecError(f'{shown(text)} is no step of the features; {hint}, or a function as "package.module:function"')
    known = {each.name: each for each in dataclasses.fields(FEATURES[name])}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for place, part in enumerate(filter(None, map(str.strip, (match[2] or "").split(",")))):
        key, equals, value = (word.strip() for word in part.rpartition("="))
        key = key if equals else next(iter([*known][place:]), "")
        if key not in known or key in values:
            takes = f"takes {', '.join(known)}" if known else "takes nothing in brackets"
            raise SpecError(f"{name} {takes}, found {shown(text)}")
        try:
            values[key] = known[key].metadata["rule"](_number(value))
        except SpecError as fault:
            raise SpecError(f"{key} of {name}: {fault.says}") from None
    for key, each in known.items():
        if each.default is dataclasses.MISSING and key not in values:
            raise SpecError(f"{name} needs {key} in brackets, for instance {name}(16)")
    return FEATURES[name](**values)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# What a trial needs


def digests(chain: Chain) -> tuple[str, ...]:
    """Return what tells each step from all others, for the id of a trial.

    A step of one's own is told by its fields, by the code of its class with what that reads, and by what its `apply`
    computes, which is traced elsewhere (`scalejax.train.traced`): of a function that is all there is.

    Raises:
        SweepError: a field of an object of one's own is no plain value, so nothing tells two of them apart.
    """
    return tuple(_digest(step) for step in chain)


def is_own_step(step: Features) -> bool:
    """Say whether a step is the user's own."""
    return type(step) not in FEATURES.values()


def _digest(step: Features) -> str:
    if not is_own_step(step):
        return repr(step)
    if isinstance(step, Function):
        return "function"
    names = (
        [each.name for each in dataclasses.fields(step) if each.compare]
        if dataclasses.is_dataclass(step)
        else [name for name in getattr(step, "__dict__", {}) if not name.startswith("_")]
    )
    try:
        values = {name: plain_value(getattr(step, name)) for name in names}
    except TypeError as error:
        problem = f"the features step {_step_name(step)} has a field that is no number, text or array: {error}"
        raise SweepError(f"{problem}; nothing would tell two such steps apart") from None
    return f"{qualified_name(type(step))} {values} {code_digest(type(step))}"


def shapes(chain: Chain, shape: Shape) -> tuple[Shape, ...]:
    """Return the shape of an example before the first step, between the steps, and after the last one.

    Raises:
        SweepError: a step is not for examples of its shape, or fails, or makes of a batch something else than numbers
            for each example.
    """
    found = [shape]
    for step in chain:
        found.append((_shape_after if is_own_step(step) else _remembered_shape)(step, found[-1]))
    return tuple(found)


def _shape_after(step: Features, before: Shape) -> Shape:
    import jax
    import jax.numpy as jnp

    batch = jax.ShapeDtypeStruct((2, *before), jnp.float32)
    try:
        with _failing((step,), f"on inputs of shape {batch.shape}"):
            fitted = {key: jax.ShapeDtypeStruct(of, jnp.float32) for key, of in step.arrays(before).items()}
            made = jax.eval_shape(lambda *each: step.apply(*each), fitted, batch)  # JAX would remember the method
    except SpecError as error:
        raise SweepError(f"the features: {error.says}") from None
    after = getattr(made, "shape", ())
    if after[:1] != (2,) or math.prod(after) == 0 or jnp.issubdtype(made.dtype, jnp.complexfloating):
        kind = f"{made.dtype} {list(after)}" if hasattr(made, "shape") else type(made).__name__
        name = f"the features step {_step_name(step)}"
        raise SweepError(f"{name} maps float32 {list(batch.shape)} to {kind}; expected real numbers [2, ...]")
    return after[1:]


_remembered_shape = functools.cache(_shape_after)


@contextlib.contextmanager
def _failing(chain: Chain, where: str) -> Iterator[None]:
    """Turn whatever steps raise into one sentence, but for memory that is short: that may be of the moment."""
    try:
        yield
    except (SweepError, MemoryError):
        raise
    except Exception as error:
        name = f"the features step {title(chain)} fails" if len(chain) == 1 else f"the features {title(chain)} fail"
        raise SweepError(f"{name} {where}: {type(error).__name__}: {first_line(error)}") from error


def apply_step(step: Features, fitted: "Mapping[str, jax.Array]", inputs: "jax.Array") -> "jax.Array":
    """Apply one step to a batch, in float32."""
    return step.apply(fitted, inputs).astype(np.float32)


def as_seen(inputs: np.ndarray) -> np.ndarray:
    """Return inputs as the features and the model see them: pixels of type uint8 as float32 from 0 to 1."""
    return inputs.astype(np.float32) / np.float32(255) if inputs.dtype == np.uint8 else inputs


def fit(
    chain: Chain, inputs: np.ndarray, seed: int, *, compiled: "Callable[[Chain], Program] | None" = None
) -> tuple[Fitted, ...]:
    """Return what each step fits on a trial's own examples, on the host, in float32.

    Args:
        chain: the steps.
        inputs: float32 [n, *shape].
        seed: 32 bits.
        compiled: as for `transform`.

    Raises:
        SweepError: a step fails, or returns other arrays than it says, or numbers that are not finite.
    """
    fitted: list[Fitted] = []
    for place, step in enumerate(chain):
        with _failing((step,), f"when it is fitted on inputs of shape {inputs.shape}"):
            promised = {name: tuple(shape) for name, shape in step.arrays(inputs.shape[1:]).items()}
            given = step.fit(inputs, seed) if promised else {}
            found = {name: np.asarray(each, np.float32) for name, each in given.items()}
        made, name = {key: each.shape for key, each in found.items()}, _step_name(step)
        if made != promised:
            raise SweepError(f"the features step {name} fits {made}, and its `arrays` says {promised}; make them agree")
        for key, each in found.items():
            if not np.isfinite(each).all():
                raise SweepError(f"the features step {name} fits {key} with numbers that are not finite; {_REMEDY}")
        fitted.append(found)
        if any(later.arrays(shape) for later, shape in _later(chain, inputs.shape[1:], place)):
            inputs = transform(chain[place : place + 1], (found,), inputs, compiled=compiled)
    return tuple(fitted)


def _later(chain: Chain, shape: Shape, place: int) -> list[tuple[Features, Shape]]:
    """Return the steps after one place, each with the shape of its examples."""
    return list(zip(chain[place + 1 :], shapes(chain[place:], shape)[1:], strict=False))


_REMEDY = "see what it makes of few examples and of constant numbers"


def transform(
    chain: Chain,
    fitted: Sequence[Fitted],
    inputs: np.ndarray,
    *,
    compiled: "Callable[[Chain], Program] | None" = None,
) -> np.ndarray:
    """Return float32 [n, *shape] after the steps, on the host.

    Args:
        chain: the steps.
        fitted: what each of them has fitted.
        inputs: float32 [n, *shape].
        compiled: `program`, or what remembers its programs for as long as the user's code stays the same.

    Raises:
        SweepError: a step fails, or the result is not finite.
    """
    from scalejax.data.host import beside_the_training

    if not chain:
        return inputs
    made = np.empty((len(inputs), *shapes(chain, inputs.shape[1:])[-1]), np.float32)
    applied = (compiled or program)(chain)
    with beside_the_training(), _failing(chain, f"on inputs of shape {inputs.shape}"):
        for begin in range(0, len(inputs), BLOCK):
            block = inputs[begin : begin + BLOCK]
            rows = np.resize(block, (BLOCK, *block.shape[1:]))  # one program for any number of examples
            made[begin : begin + len(block)] = np.asarray(applied(tuple(map(dict, fitted)), rows))[: len(block)]
    if not np.isfinite(made).all():
        raise SweepError(f"the features {title(chain)} make numbers that are not finite; {_REMEDY}")
    return made


def program(chain: Chain) -> Program:
    """Return a chain as a program of what its steps have fitted and of a batch.

    It is traced anew for each caller if a step is the user's own: the same function may read a global that has changed,
    or have other code, and its trials then have other ids.
    """
    return (_program if any(map(is_own_step, chain)) else _remembered_program)(chain)


def _program(chain: Chain) -> Program:
    import jax

    def one(fitted: Sequence[Mapping[str, Any]], inputs: Any) -> Any:
        for step, arrays in zip(chain, fitted, strict=True):
            inputs = apply_step(step, arrays, inputs)
        return inputs

    return jax.jit(one)


_remembered_program = functools.cache(_program)


def _blocks(inputs: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the examples in float64, some at a time."""
    return (inputs[begin : begin + BLOCK].astype(np.float64) for begin in range(0, len(inputs), BLOCK))


def _mean(inputs: np.ndarray) -> np.ndarray:
    return inputs.mean(0, dtype=np.float64)
