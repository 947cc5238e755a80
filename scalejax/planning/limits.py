"""How much a sweep may ask for: what is absurd is refused before it is spelled out, built or given memory.

A slip such as `seeds = 3000000` or `examples = 1000000000` must cost a sentence, not the memory of the machine. Trials
are therefore counted by multiplication, and bytes from shapes.
"""

import math
import operator
from collections.abc import Iterable, Mapping

import jax

from scalejax.data import DataCard
from scalejax.models import LARGEST_KNOBS
from scalejax.planning.device_specs import LOCAL, DeviceKind, host_memory, local_kind
from scalejax.planning.trial import Counted, horizon, training_sizes
from scalejax.rules import LARGEST, SpecError
from scalejax.spec import Sweep
from scalejax.text import number_of
from scalejax.train.cost import data_bytes, largest_array, step_bytes
from scalejax.train.lanes import BLOCK
from scalejax.train.traced import traced_evaluation

MOST_TRIALS = 1_000_000  # that are spelled out, which takes a minute or two
MOST_COUNTED = 10**9  # where alike trials are only counted
MOST_PROGRAMS = 1_000  # sizes times batch sizes; each is traced, and most are compiled
MOST_MEASUREMENTS = 20_000_000  # rows of the ledger, some two gigabytes
MOST_RUNGS = 100  # after thirty of them one learning rate of a billion is left
LARGE_SHARE = 0.01  # of the memory; only of models above it are the activations of evaluation looked at

Key = tuple[str, str, int | None]  # table, key and index of a [[models]] table


