"""Mutate sweep files and run directories, and see that each ends in order: no traceback, no hang, no lost row.

    python tests/fuzz.py --sweeps 500 --directories 200      # the long form, some twenty minutes on one core

Hypothesis draws the mutations, the same ones each time; `--seed` draws others. A sweep file is edited as a tree (values
replaced, keys dropped, doubled, misspelt, moved) and as bytes, and goes through `plan`. A run directory, finished or
interrupted, has its files cut, flipped, removed or replaced by something else, and goes through `status`, `export` and
`run`. All that goes wrong is printed with what it takes to see it again.
"""

import contextlib
import copy
import datetime
import faulthandler
import io
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import tempfile
import tomllib
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":  # before anything imports JAX: a cache of its own
    os.environ.setdefault("SCALEJAX_CACHE", tempfile.mkdtemp(prefix="scalejax-fuzz-"))

from hypothesis import strategies as st

from scalejax.cli import main as scalejax
from scalejax.run_watch import Accountant
from scalejax.store import Heartbeat, Store

SWEEPS = Path(__file__).parent.parent / "sweeps"
SECONDS = 20.0  # after which a refusal, a status or an export counts as a hang
LONG_SECONDS = 180.0  # and a plan or a run that does something; programs are compiled for it
MEMORY = 6e9  # bytes beyond which a case counts as blown up

SMALL = """\
name = "small"
seeds = 2
[data]
source = "mnist1d"
examples = 200
train_examples = [20, 100]
validation_examples = 50
test_examples = 100
[[models]]
family = "logistic"
[[models]]
family = "mlp"
width = [4, 8]
depth = 1
[train]
learning_rate = [1e-2, 3e-2]
batch_size = 16
steps = 24
evaluate_every = 2
"""


class Hang(BaseException):  # not an error of ours: no `except Exception` may swallow it
    """A case that takes too long."""


