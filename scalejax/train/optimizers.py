"""Optimizers: each a function that returns an optax transformation without its learning rate.

The learning rate and decoupled weight decay are numbers of a lane and are applied by the step. An optimizer must map
zero gradients of zero parameters to zero, or sizes cannot share a program; that is part of the proof.
"""

import functools
from collections.abc import Callable

import optax

Optimizer = Callable[[], optax.GradientTransformation]

# The one table that the sweep file needs: name -> optimizer.
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": optax.scale_by_adam,
    "sgd": optax.identity,
    "momentum": functools.partial(optax.trace, decay=0.9),
    "lion": optax.scale_by_lion,
}


def make_optimizer(optimizer: str | Optimizer, clip_norm: float | None) -> optax.GradientTransformation:
    """Return an optimizer, by its name or the user's own, behind clipping by the global norm where that is wanted."""
    rule = OPTIMIZERS[optimizer]() if isinstance(optimizer, str) else optimizer()
    return rule if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), rule)
