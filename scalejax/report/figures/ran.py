"""The picture of how a sweep ran: which trial was in which lane when, or how many lanes were busy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from scalejax.analysis.curves.curves import model_labels
from scalejax.analysis.curves.tuning import Cell, alike, knob_columns
from scalejax.report.figures.canvas import (
    INK,
    NEUTRAL,
    SMALL_SIZE,
    SOFT,
    model_styles,
    new_figure,
    set_ticks,
    settle,
    styled,
)
from scalejax.report.figures.picture import Picture
from scalejax.text import duration, number_of

NAME, TITLE = "ran", "How the sweep ran"
MOST_LANES, MOST_SPANS = 64, 1500  # that are drawn one by one
MOST_TICKS = 24
MOMENTS = 240  # of the time, at which busy lanes are counted
WIDTH = 7.2  # inches
BAR = 0.82  # of the height of a lane
GAP = 1.2  # lanes, between two blocks: the words above the second
UNITS = ((7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.0, 1.0, "s"))  # from so many seconds on
# What marks the end of a bar, and what it says: by status of the trial, and by why it left the lane.
MARKS = {
    "diverged": ("x", "diverged"),
    "stopped": ("|", "stopped by halving"),
    "failed": ("X", "failed"),
    "refused": (4, "sent back: short of memory"),
    "interrupted": (">", "interrupted"),
}
Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


@dataclass(frozen=True)
class Block:
    """The lanes of one bucket on one group of devices, as rows of the picture; the first one is uppermost."""

    label: str
    first: float  # the row of its first lane
    lanes: int


@styled()
def ran_picture(spans: Frame, results: Frame) -> Picture | None:
    """Return the picture of the lanes over time: a bar a span, coloured by model, and marks where a trial did not end.

    Lanes stand in blocks, one for each bucket on each group of devices. With more than 64 lanes, or more bars than can
    be told apart, it shows how many lanes were busy instead, stacked by model. The time between sessions is left out.

    Args:
        spans: as `Run.timeline` returns it.
        results: the trial table.

    Returns:
        The picture; None where no span of a trial of the table is known.
    """
    shown = _shown(spans, results)
    if len(shown) == 0:
        return None
    styles = model_styles(_families(results, shown))
    scale, unit = next((size, name) for least, size, name in UNITS if shown["to"].max() >= least)
    shown[["from", "to"]] /= scale
    blocks = _blocks(shown)
    lanes = sum(block.lanes for block in blocks.values())
    draw = _bars if lanes <= MOST_LANES and len(shown) <= MOST_SPANS else _occupancy
    return draw(shown, blocks, styles, unit=unit)


def _shown(spans: Frame, results: Frame) -> Frame:
    """Return the spans with model, family, status and place in time: seconds of all sessions, one behind the other."""
    trials = results[["trial_id", "family", "status", "train_examples"]].assign(model=_models(results))
    shown = spans.merge(trials, on="trial_id", how="inner")
    now = shown[["began", "ended"]].max().max()  # nothing is known of later moments
    shown["ended"] = shown["ended"].fillna(now)
    sessions = shown.groupby("session").agg(began=("began", "min"), ended=("ended", "max"))
    before = (sessions["ended"] - sessions["began"]).cumsum().shift(fill_value=0.0)
    moved = shown["session"].map(before - sessions["began"])
    shown["from"], shown["to"] = shown["began"] + moved, shown["ended"] + moved
    shown = shown.sort_values(["from", "pack", "lane"], kind="stable", ignore_index=True)
    last = ~shown.duplicated("trial_id", keep="last")  # halving decides once a trial has left its lane
    shown["why"] = shown["outcome"].mask(last & (shown["status"] == "stopped"), "stopped")
    return shown


def _models(results: Frame) -> list[str]:
    """Return the label of each trial's model, as the learning curves have it, also where no trial has ended."""
    knobs, groups = tuple(knob_columns(results)), alike(results, [])
    firsts = [next(iter(group.values())) for group in groups]
    keep = ("family", *knobs, "params")
    cells = [Cell({name: first[name] for name in keep}, knobs, (), {}) for first in firsts]
    labels: dict[int, str] = {}
    for group, label in zip(groups, model_labels(cells), strict=True):
        labels |= dict.fromkeys(group, label)
    return [labels[place] for place in range(len(results))]


def _families(results: Frame, shown: Frame) -> dict[str, str]:
    """Return the family of each model that is shown, the models from the smallest to the largest."""
    sizes = results.assign(model=_models(results)).sort_values("params", kind="stable")
    there = set(shown["model"])
    return {model: family for model, family in zip(sizes["model"], sizes["family"], strict=True) if model in there}