@dataclass
class Ran:
    """What a command returned and printed, and what warnings it gave."""

    code: int | str | None
    out: str
    err: str
    warned: list[str]

    @property
    def fault(self) -> str:
        """What is wrong with how it ended, empty if it ended in order."""
        if self.code not in (0, 1, 2):
            return f"exit code {self.code}"
        noise = [word for word in ("Traceback", "Exception in thread", "Error:") if word in self.err]
        if noise:
            return f"{noise[0]} on standard error"
        said = [line for line in self.err.splitlines() if line.startswith("scalejax")]
        if self.code == 2 and (len(said) != 1 or said[0] != self.err.rstrip("\n") or len(said[0]) > 1000):
            return "not one sentence on standard error"
        return next((f"warns {each}" for each in self.warned if not each.startswith("UserWarning")), "")


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `Hang` after so many seconds; where even that is not heard, end the process with its stacks."""

    def ring(*_: object) -> None:
        raise Hang(f"no end after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + 300, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def call(*arguments: object, seconds: float = SECONDS) -> Ran:
    """Run a command in this process; what escapes it is a fault."""
    out, err, code = io.StringIO(), io.StringIO(), None
    warned: list[warnings.WarningMessage] = []
    handler = logging.StreamHandler(err)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("Error: logged by %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            limited(seconds),
        ):
            warned = caught
            warnings.simplefilter("always")
            code = scalejax([str(each) for each in arguments])
    except SystemExit as leaving:
        code = leaving.code
    except Hang as hang:
        where = traceback.extract_tb(hang.__traceback__)[-3:]
        return Ran(f"{hang} in {[f'{Path(each.filename).name}:{each.lineno}' for each in where]}", "", "", [])
    except BaseException:
        err.write(traceback.format_exc())
        code = "an exception"
    finally:
        logging.getLogger().removeHandler(handler)
    messages = [f"{each.category.__name__}: {each.message}" for each in warned]
    return Ran(code, out.getvalue(), err.getvalue(), messages)


# Sweep files


@dataclass(frozen=True)
class Raw:
    """TOML that is written as it is."""

    text: str


WEIRD: Sequence[Any] = (
    *(0, -1, 1, 2, 3, 7, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**9, 10**13, 10**30, Raw("1" + "0" * 5000)),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 5e-324, 1e30, 1e300, 1.7e308, float("inf"), float("-inf"), float("nan")),
    *(True, False, "", " ", "x", "1", "nan", "mlp", "logistic", "digits", "land", "mnist1d", "sgd", "constant", "a:b"),
    *("\x00", "\n", "\u202e", "\U0001f4a5", "x" * 100_000, "../../x", "..", ".", "/", "-", "con", "a" * 101),
    *([], [1], [[1]], [[]], [0], [1, 1], [1, 1.0], [True, 1], [1, "1"], [0.1, 0.9], [0.9, 0.1], [[[[1]]]]),
    *([float("nan")], {}, {"a": 1}, {"rungs": 0.5}, {"rungs": [0.1, 0.3]}, {"rungs": []}, {"rungs": {"rungs": 0.5}}),
    *(Raw("1979-05-27"), Raw("07:32:00"), Raw("1979-05-27T07:32:00Z"), Raw("0xff"), Raw("1_000"), Raw("'''\nx\n'''")),
    *(list(range(1, 4001)), list(range(1, 60_001)), [each / 70_000 for each in range(1, 60_001)], Raw("[" * 2000)),
    *(Raw("[" * 200 + "1" + "]" * 200), Raw("{a=" * 3000), Raw("+"), Raw(""), Raw("1e"), Raw("nan.inf")),
)  # fmt: skip
KEYS = (
    *("name", "seeds", "seed", "source", "train_examples", "fractions", "examples", "validation_examples", "family"),
    *("test_examples", "fourier_features", "fourier_scale", "width", "depth", "learning_rate", "batch_size", "steps"),
    *("optimizer", "weight_decay", "schedule", "warmup_fraction", "clip_norm", "epochs", "min_steps", "max_steps"),
    *("evaluate_every", "patience", "halving", "rungs", "reduction", "models", "data", "train", "rngs", "inputs"),
    *("", "a.b", "a b", "\n", "x" * 300, "\U0001f4a5", "__class__", "status", "trial_id", "self", "kernel"),
)
FRAGMENTS = (
    *(b"\xef\xbb\xbf", b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"[", b"]", b"[[", b'"', b"'''", b"=", b"\n", b"#"),
    *(b"\n[train]\n", b"\n[[models]]\n", b"\n[models]\n", b"\n[data.data]\n", b"\nseeds = 3\n", b"[" * 5000),
    *(b"#" + b"x" * 300_000 + b"\n", b"a = 1\n" * 3000, b"\n" * 10_000, b"\\u0000", b"\\ud800", b"_", b"9" * 400),
)  # fmt: skip


def written(tree: Mapping[str, Any]) -> str:
    """Write a tree as TOML, tables last."""
    plain = {key: value for key, value in tree.items() if not _is_table(value)}
    lines = [_pair(key, value) for key, value in plain.items()]
    for name, value in tree.items():
        if isinstance(value, list) and _is_table(value):
            for table in value:
                lines += [f"[[{_key(name)}]]", *(_pair(key, inner) for key, inner in table.items())]
        elif isinstance(value, dict):
            lines += [f"[{_key(name)}]", *(_pair(key, inner) for key, inner in value.items())]
    return "\n".join([*lines, ""])


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (
        isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)
    )


def _pair(key: str, value: object) -> str:
    if isinstance(value, Twice):
        return f"{_pair(key, value.value)}\n{_pair(key, value.value)}"
    return f"{_key(key)} = {_toml(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else json.dumps(name)


def _toml(value: object) -> str:
    match value:
        case Raw(text):
            return text
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=True)
        case dict():
            return "{" + ", ".join(f"{_key(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(_toml, value)) + "]"
        case datetime.date() | datetime.time():
            return value.isoformat()
    return repr(value)


@dataclass(frozen=True)
class Twice:
    """A value whose key is written twice."""

    value: Any


# Edits of the tree, of its bytes, and overrides.
HOW_MANY = ((1, 0, 0), (1, 0, 0), (1, 0, 0), (1, 0, 0), (2, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1), (1, 0, 2))

Place = tuple[Any, Any]  # a table or a list, and a key or an index in it


def places(tree: Any) -> list[Place]:
    """Return every place of a tree, the tables' own included."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in pairs for place in ((tree, key), *places(value)[:50])]


