"""The picture of samples: examples of the test set, their true class, and what a small and a large model say."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from scalejax.report.figures.canvas import INK, SMALL_SIZE, WIDE, new_figure, settle, styled, write_below
from scalejax.report.figures.picture import Picture
from scalejax.text import listing, number_of

NAME = "samples"
CELL = 0.98  # inches of a sample's width, at least
LINE = 0.145  # inches of a line of words
LONGEST = 13  # letters of a class' name
WRONG = "✗"
LETTERS = "abcdefgh"  # that stand for the models under a sample


@styled()
def samples_picture(
    examples: npt.NDArray[Any],
    truth: Sequence[Any] | npt.NDArray[Any],
    predictions: Mapping[str, Sequence[Any] | npt.NDArray[Any]],
    *,
    width: float = WIDE,
) -> Picture | None:
    """Return the picture of examples of the test set with their classes, true and predicted.

    A wrong class has a cross and heavy letters.

    Args:
        examples: images [n, height, width] or [n, height, width, channels], uint8 or numbers; or signals [n, length].
        truth: the true class of each, [n].
        predictions: model -> the class that it says, [n]; the smallest model first.
        width: of the figure in inches.

    Returns:
        The picture; None where there is no example or no model.

    Raises:
        ValueError: the examples are neither images nor signals, or there are not as many classes as examples.
    """
    examples = np.asarray(examples)
    if examples.ndim not in (2, 3, 4) or (examples.ndim == 4 and examples.shape[3] not in (1, 3, 4)):
        raise ValueError(f"The examples have the shape {list(examples.shape)}: give images or signals.")
    for whose, classes in (("truth", truth), *predictions.items()):
        if len(classes) != len(examples):
            raise ValueError(f"{whose} has {len(classes)} classes for {len(examples)} examples: give one each.")
    if not len(examples) or not predictions:
        return None
    low, high = (float(limit) for limit in (examples.min(), examples.max()))
    across = max(1, min(len(examples), int(width / CELL)))
    down = math.ceil(len(examples) / across)
    words = LINE * (1 + len(predictions))
    tall = 1.0 if examples.ndim > 2 else 0.6
    figure = new_figure(width, down * (tall * width / across * 0.86 + words + 0.08) + 0.45)
    panels = figure.subplots(down, across, squeeze=False)
    for place, ax in enumerate(panels.flat):
        if place >= len(examples):
            ax.set_visible(False)
            continue
        _draw(ax, examples[place], low=low, high=high)
        _name(ax, truth[place], [classes[place] for classes in predictions.values()])
    letters = [f"{letter}: {model}" for letter, model in zip(LETTERS, predictions, strict=False)]
    write_below(figure, [f"Above, the true class; below, what {listing(letters)} say. {WRONG} and heavy: wrong."])
    settle(figure)
    right = {model: np.asarray(classes) == np.asarray(truth) for model, classes in predictions.items()}
    counts = [f"{model} has {int(hits.sum())} right" for model, hits in right.items()]
    what = f"{number_of(len(examples), 'example')} of the test set with the classes that models say"
    numbers = {"example": range(len(examples)), "truth": list(truth)}
    return Picture(
        name=NAME,
        title="Samples of the test set",
        alt=f"{what}: {listing(counts)}.",
        figure=figure,
        data=pd.DataFrame({**numbers, **{model: list(classes) for model, classes in predictions.items()}}),
    )


def _draw(ax: Axes, example: npt.NDArray[Any], *, low: float, high: float) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)
    if example.ndim == 1:
        ax.plot(example, color=INK, linewidth=1)
        margin = 0.05 * (high - low) or 1.0
        ax.set_ylim(low - margin, high + margin)
        ax.set_box_aspect(0.6)
        return
    if example.ndim == 3 and example.shape[2] == 1:
        example = example[:, :, 0]
    scaled = example if example.dtype == np.uint8 else (example - low) / ((high - low) or 1.0)
    limits: dict[str, Any] = {"vmin": 0, "vmax": 255 if example.dtype == np.uint8 else 1}
    ax.imshow(scaled, cmap="gray", interpolation="nearest", **limits)


def _name(ax: Axes, truth: Any, said: Sequence[Any]) -> None:
    ax.set_title(_brief(truth), loc="center", fontsize=SMALL_SIZE + 0.5, pad=2)
    for line, each in enumerate(said):
        wrong = bool(each != truth)
        ax.annotate(
            f"{LETTERS[line]}: {_brief(each)}" + (f" {WRONG}" if wrong else ""), xy=(0.5, 0),
            xycoords="axes fraction", xytext=(0, -3 - 72 * LINE * line), textcoords="offset points", ha="center",
            va="top", fontsize=SMALL_SIZE, fontweight="bold" if wrong else "normal", color=INK, annotation_clip=False,
        )  # fmt: skip


def _brief(name: Any) -> str:
    text = str(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
