"""Advice from a run or from any table: more data, or a bigger model, and which trials next."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.directory import FIGURES, LEDGER, SWEEP
from scalejax.run.fits import LEVEL
from scalejax.run.store import Store
from scalejax.spec import ModelGrid, Sweep

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.analysis.forecast.observed import Observed
    from scalejax.analysis.forecast.statement import Advice

COMPUTE = 10.0  # times that of the run with the most, unless asked for otherwise
ENDLESS = ("land", "mnist1d")  # sources that make as many examples as are asked for
NEXT = "next_trials"  # the folder of the suggested sweeps


class HasDirectory(Protocol):
    """A run, as far as advice needs it."""

    @property
    def directory(self) -> Path:
        """Where its tables are."""
        ...


@dataclass(frozen=True)
class Advised:
    """Advice and what was written beside it.

    Attributes:
        advice: as described.
        figures: the files of the picture.
        sweeps: sweep files of the suggested trials, ready to run.
        notes: what could not be written, and why.
    """

    advice: "Advice"
    figures: tuple[Path, ...]
    sweeps: tuple[Path, ...]
    notes: tuple[str, ...]


def advise(
    source: "HasDirectory | pd.DataFrame | str | os.PathLike[str]",
    *,
    target: float | None = None,
    compute: float = COMPUTE,
    columns: Mapping[str, str] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> "Advice":
    """Say whether more data or a bigger model helps, what each would bring, and which trials would tell more.

    Args:
        source: a run, its directory, a CSV or Parquet file, or a table in memory: one row a run.
        target: a loss (or error) whose price is asked for.
        compute: a budget, in times the FLOPs of the run with the most compute.
        columns: of a table: "params", "tokens" or "examples", "loss", "flops", "family", "seed" -> their columns, where
            they are called otherwise.
        level: probability of the intervals.
        seed: the random seed of the forecast.

    Raises:
        ValueError: the caller's mistake, or too few results.
        SweepError: there are no results.
    """
    from scalejax.analysis.forecast.advice import advise_rows

    return advise_rows(_observed(source, columns or {}), target=target, compute=compute, level=level, seed=seed)


def advise_source(
    source: Path,
    *,
    target: float | None = None,
    compute: float = COMPUTE,
    columns: Mapping[str, str] | None = None,
    level: float = LEVEL,
    seed: int = 0,
    figures: str | os.PathLike[str] | None = None,
) -> Advised:
    """Advise as `advise` does, draw the picture, and write the suggested trials as sweep files.

    Args:
        source: the directory of a run, or a table.
        target, compute, columns, level, seed: as for `advise`.
        figures: the folder to draw into; by default that of the run, and none for a table.

    Raises:
        ValueError: the caller's mistake, or too few results.
        SweepError: there are no results, or a file cannot be written.
    """
    from scalejax.analysis.forecast.advice import advise_rows
    from scalejax.report.figures.canvas import save_figure
    from scalejax.report.figures.learning_curves import scale_picture

    observed = _observed(source, columns or {})
    advice = advise_rows(observed, target=target, compute=compute, level=level, seed=seed)
    folder = figures or (source / FIGURES if source.is_dir() else None)
    paths, sweeps, notes = (), (), ()
    try:
        if folder is not None:
            picture = scale_picture(observed.curves, advice, title=advice.statements[0].sentence)
            paths = save_figure(picture.figure, folder, "advice") if picture is not None else ()
        if source.is_dir():
            sweeps, notes = write_sweeps(source, observed, advice)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); give another folder with --figures"
        raise SweepError(f"{folder}: {problem}") from error
    return Advised(advice, tuple(paths), sweeps, notes)


def _observed(source: Any, columns: Mapping[str, str]) -> "Observed":
    import pandas as pd

    from scalejax.analysis.forecast.observed import observed_of_table
    from scalejax.analysis.tables import read_table

    if isinstance(source, pd.DataFrame):
        return observed_of_table(source, columns=columns)
    path = Path(getattr(source, "directory", source))
    if not path.is_dir():
        return observed_of_table(read_table(path), columns=columns)
    if columns:
        raise ValueError("columns are for a table: a run's own are known.")
    with Store(path / LEDGER, write=False) as store:
        return observed_in(path, store.results())


def observed_in(directory: Path, rows: "pd.DataFrame") -> "Observed":
    """Return what advice on a run is made from.

    Raises:
        ValueError: no trial counts.
    """
    from scalejax.analysis.forecast.observed import observed_of_run

    return observed_of_run(rows, most_data=_pool(directory, rows))


def _pool(directory: Path, rows: "pd.DataFrame") -> float:
    """Return how many examples a trial can have at most: the pool, where the source does not make more."""
    from scalejax.spec.file import data_key

    if data_key(directory / SWEEP, "source") in ENDLESS:
        return math.inf
    fractions = rows["fraction"].to_numpy(dtype=float, na_value=math.nan)
    pools = rows["train_examples"].to_numpy(dtype=float) / fractions
    return float(np.nanmax(pools)) if np.isfinite(pools).any() else math.inf


def write_sweeps(directory: Path, observed: "Observed", advice: "Advice") -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Write a sweep file for each suggested trial; a note says why there is none."""
    from scalejax.spec.file import load_sweep, sweep_to_toml

    try:
        sweep = load_sweep(directory / SWEEP)
        wanted = [
            _sweep_of(sweep, observed, trial, number)
            for number, trial in enumerate(advice.trials.to_dict("records"), 1)
        ]
        texts = [sweep_to_toml(each) for each in wanted]
    except (SweepError, ValueError) as error:
        return (), (f"no sweep file of the next trials: {error}",)
    paths = [directory / NEXT / f"{each.name}.toml" for each in wanted]
    (directory / NEXT).mkdir(exist_ok=True)
    for path, text in zip(paths, texts, strict=True):
        write_atomically(path, text)
    return tuple(paths), ()


def _sweep_of(sweep: Sweep, observed: "Observed", trial: Mapping[str, Any], number: int) -> Sweep:
    """Return the sweep with one model and one number of examples: those of a suggested trial."""
    grid = next((each for each in sweep.models if _named(each) == observed.family), None)
    if grid is None:
        raise SweepError(f"the family {observed.family} is not in the sweep file")
    knob, power = observed.knob
    if knob is None:
        raise SweepError(f"no size knob of {observed.family} varies, so none is known to scale")
    largest = observed.own.sort_values("params").iloc[-1]
    start, params = float(largest[knob]), float(largest["params"])
    value = max(1, round(start * (trial["params"] / params) ** (1 / power)))
    own = {name: (int(largest[name]) if float(largest[name]).is_integer() else largest[name],)
           for name in grid.knobs if name != knob and len(grid.knobs[name]) > 1}  # fmt: skip
    examples = round(trial["data"])
    pool = max(sweep.data.examples or 0, examples) if sweep.data.examples or sweep.data.source in ENDLESS else None
    return replace(
        sweep,
        name=f"{sweep.name}_next_{number}",
        models=(ModelGrid(grid.family, {**grid.knobs, **own, knob: value}),),
        data=replace(sweep.data, train_examples=(examples,), fractions=None, examples=pool),
        train=replace(sweep.train, halving=None),
    )


def _named(grid: ModelGrid) -> str:
    return grid.family if isinstance(grid.family, str) else getattr(grid.family, "__name__", "")
