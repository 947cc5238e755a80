"""The figure of learning curves, and the picture of scale: the same with the forecast beyond what was measured."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from scalejax.analysis.curves.curves import notes
from scalejax.report.figures.canvas import (
    AHEAD,
    BESIDE_AXES,
    SMALL_SIZE,
    SOFT,
    TRADITIONAL_FAMILIES,
    WIDE,
    adopt,
    filled,
    label_ends,
    log_ticks,
    mark,
    model_styles,
    new_figure,
    round_ticks,
    set_ticks,
    settle,
    size_ticks,
    styled,
    write_above,
)
from scalejax.report.figures.picture import Picture, Table
from scalejax.text import column_title, listing, number_of, short

if TYPE_CHECKING:
    from scalejax.analysis.forecast.statement import Advice

EDGE_MARKERS = {"highest": ("^", "△"), "lowest": ("v", "▽")}
NAME = "scale"
LEAST_SHOWN = 0.02  # of the lowest value measured: forecasts reach below, the axis does not
BESIDE, CIRCLE = 13.0, 14.0  # points from a curve to the circle of a trial beside it, and the width of that


@styled()
def plot_learning_curves(
    curves: pd.DataFrame,
    ax: Axes | None = None,
    *,
    title: str | None = None,
    traditional: Sequence[str] = TRADITIONAL_FAMILIES,
    unit: str = "",
    advice: "Advice | None" = None,
) -> Axes:
    """Draw a metric against the number of training examples, one line a model, on logarithmic axes.

    Models of a family go from light (small) to dark (large); traditional families are grey and dashed. Bands are those
    of the table (`low` to `high`). Each line is labelled at its right end; the labels are moved apart where lines meet.
    A triangle around a point marks one whose best learning rate is at an end of its grid. A value of zero or below has
    no place on the axis: the line has a gap there and the caption counts it.

    With advice each curve goes on as its forecast, dashed, in its band; a number in a circle stands where a
    trial would narrow the answer most, in the colour of the model whose size is next to it.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        ax: where to draw; by default the axes of a new figure. Labels and caption lie outside the axes, to the right
            and below, placed for the size the axes have now: give a figure its size and layout first.
        title: left-aligned above the axes.
        traditional: names of the families drawn as traditional.
        unit: of the metric, written behind its name.
        advice: made of the same curves.

    Returns:
        The axes; the figure is `ax.figure`.

    Raises:
        ValueError: the table has no rows, or none with a positive value.
    """
    if not _drawn(curves).any():
        raise ValueError("The curves hold no positive value, so there is nothing to draw on a logarithmic axis.")
    own = ax is None
    if ax is None:
        ax = new_figure().add_subplot()
    else:
        adopt(ax)
    bands: Table = None if advice is None or advice.bands.empty else advice.bands
    _set_axes(ax, curves, bands)
    ax.set_xlabel(f"Training {_counted(advice)}")
    ax.set_ylabel(column_title(_noun(curves)) + (f" ({unit})" if unit else ""))
    styles = _styles(curves, traditional)
    ends = {}
    for place, model in enumerate(styles):
        end = _draw_line(ax, curves[curves["model"] == model], styles[model], gid=f"{NAME}-{place}")
        if end is not None:
            ends[model] = end
        if bands is not None and (bands["model"] == model).any():
            ends[model] = _draw_forecast(ax, bands[bands["model"] == model], styles[model])
    if title:
        write_above(ax, title)
    _caption(ax, curves, advice)
    label_ends(ax, [(model, *end, styles[model]["color"]) for model, end in ends.items()])
    if advice is not None:
        _draw_trials(ax, curves, advice, styles)
    if own:
        settle(ax.figure.canvas.figure)
    return ax


@styled()
def scale_picture(
    curves: pd.DataFrame,
    advice: "Advice | None" = None,
    *,
    unit: str = "",
    title: str | None = None,
    width: float = WIDE,
) -> Picture | None:
    """Return the picture of scale: the error of every model against its examples, and the forecast beyond.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        advice: made of the same rows, for the forecast; None: there is none.
        unit: of the metric, written behind its name.
        title: a sentence above the axes.
        width: of the figure in inches.

    Returns:
        The picture; None where no value is positive.
    """
    if curves.empty or not _drawn(curves).any():
        return None
    figure = new_figure(width)
    plot_learning_curves(curves, figure.add_subplot(), title=title, unit=unit, advice=advice)
    settle(figure)
    noun, tips = _noun(curves), {}
    for place, model in enumerate(_styles(curves)):
        points: Table = curves[(curves["model"] == model) & _drawn(curves)]
        if len(points):
            tips[f"{NAME}-{place}"] = tuple(_tip(point, noun, unit) for point in points.to_dict("records"))
    for place, trial in enumerate([] if advice is None else advice.trials.to_dict("records")):
        size, data = (f"{round(trial[name]):,}" for name in ("params", "data"))
        tips[f"{NAME}-next-{place}"] = (f"Suggested trial {place + 1}: {size} parameters on {data} {_counted(advice)}",)
    return Picture(
        name=NAME,
        title=f"{column_title(noun)} against training {_counted(advice)}",
        alt=_alt(curves, advice),
        figure=figure,
        data=_data(curves, advice),
        tips=tips,
    )


def _drawn(curves: pd.DataFrame) -> Any:
    """Say which points have a place on a logarithmic axis, bool [rows]."""
    values = curves["value"].to_numpy(dtype=float)
    return np.isfinite(values) & (values > 0)


def _styles(curves: pd.DataFrame, traditional: Sequence[str] = TRADITIONAL_FAMILIES) -> dict[str, dict[str, Any]]:
    return model_styles(dict(zip(curves["model"], curves["family"], strict=True)), traditional)


def _noun(curves: pd.DataFrame) -> str:
    """Return what the values are, in words: "test error"."""
    return str(curves["metric"].iloc[0]).replace("_", " ")


def _counted(advice: "Advice | None") -> str:
    return "examples" if advice is None else str(advice.columns["data"])


def _set_axes(ax: Axes, curves: pd.DataFrame, bands: Table) -> None:
    """Set scales, limits and ticks."""
    sizes = sorted(set(curves["train_examples"].tolist()))
    ax.set_xscale("log")
    ax.set_yscale("log")
    furthest = sizes[-1] if bands is None else max(sizes[-1], float(bands["data"].max()))
    pad = max(1.12, (furthest / sizes[0]) ** 0.02) if furthest > sizes[0] else 2.0
    ax.set_xlim(sizes[0] / pad, furthest * pad)
    heights = curves[["value", "low", "high"]].to_numpy(dtype=float)
    values = curves["value"].to_numpy(dtype=float)
    lowest = values[values > 0].min()
    # An interval may reach below zero; the axis then ends a little under the lowest value instead.
    heights = heights[np.isfinite(heights) & (heights > 0.5 * lowest)]
    above = max(1.12, (heights.max() / heights.min()) ** 0.03)
    bottom, top = heights.min() / above, heights.max() * above
    if bands is not None:
        ahead = bands["value"].to_numpy(dtype=float)
        ahead = ahead[ahead > LEAST_SHOWN * lowest]
        bottom, top = min(bottom, 0.7 * min(ahead, default=bottom)), max(top, above * max(ahead, default=heights.max()))
    ax.set_ylim(bottom, top)
    if bands is None:
        size_ticks(ax.xaxis, sizes)
    else:
        log_ticks(ax.xaxis)
        ax.axvspan(sizes[-1], furthest * pad, color="#f6f6f6", linewidth=0, zorder=0)
        ax.annotate(
            "forecast", xy=(sizes[-1], 1), xycoords=("data", "axes fraction"), xytext=(4, -3),
            textcoords="offset points", ha="left", va="top", fontsize=SMALL_SIZE, color=SOFT,
        )  # fmt: skip
    set_ticks(ax.yaxis, round_ticks(bottom, top))


def _draw_line(ax: Axes, points: Table, style: dict[str, Any], *, gid: str) -> tuple[float, float] | None:
    """Draw one model's band, line and edge marks; return the line's last point, or None if nothing can be drawn."""
    sizes = points["train_examples"].to_numpy(dtype=float)
    heights = points[["value", "low", "high"]].to_numpy(dtype=float).T
    value, low, high = np.where(heights > 0, heights, np.nan)  # a logarithmic axis has no zero
    low = np.where(np.isfinite(value) & ~np.isfinite(low), ax.get_ylim()[0], low)
    ax.fill_between(sizes, low, high, color=style["color"], alpha=0.13, linewidth=0, zorder=2)
    line = {name: style[name] for name in ("color", "linestyle")}
    ax.plot(sizes, value, zorder=3, label=points["model"].iloc[0], **line)
    drawn = np.flatnonzero(np.isfinite(value))
    mark(ax, sizes[drawn], value[drawn], style, gid=gid)
    for edge, (marker, _) in EDGE_MARKERS.items():
        here = drawn[(points["edge"] == edge).to_numpy()[drawn]]
        mark(ax, sizes[here], value[here], {**style, "marker": marker}, size=9)
    return (float(sizes[drawn[-1]]), float(value[drawn[-1]])) if len(drawn) else None


def _draw_forecast(ax: Axes, ahead: Table, style: dict[str, Any]) -> tuple[float, float]:
    """Draw one model's forecast in its band, as far as the axis can show it; return its last point there."""
    data, value, low, high = ahead[["data", "value", "low", "high"]].to_numpy(dtype=float).T
    bottom = ax.get_ylim()[0]
    ax.fill_between(
        data, np.maximum(low, bottom), np.maximum(high, bottom), color=style["color"], alpha=0.1, linewidth=0, zorder=2
    )
    value = np.maximum(value, bottom)
    ax.plot(data, value, color=style["color"], linestyle=AHEAD, linewidth=1.4, zorder=3)
    return float(data[-1]), float(value[-1])


