"""The pictures of a report, and in which of its sections each stands."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalejax.analysis.forecast.advice import Advice
    from scalejax.report.figures.picture import Picture

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


def pictures_of(
    rows: Frame, measurements: Frame, *, curves: Frame | None, advice: "Advice | None", unit: str
) -> "tuple[Mapping[str, tuple[Picture, ...]], tuple[str, ...]]":
    """Draw what there is to see of a run.

    Args:
        rows: the trial table.
        measurements: those along training.
        curves: the tuned learning curves; None where no trial counts.
        advice: where it can be given.
        unit: of the metric where that is not the user's own.

    Returns:
        The pictures of each section by its name, and a sentence for each that cannot be drawn.
    """
    if curves is None:
        return {}, ()
    from matplotlib.figure import Figure

    from scalejax.report.figures.learning_curves import plot_learning_curves
    from scalejax.report.figures.picture import Picture

    def scale():
        figure = plot_learning_curves(curves, unit=unit).figure
        assert isinstance(figure, Figure)
        return Picture("scale", "Error against examples", "Error against examples", figure, curves)

    drawers: dict[str, Callable[[], Picture | None]] = {"scale": scale}
    found, notes = {}, []
    for section, draw in drawers.items():
        try:
            picture = draw()
        except ValueError as error:  # such as errors of zero everywhere, which a logarithmic axis does not have
            notes.append(f"The picture of {section} cannot be drawn: {error}")
            continue
        if picture is not None:
            found[section] = (picture,)
    return found, tuple(notes)
