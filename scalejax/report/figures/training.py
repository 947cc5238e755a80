"""The picture of training: the validation loss along the best trial of each model, on a few numbers of examples."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from scalejax.analysis.curves.curves import models_of
from scalejax.analysis.curves.tuning import tuned
from scalejax.report.figures.canvas import (
    INK,
    WIDE,
    log_ticks,
    mark,
    model_styles,
    new_figure,
    settle,
    styled,
    write_below,
)
from scalejax.report.figures.picture import Picture, Table
from scalejax.text import listing, number_of, short

NAME = "training"
PANELS = 3
PANEL = 2.3  # inches of a panel's width, at least
HEIGHT, AROUND = 2.3, 1.15  # inches of a panel, and of what is around
COLUMNS = ["model", "params", "train_examples", "trial_id", "learning_rate", "step", "examples_seen", "validation_loss"]


@styled()
def training_picture(rows: pd.DataFrame, measurements: pd.DataFrame, *, width: float = WIDE) -> Picture | None:
    """Return the picture of validation losses along training, a panel for each of a few numbers of examples.

    These are the largest one, and those nearest to a tenth and a hundredth of it. A line is the trial of a model with
    the lowest validation loss among the seeds of its tuned setting; a ring marks its best step.

    Args:
        rows: the trial table.
        measurements: those along training.
        width: of the figure in inches.

    Returns:
        The picture; None where no trial has two measurements.

    Raises:
        ValueError: as `tuned`.
    """
    best: Table = tuned(rows)
    best = best.assign(model=models_of(best, among=rows))
    firsts = best.sort_values(["train_examples", "validation_loss"], kind="stable")
    firsts = firsts.drop_duplicates(["model", "train_examples"])
    along: Table = firsts[["model", "family", "params", "train_examples", "trial_id", "learning_rate"]].merge(
        measurements[["trial_id", "step", "examples_seen", "validation_loss"]], on="trial_id"
    )
    along = along.sort_values(["train_examples", "params", "trial_id", "step"], kind="stable", ignore_index=True)
    loss = along["validation_loss"].to_numpy(float)
    along = along.assign(drawn=np.isfinite(loss) & (loss > 0) & (along["examples_seen"] > 0))
    counts = along[along["drawn"]].groupby("trial_id").size()
    along = along[along["trial_id"].isin(counts[counts > 1].index)]
    if along.empty:
        return None
    sizes = _few(sorted(along["train_examples"].unique().tolist()))
    along = along[along["train_examples"].isin(sizes)].reset_index(drop=True)
    ordered = rows.assign(model=models_of(rows)).sort_values("params", kind="stable")
    styles = model_styles(dict(zip(ordered["model"], ordered["family"].astype(str), strict=True)))

    across = max(1, min(len(sizes), int(width / PANEL)))
    down = math.ceil(len(sizes) / across)
    figure = new_figure(width, down * (HEIGHT + 0.35) + AROUND)
    panels = figure.subplots(down, across, squeeze=False, sharey=True)
    tips = {}
    for place, (ax, size) in enumerate(zip(panels.flat, sizes, strict=False)):
        for model, style in styles.items():
            own = along[(along["model"] == model) & (along["train_examples"] == size)]
            if own.empty:
                continue
            x, y = own["examples_seen"].to_numpy(float), own["validation_loss"].where(own["drawn"]).to_numpy(float)
            ax.plot(x, y, color=style["color"], linestyle=style["linestyle"], linewidth=1.4)
            gid = f"{NAME}-{len(tips)}"
            drawn = own[own["drawn"]]
            mark(ax, drawn["examples_seen"], drawn["validation_loss"], style, gid=gid, size=2.6)
            tips[gid] = tuple(_tip(each) for each in drawn.to_dict("records"))
            lowest = drawn.loc[drawn["validation_loss"].idxmin()]
            ring = {"color": style["color"], "marker": "o"}
            mark(ax, [lowest["examples_seen"]], [lowest["validation_loss"]], ring, size=8)
        ax.set_title(number_of(int(size), "example"))
        log_ticks(ax.xaxis)
        ax.set_xlabel("Examples seen")
        if place % across == 0:
            ax.set_ylabel("Validation loss")
    log_ticks(panels.flat[0].yaxis)
    for ax in panels.flat[len(sizes) :]:
        ax.set_visible(False)
    shown = [model for model in styles if (along["model"] == model).any()]
    handles = [Line2D([], [], color=styles[name]["color"], linestyle=styles[name]["linestyle"]) for name in shown]
    handles.append(Line2D([], [], color=INK, linestyle="none", marker="o", markersize=7))
    figure.legend(handles, [*shown, "best step"], loc="outside upper left", ncols=max(1, int(width / 1.4)))
    write_below(figure, _notes(along))
    settle(figure)
    return Picture(
        name=NAME,
        title="Validation loss along training",
        alt=_alt(along),
        figure=figure,
        data=along[COLUMNS],
        tips=tips,
    )


def _few(sizes: list[float]) -> list[float]:
    """Return the largest of ascending sizes, and those nearest to a tenth and a hundredth of it."""
    wanted = [sizes[-1] / 10.0**power for power in range(PANELS)]
    return sorted({min(sizes, key=lambda size: abs(math.log(size / each))) for each in wanted})


def _notes(along: Table) -> list[str]:
    lines = ["Of each model the seed with the lowest loss, at its tuned setting. Examples seen again count again."]
    if gaps := int((~along["drawn"]).sum()):
        lines.append(f"Not drawn: {number_of(gaps, 'measurement')} not finite or not above 0.")
    return lines


def _tip(point: Mapping[Any, Any]) -> str:
    text = f"{point['model']}, {number_of(int(point['train_examples']), 'example')}, step {int(point['step']):,}: "
    text += f"validation loss {short(point['validation_loss'], 3)}"
    return text + (f", learning rate {point['learning_rate']:g}" if point["learning_rate"] > 0 else "")


def _alt(along: Table) -> str:
    sizes = [f"{int(size):,}" for size in along["train_examples"].drop_duplicates()]
    drawn = along[along["drawn"]]
    most = drawn[drawn["train_examples"] == drawn["train_examples"].max()]
    low = most.loc[most["validation_loss"].idxmin()]
    count = number_of(drawn["model"].nunique(), "model")
    return (
        f"Validation loss along the training of {count} on {listing(sizes)} examples. On the most the lowest is "
        f"{short(low['validation_loss'], 3)}, of {low['model']} at step {int(low['step']):,}."
    )
