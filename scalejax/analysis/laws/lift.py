"""Many fits at a time: the only place that lifts the minimiser over lanes. Memory is bounded by the block.

Fits run in float64 by a local context, on the CPU: they are small, and TPUs have no float64. A block is one call of
one compiled program; within it, a few slots that fit the cache advance together, and a slot whose fit has ended takes
the next one. Blocks are independent, so each core works on its own.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.analysis.laws.layout import Layout
from scalejax.analysis.laws.solver import Lane, Rows, Solution, State, advance, begin, log_residuals, solution
from scalejax.files import keep_programs

Array = Any
SLOTS, BLOCK = 8, 256
RANKS = Lane(theta=1, low=1, high=1, fixed=1, weights=1, log_loss=1, limit=0)  # of the fields of one lane

Lanes = Callable[[slice], Lane]  # the lanes of a range, as NumPy arrays with or without a leading axis


def sliced(lane: Lane) -> Lanes:
    """Return the lanes of a range of many fits, given as one whose fields may have a leading axis."""
    return lambda part: Lane(
        *(field[part] if np.ndim(field) > rank else field for field, rank in zip(lane, RANKS, strict=True))
    )


@functools.partial(jax.jit, static_argnames="layout")
def _solve_block(layout: Layout, rows: Rows, lanes: Lane, count: Array) -> Solution:
    """Solve the first `count` of a block: every field of `lanes` has a leading axis of BLOCK.

    A few slots advance together. A slot whose fit has ended takes the next of the block, so none waits for the slowest.
    """
    start = jax.vmap(begin)
    step = jax.vmap(functools.partial(advance, layout, rows))

    def take(index: Array) -> Lane:
        return jax.tree.map(lambda field: field.at[index].get(mode="clip"), lanes)

    def body(carry: tuple[Array, Array, State, Solution]) -> tuple[Array, Array, State, Solution]:
        index, upcoming, state, results = carry
        lane = take(index)
        state = step(state, lane)
        news = jax.vmap(solution)(state, lane)
        results = jax.tree.map(lambda old, new: old.at[index].set(new, mode="drop"), results, news)
        done = state.done
        index = jnp.where(done, jnp.minimum(upcoming + jnp.cumsum(done) - 1, BLOCK), index)
        renew = jax.vmap(lambda done, new, old: jax.tree.map(functools.partial(jnp.where, done), new, old))
        state = renew(done, start(take(index)), state)
        return index, upcoming + jnp.sum(done), state, results

    index = jnp.arange(SLOTS)
    first = start(take(index))
    shapes = jax.eval_shape(jax.vmap(solution), first, take(index))
    blank = jax.tree.map(lambda field: jnp.zeros((BLOCK, *field.shape[1:]), field.dtype), shapes)
    carry = index, jnp.array(SLOTS), first, blank
    return jax.lax.while_loop(lambda carry: jnp.any(carry[0] < count), body, carry)[3]


def solve_lanes(layout: Layout, rows: Rows, count: int, lanes: Lanes) -> Solution:
    """Return the solutions of `count` fits, as NumPy arrays with a leading axis.

    Args:
        layout: coordinates, for all fits.
        rows: predictors, for all fits.
        count: number of fits.
        lanes: makes the lanes of a range when their turn comes; fields without a leading axis are shared by all.
    """
    if not count:
        return Solution(np.zeros((0, layout.size)), np.zeros(0), np.zeros(0, np.int32), np.zeros(0, bool))
    keep_programs()
    home = jax.local_devices(backend="cpu")[0]

    def solve(first: int) -> Solution:
        number = min(BLOCK, count - first)
        block = lanes(slice(first, first + number))
        # The last block is filled with its own first lanes, which are not solved.
        fill = np.arange(BLOCK) % number
        own = [
            np.asarray(field)[fill] if np.ndim(field) > rank else np.broadcast_to(field, (BLOCK, *np.shape(field)))
            for field, rank in zip(block, RANKS, strict=True)
        ]
        with jax.enable_x64(True):
            arguments = jax.device_put((rows, Lane(*own), np.int64(number)), home)
            result = _solve_block(layout, *arguments)
            return jax.tree.map(lambda field: np.asarray(field)[:number], result)

    parts = [solve(0)]  # alone, so that its program is compiled once
    if count > BLOCK:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with ThreadPoolExecutor(cores) as pool:
            parts += pool.map(solve, range(BLOCK, count, BLOCK))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


@functools.partial(jax.jit, static_argnames="layout")
def _residuals(layout: Layout, rows: Rows, lanes: Lane) -> Array:
    return jax.vmap(lambda theta: log_residuals(layout, theta, rows, lanes.fixed, lanes.log_loss))(lanes.theta)


def residuals_at(layout: Layout, rows: Rows, lane: Lane) -> np.ndarray:
    """Return log predicted - log observed loss, (S, n), of the same data at coordinates (S, size)."""
    with jax.enable_x64(True):
        arguments = jax.device_put((rows, lane), jax.local_devices(backend="cpu")[0])
        return np.asarray(_residuals(layout, *arguments))
