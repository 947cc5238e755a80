"""What all figures share: style, ticks, the colours of models, labels at the ends of lines, and how one is saved.

The look lies in `scalejax.mplstyle`; each function that draws is within `styled()`, outside of which all stays as it
is. Nothing here touches pyplot or other global state.
"""

import math
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from scalejax.files import replacing
from scalejax.text import short_count

if TYPE_CHECKING:
    import pandas as pd

STYLE = Path(__file__).with_name("scalejax.mplstyle")

# The algorithms that the sized families are measured against: neutral, dashed.
TRADITIONAL_FAMILIES = (
    *("logistic", "logistic_regression", "ridge", "naive_bayes", "nearest_neighbours", "svm", "random_forest"),
    "gradient_boosting",
)
NEUTRAL, INK, SOFT = "#6b6b6b", "#222222", "#666666"
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
AHEAD = (0, (2, 1.6))  # of a line where it is a forecast
MARKERS = ("o", "s", "D", "P")
OLD_MARKERS, OLD_TONES = ("o", "s", "D", "P", "X", "*", "p"), (NEUTRAL, "#3c3c3c", "#979797")
# One perceptual ramp a family, from its smallest model to its largest, always darkening, so that the order survives
# every kind of colour blindness and a grey printer; the ends too pale for a white page are cut off.
RAMPS = (("viridis_r", 0.22, 0.97), ("YlOrRd", 0.40, 1.0), ("RdPu", 0.40, 1.0), ("Greens", 0.45, 1.0))
DATA_RAMP = ("Blues", 0.38, 1.0)  # from few examples to many: none of those of the models
LABEL_SIZE, SMALL_SIZE = 9.0, 7.5  # points
WIDE, NARROW = 7.2, 4.2  # inches of a figure on a page, and on a phone
LINE_SPACING = 1.25
BESIDE_AXES = 46.0  # points left of axes for the labels of their ticks
DECADES = 1000.0  # ratio of an axis' ends from which its ticks are powers of ten
MOST_TICKS = 7


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style within a `with` block or, as a decorator, within a function; outside all stays as it is."""
    with mpl.rc_context(fname=STYLE):
        yield


@styled()
def save_figure(
    figure: Figure | SubFigure, directory: str | os.PathLike[str], name: str, *, data: "pd.DataFrame | None" = None
) -> tuple[Path, Path]:
    """Write `directory`/`name`.png (160 dots an inch) and .svg, its data as .csv, and return the first two paths.

    Each file appears whole or not at all: it is written beside its place and moved there. The same figure gives the
    same bytes: no date, and the same salt for the identifiers inside the SVG.

    Args:
        figure: the figure, for instance `ax.figure`; of a part of a figure the whole is written.
        directory: made if it does not exist.
        name: without a suffix.
        data: what it shows.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
        with replacing(path) as partial:
            figure.canvas.figure.savefig(partial, metadata=metadata, format=path.suffix[1:])
    if data is not None:
        with replacing(folder / f"{name}.csv") as partial:
            data.to_csv(partial, index=False)
    return paths


@styled()
def new_figure(width: float = WIDE, height: float = 4.9) -> Figure:
    """Return an empty figure of that size in inches."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def adopt(ax: Axes) -> None:
    """Give axes that were made outside of the style its spines, ticks, grid and colours."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(mpl.rcParams["axes.edgecolor"])
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_tick_params(which="both", reset=True, **{"top" if axis is ax.xaxis else "right": False})
        axis.label.set(color=mpl.rcParams["axes.labelcolor"], fontsize=mpl.rcParams["axes.labelsize"])
    ax.grid(True)
    ax.set_axisbelow(True)


