"""Examples as they were read from a file or an object, before the task says what their targets are."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from scalejax.data.encoding import Column, Encoding, Value, plain_values
from scalejax.data.in_memory import InMemory, checked, is_images
from scalejax.data.source import SPLITS
from scalejax.rules import Rule, SpecError, listed, plain, shown, strict, true_or_false
from scalejax.text import first_line, number_of

INPUT_NAMES, TARGET_NAMES = ("x", "inputs", "data", "image", "images"), ("y", "targets", "target", "label", "labels")
ONE_HOT = "one-hot"
NO_GROUPS = "the groups are neither all numbers nor all texts"
MOST_STRAY, MOST_STRAYS = 0.05, 20  # share of a column's cells, and different texts, that are slips among numbers
PART_NAMES = {"train": 0, "training": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}


def _column(value: Any) -> Any:
    """Return the name of a column; a whole number, as pandas names them where it is told no names, is one too."""
    value = plain(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else Rule(str)(value)


def _columns(value: Any) -> Any:
    return _SEVERAL([_column(each) if isinstance(plain(each), int) else each for each in listed(value)])


def _categories(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, str) and value != ONE_HOT:
        raise SpecError(f'expected "{ONE_HOT}", for all columns of texts, or a list of columns, found {shown(value)}')
    # No categories is the default, which `dataclasses.replace` gives again.
    return value if value in (ONE_HOT, ()) else _columns(value)


_SEVERAL = Rule(str, grid=True)
_COLUMN, _COLUMNS, _FILE, _FLAG = {"rule": _column}, {"rule": _columns}, Rule(str).beside, {"rule": true_or_false}


@strict("data")
@dataclass(frozen=True)
class Options:
    """What may be said of data in a file or an object; which of it means something depends on what they are.

    Attributes:
        target: column of the target.
        columns: those that are inputs; None: all others.
        categories: "one-hot", for all columns of texts, or the columns that become one input for each of their values.
        group: column, or array, whose equal values stay in one split.
        split: column, or array, that says train, validation or test.
        targets: the .npy file of the targets.
        validation_source, test_source: further files, of the same kind.
        stratify, standardise_target: as in `arrays`.
    """

    target: str | None = field(default=None, metadata=_COLUMN)
    columns: tuple[str, ...] | None = field(default=None, metadata=_COLUMNS)
    categories: str | tuple[str, ...] = field(default=(), metadata={"rule": _categories})
    group: str | None = field(default=None, metadata=_COLUMN)
    split: str | None = field(default=None, metadata=_COLUMN)
    targets: str | None = field(default=None, metadata=_FILE)
    validation_source: str | None = field(default=None, metadata=_FILE)
    test_source: str | None = field(default=None, metadata=_FILE)
    stratify: bool = field(default=False, metadata=_FLAG)
    standardise_target: bool = field(default=False, metadata=_FLAG)

    def only(self, *meant: str, what: str) -> None:
        """Raise `SpecError` if anything is given that means nothing to data of this kind."""
        for each in fields(self):
            if each.name not in (*meant, "stratify", "standardise_target") and getattr(self, each.name):
                message = f"means nothing to {what}; drop this key"
                raise SpecError(message, table="data", keys=(each.name,))


def fault(place: str, says: str, key: str = "source") -> SpecError:
    """Return an error about data: where, and what is wrong; `key` is that of the table [data]."""
    return SpecError(printable(f"{place}: {brief(says)}"), table="data", keys=(key,))


def printable(text: str) -> str:
    """Return a text that holds names and values of a file in one line that can be printed."""
    return text if text.isprintable() else "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def brief(text: str) -> str:
    """Return a text with what is longer than any word, such as a damaged name of a column, cut short."""
    return re.sub(r"\S{200,}", lambda found: f"{found[0][:60]}...", text)


_SEPARATED = re.compile(r"\s*[+-]?\d{1,3}(,\d{3})+(\.\d*)?\s*")


def is_number(text: str) -> bool:
    """Say whether a text is one of a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def strays(texts: Sequence[str]) -> list[int]:
    """Return the places of the texts that are no numbers where all others are, and these few: slips, no categories.

    Few are at most MOST_STRAY of all, and at most MOST_STRAYS different ones; none where there are more.
    """
    most, found = int(MOST_STRAY * len(texts)), []
    for place, text in enumerate(texts):
        if not is_number(text):
            found.append(place)
            if len(found) > most:
                return []
    return found if len({texts[place] for place in found}) <= MOST_STRAYS else []