def _draw_trials(ax: Axes, curves: pd.DataFrame, advice: "Advice", styles: Mapping[str, dict[str, Any]]) -> None:
    """Draw the number of each suggested trial in a circle, beside the curve of the model whose size is next to it.

    It stands below the curve where the trial's model is the larger one, else above, as near as there is room: on the
    curve it would hide points. The layout of the axes is settled before.
    """
    seen: Table = curves[_drawn(curves)]
    sizes = seen.groupby("model", sort=False)["params"].first().astype(float)
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    scale = ax.figure.canvas.figure.dpi / 72  # pixels a point
    points = ax.transData.transform(seen[["train_examples", "value"]].to_numpy(float)) / scale
    curves_of = {str(model): _whole(seen, advice.bands, str(model), bottom=ax.get_ylim()[0]) for model in sizes.index}
    lines = np.concatenate([_along(ax.transData.transform(each) / scale) for each in curves_of.values()])
    box = ax.get_window_extent().bounds
    bottom, top = box[1] / scale, (box[1] + box[3]) / scale
    circles = np.zeros((0, 2))
    for place, trial in enumerate(advice.trials.to_dict("records")):
        near = str((np.log(sizes / trial["params"])).abs().idxmin())
        height = float(np.exp(np.interp(np.log(trial["data"]), *np.log(curves_of[near]).T)))
        own = ax.transData.transform((trial["data"], height)) / scale
        offset = _place(
            own, points, lines, circles, below=bool(trial["params"] > 1.01 * sizes[near]), within=(bottom, top)
        )
        circles = np.vstack([circles, own + offset])
        beside = ax.transData + ScaledTranslation(
            offset[0] / 72, offset[1] / 72, ax.figure.canvas.figure.dpi_scale_trans
        )
        if np.hypot(*offset) > 1.5 * BESIDE or abs(offset[0]) > 0.2 * BESIDE:  # else it is plain where it belongs
            ax.annotate(
                "", xy=(trial["data"], height), xytext=tuple(offset * (1 - 0.5 * CIRCLE / np.hypot(*offset))),
                textcoords="offset points", zorder=4.5,
                arrowprops={"arrowstyle": "-", "color": styles[near]["color"], "linewidth": 0.7, "shrinkA": 0,
                            "shrinkB": 0},
            )  # fmt: skip
        for marker, size, gid in (("o", CIRCLE, f"{NAME}-next-{place}"), (f"${place + 1}$", 6.5, None)):
            ax.plot(
                trial["data"], height, linestyle="none", marker=marker, markersize=size, color=styles[near]["color"],
                zorder=5, transform=beside, gid=gid, markerfacecolor="none" if gid else styles[near]["color"],
                markeredgewidth=1.1 if gid else 0.4,
            )  # fmt: skip


