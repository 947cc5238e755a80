"""The stateless shuffle is a bijection, looks random, and does not depend on how it is called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalejax.data.shuffle import divide, index_shuffle, mix


@jax.jit
def shuffled(index, size, key):
    return index_shuffle(index, size=size, key=key)


def permutation(size: int, key: int) -> np.ndarray:
    """All of [0, size), in programs of a few fixed shapes."""
    padded = 1 << (size - 1).bit_length() if size > 1 else 1
    index = jnp.minimum(jnp.arange(padded, dtype=jnp.uint32), jnp.uint32(size - 1))
    return np.asarray(shuffled(index, jnp.uint32(size), jnp.uint32(key)))[:size]


def assert_bijective(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permutation(size, key)), np.arange(size))


def test_bijective_for_every_small_size():
    for size in range(1, 260):
        assert_bijective(size, key=size)


@pytest.mark.parametrize("size", [1023, 1024, 1025, 65_535, 65_536, 65_537, 999_983, 1_000_000])
def test_bijective_around_powers_of_two_and_up_to_a_million(size):
    assert_bijective(size, key=3)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 1_000_000), key=st.integers(0, 2**32 - 1))
def test_bijective_for_any_size_and_key(size, key):
    assert_bijective(size, key)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(2**24, 2**31 - 1), key=st.integers(0, 2**32 - 1))
def test_distinct_images_within_range_for_huge_sizes(size, key):
    index = jnp.asarray(np.linspace(0, size - 1, 4096).astype(np.uint32))
    image = np.asarray(shuffled(index, jnp.uint32(size), jnp.uint32(key)))
    assert image.max() < size
    assert len(np.unique(image)) == len(np.unique(np.asarray(index)))


@pytest.mark.parametrize("size", [10, 97, 1000])
def test_every_image_is_equally_likely(size):
    keys = mix(jnp.arange(100 * size, dtype=jnp.uint32) + jnp.uint32(17))
    for index in (0, size // 2, size - 1):
        image = shuffled(jnp.full(keys.shape, index, jnp.uint32), jnp.uint32(size), keys)
        counts = np.bincount(np.asarray(image), minlength=size)
        chi_squared = ((counts - 100.0) ** 2 / 100.0).sum() / (size - 1)
        assert chi_squared < 1 + 6 * np.sqrt(2 / (size - 1))


@settings(max_examples=200, deadline=None)
@example(by=65536, quotient=65536, rest=0)
@given(by=st.integers(1, 2**31 - 1), quotient=st.integers(0, 2**20 - 1), rest=st.integers(0, 2**31 - 1))
def test_division_by_floats_is_exact(by, quotient, rest):
    value = min(quotient * by + rest % by, 2**32 - 1 - by)
    if value // by < 2**20:
        found = divide(jnp.uint32(value), jnp.uint32(by))
        assert tuple(map(int, found)) == divmod(value, by)


def test_another_key_is_another_order():
    assert not np.array_equal(permutation(1000, 1), permutation(1000, 2))


def test_neighbours_are_torn_apart():
    order = permutation(1000, 5).astype(int)
    assert (np.abs(np.diff(order)) == 1).mean() < 0.02
