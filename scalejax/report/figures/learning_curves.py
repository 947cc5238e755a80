"""The figure of learning curves."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from scalejax.analysis.curves.curves import notes
from scalejax.report.figures.canvas import (
    INK,
    SMALL_SIZE,
    SOFT,
    TRADITIONAL_FAMILIES,
    dress,
    label_ends,
    model_styles,
    new_figure,
    round_ticks,
    set_ticks,
)
from scalejax.text import column_title, short_count

EDGE_MARKERS = {"highest": ("^", "△"), "lowest": ("v", "▽")}


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