def _whole(seen: Table, bands: Table, model: str, *, bottom: float) -> Any:
    """Return where a model's curve and its forecast go, as far down as the axis shows, (points, 2)."""
    past, ahead = seen[seen["model"] == model], bands[bands["model"] == model]
    whole = [past[["train_examples", "value"]].to_numpy(float), ahead[["data", "value"]].to_numpy(float)]
    return np.maximum(np.concatenate(whole), [0.0, bottom])


def _along(corners: Any) -> Any:
    """Return points along a line, so many that no circle fits between two, (points, 2)."""
    gaps = np.hypot(*np.diff(corners, axis=0).T)
    way = np.concatenate([[0.0], np.cumsum(gaps)])
    steps = np.linspace(0.0, way[-1], max(2, int(way[-1] / 3)))
    return np.stack([np.interp(steps, way, each) for each in corners.T], axis=1)


def _place(own: Any, points: Any, lines: Any, circles: Any, *, below: bool, within: tuple[float, float]) -> Any:
    """Return the way to the centre of a circle that hides no point and no other circle, as short as possible, (2,).

    Where there is room it stands on no curve.

    Args:
        own: where the trial is, (2,), in points of the page.
        points: that are drawn, (n, 2).
        lines: points of the curves between them, (m, 2).
        circles: centres of those that have their places, (k, 2).
        below: whether it is to stand below rather than above.
        within: the lower and the upper end of the axes.
    """
    side = -1.0 if below else 1.0
    ways = [
        (angle, np.array([steps * BESIDE * np.sin(angle), up * steps * BESIDE * np.cos(angle)]))
        for steps in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
        for angle in (0.0, 0.6, -0.6, 1.2, -1.2)
        for up in (side, -side)
    ]

    def cost(tried: tuple[float, Any]) -> tuple[float, float]:
        angle, way = tried
        centre = own + way
        outside = max(0.0, within[0] + CIRCLE - centre[1], centre[1] - within[1] + CIRCLE)
        others = CIRCLE + 3.0 - np.hypot(*(circles - centre).T)
        marks = 0.5 * CIRCLE + 4.0 - np.hypot(*(points - centre).T)
        crossed = bool((np.hypot(*(lines - centre).T) < 0.5 * CIRCLE + 1.0).any())
        hidden = outside + np.clip(others, 0, None).sum() + np.clip(marks, 0, None).sum()
        astray = 4.0 * abs(angle) + (4.0 if way[1] * side < 0 else 0.0) + (BESIDE if crossed else 0.0)
        return round(float(hidden), 3), float(np.hypot(*way)) + astray

    return min(ways, key=cost)[1]


