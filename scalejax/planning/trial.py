"""Trials: what a sweep asks for, each known by a hash of everything that determines its result."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import jax
import numpy as np

from scalejax.builders import name_of
from scalejax.classical.families import is_older
from scalejax.data import DataCard
from scalejax.data.features import Chain, Step, is_own_step, resolve, title
from scalejax.data.own_examples import OwnExamples
from scalejax.errors import SweepError
from scalejax.models import FAMILIES
from scalejax.models.architecture import Architecture, architecture, fingerprint
from scalejax.models.precision import FLOAT32
from scalejax.planning.halving import expected_stops, rung_steps
from scalejax.rules import LARGEST
from scalejax.spec import DataSpec, Knob, ModelGrid, Sweep, TrainSpec
from scalejax.spec.sweep import default_numbers
from scalejax.train.numerics import Numerics, current
from scalejax.train.recipe import DECAY_FRACTION, FOLLOWS, LaneProgram, Recipe, Settings, content
from scalejax.train.task import is_own, output_shape, task_of
from scalejax.train.traced import features_digest, optimizer_digest, program_digest, schedule_digest, task_digest

# Raise it when a change to the training step or to a family changes results: old rows are then never mixed with new.
RESULTS_VERSION = 2
EVALUATIONS = 20  # of a trial, where the sweep does not say how often

Knobs = tuple[tuple[str, Knob], ...]


@dataclass(frozen=True)
class Trial:
    """One model size, number of training examples, set of hyperparameters and seed.

    A field with a default came later: an id hashes it only where it differs from that.

    Attributes:
        architecture: the model at its true size; its family, knobs and builder stand for it in the id, and its
            precision where that is not the default.
        family: its name.
        knobs: ascending by name.
        builder: digests of a user's own builder: of its source, and of the program that its model runs.
        data: fingerprint of the data set.
        recipe: what its program is compiled for.
        settings: its numbers in a lane.
        seed: draws the initial weights, the examples and their order.
        evaluate_every: steps.
        patience: evaluations without improvement that end it.
        numerics: JAX's settings that change numbers.
        own: digests of a user's own task, optimizer and schedule.
        features: digests of the steps before the model.
        features_named: what these are called in the rows; None where no model of the sweep names any.
        rungs: steps at which it waits for its competitors, ascending; none without halving. Part of no id.
    """

    architecture: Architecture = field(metadata=FOLLOWS)
    family: str
    knobs: Knobs
    builder: str | None
    data: str
    recipe: Recipe = field(metadata=FOLLOWS)
    settings: Settings = field(metadata=FOLLOWS)
    seed: int
    evaluate_every: int
    patience: int | None
    numerics: Numerics = ()
    own: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    features_named: str | None = field(default=None, metadata=FOLLOWS)
    rungs: tuple[int, ...] = field(default=(), metadata=FOLLOWS)

    @functools.cached_property
    def trial_id(self) -> str:
        """Sixteen hexadecimal digits of a hash of the content."""
        hashed = content(self) | content(self.recipe) | content(self.settings)
        if self.hyperparameters:
            hashed["hyperparameters"] = self.hyperparameters
        if self.architecture.precision != FLOAT32:
            hashed["precision"] = self.architecture.precision
        return hashlib.sha256(json.dumps([RESULTS_VERSION, hashed], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def hyperparameters(self) -> tuple[tuple[str, Knob], ...]:
        """What else is chosen for it, by name, beside learning rate, weight decay and batch size.

        Numbers of the optimizer and the schedule, those left out that are at their default.
        """
        defaults = default_numbers(self.recipe.optimizer, self.recipe.schedule)
        return tuple(
            (name, value) for name, value in self.settings.named(self.recipe).items() if value != defaults[name]
        )

    @property
    def program(self) -> LaneProgram:
        """The program of its own size."""
        return LaneProgram(self.architecture, self.recipe)

    @property
    def named_knobs(self) -> Knobs:
        """What tells its model from others in the rows: its size knobs, and its features where a sweep names any."""
        return self.knobs if self.features_named is None else (("features", self.features_named), *self.knobs)

    @property
    def chain(self) -> Chain:
        """The steps of its features; none without."""
        return self.architecture.features

    @property
    def own_examples(self) -> OwnExamples | None:
        """What its features are fitted on; None without features."""
        if not self.features:
            return None
        return OwnExamples(self.settings.train_examples, self.settings.subset_key, self.key("features"))

    @property
    def competition(self) -> "Trial":
        """What it has in common with its competitors: itself, with no seed and no learning rate of its own."""
        return replace(self, settings=replace(self.settings, learning_rate=0, subset_key=0, shuffle_key=0), seed=0)

    def key(self, purpose: str) -> int:
        """Return the 32 random bits that this trial uses for one purpose, such as "initialise"."""
        return random_bits(self.data, self.seed, purpose)


def random_bits(data: str, seed: int, purpose: str) -> int:
    """Return 32 random bits for one purpose: "initialise", "subset", "shuffle" or "features".

    They depend on the data and the seed alone, so trials that differ in size, learning rate or number of examples are
    compared on common random numbers, and never on the lane that a trial happens to run in.
    """
    text = f"{RESULTS_VERSION} {data} {seed} {purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Counted:
    """A trial as a plan counts it.

    Attributes:
        trial: or one of several that are alike to a schedule.
        copies: how many these are; 1 wherever trials are spelled out.
        expected_stop: the rung at which a plan counts it as stopped, None if it counts all its steps. Where the trial
            really ends, its losses decide.
    """

    trial: Trial
    copies: int = 1
    expected_stop: int | None = None

    @property
    def steps(self) -> int:
        """The steps that a plan counts with: the horizon, unless halving is expected to stop the trial."""
        return self.trial.settings.steps if self.expected_stop is None else self.expected_stop


def expand(sweep: Sweep, card: DataCard) -> list[Counted]:
    """Return the trials of a sweep in the order of its file: models, examples, hyperparameters, seeds."""
    rungs_of = functools.cache(functools.partial(_rungs, sweep.train))
    expanded = []
    for trial in _trials(sweep, card):
        rungs, stops = rungs_of(trial.settings.steps, trial.evaluate_every)
        expanded.append(Counted(replace(trial, rungs=rungs), expected_stop=stops.get(trial.settings.learning_rate)))
    return expanded


def expand_counted(sweep: Sweep, card: DataCard) -> list[Counted]:
    """Return one trial, with its `copies`, for all that differ in seed, learning rate and weight decay alone.

    These are alike to a schedule; with halving, those of them that are counted with the same number of steps. A
    million of them would take half a minute to spell out, most of it for their ids.
    """
    train = sweep.train
    copies = len(sweep.seeds) * len(train.weight_decay)
    first = replace(train, learning_rate=train.learning_rate[:1], weight_decay=train.weight_decay[:1], halving=None)
    expanded = []
    for trial in _trials(replace(sweep, seeds=sweep.seeds[:1], train=first), card):
        rungs, stops = _rungs(train, trial.settings.steps, trial.evaluate_every)
        rates: dict[int | None, list[float]] = {}
        for rate in train.learning_rate:
            rates.setdefault(stops.get(rate), []).append(rate)
        for stop, alike in rates.items():
            settings = replace(trial.settings, learning_rate=alike[0])
            expanded.append(Counted(replace(trial, settings=settings, rungs=rungs), copies * len(alike), stop))
    return expanded


def _rungs(train: TrainSpec, steps: int, evaluate_every: int) -> tuple[tuple[int, ...], dict[float, int | None]]:
    """Return the rungs of a horizon, and for each learning rate the one at which a plan counts it as stopped."""
    if train.halving is None:
        return (), {}
    rungs = rung_steps(train.halving.rungs, steps, evaluate_every=evaluate_every)
    stops = expected_stops(len(train.learning_rate), rungs, reduction=train.halving.reduction)
    return rungs, dict(zip(train.learning_rate, stops, strict=True))


def training_sizes(data: DataSpec, card: DataCard) -> list[int]:
    """Return the numbers of training examples that a sweep asks for, as numbers, in the order of the file."""
    if data.train_examples is not None:
        return list(data.train_examples)
    sizes = [max(1, round(fraction * card.examples)) for fraction in data.fractions or ()]
    return list(dict.fromkeys(sizes))


def horizon(train: TrainSpec, train_examples: int, batch_size: int) -> tuple[int, int]:
    """Return a trial's number of steps and its steps between evaluations.

    Steps that follow from epochs are rounded up to whole evaluation intervals (never beyond max_steps), and an
    interval that is not given is a power of two: lanes of different horizons then evaluate at common steps.
    """
    if train.steps is not None:
        return train.steps, train.evaluate_every or math.ceil(train.steps / EVALUATIONS)
    steps = math.ceil(min((train.epochs or 1) * train_examples / batch_size, 2.0 * LARGEST))  # absurd, but no infinity
    ceiling = train.max_steps or max(steps, train.min_steps or 1) * 2
    steps = min(max(steps, train.min_steps or 1), ceiling)
    interval = train.evaluate_every or 2 ** max(0, round(math.log2(steps / EVALUATIONS)))
    return min(math.ceil(steps / interval) * interval, ceiling), interval


def family_name(grid: ModelGrid) -> str:
    """Return what a grid's models are called in the rows: the family, or the name of the user's own builder."""
    return grid.family if isinstance(grid.family, str) else name_of(grid.family)


def features_named(sweep: Sweep, grid: ModelGrid, steps: Sequence[Step]) -> str | None:
    """Return what the steps before a model are called in the rows; None where no model of the sweep names any.

    Where one does, all have a name there: those without features of their own have the steps of the data. A size knob
    of that name, of a builder of the user's own, keeps the column.
    """
    named = any(each.features is not None for each in sweep.models) and "features" not in grid.knobs
    return title(steps) if named else None


def _trials(sweep: Sweep, card: DataCard) -> Iterator[Trial]:
    """Yield every trial of a sweep, without its rungs."""
    train, numerics, occasion = sweep.train, current(), object()
    task = task_of(sweep.task, card, metric=sweep.metric)
    try:
        outputs = output_shape(task, card)
    except ValueError as error:
        raise SweepError(f"the task {task.name} {error}; give other data, or another task") from error
    recipe = Recipe(
        optimizer=train.optimizer,
        schedule=train.schedule,
        clip_norm=train.clip_norm,
        batch_size=train.batch_size[0],
        weight_decay_on=train.weight_decay_on,
        task=task,
        target=(card.learns, card.target_shape),
    )
    inputs = jax.ShapeDtypeStruct((2, *card.shape), np.dtype(card.sees))
    own_task, own_schedule = task_digest(recipe, outputs, inputs=inputs), schedule_digest(recipe)
    numbers = _numbers(train)
    subset_keys = {seed: random_bits(card.fingerprint, seed, "subset") for seed in sweep.seeds}
    shuffle_keys = {seed: random_bits(card.fingerprint, seed, "shuffle") for seed in sweep.seeds}
    for grid in sweep.models:
        if is_older(grid.family):
            continue
        for features, (knobs, size, source) in (
            (steps, each)
            for steps in grid.features or (sweep.data.steps,)
            for each in _sizes(grid, steps, card, recipe, outputs=outputs, occasion=occasion, precision=train.precision)
        ):
            behind = features_digest(size.features, size.shape)
            own = own_task + optimizer_digest(LaneProgram(size, recipe)) + own_schedule
            for train_examples, batch_size in itertools.product(training_sizes(sweep.data, card), train.batch_size):
                steps, interval = horizon(train, train_examples, batch_size)
                batched = replace(recipe, batch_size=batch_size)
                builder = None if source is None else f"{source} {program_digest(size, batched)}"
                for rate, decay, own_numbers, seed in itertools.product(
                    train.learning_rate, train.weight_decay, numbers, sweep.seeds
                ):
                    yield Trial(
                        architecture=size,
                        family=family_name(grid),
                        knobs=knobs,
                        builder=builder,
                        data=card.fingerprint,
                        recipe=replace(batched, numbers=tuple(own_numbers)),
                        settings=Settings(
                            learning_rate=float(rate),
                            weight_decay=float(decay),
                            steps=steps,
                            warmup_steps=math.ceil(train.warmup_fraction * steps),
                            train_examples=train_examples,
                            subset_key=subset_keys[seed],
                            shuffle_key=shuffle_keys[seed],
                            numbers=tuple(own_numbers.values()),
                        ),
                        seed=seed,
                        evaluate_every=interval,
                        patience=train.patience,
                        numerics=numerics,
                        own=own,
                        features=behind,
                        features_named=features_named(sweep, grid, features),
                    )


def _numbers(train: TrainSpec) -> list[dict[str, float]]:
    """Return the numbers of the optimizer and the schedule that a sweep asks for, as those that are no constants.

    Where all of an optimizer's are at their default there are none of it: its program is that of a sweep without them.
    """
    defaults = default_numbers(train.optimizer, train.schedule)
    grids = [getattr(train, name) or (default,) for name, default in defaults.items()]
    combinations = [dict(zip(defaults, values, strict=True)) for values in itertools.product(*grids)]

    def traced(numbers: dict[str, float]) -> dict[str, float]:
        of_schedule = {name: value for name, value in numbers.items() if name == DECAY_FRACTION}
        others = numbers.keys() - of_schedule.keys()
        return numbers if any(numbers[name] != defaults[name] for name in others) else of_schedule

    return list(map(traced, combinations))


def _sizes(
    grid: ModelGrid,
    features: Sequence[Step],
    card: DataCard,
    recipe: Recipe,
    *,
    outputs: tuple[int, ...],
    occasion: object,
    precision: str,
) -> Iterator[tuple[Knobs, Architecture, str | None]]:
    """Yield knobs, architecture and the digest of the user's own source for every size of one grid behind features.

    Raises:
        SweepError: a module of the user's own cannot be trained, or is another one each time it is built or called:
            its trials would never be found again.
    """
    chain = resolve(features)
    if isinstance(grid.family, str):
        build, source = FAMILIES[grid.family], None
        # What is remembered by architecture may depend on any part that is the user's own: it has an occasion then.
        parts_own = is_own(recipe.task) or not (isinstance(recipe.optimizer, str) and isinstance(recipe.schedule, str))
        occasion = occasion if parts_own or any(map(is_own_step, chain)) else None
    else:
        build, source = grid.family, fingerprint(grid.family)
    unseen = source is not None
    # Products in the order of the file, knobs stored by name: the identity must not depend on the order of the keys.
    for values in itertools.product(*grid.knobs.values()):
        knobs = dict(zip(grid.knobs, values, strict=True))
        size = architecture(
            build,
            knobs,
            shape=card.shape,
            outputs=outputs[-1],
            dtype=card.sees,
            vocabulary=card.vocabulary,
            occasion=occasion,
            features=chain,
            precision=precision,
        )
        if source is not None or card.vocabulary is not None:  # the families are tested, but not on any task of tokens
            size.check(outputs=outputs, task=recipe.task.name)
        if unseen:  # one size speaks for its builder: it would take as long as planning another one
            unseen = False
            few = replace(recipe, batch_size=2)
            if program_digest(size, few) != program_digest(replace(size, occasion=object()), few):
                why = (
                    "computes something else each time it is built or called, for instance from NumPy's random numbers"
                )
                raise SweepError(
                    f"the model {size.title} {why}; draw from `rngs`, or from a generator with a fixed seed"
                )
        yield tuple(sorted(knobs.items())), size, source
