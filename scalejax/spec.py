"""What a sweep is: frozen, strictly validated dataclasses, and the TOML file they are read from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Knob = int | float | str | bool


@dataclass(frozen=True)
class DataSpec:
    """The data of a sweep: where it comes from and which numbers of training examples are tried.

    Exactly one of `train_examples` (numbers) and `fractions` (shares in (0, 1] of the pool) is given.
    """

    source: str
    train_examples: tuple[int, ...] | None = None
    fractions: tuple[float, ...] | None = None
    examples: int | None = None  # size of the training pool; default: the largest of train_examples, or all there is
    validation_examples: int | None = None  # default: the source's own
    test_examples: int | None = None
    seed: int = 0  # draws generated data and the split; NOT the trial's seed
    fourier_features: int | None = None  # land only: number of random Fourier features; None or 0 is none
    fourier_scale: float | None = None  # land only: their angular frequency scale, in cycles per radian


@dataclass(frozen=True)
class ModelGrid:
    """A family of models and the grid of its size knobs, for instance ("mlp", {"width": (8, 32), "depth": (2,)})."""

    family: str | Callable[..., Any]
    knobs: Mapping[str, tuple[Knob, ...]]


@dataclass(frozen=True)
class TrainSpec:
    """How every trial is trained. Lists are grids."""

    learning_rate: tuple[float, ...]
    batch_size: tuple[int, ...]
    optimizer: str = "adamw"  # adamw, sgd, momentum, lion
    weight_decay: tuple[float, ...] = (0.0,)
    schedule: str = "cosine"  # cosine, constant
    warmup_fraction: float = 0.0  # share of the horizon, in [0, 1)
    clip_norm: float | None = None
    steps: int | None = None  # exactly one of steps and epochs
    epochs: float | None = None  # of the trial's own fraction, then clipped to [min_steps, max_steps]
    min_steps: int | None = None
    max_steps: int | None = None
    evaluate_every: int | None = None  # steps; default: about a twentieth of the horizon
    patience: int | None = None  # evaluations without improvement


@dataclass(frozen=True)
class Sweep:
    """All trials of one question: the product of its grids."""

    name: str
    data: DataSpec
    models: tuple[ModelGrid, ...]
    train: TrainSpec
    seeds: tuple[int, ...] = (0,)


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep file."""
    raise NotImplementedError
