"""Text as tokens: windows of a token file that is never loaded whole, or of the bytes of files.

An example is a window of `sequence_length` tokens, and its target the token that follows. Splits are made of passages
of neighbouring windows, in an order drawn from the data's seed: what a model is tested on is text in one piece.
"""

import functools
import hashlib
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scalejax.data.examples import fault
from scalejax.data.file_state import Stamp, found_files, stamp
from scalejax.data.host_shuffle import shuffled
from scalejax.data.source import SPLITS, Facts, Split
from scalejax.errors import RunError
from scalejax.rules import Rule, SpecError, strict

PASSAGE = 64  # windows that stay together; fewer where there is little text
SMALLEST_SPLIT = 100  # passages that there are at least, if there are as many windows
SHARE, MOST = 0.1, 500  # of the windows for validation, and as many for the test, where the sweep does not say
HASHED_WHOLE = 2**30  # bytes up to which a file is hashed whole; of a larger one PIECES pieces are
PIECES, PIECE = 1_024, 2**16
BLOCK = 2**24  # bytes, or tokens, that are read at a time
SEPARATOR = b"\0"  # between two files


class Windows:
    """Windows of tokens by their number, read when they are asked for; an array of [n, length], or of [n] targets.

    Args:
        tokens: of the whole text, an array or a memory map.
        length: of a window.
        order: the numbers of the text's windows, given the numbers of these.
        count: how many these are.
        part: "inputs", or "targets": the token that follows each window.
        check: is called after each reading, with what was read.
    """

    def __init__(self, tokens: np.ndarray, length: int, *, order: Any, count: int, part: str, check: Any):
        whole = (len(tokens) - 1) // length
        follows = tokens[length::length][:whole]
        self._windows = tokens[: whole * length].reshape(whole, length) if part == "inputs" else follows
        self._order, self._check = order, check
        self.shape = (count, *self._windows.shape[1:])
        self.dtype = tokens.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return windows [*rows.shape, ...] by an array of their numbers, or a slice."""
        rows = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        found = np.asarray(self._windows[self._order(rows.reshape(-1))])
        self._check(found)
        return found.reshape(*rows.shape, *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        found = self[:]
        return found if dtype is None else found.astype(dtype)


def passages(tokens: np.ndarray, length: int, *, seed: int, sizes: Mapping[str, int], check: Any) -> dict[str, Split]:
    """Cut a text into splits, the test set first; the training windows are read when they are asked for."""
    windows = (len(tokens) - 1) // length
    together = max(1, min(PASSAGE, windows // SMALLEST_SPLIT))
    count = math.ceil(windows / together)
    # Of the shuffle's positions those beyond the last window are left out: they are those of the last passage.
    short = count * together - windows
    last = int(np.flatnonzero(shuffled(np.arange(count), size=count, key=seed) == count - 1)[0]) if short else count

    def order(first: int, rows: np.ndarray) -> np.ndarray:
        position = rows + first
        position = position + np.where(position >= (last + 1) * together - short, short, 0)
        return shuffled(position // together, size=count, key=seed) * together + position % together

    splits, first = {}, 0
    for name in reversed(SPLITS):
        make = functools.partial(
            Windows, tokens, length, order=functools.partial(order, first), count=sizes[name], check=check
        )
        inputs, targets = make(part="inputs"), make(part="targets")
        lazily = name == "train"
        splits[name] = Split(inputs, targets) if lazily else Split(inputs[:], targets[:])  # pyright: ignore[reportArgumentType]
        first += sizes[name]
    return splits


@strict("data")
@dataclass(frozen=True)
class Tokens:
    """The source: a file of tokens, one after the other, such as a tokenizer writes; read where it lies."""

    name = "tokens"

    path: str = field(metadata=Rule(str).beside)
    vocabulary: int = field(metadata=Rule(int, at_least=2).beside)
    dtype: str = field(default="uint16", metadata=Rule(str, choices=("uint8", "uint16", "uint32")).beside)
    sequence_length: int = field(default=256, metadata=Rule(int, at_least=2).beside)
    bytes_per_token: float | None = field(default=None, metadata=Rule(float, above=0).beside)

    def facts(self) -> Facts:
        """Describe the file.

        One of at most HASHED_WHOLE bytes is read whole, and each of its tokens held against the vocabulary. A larger
        one is known by its size and a thousand pieces of it; the other tokens are checked as they are read, those of
        the validation and the test set before the training and those of the training set in its course.

        Raises:
            SpecError: it cannot be read, is no file of such tokens, or holds one that the vocabulary does not have.
        """
        file = stamp(self.path, "path")
        size, width = file.size, np.dtype(self.dtype).itemsize
        if size % width or size // width <= 3 * self.sequence_length:
            expected = f"expected {self.dtype} tokens, {width} bytes each, for at least three windows"
            message = f"{self.path}: {expected} of {self.sequence_length}, found {size:,} bytes"
            raise SpecError(message, table="data", keys=("path", "sequence_length"))
        sha256, largest = _digest(file, self.dtype)
        if largest >= self.vocabulary:
            place = _first_beyond(self.path, self.dtype, self.vocabulary)
            raise fault(self.path, self._beyond(largest, f"; the first beyond is at position {place:,}"), "vocabulary")
        windows = (size // width - 1) // self.sequence_length
        share = _share(windows)
        return Facts(
            shape=(self.sequence_length,),
            classes=None,
            examples=windows,
            validation_examples=share,
            test_examples=share,
            content={
                "sha256": sha256,
                "dtype": self.dtype,
                "bytes_per_token": self.bytes_per_token,
                "sequence_length": self.sequence_length,
                "vocabulary": self.vocabulary,
            },
            inputs=self.dtype,
            vocabulary=self.vocabulary,
            bytes_per_token=self.bytes_per_token,
            mapped=True,
        )

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return windows of the file; those of the training set are read when they are asked for."""
        before = stamp(self.path, "path")
        tokens = np.memmap(self.path, self.dtype, "r")

        def check(found: np.ndarray) -> None:
            # What was read is no longer held: pages of a map count as memory of the process.
            tokens._mmap.madvise(mmap.MADV_DONTNEED)  # pyright: ignore[reportAttributeAccessIssue]
            if found.size and int(found.max()) >= self.vocabulary:
                raise RunError(f"{self.path}: {self._beyond(int(found.max()))}")
            if stamp(self.path, "path") != before:
                raise RunError(f"{self.path}: changed while it was read; run again once nothing writes to it")

        try:
            return passages(tokens, self.sequence_length, seed=seed, sizes=sizes, check=check)
        except RunError as error:  # in the validation or the test set, which are read here and now
            raise SpecError(str(error), table="data", keys=("vocabulary",)) from error

    def _beyond(self, token: int, where: str = "") -> str:
        known = f"vocabulary = {self.vocabulary} has tokens from 0 to {self.vocabulary - 1}"
        return f"it holds the token {token} where {known}{where}; correct the vocabulary, the dtype or the file"


