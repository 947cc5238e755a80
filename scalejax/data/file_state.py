"""The state of files: which there are, and whether one may have changed since it was read."""

import difflib
import glob
import os
import stat
from pathlib import Path
from typing import NamedTuple

from scalejax.data.examples import fault


class Stamp(NamedTuple):
    """The state of a file or a folder; another one where the content may be another."""

    path: str
    size: int  # bytes
    changed: int  # nanoseconds


def stamp(path: str | Path, key: str, *, kind: str = "file") -> Stamp:
    """Return the state of a file that can be read.

    Args:
        path: where it lies.
        key: of the table [data] that names it.
        kind: what is expected there, for the sentence.

    Raises:
        SpecError: it is not there or may not be read, or is no regular file.
    """
    found = _status(path, key)
    if stat.S_ISDIR(found.st_mode):
        raise fault(str(path), f"this is a folder; expected a {kind}", key)
    if not stat.S_ISREG(found.st_mode):  # a pipe would wait for a writer
        raise fault(str(path), "this is no regular file; copy the data into one", key)
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise _unreadable(path, error, key) from None
    return Stamp(str(path), found.st_size, found.st_mtime_ns)


def stamps(path: Path, key: str) -> tuple[Stamp, ...]:
    """Return the state of a file, or of a folder and all files in it; raises as `stamp` does."""
    found = _status(path, key)
    if not stat.S_ISDIR(found.st_mode):
        return (stamp(path, key),)
    inner = sorted(each for each in path.rglob("*") if each.is_file())
    return (Stamp(str(path), found.st_size, found.st_mtime_ns), *(stamp(each, key) for each in inner))


def found_files(path: str, key: str) -> list[str]:
    """Return the files that a path names, sorted: one, those of a glob, or all in a folder but hidden ones.

    Raises:
        SpecError: there are none.
    """
    place = Path(path)
    try:
        if place.is_dir():
            below = [(each, each.relative_to(place).parts) for each in place.rglob("*")]
            files = [each for each, parts in below if not any(part.startswith(".") for part in parts)]
        elif glob.has_magic(path) and not place.exists():
            files = [Path(each) for each in glob.glob(path, recursive=True)]  # noqa: PTH207
        else:
            return [path]
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, key) from None
    if not (found := sorted(str(each) for each in files if each.is_file())):
        raise fault(path, "there are no files; correct the path", key)
    return found


def _status(path: str | Path, key: str) -> os.stat_result:
    try:
        return Path(path).stat()
    except FileNotFoundError:
        raise fault(str(path), f"there is no such file{_similar(Path(path))}", key) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, key) from None


def _unreadable(path: str | Path, error: Exception, key: str) -> Exception:
    reason = getattr(error, "strerror", None) or "not a valid file name"  # ValueError: a null byte in the name
    return fault(str(path), f"cannot be read ({reason})", key)


def _similar(path: Path) -> str:
    """Name the file that was probably meant, or say where the path begins."""
    try:
        there = {each.stem: each for each in path.parent.iterdir() if each.suffix == path.suffix}
    except OSError:
        there = {}
    if close := difflib.get_close_matches(path.stem, there, n=1):
        return f"; did you mean {there[close[0]]}?"
    return "" if path.is_absolute() else f" in {Path.cwd()}, nor beside the sweep file"