def _caption(ax: Axes, curves: pd.DataFrame, advice: "Advice | None") -> None:
    """Write under the axes what the reader must know: band, edges of grids, excluded trials, points off the axis."""
    lines = []
    edges = set(curves["edge"].tolist())
    marks = ", ".join(f"{mark} {edge}" for edge, (_, mark) in EDGE_MARKERS.items() if edge in edges)
    for line in notes(curves):
        lines.append(line.replace("edge of its grid", f"edge of its grid ({marks})"))
    off = int((curves["value"].to_numpy(dtype=float) <= 0).sum())
    if off:
        lines.append(f"Not drawn: {off} with value 0 or less, which a logarithmic axis cannot show.")
    if advice is not None and not advice.bands.empty:
        lines.append(
            f"Dashed: forecast to 100 times the data; its band: {100 * advice.level:.0f} % interval of one run."
        )
        below = advice.bands.loc[advice.bands["value"] < ax.get_ylim()[0], "model"].unique().tolist()
        if below:
            lines.append(f"Below the axis: part of the forecast of {listing(below)}.")
    if advice is not None and len(advice.trials):
        lines.append("A number in a circle: a trial that would narrow the answer most; the first before the others.")
    page = ax.figure.canvas.figure
    # Alone, the axes have the whole page from the labels of their ticks on; beside others hardly more than their width.
    points = 72 * page.get_figwidth() - BESIDE_AXES if len(page.axes) == 1 else 1.1 * 72 * ax.bbox.width / page.dpi
    text = filled(" ".join(lines), max(30, int(points / (0.54 * SMALL_SIZE))))  # half an em a letter, roughly
    ax.annotate(
        text, xy=(0, 0), xycoords="axes fraction", xytext=(0, -38), textcoords="offset points",
        ha="left", va="top", fontsize=SMALL_SIZE, color=SOFT, linespacing=1.35, annotation_clip=False,
    )  # fmt: skip


