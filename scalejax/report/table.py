"""Learning curves in the terminal: a short table and plain sentences."""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd
from rich.box import SIMPLE
from rich.table import Table

from scalejax.analysis.curves.curves import notes, order_at_smallest
from scalejax.analysis.curves.tuning import DONE, STOPPED, alike
from scalejax.text import column_title, listing, number_of, short, short_count

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
    step = (len(sizes) - 1) / (MOST_SIZES - 1)
    shown = sizes if step <= 1 else [sizes[round(place * step)] for place in range(MOST_SIZES)]
    footnotes = [f"{EDGE_MARK} {line}" if "edge of its grid" in line else line for line in notes(curves)]
    if len(shown) < len(sizes):
        footnotes.insert(0, f"{len(shown)} of {len(sizes)} sizes shown.")
    table = Table(
        title=f"{column_title(str(curves['metric'].iloc[0]))} by number of training examples",
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
    texts = {
        (point["model"], point["train_examples"]): short(point["value"], 3) + (EDGE_MARK if point["edge"] else "")
        if math.isfinite(point["value"])
        else "-"
        for point in curves.to_dict("records")
    }
    for trend in trends.to_dict("records"):
        points = [texts.get((trend["model"], size), "") for size in shown]
        table.add_row(str(trend["model"]), *points, str(trend["verdict"]))
    return table


def summary_lines(curves: pd.DataFrame, trends: pd.DataFrame) -> list[str]:
    """Return what the curves say, one plain sentence a line: the order at the smallest size, then each model's trend.

    Args:
        curves: as returned by `scalejax.analysis.learning_curves`.
        trends: as returned by `scalejax.analysis.trends` for these curves.
    """
    return [order_at_smallest(curves), *(str(sentence) for sentence in trends["sentence"])]


def halving_lines(results: pd.DataFrame) -> list[str]:
    """Say how many trials halving has stopped, at which rungs, and which learning rates ran to the end.

    Args:
        results: the trial table, with steps and steps_taken.
    """
    # The trials that competed with each other differ in learning rate and seed alone.
    columns = ("train_examples", "weight_decay", "batch_size", "steps")
    competitions = [list(rows.values()) for rows in alike(results, columns)]
    competitions = [rows for rows in competitions if any(row["status"] == STOPPED for row in rows)]
    if not competitions:
        return []
    shares: dict[int, list[float]] = {}  # of their steps that trials had taken, by the number of the rung
    rates: Counter[float] = Counter()  # competitions in which a rate ran to the end
    for rows in competitions:
        stopped = [row for row in rows if row["status"] == STOPPED]
        rungs = sorted({row["steps_taken"] for row in stopped})
        for row in stopped:
            shares.setdefault(rungs.index(row["steps_taken"]) + 1, []).append(row["steps_taken"] / row["steps"])
        halved = {row["learning_rate"] for row in stopped}
        rates.update({row["learning_rate"] for row in rows if row["status"] == DONE} - halved)
    places = [f"{len(shares[rung]):,} after {_percent(shares[rung])}" for rung in sorted(shares)]
    places = places if len(places) > 1 else [f"after {_percent(shares[1])}"]
    lines = [
        f"Halving stopped {sum(map(len, shares.values())):,} of {number_of(len(results), 'trial')} early, "
        f"{listing(places)} of the planned steps; stopped trials enter no curve."
    ]
    if rates and len(competitions) == 1:
        noun = "Learning rate" if len(rates) == 1 else "Learning rates"
        lines.append(f"{noun} {listing([f'{rate:g}' for rate in sorted(rates)])} ran to the end.")
    elif rates:
        first, *others = sorted(rates)
        place = f"{first:g} ran to the end in {rates[first]:,} of {len(competitions):,} competitions"
        lines.append(f"Learning rate {listing([place, *(f'{rate:g} in {rates[rate]:,}' for rate in others)])}.")
    return lines


def _percent(shares: Sequence[float]) -> str:
    low, high = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"
