"""From a sweep's `[data]` table to a card for the planner, and to arrays for the engine."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalejax.data import digits, land, mnist1d
from scalejax.data.storage import recall
from scalejax.files import cache_directory
from scalejax.spec import DataSpec
from scalejax.spec.rules import SpecError

SOURCES = ("mnist1d", "land", "digits")

_SPLITS = ("train", "validation", "test")  # the position is the number of the split's random stream: append only


@dataclass(frozen=True)
class DataCard:
    """What there is to know about a data set before it is made."""

    source: str
    shape: tuple[int, ...]  # of one example's inputs
    classes: int | None  # None: targets are no classes
    examples: int  # size of the training pool
    validation_examples: int
    test_examples: int
    fingerprint: str  # hex; another one whenever any number of the data set would be another one
    targets: str = "int32"  # type of an example's target
    target_shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Split:
    """Examples and their classes. Treat the arrays as read-only."""

    inputs: np.ndarray  # float32 [n, *shape]
    targets: np.ndarray  # int32 [n]


@dataclass(frozen=True)
class DataSet:
    """A data set in memory."""

    card: DataCard
    train: Split
    validation: Split
    test: Split


def describe(spec: DataSpec) -> DataCard:
    """Return the card of a data set, without making or loading any of it.

    What does not depend on the source, `DataSpec` has checked already.

    Args:
      spec: the sweep's data table.

    Raises:
      SweepError: the source is unknown or its package is missing, an option belongs to another source, or the sizes do
        not fit the source or each other.
    """
    if spec.source not in SOURCES:
        near = difflib.get_close_matches(str(spec.source), SOURCES, n=1, cutoff=0.0)[0]
        says = f'"{spec.source}" is not one of {", ".join(SOURCES)}; did you mean "{near}"?'
        raise SpecError(says, table="data", keys=("source",))
    _check_option_owner(spec)
    sizes = _sizes(spec)
    _check_fractions(spec, sizes["train"])
    shape, classes, options = _particulars(spec)
    content = {"source": spec.source, "sizes": sizes, "seed": spec.seed, "options": options}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return DataCard(
        source=spec.source,
        shape=shape,
        classes=classes,
        examples=sizes["train"],
        validation_examples=sizes["validation"],
        test_examples=sizes["test"],
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
    )


def load(spec: DataSpec) -> DataSet:
    """Return a data set: made at the first call, read from the cache afterwards.

    Args:
      spec: the sweep's data table.

    Returns:
      The three splits, disjoint streams (generated sources) or disjoint parts (digits). Generated example i is the same
      whatever the sizes.

    Raises:
      SweepError: as `describe` does.

    Warns:
      UserWarning: the cached file was damaged, and the data are made again; or it could not be written.
    """
    card = describe(spec)
    path = cache_directory("data") / f"{card.source}-{card.fingerprint[:32]}.bin"
    arrays = recall(path, lambda: _make(spec, card))
    splits = {name: Split(arrays[f"{name}_inputs"], arrays[f"{name}_labels"]) for name in _SPLITS}
    return DataSet(card=card, train=splits["train"], validation=splits["validation"], test=splits["test"])


def _make(spec: DataSpec, card: DataCard) -> dict[str, np.ndarray]:
    """Make all arrays of a data set."""
    sizes = {"train": card.examples, "validation": card.validation_examples, "test": card.test_examples}
    arrays: dict[str, np.ndarray] = {}
    if card.source == "digits":
        inputs, labels = digits.read(spec.seed)
        start = 0
        for name in ("test", "validation", "train"):  # the test set first: it then depends on its own size only
            part = slice(start, start + sizes[name])
            arrays[f"{name}_inputs"], arrays[f"{name}_labels"] = inputs[part], labels[part]
            start = part.stop
        return arrays
    for stream, name in enumerate(_SPLITS):
        if card.source == "mnist1d":
            inputs, labels = mnist1d.generate(spec.seed, stream, sizes[name])
        else:
            features, scale = _fourier(spec)
            inputs, labels = land.generate(
                spec.seed, stream, sizes[name], fourier_features=features, fourier_scale=scale
            )
        arrays[f"{name}_inputs"], arrays[f"{name}_labels"] = inputs, labels
    return arrays


def _particulars(spec: DataSpec) -> tuple[tuple[int, ...], int, Mapping[str, object]]:
    """Return one example's shape, the number of classes, and what else the fingerprint must contain."""
    if spec.source == "mnist1d":
        return (mnist1d.LENGTH,), mnist1d.CLASSES, {"version": mnist1d.VERSION}
    if spec.source == "digits":
        digits.require_package()
        return (digits.PIXELS,), digits.CLASSES, {"version": digits.VERSION}
    features, scale = _fourier(spec)
    options: dict[str, object] = {"version": land.VERSION, "mask": land.mask_checksum(), "fourier_features": features}
    if features:
        options["fourier_scale"] = scale
    return (land.columns(features),), land.CLASSES, options


