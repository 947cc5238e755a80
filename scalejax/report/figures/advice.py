"""The figure of the advice: what was measured, where the forecast goes, and the trials that would tell most."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from scalejax.report.figures.canvas import (
    INK,
    LABEL_SIZE,
    SMALL_SIZE,
    SOFT,
    dress,
    label_ends,
    model_styles,
    new_figure,
    round_ticks,
    set_ticks,
)
from scalejax.text import column_title

if TYPE_CHECKING:
    from scalejax.analysis.forecast.advice import Advice, Observed

NOTE_WIDTH = 118  # characters
LEAST_SHOWN = 0.02  # of the lowest value measured or forecast: bands reach below, the axis does not


def plot_advice(observed: "Observed", advice: "Advice") -> Figure:
    """Draw each model's mean loss against its data, the forecast a hundred times beyond with its band, and next trials.

    Points are means over seeds. A question mark stands where a trial would narrow the answer most, in the colour of
    the model whose size is next to it.

    Args:
        observed: the rows.
        advice: what was made from them.
    """
    rows, bands = observed.rows, advice.bands
    rows = rows[rows["loss"] > 0]
    models = rows.sort_values("params", kind="stable").groupby("model", sort=False)["family"].first()
    styles = model_styles(dict(models.items()))
    figure = new_figure(7.6, 5.2)
    ax = figure.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("log")
    ends, sizes = [], {}
    for model, style in styles.items():
        own = rows[rows["model"] == model]
        means = own.groupby("data")["loss"].mean()
        sizes[model] = float(own["params"].iloc[0])
        plain = {"color": style["color"], "linewidth": 1.7}
        ax.plot(means.index, means.to_numpy(), markersize=3.6, marker=style["marker"], zorder=3, **plain)
        ends.append([model, float(means.index[-1]), float(means.iloc[-1]), style["color"]])
        ahead = bands[bands["model"] == model]
        if len(ahead):
            columns: Any = {name: ahead[name].to_numpy(float) for name in ("data", "value", "low", "high")}
            ax.fill_between(
                columns["data"], columns["low"], columns["high"], color=style["color"], alpha=0.12, linewidth=0
            )
            ax.plot(columns["data"], columns["value"], linestyle=(0, (2, 1.6)), zorder=3, **plain)
            ends[-1][1:3] = columns["data"][-1], columns["value"][-1]
    heights = np.concatenate([rows["loss"].to_numpy(float), bands["value"].to_numpy(float)])
    heights = heights[heights > 0]
    known = {model: size for model, size in sizes.items() if np.isfinite(size)}
    for trial in advice.trials.to_dict("records"):
        near = min(known, key=lambda model: abs(np.log(known[model] / trial["params"])))
        curve = bands[bands["model"] == near]
        past = rows[rows["model"] == near].groupby("data")["loss"].mean()
        pairs = (past.index, curve["data"]), (past, curve["value"])
        xs, ys = (np.concatenate([np.asarray(each, float) for each in pair]) for pair in pairs)
        height = float(np.exp(np.interp(np.log(trial["data"]), np.log(xs), np.log(np.maximum(ys, heights.min())))))
        ax.annotate(
            "?", (trial["data"], height), ha="center", va="center", fontsize=13, fontweight="bold", zorder=5,
            color=styles[near]["color"],
            bbox={"boxstyle": "circle,pad=0.16", "fc": "white", "ec": styles[near]["color"], "lw": 1.1},
        )  # fmt: skip
    ax.set_ylim(max(heights.min() * 0.6, LEAST_SHOWN * heights.min()), heights.max() * 1.15)
    left, right = ax.get_xlim()
    ticks = [float(10.0**power) for power in range(int(np.ceil(np.log10(left))), int(np.floor(np.log10(right))) + 1)]
    set_ticks(ax.xaxis, ticks or round_ticks(left, right), None if not ticks else [f"{tick:,.0f}" for tick in ticks])
    set_ticks(ax.yaxis, round_ticks(*ax.get_ylim()))
    dress(ax, x=f"Training {observed.data}", y=column_title(observed.noun))
    title = textwrap.fill(advice.statements[0].sentence, NOTE_WIDTH - 20)
    ax.set_title(title, loc="left", fontsize=LABEL_SIZE, color=INK, pad=8)
    note = (
        "Dashed: forecast to 100 times the data, each curve from its own points; band: "
        f"{100 * advice.level:.0f} % interval of one run. A question mark: a trial that would narrow the answer."
    )
    figure.supxlabel(textwrap.fill(note, NOTE_WIDTH), x=0.01, ha="left", fontsize=SMALL_SIZE, color=SOFT)
    label_ends(ax, [tuple(end) for end in ends])
    figure.set_layout_engine("none")
    return figure
