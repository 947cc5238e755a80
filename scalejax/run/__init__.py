"""A run: a sweep carried out in a directory."""

from scalejax.run.run import Run, carry_out, run_sweep

__all__ = ["Run", "carry_out", "run_sweep"]