def separated(texts: Iterable[str]) -> str:
    """Return the first number with separators of thousands, such as 651,859, if all texts are numbers but for those."""
    first = ""
    for text in texts:
        if _SEPARATED.fullmatch(text):
            first = first or text.strip()
        elif not is_number(text):
            return ""
    return first


def without_separators(text: str) -> str:
    """Say what to do about a number with separators of thousands."""
    return f'numbers such as "{text}"; take out the thousands separators, as in {text.replace(",", "")}'


def absent(name: str, there: Iterable[str], *, what: str = "column") -> str:
    """Say that a column is missing, and which one was probably meant."""
    names = [str(each) for each in there]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    few = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"there is no {what} {name}; " + (f"did you mean {close[0]}?" if close else f"it has {few}")


@dataclass(frozen=True)
class Examples:
    """What was read.

    Attributes:
        place: what it was read from, for sentences.
        inputs: uint8 or float32 [n, ...], finite.
        targets: numbers or texts [n], as they were found.
        target: what the targets are called.
        groups: int [n], or None.
        parts: int [n], the split of each example as its position in SPLITS, or None.
        columns: what the inputs were in a table; none of arrays.
    """

    place: str
    inputs: np.ndarray
    targets: np.ndarray
    target: str
    groups: np.ndarray | None = None
    parts: np.ndarray | None = None
    columns: tuple[Column, ...] = ()

    def decided(self, task: str | None, options: Options) -> InMemory:
        """Return the data set that a task makes of them.

        Args:
            task: "classification" or "regression"; None: numbers of a whole-number type from 0 on and texts are
                classes, other numbers, such as 0.0 and 1.0, are numbers.
            options: how they are divided and scaled.

        Raises:
            SpecError: the targets are none for the task.
        """
        targets, classes = _as_task(self.targets, task, self.place, self.target)
        made = checked(
            self.inputs,
            targets,
            groups=self.groups,
            parts=self.parts,
            stratify=options.stratify,
            standardise_target=options.standardise_target,
        )
        return replace(made, encoding=Encoding(self.columns, classes))


def _as_task(
    targets: np.ndarray, task: str | None, place: str, name: str
) -> tuple[np.ndarray, tuple[Value, ...] | None]:
    """Return targets as int32 classes, numbered in sorted order, and what they were; or float32 numbers, and None."""
    key = "target" if name.startswith("column ") else "source"
    texts = targets.dtype.kind not in "fiub"
    if texts and task != "classification":
        _no_slips(targets.tolist(), task, place, name, key)
    if not texts and targets.dtype.kind == "f":
        if not np.isfinite(targets).all():
            count = int(np.count_nonzero(~np.isfinite(targets)))
            says = f"{name}: {count:,} of {number_of(len(targets), 'row')} have no finite target"
            raise fault(place, f"{says}; leave them out", key)
        if task != "classification":
            return _float32(targets, place, name), None
        if not np.array_equal(targets, np.trunc(targets)):
            found = next(value for value in targets.tolist() if value != int(value))
            raise fault(place, f"{name}: expected whole numbers or texts as classes, found {found}", key)
    elif not texts and task == "regression":
        return _float32(targets, place, name), None
    classes, codes = np.unique(targets, return_inverse=True)
    if not texts and task is None and not np.array_equal(classes, np.arange(len(classes))):
        found = f"whole numbers from {classes[0]} to {classes[-1]}"
        remedy = 'say task = "classification", or task = "regression" (above the tables of a sweep file)'
        raise fault(place, f"{name}: {found} may be classes or numbers; {remedy}", key)
    if len(classes) < 2:
        raise fault(place, f"{name}: expected at least two classes, found only {classes[0]}", key)
    return codes.reshape(targets.shape).astype(np.int32), plain_values(classes)


def _no_slips(targets: Sequence[str], task: str | None, place: str, name: str, key: str) -> None:
    """Refuse texts that are numbers but for separators or a few slips, and all texts for a regression."""
    first = separated(targets)
    if first:
        raise fault(place, f"{name}: found {without_separators(first)}", key)
    slips = strays(targets)
    if slips:
        others = f"and {number_of(len(targets) - len(slips), 'row')} with numbers"
        says = f'{name}: {number_of(len(slips), "row")} with texts such as "{targets[slips[0]]}", {others}'
        remedy = "mend those, or leave them out" + (
            "" if task else '; task = "classification" makes each value a class'
        )
        raise fault(place, f"{says}; {remedy}", key)
    if task == "regression":
        first = next((each for each in targets if not is_number(each)), targets[0])
        says = f'{name}: expected numbers for a regression, found texts such as "{first}"'
        raise fault(place, f'{says}; task = "classification" makes them classes', key)


