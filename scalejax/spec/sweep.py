"""What a sweep is: frozen, strictly validated dataclasses. Their TOML file is read by `scalejax.spec.file`.

Every mistake is one `SweepError`, one sentence: the key, what was expected, what was found, the nearest valid name.
Values are strict (no "3" for 3, no true for 1, no 3000.0 for 3000), with two conveniences: a scalar stands for a grid
of one, and a whole number for a float. NumPy numbers and arrays count as the Python numbers they hold.
"""

import copy
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from scalejax.builders import load_object, name_of, parameters
from scalejax.classical import families as older
from scalejax.data import SOURCES, Given, Held, Options, Source, as_source, is_path, of_no_kind, source_name
from scalejax.data.features import Step, canonical, listed_steps, resolve, title
from scalejax.errors import SweepError
from scalejax.rules import (
    Check,
    Knob,
    Rule,
    SpecError,
    as_knob,
    as_number,
    distinct,
    identity,
    listed,
    nearest,
    plain,
    shown,
    strict,
    true_or_false,
)

OF_TARGETS = "classification", "regression"  # the tasks that say what whole numbers as targets are
TASKS = *OF_TARGETS, "next_token"
# Optimizer -> its own numbers, which may be grids, and their defaults (those of optax).
OPTIMIZER_NUMBERS: Mapping[str, Mapping[str, float]] = {
    "adamw": {"b1": 0.9, "b2": 0.999, "eps": 1e-8},
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "lion": {"b1": 0.9, "b2": 0.99},
}
OPTIMIZERS = tuple(OPTIMIZER_NUMBERS)
SCHEDULES = "constant", "cosine", "linear", "wsd"
DECAY_FRACTION = 0.2  # of the steps over which "wsd" falls, by default (Haegele et al. 2024, arXiv:2405.18392)
OWN_NUMBERS = "b1", "b2", "eps", "momentum", "decay_fraction"  # fields of TrainSpec, of some optimizer or schedule
MOST_SEEDS = 10_000  # `seeds = 3000000` is a slip, and would be expanded before anyone could notice
PROVEN, PROBED = "proven", "probed"  # the grounds on which sizes may share a program
NOT_KNOBS = ("inputs", "outputs", "classes", "vocabulary", "rngs")  # parameters of a builder that the engine fills in
SHAPE = "shape"  # that it fills in where it has no default and is no knob
# Float32, TF32 where the device has it, products of bfloat16, and parameters of bfloat16 too.
PRECISIONS = "float32", "tf32", "bfloat16", "bfloat16_parameters"
NONE, BEST, ALL = "none", "best", "all"  # of the trained models, which are kept


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", value):
        allowed = "1 to 100 letters (a to z), digits, '.', '_' or '-', not starting with '.' (it names a folder)"
        raise SpecError(f"expected {allowed}, found {shown(value)}")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    value = plain(value)
    if isinstance(value, list | tuple | range):
        return Rule(int, at_least=0, grid=True)(value)
    number = as_number(value, int)
    if number is None or not 1 <= number <= MOST_SEEDS:
        raise SpecError(f"expected a number of seeds from 1 to {MOST_SEEDS} or a list of seeds, found {shown(value)}")
    return tuple(range(number))


def _loaded(value: str) -> Any:
    """Return the object that "package.module:object" names; a mistake is one about the key that holds it."""
    try:
        return load_object(value)
    except SweepError as error:
        raise SpecError(str(error)) from error


def _task(value: Any) -> Any:
    if isinstance(value, str) and ":" in value:
        _task(_loaded(value))
        return value
    if isinstance(value, str):
        return Rule(str, choices=TASKS)(value)
    _no_class(value)
    methods = all(callable(getattr(value, name, None)) for name in ("outputs", "loss", "score", "headline"))
    names = all(isinstance(getattr(value, name, None), str) for name in ("name", "metric"))
    if not (methods and names):
        expected = f"expected {' or '.join(TASKS)}, or an object with the attributes of scalejax.Task"
        raise SpecError(f"{expected}, found {shown(value)}")
    return _hashable(value)


