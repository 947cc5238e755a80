"""How much a sweep may ask for: what is absurd is refused before it is spelled out, built or given memory.

A slip such as `seeds = 3000000` or `examples = 1000000000` must cost a sentence, not the memory of the machine. Trials
are therefore counted by multiplication, and bytes from shapes.
"""

import math
import operator
from collections.abc import Iterable, Mapping

import jax

from scalejax.classical.families import is_older
from scalejax.data import DataCard
from scalejax.models import LARGEST_KNOBS
from scalejax.planning.device_specs import LOCAL, DeviceSpec, host_memory, local_spec
from scalejax.planning.older import older_count
from scalejax.planning.trial import Counted, horizon, training_sizes
from scalejax.rules import LARGEST, SpecError
from scalejax.spec import Sweep
from scalejax.spec.sweep import OWN_NUMBERS
from scalejax.text import number_of
from scalejax.train.cost import data_bytes, largest_array, step_bytes
from scalejax.train.recipe import EVALUATION_BLOCK
from scalejax.train.traced import traced_evaluation

MOST_TRIALS = 1_000_000  # that are spelled out, which takes a minute or two
MOST_COUNTED = 10**9  # where alike trials are only counted
MOST_PROGRAMS = 1_000  # sizes times batch sizes; each is traced, and most are compiled
MOST_MEASUREMENTS = 20_000_000  # rows of the ledger, some two gigabytes
MOST_RUNGS = 100  # after thirty of them one learning rate of a billion is left
DATA_SHARE = 0.4  # of the memory that the training pool may take, all its copies together; a larger one is streamed
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
    train = sweep.train
    grids = [(index, grid) for index, grid in enumerate(sweep.models) if not is_older(grid.family)]
    for index, grid in grids:
        largest = LARGEST_KNOBS.get(grid.family, {}) if isinstance(grid.family, str) else {}
        for name in largest.keys() & grid.knobs.keys():
            value = max((value for value in grid.knobs[name] if isinstance(value, int | float)), default=0)
            if value > largest[name]:
                why = f"expected at most {largest[name]}, found {value}"
                raise SpecError(why, table="models", keys=(name,), index=index)
    if train.halving and len(train.halving.rungs) > MOST_RUNGS:
        why = f"expected at most {MOST_RUNGS}, found {len(train.halving.rungs)}"
        raise SpecError(why, table="train.halving", keys=("rungs",))

    # Trials are counted from the lengths of the lists that they are the product of; the longest is to blame.
    examples = training_sizes(sweep.data, card)
    sizes: dict[Key, int] = {
        ("models", name, index): len(values) for index, grid in grids for name, values in grid.knobs.items()
    }
    sizes |= {("models", "features", index): len(grid.features) for index, grid in grids if grid.features}
    batches: dict[Key, int] = {("train", "batch_size", None): len(train.batch_size)}
    examples_key = "fractions" if sweep.data.train_examples is None else "train_examples"
    data: dict[Key, int] = {("data", examples_key, None): len(examples)}
    alike: dict[Key, int] = {
        ("train", "learning_rate", None): len(train.learning_rate),
        **{("train", name, None): len(getattr(train, name) or (None,)) for name in ("weight_decay", *OWN_NUMBERS)},
        ("", "seeds", None): len(sweep.seeds),
    }
    models = sum(math.prod(map(len, (*grid.knobs.values(), grid.features or "-"))) for _, grid in grids)
    programs = models * len(train.batch_size)
    different = programs * len(examples)
    trials = different * math.prod(alike.values())
    _at_most(MOST_PROGRAMS, programs, "model sizes times batch sizes", sizes | batches)
    if counted:
        _at_most(MOST_TRIALS, different, "trials that differ in more than seed and rate", sizes | batches | data)
    _at_most(MOST_COUNTED if counted else MOST_TRIALS, trials, "trials", sizes | batches | data | alike)
    options: dict[Key, int] = {
        ("models", name, index): len(values)
        for index, grid in enumerate(sweep.models)
        if is_older(grid.family)
        for name, values in {**grid.knobs, "features": grid.features or ()}.items()
    }
    seeds: dict[Key, int] = {("", "seeds", None): len(sweep.seeds)}
    _at_most(MOST_TRIALS, older_count(sweep, examples=len(examples)), "fits", options | data | seeds)

    # Steps are counted in 32 bits, and the ledger holds a row for each measurement.
    steps, _ = horizon(train, max(examples), min(train.batch_size))
    if steps > LARGEST:
        asked = f"{train.epochs or 1:g} epochs of {number_of(max(examples), 'example')}"
        why = f"{asked} are more than {LARGEST} steps; lower it, or give max_steps"
        raise SpecError(why, table="train", keys=("epochs", "min_steps"))
    horizons = (horizon(train, count, batch_size) for count in examples for batch_size in train.batch_size)
    rows = models * math.prod(alike.values()) * sum(math.ceil(steps / interval) for steps, interval in horizons)
    if rows > MOST_MEASUREMENTS and not counted:
        why = f"makes {rows:,} measurements, more than {MOST_MEASUREMENTS:,}; evaluate less often"
        raise SpecError(why, table="train", keys=("evaluate_every", "steps", "epochs"))


