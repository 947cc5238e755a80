"""What all figures share: size, style, ticks, the colours of models, labels at the ends of lines, and how one is saved.

Nothing here touches pyplot or other global state.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter, NullLocator

from scalejax.files import replacing

# The algorithms that the sized families are measured against: neutral, dashed.
TRADITIONAL_FAMILIES = (
    *("logistic", "logistic_regression", "ridge", "naive_bayes", "nearest_neighbours", "svm", "random_forest"),
    "gradient_boosting",
)
NEUTRAL, INK, SOFT, FAINT = "#6b6b6b", "#222222", "#666666", "#e4e4e4"
DASHES = ((0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
MARKERS = ("o", "s", "D", "P")
OLD_MARKERS, OLD_TONES = ("o", "s", "D", "P", "X", "*", "p"), (NEUTRAL, "#3c3c3c", "#979797")
# One perceptual ramp a family, from its smallest model to its largest, always darkening, so that the order survives
# every kind of colour blindness and a grey printer; the ends too pale for a white page are cut off.
RAMPS = (("viridis_r", 0.22, 0.97), ("YlOrRd", 0.40, 1.0), ("RdPu", 0.40, 1.0), ("Greens", 0.45, 1.0))
DPI = 160
LABEL_SIZE, SMALL_SIZE = 9.0, 7.5  # points
LINE_SPACING = 1.25


def save_figure(figure: Figure | SubFigure, directory: str | os.PathLike[str], name: str) -> tuple[Path, Path]:
    """Write `directory`/`name`.png (160 dots an inch) and .svg, and return the two paths.

    Each file appears whole or not at all: it is written beside its place and moved there. The same figure gives the
    same bytes: no date, and the same salt for the identifiers inside the SVG.

    Args:
        figure: the figure, for instance `ax.figure`; of a part of a figure the whole is written.
        directory: made if it does not exist.
        name: without a suffix.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    with mpl.rc_context({"svg.hashsalt": "scalejax", "svg.fonttype": "path"}):
        for path, metadata in zip(paths, ({"Software": None}, {"Date": None}), strict=True):
            with replacing(path) as partial:
                figure.canvas.figure.savefig(
                    partial, dpi=DPI, facecolor="white", metadata=metadata, bbox_inches=None, format=path.suffix[1:]
                )
    return paths


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def dress(ax: Axes, *, x: str, y: str) -> None:
    """Draw the grid behind the data and the two axes faintly, and name the axes."""
    ax.grid(True, color=FAINT, linewidth=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#9a9a9a")
    ax.tick_params(which="both", labelsize=LABEL_SIZE, colors="#444444", length=3, color="#9a9a9a")
    ax.set_xlabel(x, fontsize=10, color=INK)
    ax.set_ylabel(y, fontsize=10, color=INK)


def set_ticks(axis: Axis, ticks: Sequence[float], texts: Sequence[str] | None = None) -> None:
    """Put ticks at these places and nowhere else; `texts` are the numbers by default."""
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter(texts or [f"{tick:g}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


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


def label_ends(ax: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Write each line's name beside its last point (x, y), moved up or down where names would overlap."""
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
    places = spread(heights, LINE_SPACING * size / points, low=-0.03, high=1.03)
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