def _no_class(value: Any) -> None:
    if isinstance(value, type):
        raise SpecError(f"expected an object, found the class {value.__name__}; write {value.__name__}()")


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        what = f"an object of {type(value).__name__} cannot be hashed, as what a program is compiled for must be"
        raise SpecError(f"{what}; make it a frozen dataclass") from None
    return value


def _function(choices: tuple[str, ...]) -> Check:
    """Return the rule of one of these names, or of a function: the user's own, or the "package.module:name" of it."""

    def check(value: Any) -> Any:
        given = _loaded(value) if isinstance(value, str) and ":" in value else value
        if callable(given):
            return _hashable(given)
        if given is not value:
            raise SpecError(f"{value} is {shown(given)}; expected a function")
        return Rule(str, choices=choices)(value)

    return check


def default_numbers(optimizer: Any, schedule: Any) -> dict[str, float]:
    """Return the numbers that an optimizer and a schedule have of their own, by name, with their defaults."""
    of_schedule = {"decay_fraction": DECAY_FRACTION} if schedule == "wsd" else {}
    return {**(OPTIMIZER_NUMBERS[optimizer] if isinstance(optimizer, str) else {}), **of_schedule}


def _part(kind: type) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise SpecError(f"expected a {kind.__name__}, found {shown(value)}")
        return value

    return check


def _models(value: Any) -> tuple["ModelGrid", ...]:
    models = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not models:
        raise SpecError("expected at least one model, found none")
    return tuple(map(_part(ModelGrid), models))


def _one_of(spec: object, table: str, first: str, second: str) -> None:
    """Raise unless exactly one of two optional fields is given."""
    count = sum(getattr(spec, name) is not None for name in (first, second))
    if count != 1:
        found = "both" if count else "neither"
        raise SpecError(
            f"expected exactly one of {first} and {second}, found {found}", table=table, keys=(first, second)
        )


def _source(value: Any) -> Any:
    if isinstance(value, str):
        return Rule(str)(value)
    _no_class(value)
    return value


