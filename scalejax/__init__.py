"""Scaling sweeps in JAX: train many model sizes on many data fractions at once, and see what scale buys."""

from typing import TYPE_CHECKING, Any

from scalejax.data import Facts, Features, Source, Split, arrays
from scalejax.errors import FitError, Interrupted, RunError, SweepError
from scalejax.run import Fits, Run, advise, plan, run_sweep
from scalejax.run.trackers import Tracker
from scalejax.spec import DataSpec, HalvingSpec, ModelGrid, Sweep, TrainSpec
from scalejax.spec.file import load_sweep

if TYPE_CHECKING:
    from scalejax.analysis.compute.allocation import Allocation, Misallocation, compute_optimal, misallocation
    from scalejax.analysis.compute.approaches import fit_envelope, fit_isoflop
    from scalejax.analysis.compute.frontier import Frontier
    from scalejax.analysis.forecast.extrapolate import Extrapolation, extrapolate
    from scalejax.analysis.forecast.statement import Advice, Statement
    from scalejax.analysis.laws.fit import Fit, fit_law
    from scalejax.analysis.laws.law import Law, Parameter
    from scalejax.train.task import Classification, Regression, Task

__all__ = [
    "Advice",
    "Allocation",
    "Classification",
    "DataSpec",
    "Extrapolation",
    "Facts",
    "Features",
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
    "Regression",
    "Run",
    "RunError",
    "Source",
    "Split",
    "Statement",
    "Sweep",
    "SweepError",
    "Task",
    "Tracker",
    "TrainSpec",
    "advise",
    "arrays",
    "compute_optimal",
    "extrapolate",
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
    "analysis.laws.fit": ("Fit", "fit_law"),
    "analysis.laws.law": ("Law", "Parameter"),
    "analysis.forecast.statement": ("Advice", "Statement"),
    "analysis.forecast.extrapolate": ("Extrapolation", "extrapolate"),
    "train.task": ("Classification", "Regression", "Task"),
    "analysis.compute.allocation": ("Allocation", "Misallocation", "compute_optimal", "misallocation"),
    "analysis.compute.approaches": ("fit_envelope", "fit_isoflop"),
    "analysis.compute.frontier": ("Frontier",),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    for module, names in _LATE.items():
        if name in names:
            import importlib

            return getattr(importlib.import_module(f"scalejax.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