def bases() -> list[dict[str, Any]]:
    """Return the sweeps that are mutated, as trees; a small one most of the time."""
    texts = [SMALL] * 3 + [path.read_text() for path in sorted(SWEEPS.glob("*.toml"))]
    return [tomllib.loads(text) for text in texts]


@dataclass(frozen=True)
class Case:
    """A mutated sweep file, and how it is planned."""

    content: bytes
    arguments: tuple[str, ...]

    def __repr__(self) -> str:
        content = self.content if len(self.content) < 3000 else self.content[:1500] + b" ... " + self.content[-1500:]
        return f"{content!r} {[each[:300] for each in self.arguments]}"


@st.composite
def sweep_files(draw: st.DrawFn) -> Case:
    """Draw a mutated sweep file, and perhaps overrides, that are mutated likewise."""
    tree = json.loads(json.dumps(draw(st.sampled_from(bases()))))
    edits, spoils, overrides = draw(st.sampled_from(HOW_MANY))
    for _ in range(edits):
        edit(tree, draw)
    content = written(tree).encode("utf-8", "surrogatepass")
    for _ in range(spoils):
        content = spoil(content, draw)
    arguments: list[str] = []
    for _ in range(overrides):
        arguments += ["--set", override(draw)]
    if draw(st.booleans()):
        arguments += ["--device-kind", draw(st.sampled_from(["h200", "t4", "v5e"]))]
    if not draw(st.integers(0, 7)):
        arguments += [
            "--devices",
            draw(st.sampled_from(["1", "64", "100000", "2147483647", "1" + "0" * 400, "9" * 5000])),
        ]
    return Case(content, tuple(arguments))


def edit(tree: dict[str, Any], draw: st.DrawFn) -> None:
    """Change one thing in a tree."""
    spots = places(tree)
    if not spots:
        return
    spot: tuple[Any, Any] = draw(st.sampled_from(spots))
    home, key = spot
    kind = draw(st.sampled_from(["replace"] * 8 + ["drop", "twice", "misspell", "move", "add", "repeat", "wrap"]))
    if kind in ("misspell", "move", "add", "twice") and not hasattr(home, "keys"):
        kind = "replace"
    value = home[key]
    name = str(key)
    match kind:
        case "replace":
            home[key] = copy.deepcopy(draw(st.sampled_from(WEIRD)))
        case "drop":
            del home[key]
        case "twice":
            home[key] = Twice(value)
        case "misspell":
            home[draw(st.sampled_from([name[1:], name + "s", name.upper(), name[::-1], *KEYS]))] = home.pop(key)
        case "move":
            tables = [each for each in (tree, *(place[0][place[1]] for place in spots)) if isinstance(each, dict)]
            draw(st.sampled_from(tables))[name] = home.pop(key) if not isinstance(value, dict) else 1
        case "add":
            home[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(WEIRD)))
        case "repeat":
            home[key] = [value, value] if not isinstance(value, list) else value * 2
        case "wrap":
            home[key] = [value] if draw(st.booleans()) else {"a": value}


def spoil(content: bytes, draw: st.DrawFn) -> bytes:
    """Change some bytes."""
    place = draw(st.integers(0, max(0, min(len(content), 2000) - 1)))
    match draw(st.sampled_from(["flip", "cut", "insert", "drop", "double", "encode"])):
        case "flip":
            flipped = content[place] ^ draw(st.integers(1, 255)) if content else 0
            return content[:place] + bytes([flipped]) + content[place + 1 :]
        case "cut":
            return content[:place]
        case "insert":
            return content[:place] + draw(st.sampled_from(FRAGMENTS)) + content[place:]
        case "drop":
            return content[:place] + content[place + draw(st.integers(1, 40)) :]
        case "double":
            return content + content
    encoding = draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32"]))
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def override(draw: st.DrawFn) -> str:
    """Return an argument of `--set`."""
    if not draw(st.integers(0, 5)):
        return draw(st.text(max_size=30).filter(lambda text: "\x00" not in text))
    tables = [
        "",
        "data.",
        "train.",
        "models.0.",
        "models.1.",
        "models.99.",
        "train.halving.",
        "models.",
        "models.-1.",
        ".",
    ]
    value = draw(st.sampled_from([each for each in WEIRD if not (isinstance(each, list) and len(each) > 5000)]))
    text = _toml(value).replace("\x00", "")
    return f"{draw(st.sampled_from(tables))}{draw(st.sampled_from(KEYS))}={text}"[:100_000]


