"""What a data set is, described without loading it; its splits; and the part of it that a sweep asks for."""

import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scalejax.data.storage import recall
from scalejax.files import cache_directory
from scalejax.rules import SpecError

SPLITS = ("train", "validation", "test")  # the position is the number of the split's random stream: append only


@dataclass(frozen=True)
class Facts:
    """What a source says of its data without loading them.

    Attributes:
        shape: of one example's inputs, which are float32.
        classes: number of classes, if the targets are whole numbers from 0 on; None for other targets.
        targets, target_shape: type and shape of one example's target.
        examples: how many there are, None for as many as one asks for.
        validation_examples, test_examples: where the sweep does not say.
        content: what else determines the numbers, as plain data; hashed into the fingerprint.
        kept: whether the arrays are kept in the cache on disk.
    """

    shape: tuple[int, ...]
    classes: int | None
    targets: str = "int32"
    target_shape: tuple[int, ...] = ()
    examples: int | None = None
    validation_examples: int = 2_000
    test_examples: int = 10_000
    content: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = True


@dataclass(frozen=True)
class Split:
    """Examples and what is to be learned of them. Treat the arrays as read-only."""

    inputs: np.ndarray  # float32 [n, *shape]
    targets: np.ndarray  # int32 or float32 [n, *target_shape]


@runtime_checkable
class Source(Protocol):
    """A data set. One's own is any object with these two methods, best a frozen dataclass with its options as fields.

    It goes by the name of its class, or by its attribute `name`.
    """

    def facts(self) -> Facts:
        """Describe the data without loading them.

        Raises:
            SpecError: an option is wrong, or what the source needs is missing.
        """
        ...

    def splits(self, seed: int, sizes: Mapping[str, int]) -> Mapping[str, Split]:
        """Return the splits "train", "validation" and "test", of these sizes and without a common example.

        The same seed and sizes give the same numbers; how to cut what is finite, or to draw what is not, `cut` and
        `drawn` know.
        """
        ...


def cut(inputs: np.ndarray, targets: np.ndarray, sizes: Mapping[str, int]) -> dict[str, Split]:
    """Cut examples into splits, the test set first: it then depends on its own size only."""
    splits, start = {}, 0
    for name in reversed(SPLITS):
        part = slice(start, start + sizes[name])
        splits[name], start = Split(inputs[part], targets[part]), part.stop
    return splits


def drawn(draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]], sizes: Mapping[str, int]) -> dict[str, Split]:
    """Draw every split from a random stream of its own: `draw(stream, examples)` returns inputs and targets."""
    return {name: Split(*draw(stream, sizes[name])) for stream, name in enumerate(SPLITS)}


