"""Examples in two arrays, in their final types: what is known of them, their division, and what is to be noted."""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from scalejax.data.encoding import Encoding
from scalejax.data.partition import TEST, TRAIN, VALIDATION, divide, repeated
from scalejax.data.source import SPLITS, Facts, Split
from scalejax.rules import SpecError
from scalejax.text import number_of

_IN_WORDS = {"train": "training pool", "validation": "validation set"}
SHARE = 0.15  # of the examples for validation, and as many for the test, where the sweep does not say


@dataclass(frozen=True)
class InMemory:
    """A data set in two arrays, made by `checked`; equal to another of the same content.

    Attributes:
        inputs: uint8 or float32 [n, ...].
        targets: int32 or float32 [n].
        sha256: of content, types and shapes, and of groups and parts if there are any.
        groups: int [n]; all examples of a group come into one split.
        parts: int [n], the split of each example as its position in SPLITS.
        stratify: whether validation and test have each class in proportion.
        standardise_target: whether mean and scale of the training pool are taken out of all targets.
        encoding: what they were before they were read.
    """

    name: ClassVar[str] = "arrays"
    inputs: np.ndarray = field(compare=False, repr=False)
    targets: np.ndarray = field(compare=False, repr=False)
    sha256: str
    groups: np.ndarray | None = field(default=None, compare=False, repr=False)
    parts: np.ndarray | None = field(default=None, compare=False, repr=False)
    stratify: bool = False
    standardise_target: bool = False
    encoding: Encoding = field(default=Encoding(), compare=False, repr=False)  # the unit of the targets left out

    @functools.cached_property
    def _classes(self) -> int | None:
        return int(self.targets.max()) + 1 if self.targets.dtype == np.int32 else None

    @functools.cached_property
    def _centre(self) -> float | None:
        """The mean of the targets that may be for training; None of classes, and where it is taken out."""
        if self._classes is not None or self.standardise_target:
            return None
        pool = self.targets if self.parts is None else self.targets[self.parts == TRAIN]
        return float(pool.mean(dtype=np.float64))

    def facts(self) -> Facts:
        """Return what is known of them."""
        count = len(self.inputs)
        declared = np.bincount(self.parts, minlength=len(SPLITS)) if self.parts is not None else np.zeros(3, int)
        share = max(1, round(SHARE * (declared[TRAIN] or count)))
        flags = {name: True for name in ("stratify", "standardise_target") if getattr(self, name)}
        return Facts(
            shape=self.inputs.shape[1:],
            classes=self._classes,
            examples=count,
            validation_examples=int(declared[VALIDATION]) or share,
            test_examples=int(declared[TEST]) or share,
            content={"sha256": self.sha256, **flags},
            inputs=self.inputs.dtype.name,
            target_centre=self._centre,
        )

    def settled(self, seed: int, sizes: Mapping[str, int]) -> dict[str, int]:
        """Return the sizes of validation and test that are possible: of whole groups, or declared by the data.

        Args:
            seed: of the data.
            sizes: asked for, of "validation" and "test".

        Raises:
            SpecError: the data declare other sizes, or groups leave nothing for a split.
        """
        if self.groups is None and self.parts is None:
            return dict(sizes)
        rows = self._rows(seed, sizes["validation"], sizes["test"])
        for number in (VALIDATION, TEST):
            name, key = SPLITS[number], f"{SPLITS[number]}_examples"
            there = 0 if self.parts is None else int(np.count_nonzero(self.parts == number))
            if there and sizes[name] != there:
                message = f"expected the {there} that the data themselves declare, found {sizes[name]}; drop this key"
                raise SpecError(message, table="data", keys=(key,))
        if self.groups is not None and not all(map(len, rows.values())):
            largest = int(np.bincount(self.groups).max())
            message = f"its groups are too few or too large (the largest has {largest:,} of {len(self.groups):,} rows)"
            remedy = "expected enough of them for training, validation and test; split by another column, or drop it"
            raise SpecError(f"{message}; {remedy}", table="data", keys=("group",))
        return {name: len(rows[name]) for name in sizes}

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Divide them into three parts, in an order drawn from the data's seed."""
        rows = self._rows(seed, sizes["validation"], sizes["test"])
        found = {name: rows[name][: sizes[name]] for name in SPLITS}
        targets = self.targets
        if self.standardise_target:
            mean, scale = self._unit(found["train"])
            targets = ((targets - mean) / scale).astype(np.float32)
        return {name: Split(self.inputs[each], targets[each]) for name, each in found.items()}

    def test_differs(self, seed: int, sizes: Mapping[str, int]) -> bool:
        """Say whether there are two test targets that differ, in splits of these sizes."""
        asked = seed, tuple(sizes[name] for name in SPLITS[1:])
        if asked not in self._differing:
            test = self.targets[self._rows(seed, *asked[1])["test"][: sizes["test"]]]
            self._differing[asked] = bool((test != test[:1]).any())
        return self._differing[asked]

    @functools.cached_property
    def _differing(self) -> dict[tuple[int, tuple[int, ...]], bool]:
        return {}  # a plan asks more than once

    def _unit(self, rows: np.ndarray) -> tuple[np.float64, np.float64]:
        """Return mean and scale of the targets of these rows."""
        pool = self.targets[rows].astype(np.float64)
        if not (scale := pool.std()) > 0:
            message = "all targets of the training pool are the same number, which has no scale; drop this key"
            raise SpecError(message, table="data", keys=("standardise_target",))
        return pool.mean(), scale

    def encoded(self, seed: int, sizes: Mapping[str, int]) -> Encoding:
        """Return what they were before they were read, and what was taken out of the targets of these splits."""
        if not self.standardise_target:
            return self.encoding
        rows = self._rows(seed, sizes["validation"], sizes["test"])["train"][: sizes["train"]]
        mean, scale = map(float, self._unit(rows))
        return replace(self.encoding, mean=mean, scale=scale)

    def notes(self, seed: int, sizes: Mapping[str, int], smallest: int) -> tuple[str, ...]:
        """Say what a reader of the results must know of the data, one sentence each.

        Args:
            seed: of the data.
            sizes: of the splits.
            smallest: number of training examples that is tried.
        """
        asked = seed, tuple(sizes[name] for name in SPLITS), smallest
        if asked not in self._noted:
            self._noted[asked] = self._notes(*asked)
        return self._noted[asked]

    @functools.cached_property
    def _noted(self) -> dict[tuple[int, tuple[int, ...], int], tuple[str, ...]]:
        return {}  # a plan asks more than once

    def _notes(self, seed: int, sizes: tuple[int, ...], smallest: int) -> tuple[str, ...]:
        rows = self._rows(seed, sizes[VALIDATION], sizes[TEST])
        rows = {name: rows[name][:size] for name, size in zip(SPLITS, sizes, strict=True)}
        lines = [
            f"{count:,} of {len(rows[name]):,} {name} examples are also in the {_IN_WORDS[other]}"
            for (name, other), count in repeated(self.inputs, rows).items()
            if count
        ]
        if self._classes is not None:
            counts = np.bincount(self.targets[rows["train"]], minlength=self._classes)
            pool, rarest = sizes[TRAIN], int(counts.min())
            if not rarest:
                lines.append(f"{number_of(int((counts == 0).sum()), 'class')} of the data has no training example")
            elif rarest * smallest < pool:
                whole = f"{number_of(rarest, 'example')} of {pool:,}"
                lines.append(
                    f"the rarest class has {whole}: it may be missing from the smallest fraction, {smallest:,}"
                )
        return tuple(lines)

    def _rows(self, seed: int, validation: int, test: int) -> dict[str, np.ndarray]:
        return divide(
            len(self.inputs),
            seed=seed,
            sizes={"validation": validation, "test": test},
            labels=self.targets if self.stratify else None,
            groups=self.groups,
            parts=self.parts,
        )