def peak() -> float:
    """Return the bytes of memory of this process now."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def try_sweep(case: Case, folder: Path) -> tuple[Ran, str]:
    """Plan a mutated sweep; return how it ended and what is wrong with that, empty if nothing is."""
    path = folder / "mutated.toml"
    path.write_bytes(case.content)
    before = peak()
    ran = call("plan", path, *case.arguments, seconds=LONG_SECONDS)
    fault = ran.fault
    if not fault and ran.code == 1:
        fault = "exit code 1 from a plan"
    if not fault and peak() - before > MEMORY:
        fault = f"took {peak() - before:.0f} bytes"
    return ran, fault


# Run directories

LEDGER = "results.sqlite"
JUNK = (
    *(b"", b"\x00" * 5000, b"mine " * 1000, b"[]", b"null", b"{}", b'{"modes": []}', b'{"modes": {"a": ["vmap"]}}'),
    *(b'{"modes": 3}', b"[" * 100_000, b"NaN", b"\xff\xfe", b"SQLite format 3\x00", b"1" * 10_000, b"SQLite format 3"),
)
STATEMENTS = (
    *("PRAGMA user_version = 99", "PRAGMA user_version = 0", "PRAGMA user_version = -1", "PRAGMA user_version = 2"),
    *("DROP TABLE measurements", "DROP TABLE heartbeat", "ALTER TABLE trials RENAME COLUMN reason TO reasons"),
    *("UPDATE trials SET steps_taken = 'x'", "UPDATE trials SET knobs = '{'", "UPDATE trials SET knobs = '[1]'"),
    *("UPDATE trials SET learning_rate = 'abc'", "UPDATE trials SET params = 'many'"),
    *("UPDATE trials SET validation_loss = NULL", "UPDATE trials SET test_error = 9e999"),
    *("UPDATE trials SET position = 'x'", "UPDATE trials SET position = 0", "UPDATE trials SET reason = x'ff00'"),
    *("UPDATE trials SET knobs = '{\"status\": 1}'", "UPDATE trials SET trial_id = trial_id || 'x'"),
    *("UPDATE trials SET train_examples = 0", "UPDATE trials SET family = ''", "DELETE FROM trials"),
    *("UPDATE trials SET best_step = 1.5", "UPDATE trials SET seconds = 'x'", "UPDATE trials SET status = 'running'"),
    *("UPDATE measurements SET validation_loss = 'x'", "UPDATE measurements SET step = step + 0.5", "VACUUM"),
    *("INSERT INTO heartbeat VALUES (1, 'x', 2, 'y', 'z', NULL)", "UPDATE trials SET steps = x'00'"),
    *("INSERT INTO heartbeat VALUES (1, -1, 'h', 0, 9e99, 1e300)", "UPDATE trials SET train_examples = 'few'"),
    *("INSERT INTO heartbeat VALUES (1, 99999999999999, 'h', -1e300, 1e300, 0)", "CREATE TABLE mine (a)"),
)  # fmt: skip
ACTIONS = ("cut", "flip", "empty", "remove", "junk", "folder", "loop", "pipe", "append", "blank", "swap")
PLACES = ("ledger", "ledger", "environment.json", "sweep.toml", "checkpoints", "checkpoints", "figures", "new")
NEW = (
    *(".lock", ".sweep.toml.partial", ".environment.json.partial", "checkpoints", "checkpoints/x", "checkpoints/1-x"),
    *("checkpoints/99999999999999999999-y/1", "checkpoints/0001-001-abc/9/sha256", "figures", "figures/x", "mine"),
    *("figures/learning_curves.png", "results.sqlite-journal", "results.sqlite-wal", "results.sqlite-shm"),
)


@dataclass(frozen=True)
class Mutation:
    """What is done to one file or folder of a run directory; `draws` choose among them and where in it."""

    place: str
    action: str
    draws: tuple[int, ...]

    @property
    def of_the_ledger(self) -> bool:
        """Whether the results themselves are touched."""
        return self.place == "ledger" or (self.place == "new" and NEW[self.draws[0] % len(NEW)].startswith(LEDGER))

    def apply(self, directory: Path) -> None:
        """Carry it out."""
        if self.place == "ledger" and self.draws[0] % 3 == 0:
            with contextlib.suppress(sqlite3.DatabaseError, OSError):
                connection = sqlite3.connect(directory / LEDGER)
                with contextlib.closing(connection), connection:
                    connection.execute(STATEMENTS[self.draws[1] % len(STATEMENTS)])
            return
        path = self._path(directory)
        if path is None:
            return
        content = path.read_bytes() if path.is_file() else b""
        at = self.draws[1] % max(1, len(content))
        match self.action:
            case "cut":
                _put(path, content[:at])
            case "flip":
                flipped = bytearray(content)
                for draw in self.draws[1:] if content else ():
                    flipped[draw % len(content)] ^= 1 + draw % 255
                _put(path, bytes(flipped))
            case "empty":
                _put(path, b"")
            case "remove":
                _clear(path)
            case "junk":
                _put(path, JUNK[at % len(JUNK)])
            case "append":
                _put(path, content + JUNK[at % len(JUNK)])
            case "blank":
                _put(path, content[:at] + b"\x00" * len(content[at : at + 512]) + content[at + 512 :])
            case "swap":
                others = [each for each in sorted(directory.rglob("*")) if each.is_file()]
                _put(path, others[at % len(others)].read_bytes() if others else b"")
            case _:
                _clear(path)
                path.parent.mkdir(parents=True, exist_ok=True)
                {"folder": Path.mkdir, "loop": lambda it: it.symlink_to(it), "pipe": os.mkfifo}[self.action](path)

    def _path(self, directory: Path) -> Path | None:
        """Return the file or the folder that is meant."""
        number = self.draws[0] // 3
        if self.place == "new":
            return directory / NEW[self.draws[0] % len(NEW)]
        if self.place == "ledger":
            found = [each for each in sorted(directory.iterdir()) if each.name.startswith(LEDGER)]
        elif "." in self.place:
            return directory / self.place
        else:
            found = [directory / self.place, *sorted((directory / self.place).rglob("*"))]
        return found[number % len(found)] if found else None


def _clear(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _put(path: Path, content: bytes) -> None:
    for parent in reversed(path.parents):
        if os.path.lexists(parent) and not parent.is_dir():
            return  # an earlier mutation has put something else there
    _clear(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def mutations() -> st.SearchStrategy[tuple[str, list[Mutation]]]:
    """Return a strategy for a kind of directory and what is done to it."""
    draws = st.lists(st.integers(0, 2**31), min_size=2, max_size=6).map(tuple)
    one = st.builds(Mutation, st.sampled_from(PLACES), st.sampled_from(ACTIONS), draws)
    kinds = st.sampled_from(("finished", "interrupted", "interrupted", "killed"))
    return st.tuples(kinds, st.lists(one, min_size=1, max_size=3))


class Directories:
    """Directories to mutate, each made once: of a run that ended, that was interrupted, and that was killed."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.sweep = folder / "small.toml"
        self.sweep.write_text(SMALL)
        self.expected = self._train("finished", stop_after=None)
        self._train("interrupted", stop_after=18)
        killed = shutil.copytree(folder / "interrupted", folder / "open")
        with Store(killed / LEDGER, write=True) as store:  # as a kill leaves it: what is new is in the journal alone
            results = store.results()
            store.start(results.loc[results["status"] == "pending", "trial_id"].tolist()[:3])
            store.beat(Heartbeat(2**22 + 1, socket.gethostname(), 1.0, 2.0, 3.0), {})
            shutil.copytree(killed, folder / "killed")
        assert (folder / "killed" / f"{LEDGER}-wal").stat().st_size
        assert list((folder / "killed" / "checkpoints").glob("*/*/sha256"))

    def _train(self, name: str, *, stop_after: int | None) -> dict[str, tuple]:
        calls = itertools.count(1)
        show = Accountant.show

        def counting(accountant: Accountant, *rest: Any) -> None:
            show(accountant, *rest)
            if next(calls) == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

        directory = self.folder / name
        with mock.patch.object(Accountant, "show", counting):
            ran = call("run", self.sweep, "--out", directory, "--checkpoint-seconds", 0, seconds=LONG_SECONDS)
        assert ran.code == (0 if stop_after is None else 130), ran
        rows = final_rows(directory)
        assert (len(rows) == 24) == (stop_after is None), "the directory is not what it should be"
        return rows


