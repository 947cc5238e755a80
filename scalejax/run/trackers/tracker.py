"""What a tracker is: three calls, which a run makes from a thread of their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Tracker(Protocol):
    """An experiment tracker, as `run_sweep(..., tracker=...)` takes it.

    The calls come one after the other, from one thread that is not the main one; they may block. What they raise is
    told in a sentence, and ends the tracking but never the run.
    """

    def init(self, facts: Mapping[str, Any]) -> None:
        """Begin.

        Args:
            facts: name and directory of the sweep, how many trials it has and how many of them had ended before,
                families, train_examples (a list), device, devices, useful_flops, versions, and sweep: its file as text.
        """
        ...

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:
        """Take note of a trial that has ended.

        Args:
            trial: its row, with the columns of `Run.results`; what is not known is None.
            measurements: its rows of `Run.measurements` without validation_error, by step; none of an algorithm of
                scikit-learn.
        """
        ...

    def finish(self, tables: "Mapping[str, pd.DataFrame]", figures: Sequence[Path]) -> None:
        """End, also where the run was interrupted.

        Args:
            tables: "trials", "measurements" and, once a trial is done, "learning_curves".
            figures: PNG files.
        """
        ...
