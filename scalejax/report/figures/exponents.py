"""The picture of exponents: how fast each model's curve falls at its end, with its interval."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalejax.analysis.curves.curves import trends
from scalejax.report.figures.canvas import (
    NEUTRAL,
    SMALL_SIZE,
    SOFT,
    WIDE,
    mark,
    model_styles,
    new_figure,
    settle,
    styled,
    write_below,
)
from scalejax.report.figures.picture import Picture, Table
from scalejax.text import listing, number_of

NAME = "exponents"
ERRORS = 2.0  # standard errors that an interval reaches either way
ROW, MARGIN = 0.27, 1.35  # inches of a model's row, and of what is around the rows
COLUMNS = ["model", "params", "exponent", "low", "high", "standard_error", "points", "verdict", "at"]


@styled()
def exponents_picture(curves: pd.DataFrame, *, width: float = WIDE) -> Picture | None:
    """Return the picture of the local exponents c of value ~ examples^-c, a row a model, the smallest on top.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        width: of the figure in inches.

    Returns:
        The picture; None where no curve has an exponent.

    Raises:
        ValueError: as `trends`.
    """
    found: Table = trends(curves)
    known = found[np.isfinite(found["exponent"].to_numpy(float))].reset_index(drop=True)
    if known.empty:
        return None
    half = ERRORS * known["standard_error"].to_numpy(float)
    centre = known["exponent"].to_numpy(float)
    known = known.assign(low=centre - half, high=centre + half)
    styles = model_styles(dict(zip(curves["model"].astype(str), curves["family"], strict=True)))

    figure = new_figure(width, MARGIN + ROW * len(known))
    ax = figure.add_subplot()
    ax.axvline(0, color=NEUTRAL, linewidth=0.9, zorder=1)
    tips = {}
    for place, row in enumerate(known.to_dict("records")):
        style = styles[row["model"]]
        if math.isfinite(row["low"]):
            ax.plot([row["low"], row["high"]], [place, place], color=style["color"], linewidth=1.6, zorder=3)
        mark(ax, [row["exponent"]], [place], style, gid=f"{NAME}-{place}", size=6)
        ax.annotate(
            row["verdict"], xy=(1.02, place), xycoords=("axes fraction", "data"), ha="left", va="center",
            fontsize=SMALL_SIZE, color=SOFT, annotation_clip=False,
        )  # fmt: skip
        tips[f"{NAME}-{place}"] = (f"{row['model']}: exponent {_interval(row)}. {row['sentence']}",)
    ax.set_yticks(range(len(known)), known["model"].tolist())
    ax.set_ylim(len(known) - 0.4, -0.6)
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("Exponent: how fast the value falls with examples")
    write_below(figure, _notes(known, found))
    settle(figure)
    return Picture(
        name=NAME,
        title="Exponents of the learning curves",
        alt=_alt(known),
        figure=figure,
        data=known[COLUMNS],
        tips=tips,
    )


def _interval(row: Mapping[Any, Any]) -> str:
    text, low, high = (f"{row[name]:z.2f}" for name in ("exponent", "low", "high"))
    return text + (f" ({low} to {high})" if math.isfinite(row["low"]) else "")


def _notes(known: Table, found: Table) -> list[str]:
    lines = [
        "c of value ~ examples^-c over the last decade of examples (at least the last two points): with 0.5, four "
        "times the examples halve the value."
    ]
    if np.isfinite(known["low"].to_numpy(float)).any():
        lines.append("Line: two standard errors either way, the points taken as independent.")
    single = known.loc[~np.isfinite(known["low"].to_numpy(float)), "model"].tolist()
    if single:
        lines.append(f"One seed, so no interval: {listing(single)}.")
    missing = sorted(set(found["model"]) - set(known["model"]))
    if missing:
        lines.append(f"No exponent, for want of points or of a logarithm: {listing(missing)}.")
    return lines


def _alt(known: Table) -> str:
    steepest, flattest = (known.loc[getattr(known["exponent"], which)()] for which in ("idxmax", "idxmin"))
    text = f"Exponents of {number_of(len(known), 'learning curve')}"
    if len(known) == 1:
        return f"{text}: {steepest['model']} has {_interval(steepest)}."
    return (
        f"{text}: the steepest is {steepest['model']} with {_interval(steepest)}, the flattest {flattest['model']} "
        f"with {_interval(flattest)}."
    )
