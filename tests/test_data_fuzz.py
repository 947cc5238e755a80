"""Data files, mutated: each is read, or refused in one sentence; no traceback, no hang."""

import io
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import scalejax as sx
from scalejax.data import describe, load

SHORT, LONG = 120, 500
MOST_SECONDS = 20  # for one file of a few kilobytes
OPTIONS: dict[str, dict[str, Any]] = {
    "csv": {"target": "price", "categories": "one-hot"},
    "parquet": {"target": "price", "categories": "one-hot"},
    "npz": {},
    "npy": {"targets": "y.npy"},
    "bin": {"vocabulary": 500, "sequence_length": 8},
    "txt": {"sequence_length": 8},
}
SOURCES = {"bin": "tokens", "txt": "bytes"}  # of the others it is the file itself
WORDS = [
    b"",
    b",",
    b",,",
    b"\n",
    b'"',
    b"nan",
    b"inf",
    b"-1e400",
    b"\x00",
    b"\xff\xfe",
    b"2020-01-02",
    b"area",
    b"9" * 5000,
]


def originals() -> dict[str, bytes]:
    """Return a good file of each kind."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 3)), np.arange(60) % 3
    table = pd.DataFrame({"area": x[:, 0], "rooms": y, "city": np.array(["Bonn", "Ulm", "Jena"])[y], "price": x[:, 1]})
    made = {
        "csv": table.to_csv(index=False).encode(),
        "bin": random.integers(0, 500, 400).astype(np.uint16).tobytes(),
        "txt": b"One line of text, and one more.\n" * 20,
    }
    files: dict[str, Callable[[Any], Any]] = {
        "npz": lambda file: np.savez(file, x=x, y=y),
        "npy": lambda file: np.save(file, x),
        "y": lambda file: np.save(file, y),
    }
    try:
        import pyarrow  # noqa: F401

        files["parquet"] = table.to_parquet
    except ImportError:
        pass
    for kind, write in files.items():
        file = io.BytesIO()
        write(file)
        made[kind] = file.getvalue()
    return made


def mutated(data: bytes, random: np.random.Generator, *, kind: str) -> bytes:
    """Change a file in one to three places; a member of an archive is changed before it is packed."""
    if kind == "npz" and random.random() < 0.7:
        packed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(packed, "w") as changed:
            for name in archive.namelist():
                inner = archive.read(name)
                if random.random() < 0.7:
                    inner = mutated(inner, random, kind="npy")
                changed.writestr(name if random.random() < 0.9 else f"other_{name}", inner)
        return packed.getvalue()
    for _ in range(int(random.integers(1, 4))):
        at, end = sorted(int(each) for each in random.integers(0, len(data) + 1, 2))
        lines = data.split(b"\n")
        line = int(random.integers(len(lines)))
        near = int(random.integers(0, min(128, len(data)) + 1))  # headers are at the beginning
        match int(random.integers(9)):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:at] + random.bytes(int(random.integers(1, 9))) + data[at:]
            case 3:
                data = data[:at] + WORDS[int(random.integers(len(WORDS)))] + data[at:]
            case 4:
                data = data[:near] + random.bytes(1) + data[near + 1 :]
            case 5:
                data = b"\n".join([*lines[:line], lines[0], *lines[line:]])
            case 6:
                data = b"\n".join([*lines[:line], WORDS[int(random.integers(len(WORDS)))], *lines[line + 1 :]])
            case 7:
                cells = lines[line].split(b",")
                cells[int(random.integers(len(cells)))] = WORDS[int(random.integers(len(WORDS)))]
                data = b"\n".join([*lines[:line], b",".join(cells), *lines[line + 1 :]])
            case _:
                data = data[:near] + WORDS[int(random.integers(len(WORDS)))] + data[near:]
    return data


def options_of(kind: str, name: str) -> dict[str, Any]:
    return OPTIONS[kind] | ({"path": name} if kind in SOURCES else {})


def too_long(*_: object) -> None:
    raise TimeoutError(f"a file took more than {MOST_SECONDS} s")


@pytest.mark.parametrize("count", [SHORT, pytest.param(LONG, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused_in_one_sentence(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = originals()
    (tmp_path / "y.npy").write_bytes(made.pop("y"))
    random, kinds, refusals = np.random.default_rng(count), list(made), 0
    before = signal.signal(signal.SIGALRM, too_long)
    try:
        for index in range(count):
            kind = kinds[index % len(kinds)]
            path = tmp_path / f"f{index}.{kind}"
            path.write_bytes(mutated(made[kind], random, kind=kind))
            task = [None, "classification", "regression"][int(random.integers(3))]
            signal.alarm(MOST_SECONDS)
            try:
                data = sx.DataSpec(SOURCES.get(kind, path.name), fractions=(1.0,), options=options_of(kind, path.name))
                asked = data.for_task(task)
                card = describe(asked)
                assert np.asarray(load(asked).train.inputs).shape == (card.examples, *card.shape)
            except sx.SweepError as error:
                refusals += 1
                text = str(error)
                assert text.isprintable(), f"{path.name}: {text!r}"
                assert text.startswith("[data] "), f"{path.name}: {text}"
                assert len(text) < 600, f"{path.name}: {text}"
            except Exception as error:
                raise AssertionError(f"{path.name} of seed {count}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert count / 4 < refusals < count  # mutations are neither all harmless nor all fatal
