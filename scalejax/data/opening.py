"""Whatever holds the user's data, as a source: a file, a folder, or an object in Python."""

import functools
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalejax.builders import load_object
from scalejax.data.array_files import read_npy, read_npz
from scalejax.data.examples import Examples, Options, as_groups, fault, from_arrays, from_mapping, joined, of_splits
from scalejax.data.file_state import Stamp, stamp, stamps
from scalejax.data.held import Given, Held
from scalejax.data.in_memory import InMemory
from scalejax.data.sequences import (
    from_hugging_face,
    from_hugging_face_table,
    from_sequence,
    is_hugging_face,
    is_hugging_face_table,
    is_sequence,
)
from scalejax.data.source import SPLITS, Source
from scalejax.data.table import from_table
from scalejax.data.table_files import read_csv, read_parquet
from scalejax.errors import SweepError
from scalejax.rules import SpecError, shown
from scalejax.text import first_line

Paths = tuple[tuple[str, str], ...]  # of each split, and "targets"
_KEPT = 2  # files in memory, so that a command that asks more than once reads once


@dataclass(frozen=True)
class Kind:
    """A kind of thing that holds examples.

    Attributes:
        what: it is called in sentences.
        means: the options that mean something to it, besides `stratify` and `standardise_target`.
        make: makes examples of it: of an object, or of the paths by split of files, with the options, and with the
            place that sentences name.
    """

    what: str
    means: tuple[str, ...]
    make: Callable[[Any, Options, str], Examples]

    def check(self, options: Options) -> None:
        """Raise `SpecError` if an option is given that means nothing to it."""
        options.only(*self.means, what=self.what)

    def read(self, value: Any, options: Options, place: str) -> Examples:
        """Return its examples.

        Raises:
            SpecError: an option means nothing to it, or it holds no examples.
        """
        self.check(options)
        return self.make(value, options, place)


def _read_archives(paths: Mapping[str, Path], options: Options, place: str) -> Examples:
    if len(paths) == 1:
        return read_npz(paths[SPLITS[0]], options, place)
    for key in ("group", "split"):
        if getattr(options, key) is not None:
            remedy = "put all examples into one, with an array that says the split, or drop this key"
            raise fault(place, f"means nothing where further archives declare the splits; {remedy}", key)
    parts = {name: read_npz(path, options, str(path)) for name, path in paths.items()}
    for name, each in parts.items():
        if each.parts is not None:
            further = next(other for other in (name, *list(paths)[1:]) if other != SPLITS[0])
            says = "it declares splits itself, and so do further archives; take out either"
            raise fault(each.place, says, f"{further}_source")
    return joined(parts, place)


def _read_array(paths: Mapping[str, Path], options: Options, place: str) -> Examples:
    return read_npy(paths[SPLITS[0]], options, place)


def _read_folder(paths: Mapping[str, Path], options: Options, place: str) -> Examples:
    path = paths[SPLITS[0]]
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        message = "this is a folder, but none of a Hugging Face dataset saved with save_to_disk"
        raise fault(place, f"{message}; name a file: {', '.join(FILES)}")
    if importlib.util.find_spec("datasets") is None:
        needs = "a folder of a Hugging Face dataset needs the package datasets, which is not installed"
        raise fault(place, f'{needs}: run pip install "scalejax[datasets]"')
    import datasets  # pyright: ignore[reportMissingImports]  # an extra

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise fault(place, f"the dataset cannot be read ({first_line(error)})") from None
    return _kind_of(found).read(found, options, place)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2