def is_images(array: np.ndarray) -> bool:
    """Say whether an array [n, ...] is one of pixels, which stay bytes: uint8, in at least two axes an example."""
    return array.dtype == np.uint8 and array.ndim >= 3


def checked(
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    parts: np.ndarray | None = None,
    stratify: bool = False,
    standardise_target: bool = False,
) -> InMemory:
    """Make the source of arrays in their final types, and of codes for groups and parts.

    Raises:
        SpecError: `stratify` or `standardise_target` means nothing to these targets or groups.
    """
    if standardise_target and targets.dtype != np.float32:
        raise SpecError("classes have no mean; drop this key", table="data", keys=("standardise_target",))
    if stratify and targets.dtype != np.int32:
        raise SpecError("only classes have proportions; drop this key", table="data", keys=("stratify",))
    if stratify and groups is not None:
        message = "groups and classes cannot both decide on the split; drop one of them"
        raise SpecError(message, table="data", keys=("stratify", "group"))
    if groups is not None and parts is not None:
        first = np.zeros(int(groups.max()) + 1, int)
        first[groups] = parts  # of one of its rows
        if apart := len(np.unique(groups[first[groups] != parts])):
            total = len(np.unique(groups))
            message = f"rows of {apart:,} of {number_of(total, 'group')} are in more than one of the declared splits"
            raise SpecError(f"{message}; correct those, or drop this key", table="data", keys=("group",))
    digest = hashlib.sha256()
    named = {"groups": groups, "parts": parts}
    extra = [(f"{name} ", array.astype("<i8")) for name, array in named.items() if array is not None]
    for name, array in (("", inputs), ("", targets), *extra):
        digest.update(f"{name}{array.dtype.name} {list(array.shape)} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    inputs, targets = (np.ascontiguousarray(array) for array in (inputs, targets))
    for array in (inputs, targets):
        array.flags.writeable = False
    return InMemory(
        inputs, targets, digest.hexdigest(), groups=groups, parts=parts, stratify=stratify,
        standardise_target=standardise_target,
    )  # fmt: skip
