"""Whatever holds the user's data, as a source: a file, a folder, or an object in Python."""

import difflib
import functools
import importlib.util
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scalejax.builders import load_object
from scalejax.data.array_files import read_npy, read_npz
from scalejax.data.encoding import Encoding
from scalejax.data.examples import Examples, Given, Options, fault, from_arrays, from_mapping, joined
from scalejax.data.in_memory import InMemory
from scalejax.data.sequences import from_hugging_face, from_sequence, is_hugging_face, is_sequence
from scalejax.data.source import SPLITS, Facts, Source, Split
from scalejax.data.table import from_table
from scalejax.data.table_files import read_tables
from scalejax.errors import SweepError
from scalejax.rules import SpecError, shown
from scalejax.text import first_line

Paths = tuple[tuple[str, str], ...]  # of each split, and "targets"
Stamps = tuple[tuple[str, int, int], ...]  # of each file: path, bytes, nanoseconds of its last change
_KEPT = 2  # files in memory, so that a command that asks more than once reads once

_Reader = Callable[[Mapping[str, Path], Options], Examples]


def _read_archives(paths: Mapping[str, Path], options: Options) -> Examples:
    parts = {name: read_npz(path, options, str(path)) for name, path in paths.items()}
    return joined(parts, str(paths[SPLITS[0]])) if len(parts) > 1 else parts[SPLITS[0]]


def _read_array(paths: Mapping[str, Path], options: Options) -> Examples:
    return read_npy(paths[SPLITS[0]], options, str(paths[SPLITS[0]]))


def _read_folder(paths: Mapping[str, Path], options: Options) -> Examples:
    path = paths[SPLITS[0]]
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        message = "this is a folder, but none of a Hugging Face dataset saved with save_to_disk"
        raise fault(str(path), f"{message}; name a file: {', '.join(_READERS)}")
    if importlib.util.find_spec("datasets") is None:
        needs = "a folder of a Hugging Face dataset needs the package datasets, which is not installed"
        raise fault(str(path), f'{needs}: run pip install "scalejax[datasets]"')
    import datasets  # pyright: ignore[reportMissingImports]  # an extra

    try:
        found = datasets.load_from_disk(str(path))
    except Exception as error:
        raise fault(str(path), f"the dataset cannot be read ({first_line(error)})") from None
    return from_hugging_face(found, options, str(path))


# The one table that a file's name needs: its ending -> reader.
_READERS: dict[str, _Reader] = {
    ".csv": read_tables,
    ".parquet": read_tables,
    ".npz": _read_archives,
    ".npy": _read_array,
}

_TABLE = "target", "columns", "categories", "group", "split", "validation_source", "test_source"
_MEANT = {  # ending -> the options that mean something to such a file
    ".csv": _TABLE,
    ".parquet": _TABLE,
    ".npz": ("group", "split", "validation_source", "test_source"),
    ".npy": ("targets",),
    "": ("target", "columns", "categories", "group", "split"),  # a folder
}


def is_path(text: str) -> bool:
    """Say whether a text is the path of a file or a folder, rather than the name of a source."""
    if not text or "\0" in text:
        return False
    named = Path(text).suffix.lower() in _READERS or "/" in text or "\\" in text
    return named or (is_there(Path(text)) and Path(text).is_dir())


