"""The stateless shuffle: a bijection on [0, size) computed from a key, so that no permutation is ever stored.

A batch is a pure function of (trial, step), and the number of examples stays a traced integer: lanes with different
numbers of examples share one program.
"""

import jax
import jax.numpy as jnp
from jax import lax

from scalejax.data.host_shuffle import ROUNDS

WALKS = 16  # rounds of a walk of known length after the first


def mix(word: jax.Array) -> jax.Array:
    """Hash 32 bits to 32 bits, elementwise (finaliser of MurmurHash3, Appleby 2011; uint32 in, uint32 out)."""
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


def divide(value: jax.Array, by: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (value // by, value % by), elementwise, all uint32.

    Exact wherever the quotient is below 2**20 and value + by below 2**32.

    Processors divide integers one at a time, but floats many at once. float32 holds value and 1 / by to 2**-24 each,
    so the product is off by less than one, and one correction either way makes it exact.
    """
    quotient = (value.astype(jnp.float32) * (1.0 / by.astype(jnp.float32))).astype(jnp.uint32)
    rest = value - quotient * by
    below = rest > value  # wrapped around zero: the quotient was one too large
    quotient, rest = jnp.where(below, quotient - 1, quotient), jnp.where(below, rest + by, rest)
    above = rest >= by
    return jnp.where(above, quotient + 1, quotient), jnp.where(above, rest - by, rest)


def index_shuffle(index: jax.Array, *, size: jax.Array, key: jax.Array, known: bool = False) -> jax.Array:
    """Return the image of `index` under the bijection on [0, size) that `key` selects.

    A Feistel network over Z_a x Z_b, where a*b is the smallest near-square rectangle that holds `size`, with cycle
    walking out of the few cells beyond it (Black & Rogaway 2002, "Ciphers with arbitrary finite domains"). At most
    about sqrt(size) cells lie beyond, so the walk ends after one or two rounds for any large size; a power-of-two
    domain would need about twenty for a whole chunk of batches.

    Args:
        index: uint32 [...], each below `size`.
        size: uint32, a scalar; from 1 to 2**31 - 1.
        key: uint32, a scalar or [...] like `index`.
        known: walk `WALKS` rounds in all cases, in a loop of known length: an accelerator would ask the host before
            each round of another whether it is the last. The image is the same, but for less than one index in
            2**64.

    Returns:
        uint32 [...], each below `size`.
    """
    rows = jnp.sqrt(size.astype(jnp.float32)).astype(jnp.uint32) + 1
    columns = (size + rows - 1) // rows

    def walk(cell: jax.Array, outside: jax.Array) -> jax.Array:
        return jnp.where(outside, _feistel(cell, rows, columns, key), cell)

    if known:
        # At most sqrt(size) cells lie beyond: up to a size of 256 these rounds walk out of all of them. Of a larger
        # size a round ends beyond with a chance below one in 16, all with one below 2**-64; then the last example is
        # taken.
        begun = _feistel(index, rows, columns, key)
        walked = lax.fori_loop(0, WALKS, lambda _, cell: walk(cell, cell >= size), begun)
        return jnp.minimum(walked, size - 1)

    def goes_on(state: tuple[jax.Array, jax.Array]) -> jax.Array:
        cell, first = state
        return first | jnp.any(cell >= size)

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        cell, first = state
        return walk(cell, first | (cell >= size)), jnp.zeros((), bool)

    # The first round is one of the loop too: written before it, the network would be compiled twice. To carry which
    # cells are outside, and not only whether it is the first round, would have every round computed twice.
    return lax.while_loop(goes_on, step, (index, jnp.ones((), bool)))[0]


def _feistel(cell: jax.Array, rows: jax.Array, columns: jax.Array, key: jax.Array) -> jax.Array:
    """Permute [0, rows * columns), elementwise, for uint32 arrays."""
    left, right = divide(cell, columns)
    for round_number in range(0, ROUNDS, 2):
        left = _add_modulo(left, _draw(right, key, round_number, rows), rows)
        right = _add_modulo(right, _draw(left, key, round_number + 1, columns), columns)
    return left * columns + right


def _draw(half: jax.Array, key: jax.Array, round_number: int, bound: jax.Array) -> jax.Array:
    """Hash one half to [0, bound) by multiplying 16 random bits with the bound; no division, no 64-bit integers."""
    # Every round sees other bits of the key beside those of the half; a hash of its own would cost as much again.
    turned = (key << (5 * round_number)) | (key >> (32 - 5 * round_number)) if round_number else key
    salt = jnp.uint32((0x9E3779B9 * (round_number + 1)) & 0xFFFFFFFF)
    return ((mix((half + salt) ^ turned) >> 16) * bound) >> 16


def _add_modulo(value: jax.Array, addend: jax.Array, bound: jax.Array) -> jax.Array:
    total = value + addend
    return jnp.where(total >= bound, total - bound, total)