def _blocks(shown: Frame) -> dict[tuple[str, str], Block]:
    """Return the rows of each group and bucket; groups in the order of their names, buckets in that of their begin."""
    blocks, first = {}, 0.0
    groups = shown.groupby(["group", "bucket"], sort=False).agg(lanes=("lanes", "max")).reset_index()
    for group in dict.fromkeys(sorted(groups["group"], key=_natural)):
        for bucket, lanes in groups.loc[groups["group"] == group, ["bucket", "lanes"]].itertuples(index=False):
            blocks[group, bucket] = Block(f"{group}: {bucket}", first, int(lanes))
            first += int(lanes) + GAP
    return blocks


def _natural(name: str) -> tuple[str, int]:
    """Return what sorts "gpu 10" behind "gpu 9"."""
    word, _, number = name.partition(" ")
    return word, int(number.split("-")[0] or 0) if number else 0


def _bars(shown: Frame, blocks: Mapping[tuple[str, str], Block], styles: Mapping[str, Any], *, unit: str) -> Picture:
    """Draw a bar a span."""
    keys = list(zip(shown["group"], shown["bucket"], strict=True))
    shown["row"] = [blocks[key].first for key in keys] + shown["lane"]
    lanes = sum(block.lanes for block in blocks.values())
    rows = lanes + GAP * len(blocks)
    figure = new_figure(WIDTH, 1.2 + min(7.0, max(0.9, 0.24 * rows)))
    ax = figure.add_subplot()
    tips: dict[str, tuple[str, ...]] = {}
    for number, (model, style) in enumerate(styles.items()):
        own = shown[shown["model"] == model]
        low, high = own["row"] - BAR / 2, own["row"] + BAR / 2
        corners = [(own["from"], low), (own["from"], high), (own["to"], high), (own["to"], low)]
        bars = PolyCollection(
            list(np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1).astype(float)),
            facecolor=style["color"], edgecolor="white", linewidth=0.3, gid=f"{NAME}-{number}", zorder=3,
        )  # fmt: skip
        ax.add_collection(bars)
        tips[f"{NAME}-{number}"] = tuple(map(_tip, own.to_dict("records")))
    handles = [Patch(facecolor=style["color"], label=model) for model, style in styles.items()]
    handles += _mark_ends(ax, shown)
    for block in blocks.values():
        # Above its lanes: long words have no room beside the axis.
        ax.annotate(
            block.label, (0, block.first - 0.5), xycoords=("axes fraction", "data"), xytext=(2, 1.5), color=SOFT,
            textcoords="offset points", fontsize=SMALL_SIZE, va="bottom", annotation_clip=False,
        )  # fmt: skip
    last = max(block.first + block.lanes for block in blocks.values())
    ax.set_ylim(last - 0.5, -0.5 - GAP)
    every = max(1, -(-lanes // MOST_TICKS))
    ticks = [(block.first + lane, lane) for block in blocks.values() for lane in range(0, block.lanes, every)]
    set_ticks(ax.yaxis, [row for row, _ in ticks], [str(lane) for _, lane in ticks])
    _finish(figure, ax, shown, handles, unit=unit, y="Lane")
    return Picture(NAME, TITLE, _alt(shown, blocks, unit), figure, _data(shown), tips)


def _occupancy(
    shown: Frame, blocks: Mapping[tuple[str, str], Block], styles: Mapping[str, Any], *, unit: str
) -> Picture:
    """Draw how many lanes were busy, stacked by model, against how many there were."""
    import pandas as pd

    edges = np.linspace(0.0, float(shown["to"].max()), MOMENTS + 1)
    counts = {model: _mean_count(shown[shown["model"] == model], edges) for model in styles}
    packs = shown.groupby(["session", "pack"]).agg({"from": "min", "to": "max", "lanes": "first"})
    there = _mean_count(packs, edges, packs["lanes"].to_numpy(float))
    figure = new_figure(WIDTH, 3.6)
    ax = figure.add_subplot()
    base = np.zeros(MOMENTS)
    for number, (model, style) in enumerate(styles.items()):
        top = base + counts[model]
        ax.stairs(top, edges, baseline=base, fill=True, color=style["color"], linewidth=0, gid=f"{NAME}-{number}")
        base = top
    ax.stairs(there, edges, color=INK, linewidth=1.0, linestyle=(0, (2, 1.6)), zorder=4)
    ax.set_ylim(0, 1.08 * max(there.max(), base.max()))
    handles: list[Any] = [Patch(facecolor=style["color"], label=model) for model, style in styles.items()]
    handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (2, 1.6)), label="lanes there were"))
    _finish(figure, ax, shown, handles, unit=unit, y="Busy lanes")
    time = {f"from_{unit}": edges[:-1], f"to_{unit}": edges[1:]}
    long = [pd.DataFrame({**time, "model": model, "busy": busy, "lanes": there}) for model, busy in counts.items()]
    tips = {
        f"{NAME}-{number}": (f"{model}: {number_of(int((shown['model'] == model).sum()), 'span')} in lanes",)
        for number, model in enumerate(styles)
    }
    return Picture(NAME, TITLE, _alt(shown, blocks, unit), figure, pd.concat(long, ignore_index=True), tips)