def is_there(path: Path) -> bool:
    """Say whether there is such a file or folder; a name that is too long is that of none."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@dataclass(frozen=True)
class FromFile:
    """Data in a file, or in several for the splits; read when something is asked of them, and kept for the next time.

    They are those of `arrays` of the same content: where the file lies, and in which format, is part of no id.
    """

    name = InMemory.name
    path: str
    options: Options
    task: str | None = None

    def for_task(self, task: str | None) -> "FromFile":
        """Return the same data, their targets read as a task needs them."""
        return replace(self, task=task)

    def _held(self) -> InMemory:
        further = {"validation": self.options.validation_source, "test": self.options.test_source}
        paths = {SPLITS[0]: self.path, **{name: path for name, path in further.items() if path is not None}}
        if self.options.targets is not None:
            paths["targets"] = self.options.targets
        found = tuple(paths.items())
        return _read(found, _stamps(found), self.options, self.task)

    def facts(self) -> Facts:
        """Describe them."""
        return self._held().facts()

    def settled(self, seed: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes that are possible."""
        return self._held().settled(seed, sizes)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Divide them."""
        return self._held().splits(seed, sizes)

    def encoded(self, seed: int, sizes: Mapping[str, int]) -> Encoding:
        """Return what they were before they were read."""
        return self._held().encoded(seed, sizes)

    def notes(self, seed: int, sizes: Mapping[str, int], smallest: int) -> tuple[str, ...]:
        """Say what is to be known of them."""
        return self._held().notes(seed, sizes, smallest)


_KEYS = {"train": "source", "validation": "validation_source", "test": "test_source", "targets": "targets"}


@functools.lru_cache(maxsize=_KEPT)
def _read(paths: Paths, stamps: Stamps, options: Options, task: str | None) -> InMemory:
    """Read files that are in the state that the stamps say; they are part of what is remembered.

    Raises:
        SpecError: they cannot be read, or change meanwhile; or they hold no examples for the task.
    """
    named = {name: Path(path) for name, path in paths if name != "targets"}
    kinds = [path.suffix.lower() for path in named.values()]
    for (name, path), kind in zip(paths, kinds, strict=False):
        if kind != kinds[0]:
            raise fault(path, f"expected a {kinds[0]} file like {paths[0][1]}, found another kind", _KEYS[name])
    folder = named[SPLITS[0]].is_dir()
    try:
        examples = (_read_folder if folder else _READERS[kinds[0]])(named, options)
    finally:  # also where it could not be read, for that may be why
        if _stamps(paths) != stamps:
            raise fault(paths[0][1], "it changed while it was read; run again when it is written")
    return examples.decided(task, options)


def _stamps(paths: Paths) -> Stamps:
    """Return the state of files and of those in a folder.

    Raises:
        SpecError: one of them is not there or may not be read, or is neither a file nor a folder.
    """
    return tuple(stamp for name, path in paths for stamp in _stamps_of(Path(path), _KEYS[name]))


def _stamps_of(path: Path, key: str) -> Stamps:
    kind = path.suffix.lower()
    try:
        found = path.stat()
        is_folder, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
        inner = sorted(each for each in path.rglob("*") if each.is_file()) if is_folder and kind not in _READERS else []
        if is_file:  # a pipe would wait for a writer
            path.open("rb").close()
    except FileNotFoundError:
        raise fault(str(path), f"there is no such file{_similar(path)}", key) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or "not a valid file name"
        raise fault(str(path), f"cannot be read ({reason})", key) from None
    if is_folder and kind in _READERS:
        raise fault(str(path), f"this is a folder; expected a {kind} file", key)
    if not is_file and not is_folder:
        raise fault(str(path), "this is no regular file; copy the data into one", key)
    return (
        (str(path), found.st_size, found.st_mtime_ns),
        *(stamp for each in inner for stamp in _stamps_of(each, key)),
    )


def _similar(path: Path) -> str:
    """Name the file that was probably meant, or say where the path begins."""
    try:
        there = {each.stem: each for each in path.parent.iterdir() if each.suffix == path.suffix}
    except OSError:
        there = {}
    if close := difflib.get_close_matches(path.stem, there, n=1):
        return f"; did you mean {there[close[0]]}?"
    return "" if path.is_absolute() else f" in {Path.cwd()}, nor beside the sweep file"


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
        there = is_there(Path(value))
        if Path(value).suffix.lower() not in _READERS and not (there and Path(value).is_dir()):
            what = "expected another kind of file" if there else "there is no such folder"
            raise fault(value, f"{what}; files are {', '.join(_READERS)}")
        chosen, kind = Options(**dict(options or {})), Path(value).suffix.lower()
        chosen.only(
            *_MEANT[kind if kind in _READERS else ""], what=f"a {kind} file" if kind in _READERS else "a folder"
        )
        return FromFile(value, chosen, task)
    if isinstance(value, str):
        return as_source(_called(value), options, task=task)
    if isinstance(value, type):
        says = f"expected an object, found the class {value.__name__}; write {value.__name__}()"
        raise SpecError(says, table="data", keys=("source",))
    if isinstance(value, Source):
        for name in options or {}:
            raise SpecError(f"means nothing to {_place(value)}; drop this key", table="data", keys=(name,))
        return value
    chosen = Options(**dict(options or {}))
    return Given.of(_examples(value, chosen), chosen, task=task)


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
    return f"the {type(value).__name__}"


def _examples(value: Any, options: Options) -> Examples:
    """Read an object in Python."""
    place = _place(value)
    if isinstance(value, tuple) and len(value) == 2:
        return _pair(value[0], value[1], options, "(x, y)", names=("x", "y"))
    if is_hugging_face(value):
        return from_hugging_face(value, options, place)
    if isinstance(value, Mapping):
        names = next(
            (names for names in (("data", "target"), ("x", "y")) if all(name in value for name in names)), None
        )
        if names and _is_table(value[names[0]]):
            return _pair(value[names[0]], value[names[1]], options, place, names=names)
        options.only("group", "split", what=place)
        return from_mapping(value, options, place)
    if _is_table(value):
        return from_table(_table(value), options, place)
    if not isinstance(value, tuple) and hasattr(value, "to_pandas"):
        return from_table(value.to_pandas(), options, place)
    if hasattr(value, "dtype"):
        raise fault(place, "it holds no targets; give a pair, source=(x, y)")
    if is_sequence(value):
        return from_sequence(value, options, place)
    expected = "expected the name of a source, a file, (x, y), a table, a data set whose items are examples, "
    raise SpecError(
        f"{expected}or an object with the methods facts and splits, found {shown(value)}",
        table="data",
        keys=("source",),
    )


def _pair(x: Any, y: Any, options: Options, place: str, *, names: tuple[str, str]) -> Examples:
    if not _is_table(x):
        options.only(what=place)
        return from_arrays(x, y, place, names=names)
    import pandas as pd

    target = pd.Series(y.squeeze() if _is_table(y) else y)
    if len(target) != len(x):
        raise fault(place, f"expected one target for each of the {len(x):,} rows, found {len(target):,}")
    return from_table(x, options, place, target=target)


def _is_table(value: Any) -> bool:
    """Say whether an object is a table of pandas, without importing that."""
    return type(value).__module__.partition(".")[0] == "pandas" and hasattr(value, "columns")


def _table(value: Any) -> Any:
    return value.reset_index(drop=True)
