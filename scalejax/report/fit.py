"""Fitted laws as plain data, and as tables and sentences in the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from scalejax.text import number_of, percent

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit

MOST_CURVES_SPELLED = 3  # above, a table has a line a curve instead of a line a parameter


def fit_facts(
    fits: Mapping[str, "Fit"], columns: Mapping[str, str], *, level: float, notes: Sequence[str] = ()
) -> dict[str, Any]:
    """Return fits as plain data.

    Args:
        fits: of one law, by the name of the curve; "" where there is one for all rows.
        columns: the law's name -> the column of the table.
        level: of the intervals.
        notes: what a reader must know about the rows, one sentence each.
    """
    law = next(iter(fits.values())).law
    return {
        "law": law.name,
        "formula": law.formula,
        "paper": law.paper,
        "columns": dict(columns),
        "level": level,
        "meanings": {parameter.name: parameter.meaning for parameter in law.parameters},
        "fits": [
            {
                "curve": curve,
                "params": dict(fit.params),
                "standard_errors": fit.standard_errors,
                "intervals": {name: list(ends) for name, ends in fit.intervals(level).items()},
                "objective": fit.objective,
                "status": fit.status,
                "rows": fit.rows,
                "excluded": dict(fit.excluded),
                "duplicates": fit.duplicates,
                "resamples": len(next(iter(fit.replicates.values()))),
                "failed_resamples": fit.failed_resamples,
            }
            for curve, fit in fits.items()
        ],
        "notes": list(notes),
    }


def fit_tables(facts: Mapping[str, Any]) -> list[Table | str]:
    """Return fits, given as plain data, as tables and sentences."""
    columns = ", ".join(f"{name} = {column}" for name, column in facts["columns"].items())
    parts: list[Table | str] = [f"{facts['law']}: {facts['formula']} ({facts['paper']})", f"columns: {columns}"]
    fits = facts["fits"]
    if len(fits) > MOST_CURVES_SPELLED:
        names = list(fits[0]["params"])
        table = _table("curve", *names, "rows")
        for fit in fits:
            cells = [f"{fit['params'][name]:.4g} ± {fit['standard_errors'][name]:.2g}" for name in names]
            table.add_row(fit["curve"], *cells, f"{fit['rows']}")
        parts.append(table)
    else:
        for fit in fits:
            level = f"{percent(facts['level'])} interval"
            table = _table("parameter", "value", "standard error", level, "meaning", title=fit["curve"] or None)
            for name, value in fit["params"].items():
                low, high = fit["intervals"][name]
                meaning = facts["meanings"].get(name.partition("[")[0], "")
                error = f"{fit['standard_errors'][name]:.3g}"
                table.add_row(name, f"{value:.5g}", error, f"{low:.4g} to {high:.4g}", meaning)
            parts.append(table)
    for fit in fits:
        parts += _sentences(fit)
    return [*parts, *(f"note: {note}" for note in facts["notes"])]


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("curve", "parameter", "meaning") else "right")
    return table


def _sentences(fit: Mapping[str, Any]) -> list[str]:
    """Say how a fit went, what was left out, and what to beware of."""
    name = f"{fit['curve']}: " if fit["curve"] else ""
    out = [f"{name}{fit['status']} ({number_of(fit['rows'], 'row')}, objective {fit['objective']:.6g})"]
    if fit["excluded"]:
        rows = (f"{number_of(number, 'row')} ({reason})" for reason, number in fit["excluded"].items())
        out.append(f"  left out: {', '.join(rows)}")
    if fit["duplicates"]:
        repeat = "row repeats another" if fit["duplicates"] == 1 else "rows repeat others"
        out.append(f"  {fit['duplicates']:,} {repeat} exactly; resamples keep them together")
    if fit["failed_resamples"]:
        resamples = number_of(fit["failed_resamples"], "resample")
        out.append(f"  {resamples} could not be fitted, and no interval counts them")
    return out
