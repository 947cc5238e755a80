"""Many fits at a time: the only place that lifts the minimiser over lanes. Memory is bounded by the block.

Fits run in float64 by a local context, on the CPU: they are small, and TPUs have no float64. A block is one call of
one compiled program; within it, chunks of lanes that fit the cache run one after the other, each until its last lane
has converged. Blocks are independent, so each core works on its own.
"""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from scalejax.analysis.layout import Layout
from scalejax.analysis.solver import Lane, Rows, Solution, minimise
from scalejax.cache import keep_programs

CHUNK, CHUNKS = 16, 4
BLOCK = CHUNK * CHUNKS

Lanes = Callable[[slice], Lane]  # the lanes of a range, as NumPy arrays with or without a leading axis


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.partial(jax.jit, static_argnames=("layout", "batched"))
def _solve_block(layout: Layout, rows: Rows, lanes: Lane, *, batched: tuple[bool, ...]) -> Solution:
    """Solve a block; `batched` says which fields of `lanes` have a leading axis of BLOCK, the others are shared."""
    several = Lane(*(0 if flag else None for flag in batched))
    solve = jax.vmap(lambda lane: minimise(layout, rows, lane), in_axes=(several,))
    own = [field.reshape(CHUNKS, CHUNK, *field.shape[1:]) for field, flag in zip(lanes, batched, strict=True) if flag]

    def chunk(own: list[Any]) -> Solution:
        left = iter(own)
        return solve(Lane(*(next(left) if flag else field for field, flag in zip(lanes, batched, strict=True))))

    result = jax.lax.map(chunk, own)
    return jax.tree.map(lambda field: field.reshape(BLOCK, *field.shape[2:]), result)


def _pad(field: np.ndarray) -> np.ndarray:
    missing = BLOCK - len(field)
    return np.concatenate([field, np.repeat(field[:1], missing, axis=0)]) if missing else field


def solve_lanes(layout: Layout, rows: Rows, count: int, lanes: Lanes) -> Solution:
    """Return the solutions of `count` fits, as NumPy arrays with a leading axis.

    Args:
        layout: coordinates, for all fits.
        rows: predictors, for all fits.
        count: number of fits.
        lanes: makes the lanes of a range when their turn comes; fields without a leading axis are shared by all.
    """
    keep_programs()
    home = jax.devices("cpu")[0]
    plain = Lane(1, 1, 1, 1, 1, 1, 0)  # ranks of the unbatched fields

    def solve(first: int) -> Solution:
        stop = min(first + BLOCK, count)
        block = lanes(slice(first, stop))
        batched = tuple(np.ndim(field) > rank for field, rank in zip(block, plain, strict=True))
        batched = (True, *batched[1:-1], True)
        theta = block.theta if block.theta.ndim == 2 else np.repeat(block.theta[None], stop - first, axis=0)
        live = np.arange(BLOCK) < stop - first
        fields = block._replace(theta=theta, live=live)
        padded = Lane(*(_pad(field) if flag else field for field, flag in zip(fields, batched, strict=True)))
        with jax.enable_x64(True):
            here = jax.device_put((rows, padded), home)
            result = _solve_block(layout, here[0], here[1], batched=batched)
            return jax.tree.map(lambda field: np.asarray(field)[: stop - first], result)

    return jax.tree.map(lambda *parts: np.concatenate(parts), *_spread(solve, range(0, count, BLOCK)))


def _spread(work: Callable[[int], Solution], items: range) -> Iterator[Solution]:
    """Yield the results in order; the first is computed alone, so that its program is compiled once."""
    yield work(items[0])
    if len(items) > 1:
        with ThreadPoolExecutor(max(1, cores())) as pool:
            yield from pool.map(work, items[1:])
