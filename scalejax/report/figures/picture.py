"""A picture: a figure with its name, what it shows in words, and the data that it draws."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


@dataclass(frozen=True)
class Picture:
    """One picture of a report.

    Attributes:
        name: of its files, without a suffix.
        title: its heading.
        alt: what it shows, in a sentence or two, for who cannot see it.
        figure: the drawing.
        data: the numbers that it draws, as they go into the CSV beside it.
        tips: what a reader is told who points at a mark: the gid of a group of marks -> a text for each mark, in the
            order in which they are drawn.
    """

    name: str
    title: str
    alt: str
    figure: Figure
    data: pd.DataFrame
    tips: dict[str, tuple[str, ...]] = field(default_factory=dict)
