"""What a data set is, described before it is divided; its splits; and the part of it that a sweep asks for."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from scalejax.data.storage import recall
from scalejax.errors import SweepError
from scalejax.files import cache_directory
from scalejax.rules import SpecError, shown
from scalejax.text import number_of

SPLITS = ("train", "validation", "test")  # the position is the number of the split's random stream: append only

ARRAYS = "inputs", "targets"  # of a split
INPUT_TYPES = "float32", "uint8", "uint16", "uint32", "int32"  # types in which inputs may be stored


@dataclass(frozen=True)
class Facts:
    """What a source says of its data without making their splits.

    Attributes:
        shape: of one example's inputs.
        classes: number of classes, if the targets are int32 from 0 on; None: they are float32, or tokens.
        examples: how many there are in all, None for as many as one asks for.
        validation_examples, test_examples: where the sweep does not say.
        content: plain data that differ wherever the numbers do, for the fingerprint: a version, a checksum. Shapes and
            plain fields of a source of one's own are added to it.
        target_shape: of one example's target.
        kept: whether the splits are kept on disk between runs, found again by the fingerprint.
        inputs: type in which inputs are stored. A model sees float32: pixels of type uint8 are divided by 255.
        vocabulary: number of tokens, if the inputs are tokens, which a model sees as int32. Without classes the target
            of an example is the token that follows it.
        bytes_per_token: of the text that tokens stand for, where it is known.
        mapped: whether training examples stay on disk and are read from there when they are asked for.
        target_centre: about the mean of targets that are numbers, where it is known: sums of their squares are taken
            around it, since float32 would lose a small variance beside a large mean. It is part of no fingerprint.
    """

    shape: tuple[int, ...]
    classes: int | None
    examples: int | None = None
    validation_examples: int = 2_000
    test_examples: int = 10_000
    content: Mapping[str, Any] = field(default_factory=dict)
    target_shape: tuple[int, ...] = ()
    kept: bool = False
    inputs: str = "float32"
    vocabulary: int | None = None
    bytes_per_token: float | None = None
    mapped: bool = False
    target_centre: float | None = None

    @property
    def targets(self) -> str:
        """Type of the targets."""
        if self.classes is not None:
            return "int32"
        return "float32" if self.vocabulary is None else self.inputs


@dataclass(frozen=True)
class Split:
    """Examples and what is to be learned of them. Treat the arrays as read-only.

    Those of the training set may be anything with `shape`, `dtype` and `array[rows]`, int [n], that reads from a disk.
    """

    inputs: np.ndarray  # of a type in INPUT_TYPES, [n, *shape]
    targets: np.ndarray  # int32, float32 or the type of the tokens, [n, *target_shape]


@runtime_checkable
class Source(Protocol):
    """A data set. One's own is any object with these two methods, best a frozen dataclass with its options as fields.

    It goes by the name of its class, or by its attribute `name`.
    """

    def facts(self) -> Facts:
        """Describe the data without making their splits.

        Raises:
            SpecError: an option is wrong, or what the source needs is missing.
        """
        ...

    def splits(self, seed: int, sizes: Mapping[str, int]) -> Mapping[str, Split]:
        """Return the splits "train", "validation" and "test", of these sizes and without a common example.

        The same seed and sizes give the same numbers; `cut` and `drawn` of scalejax.data help to cut
        what is finite, and to draw what is not.
        """
        ...


@runtime_checkable
class Divided(Source, Protocol):
    """A source of examples in memory, which knows what can be said of their splits before they are made."""

    def test_differs(self, seed: int, sizes: Mapping[str, int]) -> bool:
        """Say whether there are two test targets that differ, in splits of these sizes."""
        ...

    def settled(self, seed: int, sizes: Mapping[str, int]) -> Mapping[str, int]:
        """Return the sizes of "validation" and "test" that are possible where these are asked for.

        Raises:
            SpecError: the data declare others.
        """
        ...

    def notes(self, seed: int, sizes: Mapping[str, int], smallest: int) -> tuple[str, ...]:
        """Say what a reader of results must know of splits of these sizes; `smallest` of the fractions, in examples."""
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
    inputs: str = "float32"  # type in which inputs are stored
    vocabulary: int | None = None  # None: inputs are numbers, no tokens
    bytes_per_token: float | None = None
    mapped: bool = False  # training examples are read from disk when they are asked for
    notes: tuple[str, ...] = ()  # what a reader of the results must know, one sentence each
    # Of the targets' numbers, not of their form: what is remembered on disk by the text of a card knows nothing of it.
    target_centre: float | None = field(default=None, repr=False)  # as in Facts
    test_differs: bool = field(default=True, repr=False)  # False: all test targets are known to be equal

    @property
    def sees(self) -> str:
        """Type of the inputs that a model sees."""
        return "float32" if self.vocabulary is None else "int32"

    @property
    def learns(self) -> str:
        """Type of the targets that a task sees."""
        return "float32" if self.targets == "float32" else "int32"

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return dict(zip(SPLITS, (self.examples, self.validation_examples, self.test_examples), strict=True))


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
    """Return the card of a data set, without making its splits.

    Args:
        spec: the sweep's data table.

    Raises:
        SweepError: the source's package is missing, an option is wrong, or sizes do not fit the source or each other.
    """
    return _described(spec)[1]


def _described(spec: Request) -> tuple[Facts, DataCard]:
    """Return what a source says of its data, and the card that follows from it and from what is asked for."""
    source, facts = spec.origin, spec.origin.facts()
    if not isinstance(facts, Facts) or not isinstance(facts.shape, tuple):
        message = f"facts() of {source_name(source)} must return Facts(shape=(...), ...), found {shown(facts)}"
        raise SpecError(message, table="data", keys=("source",))
    if facts.inputs not in INPUT_TYPES or (facts.vocabulary is None and facts.inputs not in INPUT_TYPES[:2]):
        allowed = "float32 or uint8 (with a vocabulary uint8, uint16, uint32 or int32)"
        message = f"facts() of {source_name(source)}: inputs must be {allowed}, found {shown(facts.inputs)}"
        raise SpecError(message, table="data", keys=("source",))
    validation = facts.validation_examples if spec.validation_examples is None else spec.validation_examples
    test = facts.test_examples if spec.test_examples is None else spec.test_examples
    asked = {"validation": validation, "test": test}
    if isinstance(source, Divided) and validation + test < (facts.examples or 0):
        sizes = source.settled(spec.seed, asked)
        validation, test = sizes["validation"], sizes["test"]
    pool = _pool(spec, facts, validation=validation, test=test)
    if spec.fractions and round(min(spec.fractions) * pool) < 1:
        message = f"{min(spec.fractions)} is less than one of {pool} examples; expected at least {1 / pool:.3g}"
        raise SpecError(message, table="data", keys=("fractions",))
    sizes = {"train": pool, "validation": validation, "test": test}
    notes = [
        f"{name} has {number_of(sizes[name], 'example')} instead of {size:,}: groups stay together"
        for name, size in asked.items()
        if sizes[name] > size
    ]
    if isinstance(source, Divided):
        notes += source.notes(spec.seed, sizes, _smallest(spec, pool))
    content = {"source": source_name(source), "sizes": sizes, "seed": spec.seed, "options": dict(facts.content)}
    if not type(source).__module__.startswith(f"{__package__}."):  # of these `content` says all, and ids hash it
        content["own"] = _own_content(source, facts)
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        message = f"the content in facts() of {source_name(source)} must be JSON, texts and numbers: {error}"
        raise SpecError(message, table="data", keys=("source",)) from None
    card = DataCard(
        source=source_name(source),
        shape=facts.shape,
        classes=facts.classes,
        examples=pool,
        validation_examples=validation,
        test_examples=test,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        targets=facts.targets,
        target_shape=facts.target_shape,
        inputs=facts.inputs,
        vocabulary=facts.vocabulary,
        bytes_per_token=facts.bytes_per_token,
        mapped=facts.mapped,
        notes=tuple(notes),
        target_centre=facts.target_centre,
        test_differs=not isinstance(source, Divided) or source.test_differs(spec.seed, sizes),
    )
    return facts, card


def _smallest(spec: Request, pool: int) -> int:
    """Return the smallest number of training examples that is tried."""
    return min(spec.train_examples) if spec.train_examples else round(min(spec.fractions or (1.0,)) * pool)


def _own_content(source: Source, facts: Facts) -> dict[str, Any]:
    """Return what else tells a user's own source from another one: the shapes of its data, and its fields.

    Of a class that is no dataclass these are its public attributes: what it remembers for itself is private.

    Raises:
        SpecError: a field is no plain value, and the facts do not say in `content` what determines the numbers.
    """
    public = [name for name in getattr(source, "__dict__", {}) if not name.startswith("_")]
    names = [each.name for each in fields(source) if each.compare] if is_dataclass(source) else public
    values: dict[str, Any] = {}
    for name in names:
        try:
            values[name] = plain_value(getattr(source, name))
        except TypeError:
            if not facts.content:
                problem = f"nothing tells two sources with other {name} apart"
                remedy = f"name in the content of facts() of {source_name(source)} what determines the numbers"
                raise SpecError(f"{problem}; {remedy}", table="data", keys=("source",)) from None
    shapes: list[Any] = [list(facts.shape), facts.classes, list(facts.target_shape)]
    if (facts.inputs, facts.vocabulary) != ("float32", None):
        shapes += [facts.inputs, facts.vocabulary]
    return {"type": type(source).__qualname__, "fields": values, "shapes": shapes}


def plain_value(value: Any) -> Any:
    """Return a value as JSON can hold it, an array by its hash; raises `TypeError` for any other object."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    if isinstance(value, np.generic):
        return plain_value(value.item())
    if isinstance(value, tuple | list):
        return [plain_value(each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): plain_value(each) for key, each in value.items()}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise TypeError(f"{type(value).__name__} is no plain value")


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
        message = (
            f"{validation} and test_examples = {test} leave none of the {_counted(facts, facts.examples)}; lower them"
        )
        raise SpecError(message, table="data", keys=("validation_examples", "test_examples"))
    for key, asked in (("examples", spec.examples), ("train_examples", max(spec.train_examples or (0,)))):
        if asked and asked > left:
            remedy = "ask for fewer, or lower those"
            message = f"{asked} is more than the {_counted(facts, left)} that validation and test leave; {remedy}"
            raise SpecError(message, table="data", keys=(key,))
    return spec.examples or left


