"""What a model is trained to do: the targets that it takes, its loss, and the metric that is shown."""

from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import optax

from scalejax.data import DataCard


class Task(Protocol):
    """A loss and a headline metric; the engine asks it for whatever depends on what a model is trained to do.

    A user's own task is any object with these attributes; it must be hashable, as a frozen dataclass is. Its name and
    metric may be plain fields.
    """

    @property
    def name(self) -> str:
        """What it is called in sentences and in ids, such as "regression"."""
        ...

    @property
    def metric(self) -> str:
        """The name of the headline metric as it is shown, such as "RMSE"; lower is better."""
        ...

    def outputs(self, card: DataCard) -> int:
        """Return how many numbers a model returns for an example of these data.

        Raises:
            ValueError: the task does not fit the data; says why, as the rest of a sentence.
        """
        ...

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the loss of each example, [batch], of outputs float32 [batch, outputs] and targets [batch, ...].

        Training minimises its mean over a batch; validation and test average it over all examples.
        """
        ...

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return what each example adds to the headline metric, [batch]."""
        ...

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the headline metric, given the mean of `score` over all examples."""
        ...


@dataclass(frozen=True)
class Classification:
    """One of several classes: cross-entropy in nats, and the share of wrong answers."""

    name: str = "classification"
    metric: str = "error"

    def outputs(self, card: DataCard) -> int:
        """Return the number of classes."""
        if card.classes is None:
            raise ValueError(f"needs whole numbers as targets, one a class; these are {card.targets}")
        return card.classes

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the cross-entropy of logits [batch, classes] and classes int32 [batch]."""
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return 1 where the largest logit is not that of the target."""
        return (outputs.argmax(-1) != targets).astype(jnp.float32)

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the error."""
        return mean


@dataclass(frozen=True)
class Regression:
    """One number: squared error, and its root over all examples, in the units of the target."""

    name: str = "regression"
    metric: str = "RMSE"

    def outputs(self, card: DataCard) -> int:
        """Return 1."""
        if card.target_shape:
            raise ValueError(f"needs one number as a target; these have the shape {card.target_shape}")
        return 1

    def loss(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the squared error of outputs [batch, 1] and targets [batch]."""
        return jnp.square(outputs[:, 0] - targets)

    def score(self, outputs: jax.Array, targets: jax.Array) -> jax.Array:
        """Return the squared error."""
        return self.loss(outputs, targets)

    def headline(self, mean: jax.Array) -> jax.Array:
        """Return the root of the mean squared error."""
        return jnp.sqrt(mean)


CLASSIFICATION = Classification()
# The one table that the sweep file needs: name -> task.
TASKS: dict[str, Task] = {"classification": CLASSIFICATION, "regression": Regression()}


def task_of(choice: str | Task | None, card: DataCard) -> Task:
    """Return the task of a sweep: the user's own, the one of that name, or (None) the one that the targets call for."""
    if choice is None:
        choice = "regression" if card.classes is None else "classification"
    return TASKS[choice] if isinstance(choice, str) else choice
