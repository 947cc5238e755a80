"""Advice from a run or from any table: more data, or a bigger model, and which trials next."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.directory import FIGURES, LEDGER, SWEEP, unit_of
from scalejax.run.fits import LEVEL
from scalejax.run.store import Store
from scalejax.spec import ModelGrid, Sweep
from scalejax.spec.sweep import OWN_NUMBERS
from scalejax.status import Status
from scalejax.text import listing

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.analysis.forecast.observed import Observed
    from scalejax.analysis.forecast.statement import Advice
    from scalejax.report.sections import Suggested

COMPUTE = 10.0  # times that of the run with the most, unless asked for otherwise
ENDLESS = ("land", "mnist1d")  # sources that make as many examples as are asked for
NEXT = "next_trials"  # the folder of the suggested sweeps
RATES = 3  # of a suggested sweep: the tuned one and its neighbours


class HasDirectory(Protocol):
    """A run, as far as advice needs it."""

    @property
    def directory(self) -> Path:
        """Where its tables are."""
        ...


RunOrPath = HasDirectory | str | os.PathLike[str]


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
    source: "RunOrPath | pd.DataFrame | Sequence[RunOrPath]",
    *,
    target: float | None = None,
    compute: float = COMPUTE,
    columns: Mapping[str, str] | None = None,
    level: float = LEVEL,
    seed: int = 0,
) -> "Advice":
    """Say whether more data or a bigger model helps, what each would bring, and which trials would tell more.

    Args:
        source: a run, its directory, a CSV or Parquet file, or a table in memory: one row a run. Or several runs on the
            same data, such as a sweep and those of its next trials, whose trials are taken together.
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
    sources: Sequence[Path],
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
        sources: the directory of a run, and those of further runs on the same data; or a table. Pictures and suggested
            trials are those of the first.
        target, compute, columns, level, seed: as for `advise`.
        figures: the folder to draw into; by default that of the run, and none for a table.

    Raises:
        ValueError: the caller's mistake, or too few results.
        SweepError: there are no results.
    """
    from scalejax.analysis.forecast.advice import advise_rows
    from scalejax.report.figures.canvas import save_figure
    from scalejax.report.figures.learning_curves import scale_picture

    observed, source = _observed(sources, columns or {}), sources[0]
    advice = advise_rows(observed, target=target, compute=compute, level=level, seed=seed)
    folder = figures or (source / FIGURES if source.is_dir() else None)
    paths, sweeps, notes = (), (), ()
    if folder is not None:
        title = advice["answer"].sentence
        unit = unit_of(source, None, str(observed.curves["metric"].iloc[0])) if source.is_dir() else ""
        picture = scale_picture(observed.curves, advice, title=title, unit=unit)
        try:
            paths = save_figure(picture.figure, folder, "advice") if picture is not None else ()
        except OSError as error:
            notes = (f"{folder}: the figure cannot be written ({error.strerror or error}); give another folder with "
                     "--figures",)  # fmt: skip
    if source.is_dir():
        suggested, missing = next_sweeps(source, observed, advice, first=len(sources))
        unwritten = write_sweeps(suggested)
        sweeps = () if unwritten else tuple(Path(each.path) for each in suggested)
        notes = (*notes, *missing, *unwritten)
    return Advised(advice, tuple(paths), sweeps, notes)


def _observed(source: Any, columns: Mapping[str, str]) -> "Observed":
    import pandas as pd

    from scalejax.analysis.forecast.observed import observed_of_table
    from scalejax.analysis.tables import read_table

    if isinstance(source, pd.DataFrame):
        return observed_of_table(source, columns=columns)
    several = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    paths = list(dict.fromkeys(Path(getattr(each, "directory", each)) for each in several))
    if not paths:
        raise ValueError("No run is given to advise on: name at least one.")
    if len(paths) == 1 and not paths[0].is_dir():
        return observed_of_table(read_table(paths[0]), columns=columns)
    if columns:
        raise ValueError("columns are for a table: a run's own are known.")
    return observed_in(paths[0], _together(paths))


def _together(directories: "Sequence[Path]") -> "pd.DataFrame":
    """Return the trials of some runs on the same data as one table, each trial once.

    Raises:
        SweepError: a directory holds no run, or one on other data, or of models with size knobs that the first lacks.
    """
    import pandas as pd

    from scalejax.analysis.curves.tuning import knob_columns
    from scalejax.spec.file import data_key

    tables = []
    for directory in directories:
        with Store(directory / LEDGER, write=False) as store:
            tables.append(store.results())
        first, here = (data_key(each / SWEEP, "source") for each in (directories[0], directory))
        if here != first:
            raise SweepError(
                f"{directory} was trained on {here}, {directories[0]} on {first}: advise takes one data set"
            )
        if other := sorted(set(knob_columns(tables[-1])) - set(knob_columns(tables[0]))):
            problem = f"has models with {listing(other)}, which those of {directories[0]} lack"
            raise SweepError(f"{directory} {problem}: name it first")
    if len(tables) == 1:
        return tables[0]
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    # A trial may be running in one run and have ended in another.
    done_first = np.argsort((rows["status"] != Status.DONE).to_numpy(), kind="stable")
    return rows.iloc[done_first].drop_duplicates("trial_id").sort_index().reset_index(drop=True)


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


def next_sweeps(
    directory: Path, observed: "Observed", advice: "Advice", *, first: int = 1
) -> "tuple[tuple[Suggested, ...], tuple[str, ...]]":
    """Return a sweep file for each suggested trial, not yet written; a note says why there is none.

    Args:
        directory: of the run.
        observed: its rows.
        advice: on them.
        first: the number of the first sweep; that of runs that suggested trials have already is not given again.
    """
    from scalejax.report.sections import Suggested
    from scalejax.spec.file import load_sweep, sweep_to_toml

    try:
        sweep = load_sweep(directory / SWEEP)
        wanted = [
            _sweep_of(sweep, observed, trial, number)
            for number, trial in enumerate(advice.trials.to_dict("records"), first)
        ]
        found = [
            Suggested(str(directory / NEXT / f"{each.name}.toml"), sweep_to_toml(each), _trials(each))
            for each in wanted
        ]
    except (SweepError, ValueError) as error:
        return (), (f"no sweep file of the next trials: {error}",)
    return tuple(found), ()


def write_sweeps(suggested: "Sequence[Suggested]") -> tuple[str, ...]:
    """Write the sweep files of suggested trials; a note says why they cannot be."""
    try:
        for each in suggested:
            path = Path(each.path)
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, each.text)
    except OSError as error:
        return (f"the sweep files of the next trials cannot be written ({error.strerror or error})",)
    return ()


def _trials(sweep: Sweep) -> int:
    """Return how many trials a sweep of one model on one number of examples has."""
    grids = ("learning_rate", "batch_size", "weight_decay", *OWN_NUMBERS)
    features = sum(len(grid.features or (None,)) for grid in sweep.models)
    return features * len(sweep.seeds) * math.prod(len(getattr(sweep.train, name) or (None,)) for name in grids)


def _sweep_of(sweep: Sweep, observed: "Observed", trial: Mapping[str, Any], number: int) -> Sweep:
    """Return the sweep with one model and one number of examples, those of a suggested trial, near tuned settings."""
    from scalejax.planning.trial import family_name

    grids = [each for each in sweep.models if family_name(each) == observed.family]
    if not grids:
        raise SweepError(f"the family {observed.family} is not in the sweep file")
    largest: Any = observed.own.sort_values("params").iloc[-1]
    grid = next((each for each in grids if _holds(each, largest)), grids[0])
    knob, power = observed.knob
    if knob is None:
        raise SweepError(f"no size knob of {observed.family} varies, so none is known to scale")
    # Of the knobs of its grid the one of most values where the others are the largest model's.
    beside = {name: _alike(observed, grid, largest, but=name) for name in grid.knobs if _numeric(observed, name)}
    several = {name: rows[name].nunique() for name, rows in beside.items() if rows["params"].nunique() > 1}
    knob = max(several, key=several.__getitem__, default=knob)
    alike = beside.get(knob, observed.own)
    value = max(1, round(_scaled(alike, knob, trial["params"], power)))
    knobs = {name: _one(values, largest.get(name)) for name, values in grid.knobs.items()} | {knob: value}
    features = {} if grid.features is None else {"features": grid.features}
    examples = round(trial["data"])
    pool = max(sweep.data.examples or 0, examples) if sweep.data.examples or sweep.data.source in ENDLESS else None
    rates = _near(sweep.train.learning_rate, _tuned_rate(observed, str(largest["model"]), trial["data"]))
    halving = sweep.train.halving if len(rates) > RATES else None
    return replace(
        sweep,
        name=f"{sweep.name}_next_{number}",
        models=(ModelGrid(grid.family, {**knobs, **features}),),
        data=replace(sweep.data, train_examples=(examples,), fractions=None, examples=pool),
        train=replace(sweep.train, learning_rate=rates, halving=halving),
    )


def _numeric(observed: "Observed", knob: str) -> bool:
    return knob in observed.knobs and observed.own[knob].dtype.kind in "iuf"


def _alike(observed: "Observed", grid: ModelGrid, model: Any, *, but: str) -> Any:
    """Return the rows of the models of a family that are as one is, but for one knob, a number."""
    rows = observed.own
    for name in observed.knobs:
        if name in grid.knobs:
            rows = rows[rows[name] > 0] if name == but else rows[rows[name] == model[name]]
    return rows


def _one(values: tuple[Any, ...], own: Any) -> tuple[Any, ...]:
    """Return of the values of a knob that of a model, spelled as the sweep has it; all where the model has none."""
    return next(((value,) for value in values if value == own), values)


def _holds(grid: ModelGrid, model: Any) -> bool:
    """Say whether a model may have come from a grid: each of its knobs is one of the grid's values."""
    return all(name in model and model[name] in values for name, values in grid.knobs.items())