def _float32(array: np.ndarray, place: str, name: str) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        copy = array.astype(np.float32)
    if not np.isfinite(copy).all():
        raise fault(place, f"{name}: numbers too large for float32; give them in a larger unit")
    return copy


def as_array(value: Any, place: str, name: str) -> np.ndarray:
    """Return an array of numbers or texts; refuse all else.

    Raises:
        SpecError: it is ragged, masked, or of another type.
    """
    if np.ma.is_masked(value):
        raise fault(place, f"{name}: expected numbers, found masked ones; fill them in or drop their examples")
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists; tensors that NumPy cannot read; whatever an object raises
        raise fault(place, f"{name}: NumPy can make no array of it ({first_line(error)})") from None
    if array.dtype.kind == "O" and array.size and all(isinstance(each, str) for each in array.flat):
        array = array.astype(str)
    if array.dtype.kind not in "fiubU":
        says = f"expected numbers, found an array of type {array.dtype}"
        raise fault(place, f"{name}: {says}; turn dates, gaps and objects into numbers first")
    return array


def from_arrays(
    x: Any, y: Any, place: str, *, names: tuple[str, str] = ("x", "y"), groups: Any = None, parts: Any = None
) -> Examples:
    """Make examples of arrays: inputs [n, ...] and targets [n].

    Raises:
        SpecError: they are no numbers, not finite, or do not fit each other.
    """
    inputs, targets = as_array(x, place, names[0]), as_array(y, place, names[1])
    if inputs.dtype.kind == "U":
        raise fault(place, f"{names[0]}: expected numbers, found texts; turn them into numbers first")
    if inputs.ndim < 2 or inputs.size == 0:
        found = f"found the shape {list(inputs.shape)}"
        remedy = "; reshape(-1, 1) makes examples of one number each" if inputs.ndim == 1 and inputs.size else ""
        raise fault(place, f"{names[0]}: expected at least one example in an array [n, ...], {found}{remedy}")
    if targets.shape == (len(inputs), 1):
        targets = targets[:, 0]
    if targets.shape != inputs.shape[:1]:
        expected = f"expected one target for each of the {len(inputs):,} examples of {names[0]}"
        raise fault(place, f"{names[1]}: {expected}, found the shape {list(targets.shape)}")
    # A copy in either case: what the user changes later is not what was described.
    inputs = inputs.copy() if is_images(inputs) else _finite(inputs, place, names[0])
    targets = targets.copy()
    if groups is not None:
        groups = as_groups(groups, len(inputs), place)
    if parts is not None:
        parts = as_parts(parts, len(inputs), place)
    return Examples(place, inputs, targets, names[1], groups, parts)


def _finite(array: np.ndarray, place: str, name: str) -> np.ndarray:
    """Return inputs as float32; refuse what is not finite, with its column."""
    with np.errstate(over="ignore", invalid="ignore"):
        copy = np.array(array, np.float32, order="C")
    bad = ~np.isfinite(copy)
    if bad.any() and np.isfinite(array).all():
        raise fault(place, f"{name}: numbers too large for float32; give them in a larger unit")
    if bad.any():
        rows = int(bad.reshape(len(bad), -1).any(1).sum())
        column = f", the first in column {int(bad.any(0).argmax())}" if bad.ndim == 2 else ""
        says = f"{name}: {rows:,} of {number_of(len(bad), 'row')} have numbers that are not finite{column}"
        raise fault(place, f"{says}; fill them in or leave these rows out")
    return copy


def as_groups(groups: Any, count: int, place: str) -> np.ndarray:
    """Return the number of the group that each example belongs to.

    Raises:
        SpecError: they cannot be sorted, or there is not one for each example.
    """
    try:
        array = np.asarray(groups)
        codes = np.unique(array, return_inverse=True)[1].reshape(array.shape)
    except (TypeError, ValueError):
        raise fault(place, NO_GROUPS, "group") from None
    if codes.shape != (count,):
        raise fault(place, f"expected a group for each of {count:,} examples, found {list(codes.shape)}", "group")
    return codes


def as_parts(names: Any, count: int, place: str) -> np.ndarray:
    """Return the positions in SPLITS of the names that say in which split each example is.

    Raises:
        SpecError: a name is none of a split, or no example is for training.
    """
    try:
        values, codes = np.unique(np.asarray(names).astype(str), return_inverse=True)
    except (TypeError, ValueError):  # lists and arrays in a column
        raise fault(place, "expected train, validation or test, found values that are no texts", "split") from None
    if codes.shape != (count,):
        raise fault(place, f"expected a split for each of {count:,} examples, found {list(codes.shape)}", "split")
    unknown = [value for value in values.tolist() if value.strip().lower() not in PART_NAMES]
    if unknown:
        raise fault(place, f'expected train, validation or test, found "{unknown[0]}"', "split")
    parts = np.array([PART_NAMES[value.strip().lower()] for value in values.tolist()])[codes]
    if not (parts == 0).any():
        raise fault(place, "no example is declared to be for training", "split")
    return parts


