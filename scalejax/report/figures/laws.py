"""The figure of fitted laws: points, law, interval, and residuals below."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scalejax.analysis.laws.identifiability import KINDS
from scalejax.report.figures.canvas import (
    INK,
    LABEL_SIZE,
    NEUTRAL,
    SMALL_SIZE,
    SOFT,
    dress,
    model_styles,
    new_figure,
    round_ticks,
    set_ticks,
)
from scalejax.text import column_title, short_count

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit, Prediction
    from scalejax.analysis.tables import Observations

BEYOND = 10.0  # a law is drawn this many times beyond the largest predictor, dotted
DOTS = (0, (1, 1.6))
DECADES = 100.0  # of an axis, below which it has more ticks than its decades
GRID = 120  # points of a drawn law
NOTE_WIDTH = 125  # characters of a line under the figure
SLICES = 5  # lines of a law in two predictors
POINTS = "#2a788e"
Pair = tuple["Observations", "Fit"]


def plot_fits(pairs: Sequence[Pair], *, level: float = 0.9, title: str | None = None) -> Figure:
    """Draw fitted laws on logarithmic axes over their points, with intervals, and the residuals below.

    A law in one predictor is a line a curve, in the colour that the figure of learning curves gives the model, dotted
    beyond its data. A law in two is drawn against the second, a line for each of five values of the first, whose points
    have its colour. Of more predictors the observed loss is drawn against the predicted one.

    Args:
        pairs: what was fitted and its fit, by curve; all of one law.
        level: of the intervals.
        title: left-aligned above the axes; None: the law, and what is wrong with the fits.

    Raises:
        ValueError: nothing to draw.
    """
    if not pairs:
        raise ValueError("There is no fit to draw.")
    figure = new_figure(7.2, 6.0)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    columns, law = pairs[0][0].columns, pairs[0][1].law
    pairs = [(_shown(seen), fit) for seen, fit in pairs]
    if len(law.predictors) == 1:
        _one_predictor(top, below, pairs, level=level)
        across = column_title(columns[law.predictors[0]])
    elif len(law.predictors) == 2:
        _two_predictors(top, below, pairs[0], level=level)
        across = column_title(columns[law.predictors[1]])
    else:
        _predicted(top, below, pairs[0], level=level)
        across = "Predicted by the law"
    top.set_xscale("log")
    top.set_yscale("log")
    below.axhline(0, color=NEUTRAL, linewidth=0.8)
    set_ticks(top.yaxis, round_ticks(*top.get_ylim()))
    left, right = top.get_xlim()
    if right < DECADES * left:  # decades alone would leave the axis all but empty
        set_ticks(top.xaxis, round_ticks(left, right))
    dress(top, x="", y=column_title(columns["loss"]))
    dress(below, x=across, y="Above the law, %")
    top.set_title(title or _title(pairs), loc="left", fontsize=LABEL_SIZE + 1, color=INK, pad=8)
    if notes := textwrap.fill(" ".join(pairs[0][0].notes), NOTE_WIDTH):
        figure.supxlabel(notes, x=0.01, ha="left", fontsize=SMALL_SIZE, color=SOFT)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _title(pairs: Sequence[Pair]) -> str:
    """Return the law and, on a second line, what is wrong: a picture travels without the table beside it."""
    law = pairs[0][1].law
    wrong = [fit for _, fit in pairs if not fit.ok]
    counts = {kind: sum(f"{kind}:" in fit.status for fit in wrong) for kind in KINDS}
    several = len(pairs) > 1
    kinds = [f"{kind} ({count} of {len(pairs)} curves)" if several else kind for kind, count in counts.items() if count]
    return f"{law.name}: {law.formula}" + (f"\n{', '.join(kinds)}" if wrong else "")


def _one_predictor(top: Axes, below: Axes, pairs: Sequence[Pair], *, level: float) -> None:
    (name,) = pairs[0][1].law.predictors
    styles = model_styles(pairs[0][0].models or {seen.curve: "" for seen, _ in pairs})
    for seen, fit in pairs:
        style, x, own = styles[seen.curve], seen.predictors[name], seen.curve if fit.curves else None
        for first, last, line in ((x.min(), x.max(), style["linestyle"]), (x.max(), BEYOND * x.max(), DOTS)):
            stretch = np.geomspace(first, last, GRID)
            _line(top, stretch, fit.predict({name: stretch}, level=level, curve=own), style["color"], line=line)
        points = {"color": style["color"], "marker": style["marker"], "linestyle": "none"}
        top.plot(x, seen.loss, markersize=3.4, label=seen.curve or None, zorder=3, **points)
        below.plot(x, _percent(seen, fit.predict({name: x}, level=level, curve=own)), markersize=3, **points)
    if len(pairs) > 1:
        top.legend(fontsize=SMALL_SIZE, frameon=False, labelcolor="#444444")


def _two_predictors(top: Axes, below: Axes, pair: Pair, *, level: float) -> None:
    seen, fit = pair
    first, second = fit.law.predictors
    a, b = seen.predictors[first], seen.predictors[second]
    low, high = np.log(a.min()), np.log(max(a.max(), a.min() * (1 + 1e-9)))

    def colour(value: float) -> str:
        return to_hex(mpl.colormaps["viridis_r"](0.15 + 0.82 * (np.log(value) - low) / (high - low)))

    along = np.geomspace(b.min(), b.max(), GRID)
    for value in np.unique(np.quantile(a, np.linspace(0.05, 0.95, SLICES))):
        drawn = fit.predict({first: np.full(GRID, value), second: along}, level=level)
        _line(top, along, drawn, colour(value), label=f"{first} = {short_count(value)}")
    shades = [colour(value) for value in a]
    top.scatter(b, seen.loss, c=shades, s=10, zorder=3, linewidths=0)
    below.scatter(b, _percent(seen, fit.predict(seen.predictors, level=level)), c=shades, s=8, linewidths=0)
    top.legend(fontsize=SMALL_SIZE, frameon=False, labelcolor="#444444")


def _predicted(top: Axes, below: Axes, pair: Pair, *, level: float) -> None:
    seen, fit = pair
    drawn = fit.predict(seen.predictors, level=level)
    both = np.concatenate([seen.loss, drawn.value])
    ends = [both.min(), both.max()]
    top.plot(ends, ends, color=NEUTRAL, linewidth=1)
    top.hlines(seen.loss, drawn.low, drawn.high, color=POINTS, alpha=0.35, linewidth=1.2)
    top.plot(drawn.value, seen.loss, "o", color=POINTS, markersize=3.4)
    below.plot(drawn.value, _percent(seen, drawn), "o", color=POINTS, markersize=3)


def _line(
    ax: Axes, x: np.ndarray, drawn: "Prediction", colour: str, *, line: Any = "-", label: str | None = None
) -> None:
    ax.fill_between(x, drawn.low, drawn.high, color=colour, alpha=0.14, linewidth=0)
    ax.plot(x, drawn.value, color=colour, linewidth=1.4, linestyle=line, label=label)


def _shown(seen: "Observations") -> "Observations":
    """Return the rows that a fit has used and a logarithmic axis can show."""
    kept = np.isfinite(seen.loss) & (seen.loss > 0)
    predictors = {name: column[kept] for name, column in seen.predictors.items()}
    return replace(seen, predictors=predictors, loss=seen.loss[kept])


def _percent(seen: "Observations", predicted: "Prediction") -> np.ndarray:
    """Return by how many per cent the observed losses lie above the law."""
    return 100 * np.expm1(np.log(seen.loss) - np.log(predicted.value))
