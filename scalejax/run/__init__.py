"""A run: a sweep carried out in a directory."""

from scalejax.run.advice import advise
from scalejax.run.fits import Fits, fit_source
from scalejax.run.run import Run, carry_out, plan, planned, run_sweep, same_on_all_hosts

__all__ = ["Fits", "Run", "advise", "carry_out", "fit_source", "plan", "planned", "run_sweep", "same_on_all_hosts"]
