"""The picture of compute: a metric against the FLOPs of training, every trial, and the frontier over them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scalejax.analysis.curves.curves import models_of
from scalejax.analysis.curves.tuning import DIVERGED, DONE, STOPPED, headline, tuned
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
from scalejax.text import column_title, number_of, quantity, short

NAME = "compute"
COLUMNS = ["what", "model", "params", "train_examples", "seed", "learning_rate", "flops", "value"]


@styled()
def compute_picture(
    rows: pd.DataFrame, measurements: pd.DataFrame | None = None, *, unit: str = "", width: float = WIDE
) -> Picture | None:
    """Return the picture of a metric against the FLOPs of training: trials, and the frontier over the tuned ones.

    A point is a trial that is done. The frontier is the lowest mean over seeds that any model reaches on any number of
    examples with that compute or less, at the settings that tuning chooses: the luckiest seed does not make it.

    Args:
        rows: the trial table.
        measurements: those along training; of the best trial of each model they are drawn as a thin line, the metric
            on the validation set against the FLOPs so far. None: no such lines.
        unit: of the metric, written behind its name.
        width: of the figure in inches.

    Returns:
        The picture; None where no trial has both a FLOP count and a value that a logarithmic axis can show.

    Raises:
        ValueError: as `tuned`.
    """
    column, called = headline(rows)
    noun = called.replace("_", " ")
    table: Table = rows.assign(model=models_of(rows), value=rows[column].astype("float64"))
    table["flops"] = table["flops"].astype("float64")
    done = table[(table["status"] == DONE) & np.isfinite(table["value"])]
    shown = done[(done["value"] > 0) & (done["flops"] > 0)]
    if shown.empty:
        return None
    ordered = table.sort_values("params", kind="stable")
    styles = model_styles(dict(zip(ordered["model"], ordered["family"].astype(str), strict=True)))
    best: Table = tuned(rows)
    best = best.assign(model=models_of(best, among=rows), value=best[column].astype("float64"))
    frontier = _frontier(best)

    figure = new_figure(width)
    ax = figure.add_subplot()
    paths = _paths(best, measurements)
    for model, path in paths.items():
        ax.plot(path["flops"], path["value"], color=styles[model]["color"], linewidth=0.9, alpha=0.6, zorder=2.5)
    tips = {}
    for model, style in styles.items():
        own = shown[shown["model"] == model]
        if own.empty:
            continue
        gid = f"{NAME}-{len(tips)}"
        mark(ax, own["flops"], own["value"], style, gid=gid, size=3.6, label=model)
        tips[gid] = tuple(_tip(trial, noun, unit) for trial in own.to_dict("records"))
    if len(frontier) > 1:
        ax.plot(
            frontier["flops"], frontier["value"], color=INK, linewidth=1.3, drawstyle="steps-post", zorder=4,
            label="frontier",
        )  # fmt: skip
        gid = f"{NAME}-frontier"
        mark(ax, frontier["flops"], frontier["value"], {"color": INK, "marker": "o"}, gid=gid, size=7)
        tips[gid] = tuple(f"On the frontier: {_tip(point, noun, unit)}" for point in frontier.to_dict("records"))
    log_ticks(ax.xaxis, lambda flops: quantity(flops, "").strip())
    log_ticks(ax.yaxis)
    ax.set_xlabel("FLOPs of training")
    ax.set_ylabel(column_title(noun) + (f" ({unit})" if unit else ""))
    figure.legend(loc="outside right upper")
    write_below(figure, _notes(table, done, frontier, paths=bool(paths)))
    settle(figure)
    return Picture(
        name=NAME,
        title=f"{column_title(noun)} against compute",
        alt=_alt(shown, frontier, noun),
        figure=figure,
        data=_data(shown, frontier, paths),
        tips=tips,
    )


def _frontier(best: Table) -> Table:
    """Return the tuned cells, mean over seeds, that are lower than every cell of as much compute or less."""
    keys = ["model", "params", "train_examples", "learning_rate"]
    means = best.groupby(keys, sort=False, dropna=False)[["flops", "value"]].mean().reset_index()
    means = means[(means["value"] > 0) & (means["flops"] > 0)].sort_values(["flops", "value"], kind="stable")
    lowest = means["value"].cummin()
    return means[means["value"] < lowest.shift(fill_value=math.inf)].reset_index(drop=True)


def _paths(best: Table, measurements: pd.DataFrame | None) -> dict[str, Table]:
    """Return FLOPs so far and the validation metric along the best trial of each model, on its most examples."""
    if measurements is None or measurements.empty:
        return {}
    paths = {}
    for model, own in best.groupby("model", sort=False):
        trial = own.sort_values(["train_examples", "validation_loss"], ascending=[False, True]).iloc[0]
        along: Table = measurements[measurements["trial_id"] == trial["trial_id"]]
        flops = trial["flops"] * along["step"].to_numpy(float) / float(trial["steps"])
        path = pd.DataFrame({"flops": flops, "value": along["validation_metric"].to_numpy(float)})
        path = path[(path["flops"] > 0) & (path["value"] > 0)]  # False of NaN
        if len(path) > 1:
            paths[str(model)] = path.assign(params=trial["params"], train_examples=trial["train_examples"])
    return paths


def _notes(table: Table, done: Table, frontier: Table, *, paths: bool) -> list[str]:
    lines = ["A point: a trial."]
    if len(frontier) > 1:
        lines.append(
            "Frontier: the lowest mean over seeds at tuned settings for that compute or less; the search for the "
            "settings is not in it."
        )
    if paths:
        lines.append("Thin: the validation set along the best trial of each model on its most examples.")
    if without := done.loc[~(done["flops"] > 0), "model"].unique().tolist():
        lines.append(f"Not drawn, for want of a count of FLOPs: {', '.join(without)}.")
    if zeros := int((done["value"] <= 0).sum()):
        lines.append(f"Not drawn: {number_of(zeros, 'trial')} with value 0 or less.")
    counts = {what: int((table["status"] == what).sum()) for what in (STOPPED, DIVERGED)}
    if any(counts.values()):
        lines.append(f"Not drawn: {', '.join(f'{count:,} {what}' for what, count in counts.items() if count)}.")
    return lines


def _tip(trial: Mapping[Any, Any], noun: str, unit: str) -> str:
    text = f"{trial['model']}, {number_of(int(trial['train_examples']), 'example')}"
    text += f", seed {trial['seed']}" if "seed" in trial else ""
    text += f": {noun} {short(trial['value'], 3)}" + (f" {unit}" if unit else "")
    text += f", {quantity(trial['flops'], 'FLOP')}"
    return text + (f", learning rate {trial['learning_rate']:g}" if trial["learning_rate"] > 0 else "")


def _alt(shown: Table, frontier: Table, noun: str) -> str:
    low, high = (quantity(shown["flops"].agg(which), "FLOP") for which in ("min", "max"))
    text = f"{column_title(noun)} of {number_of(len(shown), 'trial')} that took {low} to {high}."
    if len(frontier) > 1:
        first, last = frontier.iloc[0], frontier.iloc[-1]
        text += (
            f" The frontier falls from {short(first['value'], 3)} ({first['model']}) to {short(last['value'], 3)} "
            f"({last['model']})."
        )
    return text


def _data(shown: Table, frontier: Table, paths: Mapping[str, Table]) -> pd.DataFrame:
    parts = [shown.assign(what="trial"), frontier.assign(what="frontier")]
    parts += [path.assign(what="validation along training", model=model) for model, path in paths.items()]
    records = [record for part in parts for record in part.to_dict("records")]
    return pd.DataFrame(records, columns=COLUMNS)
