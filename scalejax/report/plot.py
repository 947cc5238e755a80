"""The figure of learning curves, and what all figures share. Nothing here touches pyplot or other global state."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from scalejax.analysis.curves.curves import notes
from scalejax.files import replacing
from scalejax.text import column_title, short_count

# The algorithms that the sized families are measured against: neutral, dashed.
TRADITIONAL_FAMILIES = (
    *("logistic", "logistic_regression", "ridge", "naive_bayes", "nearest_neighbours", "svm", "random_forest"),
    "gradient_boosting",
)
NEUTRAL, INK, SOFT, FAINT = "#6b6b6b", "#222222", "#666666", "#e4e4e4"
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "P")
OLD_MARKERS, OLD_TONES = ("o", "s", "D", "P", "X", "*", "p"), (NEUTRAL, "#3c3c3c", "#979797")
# One perceptual ramp a family, from its smallest model to its largest, always darkening, so that the order survives
# every kind of colour blindness and a grey printer; the ends too pale for a white page are cut off.
RAMPS = (("viridis_r", 0.22, 0.97), ("YlOrRd", 0.40, 1.0), ("RdPu", 0.40, 1.0), ("Greens", 0.45, 1.0))
EDGE_MARKERS = {"highest": ("^", "△"), "lowest": ("v", "▽")}
DPI = 160
LABEL_SIZE, SMALL_SIZE = 9.0, 7.5  # points
LINE_SPACING = 1.25


def plot_learning_curves(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    traditional: Sequence[str] = TRADITIONAL_FAMILIES,
    unit: str = "",
) -> Axes:
    """Draw a metric against the number of training examples, one line a model, on logarithmic axes.

    Models of a family go from light (small) to dark (large); traditional families are grey and dashed. Bands are those
    of the table (`low` to `high`). Each line is labelled at its right end; the labels are moved apart where lines meet.
    A hollow triangle marks a point whose best learning rate is at an end of its grid. A value of zero or below has no
    place on the axis: the line has a gap there and the caption counts it.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        ax: where to draw; by default the axes of a new figure. Labels and caption lie outside the axes, to the right
            and below, placed for the size the axes have now: give a figure its size and layout first.
        title: left-aligned above the axes.
        traditional: names of the families drawn as traditional.
        unit: of the metric, written behind its name.

    Returns:
        The axes; the figure is `ax.figure`.

    Raises:
        ValueError: the table has no rows, or none with a positive value.
    """
    values = curves["value"].to_numpy(dtype=float)
    if not (np.isfinite(values) & (values > 0)).any():
        raise ValueError("The curves hold no positive value, so there is nothing to draw on a logarithmic axis.")
    own = ax is None
    ax = new_figure(7.2, 4.9).add_subplot() if ax is None else ax
    _dress(ax, curves, unit)
    styles = model_styles(dict(zip(curves["model"], curves["family"], strict=True)), traditional)
    ends = []
    for model in styles:
        points = [point for point in curves.to_dict("records") if point["model"] == model]
        end = _draw_line(ax, points, styles[model])
        if end is not None:
            ends.append((model, *end, styles[model]["color"]))
    if title:
        ax.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    _caption(ax, curves)
    label_ends(ax, ends)
    if own:
        # The layout is settled; a second pass at saving would move things by a hair and change the file's bytes.
        ax.figure.canvas.figure.set_layout_engine("none")
    return ax


def save_figure(figure: Figure | SubFigure, directory: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write `directory`/`name`.png (160 dots an inch) and .svg, and return the two paths.

    Each file appears whole or not at all: it is written beside its place and moved there. The same figure gives the
    same bytes: no date, and the same salt for the identifiers inside the SVG.

    Args:
        figure: the figure, for instance `ax.figure`; of a part of a figure the whole is written.
        directory: made if it does not exist.
        name: without a suffix.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with mpl.rc_context({"svg.hashsalt": "scalejax", "svg.fonttype": "path"}):
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
            with replacing(path) as partial:
                figure.canvas.figure.savefig(
                    partial, dpi=DPI, facecolor="white", metadata=metadata, bbox_inches=None, format=path.suffix[1:]
                )
    return paths


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(ax: Axes, *, x: str, y: str) -> None:
    """Draw the grid behind the data and the two axes faintly, and name the axes."""
    ax.grid(True, color=FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9a9a9a")
    ax.tick_params(which="both", labelsize=LABEL_SIZE, colors="#444444", length=3, color="#9a9a9a")
    ax.set_xlabel(x, fontsize=10, color=INK)
    ax.set_ylabel(y, fontsize=10, color=INK)


def set_ticks(axis: Axis, ticks: Sequence[float], texts: Sequence[str] | None = None) -> None:
    """Put ticks at these places and nowhere else; `texts` are the numbers by default."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(texts or [f"{tick:g}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def model_styles(
    families: Mapping[str, str], traditional: Sequence[str] = TRADITIONAL_FAMILIES
) -> dict[str, dict[str, Any]]:
    """Return each model's colour, line style and marker, the same in every figure of the same models.

    Args:
        families: model -> its family, the models of a family from the smallest to the largest.
        traditional: the families in grey, with dashes.
    """
    styles: dict[str, dict[str, Any]] = {}
    old = [model for model, family in families.items() if family in traditional]
    sized = dict.fromkeys(family for family in families.values() if family not in traditional)
    for place, family in enumerate(sized):
        ramp, start, stop = RAMPS[place % len(RAMPS)]
        models = [model for model, its in families.items() if its == family]
        shades = np.linspace(start, stop, len(models)) if len(models) > 1 else [0.7 * stop]
        for model, shade in zip(models, shades, strict=True):
            colour = to_hex(mpl.colormaps[ramp](float(shade)))
            styles[model] = {"color": colour, "linestyle": "-", "marker": MARKERS[place % len(MARKERS)]}
    for place, model in enumerate(old):
        styles[model] = {
            "color": OLD_TONES[place % len(OLD_TONES)],
            "linestyle": DASHES[place % len(DASHES)],
            "marker": OLD_MARKERS[place % len(OLD_MARKERS)],
        }
    return {model: styles[model] for model in families}


