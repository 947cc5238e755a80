"""Learning curves in the terminal: a short table and plain sentences."""

import math
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from scalejax.analysis.curves import notes, order_at_smallest
from scalejax.analysis.tuning import short, short_count

MOST_SIZES = 7  # columns of sizes that, with labels and verdict, still fit a terminal of 80 characters
EDGE_MARK = "*"


def curve_table(curves: pd.DataFrame, trends: pd.DataFrame) -> Table:
    """Return a table of models against numbers of training examples, with the verdict on each curve's end.

    With more than seven sizes the table shows seven of them, evenly spaced by rank, the first and last included, and
    says so. `*` marks a point whose best learning rate is at an edge of its grid, "-" a point without a counted trial.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        trends: as returned by `scalejax.analysis.trends` for these curves.
    """
    sizes = sorted(set(curves["train_examples"].tolist()))
    shown = _thinned(sizes)
    metric = str(curves["metric"].iloc[0]).replace("_", " ").capitalize()
    footnotes = [f"{EDGE_MARK} {line}" if "edge of its grid" in line else line for line in notes(curves)]
    if len(shown) < len(sizes):
        footnotes.insert(0, f"{len(shown)} of {len(sizes)} sizes shown.")
    table = Table(
        title=f"{metric} by number of training examples",
        title_justify="left",
        caption="\n".join(footnotes),
        caption_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True)
    for size in shown:
        table.add_column(short_count(size), justify="right", no_wrap=True)
    table.add_column("at the end", no_wrap=True)
    cells = {(point["model"], point["train_examples"]): _cell(point) for point in curves.to_dict("records")}
    for trend in trends.to_dict("records"):
        points = [cells.get((trend["model"], size), "") for size in shown]
        table.add_row(str(trend["model"]), *points, str(trend["verdict"]))
    return table


def summary_lines(curves: pd.DataFrame, trends: pd.DataFrame) -> list[str]:
    """Return what the curves say, one plain sentence a line: the order at the smallest size, then each model's trend.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        trends: as returned by `scalejax.analysis.trends` for these curves.
    """
    return [order_at_smallest(curves), *(str(sentence) for sentence in trends["sentence"])]


def _cell(point: dict) -> str:
    if not math.isfinite(point["value"]):
        return "-"
    return short(point["value"], 3) + (EDGE_MARK if point["edge"] else "")


def _thinned(sizes: Sequence[int]) -> list[int]:
    """Return at most MOST_SIZES of the sizes, evenly spaced by rank, with the first and the last."""
    if len(sizes) <= MOST_SIZES:
        return list(sizes)
    step = (len(sizes) - 1) / (MOST_SIZES - 1)
    return [sizes[round(place * step)] for place in range(MOST_SIZES)]