def _is_table(value: Any) -> bool:
    """Say whether an object is a table of pandas, without importing that."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def _beside(value: Any) -> tuple[Any, Any]:
    """Return what may be a table and the targets beside it, of a pair or of a mapping such as a Bunch."""
    if _is_pair(value):
        return value
    for x, y in (("data", "target"), ("x", "y")) if isinstance(value, Mapping) else ():
        if x in value and y in value:
            return value[x], value[y]
    return None, None


def _from_table_and_targets(value: Any, options: Options, place: str) -> Examples:
    import pandas as pd

    x, y = _beside(value)
    if isinstance(value, Mapping) and (further := of_splits(value)):
        remedy = "give arrays, or one table with a column that says the split"
        raise fault(place, f"there is {further[0]}, which means nothing beside a table; {remedy}")
    shape = getattr(y, "shape", (len(x),))
    if tuple(shape[1:]) == (1,):
        y = y.iloc[:, 0] if _is_table(y) else y[:, 0]
    elif len(shape) != 1:
        raise fault(place, f"expected one target for each of the {len(x):,} rows, found the shape {list(shape)}")
    try:
        target = pd.Series(y)
    except Exception as error:  # of whatever the user's object is
        raise fault(place, f"pandas can make no column of the targets ({first_line(error)})") from None
    if len(target) != len(x):
        raise fault(place, f"expected one target for each of the {len(x):,} rows, found {len(target):,}")
    return from_table(x, options, place, target=target)


# Ending of a file's name -> kind.
_SPLIT_FILES = "validation_source", "test_source"
_BESIDE = "columns", "categories", "group", "split"  # of a table with targets beside it
_TABLE = "target", *_BESIDE
FILES: dict[str, Kind] = {
    ".csv": Kind("a .csv file", (*_TABLE, *_SPLIT_FILES), read_csv),
    ".parquet": Kind("a .parquet file", (*_TABLE, *_SPLIT_FILES), read_parquet),
    ".npz": Kind("a .npz file", ("group", "split", *_SPLIT_FILES), _read_archives),
    ".npy": Kind("a .npy file", ("targets",), _read_array),
}
TEXTS = ".txt", ".md", ".rst", ".tex", ".html", ".log", ".py", ".js", ".ts", ".c", ".h", ".cpp", ".java", ".rs", ".go"
SPREADSHEETS = ".xlsx", ".xls", ".ods", ".numbers"
FOLDER = Kind("a folder", _TABLE, _read_folder)
# How an object is known, and its kind; the first that fits.
OBJECTS: tuple[tuple[Callable[[Any], Any], Kind], ...] = (
    (is_hugging_face_table, Kind("a table of Hugging Face", _TABLE, from_hugging_face_table)),
    (is_hugging_face, Kind("a data set of Hugging Face that is no table", ("target",), from_hugging_face)),
    (
        lambda value: _is_table(_beside(value)[0]),
        Kind("a table with targets beside it", _BESIDE, _from_table_and_targets),
    ),
    (_is_pair, Kind("(x, y)", (), lambda pair, _, place: from_arrays(pair[0], pair[1], place))),
    (lambda value: isinstance(value, Mapping), Kind("a mapping of arrays", ("group", "split"), from_mapping)),
    (
        _is_table,
        Kind("a table", _TABLE, lambda table, options, place: from_table(table.reset_index(drop=True), options, place)),
    ),
    (
        lambda value: hasattr(value, "to_pandas") and not isinstance(value, tuple),
        Kind("a table", _TABLE, lambda table, options, place: from_table(table.to_pandas(), options, place)),
    ),
    (
        lambda value: is_sequence(value) and not hasattr(value, "dtype"),
        Kind("a sequence of examples", ("target",), from_sequence),
    ),
)


def _kind_of(value: Any) -> Kind:
    """Return the kind of an object; raises `SpecError` if it is of none."""
    for fits, kind in OBJECTS:
        if fits(value):
            return kind
    if hasattr(value, "dtype"):
        raise fault(_place(value), "it holds no targets; give a pair, source=(x, y)")
    expected = "expected the name of a source, a file, (x, y), a table, a data set whose items are examples, "
    says = f"{expected}or an object with the methods facts and splits, found {shown(value)}"
    raise SpecError(says, table="data", keys=("source",))


def is_path(text: str) -> bool:
    """Say whether a text is the path of a file or a folder, rather than the name of a source."""
    if not text or "\0" in text:
        return False
    named = Path(text).suffix.lower() in FILES or "/" in text or "\\" in text
    return named or (is_there(Path(text)) and Path(text).is_dir())


def of_no_kind(path: str) -> str:
    """Say what to do with a file of a kind that no examples are read from; empty if it looks like no file."""
    ending = Path(path).suffix.lower() if "\0" not in path and not path.endswith(("/", "\\")) else ""
    text = f'a text needs source = "bytes", path = "{path}"'
    if ending in TEXTS:
        return text
    files = f"files are {', '.join(FILES)}"
    if re.fullmatch(r"\.[a-z]\w{0,9}", ending):
        return f"{files}; save a spreadsheet as .csv" if ending in SPREADSHEETS else files
    return f"{files}; {text}" if is_there(Path(path)) and Path(path).is_file() else ""


def is_there(path: Path) -> bool:
    """Say whether there is such a file or folder; a name that is too long is that of none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class FromFile(Held):
    """Examples in a file, or in several for the splits; read when they are asked for, and kept for the next time.

    They are those of `arrays` of the same content: where the file lies, and in which format, is part of no id.
    """

    path: str

    def held(self) -> InMemory:
        """Return the data set itself, as the files are now."""
        further = {"validation": self.options.validation_source, "test": self.options.test_source}
        paths = {SPLITS[0]: self.path, **{name: path for name, path in further.items() if path is not None}}
        if self.options.targets is not None:
            paths["targets"] = self.options.targets
        found = tuple(paths.items())
        return _read(found, _stamps(found), self.options, self.task)