def _dress(ax: Axes, curves: pd.DataFrame, unit: str) -> None:
    """Set scales, limits, ticks, grid and axis labels."""
    sizes = sorted(set(curves["train_examples"].tolist()))
    pad = 1.12 if len(sizes) > 1 else 2.0
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(sizes[0] / pad, sizes[-1] * pad)
    heights = curves[["value", "low", "high"]].to_numpy(dtype=float)
    values = curves["value"].to_numpy(dtype=float)
    # An interval may reach below zero; the axis then ends a little under the lowest value instead.
    heights = heights[np.isfinite(heights) & (heights > 0.5 * values[values > 0].min())]
    bottom, top = heights.min() / 1.12, heights.max() * 1.12
    ax.set_ylim(bottom, top)
    # Only those sizes have ticks whose labels have room: the first, the last and some between.
    room = 0.075 * math.log(sizes[-1] / sizes[0])
    ticks = sizes[:1]
    for size in sizes[1:-1]:
        if min(math.log(size / ticks[-1]), math.log(sizes[-1] / size)) >= room:
            ticks.append(size)
    ticks += sizes[1:][-1:]
    set_ticks(ax.xaxis, ticks, [short_count(tick) for tick in ticks])
    set_ticks(ax.yaxis, round_ticks(bottom, top))
    name = column_title(str(curves["metric"].iloc[0]))
    dress(ax, x="Training examples", y=f"{name} ({unit})" if unit else name)


def _draw_line(ax: Axes, points: Sequence[dict[Any, Any]], style: dict[str, Any]) -> tuple[float, float] | None:
    """Draw one model's band, line and edge marks; return the line's last point, or None if nothing can be drawn."""
    sizes = np.array([point["train_examples"] for point in points], dtype=float)
    heights = np.array([[point[name] for point in points] for name in ("value", "low", "high")], dtype=float)
    value, low, high = np.where(heights > 0, heights, np.nan)  # a logarithmic axis has no zero
    low = np.where(np.isfinite(value) & ~np.isfinite(low), ax.get_ylim()[0], low)
    ax.fill_between(sizes, low, high, color=style["color"], alpha=0.13, linewidth=0, zorder=2)
    ax.plot(sizes, value, linewidth=1.7, markersize=3.6, zorder=3, label=points[0]["model"], **style)
    for edge, (marker, _) in EDGE_MARKERS.items():
        here = np.array([point["edge"] == edge for point in points])
        ax.plot(
            sizes[here], value[here], linestyle="none", marker=marker, markersize=7, markerfacecolor="white",
            markeredgecolor=style["color"], markeredgewidth=1.3, zorder=4, label=f"_edge {edge}",
        )  # fmt: skip
    drawn = np.flatnonzero(np.isfinite(value))
    return (float(sizes[drawn[-1]]), float(value[drawn[-1]])) if len(drawn) else None