def _counted(facts: Facts, count: int) -> str:
    """Return a number of examples in words; those of a text are windows, which are far fewer than its tokens."""
    one, of = ("example", "") if facts.vocabulary is None or facts.classes else ("window", f" of {facts.shape[0]}")
    return f"{count} {one}{'s' if count != 1 else ''}{of}"


def load(spec: Request) -> DataSet:
    """Return a data set: made at the first call, read from the cache afterwards.

    Args:
        spec: the sweep's data table.

    Raises:
        SweepError: as `describe` does; or the source makes something else than it says.

    Warns:
        UserWarning: the cached file was damaged, and the data are made again; or it could not be written.
    """
    facts, card = _described(spec)

    def make() -> dict[str, np.ndarray]:
        splits = spec.origin.splits(spec.seed, card.sizes)
        arrays: dict[str, Any] = {
            f"{name}_{part}": getattr(splits.get(name), part, None) for name in SPLITS for part in ARRAYS
        }
        _check_types(arrays, card)
        _check_numbers(arrays, card)
        return arrays

    file = re.sub(r"[^\w-]", "-", f"{card.source}-{card.fingerprint[:32]}")
    arrays = recall(cache_directory("data") / f"{file}.safetensors", make) if facts.kept else make()
    _check_types(arrays, card)  # the numbers of what is recalled are those that were checked when it was made
    return DataSet(card, *(Split(*(arrays[f"{name}_{part}"] for part in ARRAYS)) for name in SPLITS))


