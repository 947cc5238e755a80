"""The stateless shuffle of `shuffle.py` on the host, in NumPy: which rows of the pool a trial sees, and when.

For work before training or beside it: fitting features, classical baselines, streaming. To the last bit the same
rows as on the devices.
"""

import numpy as np

ROUNDS = 6  # even, so that both halves are mixed equally often


def shuffled(index: np.ndarray, *, size: int, key: "int | np.ndarray") -> np.ndarray:
    """Return the image of `index` under the bijection on [0, size) that `key` selects; see `shuffle.index_shuffle`.

    Args:
        index: whole numbers [n], each below `size`.
        size: from 1 to 2**31 - 1.
        key: 32 bits, one or [n].

    Returns:
        int64 [n].
    """
    rows = np.uint32(np.sqrt(np.float32(size))) + np.uint32(1)
    columns = np.uint32((size + int(rows) - 1) // int(rows))
    keys = np.broadcast_to(np.asarray(key, np.uint32), np.shape(index))
    cell = _feistel(np.asarray(index).astype(np.uint32), rows, columns, keys)
    while (beyond := np.flatnonzero(cell >= size)).size:  # cycle walking
        cell[beyond] = _feistel(cell[beyond], rows, columns, keys[beyond])
    return cell.astype(np.int64)


def own_rows(count: int, *, pool: int, key: int) -> np.ndarray:
    """Return the rows of the pool that a trial with `count` examples and this subset key sees, int64 [count]."""
    return shuffled(np.arange(count), size=pool, key=key)


def batch_rows(
    first: int, count: int, *, train_examples: int, pool: int, subset_key: int, shuffle_key: int
) -> np.ndarray:
    """Return the rows of the pool that a trial sees as its examples number `first` to `first + count`, int64 [count].

    Numbered are the examples of all its batches, from 0 on; see `step.batch_indices`.
    """
    epoch, offset = np.divmod(np.arange(first, first + count), train_examples)
    keys = _mix(np.uint32(shuffle_key) ^ _mix((epoch + 1).astype(np.uint32)))
    return shuffled(shuffled(offset, size=train_examples, key=keys), size=pool, key=subset_key)


def _mix(word: np.ndarray) -> np.ndarray:
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return word ^ (word >> np.uint32(16))


def _feistel(cell: np.ndarray, rows: np.uint32, columns: np.uint32, key: np.ndarray) -> np.ndarray:
    left, right = np.divmod(cell, columns)
    for number in range(0, ROUNDS, 2):
        left = _add_modulo(left, _draw(right, key, number, rows), rows)
        right = _add_modulo(right, _draw(left, key, number + 1, columns), columns)
    return left * columns + right


def _draw(half: np.ndarray, key: np.ndarray, number: int, bound: np.uint32) -> np.ndarray:
    turned = (key << np.uint32(5 * number)) | (key >> np.uint32(32 - 5 * number)) if number else key
    salt = np.uint32((0x9E3779B9 * (number + 1)) & 0xFFFFFFFF)
    return ((_mix((half + salt) ^ turned) >> np.uint32(16)) * bound) >> np.uint32(16)


def _add_modulo(value: np.ndarray, addend: np.ndarray, bound: np.uint32) -> np.ndarray:
    total = value + addend
    return np.where(total >= bound, total - bound, total)
