"""JAX's own settings that change numbers: part of a trial's id, and the same in every thread of a run.

A user sets them for a process, `jax.config.update("jax_default_matmul_precision", "bfloat16")`, or for a block of
code, `with jax.default_matmul_precision("bfloat16"):`. The latter holds in one thread only, and a run has several.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

Numerics = tuple[tuple[str, str | bool | int], ...]  # names and values of the settings that are not at their default

# Setting -> JAX's default, and what makes it hold in a thread.
JAX_OPTIONS: dict[str, tuple[str | bool | int | None, Callable[[Any], contextlib.AbstractContextManager[Any]]]] = {
    "jax_default_matmul_precision": (None, jax.default_matmul_precision),
    "jax_default_prng_impl": ("threefry2x32", jax.default_prng_impl),
    "jax_enable_x64": (False, jax.enable_x64),
    "jax_numpy_dtype_promotion": ("standard", jax.numpy_dtype_promotion),
    "jax_random_seed_offset": (0, contextlib.nullcontext),  # can be set for a process alone
    "jax_threefry_partitionable": (True, jax.threefry_partitionable),
}


def current() -> Numerics:
    """Return the settings of the calling thread that are not at their default, by name."""
    values = {name: getattr(jax.config, name) for name in JAX_OPTIONS}
    return tuple((name, value) for name, value in values.items() if value != JAX_OPTIONS[name][0])


@contextlib.contextmanager
def held(numerics: Numerics) -> Iterator[None]:
    """Let settings hold in this thread within a block; all others are at their default."""
    wanted = dict(numerics)
    with contextlib.ExitStack() as exits:
        for name, (default, context) in JAX_OPTIONS.items():
            exits.enter_context(context(wanted.get(name, default)))
        yield


def hold(numerics: Numerics) -> None:
    """Let settings hold in this thread for as long as it lives; all others are at their default."""
    wanted = dict(numerics)
    for name, (default, context) in JAX_OPTIONS.items():
        context(wanted.get(name, default)).__enter__()