def _caption(ax: Axes, curves: pd.DataFrame) -> None:
    """Write under the axes what the reader must know: band, edges of grids, excluded trials, points off the axis."""
    lines = []
    edges = set(curves["edge"].tolist())
    marks = ", ".join(f"{mark} {edge}" for edge, (_, mark) in EDGE_MARKERS.items() if edge in edges)
    for line in notes(curves):
        lines.append(line.replace("edge of its grid", f"edge of its grid ({marks})"))
    off = int((curves["value"].to_numpy(dtype=float) <= 0).sum())
    if off:
        lines.append(f"Not drawn: {off} with value 0 or less, which a logarithmic axis cannot show.")
    width = ax.bbox.width / ax.figure.dpi * 72 / (0.52 * SMALL_SIZE)  # in characters: half an em each, roughly
    text = textwrap.fill(" ".join(lines), max(30, int(1.15 * width)))
    ax.annotate(
        text, xy=(0, 0), xycoords="axes fraction", xytext=(0, -38), textcoords="offset points",
        ha="left", va="top", fontsize=SMALL_SIZE, color=SOFT, linespacing=1.35, annotation_clip=False,
    )  # fmt: skip


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write each line's name beside its last point (x, y), moved up or down where names would overlap."""
    ordered = sorted(ends, key=lambda end: end[2])
    furthest = max(x for _, x, _, _ in ordered)
    texts = []
    for model, x, y, colour in ordered:
        # A line that ends before the others is joined to its name by dots, which cannot be mistaken for data.
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
        leader["linestyle"] = "-" if x == furthest else ":"
        text = ax.annotate(
            model, xy=(x, y), xytext=(1.035, 0.5), textcoords="axes fraction", color=_legible(colour),
            fontsize=LABEL_SIZE, ha="left", va="center", annotation_clip=False, arrowprops=leader,
        )  # fmt: skip
        texts.append(text)
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout: only now is the height of the axes known
    points = ax.bbox.height / figure.dpi * 72
    size = min(LABEL_SIZE, 1.06 * points / (LINE_SPACING * len(texts)))
    transform = ax.transData + ax.transAxes.inverted()
    heights = [float(transform.transform((x, y))[1]) for _, x, y, _ in ordered]
    places = spread(heights, LINE_SPACING * size / points, low=-0.03, high=1.03)
    for text, place in zip(texts, places, strict=True):
        text.set_fontsize(size)
        text.set_position((1.035, place))


def spread(wanted: Sequence[float], spacing: float, *, low: float, high: float) -> list[float]:
    """Move ascending positions as little as possible so that neighbours are `spacing` apart, within [low, high].

    Least is meant in the sum of squares. Subtracting i times the spacing turns the problem into isotonic regression;
    clipping its solution to the bounds keeps it optimal. Positions that do not fit into the bounds share them evenly.
    """
    spacing = min(spacing, (high - low) / max(len(wanted) - 1, 1))
    steps = spacing * np.arange(len(wanted))
    flat = np.asarray(wanted, dtype=float) - steps
    if (np.diff(flat) <= 0).any():  # else they are apart already
        from scipy.optimize import isotonic_regression  # takes longer to import than a figure to draw

        flat = isotonic_regression(flat).x
    return (np.clip(flat, low, high - steps[-1]) + steps).tolist()


def _legible(colour: str) -> str:
    """Return the colour, darkened as far as small text on white needs: a contrast of 4.5 (WCAG 2, level AA)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05) >= 4.5:
            return to_hex(tuple(rgb.tolist()))
        rgb = 0.96 * rgb


def round_ticks(bottom: float, top: float) -> list[float]:
    """Return round numbers between bottom and top: 1, 2, 5 times powers of ten, more of them on a short axis."""
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8), tuple(n / 20 for n in range(20, 200))):
        ticks = [float(f"{digit * 10.0**decade:.4g}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if bottom <= tick <= top]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 9)] if ticks else [float(f"{math.sqrt(bottom * top):.3g}")]
