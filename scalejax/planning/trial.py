"""Trials: what a sweep asks for, each known by a hash of everything that determines its result."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

from scalejax.builders import name_of
from scalejax.data import DataCard
from scalejax.errors import SweepError
from scalejax.models import FAMILIES
from scalejax.models.architecture import Architecture, architecture, fingerprint
from scalejax.planning.halving import expected_stops, rung_steps
from scalejax.spec import DataSpec, Knob, ModelGrid, Sweep, TrainSpec
from scalejax.spec.rules import LARGEST
from scalejax.train.numerics import Numerics, current
from scalejax.train.traced import program_digest

# Raise it when a change to the training step or to a family changes results: old rows are then never mixed with new.
RESULTS_VERSION = 2
EVALUATIONS = 20  # of a trial, where the sweep does not say how often


Knobs = tuple[tuple[str, Knob], ...]


@dataclass(frozen=True)
class Trial:
    """One model size, number of training examples, set of hyperparameters and seed."""

    family: str
    knobs: Knobs  # ascending by name
    train_examples: int
    seed: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    optimizer: str
    schedule: str
    clip_norm: float | None
    steps: int  # the horizon
    warmup_steps: int
    evaluate_every: int  # steps
    patience: int | None  # evaluations
    data: str  # fingerprint of the data set
    builder: str | None  # digests of a user's own builder: of its source, and of the program that its model runs
    numerics: Numerics = ()  # JAX's settings that change numbers
    weight_decay_on: tuple[str, ...] | None = None  # patterns of the parameters that decay; None: all matrices

    @property
    def trial_id(self) -> str:
        """Sixteen hexadecimal digits of a hash of the content.

        A field with a default is hashed only where it differs from it: it came later, and finished trials of earlier
        versions keep their ids.
        """
        defaults = {field.name: field.default for field in fields(self)}
        content = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return hashlib.sha256(json.dumps([RESULTS_VERSION, content], sort_keys=True).encode()).hexdigest()[:16]

    def key(self, purpose: str) -> int:
        """Return the 32 random bits that this trial uses for one purpose: "initialise", "subset" or "shuffle".

        They hang on the data and the seed alone, so trials that differ in size, learning rate or number of examples
        are compared on common random numbers, and never on the lane that a trial happens to run in.
        """
        content = f"{RESULTS_VERSION} {self.data} {self.seed} {purpose}"
        return int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class PlannedTrial:
    """A trial with the architecture that it trains.

    Attributes:
        trial: what determines its result.
        trial_id: its id.
        architecture: of its size.
        copies: 1 wherever something is trained; in a plan that is only simulated, one trial stands for all of its
            kind, as `expand_counted` returns them.
        rungs: steps at which it waits for its competitors, ascending; none without halving.
        expected_stop: the rung at which a plan counts it as stopped, None if it counts all its steps. Where the trial
            really ends, its losses decide.
    """

    trial: Trial
    trial_id: str
    architecture: Architecture
    copies: int = 1
    rungs: tuple[int, ...] = ()
    expected_stop: int | None = None

    @property
    def expected_steps(self) -> int:
        """The steps that a plan counts with: the horizon, unless halving is expected to stop the trial."""
        return self.trial.steps if self.expected_stop is None else self.expected_stop


def expand(sweep: Sweep, card: DataCard) -> list[PlannedTrial]:
    """Return the trials of a sweep in the order of its file: models, examples, hyperparameters, seeds."""
    halving = functools.cache(functools.partial(_halving, sweep.train))
    planned, occasion = [], object()
    for grid in sweep.models:
        for family, knobs, built, source in _sizes(grid, card, occasion=occasion):
            for trial in _trials_of_size(sweep, card, (family, knobs, built, source)):
                rungs, stops = halving(trial.steps, trial.evaluate_every)
                planned.append(
                    PlannedTrial(
                        trial, trial.trial_id, built, rungs=rungs, expected_stop=stops.get(trial.learning_rate)
                    )
                )
    return planned


def expand_counted(sweep: Sweep, card: DataCard) -> list[PlannedTrial]:
    """Return one trial, with its `copies`, for all that differ in seed, learning rate and weight decay alone.

    These are alike to a schedule; with halving, those of them that are counted with the same number of steps. A
    million of them would take half a minute to spell out, most of it for their ids.
    """
    train = sweep.train
    copies = len(sweep.seeds) * len(train.weight_decay)
    first = replace(train, learning_rate=train.learning_rate[:1], weight_decay=train.weight_decay[:1], halving=None)
    planned = []
    for kind in expand(replace(sweep, seeds=sweep.seeds[:1], train=first), card):
        rungs, stops = _halving(train, kind.trial.steps, kind.trial.evaluate_every)
        rates: dict[int | None, list[float]] = {}
        for rate in train.learning_rate:
            rates.setdefault(stops.get(rate), []).append(rate)
        for stop, alike in rates.items():
            trial = replace(kind.trial, learning_rate=alike[0])
            count = copies * len(alike)
            planned.append(PlannedTrial(trial, trial.trial_id, kind.architecture, count, rungs, stop))
    return planned


def _halving(train: TrainSpec, steps: int, evaluate_every: int) -> tuple[tuple[int, ...], dict[float, int | None]]:
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


def _sizes(
    grid: ModelGrid, card: DataCard, *, occasion: object
) -> Iterator[tuple[str, Knobs, Architecture, str | None]]:
    """Yield (family name, knobs, architecture, digest of the user's own source) for every size of one grid."""
    name = family_name(grid)
    if isinstance(grid.family, str):
        build, source, occasion = FAMILIES[grid.family], None, None
    else:
        build, source = grid.family, fingerprint(grid.family)
    names, unseen = sorted(grid.knobs), source is not None
    # Products in the order of the file, knobs stored by name: the identity must not hang on the order of the keys.
    for values in itertools.product(*grid.knobs.values()):
        chosen = dict(zip(grid.knobs, values, strict=True))
        knobs = tuple((knob, chosen[knob]) for knob in names)
        built = architecture(build, chosen, shape=card.shape, classes=card.classes, occasion=occasion)
        if source is not None:  # the families are tested
            built.check(classes=card.classes)
        if unseen:  # one size speaks for its builder: it would take as long as planning another one
            _check_repeats(built)
            unseen = False
        yield name, knobs, built, source


def _check_repeats(built: Architecture) -> None:
    """Refuse a module that is another one each time it is built or called: its trials would never be found again."""
    batch = (2, *built.shape)
    first, second = (program_digest(each, batch) for each in (built, replace(built, occasion=object())))
    if first != second:
        says = "computes something else each time it is built or called, for instance from NumPy's random numbers"
        raise SweepError(f"the model {built.title} {says}; draw from `rngs`, or from a generator with a fixed seed")


def _trials_of_size(sweep: Sweep, card: DataCard, size: tuple[str, Knobs, Architecture, str | None]) -> Iterator[Trial]:
    """Yield every trial of one model size."""
    train, (family, knobs, built, source) = sweep.train, size
    numerics = current()
    sizes = training_sizes(sweep.data, card)
    grid = itertools.product(sizes, train.batch_size, train.learning_rate, train.weight_decay, sweep.seeds)
    for train_examples, batch_size, learning_rate, weight_decay, seed in grid:
        steps, interval = horizon(train, train_examples, batch_size)
        yield Trial(
            family=family,
            knobs=knobs,
            train_examples=train_examples,
            seed=seed,
            learning_rate=float(learning_rate),
            weight_decay=float(weight_decay),
            batch_size=batch_size,
            optimizer=train.optimizer,
            schedule=train.schedule,
            clip_norm=train.clip_norm,
            steps=steps,
            warmup_steps=math.ceil(train.warmup_fraction * steps),
            evaluate_every=interval,
            patience=train.patience,
            data=card.fingerprint,
            builder=None if source is None else f"{source} {program_digest(built, (batch_size, *card.shape))}",
            numerics=numerics,
            weight_decay_on=train.weight_decay_on,
        )
