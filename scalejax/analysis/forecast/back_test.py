"""The back-test: the largest scale is hidden and forecast from the rest, as the advice forecasts beyond it."""

import math

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.anchor import LAW_PARAMETERS, falling
from scalejax.analysis.forecast.extrapolate import LEAST_POINTS, extrapolate
from scalejax.analysis.forecast.observed import Observed, Table
from scalejax.analysis.forecast.statement import Statement
from scalejax.text import number_of

Floats = npt.NDArray[np.float64]


def back_test(observed: Observed, *, level: float, seed: int) -> list[Statement]:
    """Forecast the largest scale from the others, as the advice forecasts beyond it: the error, and what the intervals
    held. The sizes of the family in question inform each other; the curves of all others are forecast by themselves.
    """
    asked = {"level": level, "seed": seed}
    own = observed.own
    statements, tested = [], []
    if (together := _hidden_data(own, **asked)) is not None:
        tested.append(together)
    others = observed.rows if together is None else observed.rows[observed.rows["family"] != observed.family]
    for _, curve in others.groupby(["model", "seed"], sort=False, dropna=False):
        hidden = curve["data"] == curve["data"].max()
        seen = curve[~hidden]
        if seen["data"].nunique() >= LEAST_POINTS and (curve["loss"] > 0).all():
            tested.append(_compared(seen, curve[hidden], ("data",), **asked))
    if tested:
        where = f"the most {observed.data} of each curve and seed"
        statements.append(_tested("data", where, np.concatenate(tested, axis=1), level))
    hidden = own["params"] == own["params"].max()
    seen = own.loc[~hidden]
    seen = falling(seen) if len(seen) else seen
    if seen["params"].nunique() >= 3 and len(seen.drop_duplicates(["params", "data"])) >= LEAST_POINTS:
        found = _compared(seen, own.loc[hidden & (own["loss"] > 0)], ("params", "data"), **asked)
        statements.append(_tested("size", "the largest model", found, level))
    return statements


def _hidden_data(own: Table, *, level: float, seed: int) -> Floats | None:
    """Compare what the other rows of a family say of its largest data, (2, runs); None if they are too few."""
    hidden = own["data"] == own.groupby("params")["data"].transform("max")
    if not hidden.any() or hidden.all():
        return None
    seen, rest = falling(own.loc[~hidden]), own.loc[hidden & (own["loss"] > 0)]
    enough = len(seen.drop_duplicates(["params", "data"])) >= 2 * LAW_PARAMETERS
    if seen["params"].nunique() < 2 or seen["data"].nunique() < LEAST_POINTS or not enough or rest.empty:
        return None
    return _compared(seen, rest, ("params", "data"), level=level, seed=seed)


def _compared(seen: Table, hidden: Table, names: tuple[str, ...], *, level: float, seed: int) -> Floats:
    """Return by how much the log loss of hidden runs is missed, and whether their intervals held it, (2, runs)."""
    given, new = ({name: rows[name] for name in names} for rows in (seen, hidden))
    found = extrapolate(given, seen["loss"], new, level=level, seed=seed)
    truth = hidden["loss"].to_numpy(float)
    return np.stack([np.abs(np.log(found.value / truth)), (truth >= found.low) & (truth <= found.high)])


def _tested(axis: str, hidden: str, found: Floats, level: float) -> Statement:
    misses, held = found
    miss, share = float(np.median(misses)), float(np.mean(held))
    runs = number_of(len(held), "run")
    sentence = (
        f"Back-test: hiding {hidden} and forecasting it from the rest misses by {100 * math.expm1(miss):.0f} % in the "
        f"median; {int(held.sum())} of {runs} lie in their {100 * level:.0f} % interval."
    )
    facts = {"hidden": axis, "held": share, "runs": len(held)}
    return Statement(f"back-test: {axis}", sentence, miss, facts=facts)