def check_counts(sweep: Sweep, card: DataCard, *, counted: bool) -> None:
    """Refuse a sweep of too many trials, programs, measurements or steps.

    Args:
        sweep: the question.
        card: its data set.
        counted: whether its trials are only counted where they are alike.

    Raises:
        SpecError: about the longest list, or whatever else is to blame.
    """
    for index, grid in enumerate(sweep.models):
        bounds = LARGEST_KNOBS.get(grid.family, {}) if isinstance(grid.family, str) else {}
        for name in bounds.keys() & grid.knobs.keys():
            if (found := max(_numbers(grid.knobs[name]))) > bounds[name]:
                says = f"expected at most {bounds[name]}, found {found}"
                raise SpecError(says, table="models", keys=(name,), index=index)
    train = sweep.train
    if train.halving and len(train.halving.rungs) > MOST_RUNGS:
        says = f"expected at most {MOST_RUNGS}, found {len(train.halving.rungs)}"
        raise SpecError(says, table="train.halving", keys=("rungs",))
    sizes: dict[Key, int] = {
        ("models", name, index): len(values)
        for index, grid in enumerate(sweep.models)
        for name, values in grid.knobs.items()
    }
    kinds: dict[Key, int] = {("train", "batch_size", None): len(train.batch_size)}
    data: dict[Key, int] = {("data", _sizes_key(sweep), None): len(training_sizes(sweep.data, card))}
    alike: dict[Key, int] = {
        ("train", "learning_rate", None): len(train.learning_rate),
        ("train", "weight_decay", None): len(train.weight_decay),
        ("", "seeds", None): len(sweep.seeds),
    }
    models = sum(math.prod(map(len, grid.knobs.values())) for grid in sweep.models)
    programs = models * _product(kinds)
    spelled = programs * _product(data)
    trials = spelled * _product(alike)
    _at_most(MOST_PROGRAMS, programs, "model sizes times batch sizes", sizes | kinds)
    if counted:
        _at_most(MOST_TRIALS, spelled, "trials that differ in more than seed and rate", sizes | kinds | data)
    _at_most(MOST_COUNTED if counted else MOST_TRIALS, trials, "trials", sizes | kinds | data | alike)
    _check_horizons(sweep, card, trials // _product(kinds) // _product(data), counted=counted)


def check_data(card: DataCard, kind: DeviceKind | None) -> None:
    """Refuse a data set that the memory cannot hold: that of each device of a kind, of this machine if it is None.

    Raises:
        SpecError: about its largest part.
    """
    parts = {"examples": card.examples, "validation_examples": card.validation_examples}
    parts["test_examples"] = card.test_examples
    key = "fourier_features" if math.prod(card.shape) > max(parts.values()) else max(parts, key=parts.__getitem__)
    count = sum(parts.values())
    needed = data_bytes(card, count)
    kind = kind or local_kind()
    copies = 1
    if kind.name == LOCAL:
        # The cores of a CPU hold it once each, beside the host that has made it.
        copies += len(jax.local_devices()) if kind.platform == "cpu" else 0
        _fits(copies * needed, host_memory(), "that this machine may hold", what=_data(count, copies), key=key)
    if kind.platform != "cpu":
        _fits(needed, kind.memory, "that a device may hold", what=_data(count, 1), key=key)


def check_models(trials: Iterable[Counted], card: DataCard, kind: DeviceKind | None) -> None:
    """Refuse a model of which not even one lane fits into the memory; its arrays are only looked at as shapes.

    Raises:
        SpecError: the model and what it needs.
    """
    kind = kind or local_kind()
    cpu = kind.platform == "cpu"
    room, whose = (host_memory(), "that this machine may hold") if cpu else (kind.memory, "that a device may hold")
    for program in dict.fromkeys(counted.trial.program for counted in trials):
        built, batch_size = program.architecture, program.recipe.batch_size
        state, arrays = step_bytes(program)
        arrays *= 2  # it and its gradient
        if state > LARGE_SHARE * room:
            block = min(BLOCK, max(card.validation_examples, card.test_examples))
            arrays = max(arrays, largest_array(traced_evaluation(built, block).program.jaxpr))
        if state + arrays > room:
            name = f"the model {built.title} in batches of {batch_size}"
            message = f"{name} needs {_bytes(state + arrays)}, more than the {_bytes(room)} {whose}; make it smaller"
            large = state > arrays
            raise SpecError(message, table="models" if large else "train", keys=() if large else ("batch_size",))


def _check_horizons(sweep: Sweep, card: DataCard, copies: int, *, counted: bool) -> None:
    """Refuse more steps than are counted in 32 bits, and more measurements than a ledger should hold."""
    train, sizes = sweep.train, training_sizes(sweep.data, card)
    steps, _ = horizon(train, max(sizes), min(train.batch_size))
    if steps > LARGEST:
        asked = f"{train.epochs or 1:g} epochs of {number_of(max(sizes), 'example')}"
        says = f"{asked} are more than {LARGEST} steps; lower it, or give max_steps"
        raise SpecError(says, table="train", keys=("epochs", "min_steps"))
    horizons = (horizon(train, size, batch_size) for size in sizes for batch_size in train.batch_size)
    rows = copies * sum(math.ceil(steps / interval) for steps, interval in horizons)
    if rows > MOST_MEASUREMENTS and not counted:
        says = f"makes {rows:,} measurements, more than {MOST_MEASUREMENTS:,}; evaluate less often"
        raise SpecError(says, table="train", keys=("evaluate_every", "steps", "epochs"))


def _sizes_key(sweep: Sweep) -> str:
    return "fractions" if sweep.data.train_examples is None else "train_examples"


def _numbers(values: Iterable[object]) -> list[float]:
    return [value for value in values if isinstance(value, int | float)] or [0]


def _product(lengths: Mapping[Key, int]) -> int:
    return math.prod(lengths.values())


def _at_most(most: int, found: int, what: str, lengths: Mapping[Key, int]) -> None:
    if found > most:
        (table, key, index), length = max(lengths.items(), key=operator.itemgetter(1))
        says = f"the sweep has {found:,} {what}, more than {most:,}; shorten this list of {length:,}"
        raise SpecError(says, table=table, keys=(key,), index=index)


def _data(count: int, copies: int) -> str:
    return f"{count:,} examples, validation and test included" + (f", {copies} times" if copies > 1 else "")


def _fits(needed: float, room: float, whose: str, *, what: str, key: str) -> None:
    if needed > room:
        says = f"{what}, take {_bytes(needed)}, more than the {_bytes(room)} {whose}; ask for less"
        raise SpecError(says, table="data", keys=(key, "train_examples"))


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB"