def final_rows(directory: Path) -> dict[str, tuple]:
    """Return what can be read of the trials that have ended and their measurements, by id; looks at a copy."""
    rows: dict[str, tuple] = {}
    with tempfile.TemporaryDirectory() as folder:
        for suffix in ("", "-wal", "-shm"):
            path = directory / f"{LEDGER}{suffix}"
            if path.is_file():
                shutil.copy(path, folder)
        with contextlib.suppress(sqlite3.Error, OSError):
            connection = sqlite3.connect(Path(folder) / LEDGER)
            connection.text_factory = bytes
            with contextlib.closing(connection):
                query = "SELECT trial_id, * FROM trials WHERE status IN ('done', 'diverged')"
                for trial_id, *row in connection.execute(query):
                    rows[trial_id] = tuple(each for number, each in enumerate(row) if number not in (1, 6))
                for trial_id in rows:
                    query = "SELECT * FROM measurements WHERE trial_id = ? ORDER BY step"
                    rows[trial_id] += tuple(connection.execute(query, (trial_id,)))
    return rows


def contents(directory: Path) -> tuple[bytes | None, ...]:
    """Return the ledger's bytes and its journal's."""
    paths = [directory / f"{LEDGER}{suffix}" for suffix in ("", "-wal")]
    return tuple(path.read_bytes() if path.is_file() else None for path in paths)


