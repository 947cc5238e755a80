"""Advice from a run or from any table: more data, or a bigger model, and which trials next."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scalejax.errors import SweepError
from scalejax.files import write_atomically
from scalejax.run.directory import FIGURES, LEDGER, SWEEP, default_directory, read_environment, unit_of
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
    paths: tuple[Path, ...] = ()
    sweeps, notes = (), ()
    if folder is not None:
        title = advice["answer"].sentence
        unit = unit_of(source, None, str(observed.curves["metric"].iloc[0])) if source.is_dir() else ""
        picture = scale_picture(observed.curves, advice, title=title, unit=unit)
        try:
            if picture is not None:
                paths = save_figure(picture.figure, folder, "advice", data=picture.data)
        except OSError as error:
            notes = (f"{folder}: the figure cannot be written ({error.strerror or error}); give another folder with "
                     "--figures",)  # fmt: skip
    if source.is_dir():
        suggested, missing = next_sweeps(source, observed, advice, joined=sources[1:])
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
    several = [source] if isinstance(source, str) or not isinstance(source, Sequence) else list(source)
    if not several:
        raise ValueError("No run is given to advise on: name at least one.")
    if not all(isinstance(each, str | os.PathLike) or hasattr(each, "directory") for each in several):
        raise ValueError("Several sources must be runs or their directories; a table in memory is given alone.")
    paths = {path.resolve(): path for path in (Path(getattr(each, "directory", each)) for each in several)}
    first, *others = paths.values()
    if not others and not first.is_dir():
        return observed_of_table(read_table(first), columns=columns)
    if tables := [str(path) for path in paths.values() if path.is_file()]:
        raise ValueError(f"Several sources must be directories of runs: {tables[0]} is a file.")
    if columns:
        raise ValueError("columns are for a table: a run's own are known.")
    return observed_in(first, _together([first, *others]))


def _together(directories: "Sequence[Path]") -> "pd.DataFrame":
    """Return the trials of some runs on the same data as one table: of the same trials the first that is done.

    Raises:
        SweepError: a directory holds no run, or one on other data, or a family with other size knobs than in the first.
    """
    import pandas as pd

    from scalejax.analysis.curves.tuning import SETTING_COLUMNS, knob_columns

    first, *others = directories
    with Store(first / LEDGER, write=False) as store:
        tables = [store.results()]
    for directory in others:
        if not (directory / LEDGER).is_file() and directory.name in {path.stem for path in _written(first)}:
            asked = first / NEXT / f"{directory.name}.toml"
            raise SweepError(f"{directory} has not been run: scalejax run {shlex.quote(str(asked))}, or leave it out")
        with Store(directory / LEDGER, write=False) as store:
            table = store.results()
        if not _same_task(first, directory):
            raise SweepError(f"{directory} has other [data] or another task than {first}: advise takes one data set")
        for family in set(table["family"]) & set(tables[0]["family"]):
            here, there = (_knobs_of(each, family) for each in (table, tables[0]))
            if here != there:
                has = [listing(sorted(knobs)) if knobs else "no size" for knobs in (here, there)]
                problem = f"{family} with {has[0]}, {first} with {has[1]}"
                raise SweepError(f"{directory} has {problem}: advise takes one kind of model of a name")
        if len(table):
            tables.append(table)
    if len(tables) == 1:
        return tables[0]
    rows = pd.concat(tables, ignore_index=True)
    knobs = list(dict.fromkeys(knob for table in tables for knob in knob_columns(table)))
    others = [name for name in rows if name not in knobs]
    place = others.index("family") + 1  # behind which the columns of all size knobs stand
    rows = rows[[*others[:place], *knobs, *others[place:]]]
    # A trial may be running in one run and have ended in another.
    done_first = np.argsort((rows["status"] != Status.DONE).to_numpy(), kind="stable")
    same = [*knobs, *SETTING_COLUMNS, "family", "params", "train_examples", "seed"]
    return rows.iloc[done_first].drop_duplicates(same).sort_index().reset_index(drop=True)


def _knobs_of(rows: "pd.DataFrame", family: str) -> set[str]:
    """Return the size knobs that the models of a family have."""
    from scalejax.analysis.curves.tuning import knob_columns

    own: Any = rows[rows["family"] == family]
    return {knob for knob in knob_columns(rows) if own[knob].notna().any()}


def _same_task(one: Path, other: Path) -> bool:
    """Say whether two runs are on the same data and task, however many examples each asks for.

    Raises:
        SweepError: the sweep file of one cannot be read.
    """
    from scalejax.spec.file import load_sweep

    sweeps = [load_sweep(directory / SWEEP) for directory in (one, other)]
    if sweeps[0].task != sweeps[1].task:
        return False
    data = [asdict(sweep.data) for sweep in sweeps]
    pools = {each["examples"] for each in data}
    for each in data:
        for amount in ("train_examples", "fractions", "examples"):
            del each[amount]
    # What was read, files and objects in memory too, has a fingerprint, which depends on the size of the pool.
    known = [read_environment(directory) for directory in (one, other)]
    read = [each.get("data") if isinstance(each, dict) else None for each in known]
    return data[0] == data[1] and (len(pools) > 1 or None in read or read[0] == read[1])


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
    directory: Path, observed: "Observed", advice: "Advice", *, joined: Sequence[Path] = ()
) -> "tuple[tuple[Suggested, ...], tuple[str, ...]]":
    """Return a sweep file for each suggested trial, not yet written; a note says why there is none.

    A name stands for one content, so that no sweep runs into the directory of another: a suggestion that has a file
    keeps it, any other gets the next number.

    Args:
        directory: of the run.
        observed: its rows.
        advice: on them.
        joined: directories of further runs that the rows are from.
    """
    from scalejax.report.sections import Suggested
    from scalejax.spec.file import load_sweep, sweep_name, sweep_to_toml

    try:
        sweep = load_sweep(directory / SWEEP)
        stem = f"{sweep.name}_next_"
        known = {_number(path.stem, stem): path.read_text(encoding="utf-8") for path in _written(directory)}
        free = max([0, *known, *(_number(sweep_name(each / SWEEP), stem) for each in joined)]) + 1
        found = []
        for trial in advice.trials.to_dict("records"):
            wanted = _sweep_of(sweep, observed, trial)
            names = {number: replace(wanted, name=f"{stem}{number}") for number in (*known, free)}
            texts = {number: sweep_to_toml(each) for number, each in names.items()}
            number = next((number for number, text in known.items() if texts[number] == text), free)
            free += number == free
            path = directory / NEXT / f"{stem}{number}.toml"
            found.append(Suggested(str(path), texts[number], _trials(wanted)))
    except (OSError, SweepError, ValueError) as error:
        return (), (f"no sweep file of the next trials: {error}",)
    return tuple(found), ()


def _written(directory: Path) -> list[Path]:
    """Return the sweep files of suggested trials that a run has already, in the order of their names."""
    return sorted((directory / NEXT).glob("*.toml"))


def _number(name: str, stem: str) -> int:
    """Return the number of a suggested sweep; 0 if it is none of a run's."""
    number = name.removeprefix(stem)
    return int(number) if number != name and number.isdecimal() else 0


def follow_up(sources: Sequence[Path], sweeps: Sequence[Path]) -> str:
    """Return the command that advises on some runs and those of suggested sweeps together, once these have been run."""
    runs = [*sources, *(default_directory(path.stem) for path in sweeps)]
    return shlex.join(["scalejax", "advise", *dict.fromkeys(map(str, runs))])


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


def _sweep_of(sweep: Sweep, observed: "Observed", trial: Mapping[str, Any]) -> Sweep:
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
    """Return the tuned learning rate with its neighbours in the grid, three in all; all rates if it is not known.

    Where it is an end of the grid, its neighbour there is as far from it as the one inside: the best may lie beyond.
    """
    ordered = sorted(rates)
    if not tuned > 0 or len(ordered) < 2:
        return tuple(rates)
    place = int(np.argmin(np.abs(np.log(np.array(ordered) / tuned))))
    below = ordered[place - 1] if place else _round(ordered[0] ** 2 / ordered[1])
    above = ordered[place + 1] if place + 1 < len(ordered) else _round(ordered[-1] ** 2 / ordered[-2])
    return below, ordered[place], above


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")
