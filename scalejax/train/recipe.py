"""What is compiled into a program, and what is not: the recipe, and the settings of a lane."""

import fnmatch
import functools
from dataclasses import Field, dataclass, field, fields
from typing import Any

import jax
import numpy as np

from scalejax.builders import qualified_name
from scalejax.models import Architecture
from scalejax.train.optimizers import Optimizer
from scalejax.train.schedules import Schedule
from scalejax.train.task import CLASSIFICATION, Task

Leaf = Any  # an array of the type and shape in the comment: JAX's in a program, NumPy's on the host

# What a setting is in a program; and whether the id of a trial hashes it, or it follows from what the id hashes.
FLOAT, INT, UINT = ({"type": kind} for kind in (np.float32, np.int32, np.uint32))
FOLLOWS = {"hashed": False}
# How lanes run: side by side, one after the other, or side by side in steps that the host counts.
VMAP, MAP, STATIC = "vmap", "map", "static"
PIECES = (32, 8, 1)  # steps of the programs of the mode STATIC: a call is made up of them
EVALUATION_BLOCK = 1024  # examples that are evaluated at once, at most
DECAY_FRACTION = "decay_fraction"  # the number of the schedule "wsd"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Settings:
    """The numbers of one trial, one each a lane: a scalar of the declared type in a program, Python's in a trial."""

    learning_rate: Leaf = field(metadata=FLOAT)  # the peak of the schedule
    weight_decay: Leaf = field(metadata=FLOAT)  # decoupled (Loshchilov & Hutter 2019)
    steps: Leaf = field(metadata=INT)  # the horizon
    warmup_steps: Leaf = field(metadata=INT)
    train_examples: Leaf = field(metadata=UINT)
    # Orders the pool, the first train_examples of which are the trial's; and the trial's own examples in every epoch.
    subset_key: Leaf = field(metadata=UINT | FOLLOWS)  # both follow from the data and the seed
    shuffle_key: Leaf = field(metadata=UINT | FOLLOWS)
    # Of the optimizer and the schedule, in the order of the recipe's `numbers`. An id hashes the trial's
    # `hyperparameters` instead, which are those of them that are not at their default.
    numbers: tuple[Leaf, ...] = field(default=(), metadata=FLOAT | FOLLOWS)

    def scalars(self) -> "Settings":
        """Return the numbers in the types of a program."""

        def typed(number: Field[Any]) -> Any:
            value, kind = getattr(self, number.name), number.metadata["type"]
            return tuple(map(kind, value)) if isinstance(value, tuple) else kind(value)

        return Settings(**{number.name: typed(number) for number in fields(self)})

    def named(self, recipe: "Recipe") -> dict[str, Leaf]:
        """Return the numbers of the optimizer and the schedule by name."""
        return dict(zip(recipe.numbers, self.numbers, strict=True))

    @staticmethod
    def abstract(recipe: "Recipe", *shape: int) -> "Settings":
        """Return the settings of a recipe as shapes."""
        types = {number.name: number.metadata["type"] for number in fields(Settings)}
        leaves: dict[str, Any] = {name: jax.ShapeDtypeStruct(shape, dtype) for name, dtype in types.items()}
        return Settings(**leaves | {"numbers": (leaves["numbers"],) * len(recipe.numbers)})


@dataclass(frozen=True)
class Recipe:
    """All that is compiled into a program but the model: trials of different recipes never share one.

    A field that is added later has a default, and changes no id as long as it has that.
    """

    optimizer: str | Optimizer
    schedule: str | Schedule
    clip_norm: float | None
    batch_size: int
    weight_decay_on: tuple[str, ...] | None = None  # patterns of parameters' names; None: all matrices
    task: Task = CLASSIFICATION
    # Type and shape of an example's target, which the data set's own fingerprint stands for.
    target: tuple[str, tuple[int, ...]] = field(default=("int32", ()), metadata=FOLLOWS)
    # What `Settings.numbers` are called. Those of an optimizer are there only if one of them is not at its default.
    numbers: tuple[str, ...] = field(default=(), metadata=FOLLOWS)


@dataclass(frozen=True)
class LaneProgram:
    """What is compiled: the model, the largest of those that run in it, the recipe, and how lanes run."""

    architecture: Architecture
    recipe: Recipe
    mode: str = VMAP
    stream_steps: int = 0  # most steps of a call, whose batches it is given; 0: it draws them from the pool itself
    pieces: tuple[int, ...] = PIECES  # the steps of its programs, in the mode STATIC
    microbatches: int = 1  # parts of a batch, whose gradients are added up one after the other
    rematerialise: bool = False  # whether blocks of a stacked model are computed again in the backward pass
    evaluation_block: int = EVALUATION_BLOCK  # about how many examples are evaluated at once, in the mode STATIC

    @functools.cached_property
    def decayed(self) -> tuple[bool, ...]:
        """Which parameters weight decay acts on, in the order of the leaves of their state."""
        if self.recipe.weight_decay_on is None:
            return self.architecture.matrices(self.recipe.batch_size)
        names = self.architecture.parameter_names
        patterns = self.recipe.weight_decay_on
        return tuple(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names)

    @property
    def identity(self) -> str:
        """A text that is the same in every process, for what is remembered of a program on disk."""
        # In the order of version 0.1, which the modes that a run has kept are found by.
        optimizer, schedule, clip_norm, batch_size, *later = content(self.recipe).values()
        constants = optimizer, schedule, clip_norm, batch_size, self.mode, *later
        further = " streamed" * bool(self.stream_steps)
        further += f" in {self.microbatches} parts" * (self.microbatches > 1)
        further += " rematerialised" * self.rematerialise
        return f"{self.architecture.identity} {constants}{further}"


def content(part: Any) -> dict[str, Any]:
    """Return the fields of a part of a trial that its id hashes, as plain data.

    Left out are those that follow from others, and those that came later and have their default: finished trials of
    earlier versions keep their ids.
    """

    def plain(value: Any) -> Any:
        """Return a value as JSON can hold it; a task, an optimizer or a schedule by its name."""
        if value is None or isinstance(value, str | int | float | tuple):
            return value
        return getattr(value, "identity", None) or getattr(value, "name", None) or qualified_name(value)

    values = ((entry, getattr(part, entry.name)) for entry in fields(part) if entry.metadata.get("hashed", True))
    return {entry.name: plain(value) for entry, value in values if value != entry.default}
