"""The pictures of a report, and in which of its sections each stands."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalejax.analysis.forecast.statement import Advice
    from scalejax.report.figures.picture import Picture
    from scalejax.report.page.section import Drawn

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is
Draw = Callable[[float], "Picture | None"]


def pictures_of(
    rows: Frame,
    measurements: Frame,
    timeline: Frame,
    *,
    curves: Frame | None,
    advice: "Advice | None",
    unit: str,
    narrow: bool = True,
) -> "tuple[Mapping[str, tuple[Drawn, ...]], tuple[str, ...]]":
    """Draw what there is to see of a run.

    Args:
        rows: the trial table.
        measurements: those along training.
        timeline: which trial was in which lane when.
        curves: the tuned learning curves; None where no trial counts.
        advice: where it can be given.
        unit: of the metric where that is not the user's own.
        narrow: whether to draw each for a phone as well.

    Returns:
        The pictures of each section by its name, and a sentence for each that cannot be drawn.
    """
    from scalejax.report.figures.compute import compute_picture
    from scalejax.report.figures.exponents import exponents_picture
    from scalejax.report.figures.learning_curves import scale_picture
    from scalejax.report.figures.parameters import parameters_picture
    from scalejax.report.figures.ran import ran_picture
    from scalejax.report.figures.rates import rates_picture
    from scalejax.report.figures.training import training_picture

    drawers: dict[str, Draw] = {"ran": lambda _: ran_picture(timeline, rows)}
    if curves is not None:
        drawers |= {
            "scale": lambda width: scale_picture(curves, advice, unit=unit, width=width),
            "parameters": lambda width: parameters_picture(curves, unit=unit, width=width),
            "compute": lambda width: compute_picture(rows, measurements, unit=unit, width=width),
            "exponents": lambda width: exponents_picture(curves, width=width),
            "rates": lambda width: rates_picture(rows, width=width),
            "training": lambda width: training_picture(rows, measurements, width=width),
        }
    found, notes = {}, []
    for section, draw in drawers.items():
        try:
            drawn = drawn_twice(draw, narrow=narrow and section != "ran")  # whose lanes need the width
        except ValueError as error:
            notes.append(f"The picture of {section} cannot be drawn: {error}")
            continue
        if drawn is not None:
            found[section] = (drawn,)
    return found, tuple(notes)


def drawn_twice(draw: Draw, *, narrow: bool = True) -> "Drawn | None":
    """Return a picture as wide as a page and as narrow as a phone; None where there is nothing to show.

    Args:
        draw: makes the picture of a width in inches.
        narrow: whether to draw the second one.
    """
    from scalejax.report.figures.canvas import NARROW, WIDE
    from scalejax.report.page.section import Drawn

    wide = draw(WIDE)
    return None if wide is None else Drawn(wide, draw(NARROW) if narrow else None)