def joined(parts: Mapping[str, Examples], place: str) -> Examples:
    """Make one of the examples of declared splits, "train" among them.

    Raises:
        SpecError: their inputs have other shapes or types, or their targets are of another kind.
    """
    first = parts[SPLITS[0]]
    for name, each in parts.items():
        if each.inputs.shape[1:] != first.inputs.shape[1:] or each.inputs.dtype != first.inputs.dtype:
            found = f"{each.inputs.dtype} {list(each.inputs.shape[1:])}"
            expected = f"{first.inputs.dtype} {list(first.inputs.shape[1:])}"
            raise fault(place, f"{name}: expected examples as in train, {expected}, found {found}")
        if (each.targets.dtype.kind == "U") != (first.targets.dtype.kind == "U"):
            raise fault(
                place, f"{name}: expected targets as in train, found texts in one of them and numbers elsewhere"
            )
    ordered = [(number, parts[name]) for number, name in enumerate(SPLITS) if name in parts]
    return Examples(
        place,
        np.concatenate([each.inputs for _, each in ordered]),
        np.concatenate([each.targets for _, each in ordered]),
        first.target,
        parts=np.repeat([number for number, _ in ordered], [len(each.inputs) for _, each in ordered]),
    )


def from_mapping(found: Mapping[str, Any], options: Options, place: str) -> Examples:
    """Make examples of named arrays: x and y (or inputs and targets, data and target), or train_x, train_y, test_x ...

    Raises:
        SpecError: there are no such names, or the arrays are none of examples.
    """

    def pair(prefix: str) -> tuple[str, str] | None:
        x, y = (
            next((prefix + name for name in names if prefix + name in found), None)
            for names in (INPUT_NAMES, TARGET_NAMES)
        )
        return (x, y) if x is not None and y is not None else None

    names = pair("")
    declared: dict[str, tuple[str, str]] = {}
    for alias, name in _aliases().items():
        both = pair(f"{alias}_")
        if both is None:
            _alone(found, alias, place)
        elif name in declared:
            raise fault(place, f"{declared[name][0]} and {both[0]} are both of the split {name}; take out one of them")
        else:
            declared[name] = both
    if declared and names:
        if "train" in declared:
            train = declared["train"][0]
            raise fault(place, f"{train} and {names[0]} are both of the split train; take out one of them")
        declared["train"] = names
    if "train" in declared:
        for key, value in (("group", options.group), ("split", options.split)):
            if value is not None:
                raise fault(place, "it declares its splits itself; drop this key", key)
        made = {name: from_arrays(found[both[0]], found[both[1]], place, names=both) for name, both in declared.items()}
        return joined(made, place)
    if names is None:
        there = ", ".join(map(str, list(found)[:8])) or "nothing"
        expected = "expected x and y, or inputs and targets, or train_x, train_y, test_x and test_y"
        raise fault(place, f"{expected}; found {there}")
    further = {}
    for key, name in (("group", options.group), ("split", options.split)):
        if name is not None and name not in found:
            raise fault(place, absent(name, found, what="array"), key)
        further[key] = None if name is None else as_array(found[name], place, name)
    x, y = (found[name] for name in names)
    return from_arrays(x, y, place, names=names, groups=further["group"], parts=further["split"])


def of_splits(found: Mapping[str, Any]) -> list[str]:
    """Return the names that declare a split, such as test_x."""
    names = (f"{alias}_{name}" for alias in _aliases() for name in (*INPUT_NAMES, *TARGET_NAMES))
    return [name for name in names if name in found]


def _alone(found: Mapping[str, Any], alias: str, place: str) -> None:
    """Refuse inputs or targets of a split that are there without the others."""
    for names, others, what in ((INPUT_NAMES, TARGET_NAMES, "targets"), (TARGET_NAMES, INPUT_NAMES, "inputs")):
        there = next((f"{alias}_{name}" for name in names if f"{alias}_{name}" in found), None)
        if there is not None:
            says = f"there is {there}, but no {what} of it, such as {alias}_{others[0]}; add them, or take it out"
            raise fault(place, says)


@functools.cache
def _aliases() -> dict[str, str]:
    return {alias: SPLITS[number] for alias, number in PART_NAMES.items()}