def _mean_count(intervals: Frame, edges: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return how many intervals, from `from` to `to`, hold on average between two edges, [edges - 1]."""
    weights = np.ones(len(intervals)) if weights is None else weights
    total = np.zeros(len(edges))
    for name, sign in (("from", 1.0), ("to", -1.0)):
        times = intervals[name].to_numpy(float)
        order = np.argsort(times)
        times, sizes = times[order], weights[order]
        # The integral up to each edge of a step of that size at each time: the sum of size x (edge - time) before it.
        before = np.searchsorted(times, edges, side="right")
        summed, moments = (np.concatenate([[0.0], np.cumsum(each)]) for each in (sizes, sizes * times))
        total += sign * (edges * summed[before] - moments[before])
    return np.maximum(0.0, np.diff(total) / np.maximum(np.diff(edges), 1e-12))


def _mark_ends(ax: Axes, shown: Frame) -> list[Line2D]:
    """Mark the ends of bars after which a trial was not done; return what the legend says of the marks."""
    handles = []
    for name, (marker, words) in MARKS.items():
        here = shown[shown["why"] == name]
        if len(here):
            look = {"marker": marker, "linestyle": "none", "color": INK, "markersize": 5, "markeredgewidth": 1.1}
            look["markerfacecolor"] = INK
            look["path_effects"] = [withStroke(linewidth=2.6, foreground="white")]  # seen on dark bars too
            ax.plot(here["to"], here["row"], zorder=4, clip_on=False, **look)
            handles.append(Line2D([], [], label=words, **look))
    return handles


def _finish(figure: Figure, ax: Axes, shown: Frame, handles: list[Any], *, unit: str, y: str) -> None:
    """Draw the axes, the ends of sessions and the legend."""
    ax.set_xlim(0, float(shown["to"].max()))
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.tick_params(labelsize=SMALL_SIZE)
    ax.tick_params(axis="y", length=0)
    for end in shown.groupby("session")["to"].max().sort_values()[:-1]:
        ax.axvline(end, color=NEUTRAL, linewidth=0.9, linestyle=(0, (1, 1.6)), zorder=2)
    several = ", sessions one behind the other" if shown["session"].nunique() > 1 else ""
    ax.set_xlabel(f"Time since the first step, {unit}{several}")
    ax.set_ylabel(y)
    figure.legend(handles=handles, loc="outside lower left", ncols=min(4, len(handles)))
    settle(figure)


def _tip(span: Mapping[Any, Any]) -> str:
    """Say of a bar which trial it is, and what became of it."""
    text = f"{span['model']}, {number_of(int(span['train_examples']), 'example')} ({span['trial_id']}): "
    text += f"{number_of(int(span['steps']), 'step')} in {duration(span['ended'] - span['began'])}"
    why = span["why"]
    why = MARKS[why][1] if why in MARKS else {"rung": "then waited at a rung"}.get(why, why)
    return f"{text}, {why}" if why else text


def _alt(shown: Frame, blocks: Mapping[tuple[str, str], Block], unit: str) -> str:
    trials, models = shown["trial_id"].nunique(), shown["model"].nunique()
    lanes = sum(block.lanes for block in blocks.values())
    groups = len({group for group, _ in blocks})
    return (
        f"{number_of(trials, 'trial')} of {number_of(models, 'model')} in {number_of(lanes, 'lane')} on "
        f"{number_of(groups, 'group')} of devices, over {shown['to'].max():.3g} {unit}."
    )


def _data(shown: Frame) -> Frame:
    """Return the spans as they are drawn."""
    names = "trial_id model session group bucket lane began ended steps outcome status"
    return shown[names.split()].copy()
