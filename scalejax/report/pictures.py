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
    from scalejax.report.figures import compute, exponents, learning_curves, parameters, ran, rates, training

    # Each stands in the section of its own name.
    drawers: dict[str, Draw] = {ran.NAME: lambda _: ran.ran_picture(timeline, rows)}
    if curves is not None:
        drawers |= {
            learning_curves.NAME: lambda width: learning_curves.scale_picture(curves, advice, unit=unit, width=width),
            parameters.NAME: lambda width: parameters.parameters_picture(curves, unit=unit, width=width),
            compute.NAME: lambda width: compute.compute_picture(rows, measurements, unit=unit, width=width),
            exponents.NAME: lambda width: exponents.exponents_picture(curves, width=width),
            rates.NAME: lambda width: rates.rates_picture(rows, width=width),
            training.NAME: lambda width: training.training_picture(rows, measurements, width=width),
        }
    found, notes = {}, []
    for section, draw in drawers.items():
        try:
            drawn = drawn_twice(draw, narrow=narrow and section != ran.NAME)  # whose lanes need the width
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