def streams(card: DataCard, spec: DeviceSpec | None, *, asked: bool | None) -> bool:
    """Say whether the training pool stays on the host, which hands batches to the devices.

    Args:
        card: of the data.
        spec: of the devices; None: those of this machine.
        asked: what the sweep asks for; None: whatever the memory calls for.
    """
    if asked is not None:
        return asked
    spec = spec or local_spec()
    pool = data_bytes(card, card.examples)
    if spec.platform != "cpu":
        return pool > DATA_SHARE * spec.memory
    copies = len(jax.local_devices()) + (not card.mapped)  # the cores of a CPU hold it once each, beside the host
    return spec.name == LOCAL and copies * pool > DATA_SHARE * host_memory()


def check_data(card: DataCard, spec: DeviceSpec | None, *, asked: bool | None) -> None:
    """Refuse a data set that the memory cannot hold: that of each device of a spec, of this machine if it is None.

    Args:
        card: of the data.
        spec: as described.
        asked: whether the sweep asks that the data be streamed; None: it leaves that open.

    Raises:
        SpecError: about its largest part.
    """
    streamed = streams(card, spec, asked=asked)
    less = "ask for less" if asked is not False else "ask for less, or leave out stream = false"
    parts = {name: getattr(card, name) for name in ("examples", "validation_examples", "test_examples")}
    key = max(parts, key=parts.__getitem__)
    count = sum(parts.values())
    spec = spec or local_spec()
    cpu = spec.platform == "cpu"

    def check(copies: int, room: float, what: str, *, host: bool = False) -> None:
        on_devices = data_bytes(card, count - (card.examples if streamed else 0))
        needed = copies * on_devices + host * data_bytes(card, count - (card.examples if card.mapped else 0))
        copies += host
        if needed > room:
            often = f", {copies} times" if copies > 1 else ""
            why = f"{count:,} examples, validation and test included{often}, take {_bytes(needed)}"
            why = f"{why}, more than the {_bytes(room)} that {what} may hold; {less}"
            raise SpecError(why, table="data", keys=(key, "train_examples"))

    if spec.name == LOCAL:
        # The cores of a CPU hold it once each, beside the host that has made it.
        check(len(jax.local_devices()) if cpu else 0, host_memory(), "this machine", host=True)
    if not cpu:
        check(1, spec.memory, "a device")


def check_models(trials: Iterable[Counted], card: DataCard, spec: DeviceSpec | None) -> None:
    """Refuse a model of which not even one lane fits into the memory; its arrays are only looked at as shapes.

    Raises:
        SpecError: the model and what it needs.
    """
    spec = spec or local_spec()
    room, what = (host_memory(), "this machine") if spec.platform == "cpu" else (spec.memory, "a device")
    for program in dict.fromkeys(counted.trial.program for counted in trials):
        architecture, batch_size = program.architecture, program.recipe.batch_size
        state, arrays = step_bytes(program)
        arrays *= 2  # the largest one and its gradient
        if state > LARGE_SHARE * room:
            block = min(EVALUATION_BLOCK, max(card.validation_examples, card.test_examples))
            arrays = max(arrays, largest_array(traced_evaluation(architecture, block).program.jaxpr))
        if state + arrays > room:
            why = f"the model {architecture.title} in batches of {batch_size} needs {_bytes(state + arrays)}"
            why = f"{why}, more than the {_bytes(room)} that {what} may hold; make it smaller"
            large = state > arrays
            raise SpecError(why, table="models" if large else "train", keys=() if large else ("batch_size",))


def _at_most(most: int, count: int, what: str, lengths: Mapping[Key, int]) -> None:
    if count > most:
        (table, key, index), length = max(lengths.items(), key=operator.itemgetter(1))
        why = f"the sweep has {count:,} {what}, more than {most:,}; shorten this list of {length:,}"
        raise SpecError(why, table=table, keys=(key,), index=index)


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.0f} GB"
