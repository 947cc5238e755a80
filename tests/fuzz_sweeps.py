"""Mutated sweep files: edited as a tree and as bytes, and planned."""

import copy
import datetime
import json
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_commands import LONG_SECONDS, SMALL, Ran, call
from hypothesis import strategies as st

SWEEPS = Path(__file__).parent.parent / "sweeps"
MEMORY = 6e9  # bytes beyond which a case counts as blown up


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


EDITS = (*["nudge"] * 12, *["replace"] * 8, "drop", "twice", "misspell", "move", "add", "repeat", "wrap")
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
def sweep_files(draw: st.DrawFn, *, elsewhere: bool) -> Case:
    """Draw a mutated sweep file, and perhaps overrides, that are mutated likewise.

    Args:
        draw: Hypothesis'.
        elsewhere: plan for devices that are not here alone, so that nothing is compiled.
    """
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
    if elsewhere or draw(st.booleans()):
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
    kind = draw(st.sampled_from(EDITS))
    if kind in ("misspell", "move", "add", "twice") and not hasattr(home, "keys"):
        kind = "replace"
    value = home[key]
    name = str(key)
    match kind:
        case "replace":
            home[key] = copy.deepcopy(draw(st.sampled_from(WEIRD)))
        case "nudge":
            home[key] = nudged(value, draw)
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


def nudged(value: Any, draw: st.DrawFn) -> Any:
    """Return another value of the same kind, which may well be good."""
    match value:
        case bool():
            return not value
        case int():
            return draw(st.sampled_from([1, 2, value + 1, value // 2, 3 * value, 10 * value, 10**6 * value, 10**9]))
        case float():
            return draw(st.sampled_from([value / 2, value * 2, value / 1e6, value * 1e6, 1e-30, 0.9, 1e30]))
        case str():
            return draw(st.sampled_from(["other", "mlp", "logistic", "mnist1d", "land", "sgd", "lion", "constant"]))
        case [first, *rest]:
            return draw(st.sampled_from([rest, [first], [*rest, first], [*value, nudged(first, draw)]]))
    return value


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