def _fourier(spec: DataSpec) -> tuple[int, float]:
    """Return the number of Fourier features and their scale, defaults filled in.

    Raises:
      SweepError: the number is odd, or there is nothing to scale.
    """
    features = spec.fourier_features or 0
    if features % 2:
        says = (
            f"expected an even number, a cosine and a sine for each frequency, found {features}; write {features + 1}"
        )
        raise SpecError(says, table="data", keys=("fourier_features",))
    if spec.fourier_scale is None:
        return features, land.DEFAULT_FOURIER_SCALE
    if not features:
        says = "has nothing to scale without fourier_features; give fourier_features as well, or drop it"
        raise SpecError(says, table="data", keys=("fourier_scale",))
    return features, spec.fourier_scale


def _check_option_owner(spec: DataSpec) -> None:
    """Refuse options of another source, which would otherwise be ignored in silence."""
    if spec.source == "land":
        return
    for option in ("fourier_features", "fourier_scale"):
        if getattr(spec, option) is not None:
            says = f'an option of source = "land" that means nothing to "{spec.source}"; drop it, or change the source'
            raise SpecError(says, table="data", keys=(option,))


def _sizes(spec: DataSpec) -> dict[str, int]:
    """Return the sizes of the three splits, defaults filled in and checked."""
    small = spec.source == "digits"
    validation = spec.validation_examples if spec.validation_examples is not None else (300 if small else 2_000)
    test = spec.test_examples if spec.test_examples is not None else (300 if small else 10_000)
    pool = _rest_of_digits(spec, validation=validation, test=test) if small else _generated_pool(spec)
    return {"train": pool, "validation": validation, "test": test}


def _rest_of_digits(spec: DataSpec, *, validation: int, test: int) -> int:
    """Return the size of the pool: all digits that validation and test leave, unless the sweep asks for fewer."""
    left = digits.EXAMPLES - validation - test
    if left < 1:
        says = f"{validation} and test_examples = {test} leave none of the {digits.EXAMPLES} digits; lower them"
        raise SpecError(says, table="data", keys=("validation_examples", "test_examples"))
    for key, asked in (("examples", spec.examples), ("train_examples", max(spec.train_examples or (0,)))):
        if asked and asked > left:
            says = (
                f"{asked} is more than the {left} digits that validation and test leave; ask for fewer, or lower those"
            )
            raise SpecError(says, table="data", keys=(key,))
    return spec.examples or left


def _generated_pool(spec: DataSpec) -> int:
    """Return the size of the pool of a source that makes as many examples as one asks for."""
    if spec.examples is not None:
        return spec.examples
    if spec.train_examples:
        return max(spec.train_examples)
    says = f'missing; "{spec.source}" has no end, so fractions need a whole, for instance examples = 20000'
    raise SpecError(says, table="data", keys=("examples",))


def _check_fractions(spec: DataSpec, pool: int) -> None:
    """Refuse a fraction that leaves nothing to train on."""
    if spec.fractions and round(min(spec.fractions) * pool) < 1:
        says = f"{min(spec.fractions)} is less than one of {pool} examples; expected at least {1 / pool:.3g}"
        raise SpecError(says, table="data", keys=("fractions",))
