"""The figure of several runs: the best curve of each, in one picture."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex

from scalejax.report.figures.canvas import (
    DASHES,
    LABEL_SIZE,
    MARKERS,
    dress,
    label_ends,
    new_figure,
    round_ticks,
    set_ticks,
)
from scalejax.report.figures.picture import Picture
from scalejax.text import column_title, listing, short, short_count

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is

SHADES = ("viridis", 0.05, 0.72)


def compare_picture(runs: Mapping[str, Frame], *, unit: str = "") -> Picture | None:
    """Draw the curve of the model that comes lowest in each run, with its band, on logarithmic axes.

    Args:
        runs: the name of each run -> its learning curves, all of one metric.
        unit: of the metric where that is not the user's own.

    Returns:
        The picture; None where fewer than two runs have a positive value.
    """
    import pandas as pd

    best = {}
    for name, curves in runs.items():
        positive = curves[curves["value"] > 0]
        if len(positive):
            model = positive.loc[positive["value"].idxmin(), "model"]
            best[name] = positive[positive["model"] == model]
    if len(best) < 2:
        return None
    figure = new_figure(7.2, 4.6)
    ax = figure.add_subplot()
    ax.set_xscale("log")
    ax.set_yscale("log")
    ramp, start, stop = SHADES
    ends, tips = [], {}
    for place, (name, curve) in enumerate(best.items()):
        colour = to_hex(mpl.colormaps[ramp](start + (stop - start) * place / (len(best) - 1)))
        sizes, value, low, high = (
            curve[column].to_numpy(float) for column in ("train_examples", "value", "low", "high")
        )
        label = f"{name}: {curve['model'].iloc[0]}"
        ax.fill_between(sizes, np.where(low > 0, low, value), high, color=colour, alpha=0.13, linewidth=0)
        dashes = "-" if place == 0 else DASHES[(place - 1) % len(DASHES)]
        ax.plot(
            sizes, value, color=colour, linewidth=1.8, linestyle=dashes, marker=MARKERS[place % len(MARKERS)],
            markersize=4, label=label, gid=f"tips-{place}",
        )  # fmt: skip
        ends.append((name, float(sizes[-1]), float(value[-1]), colour))
        tips[f"tips-{place}"] = tuple(
            f"{label}, {short_count(size)} examples: {short(height, 3)}"
            for size, height in zip(sizes, value, strict=True)
        )
    metric = column_title(str(next(iter(best.values()))["metric"].iloc[0]))
    every = sorted({size for curve in best.values() for size in curve["train_examples"].tolist()})
    decades = [size for size in (10.0**power for power in range(12)) if every[0] <= size <= every[-1]]
    ticks = decades if len(decades) > 1 else [every[0], every[-1]]
    set_ticks(ax.xaxis, ticks, [short_count(tick) for tick in ticks])
    set_ticks(ax.yaxis, round_ticks(*ax.get_ylim()))
    dress(ax, x="Training examples", y=f"{metric} ({unit})" if unit else metric)
    ax.legend(frameon=False, fontsize=LABEL_SIZE, loc="best")
    label_ends(ax, ends)
    figure.set_layout_engine("none")
    title = f"{metric} of the best model of each run"
    alt = f"{title}, {listing(list(best))}, against the number of training examples, on logarithmic axes."
    return Picture("compare", title, alt, figure, pd.concat(best, names=["run"]).reset_index("run"), tips)
