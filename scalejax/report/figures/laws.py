"""The figure of fitted laws: points, law, interval, and residuals below."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from scalejax.analysis.laws.identifiability import KINDS
from scalejax.report.figures.canvas import (
    NEUTRAL,
    log_ticks,
    mark,
    model_styles,
    new_figure,
    settle,
    styled,
    write_below,
)
from scalejax.text import column_title, short_count

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit, Prediction
    from scalejax.analysis.tables import Observations

BEYOND = 10.0  # a law is drawn this many times beyond the largest predictor, dotted
DOTS = (0, (1, 1.6))
GRID = 120  # points of a drawn law
SLICES = 5  # lines of a law in two predictors
POINTS = "#2a788e"
Pair = tuple["Observations", "Fit"]


@styled()
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
    below.axhline(0, color=NEUTRAL, linewidth=0.8)
    log_ticks(top.xaxis)
    log_ticks(top.yaxis)
    top.set_ylabel(column_title(columns["loss"]))
    below.set_xlabel(across)
    below.set_ylabel("Above the law, %")
    top.set_title(title or _title(pairs))
    write_below(figure, pairs[0][0].notes)
    settle(figure)
    return figure


def fitted_rows(pairs: Sequence[Pair], *, level: float = 0.9) -> pd.DataFrame:
    """Return the points of such a figure, a row each: curve, predictors, loss, and what the law says there."""
    parts = []
    for seen, fit in pairs:
        said = fit.predict(dict(seen.predictors), level=level, curve=seen.curve if fit.curves else None)
        given = {"curve": seen.curve, **seen.predictors, "loss": seen.loss}
        parts.append(pd.DataFrame({**given, "law": said.value, "low": said.low, "high": said.high}))
    return pd.concat(parts, ignore_index=True)


def _title(pairs: Sequence[Pair]) -> str:
    """Return the law and, on a second line, what is wrong: a picture travels without the table beside it."""
    law = pairs[0][1].law
    wrong = [fit for _, fit in pairs if not fit.ok]
    counts = {kind: sum(f"{kind}:" in fit.status for fit in wrong) for kind in KINDS}
    several = len({id(fit) for _, fit in pairs}) > 1  # curves that share a parameter have one fit
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
        mark(top, x, seen.loss, style, label=seen.curve or None)
        mark(below, x, _percent(seen, fit.predict({name: x}, level=level, curve=own)), style)
    if len(pairs) > 1:
        top.legend()


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
    for ax, heights in ((top, seen.loss), (below, _percent(seen, fit.predict(seen.predictors, level=level)))):
        ax.scatter(b, heights, edgecolors=shades, facecolors="none", s=16, zorder=3, linewidths=1)
    top.legend()


def _predicted(top: Axes, below: Axes, pair: Pair, *, level: float) -> None:
    seen, fit = pair
    drawn = fit.predict(seen.predictors, level=level)
    both = np.concatenate([seen.loss, drawn.value])
    ends = [both.min(), both.max()]
    top.plot(ends, ends, color=NEUTRAL, linewidth=1)
    top.hlines(seen.loss, drawn.low, drawn.high, color=POINTS, alpha=0.35, linewidth=1.2)
    style = {"color": POINTS, "marker": "o"}
    mark(top, drawn.value, seen.loss, style)
    mark(below, drawn.value, _percent(seen, drawn), style)


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