def try_directory(made: Directories, kind: str, changes: Sequence[Mutation]) -> tuple[str, str]:
    """Ask for the status and the export of a mutated directory, then run it; return how it ended and what is wrong."""
    directory = made.folder / "mutated"
    _clear(directory)
    shutil.copytree(made.folder / kind, directory)
    for change in changes:
        change.apply(directory)
    touched = any(change.of_the_ledger for change in changes)
    before, rows = contents(directory), final_rows(directory)
    for command in (("status",), ("status", "--json"), ("export",), ("export", "--measurements")):
        ran = call(*command, directory)
        fault = ran.fault or ("refused" if ran.code and not touched else "")
        if not fault and contents(directory)[0] != before[0]:
            fault = "the ledger was changed"
        if fault:
            return str(ran.code), f"{' '.join(command)}: {fault}\n{ran.err}"
    ran = call("run", made.sweep, "--out", directory, seconds=LONG_SECONDS)
    return str(ran.code), (ran.fault and f"run: {ran.fault}\n{ran.err}") or _lost(
        ran, made, directory, before, rows, touched
    )


def _lost(
    ran: Ran,
    made: Directories,
    directory: Path,
    before: tuple[bytes | None, ...],
    rows: dict[str, tuple],
    touched: bool,
) -> str:
    """Say what a run has lost or trained again, empty if nothing."""
    after = final_rows(directory)
    if touched and "not a readable ledger" in ran.err and contents(directory) != before:
        return f"run: refused, but the ledger was changed\n{ran.err}"
    if any(after.get(trial_id) != row for trial_id, row in rows.items()):
        return f"run: a finished trial was lost or trained again\n{ran.err}"
    if ran.code == 0:
        counts = json.loads(call("status", directory, "--json").out)["trials"]
        if counts["done"] != 24 or sum(counts.values()) != 24:
            return f"run: not all trials are done: {counts}"
        if not touched and after.keys() != made.expected.keys():
            return "run: other trials than in a run that nobody touched"
    return ""
