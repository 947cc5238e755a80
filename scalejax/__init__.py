"""Scaling sweeps in JAX: train many model sizes on many data fractions at once, and see what scale buys."""

from scalejax.errors import Interrupted, RunError, SweepError
from scalejax.run import Run, run_sweep
from scalejax.spec import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec
from scalejax.spec_file import load_sweep

__all__ = [
    "DataSpec",
    "HalvingSpec",
    "Interrupted",
    "ModelGrid",
    "Run",
    "RunError",
    "Sweep",
    "SweepError",
    "TrainSpec",
    "load_sweep",
    "run_sweep",
]
