"""The picture of several runs: the best curve of each."""

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.colors import to_hex

from scalejax.report.figures.canvas import (
    DASHES,
    MARKERS,
    WIDE,
    label_ends,
    log_ticks,
    mark,
    new_figure,
    settle,
    styled,
    write_below,
)
from scalejax.report.figures.picture import Picture
from scalejax.text import column_title, listing, number_of, short

NAME = "compare"
COLUMNS = ["run", "model", "family", "params", "train_examples", "value", "low", "high", "seeds"]
LONGEST = 22  # letters of a run's name
SHADES = ("viridis", 0.05, 0.72)
Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


@styled()
def compare_picture(runs: Mapping[str, Frame], *, unit: str = "", width: float = WIDE) -> Picture | None:
    """Return the picture of the model that comes lowest in each run: a metric against its examples.

    Args:
        runs: the name of each run -> its learning curves, all of one metric.
        unit: of the metric, written behind its name.
        width: of the figure in inches.

    Returns:
        The picture; None where fewer than two runs have a value that a logarithmic axis can show.
    """
    best = {}
    for name, curves in runs.items():
        positive = curves[curves["value"] > 0]
        if len(positive):
            model = positive.loc[positive["value"].idxmin(), "model"]
            best[name] = positive[positive["model"] == model].assign(run=name)
    if len(best) < 2:
        return None
    noun = str(next(iter(best.values()))["metric"].iloc[0]).replace("_", " ")

    figure = new_figure(width)
    ax = figure.add_subplot()
    ramp, start, stop = SHADES
    ends, tips, labels = [], {}, []
    for place, (name, curve) in enumerate(best.items()):
        colour = to_hex(mpl.colormaps[ramp](start + (stop - start) * place / (len(best) - 1)))
        style = {"color": colour, "marker": MARKERS[place % len(MARKERS)]}
        sizes, value, low, high = curve[["train_examples", "value", "low", "high"]].to_numpy(dtype=float).T
        label = f"{_brief(name)}: {curve['model'].iloc[0]}"
        ax.fill_between(sizes, low.clip(min=0.5 * value.min()), high, color=colour, alpha=0.12, linewidth=0, zorder=2)
        dashes = "-" if place == 0 else DASHES[(place - 1) % len(DASHES)]
        ax.plot(sizes, value, color=colour, linestyle=dashes, zorder=3)
        mark(ax, sizes, value, style, gid=f"{NAME}-{place}", label=str(place))
        labels.append(label)
        ends.append((_brief(name), float(sizes[-1]), float(value[-1]), colour))
        tips[f"{NAME}-{place}"] = tuple(
            f"{label}, {number_of(int(size), 'example')}: {noun} {short(height, 3)}"
            for size, height in zip(sizes, value, strict=True)
        )
    log_ticks(ax.xaxis)
    log_ticks(ax.yaxis)
    ax.set_xlabel("Training examples")
    ax.set_ylabel(column_title(noun) + (f" ({unit})" if unit else ""))
    # Written into the legend by hand: matplotlib leaves out a name that begins with an underscore.
    for text, label in zip(ax.legend(loc="lower left").get_texts(), labels, strict=True):
        text.set_text(label)
    write_below(figure, ["Of each run the model whose mean over seeds comes lowest; bands as in its own picture."])
    label_ends(ax, ends)
    settle(figure)
    title = f"{column_title(noun)} of the best model of each run"
    models = listing([f"{name} ({curve['model'].iloc[0]})" for name, curve in best.items()])
    return Picture(
        name=NAME,
        title=title,
        alt=f"{title} against the number of training examples, on logarithmic axes: {models}.",
        figure=figure,
        data=pd.concat(best.values(), ignore_index=True).reindex(columns=COLUMNS),
        tips=tips,
    )


def _brief(name: str) -> str:
    """Return the name of a run as it has room beside a line: of a long one the end, which tells runs apart."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