def _options(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise SpecError(f"expected a mapping of options, found {shown(value)}")
    # A list becomes a tuple, so that what was read from a file equals what was made in Python.
    settled = {name: tuple(option) if isinstance(option, list) else option for name, option in value.items()}
    return {name: option for name, option in settled.items() if option is not None}


def _steps(value: Any) -> tuple[Step, ...]:
    """Return the steps of a chain of features as they are written, each held against what there is."""
    steps = listed_steps(value)
    resolve(steps)
    return tuple(map(canonical, steps))


@strict("data.features")
@dataclass(frozen=True)
class FeaturesSpec:
    """Steps between the inputs and every model, each fitted on a trial's own training examples; see `Features`.

    A step is a text such as "pca(16)", a function of a batch, or an object of one's own. Raises `SweepError`.
    """

    steps: Sequence[Step] = field(metadata={"rule": _steps})


def _features(value: Any) -> FeaturesSpec:
    try:
        return value if isinstance(value, FeaturesSpec) else FeaturesSpec(value)
    except SpecError as fault:
        raise SpecError(fault.says) from None


@strict("data", extra="options")
@dataclass(frozen=True)
class DataSpec:
    """The data of a sweep: where it comes from and which numbers of training examples are tried.

    `source` is the name of a source; the path of a file (.csv, .parquet, .npz, .npy), or of a folder that a Hugging
    Face dataset was saved to; an object (a `Source` of one's own, (x, y), a table of pandas, a mapping of arrays, or a
    data set whose items are examples); or "package.module:object", which names one, or a function that returns one.
    Options of a named source, and those of files and objects (`scalejax.data.Options`), are given as keywords, or as
    `options`.
    Exactly one of `train_examples` (numbers) and `fractions` (shares in (0, 1] of the pool) is given.
    Raises `SweepError` for anything that is not as described here.
    """

    source: Any = field(metadata={"rule": _source})
    train_examples: tuple[int, ...] | None = field(default=None, metadata=Rule(int, at_least=1, grid=True).beside)
    fractions: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, above=0, at_most=1, grid=True).beside
    )
    # Size of the training pool; default: the largest of train_examples, or all there is.
    examples: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    # Default: the source's own.
    validation_examples: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    test_examples: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    # Draws generated data and the split; NOT the trial's seed.
    seed: int = field(default=0, metadata=Rule(int, at_least=0).beside)
    # Whether batches come from the host; None: only where the training pool does not fit on the devices.
    stream: bool | None = field(default=None, metadata={"rule": true_or_false})
    options: Mapping[str, Any] = field(default_factory=dict, metadata={"rule": _options})
    # Before all models that name none themselves; also given as the steps alone.
    features: FeaturesSpec | Step | Sequence[Step] | None = field(default=None, metadata={"rule": _features})

    def __post_init__(self) -> None:
        _one_of(self, "data", "train_examples", "fractions")
        if self.train_examples and self.examples and max(self.train_examples) > self.examples:
            message = f"expected at most examples = {self.examples}, found {max(self.train_examples)}"
            raise SpecError(message, table="data", keys=("train_examples", "examples"))
        object.__setattr__(self, "_origin", self._resolved())

    def __hash__(self) -> int:
        return hash((self.source, self.train_examples, self.fractions, self.examples, self.seed))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of its features; none without."""
        return tuple(self.features.steps) if isinstance(self.features, FeaturesSpec) else ()

    @property
    def origin(self) -> Source:
        """The source itself, its options filled in."""
        return self._origin  # pyright: ignore[reportAttributeAccessIssue]  # set by __post_init__

    def for_task(self, task: str | None) -> "DataSpec":
        """Return the same data, their targets read as a task needs them; None: as they are."""
        if not isinstance(self.origin, Held) or self.origin.task == task:
            return self
        decided = copy.copy(self)
        object.__setattr__(decided, "_origin", self.origin.for_task(task))
        return decided

    def _resolved(self) -> Source:
        names = [each.name for each in fields(self) if each.name != "options"]
        if isinstance(self.source, str) and self.source in SOURCES:
            return self._named(names)
        if isinstance(self.source, str) and not is_path(self.source) and ":" not in self.source:
            if kinds := of_no_kind(self.source):
                raise SpecError(f"{self.source}: {kinds}", table="data", keys=("source",))
            hint = nearest(self.source, SOURCES, sure=True)
            message = f'"{self.source}" is not one of {", ".join(SOURCES)}, nor a file; {hint}'
            raise SpecError(message, table="data", keys=("source",))
        known = [each.name for each in fields(Options)]
        for name in self.options:
            if name not in known:
                raise SpecError(f"unknown key; {nearest(name, [*names, *known])}", table="data", keys=(name,))
        origin = as_source(self.source, self.options)
        own = {**SOURCES, Held.name: Held}
        name = source_name(origin)
        if not isinstance(origin, own.get(name, object)):
            message = f"{shown(name)} is the name of a source of scalejax; give your own another name"
            raise SpecError(message, table="data", keys=("source",))
        if not isinstance(self.source, str) and isinstance(origin, Given):  # what is in memory was copied
            object.__setattr__(self, "source", origin)
            object.__setattr__(self, "options", {})
        return origin

    def _named(self, names: Sequence[str]) -> Source:
        """Return a source of scalejax that is given by name, with its options."""
        source = SOURCES[str(self.source)]
        own = [each.name for each in fields(source)]
        for name in self.options:
            owners = [other for other, kind in SOURCES.items() if name in {each.name for each in fields(kind)}]
            if name not in own and owners:
                of = f'an option of source = "{owners[0]}" that means nothing to "{self.source}"'
                raise SpecError(f"{of}; drop it, or change the source", table="data", keys=(name,))
            if name not in own and name in {each.name for each in fields(Options)}:
                of = f'an option of files and of your own objects that means nothing to "{self.source}"'
                raise SpecError(f"{of}; drop it, or change the source", table="data", keys=(name,))
            if name not in own:
                raise SpecError(f"unknown key; {nearest(name, [*names, *own])}", table="data", keys=(name,))
        return source(**self.options)


@dataclass(frozen=True, init=False)
class ModelGrid:
    """A family of models and the grid of its size knobs: `ModelGrid("mlp", width=[8, 32], depth=2)`.

    `family` is a name, or the user's own builder `build(*, width, rngs)`, whose signature the knobs must fit. The
    knobs may also come as a mapping, `ModelGrid("mlp", {"width": (8, 32)})`. Two grids are equal, and hash alike, by
    content. Raises `SweepError`; a family given by name is held against its knobs by `check_models`.

    `features` are alternatives, in the place of those of the data: `features=["none", "standardise + pca(16)"]`. A
    list in the list is one chain of steps. A builder of one's own that takes a parameter `features` keeps it as a knob.
    """

    family: str | Callable[..., Any]
    knobs: Mapping[str, tuple[Knob, ...]]
    features: tuple[tuple[Step, ...], ...] | None  # None: those of the data

    def __init__(self, family: str | Callable[..., Any], knobs: Mapping[str, Any] | None = None, **more: Any):
        grid: dict[str, tuple[Knob, ...]] = {}
        features = None
        for name, value in (*(knobs or {}).items(), *more.items()):
            try:
                if not isinstance(name, str) or not name.isidentifier() or name in ("family", *NOT_KNOBS):
                    raise SpecError("this cannot be a size knob; expected a parameter of the model")
                if name in grid or (name == "features" and features):
                    raise SpecError("given twice")
                if name == "features" and not _takes_features(_family(family)):
                    features = None if value is None else _alternatives(value)
                    continue
                grid[name] = distinct(map(as_knob, listed(value)))
            except SpecError as fault:
                raise SpecError(fault.says, table="models", keys=(str(name),)) from None
        family = _family(family)
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "knobs", grid)
        object.__setattr__(self, "features", features)
        if callable(family):
            _check_builder(family, grid, family=_title(family))

    def __hash__(self) -> int:
        return hash((self.family, frozenset(self.knobs.items()), self.features))


def _takes_features(family: object) -> bool:
    """Say whether `features` is a parameter of a builder of one's own, as it is of many layers."""
    try:
        takes = parameters(family) if callable(family) else {}
    except (ValueError, TypeError):
        return False
    return "features" in takes or any(each.kind is each.VAR_KEYWORD for each in takes.values())


