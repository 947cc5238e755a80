"""What a model is trained to do: the targets that it takes, its loss, and the metric that is shown."""

import contextlib
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, cast

import jax
import jax.numpy as jnp
import optax
from jax import lax

from scalejax.builders import load_object
from scalejax.data import DataCard
from scalejax.rules import TOP_ERROR, SpecError, beyond, shown


class Task(Protocol):
    """A loss and a headline metric; the engine asks it for whatever depends on what a model is trained to do.

    A user's own task is any object with these attributes; it must be hashable, as a frozen dataclass is. Its name and
    metric may be plain fields. It may have a method `targets(inputs, targets)` too, which returns what is to be learned
    of a batch where that is not the stored targets alone: its result is what `loss` and `score` are given.
    """

    @property
    def name(self) -> str:
        """What it is called in sentences and in ids, such as "regression"."""
        ...

    @property
    def metric(self) -> str:
        """The name of the headline metric as it is shown, such as "RMSE"; lower is better."""
        ...

    def outputs(self, card: DataCard) -> int | tuple[int, ...]:
        """Return how many numbers a model returns for an example of these data, or the shape of what it returns.

        Raises:
            ValueError: the task does not fit the data; says why, as the rest of a sentence.
        """
        ...

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the loss of each example, [batch], of outputs float32 [batch, *outputs] and targets [batch, ...].

        Training minimises its mean over a batch; validation and test average it over all examples.
        """
        ...

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return what each example adds to the headline metric, [batch], or several such numbers, [batch, k]."""
        ...

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the headline metric, given the mean of `score` over all examples, [] or [k]."""
        ...


_comparing = ContextVar("comparing", default=False)


@contextlib.contextmanager
def comparing() -> Iterator[None]:
    """Let `cross_entropy`, where it is traced within a block, pick the logit of a class by comparing.

    The gradient of a look-up is a scatter, which is a program of its own on an accelerator; a comparison fuses with
    what is around it. The two round differently, so a CPU keeps the look-up, and with it the results that it has given.
    """
    before = _comparing.set(True)
    try:
        yield
    finally:
        _comparing.reset(before)


def cross_entropy(logits: jax.Array, classes: jax.Array) -> jax.Array:
    """Return -log softmax(logits)[class] of logits [..., n] and classes int32 [...], in nats."""
    if not _comparing.get():
        return optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    is_own = classes[..., None] == lax.broadcasted_iota(classes.dtype, logits.shape, logits.ndim - 1)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.where(is_own, logits, 0).sum(-1)


@dataclass(frozen=True)
class Classification:
    """One of several classes: cross-entropy in nats, and the share of wrong answers.

    Attributes:
        metric: "error"; "top5_error" (the target is not among the five largest logits; any number below that of the
            classes for the 5; equal logits are in any order);
            "balanced_error" (the mean of the classes' own errors); "log_loss" (the loss itself, in nats).
    """

    metric: str = "error"
    name: str = "classification"

    @property
    def identity(self) -> str:
        """What ids know it by."""
        return self.name if self.metric == "error" else f"{self.name} {self.metric}"

    def outputs(self, card: DataCard) -> int:
        """Return the number of classes."""
        if card.classes is None:
            raise ValueError(f"needs whole numbers as targets, one a class; these are {card.targets}")
        return card.classes

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the cross-entropy of logits [batch, classes] and classes int32 [batch]."""
        return cross_entropy(outputs, targets)

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return 1 where the answer is wrong; for the balanced error [batch, 2, classes]: that, and 1, by class."""
        if self.metric == "log_loss":
            return self.loss(outputs, targets)
        if top := re.fullmatch(TOP_ERROR, self.metric):
            own = jnp.take_along_axis(outputs, targets[:, None], axis=-1)
            return beyond(int(top[1]), (outputs > own).sum(-1), (outputs == own).sum(-1))
        wrong = (outputs.argmax(-1) != targets).astype(jnp.float32)
        if self.metric == "balanced_error":
            of_class = jax.nn.one_hot(targets, outputs.shape[-1])
            return jnp.concatenate([wrong[:, None] * of_class, of_class], axis=-1)
        return wrong

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the metric."""
        if self.metric != "balanced_error":
            return mean
        wrong, share = jnp.split(mean, 2)
        there = share > 0  # a class without an example says nothing
        return jnp.where(there, wrong / jnp.where(there, share, 1.0), 0.0).sum() / there.sum()


@dataclass(frozen=True)
class Regression:
    """One number: squared error, and its root over all examples, in the units of the target.

    Attributes:
        metric: "RMSE"; or "1-R2", the share of the targets' variance that the model does not explain.
        centre: about the mean of the targets, around which "1-R2" sums squares: no result depends on it but by
            rounding, so it is part of no id.
    """

    metric: str = "RMSE"
    name: str = "regression"
    centre: float = 0.0

    @property
    def identity(self) -> str:
        """What ids know it by."""
        return self.name if self.metric == "RMSE" else f"{self.name} {self.metric}"

    def outputs(self, card: DataCard) -> int:
        """Return 1."""
        if card.targets != "float32" or card.target_shape:
            found = f"have the shape {card.target_shape}" if card.target_shape else f"are {card.targets}"
            raise ValueError(f"needs one number as a target; these {found}")
        return 1

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the squared error of outputs [batch, 1] and targets [batch]."""
        return jnp.square(outputs[:, 0] - targets)

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the squared error; for 1-R2 [batch, 3]: that, the target and its square, both around the centre."""
        if self.metric == "RMSE":
            return self.loss(outputs, targets)
        outputs, targets = outputs - self.centre, targets - self.centre
        return jnp.stack([self.loss(outputs, targets), targets, jnp.square(targets)], axis=-1)

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the root of the mean squared error, or what of the variance is left: NaN where there is none."""
        if self.metric == "RMSE":
            return jnp.sqrt(mean)
        variance = mean[2] - jnp.square(mean[1])
        return mean[0] / jnp.where(variance > 0, variance, jnp.nan)


@dataclass(frozen=True)
class NextToken:
    """The token that follows, at every position of a window: cross-entropy in nats a token, and bits.

    An example is a window of tokens, its stored target the token that comes after.

    Attributes:
        bytes_per_token: of the text; None: not known, and the bits are those of a token.
    """

    bytes_per_token: float | None = None
    name: str = "next_token"

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return "bits_per_token" if self.bytes_per_token is None else "bits_per_byte"

    @property
    def identity(self) -> str:
        """What ids know it by; the bytes of a token are part of the data."""
        return self.name

    def outputs(self, card: DataCard) -> tuple[int, ...]:
        """Return (length of a window, tokens)."""
        if card.vocabulary is None or len(card.shape) != 1 or card.classes is not None or card.target_shape:
            raise ValueError("needs windows of tokens, and the token that follows as the target")
        return (*card.shape, card.vocabulary)

    def targets(self, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the token that follows each of a window, int32 [batch, length]."""
        return jnp.concatenate([inputs[:, 1:], targets[:, None]], axis=1)

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the mean cross-entropy of a window's positions."""
        return cross_entropy(outputs, targets).mean(-1)

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the loss."""
        return self.loss(outputs, targets)

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the mean loss in bits."""
        return mean / (math.log(2) * (self.bytes_per_token or 1.0))


CLASSIFICATION = Classification()
# Name -> (task, the metrics that it has; the first is the default). A sweep file takes the names of
# `spec.sweep.TASKS`, since `spec` may not import `train`; a test holds both equal. A classification has the metrics
# of TOP_ERROR too, of which top5_error is one.
TASKS = {
    "classification": (Classification, ("error", "log_loss", "balanced_error", "top5_error")),
    "regression": (Regression, ("RMSE", "1-R2")),
    "next_token": (NextToken, ()),
}


def task_of(choice: str | Task | None, card: DataCard, *, metric: str | None = None) -> Task:
    """Return the task of a sweep: the user's own, the one of that name, or (None) the one that the targets call for.

    Args:
        choice: as described; a text "package.module:object" names one of the user's own.
        card: of the data.
        metric: the headline metric, by name; None: the task's first.

    Raises:
        SpecError: the task has no such metric, or it means nothing to these data.
    """
    if choice is None:
        tokens = card.vocabulary is not None and card.classes is None
        choice = "next_token" if tokens else "regression" if card.classes is None else "classification"
    if isinstance(choice, str) and ":" in choice:
        choice = cast(Task, load_object(choice))
    if not isinstance(choice, str):
        if metric is not None:
            raise SpecError("a task of your own names its metric itself; drop this key", keys=("metric",))
        return choice
    kind, metrics = TASKS[choice]
    if (
        metric is not None
        and metric not in metrics
        and not (kind is Classification and re.fullmatch(TOP_ERROR, metric))
    ):
        has = f"it has {', '.join(metrics)}" if metrics else "its metric follows from the data; drop this key"
        raise SpecError(f"{choice} has no metric {shown(metric)}; {has}", keys=("metric",))
    top = re.fullmatch(TOP_ERROR, metric or "")
    if top and card.classes is not None and int(top[1]) >= card.classes:
        says = f"{metric} of {card.classes} classes is always 0; expected a number below that of the classes"
        raise SpecError(says, keys=("metric",))
    if kind is NextToken:
        return NextToken(card.bytes_per_token)
    if metric == "1-R2":
        if not card.test_differs:
            raise SpecError(
                '1-R2 needs test targets that differ; take metric = "RMSE", or other data', keys=("metric",)
            )
        return Regression(metric, centre=card.target_centre or 0.0)
    return kind() if metric is None else kind(metric=metric)


def output_shape(task: Task, card: DataCard) -> tuple[int, ...]:
    """Return the shape of what a model returns for an example; raises as `Task.outputs` does."""
    found = task.outputs(card)
    return found if isinstance(found, tuple) else (found,)


def is_own(task: Task) -> bool:
    """Say whether a task is the user's; a class of the user's that derives from one here is."""
    return type(task) not in {kind for kind, _ in TASKS.values()}
