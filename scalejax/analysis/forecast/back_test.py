"""The back-test: the largest scale is hidden and forecast from the rest, as the advice forecasts beyond it."""

import math

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.anchor import LAW_PARAMETERS, anchor_among, curve_draws, falling, one_run
from scalejax.analysis.forecast.extrapolate import LEAST_POINTS
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
            tested.append(_scored(_curve(seen, curve[hidden], **asked), curve[hidden]))
    if tested:
        where = f"the most {observed.data} of each curve and seed"
        statements.append(_tested("data", where, np.concatenate(tested, axis=1), level))
    hidden = own["params"] == own["params"].max()
    seen, rest = own.loc[~hidden], own.loc[hidden & (own["loss"] > 0)]
    used = falling(seen) if len(seen) else seen
    if len(used) < len(seen):
        rest = rest[rest["data"] >= used["data"].min()]  # below nothing falls yet, and no law is asked
    places = used.drop_duplicates(["params", "data"])
    if used["params"].nunique() >= 3 and len(places) >= LEAST_POINTS and len(rest):
        statements.append(_tested("size", "the largest model", _scored(_surface(used, rest, **asked), rest), level))
    return statements


def _hidden_data(own: Table, *, level: float, seed: int) -> Floats | None:
    """Compare what the other rows of a family say of its largest data, (2, runs); None if they are too few."""
    hidden = own["data"] == own.groupby("params")["data"].transform("max")
    if not hidden.any() or hidden.all():
        return None
    seen, rest = own.loc[~hidden], own.loc[hidden & (own["loss"] > 0)]
    used = falling(seen)
    enough = len(used.drop_duplicates(["params", "data"])) >= 2 * LAW_PARAMETERS
    if used["params"].nunique() < 2 or used["data"].nunique() < LEAST_POINTS or not enough or rest.empty:
        return None
    return _scored(_surface(used, rest, level=level, seed=seed), rest)


def _surface(seen: Table, hidden: Table, *, level: float, seed: int) -> Floats:
    """Return median, low and high of hidden runs of a family, (3, runs), from those of its rows that fall."""
    anchor = anchor_among(seen, level=level, seed=seed)
    places, place = np.unique(hidden[["params", "data"]].to_numpy(float), axis=0, return_inverse=True)
    return anchor.forecast(places[:, 0] / anchor.params, places[:, 1] / anchor.data)[:, place.ravel()]


def _curve(seen: Table, hidden: Table, *, level: float, seed: int) -> Floats:
    """Return median, low and high of hidden runs of one model, (3, runs), from its other rows."""
    draws, known, offset = curve_draws(seen, hidden["data"].to_numpy(float), seed=seed)
    runs = one_run(draws, known, offset=offset, seed=seed)
    return np.quantile(runs, (0.5, (1 - level) / 2, (1 + level) / 2), axis=0)


def _scored(found: Floats, hidden: Table) -> Floats:
    """Return by how much the log loss of hidden runs is missed, and whether their intervals held it, (2, runs)."""
    value, low, high = found
    truth = hidden["loss"].to_numpy(float)
    return np.stack([np.abs(np.log(np.maximum(value, 1e-300) / truth)), (truth >= low) & (truth <= high)])


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