_KEYS = {"train": "source", "validation": "validation_source", "test": "test_source", "targets": "targets"}


@functools.lru_cache(maxsize=_KEPT)
def _read(paths: Paths, before: tuple[Stamp, ...], options: Options, task: str | None) -> InMemory:
    """Read files that are in the state that `before` says; it is part of what is remembered.

    Raises:
        SpecError: they cannot be read, or change meanwhile; or they hold no examples for the task.
    """
    named = {name: Path(path) for name, path in paths if name != "targets"}
    kinds = [path.suffix.lower() for path in named.values()]
    for (name, path), kind in zip(paths, kinds, strict=False):
        if kind != kinds[0]:
            raise fault(path, f"expected a {kinds[0]} file like {paths[0][1]}, found another kind", _KEYS[name])
    kind = FOLDER if named[SPLITS[0]].is_dir() else FILES[kinds[0]]
    try:
        examples = kind.read(named, options, paths[0][1])
    finally:  # also where it could not be read, for that may be why
        if _stamps(paths) != before:
            raise fault(paths[0][1], "it changed while it was read; run again when it is written")
    return examples.decided(task, options)


def _stamps(paths: Paths) -> tuple[Stamp, ...]:
    """Return the state of files and of those in a folder.

    Raises:
        SpecError: one of them is not there or may not be read, or is neither a file nor a folder.
    """
    found: list[Stamp] = []
    for name, path in paths:
        kind, key = Path(path).suffix.lower(), _KEYS[name]
        found += [stamp(path, key, kind=f"{kind} file")] if kind in FILES else stamps(Path(path), key)
    return tuple(found)