def settle(figure: Figure) -> None:
    """Place all of a figure for good: a second pass at saving would move things by a hair and change the bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def write_above(ax: Axes, title: str) -> None:
    """Write a title above axes, from their left end, in lines that end before the figure does."""
    figure, size = ax.figure.canvas.figure, mpl.rcParams["axes.titlesize"]
    ax.set_title(filled(title, _characters(figure, size, without=BESIDE_AXES)))


def filled(text: str, letters: int) -> str:
    """Return a text in lines of at most so many letters; a number stays with its percent sign."""
    return textwrap.fill(text.replace(" %", "\u00a0%"), letters).replace("\u00a0", " ")


def _characters(figure: Figure, size: float, *, without: float = 0.0) -> int:
    """Return how many letters of a size a line of text under or above a figure has: each about half an em wide.

    Args:
        figure: whose width is taken.
        size: of the letters in points.
        without: points that are taken by something else.
    """
    return int((figure.get_figwidth() * 72 - without) / (0.54 * size))


def write_below(figure: Figure, lines: Sequence[str]) -> None:
    """Write what a reader must know under a figure, as one paragraph as wide as the figure."""
    text = filled(" ".join(lines), _characters(figure, SMALL_SIZE))
    if text:
        figure.supxlabel(text, x=0.01, ha="left", color=SOFT)


def mark(
    ax: Axes,
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    style: Mapping[str, Any],
    *,
    gid: str | None = None,
    size: float = 4.4,
    label: str | None = None,
) -> None:
    """Draw points, hollow, above lines and bands; under `gid` a reader finds them in the order given.

    Args:
        ax: the axes.
        x, y: finite, and positive on a logarithmic axis: matplotlib would leave others out, and shift that order.
        style: of the model, with its colour and marker.
        gid: of the group of the marks.
        size: of a mark in points.
        label: in a legend.
    """
    ax.plot(
        x, y, linestyle="none", color=style["color"], marker=style["marker"], markersize=size, zorder=3.5, gid=gid,
        label=label,
    )  # fmt: skip


def number_text(value: float) -> str:
    """Return a number as it stands at a tick: 20k, 0.5, 1e-5."""
    if abs(value) >= 1:
        return short_count(value) if value > 0 else f"{value:g}"
    return f"{value:g}".replace("e-0", "e-")


def set_ticks(axis: Axis, ticks: Sequence[float], texts: Sequence[str] | None = None) -> None:
    """Put ticks at these places and nowhere else; `texts` are the numbers by default."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(texts or [number_text(tick) for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def log_ticks(axis: Axis, text: Callable[[float], str] = number_text) -> None:
    """Make an axis logarithmic, with ticks at powers of ten, or at round numbers where it has few of these."""
    (axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale)("log")  # pyright: ignore
    low, high = sorted(map(float, axis.get_view_interval()))
    if high < DECADES * low:
        ticks = round_ticks(low, high)
    else:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        ticks = [float(10.0**power) for power in range(first, last + 1, math.ceil((last - first + 1) / MOST_TICKS))]
    set_ticks(axis, ticks, [text(tick) for tick in ticks])


def size_ticks(axis: Axis, sizes: Sequence[float]) -> None:
    """Put ticks at those of ascending sizes whose labels have room: the first, the last and some between."""
    low, high = axis.get_view_interval()
    room = 0.068 * math.log(high / low)
    ticks = list(sizes[:1])
    for size in sizes[1:-1]:
        if min(math.log(size / ticks[-1]), math.log(sizes[-1] / size)) >= room:
            ticks.append(size)
    set_ticks(axis, [*ticks, *sizes[1:][-1:]])


def data_colours(count: int) -> list[str]:
    """Return colours for that many numbers of examples, the darker the more."""
    ramp, start, stop = DATA_RAMP
    shades = np.linspace(start, stop, count) if count > 1 else [0.8]
    return [to_hex(mpl.colormaps[ramp](float(shade))) for shade in shades]


