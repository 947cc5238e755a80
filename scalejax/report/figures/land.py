"""The poster of maps: the world as each model sees it, sizes down, data across, beside the true one."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from scalejax.report.figures.canvas import SMALL_SIZE, SOFT, WIDE, new_figure, settle, styled, write_below
from scalejax.report.figures.picture import Picture
from scalejax.text import number_of, short, short_count

NAME = "land"
RAMP = "cividis"  # sea dark, land light: read alike by all eyes, and in grey
TITLE = 8.5  # points
TRUE_WIDTH = 1.6  # times that of a model's map
NAMES, UNDER, AROUND = 0.65, 0.2, 0.62  # inches for the models' names, under a map, and around all
Grid = npt.NDArray[np.floating]


@styled()
def land_picture(maps: Mapping[tuple[str, int], Grid], truth: Grid, *, width: float = WIDE) -> Picture | None:
    """Return the poster of what models take for land.

    Args:
        maps: (model, number of examples) -> probability of land, or a class, [latitudes, longitudes] of cells of equal
            degrees, from north to south and from west to east; models in the order in which they stand, from above.
        truth: 1 for land and 0 for sea, of the same shape.
        width: of the figure in inches.

    Returns:
        The picture; None where there is no map.

    Raises:
        ValueError: a map is of another shape than the true one.
    """
    for (model, size), each in maps.items():
        if each.shape != truth.shape:
            shapes = f"{list(each.shape)}, the true one {list(truth.shape)}"
            raise ValueError(
                f"The map of {model} on {number_of(size, 'example')} has the shape {shapes}: give one grid."
            )
    if not maps:
        return None
    models, sizes = list(dict.fromkeys(model for model, _ in maps)), sorted({size for _, size in maps})
    wrong = {key: wrong_share(each, truth) for key, each in maps.items()}

    column = (width - NAMES) / (len(sizes) + TRUE_WIDTH)
    rows = max(len(models) * (0.5 * column + UNDER), 0.5 * TRUE_WIDTH * column)
    figure = new_figure(width, rows + AROUND)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)  # pyright: ignore
    panels = figure.add_gridspec(len(models), len(sizes) + 1, width_ratios=[*[1] * len(sizes), TRUE_WIDTH])
    for row, model in enumerate(models):
        for place, size in enumerate(sizes):
            ax = figure.add_subplot(panels[row, place])
            _draw(ax, maps.get((model, size)))
            if (model, size) in maps:
                ax.set_xlabel(_percent(wrong[model, size]), fontsize=SMALL_SIZE, color=SOFT, labelpad=2)
            if row == 0:
                ax.set_title(short_count(size), loc="center", fontsize=TITLE, pad=4)
            if place == 0:
                ax.set_ylabel(model.replace(" ", "\n", 1), fontsize=SMALL_SIZE, rotation=0, ha="right", va="center")
    ax = figure.add_subplot(panels[:, -1])
    _draw(ax, truth)
    ax.set_title("The Earth", loc="center", fontsize=TITLE, pad=4)
    notes = [
        "Across: training examples. Light: land; dark: sea; between: how sure a model is. Below: the share of "
        "the surface that is wrong."
    ]
    if len(maps) < len(models) * len(sizes):
        notes.append("A gap: no model of that cell was kept.")
    write_below(figure, notes)
    settle(figure)
    return Picture(
        name=NAME,
        title="The world as each model sees it",
        alt=_alt(wrong),
        figure=figure,
        data=_data(maps, truth),
    )


def wrong_share(found: Grid, truth: Grid) -> float:
    """Return the share of the sphere's surface where a map is wrong, sure or not."""
    weights = np.broadcast_to(np.cos(np.radians(latitudes(truth.shape[0])))[:, None], truth.shape)
    return float(np.average((np.asarray(found) > 0.5) != (np.asarray(truth) > 0.5), weights=weights))


def latitudes(count: int) -> npt.NDArray[np.float64]:
    """Return the latitudes of the middles of that many rows of cells, from north to south."""
    return 90 - 180 * (np.arange(count) + 0.5) / count


def longitudes(count: int) -> npt.NDArray[np.float64]:
    """Return the longitudes of the middles of that many columns of cells, from west to east."""
    return -180 + 360 * (np.arange(count) + 0.5) / count


def _draw(ax: Axes, grid: Grid | None) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    if grid is None:
        ax.set_xlim(0, 2)
        ax.set_ylim(0, 1)
        ax.set_aspect("equal")
    else:
        ax.imshow(grid, cmap=RAMP, vmin=0, vmax=1, extent=(-180, 180, -90, 90), interpolation="nearest")


def _percent(share: float) -> str:
    return f"{short(100 * share)} %"


def _alt(wrong: Mapping[tuple[str, int], float]) -> str:
    worst, best = max(wrong, key=lambda key: wrong[key]), min(wrong, key=lambda key: wrong[key])
    text = f"{number_of(len(wrong), 'map')} of land and sea as models see them, beside the true one: "
    text += f"{best[0]} on {number_of(best[1], 'example')} has {_percent(wrong[best])} of the surface wrong"
    if worst != best:
        text += f", {worst[0]} on {worst[1]:,} {_percent(wrong[worst])}"
    return f"{text}."


def _data(maps: Mapping[tuple[str, int], Grid], truth: Grid) -> pd.DataFrame:
    """Return a row a cell of the grid: where it is, whether it is land, and the probability by each model."""
    rows, columns = truth.shape
    table = {
        "latitude": np.repeat(latitudes(rows).round(3), columns),
        "longitude": np.tile(longitudes(columns).round(3), rows),
        "land": np.asarray(truth).ravel().astype(int),
    }
    found = {f"{model}, {size} examples": np.round(each, 3).ravel() for (model, size), each in maps.items()}
    return pd.DataFrame({**table, **found})
