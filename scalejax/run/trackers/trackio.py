"""Trackio: local and free, with the calls of Weights & Biases; a sweep is one run here too."""

import contextlib
import importlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.run.trackers.series import PROJECT, STEP, Series, without_missing

if TYPE_CHECKING:
    import pandas as pd


def tracker(project: str | None, directory: Path) -> "Trackio":  # noqa: ARG001  # Trackio has a folder of its own
    """Return the tracker.

    Raises:
        ImportError: trackio is not installed.
    """
    return Trackio(importlib.import_module("trackio"), project or PROJECT)


class Trackio:
    """Writes to Trackio.

    Args:
        trackio: the module.
        project: of the run.
    """

    def __init__(self, trackio: Any, project: str):
        self._trackio, self._project = trackio, project
        self._run: Any = None
        self._series = Series()

    def init(self, facts: Mapping[str, Any]) -> None:
        """Begin a run; those of one sweep that was interrupted are a group."""
        begun = time.strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.redirect_stdout(sys.stderr):  # it tells how to see its dashboard
            self._run = self._trackio.init(
                self._project, name=f"{facts['name']} {begun}", group=facts["name"], config=dict(facts), embed=False
            )
        self._series = Series(facts["ended"])

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002
        """Add a point to each series; the measurements of all trials come in one table at the end."""
        point = self._series.point(trial)
        self._run.log(point, step=int(point[STEP]))

    def finish(self, tables: "Mapping[str, pd.DataFrame]", figures: Sequence[Path]) -> None:
        """Add tables and figures, and end the run."""
        if self._run is None:
            return
        last: dict[str, Any] = {
            f"tables/{name}": self._trackio.Table(dataframe=without_missing(table)) for name, table in tables.items()
        }
        last |= {f"figures/{path.stem}": self._trackio.Image(path) for path in figures}
        with contextlib.redirect_stdout(sys.stderr):
            if last:
                self._run.log(last, step=self._series.ended)
            self._run.finish()