def _check_types(arrays: Mapping[str, Any], card: DataCard) -> None:
    """Refuse arrays of other types or shapes than the source has promised."""
    promised = (("inputs", card.shape, card.inputs), ("targets", card.target_shape, card.targets))
    for name, size in card.sizes.items():
        for part, shape, kind in promised:
            array: Any = arrays.get(f"{name}_{part}")
            if not (hasattr(array, "shape") and hasattr(array, "dtype")):
                array = np.asarray(array)
            if (array.shape, array.dtype.name) != ((size, *shape), kind):
                expected = f"expected {kind} {[size, *shape]}, as facts() says"
                found = f"found {array.dtype} {list(array.shape)}"
                raise SweepError(f"the source {card.source}: {part} of {name}: {expected}, {found}")


def _check_numbers(arrays: Mapping[str, np.ndarray], card: DataCard) -> None:
    """Refuse numbers that are not finite, and classes beyond those that there are."""
    for name, part in ((name, part) for name in SPLITS for part in ARRAYS):
        array, what = arrays[f"{name}_{part}"], f"the source {card.source}: {part} of {name}"
        if not isinstance(array, np.ndarray):  # read when it is asked for, and checked then
            continue
        if not np.isfinite(array).all():
            raise SweepError(f"{what}: expected finite numbers; leave out the examples that are not")
        if part == "targets" and card.classes and not (array.min() >= 0 and array.max() < card.classes):
            found = f"{array.min()} to {array.max()}"
            raise SweepError(f"{what}: expected classes from 0 to {card.classes - 1}, found {found}")
        tokens = card.vocabulary if part == "inputs" or card.classes is None else None
        if tokens and not (array.min() >= 0 and array.max() < tokens):
            raise SweepError(f"{what}: expected tokens from 0 to {tokens - 1}, found {array.min()} to {array.max()}")