def _alternatives(value: Any) -> tuple[tuple[Step, ...], ...]:
    """Return the chains of features that a model is tried with."""
    chains = tuple(map(_steps, value if isinstance(value, list | tuple) else [value]))
    distinct(map(title, chains))
    return chains


def _family(family: Any) -> Any:
    """Return the name of a family, or a builder: one's own, or the one that "package.module:name" says."""
    try:
        given = _loaded(family) if isinstance(family, str) and ":" in family else family
        if not callable(given) and given is not family:
            raise SpecError(f"{family} is {shown(given)}; expected a builder, as in def build(*, width, rngs)")
        if not callable(given) and (not isinstance(given, str) or not given or not given.isprintable()):
            raise SpecError(f"expected the name of a family, or a builder, found {shown(given)}")
    except SpecError as fault:
        raise SpecError(fault.says, table="models", keys=("family",)) from fault
    return given


@strict("train.halving")
@dataclass(frozen=True)
class HalvingSpec:
    """Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) of competing learning rates.

    All trials that differ in learning rate and seed alone compete. At each rung the best one in `reduction` of its
    learning rates, rounded up, continue with all their seeds, and the others are stopped. Raises `SweepError`.
    """

    # shares of a trial's steps, in (0, 1), ascending; rounded up to the next evaluation
    rungs: tuple[float, ...] = field(metadata=Rule(float, above=0, below=1, grid=True, ascending=True).beside)
    reduction: int = field(default=2, metadata=Rule(int, at_least=2).beside)