def _tip(point: Mapping[Any, Any], noun: str, unit: str) -> str:
    """Return what a reader is told of a point."""
    value, low, high = (short(point[name], 3) for name in ("value", "low", "high"))
    text = f"{point['model']}, {number_of(int(point['train_examples']), 'example')}: {noun} {value}"
    text += f" {unit}" if unit else ""
    if point["seeds"] > 1:
        text += f" ({low} to {high})"
    if point.get("learning_rate", np.nan) > 0:
        text += f", learning rate {point['learning_rate']:g}"
    if point["edge"]:
        text += f", the {point['edge']} of its grid"
    return text


def _alt(curves: pd.DataFrame, advice: "Advice | None") -> str:
    """Say what the picture shows: where it begins and ends, and where the best model ends."""
    noun = _noun(curves)
    seen: Table = curves[_drawn(curves)]
    first, last = int(seen["train_examples"].min()), int(seen["train_examples"].max())
    best = seen[seen["train_examples"] == last].sort_values("value", kind="stable").iloc[0]
    count = number_of(seen["model"].nunique(), "model")
    text = f"{column_title(noun)} of {count} on {first:,} to {number_of(last, 'example')}"
    if first == last:
        text = f"{column_title(noun)} of {count} on {number_of(last, 'example')}"
    text += f"; the lowest at {last:,} is {short(best['value'], 3)}, of {best['model']}."
    if advice is not None and not advice.bands.empty:
        ahead = advice.bands[advice.bands["model"] == best["model"]]
        if len(ahead):
            end = ahead.iloc[-1]
            value, low, high = (short(max(float(end[name]), 0.0), 2) for name in ("value", "low", "high"))
            level = f"{100 * advice.level:.0f} % interval {low} to {high}"
            text += f" Forecast for it at {round(end['data']):,}: {value} ({level})."
    return text


def _data(curves: pd.DataFrame, advice: "Advice | None") -> pd.DataFrame:
    """Return what is drawn: a row a point measured, a point of a forecast, a suggested trial."""
    columns = ["model", "family", "params", "train_examples", "value", "low", "high", "seeds", "learning_rate", "edge"]
    measured: Table = curves.reindex(columns=columns)
    measured.insert(0, "what", np.where(_drawn(curves), "measured", "measured, not drawn"))
    parts = [measured]
    if advice is not None:
        families = dict(zip(curves["model"], curves["family"], strict=True))
        bands = advice.bands.rename(columns={"data": "train_examples"})
        parts.append(bands.assign(what="forecast", family=bands["model"].map(families)))
        parts.append(
            advice.trials[["params", "data"]].rename(columns={"data": "train_examples"}).assign(what="suggested trial")
        )
    records = [record for part in parts for record in part.to_dict("records")]
    return pd.DataFrame(records, columns=["what", *columns])
