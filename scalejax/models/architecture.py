"""One size of one family, seen as pure functions of its arrays."""

import functools
import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from flax import linen, nnx
from jax.extend import core

from scalejax.builders import bound, name_of, parameters, qualified_name
from scalejax.data import features as steps
from scalejax.errors import SweepError
from scalejax.models import own
from scalejax.models.behind import Behind
from scalejax.models.matrices import matrices
from scalejax.models.precision import FLOAT32, PRECISIONS, Precision, fast_products, rounded, typed_as

Build = Callable[..., nnx.Module | linen.Module]


@dataclass(frozen=True)
class Architecture:
    """A builder with every argument but `rngs` filled in, for example an MLP of width 32 on 40 inputs.

    Attributes:
        build: the family's builder, or the user's own.
        arguments: the knobs of the family, and `inputs` and `outputs` or `classes` where the builder asks for them.
        shape: of one example's inputs.
        dtype: of these as the model sees them: float32, or int32 if they are tokens.
        occasion: tells apart what the user's own builder, features, task, optimizer or schedule makes in two plans of
            one process: a cell of a notebook may have changed the code in between, and what is traced and compiled is
            remembered by architecture.
        features: steps between the inputs and the model.
        precision: with which it computes, a name of `PRECISIONS`.
    """

    build: Build
    arguments: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    occasion: object = field(default=None, repr=False)
    dtype: str = "float32"
    features: steps.Chain = ()
    precision: str = FLOAT32

    @property
    def numbers(self) -> Precision:
        """The types of its numbers."""
        return PRECISIONS[self.precision]

    def module(self, key: jax.Array) -> nnx.Module:
        """Build the module with parameters drawn from `key`, in the types in which its builder makes them."""
        rngs = nnx.Rngs(key)
        module = self.build(**dict(self.arguments), rngs=rngs)
        if isinstance(module, linen.Module):
            seen = jax.ShapeDtypeStruct((1, *steps.shapes(self.features, self.shape)[-1]), np.dtype(self.dtype))
            module = own.from_linen(module, rngs, seen)
        module = own.with_all_state(module)
        return Behind(module, self.features, self.shape, self.numbers.computes) if self.features else module

    def initialise(self, key: jax.Array) -> tuple[nnx.State, nnx.State]:
        """Return the trainable parameters and the rest of the state (sizes, statistics) at the true size."""
        _, params, rest = nnx.split(self.module(key), nnx.Param, ...)
        return rounded(params, self.numbers.stores), rest

    @property
    def identity(self) -> str:
        """A text that is the same in every process, and another one once the builder's source has changed."""
        seen = "" if self.dtype == "float32" else f" {self.dtype}"
        behind = f" {steps.digests(self.features)}" if self.features else ""
        return f"{qualified_name(self.build)} {fingerprint(self.build)} {self.arguments}{seen}{behind}{self._computing}"

    @property
    def _rounds(self) -> bool:
        """Whether it is called on rounded parameters and inputs."""
        return self.numbers.computes != FLOAT32

    @property
    def _computing(self) -> str:
        """What is said of its precision where that is not the default."""
        return "" if self.precision == FLOAT32 else f" in {self.precision}"

    def inputs(self, batch_size: int) -> jax.ShapeDtypeStruct:
        """Return a batch of inputs as a shape."""
        return jax.ShapeDtypeStruct((batch_size, *self.shape), np.dtype(self.dtype))

    @functools.cached_property
    def abstract(self) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
        """The graph definition, and parameters and rest as shapes; nothing is computed."""
        module = nnx.eval_shape(lambda: self.module(jax.random.key(0)))
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        return graph, jax.eval_shape(lambda drawn: rounded(drawn, self.numbers.stores), params), rest

    @functools.cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """What its parameters are called, in the order of the leaves of their state: "hidden.0.kernel"."""
        return tuple(
            name.removeprefix("model." * bool(self.features)) for name, _ in own.named_leaves(self.abstract[1])
        )

    @functools.cache  # noqa: B019  # as many architectures as a sweep has sizes
    def matrices(self, batch_size: int) -> tuple[bool, ...]:
        """Say which of its parameters are matrices, in the order of their names; see `scalejax.models.matrices`."""
        return matrices(self.forward_program(batch_size), len(self.parameter_names))

    @functools.cache  # noqa: B019
    def forward_program(self, batch_size: int) -> core.ClosedJaxpr:
        """Return the traced program from parameters, rest and inputs [batch, ...] to outputs, in training mode."""
        program = jax.make_jaxpr(lambda *operands: self.forward(*operands)[0])
        return program(*self.abstract[1:], self.inputs(batch_size))

    def check(self, *, outputs: tuple[int, ...], task: str) -> None:
        """Trace the module's training and evaluation and hold them against the data; nothing is computed.

        Args:
            outputs: shape of what it must return for each example.
            task: that asks for these, in a sentence.

        Raises:
            SweepError: the module cannot be built, called or trained, its outputs are of another shape, or training it
                here would give other numbers than training it alone.
        """
        name = f"the model {self.title}"
        inputs = self.inputs(2)
        with own.failing(f"{name} fails when it is built"):
            weights = replace(self, precision=FLOAT32).abstract if self._rounds else self.abstract
        with own.failing(f"{name} fails on inputs of shape {inputs.shape}"):
            wrong = own.fault(*weights, inputs=inputs, outputs=outputs, task=task)
        if wrong:
            raise SweepError(f"{name} {wrong}")
        if self._rounds:
            remedy = 'give what its loops carry the type of x, as x.astype(...), or take precision = "float32"'
            with own.failing(f"{name} fails on inputs of shape {inputs.shape}, but not in float32; {remedy}"):
                self.forward_program(2)

    @property
    def title(self) -> str:
        """What it is called in a sentence, for example "MLP(inputs=40, width=8)"."""
        arguments = ", ".join(f"{name}={value}" for name, value in self.arguments)
        behind = f" behind {steps.title(self.features)}" if self.features else ""
        return f"{name_of(self.build)}({arguments}){behind}{self._computing}"

    @property
    def parameter_count(self) -> int:
        """Number of trainable parameters at the true size."""
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.abstract[1]))

    def forward(self, params: nnx.State, rest: nnx.State, inputs: jax.Array) -> tuple[jax.Array, nnx.State]:
        """Map inputs [batch, ...] to outputs [batch, ...] in training mode; also return the rest, updated.

        Whatever the model computes with, the outputs are float32, and so is the gradient of float32 parameters.
        """
        outputs, updated = self._called(params, rest, inputs, training=True)
        return own.wide(outputs), typed_as(updated, rest) if self._rounds else updated

    def predict(self, params: nnx.State, rest: nnx.State, inputs: jax.Array) -> jax.Array:
        """Map inputs [batch, ...] to outputs [batch, ...] in evaluation mode."""
        return own.wide(self._called(params, rest, inputs, training=False)[0])

    def _called(
        self, params: nnx.State, rest: nnx.State, inputs: jax.Array, *, training: bool
    ) -> tuple[jax.Array, nnx.State]:
        """Call the module in its precision; behind features, `Behind` does what is left out here."""
        computes = FLOAT32 if self.features else self.numbers.computes
        with fast_products(computes):
            outputs, _, updated = own.run(
                self.abstract[0],
                rounded(params, self.numbers.computes),
                rest,
                inputs=rounded(inputs, computes),
                training=training,
            )
        return outputs, updated