@strict("train")
@dataclass(frozen=True)
class TrainSpec:
    """How every trial is trained. Lists are grids. Raises `SweepError` for anything that is not as described here."""

    learning_rate: tuple[float, ...] = field(metadata=Rule(float, above=0, grid=True).beside)
    batch_size: tuple[int, ...] = field(metadata=Rule(int, at_least=1, grid=True).beside)
    # A name, or a function to an optax transformation without its learning rate.
    optimizer: str | Callable[[], Any] = field(default="adamw", metadata={"rule": _function(OPTIMIZERS)})
    weight_decay: tuple[float, ...] = field(default=(0.0,), metadata=Rule(float, at_least=0, grid=True).beside)
    # A name, or a function of (step, steps), int32 scalars of JAX, to a factor in [0, 1] of the learning rate.
    schedule: str | Callable[[Any, Any], Any] = field(default="cosine", metadata={"rule": _function(SCHEDULES)})
    # share of the horizon, in [0, 1)
    warmup_fraction: float = field(default=0.0, metadata=Rule(float, at_least=0, below=1).beside)
    clip_norm: float | None = field(default=None, metadata=Rule(float, above=0).beside)
    steps: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)  # exactly one of steps and epochs
    # of the trial's own fraction, then clipped to [min_steps, max_steps]
    epochs: float | None = field(default=None, metadata=Rule(float, above=0).beside)
    min_steps: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    max_steps: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    # steps; default: about a twentieth of the horizon
    evaluate_every: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)
    patience: int | None = field(default=None, metadata=Rule(int, at_least=1).beside)  # evaluations without improvement
    halving: HalvingSpec | None = field(default=None, metadata={"rule": _part(HalvingSpec)})
    # patterns of names such as "*.kernel"; default: all matrices
    weight_decay_on: tuple[str, ...] | None = field(default=None, metadata=Rule(str, grid=True).beside)
    # Of the optimizer; default: see OPTIMIZER_NUMBERS.
    b1: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, at_least=0, below=1, grid=True, float32=True).beside
    )
    b2: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, at_least=0, below=1, grid=True, float32=True).beside
    )
    eps: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, at_least=1e-30, grid=True, float32=True).beside
    )
    momentum: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, at_least=0, below=1, grid=True, float32=True).beside
    )
    # Of the schedule "wsd": the share of the steps over which the learning rate falls.
    decay_fraction: tuple[float, ...] | None = field(
        default=None, metadata=Rule(float, above=0, at_most=1, grid=True, float32=True).beside
    )
    # of the products and, with "bfloat16_parameters", of what is stored
    precision: str = field(default="float32", metadata=Rule(str, choices=PRECISIONS).beside)

    def __post_init__(self) -> None:
        _one_of(self, "train", "steps", "epochs")
        self._check_numbers()
        if self.halving and len(self.learning_rate) == 1:
            says = "expected several learning rates to choose from, found one; give more of them, or no halving"
            raise SpecError(says, table="train", keys=("halving", "learning_rate"))
        for name in ("min_steps", "max_steps"):
            if self.steps and getattr(self, name):
                says = "expected only together with epochs, found steps"
                raise SpecError(says, table="train", keys=(name, "steps"))
        if self.min_steps and self.max_steps and self.min_steps > self.max_steps:
            says = f"expected at most max_steps = {self.max_steps}, found {self.min_steps}"
            raise SpecError(says, table="train", keys=("min_steps", "max_steps"))

    def _check_numbers(self) -> None:
        """Raise if a number is given that the optimizer or the schedule does not have."""
        has = default_numbers(self.optimizer, self.schedule)
        for name in OWN_NUMBERS:
            if getattr(self, name) is None or name in has:
                continue
            if name == "decay_fraction":
                says, other = 'only the schedule "wsd" has this; drop this key, or choose that schedule', "schedule"
            elif not isinstance(self.optimizer, str):
                says, other = "an optimizer of your own keeps its numbers itself; drop this key", "optimizer"
            else:
                numbers = ", ".join(each for each in has if each != "decay_fraction") or "no numbers of its own"
                says, other = f"{self.optimizer} does not have this, it has {numbers}; drop this key", "optimizer"
            raise SpecError(says, table="train", keys=(name, other))


