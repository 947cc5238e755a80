"""Schedules: each a function of the step to the factor that the learning rate has there, behind the warm-up."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Schedule = Callable[[Any, Any], Any]  # the user's own: from step and steps, int32 [], to a factor in [0, 1]


def constant(step: jax.Array, steps: jax.Array, *, warmup_steps: jax.Array, decay_fraction: jax.Array | float) -> float:
    """Return 1."""
    del step, steps, warmup_steps, decay_fraction
    return 1.0


def cosine(
    step: jax.Array, steps: jax.Array, *, warmup_steps: jax.Array, decay_fraction: jax.Array | float
) -> jax.Array:
    """Return half a cosine, from 1 at the end of the warm-up to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    del decay_fraction
    return 0.5 * (1.0 + jnp.cos(jnp.pi * _progress(step, steps, warmup_steps)))


def linear(
    step: jax.Array, steps: jax.Array, *, warmup_steps: jax.Array, decay_fraction: jax.Array | float
) -> jax.Array:
    """Return a line, from 1 at the end of the warm-up to 0."""
    del decay_fraction
    return 1.0 - _progress(step, steps, warmup_steps)


def wsd(step: jax.Array, steps: jax.Array, *, warmup_steps: jax.Array, decay_fraction: jax.Array | float) -> jax.Array:
    """Return 1, and over the last `decay_fraction` of the steps one minus a square root.

    Hu et al. 2024, arXiv:2404.06395; Haegele et al. 2024, arXiv:2405.18392, for the square root.
    """
    del warmup_steps
    decay = jnp.ceil(decay_fraction * steps.astype(jnp.float32))
    return 1.0 - jnp.sqrt(jnp.clip((step - steps + decay) / decay, 0.0, 1.0))


def _progress(step: jax.Array, steps: jax.Array, warmup_steps: jax.Array) -> jax.Array:
    """Return which share of the steps behind the warm-up has been taken."""
    span = jnp.maximum(steps - warmup_steps, 1).astype(jnp.float32)
    return jnp.clip((step - warmup_steps) / span, 0.0, 1.0)


# Name -> factor at a step. A sweep file takes the names of `spec.sweep.SCHEDULES`; a test holds both equal.
SCHEDULES: dict[str, Callable[..., jax.Array | float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "wsd": wsd,
}
