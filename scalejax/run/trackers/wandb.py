"""Weights & Biases: a sweep is one run, whose series have a step for each trial that has ended."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import SweepError
from scalejax.run.trackers.series import PROJECT, STEP, Series, without_missing

if TYPE_CHECKING:
    import pandas as pd

WITHOUT_ACCOUNT = "offline", "disabled"  # modes


def tracker(project: str | None, directory: Path) -> "Wandb":  # noqa: ARG001  # W&B has a folder of its own
    """Return the tracker.

    Raises:
        ImportError: wandb is not installed.
        SweepError: nobody is logged in.
    """
    wandb = importlib.import_module("wandb")
    mode, key = (os.environ.get(name, "") for name in ("WANDB_MODE", "WANDB_API_KEY"))
    if mode not in WITHOUT_ACCOUNT and not key and not _logged_in(wandb):
        remedy = "run `wandb login`, or set the environment variable WANDB_MODE=offline"
        raise SweepError(f"tracker: wandb is not logged in, and would ask in the middle of the run; {remedy}")
    return Wandb(wandb, project or PROJECT)


def _logged_in(wandb: Any) -> bool:
    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # the network, or a version that asks in another way: it is for `init` to say
        return True


class Wandb:
    """Writes to Weights & Biases.

    Args:
        wandb: the module.
        project: of the run.
    """

    def __init__(self, wandb: Any, project: str):
        self._wandb, self._project = wandb, project
        self._run: Any = None
        self._series = Series()

    def init(self, facts: Mapping[str, Any]) -> None:
        """Begin a run; those of one sweep that was interrupted are a group."""
        settings = self._wandb.Settings(console="off")  # our progress is no log, and stays as it is
        name = facts["name"]
        self._run = self._wandb.init(
            project=self._project, name=name, group=name, config=dict(facts), settings=settings
        )
        self._series = Series(facts["ended"])
        self._run.define_metric(STEP, hidden=True)
        for each in ("trial/*", "count/*", "best/*"):
            self._run.define_metric(each, step_metric=STEP)

    def log(self, trial: Mapping[str, Any], measurements: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002
        """Add a point to each series; the measurements of all trials come in one table at the end."""
        self._run.log(self._series.point(trial))

    def finish(self, tables: "Mapping[str, pd.DataFrame]", figures: Sequence[Path]) -> None:
        """Add tables and figures, and end the run."""
        if self._run is None:
            return
        last: dict[str, Any] = {
            f"tables/{name}": self._wandb.Table(dataframe=without_missing(table)) for name, table in tables.items()
        }
        last |= {f"figures/{path.stem}": self._wandb.Image(str(path)) for path in figures}
        if last:
            self._run.log(last)
        self._run.summary.update(self._series.best)
        self._run.finish()