# Of a sweep of classical baselines alone, which has no [train].
UNTRAINED = TrainSpec(learning_rate=(1.0,), batch_size=(1,), steps=1)


@strict("")
@dataclass(frozen=True)
class Sweep:
    """All trials of one question: the product of its grids. `seeds = 3` stands for (0, 1, 2). Raises `SweepError`."""

    name: str = field(metadata={"rule": _name})
    data: DataSpec = field(metadata={"rule": _part(DataSpec)})
    models: tuple[ModelGrid, ...] = field(metadata={"rule": _models})
    train: TrainSpec = field(default=UNTRAINED, metadata={"rule": _part(TrainSpec)})
    seeds: tuple[int, ...] = field(default=(0,), metadata={"rule": _seeds})
    # "probed": sizes without a proof share a program if a probe finds no difference
    packing: str = field(default=PROVEN, metadata=Rule(str, choices=(PROVEN, PROBED)).beside)
    # A name, a task of one's own (also as "package.module:object"), or None: what the targets say.
    task: Any = field(default=None, metadata={"rule": _task})
    # The headline metric, by name; None: the task's first.
    metric: str | None = field(default=None, metadata=Rule(str).beside)
    # "best": the trained models of the setting that tuning chooses in each cell; "all": of every trial that is done
    keep_weights: str = field(default=NONE, metadata=Rule(str, choices=(NONE, BEST, ALL)).beside)

    def __post_init__(self) -> None:
        if self.train is UNTRAINED and not all(older.is_older(grid.family) for grid in self.models):
            says = f"needed but missing; only a sweep of nothing but {', '.join(older.FAMILIES)} does without"
            raise SpecError(says, keys=("train",))
        _check_overlap([(grid.family, {**grid.knobs, **_told_apart(self, grid)}) for grid in self.models])
        of_targets = self.task if isinstance(self.task, str) and self.task in OF_TARGETS else None
        object.__setattr__(self, "data", self.data.for_task(of_targets))


def _told_apart(sweep: Sweep, grid: ModelGrid) -> dict[str, tuple[Knob, ...]]:
    """Return the features of a grid's models as if they were a knob, in a sweep that has any."""
    common = sweep.data.steps
    if not common and not any(each.features for each in sweep.models):
        return {}
    key = "data.features" if "features" in grid.knobs else "features"
    return {key: tuple(map(title, grid.features or (common,)))}


def _check_overlap(grids: Sequence[tuple[object, Mapping[str, tuple[Knob, ...]]]]) -> None:
    """Raise if two grids produce the same model, which would be trained, counted and averaged twice."""
    for index, (family, knobs) in enumerate(grids):
        for earlier, (other, sizes) in enumerate(grids[:index]):
            if family != other or knobs.keys() != sizes.keys():
                continue
            # A product of grids overlaps another exactly if each knob has a value in common; no need to expand them.
            taken = {name: set(map(identity, sizes[name])) for name in knobs}
            common = {name: [v for v in values if identity(v) in taken[name]] for name, values in knobs.items()}
            if all(common.values()):
                model = ", ".join(f"{name} = {shown(values[0])}" for name, values in common.items())
                says = f"repeats a model of index {earlier}{model and f' ({model})'}; expected each model once"
                raise SpecError(says, table="models", keys=("family",), index=index)


