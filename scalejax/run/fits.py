"""A law fitted to a run or to any table: the fits, what they say, and their figure."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalejax.errors import SweepError
from scalejax.run.directory import FIGURES, LEDGER
from scalejax.run.store import Store
from scalejax.text import Shown

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit
    from scalejax.analysis.laws.law import Law

BOOTSTRAP, LEVEL = 1000, 0.9  # unless asked for otherwise


@dataclass(frozen=True, repr=False)
class Fits(Shown):
    """The fits of one law to the curves of a run or a table; it shows itself as `scalejax fit` prints it.

    Attributes:
        fits: by the name of the curve; "" where there is one for all rows.
        facts: what `scalejax fit --json` prints.
    """

    fits: Mapping[str, "Fit"]
    facts: Mapping[str, Any]

    @property
    def figures(self) -> list[Path]:
        """The files of the figure, if it was drawn."""
        return [Path(path) for path in self.facts["figures"]]

    def parts(self) -> list[Any]:
        """Return the tables, of rich, and the sentences that it is shown as."""
        from scalejax.report.fit import fit_tables

        figures = [f"figure: {path}" for path in self.facts["figures"]] or ["no figure; --figures DIR draws one"]
        return [*fit_tables(self.facts), *self.facts["refused"], *figures]

    def __str__(self) -> str:
        from scalejax.report.console import rendered

        return rendered(*self.parts())

    def _repr_html_(self) -> str:
        from scalejax.report.console import as_html

        return as_html(*self.parts())


def fit_source(
    source: Path,
    law: "str | Law",
    *,
    columns: Mapping[str, str] | None = None,
    curves: str | None = None,
    fixed: Mapping[str, float] | None = None,
    shared: Sequence[str] = (),
    ceiling: float | None = None,
    bootstrap: int = BOOTSTRAP,
    seed: int = 0,
    level: float = LEVEL,
    figures: str | os.PathLike[str] | None = None,
) -> Fits:
    """Fit a law to the directory of a run, or to a CSV or Parquet file, and draw the fits.

    Args:
        source: the directory or the file.
        law: a name, or a law of your own.
        columns: the law's predictors and "loss" -> the columns that hold them, where they are called otherwise.
        curves: fit each value of this column of a table by itself.
        fixed, shared, ceiling, bootstrap, seed: as for `fit_law`.
        level: of the intervals.
        figures: the folder to draw into; by default that of the run, and none for a table.

    Raises:
        ValueError: the caller's mistake.
        FitError: none of the curves can be fitted.
        SweepError: there are no results, or the figure cannot be written.
    """
    from scalejax.analysis.laws.laws import find_law
    from scalejax.analysis.tables import fit_table, from_table, from_trials, read_table
    from scalejax.report.figures.canvas import save_figure
    from scalejax.report.figures.laws import fitted_rows, plot_fits
    from scalejax.report.fit import fit_facts

    law = find_law(law)
    if source.is_dir():
        with Store(source / LEDGER, write=False) as store:
            rows = from_trials(law, store.results(), columns=columns or {})
    else:
        rows = from_table(law, read_table(source), columns=columns or {}, curve=curves)
    done = fit_table(law, rows, shared=shared, fixed=fixed, ceiling=ceiling, bootstrap=bootstrap, seed=seed)
    facts = fit_facts(done.fits, rows[0].columns, level=level, notes=rows[0].notes)
    folder = figures or (source / FIGURES if source.is_dir() else None)
    paths: Sequence[Path] = ()
    if folder is not None:
        try:
            figure, data = plot_fits(done.curves, level=level), fitted_rows(done.curves, level=level)
            paths = save_figure(figure, folder, f"fit_{law.name}", data=data)
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error}); give another folder with --figures"
            raise SweepError(f"{folder}: {problem}") from error
    return Fits(done.fits, {**facts, "refused": list(done.refused), "figures": [str(path) for path in paths]})
