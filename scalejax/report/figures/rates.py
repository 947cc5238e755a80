"""The picture of learning rates: how much the loss of each rate exceeds the best one, on each number of examples."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from scalejax.analysis.curves.curves import learning_curves, models_of
from scalejax.analysis.curves.tuning import DONE, STOPPED
from scalejax.report.figures.canvas import (
    SMALL_SIZE,
    WIDE,
    new_figure,
    number_text,
    settle,
    styled,
    write_below,
)
from scalejax.report.figures.picture import Picture, Table
from scalejax.text import listing, number_of, short, short_count

NAME = "rates"
LABEL = 8.5  # points
RAMP = "viridis_r"
MOST = 2.0  # times the lowest loss of a number of examples; above, all have one colour
PANEL = 2.0  # inches of a panel's width, at least
MOST_PANELS = 12
NOT_FINITE = "not finite"
ROW, LEAST_HEIGHT, BETWEEN = 0.23, 1.3, 0.62  # inches of a cell's height, of a panel, and between panels
EDGES = {"highest": "^", "lowest": "v"}
COLUMNS = ["model", "train_examples", "learning_rate", "validation_loss", "ratio", "state", "seeds", "best", "edge"]


@styled()
def rates_picture(rows: pd.DataFrame, *, width: float = WIDE) -> Picture | None:
    """Return the picture of validation losses over learning rates and numbers of examples, a panel a model.

    A colour is the mean over seeds divided by the lowest of its number of examples, among all settings at that rate the
    best one. The rate that tuning chooses has a ring; one at an end of its grid a triangle, a warning.

    Args:
        rows: the trial table.
        width: of the figure in inches.

    Returns:
        The picture; None where no model was trained with several learning rates.

    Raises:
        ValueError: as `tuned`.
    """
    curves = learning_curves(rows)
    cells = _cells(rows, curves)
    grids = cells.groupby("model", sort=False)["learning_rate"].nunique()
    models = [model for model in dict.fromkeys(curves["model"]) if grids.get(model, 0) > 1]
    if not models:
        return None
    kept = models
    if len(models) > MOST_PANELS:
        kept = [models[place] for place in np.linspace(0, len(models) - 1, MOST_PANELS).round().astype(int)]
    cells: Table = pd.concat([cells[cells["model"] == model] for model in kept], ignore_index=True)

    across = max(1, min(len(kept), int(width / PANEL)))
    down = math.ceil(len(kept) / across)
    tallest = int(grids[kept].max())
    height = down * (max(LEAST_HEIGHT, ROW * tallest) + BETWEEN) + 0.9
    figure = new_figure(width, height)
    panels = figure.subplots(down, across, squeeze=False)
    tips = {}
    for place, (ax, model) in enumerate(zip(panels.flat, kept, strict=False)):
        own = cells[cells["model"] == model].reset_index(drop=True)
        _draw(ax, own, gid=f"{NAME}-{place}", points=72 * width / across / 1.35)
        tips[f"{NAME}-{place}"] = tuple(_tip(cell) for cell in own[own["ratio"].notna()].to_dict("records"))
        ax.set_title(model, fontsize=LABEL)
        if place % across == 0:
            ax.set_ylabel("Learning rate")
        if place + across >= len(kept):
            ax.set_xlabel("Training examples")
    for ax in panels.flat[len(kept) :]:
        ax.set_visible(False)
    colours = ScalarMappable(Normalize(1, MOST), RAMP)
    bar = figure.colorbar(colours, ax=panels, extend="max", pad=0.02, aspect=30, fraction=0.05)
    bar.set_label("Times the lowest loss of the column", fontsize=LABEL)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    write_below(figure, _notes(cells, left_out=len(models) - len(kept)))
    settle(figure)
    return Picture(
        name=NAME,
        title="Validation loss over learning rates",
        alt=_alt(cells, len(kept)),
        figure=figure,
        data=cells[COLUMNS],
        tips=tips,
    )


def _cells(rows: pd.DataFrame, curves: pd.DataFrame) -> Table:
    """Return a row for each model, number of examples and learning rate: its mean validation loss, and its state.

    The state is "done"; "stopped", where all its seeds were stopped early: their losses are those at that step;
    "not finite", where a seed diverged or failed; or "not run".
    """
    table: Table = rows.assign(model=models_of(rows), status=rows["status"].astype(str))
    table = table[table["learning_rate"].astype(float) > 0]  # classical baselines have none
    settings = ["model", "train_examples", "learning_rate"]
    others = [name for name in ("weight_decay", "batch_size", "hyperparameters") if name in table.columns]
    loss = table["validation_loss"].astype("float64")
    table = table.assign(
        loss=loss.where(np.isfinite(loss) & table["status"].isin([DONE, STOPPED])),
        done=table["status"] == DONE, stopped=table["status"] == STOPPED,
        waits=table["status"].isin(["pending", "running"]),
    )  # fmt: skip
    records = []
    for cell, group in table.groupby([*settings, *others], sort=True, dropna=False):
        state = NOT_FINITE
        if group["waits"].all():
            state = "not run"
        elif group["stopped"].all():
            state = STOPPED
        elif (group["done"] & group["loss"].notna()).sum() == len(group) - group["waits"].sum():
            state = DONE
        whole = state in (DONE, STOPPED)
        mean = float(group["loss"].mean()) if whole else math.nan
        records.append([*cell[: len(settings)], mean, state, int(group["loss"].notna().sum()) if whole else 0])
    found: Table = pd.DataFrame(records, columns=[*settings, "validation_loss", "state", "seeds"])
    if found.empty:
        return found.assign(ratio=[], best=[], edge=[])
    # Of several settings at one rate the best; one that is done comes before one that was stopped.
    rank = found["state"].map({DONE: 0, STOPPED: 1, NOT_FINITE: 2, "not run": 3})
    found = found.assign(rank=rank).sort_values([*settings, "rank", "validation_loss"], kind="stable")
    found = found.drop_duplicates(settings).reset_index(drop=True)
    done = found["validation_loss"].where(found["state"] == DONE)
    lowest = done.groupby([found["model"], found["train_examples"]]).transform("min")
    found["ratio"] = (found["validation_loss"] / lowest).where(lowest > 0)
    chosen = {
        (point["model"], point["train_examples"]): (point["learning_rate"], point["edge"])
        for point in curves.to_dict("records")
    }
    picks = [
        chosen.get((model, size), (math.nan, ""))
        for model, size in zip(found["model"], found["train_examples"], strict=True)
    ]
    found["best"] = [rate == pick for rate, (pick, _) in zip(found["learning_rate"], picks, strict=True)]
    found["edge"] = [edge if best else "" for best, (_, edge) in zip(found["best"], picks, strict=True)]
    return found


def _draw(ax: Axes, cells: Table, *, gid: str, points: float) -> None:
    """Draw one model's cells, by the places of their rates and sizes: grids need not be even."""
    sizes, rates = (sorted(cells[name].unique().tolist()) for name in ("train_examples", "learning_rate"))
    xs = np.array([sizes.index(size) for size in cells["train_examples"]])
    ys = np.array([rates.index(rate) for rate in cells["learning_rate"]])
    known = cells["ratio"].notna().to_numpy()
    sides = np.where(cells["state"] == STOPPED, 0.5, 0.94)[known]
    squares = [
        Rectangle((x - side / 2, y - side / 2), side, side)
        for x, y, side in zip(xs[known], ys[known], sides, strict=True)
    ]
    ratios = cells["ratio"].to_numpy(float)[known]
    ax.add_collection(PatchCollection(squares, array=ratios, cmap=RAMP, norm=Normalize(1, MOST), linewidth=0))
    broken = (cells["state"] == NOT_FINITE).to_numpy()
    ax.plot(xs[broken], ys[broken], "x", color="#8a8a8a", markersize=4)
    # Invisible marks as large as cells, for who points at them.
    ax.plot(
        xs[known], ys[known], "s", alpha=0, markerfacecolor="white", markersize=min(points / len(sizes), 72 * ROW),
        gid=gid,
    )  # fmt: skip
    for edge, marker in (("", "o"), *EDGES.items()):
        here = (cells["best"] & (cells["edge"] == edge)).to_numpy()
        if here.any():
            for colour, stroke in (("white", 3.0), ("black", 1.2)):
                ax.plot(xs[here], ys[here], marker, color=colour, markeredgewidth=stroke, markersize=7)
    ax.set_xlim(-0.5, len(sizes) - 0.5)
    ax.set_ylim(-0.5, len(rates) - 0.5)
    step = math.ceil(len(sizes) / 6)
    ax.set_xticks(range(0, len(sizes), step), [short_count(size) for size in sizes[::step]])
    step = math.ceil(len(rates) / 7)
    ax.set_yticks(range(0, len(rates), step), [number_text(rate) for rate in rates[::step]])
    ax.grid(False)
    ax.tick_params(length=0, labelsize=SMALL_SIZE)
    ax.spines[["left", "bottom"]].set_visible(False)


