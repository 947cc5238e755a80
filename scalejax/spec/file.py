"""The sweep file: TOML read into a `Sweep`, with the line of every mistake, and a `Sweep` written back as TOML."""

import glob
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from scalejax.builders import load_object, qualified_name
from scalejax.data import SOURCES, Options, is_path, is_there
from scalejax.data.features import title, written
from scalejax.errors import SweepError
from scalejax.rules import SpecError, nearest, shown, shown_name
from scalejax.spec import DataSpec, FeaturesSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec
from scalejax.spec.sweep import UNTRAINED

_TABLES = {"data": DataSpec, "train": TrainSpec, "train.halving": HalvingSpec, "data.features": FeaturesSpec}
_KEYS = {
    "": tuple(field.name for field in fields(Sweep)),
    **{table: tuple(each.name for each in fields(spec) if each.name != "options") for table, spec in _TABLES.items()},
}
_OPTIONS = {name: tuple(each.name for each in fields(kind)) for name, kind in SOURCES.items()}  # by source
_FLAT = {  # options that may also stand beside the keys of [data]; those of files only there
    *(option for options in _OPTIONS.values() for option in options),
    *(each.name for each in fields(Options)),
}
_PATHS = "source", "targets", "validation_source", "test_source", "path"  # keys of [data] that may be files
_SINGLE = tuple(key for key in _KEYS[""] if key not in (*_TABLES, "models"))  # the keys outside any table
UNREADABLE = "# a Python object: this file cannot be read back"


@dataclass(frozen=True)
class _Source:
    """What a sweep is read from: the file's name as the user gave it, its text, and the overrides."""

    path: str
    text: str
    overrides: Mapping[str, Any]

    def error(self, fault: SpecError) -> SweepError:
        """Put the file and the line, or the override, before what is wrong."""
        prefix = (*filter(None, fault.table.split(".")), *([] if fault.index is None else [str(fault.index)]))
        paths = [(*prefix, key) for key in fault.keys] or [prefix]
        for dotted in self.overrides:  # of the key; of a key in it, where it is a table; or of the table around it
            inner = prefix == ("data",) and dotted.startswith("data.") and dotted.split(".")[-1] in fault.keys
            above = dotted == ".".join(prefix)
            if inner or above or any(f"{dotted}.".startswith(".".join((*path, ""))) for path in paths):
                return SweepError(f"--set {dotted}: {fault.says}")
        lines = _key_lines(self.text)
        # The first key that the file contains, perhaps in a table within its own; where a key is missing, its table.
        inner = [path for path in lines for key in fault.keys if path[: len(prefix)] == prefix and path[-1] == key]
        found = [lines[path] for path in (*paths, *inner) if path in lines]
        found += [lines[prefix[:length]] for length in range(len(prefix), 0, -1) if prefix[:length] in lines]
        line = f", line {found[0]}" if found else ""
        return SweepError(f"{self.path}{line}, {fault.place}: {fault.says}")


