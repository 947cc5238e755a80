"""Scaling sweeps in JAX: train many model sizes on many data fractions at once, and see what scale buys."""

from typing import TYPE_CHECKING, Any

from scalejax.errors import FitError, Interrupted, RunError, SweepError
from scalejax.run import Fits, Run, plan, run_sweep
from scalejax.spec import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec
from scalejax.spec.file import load_sweep

if TYPE_CHECKING:
    from scalejax.analysis.compute.allocation import (
        Allocation,
        Frontier,
        Misallocation,
        compute_optimal,
        fit_envelope,
        fit_isoflop,
        misallocation,
    )
    from scalejax.analysis.laws.fit import Fit, fit_law
    from scalejax.analysis.laws.law import Law, Parameter

__all__ = [
    "Allocation",
    "DataSpec",
    "Fit",
    "FitError",
    "Fits",
    "Frontier",
    "HalvingSpec",
    "Interrupted",
    "Law",
    "Misallocation",
    "ModelGrid",
    "Parameter",
    "Run",
    "RunError",
    "Sweep",
    "SweepError",
    "TrainSpec",
    "compute_optimal",
    "fit_envelope",
    "fit_isoflop",
    "fit_law",
    "load_sweep",
    "misallocation",
    "plan",
    "run_sweep",
]
# Their modules import JAX, which takes a second: only when they are asked for.
_LATE = {
    "Fit": "scalejax.analysis.laws.fit",
    "Law": "scalejax.analysis.laws.law",
    "Parameter": "scalejax.analysis.laws.law",
    "fit_law": "scalejax.analysis.laws.fit",
    **dict.fromkeys(
        (
            "Allocation",
            "Frontier",
            "Misallocation",
            "compute_optimal",
            "fit_envelope",
            "fit_isoflop",
            "misallocation",
        ),
        "scalejax.analysis.compute.allocation",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATE[name]), name)
