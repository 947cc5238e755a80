"""A law fitted to the curves of a table: to each by itself, or to all at once where they share parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scalejax.analysis.laws.fit import Fit, fit_law
from scalejax.analysis.laws.law import Law
from scalejax.analysis.observations import Observations, joined
from scalejax.errors import FitError


@dataclass(frozen=True)
class TableFits:
    """The fits of the curves of a table.

    Attributes:
        curves: each curve's rows and its fit; curves that were fitted at once have the same one.
        refused: a sentence for each curve that cannot be fitted.
    """

    curves: tuple[tuple[Observations, Fit], ...]
    refused: tuple[str, ...]

    @property
    def fits(self) -> dict[str, Fit]:
        """The different fits by the name of the curve, "" for all rows."""
        return {"" if fit.curves else seen.curve: fit for seen, fit in self.curves}


def fit_table(
    law: Law,
    found: Sequence[Observations],
    *,
    shared: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
    ceiling: float | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> TableFits:
    """Fit a law to each of the curves, or to all at once if they share parameters; see `fit_law`.

    Raises:
        ValueError: the caller's mistake; shared parameters of a single curve.
        FitError: none can be fitted.
    """
    if shared and len(found) == 1:
        raise ValueError(f"One curve shares {', '.join(shared)} with none: give several curves (--curves COLUMN).")
    labels = None
    rows: list[Observations] = list(found)
    if shared:
        whole, labels = joined(found)
        rows = [whole]
    fits, refused = [], []
    for seen in rows:
        try:
            fit = fit_law(
                law, seen.predictors, seen.loss, fixed=fixed, ceiling=ceiling, bootstrap=bootstrap, seed=seed,
                groups=seen.groups, resample="rows" if seen.groups is None else "groups", curves=labels, shared=shared,
            )  # fmt: skip
            fits.append((seen, fit))
        except FitError as error:
            refused.append(f"{seen.curve or law.name}: not fitted: {error}")
    if not fits:
        raise FitError("; ".join(refused))
    if shared:
        fits = [(seen, fits[0][1]) for seen in found]
    return TableFits(tuple(fits), tuple(refused))