_PART = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]\]?\s*(?:#.*)?")
_KEY = re.compile(rf"\s*({_DOTTED})\s*=")


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Map the path of every table and key, such as ("models", "1", "width"), to its line, counted from 1.

    A scan, not a parser: tomllib keeps no lines. The text is already known to be valid TOML; what the scan takes
    wrongly for a key (a line of a nested array that reads `[1]`) costs at most a wrong line number.
    """
    lines: dict[tuple[str, ...], int] = {}
    counts: dict[str, int] = {}  # of [[tables]] so far
    table: tuple[str, ...] = ()
    inside = ""  # the quotes of the multi-line string that we are in
    for number, line in enumerate(text.split("\n"), start=1):
        if inside:
            inside = "" if line.count(inside) % 2 else inside
            continue
        inside = next((quotes for quotes in ('"""', "'''") if line.count(quotes) % 2), "")
        if header := _HEADER.fullmatch(line.rstrip("\r")):
            first, *rest = _parts(header[2])
            if header[1] == "[[" and not rest:
                counts[first] = counts.get(first, -1) + 1
                lines.setdefault((first,), number)
            table = (first, *([str(counts[first])] if first in counts else []), *rest)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            path = (*table, *_parts(key[1]))
            for length in range(len(table) + 1, min(len(path), 4) + 1):
                lines.setdefault(path[:length], number)
    return lines


def _parts(dotted: str) -> list[str]:
    return [part.strip("\"'") for part in re.findall(_PART, dotted)]


def load_sweep(
    path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    check: Callable[[Sweep], object] | None = None,
) -> Sweep:
    """Read a sweep file, with some of its keys replaced.

    Args:
        path: the TOML file, UTF-8.
        overrides: dotted key -> value, such as {"train.steps": 100, "models.0.width": [8], "seeds": 1}, as from
            `parse_override`; None takes the key out, so that {"train.steps": None, "train.epochs": 3} changes over.
        check: what else to hold the sweep against, such as the families and data sources that there are; a mistake
            that it raises is given its line.

    Raises:
        SweepError: one sentence with file and line, or `--set` and the key: no such file, not TOML, an unknown key, ...
    """
    overrides = dict(overrides or {})
    text = _read(path)
    source = _Source(_path_name(path), text, overrides)
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: TOMLDecodeError, or an integer of thousands of digits
        raise _not_toml(source.path, error) from None
    for dotted, value in overrides.items():
        _override(raw, dotted, value)
    try:
        sweep = _sweep(_beside(raw, Path(path).parent))
        if check is not None:
            check(sweep)
    except SpecError as fault:
        raise source.error(fault) from None
    return sweep


def data_key(path: Path, key: str) -> Any:
    """Return what a sweep's file says for a key of [data], unchecked; None where it or the file says nothing."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))["data"].get(key)
    except (OSError, ValueError, RecursionError, LookupError, AttributeError):
        return None


def sweep_name(path: Path) -> str:
    """Return the name that a sweep's file says, unchecked; nothing where it says none."""
    try:
        name = tomllib.loads(path.read_text(encoding="utf-8")).get("name")
    except (OSError, ValueError, RecursionError):
        return ""
    return name if isinstance(name, str) else ""


def _path_name(path: str | Path) -> str:
    """Write a path in full, as the user gave it; quoted if it would break the line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _read(path: str | Path) -> str:
    name = _path_name(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise SweepError(f"{name}: there is no such file; expected a sweep in TOML") from None
    except IsADirectoryError:
        raise SweepError(f"{name}: this is a folder; expected a sweep file in TOML") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or "not a valid file name"
        raise SweepError(f"{name}: cannot be read ({reason}); expected a sweep file in TOML") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SweepError(f"{name}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def _not_toml(path: str, error: ValueError | RecursionError) -> SweepError:
    if isinstance(error, RecursionError):
        return SweepError(f"{path}: not a sweep; its arrays or tables are nested too deeply")
    if not isinstance(error, tomllib.TOMLDecodeError):
        return SweepError(f"{path}: not valid TOML: a number has too many digits")
    reason = " ".join(str(error).split())
    if found := re.fullmatch(r"(.*) \(at line (\d+), column \d+\)", reason):
        return SweepError(f"{path}, line {found[2]}: not valid TOML: {found[1]}")
    return SweepError(f"{path}: not valid TOML: {reason}")


def _beside(raw: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Put the sweep file's folder before the data files that lie in it; others are those of the current folder."""
    data = raw.get("data")
    if not isinstance(data, Mapping):
        return raw

    def found(table: Mapping[str, Any]) -> dict[str, Any]:
        """Return a table that may name files; one of a source's options is a table in it."""
        changed: dict[str, Any] = {
            key: str(folder / value)
            for key in _PATHS
            if isinstance(value := table.get(key), str)
            and (key == "path" or (value not in SOURCES and is_path(value)))
            and is_there(folder / value)
        }
        inner = {key: found(value) for key, value in table.items() if key in SOURCES and isinstance(value, Mapping)}
        return {**table, **changed, **inner}

    return {**raw, "data": found(data)}


def _sweep(raw: Mapping[str, Any]) -> Sweep:
    """Make the sweep of a parsed file; raises `SpecError`."""
    for key, value in raw.items():
        _known(key, "")
        if key in _TABLES:
            _check_table(value, key)
        if key == "models" and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise SpecError(f"expected tables [[models]], found {_kind(value)}", keys=(key,))
    made = {key: _made(value, key) for key, value in raw.items()}
    if "models" in raw:
        made["models"] = [_model(table, index) for index, table in enumerate(raw["models"])]
    return Sweep(**made)


def _check_table(value: object, table: str) -> None:
    """Raise unless a value of the file is this table, with keys that it and the tables in it have."""
    *parents, name = table.split(".")
    if not isinstance(value, Mapping):
        says = f"expected one table [{table}], found {_kind(value)}"
        raise SpecError(says, table=".".join(parents), keys=(name,))
    for key, inner in value.items():
        if table == "data" and isinstance(inner, Mapping) and key in SOURCES:
            if inner and key != value.get("source"):
                says = f"the source is {shown(value.get('source'))}; drop this table, or change the source to {key}"
                raise SpecError(says, table=table, keys=(str(key),))
            continue
        _known(str(key), table)
        if f"{table}.{key}" in _TABLES:
            _check_table(inner, f"{table}.{key}")


def _made(value: Any, path: str) -> Any:
    """Make the spec of a checked table, and of the tables in it; any other value is returned as it is."""
    if path not in _TABLES:
        return value
    if path == "data":  # the options of a source are in a table of its name, or beside the keys of all sources
        if not isinstance(value.get("source", ""), str):
            says = f"expected the name of a source or the path of a file, found {shown(value['source'])}"
            raise SpecError(says, table="data", keys=("source",))
        options = {key: inner for key, inner in value.items() if key not in _KEYS[path]}
        own = options.get(value.get("source"), {})
        options = {key: inner for key, inner in options.items() if key not in SOURCES}
        for name in own.keys() & options.keys():
            says = f"given twice, here and in [data.{value['source']}]; drop one of them"
            raise SpecError(says, table="data", keys=(name,))
        options |= own
        own = {key: _made(inner, f"{path}.{key}") for key, inner in value.items() if key in _KEYS[path]}
        return DataSpec(**own, options=options)
    return _TABLES[path](**{key: _made(inner, f"{path}.{key}") for key, inner in value.items()})


def _kind(value: object) -> str:
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "a list of tables"
    return "a single table" if isinstance(value, Mapping) else shown(value)


def _known(key: str, table: str) -> None:
    """Raise if a table of the file has no such key; knows the keys of the other tables, where it may belong."""
    if key in _KEYS[table] or (table == "data" and key in _FLAT):
        return
    homes = [other for other in _KEYS if other != table and key in _KEYS[other]]
    if homes and key not in (*_TABLES, "models"):
        hint = f"it belongs into [{homes[0]}]" if homes[0] else "it belongs above the first table of the file"
        if f"{homes[0]}.{key}" in _TABLES:
            hint = f"did you mean [{homes[0]}.{key}]?"
    else:
        hint = nearest(key, _KEYS[table])
    raise SpecError(f"unknown key; {hint}", table=table, keys=(key,))


def _model(table: Mapping[str, Any], index: int) -> ModelGrid:
    knobs = dict(table)
    try:
        if "family" not in knobs:
            raise SpecError("needed but missing; expected the name of a family", keys=("family",))
        return ModelGrid(knobs.pop("family"), knobs)
    except SpecError as fault:
        raise SpecError(fault.says, table="models", keys=fault.keys, index=index) from None


def parse_override(text: str) -> tuple[str, Any]:
    """Split "train.steps=100" into its dotted key and its TOML value, as `load_sweep` takes them.

    A bare word is a text ("train.schedule=constant"); nothing at all is None, which takes the key out of the file.
    Raises `SweepError` where there is no "=" or the value is not TOML.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise SweepError(f"--set {shown_name(text)}: expected KEY=VALUE, for instance train.steps=100")
    if not value:
        return key, None
    try:
        parsed = tomllib.loads(f"value = {value}")
        if parsed.keys() == {"value"}:  # a value with line breaks could bring further keys
            return key, parsed["value"]
    except (ValueError, RecursionError):
        if value.isprintable() and re.fullmatch(r"""[^\s"'\[\]{}#,=]+""", value):
            return key, value
    says = f"expected a TOML value, found {shown(value)}; a text with spaces or brackets needs quotes"
    raise SweepError(f"--set {shown_name(key)}: {says}")


def _override(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Put one value into the parsed file, or take it out if it is None; raises `SweepError` for an unknown key."""
    home, key = _home(raw, dotted, make=value is not None)
    if dotted.startswith("data.") and key in _FLAT:  # wherever the file has this option of a source
        for table in (raw["data"], *(inner for inner in raw["data"].values() if isinstance(inner, dict))):
            table.pop(key, None)
    if value is None:
        home.pop(key, None)
    else:
        home[key] = value


def _home(raw: dict[str, Any], dotted: str, *, make: bool) -> tuple[dict[str, Any], str]:
    """Find the table that a dotted key is about, which is made if `make` says so, and the key's name in it."""

    def error(says: str) -> SweepError:
        return SweepError(f"--set {shown_name(dotted)}: {says}")

    match dotted.split("."):
        case [key] if key in _SINGLE:
            return raw, key
        case [table] if table in _KEYS[""]:
            example = "models.0.width" if table == "models" else f"{table}.{_KEYS[table][0]}"
            raise error(f"{table} is a table; expected one of its keys, for instance {example}")
        case ["data", source] if source in SOURCES and isinstance(raw.get("data", {}), dict):
            return raw.setdefault("data", {}), source
        case [*tables, key] if (table := ".".join(tables)) in _TABLES:
            if key not in _KEYS[table] and not (table == "data" and key in _FLAT):
                raise error(f"unknown key; {nearest(key, _KEYS[table])}")
            home = raw
            for depth, name in enumerate(tables, start=1):
                home = home.setdefault(name, {}) if make else home.get(name, {})
                if not isinstance(home, dict):
                    place = ".".join(tables[:depth])
                    raise error(f"expected the file to have one table [{place}], found {_kind(home)}")
            return home, key
        case ["data", source, key] if key in _OPTIONS.get(source, ()):
            home = raw
            for name in ("data", source):
                home = home.setdefault(name, {})
                if not isinstance(home, dict):
                    raise error(f"expected the file to have one table [{name}], found {_kind(home)}")
            return home, key
        case ["models", index, key] if key:
            models = raw.get("models")
            models = [item for item in models if isinstance(item, dict)] if isinstance(models, list) else []
            if not re.fullmatch("[0-9]{1,9}", index) or int(index) >= len(models):
                raise error(f"the file has {len(models)} [[models]], counted from 0, found index {shown_name(index)}")
            return models[int(index)], key
        case ["data", source, key] if source in SOURCES:
            raise error(
                f"unknown option of {source}; {nearest(key, _OPTIONS[source]) if _OPTIONS[source] else 'it has none'}"
            )
    raise error(f"unknown key; {_meant(dotted)}")


def _meant(dotted: str) -> str:
    """Say which dotted key was probably meant: the same name in another table, or a similar one."""
    known = [*_SINGLE, *(f"{table}.{key}" for table in _TABLES for key in _KEYS[table])]
    same = [name for name in known if name.rsplit(".", 1)[-1] == dotted.rsplit(".", 1)[-1]]
    hint = f"did you mean {same[0]}?" if same else nearest(dotted, known)
    # All the keys would be a long list.
    return (
        hint if hint.startswith("did") else f"expected {', '.join(_SINGLE)}, data.KEY, train.KEY or models.INDEX.KNOB"
    )


def sweep_to_toml(sweep: Sweep) -> str:
    """Write a sweep as TOML that `load_sweep` reads back as an equal one, every default spelled out.

    A builder or a function of the user's own is written as "package.module:name", which `load_sweep` finds again in the
    folder of that package. Where that name leads elsewhere, as that of a lambda does, it is for the record only, which
    a comment beside it says.
    """
    lines = [f"{name} = {_toml(getattr(sweep, name))}" for name in ("name", "seeds", "packing", "keep_weights")]
    for name in ("task", "metric"):
        if getattr(sweep, name) is not None:
            lines.append(f"{name} = {_object(getattr(sweep, name))}")
    lines += _table("data", sweep.data)
    for grid in sweep.models:
        lines += ["", "[[models]]", f"family = {_object(grid.family)}"]
        lines += [f"{_toml_key(name)} = {_toml(values)}" for name, values in grid.knobs.items()]
        if grid.features is not None:
            lines.append(f"features = {_toml(tuple(title([*map(written, steps)]) for steps in grid.features))}")
    train = [] if sweep.train == UNTRAINED else _table("train", sweep.train)
    return "\n".join([*lines, *train, ""])


def located(sweep: Sweep) -> Sweep:
    """Return the same sweep with its data files named from the root, so that it can be read in any folder."""
    data = sweep.data
    options = {key: _absolute(value) if key in _PATHS else value for key, value in data.options.items()}
    is_file = isinstance(data.source, str) and data.source not in SOURCES and is_path(data.source)
    source = _absolute(data.source) if is_file else data.source
    return replace(sweep, data=replace(data, source=source, options=options))


def _absolute(path: str) -> str:
    # Of a pattern only what the user wrote is one: the folder that it is in may be called "runs [old]".
    folder = glob.escape(str(Path.cwd())) if glob.has_magic(path) and not is_there(Path(path)) else ""
    found = os.path.abspath(os.path.join(folder, path))  # noqa: PTH100, PTH118  # without the ".." of Path.absolute
    return found if found.isprintable() else path  # as every text of a sweep must be


def _table(table: str, spec: DataSpec | TrainSpec | HalvingSpec | FeaturesSpec) -> list[str]:
    values = {field.name: getattr(spec, field.name) for field in fields(spec) if field.name != "options"}
    if isinstance(spec, FeaturesSpec):
        values["steps"] = tuple(map(written, spec.steps))
    inner = {name: value for name, value in values.items() if isinstance(value, HalvingSpec | FeaturesSpec)}
    own = {name: value for name, value in values.items() if value is not None and name not in inner}
    lines = ["", f"[{table}]", *(f"{name} = {_object(value)}" for name, value in own.items())]
    if isinstance(spec, DataSpec) and spec.options:
        lines += ["", f"[data.{spec.source}]"] if spec.source in SOURCES else []
        lines += [f"{name} = {_toml(value)}" for name, value in spec.options.items()]
    for name, value in inner.items():  # last: what follows the header of an inner table is a key of that
        lines += _table(f"{table}.{name}", value)
    return lines


def _object(value: Any) -> str:
    """Write a value; an object of the user's own by its name, and whether that leads back to it."""
    if isinstance(value, str | bool | int | float | tuple):
        return _toml(value)
    name = qualified_name(value)
    return _toml(name) if _leads_to(name, value) else f"{_toml(name)}  {UNREADABLE}"


def _leads_to(name: str, value: object) -> bool:
    if name.startswith("__main__:"):  # another process has another one
        return False
    try:
        return load_object(name) is value
    except SweepError:
        return False


def _toml_key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):  # printable, as every text of a sweep; so these two are all there is to escape
        return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
    return repr(value)  # Python writes finite numbers as TOML does
