"""Objects that return one example after the other: data sets of PyTorch, Grain, TFDS and Hugging Face."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.data.examples import INPUT_NAMES, PART_NAMES, TARGET_NAMES, Examples, Options, fault, from_arrays, joined
from scalejax.data.source import SPLITS
from scalejax.data.table import from_table
from scalejax.text import first_line

if TYPE_CHECKING:
    import pandas as pd


def is_sequence(value: Any) -> bool:
    """Say whether an object has a length and returns its items by number."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping)


def from_sequence(value: Any, options: Options, place: str) -> Examples:
    """Make examples of an object with a length whose items are (input, target), or tables such as {"x": .., "y": ..}.

    Raises:
        SpecError: an item cannot be read, or the items are no examples of one shape.
    """
    inputs, targets, names = [], [], ("x", "y")
    try:
        count = len(value)
    except Exception as error:
        raise fault(place, f"it does not tell its length ({first_line(error)})") from None
    for index in range(count):
        try:
            item = value[index]
        except Exception as error:  # whatever the user's own code raises
            what = f"{type(error).__name__}: {first_line(error)}"
            raise fault(place, f"example {index:,} cannot be read ({what})") from None
        if isinstance(item, Mapping):
            names = _names(item, options, place)
            item = tuple(item[name] for name in names)
        if not isinstance(item, tuple | list) or len(item) != 2:
            expected = 'expected (input, target), or {"x": input, "y": target}'
            raise fault(place, f"example {index:,}: {expected}, found a value of type {type(item).__name__}")
        inputs.append(_array(item[0], index, place))
        targets.append(item[1] if isinstance(item[1], str) else _array(item[1], index, place)[()])
        if inputs[-1].shape != inputs[0].shape:
            found = f"found {list(inputs[-1].shape)}"
            raise fault(
                place, f"example {index:,}: expected the shape {list(inputs[0].shape)} of the first one, {found}"
            )
    if not inputs:
        raise fault(place, "there is no example in it")
    stacked = np.stack(inputs)
    if stacked.ndim == 1:
        stacked = stacked[:, None]
    return from_arrays(stacked, targets, place, names=names)


def _array(value: Any, index: int, place: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:
        raise fault(place, f"example {index:,}: NumPy can make no array of it ({first_line(error)})") from None


def _names(item: Mapping[str, Any], options: Options, place: str) -> "tuple[str, str]":
    """Return the names of the input and of the target in an example that is a table."""
    y = options.target or next((name for name in TARGET_NAMES if name in item), None)
    x = next((name for name in INPUT_NAMES if name in item and name != y), None)
    if x is None or y is None or y not in item:
        expected = f"expected one of {', '.join(INPUT_NAMES)}, and one of {', '.join(TARGET_NAMES)}"
        raise fault(place, f"{expected}; found {', '.join(map(str, item))}")
    return x, y


def is_hugging_face(value: Any) -> bool:
    """Say whether an object is a Dataset or a DatasetDict of Hugging Face, without importing its package."""
    kind = type(value)
    return kind.__module__.partition(".")[0] == "datasets" and kind.__name__ in ("Dataset", "DatasetDict")


def is_hugging_face_table(value: Any) -> bool:
    """Say whether an object is one whose columns all hold single values."""
    return is_hugging_face(value) and all(map(_is_table, value.values() if isinstance(value, Mapping) else (value,)))


def from_hugging_face_table(value: Any, options: Options, place: str) -> Examples:
    """Make examples of the rows of a Dataset, or of a DatasetDict, which declares its splits.

    Raises:
        SpecError: as for a table; or the splits go by unknown names.
    """
    import pandas as pd

    tables = {name: _table(each) for name, each in _parts(value, place).items()}
    table = pd.concat(list(tables.values()), ignore_index=True)
    numbers = np.repeat([SPLITS.index(name) for name in tables], list(map(len, tables.values())))
    return from_table(table, _with_target(options, table), place, parts=numbers if len(tables) > 1 else None)


def from_hugging_face(value: Any, options: Options, place: str) -> Examples:
    """Make examples of a Dataset or a DatasetDict that holds pictures or lists, which are read one by one.

    Raises:
        SpecError: as for a sequence; or the splits go by unknown names.
    """
    parts = _parts(value, place)
    items = {name: each.with_format(None) for name, each in parts.items()}
    if len(items) == 1:
        return from_sequence(items[SPLITS[0]], options, place)
    return joined({name: from_sequence(each, options, f"{place}, {name}") for name, each in items.items()}, place)


def _parts(value: Any, place: str) -> dict[str, Any]:
    """Return the Datasets by split, "train" first; one that is alone is called that."""
    if not isinstance(value, Mapping):
        return {SPLITS[0]: value}
    unknown = [name for name in value if str(name) not in PART_NAMES]
    if unknown or not value:
        found = unknown[0] if unknown else "nothing"
        raise fault(place, f"expected splits called train, validation and test, found {found}")
    if len(value) == 1:
        return {SPLITS[0]: next(iter(value.values()))}
    parts = {SPLITS[PART_NAMES[name]]: value[name] for name in value}
    if SPLITS[0] not in parts:
        raise fault(place, f"expected a split train, found {', '.join(parts)}")
    return {name: parts[name] for name in SPLITS if name in parts}


def _is_table(value: Any) -> bool:
    """Say whether all columns of a Dataset hold single values."""
    return all(type(each).__name__ in ("Value", "ClassLabel") for each in value.features.values())


def _table(value: Any) -> "pd.DataFrame":
    return value.with_format(None).to_pandas()


def _with_target(options: Options, table: "pd.DataFrame") -> Options:
    """Fill in the usual name of the target, where none is given."""
    usual = next((name for name in TARGET_NAMES if name in table.columns), None)
    return replace(options, target=usual) if options.target is None and usual else options