def check_models(sweep: Sweep, families: Mapping[str, Callable[..., Any]]) -> None:
    """Hold each model grid against its builder: the family's in `families` (name -> builder), or the user's own.

    Those of the classical baselines are held against the options of these.

    Raises `SweepError` for an unknown family, a knob that the builder lacks, needs or annotates otherwise, and for a
    model that two grids share once the builder's defaults are filled in.
    """
    grids = []
    for index, grid in enumerate(sweep.models):
        family = grid.family
        if isinstance(family, str) and older.is_older(family):
            try:
                grids.append((family, {**older.grid_of(family, grid.knobs), **_told_apart(sweep, grid)}))
            except SpecError as fault:
                raise SpecError(fault.says, table="models", keys=fault.keys, index=index) from None
            continue
        if isinstance(family, str) and family not in families:
            says = f"unknown family {shown(family)}; {nearest(family, [*families, *older.FAMILIES])}"
            raise SpecError(says, table="models", keys=("family",), index=index)
        builder = families[family] if isinstance(family, str) else family
        _check_builder(builder, grid.knobs, index=index, family=_title(family))
        grids.append((family, {**_defaults(builder), **grid.knobs, **_told_apart(sweep, grid)}))
    _check_overlap(grids)


def _title(family: str | Callable[..., Any]) -> str:
    return family if isinstance(family, str) else name_of(family)


def _defaults(builder: Callable[..., Any]) -> dict[str, tuple[Knob, ...]]:
    return {name: (p.default,) for name, p in parameters(builder).items() if isinstance(p.default, Knob)}


def _check_builder(
    builder: Callable[..., Any], knobs: Mapping[str, tuple[Knob, ...]], *, index: int | None = None, family: str
) -> None:
    """Raise `SpecError` unless `builder(**knobs, rngs=...)`, with one value of each knob, would be a valid call."""

    def fault(key: str, says: str) -> SpecError:
        return SpecError(says, table="models", keys=(key,), index=index)

    try:
        takes = parameters(builder)
    except (ValueError, TypeError):
        says = f"cannot read the parameters of {family}; wrap it in def build(*, width, rngs)"
        raise fault("family", says) from None
    rngs = takes.get("rngs")
    if rngs is None or rngs.kind is not rngs.KEYWORD_ONLY:
        raise fault("family", f"{family} must take rngs by keyword only, as in def build(*, width, rngs)")
    variable = {rngs.VAR_POSITIONAL, rngs.VAR_KEYWORD}
    named = {name: p for name, p in takes.items() if name not in NOT_KNOBS and p.kind not in variable}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for name, parameter in named.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise fault("family", f"{family} takes {name} by position only; expected def build(*, {name}, rngs)")
    for name, values in knobs.items():
        if name in named:
            _check_knob(named[name], values, fault)
        elif not takes_any:
            hint = nearest(name, named) if named else "it has none"
            raise fault(name, f"unknown knob of {family}; {hint}")
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in (*knobs, SHAPE):
            expected = getattr(_KNOB_CHECKS.get(_annotation(parameter)), "expected", "a value")
            raise fault(name, f"needed by {family} but missing; expected {expected}, or a list of such values")


_KNOB_CHECKS: Mapping[str, Check] = {
    "int": Rule(int, at_least=1),
    "float": Rule(float),
    "str": Rule(str),
    "bool": true_or_false,
}


def _annotation(parameter: inspect.Parameter) -> str:
    """Name the annotation, which `from __future__ import annotations` leaves as a text."""
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")


def _check_knob(parameter: inspect.Parameter, values: tuple[Knob, ...], fault: Callable[[str, str], SpecError]) -> None:
    """Hold a knob's values against its annotation; one that is absent, or none of the four types, allows any."""
    check = _KNOB_CHECKS.get(_annotation(parameter), lambda value: value)
    for value in values:
        try:
            check(value)
        except SpecError as wrong:
            raise fault(parameter.name, wrong.says) from None