@dataclass(frozen=True)
class DataCard:
    """What there is to know about a data set before it is made."""

    source: str
    shape: tuple[int, ...]  # of one example's inputs
    classes: int | None  # None: targets are no classes
    examples: int  # size of the training pool
    validation_examples: int
    test_examples: int
    fingerprint: str  # hex; another one whenever any number of the data set would be another one
    targets: str = "int32"  # type of one example's target
    target_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A data set in memory."""

    card: DataCard
    train: Split
    validation: Split
    test: Split


class Request(Protocol):
    """What a sweep asks of a source; `scalejax.spec.DataSpec` is one."""

    @property
    def origin(self) -> Source:
        """The source itself, its options filled in."""
        ...

    @property
    def train_examples(self) -> tuple[int, ...] | None: ...  # noqa: D102
    @property
    def fractions(self) -> tuple[float, ...] | None: ...  # noqa: D102
    @property
    def examples(self) -> int | None: ...  # noqa: D102
    @property
    def validation_examples(self) -> int | None: ...  # noqa: D102
    @property
    def test_examples(self) -> int | None: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102


def source_name(source: Source) -> str:
    """Return what a source is called in sentences, cards and cache files."""
    return getattr(source, "name", type(source).__name__)


def describe(spec: Request) -> DataCard:
    """Return the card of a data set, without making or loading any of it.

    Args:
        spec: the sweep's data table.

    Raises:
        SweepError: the source's package is missing, an option is wrong, or sizes do not fit the source or each other.
    """
    source, facts = spec.origin, spec.origin.facts()
    validation = facts.validation_examples if spec.validation_examples is None else spec.validation_examples
    test = facts.test_examples if spec.test_examples is None else spec.test_examples
    pool = _pool(spec, facts, validation=validation, test=test)
    if spec.fractions and round(min(spec.fractions) * pool) < 1:
        message = f"{min(spec.fractions)} is less than one of {pool} examples; expected at least {1 / pool:.3g}"
        raise SpecError(message, table="data", keys=("fractions",))
    sizes = {"train": pool, "validation": validation, "test": test}
    content = {"source": source_name(source), "sizes": sizes, "seed": spec.seed, "options": dict(facts.content)}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return DataCard(
        source=source_name(source),
        shape=facts.shape,
        classes=facts.classes,
        examples=pool,
        validation_examples=validation,
        test_examples=test,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        targets=facts.targets,
        target_shape=facts.target_shape,
    )


def _pool(spec: Request, facts: Facts, *, validation: int, test: int) -> int:
    """Return the size of the training pool: what is asked for, or all that validation and test leave."""
    if facts.examples is None:
        if spec.examples is None and not spec.train_examples:
            name = source_name(spec.origin)
            message = f'missing; "{name}" has no end, so fractions need a whole, for instance examples = 20000'
            raise SpecError(message, table="data", keys=("examples",))
        return spec.examples or max(spec.train_examples or (1,))
    left = facts.examples - validation - test
    if left < 1:
        message = f"{validation} and test_examples = {test} leave none of the {facts.examples} examples; lower them"
        raise SpecError(message, table="data", keys=("validation_examples", "test_examples"))
    for key, asked in (("examples", spec.examples), ("train_examples", max(spec.train_examples or (0,)))):
        if asked and asked > left:
            remedy = "ask for fewer, or lower those"
            message = f"{asked} is more than the {left} examples that validation and test leave; {remedy}"
            raise SpecError(message, table="data", keys=(key,))
    return spec.examples or left


def load(spec: Request) -> DataSet:
    """Return a data set: made at the first call, read from the cache afterwards.

    Args:
        spec: the sweep's data table.

    Raises:
        SweepError: as `describe` does; or the source makes something else than it says.

    Warns:
        UserWarning: the cached file was damaged, and the data are made again; or it could not be written.
    """
    card, source = describe(spec), spec.origin
    sizes = {"train": card.examples, "validation": card.validation_examples, "test": card.test_examples}

    def arrays() -> dict[str, np.ndarray]:
        made = source.splits(spec.seed, sizes)
        found = {f"{name}_{part}": getattr(made[name], part) for name in SPLITS for part in ("inputs", "targets")}
        for name, size in sizes.items():
            for part, shape, kind in (("inputs", card.shape, "float32"), ("targets", card.target_shape, card.targets)):
                array = found[f"{name}_{part}"]
                if array.shape != (size, *shape) or array.dtype != kind:
                    is_not = f"are {array.dtype}{list(array.shape)}, not {kind}{[size, *shape]}"
                    raise SpecError(f'the {name} {part} of "{card.source}" {is_not}', table="data", keys=("source",))
                if not np.isfinite(array).all():
                    message = f'the {name} {part} of "{card.source}" are not all finite; leave such examples out'
                    raise SpecError(message, table="data", keys=("source",))
        return found

    kept = source.facts().kept
    path = cache_directory("data") / f"{card.source}-{card.fingerprint[:32]}.safetensors"
    parts = recall(path, arrays) if kept else arrays()
    splits = {name: Split(parts[f"{name}_inputs"], parts[f"{name}_targets"]) for name in SPLITS}
    return DataSet(card=card, train=splits["train"], validation=splits["validation"], test=splits["test"])


@dataclass(frozen=True, eq=False)
class Arrays:
    """Examples in memory, in an order drawn from the data's seed."""

    inputs: np.ndarray  # float32 [n, ...]
    targets: np.ndarray  # int32 or float32 [n]
    name: str = "arrays"

    def facts(self) -> Facts:
        """Describe the arrays: a sixth of them, at least one, for validation and for test each."""
        count, held_out = len(self.targets), max(1, len(self.targets) // 6)
        whole = self.targets.dtype == np.int32
        return Facts(
            shape=self.inputs.shape[1:],
            classes=int(self.targets.max()) + 1 if whole else None,
            targets=str(self.targets.dtype),
            examples=count,
            validation_examples=held_out,
            test_examples=held_out,
            content={"content": self._digest},
            kept=False,
        )

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return disjoint parts."""
        order = np.random.default_rng(seed).permutation(len(self.targets))
        return cut(self.inputs[order], self.targets[order], sizes)

    @functools.cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256()
        for array in (self.inputs, self.targets):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arrays) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)


def arrays(x: Any, y: Any) -> Arrays:
    """Return a data set of arrays in memory, as `DataSpec(source=arrays(x, y), ...)` takes it.

    Args:
        x: inputs [n, ...] of any numbers; NumPy arrays, pandas tables, lists.
        y: targets [n]: whole numbers from 0 on are classes, other numbers are what a regression predicts.

    Raises:
        SpecError: they are of other shapes or types, not finite, or hold a class below zero.
    """

    def fault(message: str) -> SpecError:
        return SpecError(message, table="data", keys=("source",))

    inputs, targets = np.asarray(x), np.asarray(y)
    for name, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "biuf":
            raise fault(f"expected {name} that are numbers, found {array.dtype}; encode them as numbers first")
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise fault(f"{count:,} of the {name} are NaN or infinite; leave these examples out, or fill them in")
    if targets.ndim != 1:
        raise fault(f"expected one target an example, an array [n], found the shape {targets.shape}")
    if inputs.ndim < 2 or len(inputs) != len(targets):
        shapes = f"{inputs.shape} for {targets.shape}"
        raise fault(f"expected inputs [n, ...] for targets [n], an example a row, found {shapes}")
    if len(targets) < 3 or not math.prod(inputs.shape):
        raise fault(f"expected at least three examples with inputs, found inputs of shape {inputs.shape}")
    kind = np.float32 if targets.dtype.kind == "f" else np.int32
    if kind == np.int32 and targets.min() < 0:
        raise fault(f"expected classes from 0 on, found {targets.min()}; give floats where these are no classes")
    if kind == np.int32 and (missing := sorted(set(range(int(targets.max()) + 1)) - set(targets.tolist()))):
        raise fault(f"class {missing[0]} of 0 to {targets.max()} has no example; number the classes without a gap")
    return Arrays(inputs.astype(np.float32), targets.astype(kind))
