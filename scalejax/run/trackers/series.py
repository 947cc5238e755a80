"""What the trackers of whole runs show along a sweep: one step a trial that has ended."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Of a trial, as one point of each series.
POINTS = (
    *("train_loss", "validation_loss", "test_loss", "test_metric", "params", "train_examples", "learning_rate"),
    *("steps_taken", "seconds"),
)
PROJECT = "scalejax"  # where none is named
STEP = "trials_ended"  # the axis of all series


class Series:
    """Turns trials, as they end, into points of series. A sweep is one run of the tracker, and not a thousand of them.

    The series: `trial/<column>` of each trial, `count/<status>`, and the lowest validation loss so far,
    `best/validation_loss`, with that trial's test loss and metric.

    Args:
        ended: trials that had ended before.
    """

    def __init__(self, ended: int = 0):
        self.ended = ended
        self._best: Mapping[str, Any] | None = None
        self._counts: dict[str, int] = {}

    def point(self, trial: Mapping[str, Any]) -> dict[str, float]:
        """Return the values of all series at a trial that has ended; what is not a finite number is left out."""
        self.ended += 1
        status = str(trial["status"])
        self._counts[status] = self._counts.get(status, 0) + 1
        loss = trial["validation_loss"]
        if status == "done" and _finite(loss) and (self._best is None or loss < self._best["validation_loss"]):
            self._best = trial
        values: dict[str, Any] = {STEP: self.ended}
        values |= {f"trial/{name}": trial.get(name) for name in POINTS}
        values |= {f"count/{name}": count for name, count in self._counts.items()}
        return {name: value for name, value in (values | self.best).items() if _finite(value)}

    @property
    def best(self) -> dict[str, Any]:
        """The losses of the best trial so far, as values of series."""
        if self._best is None:
            return {}
        return {f"best/{name}": self._best[name] for name in ("validation_loss", "test_loss", "test_metric")}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def without_missing(table: "pd.DataFrame") -> "pd.DataFrame":
    """Return a table whose missing values are None: trackers know no `pandas.NA`."""
    return table.astype(object).where(table.notna(), None)
