"""Optimizers: each a function that returns an optax transformation without its learning rate.

The learning rate and decoupled weight decay are numbers of a lane and are applied by the step. So are the numbers of an
optimizer's own, where a sweep gives others than the default; at the default they are constants of the program, as they
were before a sweep could give any. An optimizer must map zero gradients of zero parameters to zero, or sizes cannot
share a program; that is part of the proof.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Optimizer = Callable[[], optax.GradientTransformation]
SMALLEST_EPS = 1e-30  # a sweep gives none below (a test holds it); said here for the proof of packing


# Optax takes arrays where its annotations ask for numbers.
def adamw(*, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> optax.GradientTransformation:
    """Adam (Kingma & Ba 2015, arXiv:1412.6980); an `eps` above zero keeps zero over zero at zero."""
    return optax.scale_by_adam(b1, b2, eps if isinstance(eps, float) else jnp.maximum(eps, SMALLEST_EPS))


def momentum(*, momentum: Any = 0.9) -> optax.GradientTransformation:
    """Heavy-ball momentum."""
    return optax.trace(decay=momentum)


# Name -> optimizer, its own numbers by keyword only. A sweep file takes names, numbers and defaults from
# `spec.sweep.OPTIMIZER_NUMBERS`, since `spec` may not import `train`; a test holds both equal.
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "sgd": optax.identity,
    "momentum": momentum,
    "lion": optax.scale_by_lion,
}


def make_optimizer(
    optimizer: str | Optimizer, clip_norm: float | None, *, numbers: Mapping[str, jax.Array] | None = None
) -> optax.GradientTransformation:
    """Return an optimizer behind clipping by the global norm where that is wanted.

    Args:
        optimizer: its name, or the user's own.
        clip_norm: the largest norm of a gradient; None: it is not clipped.
        numbers: of a named optimizer, float32 []; those left out have their default.
    """
    rule = OPTIMIZERS[optimizer](**(numbers or {})) if isinstance(optimizer, str) else optimizer()
    return rule if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), rule)