def _notes(cells: Table, *, left_out: int) -> list[str]:
    lines = ["Mean over seeds at full training; ring: the rate that tuning chooses."]
    at_edge = cells[cells["edge"] != ""]
    if len(at_edge):
        marks = {"highest": "△", "lowest": "▽"}
        which = ", ".join(f"{marks[edge]} {edge}" for edge in EDGES if (at_edge["edge"] == edge).any())
        lines.append(f"At an edge of the grid ({which}) in {number_of(len(at_edge), 'cell')}: widen the grid.")
    states = set(cells["state"])
    if STOPPED in states:
        lines.append("Small square: stopped early by halving, the loss at that step.")
    if NOT_FINITE in states:
        lines.append("Cross: a seed diverged or failed, so there is no mean.")
    if "not run" in states:
        lines.append("Blank: not yet run, or not in the grid.")
    if left_out:
        lines.append(f"Left out: {number_of(left_out, 'model')} between those shown.")
    return lines


def _tip(cell: Mapping[Any, Any]) -> str:
    text = f"{cell['model']}, {number_of(int(cell['train_examples']), 'example')}, "
    text += f"learning rate {cell['learning_rate']:g}: validation loss {short(cell['validation_loss'], 3)}"
    if cell["state"] == STOPPED:
        return f"{text} when it was stopped early"
    text += f", {cell['ratio']:.2f} times the lowest"
    return text + (", chosen" if cell["best"] else "") + (f", the {cell['edge']} of its grid" if cell["edge"] else "")


def _alt(cells: Table, panels: int) -> str:
    low, high = (f"{cells['learning_rate'].agg(which):g}" for which in ("min", "max"))
    best = cells[cells["best"]]
    text = f"Validation loss of {number_of(panels, 'model')} at learning rates from {low} to {high}."
    if len(best):
        edges = int((best["edge"] != "").sum())
        where = "none is" if not edges else f"{edges} of {len(best)} are"
        text += f" Of the chosen rates {where} at an edge of the grid."
        if edges:
            text += f" These are of {listing(list(dict.fromkeys(best.loc[best['edge'] != '', 'model'])))}."
    return text
