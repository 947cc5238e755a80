"""The figure of fitted laws: points, law, interval, and residuals below."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from scalejax.analysis.curves.tuning import short_count
from scalejax.analysis.laws.identifiability import KINDS
from scalejax.report.plot import DPI, FAINT, INK, LABEL_SIZE, NEUTRAL, SMALL_SIZE, round_ticks

if TYPE_CHECKING:
    from scalejax.analysis.laws.fit import Fit
    from scalejax.analysis.observations import Observations

BEYOND = 10.0  # a law is drawn this many times beyond the largest predictor, dashed
DECADES = 100.0  # of an axis, below which it has more ticks than its decades
GRID = 120  # points of a drawn law
NOTE_WIDTH = 125  # characters of a line under the figure
SLICES = 5  # lines of a law in two predictors
Pair = tuple["Observations", "Fit"]


def plot_fits(pairs: Sequence[Pair], *, level: float = 0.9, title: str | None = None) -> Figure:
    """Draw fitted laws on logarithmic axes over their points, with intervals, and the residuals below.

    A law in one predictor is a line a curve, dashed beyond its data. A law in two is drawn against the second, a line
    for each of five values of the first, whose points have its colour. Of more predictors the observed loss is drawn
    against the predicted one.

    Args:
        pairs: what was fitted and its fit, by curve; all of one law.
        level: of the intervals.
        title: left-aligned above the axes; None: the law, and what is wrong with the fits.

    Raises:
        ValueError: nothing to draw.
    """
    if not pairs:
        raise ValueError("There is no fit to draw.")
    figure = Figure(figsize=(7.2, 6.0), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    predictors = pairs[0][1].law.predictors
    if len(predictors) == 1:
        name = _one_predictor(top, below, pairs, level=level)
    elif len(predictors) == 2:
        name = _two_predictors(top, below, pairs[0], level=level)
    else:
        name = _predicted(top, below, pairs[0], level=level)
    _dress(top, below, x=name, y=pairs[0][0].columns["loss"].replace("_", " "))
    top.set_title(title or _title(pairs), loc="left", fontsize=LABEL_SIZE + 1, color=INK, pad=8)
    notes = textwrap.fill(" ".join(pairs[0][0].notes), NOTE_WIDTH)
    if notes:
        figure.supxlabel(notes, x=0.01, ha="left", fontsize=SMALL_SIZE, color="#666666")
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


def _one_predictor(top: Axes, below: Axes, pairs: Sequence[Pair], *, level: float) -> str:
    (name,) = pairs[0][1].law.predictors
    shades = np.linspace(0.22, 0.97, len(pairs)) if len(pairs) > 1 else [0.7]
    for (seen, fit), shade in zip(pairs, shades, strict=True):
        colour = to_hex(mpl.colormaps["viridis_r"](float(shade)))
        used = _used(seen)
        x, loss = seen.predictors[name][used], seen.loss[used]
        law = {name: np.geomspace(x.min(), x.max(), GRID)}
        further = {name: np.geomspace(x.max(), BEYOND * x.max(), GRID)}
        own = seen.curve if fit.curves else None
        for stretch, style in ((law, "-"), (further, (0, (4, 2)))):
            _line(top, stretch[name], fit.predict(stretch, level=level, curve=own), colour, style=style)
        top.plot(x, loss, "o", color=colour, markersize=3.4, label=seen.curve or None, zorder=3)
        predicted = fit.predict({name: x}, level=level, curve=own).value
        below.plot(x, _percent(loss, predicted), "o", color=colour, markersize=3)
    if len(pairs) > 1:
        top.legend(fontsize=SMALL_SIZE, frameon=False, labelcolor="#444444")
    return pairs[0][0].columns[name].replace("_", " ")


def _two_predictors(top: Axes, below: Axes, pair: Pair, *, level: float) -> str:
    seen, fit = pair
    first, second = fit.law.predictors
    used = _used(seen)
    a, b, loss = seen.predictors[first][used], seen.predictors[second][used], seen.loss[used]
    low, high = np.log(a.min()), np.log(max(a.max(), a.min() * (1 + 1e-9)))

    def colour(value: float) -> str:
        return to_hex(mpl.colormaps["viridis_r"](0.15 + 0.82 * (np.log(value) - low) / (high - low)))

    along = np.geomspace(b.min(), b.max(), GRID)
    for value in np.unique(np.quantile(a, np.linspace(0.05, 0.95, SLICES))):
        drawn = fit.predict({first: np.full(GRID, value), second: along}, level=level)
        _line(top, along, drawn, colour(value), label=f"{first} = {short_count(value)}")
    shades = [colour(value) for value in a]
    top.scatter(b, loss, c=shades, s=10, zorder=3, linewidths=0)
    below.scatter(b, _percent(loss, fit.predict({first: a, second: b}, level=level).value), c=shades, s=8, linewidths=0)
    top.legend(fontsize=SMALL_SIZE, frameon=False, labelcolor="#444444")
    return seen.columns[second].replace("_", " ")


def _predicted(top: Axes, below: Axes, pair: Pair, *, level: float) -> str:
    seen, fit = pair
    used = _used(seen)
    loss = seen.loss[used]
    drawn = fit.predict({name: column[used] for name, column in seen.predictors.items()}, level=level)
    value = drawn.value
    ends = [min(loss.min(), value.min()), max(loss.max(), value.max())]
    top.plot(ends, ends, color=NEUTRAL, linewidth=1)
    top.hlines(loss, drawn.low, drawn.high, color="#2a788e", alpha=0.35, linewidth=1.2)
    top.plot(value, loss, "o", color="#2a788e", markersize=3.4)
    below.plot(value, _percent(loss, value), "o", color="#2a788e", markersize=3)
    return "predicted by the law"


def _line(ax: Axes, x: np.ndarray, drawn: Any, colour: str, *, style: Any = "-", label: str | None = None) -> None:
    ax.fill_between(x, drawn.low, drawn.high, color=colour, alpha=0.14, linewidth=0)
    ax.plot(x, drawn.value, color=colour, linewidth=1.4, linestyle=style, label=label)


def _used(seen: "Observations") -> np.ndarray:
    """Return which rows a fit has used and a logarithmic axis can show."""
    return np.isfinite(seen.loss) & (seen.loss > 0)


def _percent(loss: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return by how many per cent the observed losses lie above the law."""
    return 100 * np.expm1(np.log(loss) - np.log(predicted))


def _dress(top: Axes, below: Axes, *, x: str, y: str) -> None:
    top.set_xscale("log")
    top.set_yscale("log")
    top.set_ylabel(y[:1].upper() + y[1:], fontsize=10, color=INK)
    below.set_ylabel("Above the law, %", fontsize=LABEL_SIZE, color=INK)
    below.set_xlabel(x[:1].upper() + x[1:], fontsize=10, color=INK)
    below.axhline(0, color=NEUTRAL, linewidth=0.8)
    ticks = round_ticks(*top.get_ylim())
    top.yaxis.set_major_locator(FixedLocator(ticks))
    top.yaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
    top.yaxis.set_minor_locator(NullLocator())
    left, right = top.get_xlim()
    if right < DECADES * left:  # decades alone would leave the axis all but empty
        ticks = round_ticks(left, right)
        top.xaxis.set_major_locator(FixedLocator(ticks))
        top.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))
        top.xaxis.set_minor_locator(NullLocator())
    for ax in (top, below):
        ax.grid(True, color=FAINT, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#9a9a9a")
        ax.tick_params(which="both", labelsize=LABEL_SIZE, colors="#444444", length=3, color="#9a9a9a")