def _scaled(rows: Any, knob: str, params: float, power: float) -> float:
    """Return the value of a knob at which a model has so many parameters, by the power law of the two sizes next to it.

    Args:
        rows: models that differ in that knob alone: the knob, params.
        knob: the name of its column.
        params: that are asked for.
        power: with which parameters grow with the knob, where there are no two sizes.
    """
    sizes = rows.groupby("params")[knob].first().astype(float).sort_index()
    known, values = np.log(sizes.index.to_numpy(float)), np.log(sizes.to_numpy(float))
    place = int(np.clip(np.searchsorted(known, math.log(params)), 1, max(len(known) - 1, 1)))
    if len(known) > 1 and values[place] > values[place - 1]:
        power = (known[place] - known[place - 1]) / (values[place] - values[place - 1])
    nearest = int(np.argmin(np.abs(known - math.log(params))))
    return math.exp(values[nearest] + (math.log(params) - known[nearest]) / power)


def _tuned_rate(observed: "Observed", model: str, data: float) -> float:
    """Return the tuned learning rate of a model on the number of examples next to one; NaN where none is known."""
    curves = observed.curves
    if "learning_rate" not in curves:
        return math.nan
    own = curves[(curves["model"] == model) & (curves["learning_rate"] > 0)]
    if own.empty:
        return math.nan
    distance = np.abs(np.log(own["train_examples"].to_numpy(float) / data))
    return float(own["learning_rate"].iloc[int(np.argmin(distance))])


def _near(rates: Sequence[float], tuned: float) -> tuple[float, ...]:
    """Return the tuned learning rate with its neighbours in the grid, three in all; all rates if it is not known."""
    if not tuned > 0 or len(rates) <= RATES:
        return tuple(rates)
    ordered = sorted(rates)
    place = int(np.argmin(np.abs(np.log(np.array(ordered) / tuned))))
    first = min(max(place - RATES // 2, 0), len(ordered) - RATES)
    return tuple(ordered[first : first + RATES])