def model_styles(
    families: Mapping[str, str], traditional: Sequence[str] = TRADITIONAL_FAMILIES
) -> dict[str, dict[str, Any]]:
    """Return each model's colour, line style and marker, the same in every figure of the same models.

    Args:
        families: model -> its family, the models of a family from the smallest to the largest.
        traditional: the families in grey, with dashes.
    """
    styles: dict[str, dict[str, Any]] = {}
    old = [model for model, family in families.items() if family in traditional]
    sized = dict.fromkeys(family for family in families.values() if family not in traditional)
    for place, family in enumerate(sized):
        ramp, start, stop = RAMPS[place % len(RAMPS)]
        models = [model for model, its in families.items() if its == family]
        shades = np.linspace(start, stop, len(models)) if len(models) > 1 else [0.7 * stop]
        for model, shade in zip(models, shades, strict=True):
            colour = to_hex(mpl.colormaps[ramp](float(shade)))
            styles[model] = {"color": colour, "linestyle": "-", "marker": MARKERS[place % len(MARKERS)]}
    for place, model in enumerate(old):
        styles[model] = {
            "color": OLD_TONES[place % len(OLD_TONES)],
            "linestyle": DASHES[place % len(DASHES)],
            "marker": OLD_MARKERS[place % len(OLD_MARKERS)],
        }
    return {model: styles[model] for model in families}


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, str]], *, title: str = "") -> None:
    """Write each line's name beside its last point (x, y), moved up or down where names would overlap.

    Args:
        ax: the axes.
        ends: name, x, y and colour of each line.
        title: over the names.
    """
    ordered = sorted(ends, key=lambda end: end[2])
    furthest = max(x for _, x, _, _ in ordered)
    texts = []
    for model, x, y, colour in ordered:
        # A line that ends before the others is joined to its name by dots, which cannot be mistaken for data.
        leader = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
        leader["linestyle"] = "-" if x == furthest else ":"
        text = ax.annotate(
            model, xy=(x, y), xytext=(1.035, 0.5), textcoords="axes fraction", color=_legible(colour),
            fontsize=LABEL_SIZE, ha="left", va="center", annotation_clip=False, arrowprops=leader,
        )  # fmt: skip
        texts.append(text)
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout: only now is the height of the axes known
    points = ax.bbox.height / figure.dpi * 72
    size = min(LABEL_SIZE, 1.06 * points / (LINE_SPACING * len(texts)))
    transform = ax.transData + ax.transAxes.inverted()
    heights = [float(transform.transform((x, y))[1]) for _, x, y, _ in ordered]
    places = spread(heights, LINE_SPACING * size / points, low=-0.03, high=0.98 if title else 1.03)
    if title:
        ax.annotate(
            title, xy=(1.035, places[-1]), xycoords="axes fraction", xytext=(0, 0.75 * size), color=SOFT,
            textcoords="offset points", fontsize=SMALL_SIZE, ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
    for text, place in zip(texts, places, strict=True):
        text.set_fontsize(size)
        text.set_position((1.035, place))


def spread(wanted: Sequence[float], spacing: float, *, low: float, high: float) -> list[float]:
    """Move ascending positions as little as possible so that neighbours are `spacing` apart, within [low, high].

    Least is meant in the sum of squares. Subtracting i times the spacing turns the problem into isotonic regression;
    clipping its solution to the bounds keeps it optimal. Positions that do not fit into the bounds share them evenly.
    """
    spacing = min(spacing, (high - low) / max(len(wanted) - 1, 1))
    steps = spacing * np.arange(len(wanted))
    flat = np.asarray(wanted, dtype=float) - steps
    if (np.diff(flat) <= 0).any():  # else they are apart already
        from scipy.optimize import isotonic_regression  # takes longer to import than a figure to draw

        flat = isotonic_regression(flat).x
    return (np.clip(flat, low, high - steps[-1]) + steps).tolist()


def _legible(colour: str) -> str:
    """Return the colour, darkened as far as small text on white needs: a contrast of 4.5 (WCAG 2, level AA)."""
    rgb = np.array(to_rgb(colour))
    while True:
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        if 1.05 / (float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05) >= 4.5:
            return to_hex(tuple(rgb.tolist()))
        rgb = 0.96 * rgb


def round_ticks(bottom: float, top: float) -> list[float]:
    """Return round numbers between bottom and top: 1, 2, 5 times powers of ten, more of them on a short axis."""
    decades = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 7, 8), tuple(n / 20 for n in range(20, 200))):
        ticks = [float(f"{digit * 10.0**decade:.4g}") for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if bottom <= tick <= top]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 9)] if ticks else [float(f"{math.sqrt(bottom * top):.3g}")]