def as_source(value: Any, options: Mapping[str, Any] | None = None, *, task: str | None = None) -> Source:
    """Turn whatever holds the user's data into a source.

    Args:
        value: the path of a file or a folder, "package.module:object", a `Source`, (x, y), a mapping of arrays such as
            the Bunch of scikit-learn, a table of pandas (or what has `to_pandas`), a Dataset of Hugging Face, or an
            object whose items are examples.
        options: by name, those of `Options`; None of them for a `Source`.
        task: "classification" or "regression" where it is known; it decides what whole numbers are.

    Raises:
        SpecError: it is nothing of these, or an option is wrong or means nothing to it. Files are not read yet.
    """
    if isinstance(value, str) and is_path(value):
        kind = FILES.get(Path(value).suffix.lower())
        if kind is None:
            there = is_there(Path(value))
            if not (there and Path(value).is_dir()):
                kinds = of_no_kind(value)
                what = "expected another kind of file" if there or kinds else "there is no such folder"
                raise fault(value, f"{what}; {kinds or 'files are ' + ', '.join(FILES)}")
            kind = FOLDER
        chosen = Options(**dict(options or {}))
        kind.check(chosen)
        return FromFile(value, options=chosen, task=task)
    if isinstance(value, str):
        return as_source(_called(value), options, task=task)
    if isinstance(value, type):
        says = f"expected an object, found the class {value.__name__}; write {value.__name__}()"
        raise SpecError(says, table="data", keys=("source",))
    if isinstance(value, Given) and options:
        Options(**dict(options)).only(what="examples that are read already")
        value = replace(value, options=replace(value.options, **dict(options)))
    elif isinstance(value, Source):
        for name in options or {}:
            raise SpecError(f"means nothing to {_place(value)}; drop this key", table="data", keys=(name,))
    if isinstance(value, Source):
        return value
    chosen = Options(**dict(options or {}))
    examples = _kind_of(value).read(value, chosen, _place(value))
    return Given.of(examples, chosen).for_task(task)


def arrays(x: Any, y: Any, *, groups: Any = None, stratify: bool = False, standardise_target: bool = False) -> Given:
    """Make a data set of arrays, for `DataSpec(source=arrays(x, y), ...)`; as `source=(x, y)` does, and with groups.

    Args:
        x: inputs [n, ...], whatever `np.asarray` takes, or a pandas table. Images, which are uint8 [n, height, width]
            or [n, height, width, channels], stay uint8, and are divided by 255 when they are trained on; all else is
            copied as float32.
        y: targets [n]. The sweep's task says what they are. Without one, texts, truth values and the numbers 0, 1,
            ... of a whole-number type are classes, and other numbers, 0.0 and 1.0 too, are those of a regression.
        groups: what each example belongs to, [n], such as the number of a patient: all examples of a group come into
            one split. Validation and test are then of whole groups: smaller than asked for, or larger where no group
            is as small.
        stratify: give validation and test each class in proportion.
        standardise_target: take the mean of the training pool's targets out of all targets, and divide them by their
            standard deviation, which is then the unit of the RMSE: 1.0 is that of always guessing the mean.

    Returns:
        The source. Unless the sweep says otherwise, 15 % of the examples are for validation and 15 % for the test. The
        fingerprint is a hash of the content, and nothing is copied to the cache on disk.

    Raises:
        SweepError: inputs are no numbers or not finite, or x, y and groups have other lengths or ranks. Whether the
            targets are those of the task is said when the sweep is planned.
    """
    place = "arrays(x, y)"
    try:
        options = Options(stratify=stratify, standardise_target=standardise_target)
        examples = _kind_of((x, y)).read((x, y), options, place)
        if groups is not None:
            examples = replace(examples, groups=as_groups(groups, len(examples.inputs), place))
    except SpecError as error:
        key, says = error.keys[0], error.says.removeprefix(f"{place}: ")
        if key in _BESIDE[:2]:
            says += f"; {' and '.join(_BESIDE[:2])} are options of DataSpec(source=(x, y), ...)"
        raise SweepError(f"{place}: {says if key == 'source' else f'{key}: {says}'}") from None
    return Given.of(examples, options)


def _called(text: str) -> Any:
    """Return the object that a text names; of a function or a class, what it returns.

    Raises:
        SpecError: there is none, or it raises.
    """
    try:
        found = load_object(text)
    except SweepError as error:
        raise SpecError(str(error), table="data", keys=("source",)) from None
    if not isinstance(found, type) and (isinstance(found, Source) or not callable(found)):
        return found
    try:
        return found()
    except SweepError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise fault(text, f"it could not be called without arguments ({what})") from None


def _place(value: Any) -> str:
    return "(x, y)" if _is_pair(value) else f"the {type(value).__name__}"