def architecture(
    build: Build,
    knobs: Mapping[str, Any],
    *,
    shape: tuple[int, ...],
    outputs: int,
    dtype: str = "float32",
    vocabulary: int | None = None,
    occasion: object = None,
    features: steps.Chain = (),
    precision: str = FLOAT32,
) -> Architecture:
    """Fill in a builder's knobs, and what its signature names of the data.

    These are `inputs`, `outputs`, `classes`, `vocabulary`, and `shape` where that has no default and is no knob.

    Args:
        build: as for `Architecture`.
        knobs: of the family.
        shape: of one example's inputs; `inputs` is how many numbers the features make of them.
        outputs: numbers that the model returns for an example: of a classification one a class, also called `classes`;
            of next tokens one a token of the vocabulary, at every position.
        dtype: of inputs as the model sees them.
        vocabulary: how many tokens there are, if inputs are tokens.
        occasion, features: as for `Architecture`; `shape`, where it is asked for, is that after the features.
        precision: as for `Architecture`.

    Raises:
        SweepError: the features are not for these inputs.
    """
    if features and dtype != "float32":
        raise SweepError(f"the features {steps.title(features)} take numbers, and these inputs are tokens; drop them")
    made = steps.shapes(features, shape)[-1]
    offered = {"inputs": math.prod(made), "outputs": outputs, "classes": outputs, "vocabulary": vocabulary}
    takes = parameters(build)
    asked = [name for name in takes if name in offered and name not in bound(build)]
    if "shape" in takes and takes["shape"].default is inspect.Parameter.empty and "shape" not in knobs:
        asked, offered["shape"] = [*asked, "shape"], made
    arguments = (*((name, offered[name]) for name in asked), *sorted(knobs.items()))
    return Architecture(build, arguments, shape, occasion, dtype, features, precision)


def fingerprint(build: Callable[..., Any]) -> str:
    """Return a digest of a builder's source; empty if it cannot be read (typed into an interactive prompt).

    It says little: the classes and numbers that the source names stand elsewhere. What the model computes is told by
    its program (`scalejax.train.traced.program_digest`).
    """
    while isinstance(build, functools.partial):
        build = build.func
    return _fingerprint(build if inspect.isroutine(build) or inspect.isclass(build) else type(build))


@functools.cache  # Python's parser may fail where two threads parse: it is read once, by the thread that plans
def _fingerprint(code: Any) -> str:
    try:
        source = inspect.getsource(code)
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]
