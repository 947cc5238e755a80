"""The picture of size: a metric against the parameters of the models, a line for each number of examples."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from scalejax.analysis.curves.curves import notes
from scalejax.report.figures.canvas import (
    MARKERS,
    NEUTRAL,
    WIDE,
    data_colours,
    label_ends,
    log_ticks,
    mark,
    new_figure,
    settle,
    styled,
    write_below,
)
from scalejax.report.figures.picture import Picture, Table
from scalejax.text import column_title, number_of, short, short_count

NAME = "parameters"
COLUMNS = ["model", "family", "params", "train_examples", "value", "low", "high", "seeds", "learning_rate"]
STROKES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))  # of families


@styled()
def parameters_picture(curves: pd.DataFrame, *, unit: str = "", width: float = WIDE) -> Picture | None:
    """Return the picture of a metric against parameters, a line for each number of examples and family.

    Lines go from light (few examples) to dark (many). Models of one family are joined; the marker says which it is.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        unit: of the metric, written behind its name.
        width: of the figure in inches.

    Returns:
        The picture; None where fewer than two sizes have a value that a logarithmic axis can show.
    """
    sized = curves["params"].to_numpy(dtype=float, na_value=np.nan) > 0
    positive = curves["value"].to_numpy(dtype=float) > 0  # False of NaN
    points: Table = curves[sized & positive & np.isfinite(curves["value"].to_numpy(dtype=float))]
    if points["params"].nunique() < 2:
        return None
    points = points.sort_values(["train_examples", "params"], kind="stable")
    sizes = sorted(points["train_examples"].unique().tolist())
    noun = str(curves["metric"].iloc[0]).replace("_", " ")
    styles = _family_styles(points)

    figure = new_figure(width)
    ax = figure.add_subplot()
    ends, tips = [], {}
    for size, colour in zip(sizes, data_colours(len(sizes)), strict=True):
        of_size = points[points["train_examples"] == size]
        for family, style in styles.items():
            own = of_size[of_size["family"] == family]
            if own.empty:
                continue
            gid = f"{NAME}-{len(tips)}"
            _draw(ax, own, {**style, "color": colour}, gid=gid)
            tips[gid] = tuple(_tip(point, noun, unit) for point in own.to_dict("records"))
        last = of_size.iloc[-1]
        ends.append((short_count(size), float(last["params"]), float(last["value"]), colour))
    ax.set_xlim(points["params"].min() / 1.25, points["params"].max() * 1.25)
    log_ticks(ax.xaxis)
    log_ticks(ax.yaxis)
    ax.set_xlabel("Parameters")
    ax.set_ylabel(column_title(noun) + (f" ({unit})" if unit else ""))
    if len(styles) > 1:
        handles = [Line2D([], [], label=family, **{**style, "color": NEUTRAL}) for family, style in styles.items()]
        ax.legend(handles=handles, loc="lower left")
    write_below(figure, _notes(curves, sized=sized, positive=positive))
    label_ends(ax, ends, title="Examples")
    settle(figure)
    return Picture(
        name=NAME,
        title=f"{column_title(noun)} against parameters",
        alt=_alt(points, noun),
        figure=figure,
        data=points.reindex(columns=COLUMNS).reset_index(drop=True),
        tips=tips,
    )


def _family_styles(points: Table) -> dict[str, dict[str, Any]]:
    """Return line style and marker of each family: solid for the one of most models, no line for a single model."""
    counts = points.groupby("family", sort=False)["model"].nunique().sort_values(ascending=False, kind="stable")
    return {
        str(family): {
            "linestyle": STROKES[place % len(STROKES)] if count > 1 else "none",
            "marker": MARKERS[place % len(MARKERS)],
        }
        for place, (family, count) in enumerate(counts.items())
    }


def _draw(ax: Axes, points: Table, style: Mapping[str, Any], *, gid: str) -> None:
    """Draw the points of one family on one number of examples, their band and the line that joins them."""
    params, value, low, high = points[["params", "value", "low", "high"]].to_numpy(dtype=float).T
    low = np.where(low > 0, low, value)
    if len(params) > 1:
        ax.fill_between(params, low, high, color=style["color"], alpha=0.12, linewidth=0, zorder=2)
        ax.plot(params, value, color=style["color"], linestyle=style["linestyle"], zorder=3)
    else:
        ax.vlines(params, low, high, color=style["color"], alpha=0.5, linewidth=1.2, zorder=2)
    mark(ax, params, value, style, gid=gid)


def _notes(curves: pd.DataFrame, *, sized: Any, positive: Any) -> list[str]:
    """Return what the band is, and what has no place on the axes."""
    lines = [
        notes(curves)[0],
        "A line joins models of one family on the same number of examples; their colours go from few examples to many.",
    ]
    left_out: Table = curves[~sized & (curves["seeds"].to_numpy() > 0)]
    if len(left_out):
        names = ", ".join(dict.fromkeys(left_out["model"]))
        lines.append(f"Not drawn, for want of a number of parameters: {names}.")
    if zeros := int((sized & ~positive & (curves["seeds"].to_numpy() > 0)).sum()):
        lines.append(f"Not drawn: {number_of(zeros, 'point')} with value 0 or less, which the axis cannot show.")
    return lines


def _tip(point: Mapping[Any, Any], noun: str, unit: str) -> str:
    value, low, high = (short(point[name], 3) for name in ("value", "low", "high"))
    text = f"{point['model']} ({short_count(point['params'])} parameters), "
    text += f"{number_of(int(point['train_examples']), 'example')}: {noun} {value}" + (f" {unit}" if unit else "")
    return text + (f" ({low} to {high})" if point["seeds"] > 1 else "")


def _alt(points: Table, noun: str) -> str:
    last = points[points["train_examples"] == points["train_examples"].max()]
    low, high = int(points["params"].min()), int(points["params"].max())
    best = last.sort_values("value", kind="stable").iloc[0]
    many = number_of(int(best["train_examples"]), "example")
    where = f"{best['model']} has the lowest, {short(best['value'], 3)}"
    return f"{column_title(noun)} of models of {low:,} to {high:,} parameters. On {many} {where}."