@strict("data")
@dataclass(frozen=True)
class Bytes:
    """The source: the bytes of a text file, of all text files in a folder, or of those that a glob finds."""

    name = "bytes"

    path: str = field(metadata=Rule(str).beside)
    sequence_length: int = field(default=128, metadata=Rule(int, at_least=2).beside)

    def facts(self) -> Facts:
        """Describe the text.

        Raises:
            SpecError: there is no such file, or none with text in it.
        """
        text = _text(_stamps(self.path))
        if len(text) <= 3 * self.sequence_length:
            found = f"found {len(text):,} bytes of text"
            message = f"{self.path}: expected at least three windows of {self.sequence_length} bytes, {found}"
            raise SpecError(message, table="data", keys=("path", "sequence_length"))
        windows = (len(text) - 1) // self.sequence_length
        share = _share(windows)
        return Facts(
            shape=(self.sequence_length,),
            classes=None,
            examples=windows,
            validation_examples=share,
            test_examples=share,
            content={"sha256": hashlib.sha256(text).hexdigest(), "sequence_length": self.sequence_length},
            inputs="uint8",
            vocabulary=256,
            bytes_per_token=1.0,
        )

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return windows of the text."""
        text = np.frombuffer(_text(_stamps(self.path)), np.uint8)
        return passages(text, self.sequence_length, seed=seed, sizes=sizes, check=lambda _: None)


def _share(windows: int) -> int:
    return max(1, min(MOST, round(SHARE * windows)))


def _stamps(path: str) -> tuple[Stamp, ...]:
    return tuple(stamp(each, "path") for each in found_files(path, "path"))


@functools.lru_cache(maxsize=2)  # a plan asks several times
def _text(files: tuple[Stamp, ...]) -> bytes:
    """Return the text of all files, one after the other; files with a zero byte are no text and are left out."""
    texts = []
    for file in files:
        content = Path(file.path).read_bytes()
        if len(content) != file.size:
            raise fault(file.path, "it changed while it was read; run again when it is written", "path")
        if SEPARATOR not in content and content:
            texts.append(content)
    return SEPARATOR.join(texts)


@functools.lru_cache(maxsize=8)  # a plan asks several times
def _digest(file: Stamp, dtype: str) -> tuple[str, int]:
    """Return the hash of a token file, and the largest token in what was read for that: of a large one, some pieces."""
    digest, largest, width = hashlib.sha256(str(file.size).encode()), 0, np.dtype(dtype).itemsize
    whole = file.size <= HASHED_WHOLE
    places = range(0, file.size, BLOCK) if whole else (n * (file.size - PIECE) // (PIECES - 1) for n in range(PIECES))
    with Path(file.path).open("rb") as opened:
        for place in places:
            opened.seek(place)
            piece = opened.read(BLOCK if whole else PIECE)
            digest.update(piece)
            first = -place % width  # a piece may begin within a token
            tokens = np.frombuffer(piece, dtype, count=(len(piece) - first) // width, offset=first)
            largest = max(largest, int(tokens.max(initial=0)))
    return digest.hexdigest(), largest


def _first_beyond(path: str, dtype: str, vocabulary: int) -> int:
    """Return the number, counted from 0, of the first token of a file that the vocabulary does not have."""
    tokens = np.memmap(path, dtype, "r")
    for place in range(0, len(tokens), BLOCK):
        beyond = tokens[place : place + BLOCK] >= vocabulary
        if beyond.any():
            return place + int(beyond.argmax())
    return len(tokens)
