"""Examples in memory divided into training pool, validation and test: drawn, in proportion, by groups, or declared."""

from collections.abc import Iterator, Mapping

import numpy as np

from scalejax.data.source import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))


def divide(
    count: int,
    *,
    seed: int,
    sizes: Mapping[str, int],
    labels: np.ndarray | None = None,
    groups: np.ndarray | None = None,
    parts: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the rows of each split, in an order drawn from the seed.

    The test set is drawn first: it then depends on its own size only. The training pool is all that is left.

    Args:
        count: of examples.
        seed: draws the order.
        sizes: of "validation" and "test".
        labels: int [count]; validation and test then have each label in proportion.
        groups: int [count]; all rows of a group then come into one split. Whole groups are taken as they are drawn,
            as long as they fit, and the smallest one where none fits; so validation and test may be smaller than asked
            for, and where all groups are larger than that, larger.
        parts: int [count], the split of each row as its position in SPLITS. What it has no row of is drawn from the
            training rows.

    Returns:
        Row numbers by split, without a common one.
    """
    order = np.random.default_rng(seed).permutation(count)
    declared = {number: order[parts[order] == number] for number in range(len(SPLITS))} if parts is not None else {}
    rest = declared.get(TRAIN, order)
    found: dict[str, np.ndarray] = {}
    for number in (TEST, VALIDATION):
        name = SPLITS[number]
        if len(declared.get(number, ())):
            found[name] = declared[number]
            continue
        if groups is not None:
            taken = _whole_groups(groups[rest], sizes[name])
        elif labels is not None:
            taken = _in_proportion(labels[rest], sizes[name])
        else:
            taken = np.arange(len(rest)) < sizes[name]
        found[name], rest = rest[taken], rest[~taken]
    return {**found, SPLITS[TRAIN]: rest}


def _in_proportion(labels: np.ndarray, size: int) -> np.ndarray:
    """Mark `size` rows, the first of each label, in proportion to the labels' counts (largest remainders)."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * (min(size, len(labels)) / max(1, len(labels)))
    wanted = np.floor(exact).astype(int)
    most_missing = np.argsort(wanted - exact, kind="stable")
    wanted[most_missing[: min(size, len(labels)) - wanted.sum()]] += 1
    by_label = np.argsort(codes, kind="stable")
    rank = np.empty(len(labels), int)  # of a row among those of its label
    rank[by_label] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rank < wanted[codes]


def _whole_groups(groups: np.ndarray, size: int) -> np.ndarray:
    """Mark the rows of whole groups, in order of appearance, that together have at most `size`; of one at least.

    Where none fits that is the first of the smallest: the same one is taken if its own size is asked for.
    """
    _, first, codes, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    taken, left, order = np.zeros(len(counts), bool), size, np.argsort(first)
    for group in order:
        if counts[group] <= left:
            taken[group] = True
            left -= counts[group]
    if not taken.any() and len(counts):
        taken[order[np.argmin(counts[order])]] = True
    return taken[codes]


def repeated(inputs: np.ndarray, rows: Mapping[str, np.ndarray]) -> dict[tuple[str, str], int]:
    """Count the examples of a split whose inputs are, bit for bit, those of an example of another split.

    Returns:
        By the names of both splits: how many of validation and of test are in train, and of test in validation.
    """
    flat = inputs.reshape(len(inputs), -1)

    def hashes(name: str) -> Iterator[int]:
        return (hash(flat[row].tobytes()) for row in rows[name])

    train, validation, test = SPLITS
    held_out = {name: list(hashes(name)) for name in (validation, test)}
    seen = {each for hashed in held_out.values() for each in hashed}
    there = {train: {each for each in hashes(train) if each in seen}, validation: set(held_out[validation])}
    pairs = (validation, train), (test, train), (test, validation)
    return {(name, other): sum(each in there[other] for each in held_out[name]) for name, other in pairs}
