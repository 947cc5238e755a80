"""Which learning curves have flattened, and where the model with the most compute overtakes the others."""

import numpy as np

from scalejax.analysis.forecast.anchor import GRID, WORTH, Anchor, curve_draws
from scalejax.analysis.forecast.extrapolate import LEAST_POINTS
from scalejax.analysis.forecast.observed import Observed
from scalejax.analysis.forecast.statement import Statement
from scalejax.text import short, short_count

CLEAR = 2.0  # standard errors by which a model is clearly better than another


def flattened(observed: Observed) -> list[Statement]:
    """Say which learning curves have flattened, and from which size on."""
    statements = []
    for trend in observed.trends.to_dict("records"):
        if trend["verdict"] != "flattened":
            continue
        curve = observed.rows[observed.rows["model"] == trend["model"]].groupby("data")["loss"].mean()
        last = float(curve.iloc[-1])
        steep = curve[(curve / last - 1).abs() > WORTH]
        since = curve.index[0] if steep.empty else curve.index[curve.index > steep.index[-1]][0]
        fall, low, high = (100 * trend[name] for name in ("fall", "fall_low", "fall_high"))
        sentence = (
            f"{trend['model']} has flattened: {observed.noun} {short(float(curve.loc[since]), 3)} at {since:,.0f} "
            f"{observed.data} and {short(last, 3)} at {curve.index[-1]:,.0f}; ten times more would cut it by "
            f"{fall:.0f} % (90 % interval {low:.0f} to {high:.0f} %)."
        )
        # The interval of `trends` is always of 90 %, whatever level is asked for here.
        facts = {"model": trend["model"], "since": float(since), "interval_90": [low / 100, high / 100]}
        statements.append(Statement(f"flattened: {trend['model']}", sentence, fall / 100, facts=facts))
    return statements


def overtaking(observed: Observed, anchor: Anchor) -> list[Statement]:
    """Say from how much data on the model with the most compute is better than each other, measured or forecast."""
    noise = anchor.posterior.mean_noise  # of one run, where a mean does not show its own
    curves = {str(name): part.groupby("data")["loss"] for name, part in observed.rows.groupby("model", sort=False)}
    own = observed.own
    largest = str(own.loc[own["params"] == anchor.params, "model"].iloc[0])
    statements = []
    for name, curve in curves.items():
        if name == largest:
            continue
        large, other = (part.agg(["mean", "sem"]) for part in (curves[largest], curve))
        both = large.add_suffix("_large").join(other.add_suffix("_other"), how="inner")
        if len(both) < 2:
            continue
        spread = np.hypot(*(both[f"sem_{name}"].fillna(noise * both[f"mean_{name}"]) for name in ("large", "other")))
        better = both["mean_large"] < both["mean_other"] - CLEAR * spread
        label, sizes = f"{largest} overtakes {name}", both.index.to_numpy(float)
        doubtful = sizes[~better.to_numpy()]
        if not len(doubtful):
            sentence = (
                f"{largest} is better than {name} at all sizes measured, from {sizes[0]:,.0f} {observed.data} on."
            )
            statements.append(Statement(label, sentence, float(sizes[0])))
        elif doubtful[-1] < sizes[-1]:
            after = float(sizes[sizes > doubtful[-1]][0])
            where = f"from {after:,.0f} {observed.data} on, not yet at {doubtful[-1]:,.0f}"
            sentence = f"{largest} is clearly better than {name} {where}."
            statements.append(Statement(label, sentence, after, facts={"not_yet": float(doubtful[-1])}))
        else:
            statements += _forecast_crossing(label, largest, name, observed, anchor)
    return statements


def _forecast_crossing(label: str, largest: str, other: str, observed: Observed, anchor: Anchor) -> list[Statement]:
    """Say where a curve that is still above another one would cross it; each is forecast by its own rows."""
    factors = np.geomspace(1, 100, GRID)
    draws = []
    for number, name in enumerate((largest, other)):
        rows = observed.rows[observed.rows["model"] == name]
        if rows["data"].nunique() < LEAST_POINTS:
            return []
        draws.append(curve_draws(rows, factors * anchor.data, seed=anchor.seed + number)[0])
    below = draws[0] < draws[1]
    crossed = below[:, -1]  # and stays so: to touch once is not to overtake
    chance = float(crossed.mean())
    if chance < 0.5:
        sentence = (
            f"{largest} probably does not overtake {other} within 100 times the {observed.data} (probability of "
            f"overtaking it {chance:.2f})."
        )
        return [Statement(label, sentence, facts={"probability": chance})]
    first = anchor.data * factors[GRID - np.argmin(below[crossed][:, ::-1], axis=1).clip(min=1)]
    at, low, high = anchor.interval(first)
    sentence = (
        f"{largest} overtakes {other} within 100 times the {observed.data} with probability {chance:.2f}, then near "
        f"{short_count(at)} ({short_count(low)} to {short_count(high)})."
    )
    return [Statement(label, sentence, float(at), float(low), float(high), {"probability": chance})]
