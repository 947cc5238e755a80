"""How a sweep ran, as plain data and in sentences: time, waste and speed, against what was planned."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from scalejax.text import duration, number_of, percent, quantity

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is
CLOSE = 0.1  # of a forecast, within which it is said to have come true


def ran_facts(sessions: Frame, timeline: Frame, *, host: str) -> dict[str, Any] | None:
    """Return how a sweep ran over all its sessions; None where nothing was recorded.

    Times are in seconds, shares in [0, 1], speeds in FLOP/s. What is not known is None. A session that still runs, and
    trials that are still in their lanes, are left out.

    Args:
        sessions: as `Run.sessions` returns it.
        timeline: as `Run.timeline` does.
        host: the group of the processes on host cores, which fit the classical baselines and are in no forecast.
    """
    sessions = sessions[sessions["ended"].notna()]
    if len(sessions) == 0:
        return None
    last = sessions.iloc[-1]
    cut = timeline[(timeline["session"] == last["session"]) & (timeline["outcome"] == "interrupted")]
    total: Mapping[str, float] = {
        name: float(sessions[name].sum())
        for name in ("useful_flops", "padding_flops", "lane_seconds", "idle_seconds", "training_seconds")
    }
    plan = {name: float(last[f"plan_{name}_flops"]) for name in ("useful", "padding", "idle")}
    computed, planned = total["useful_flops"] + total["padding_flops"], plan["useful"] + plan["padding"]
    forecast, peak = (None if last[name] != last[name] else float(last[name]) for name in _MAYBE)
    seconds = total["training_seconds"]
    older = timeline["group"] == host
    fitting, lanes = (_busy(timeline[chosen]) for chosen in (older, ~older))
    ended, own = last["ended"], timeline["session"] == last["session"]
    if (own & older).any():
        ended = timeline.loc[own & ~older, "ended"].max()  # NaN where it trained no network
    return {
        "sessions": len(sessions),
        "interrupted": len(cut) > 0,
        "device": str(last["device"]),
        "devices": int(last["devices"]),
        "spans": len(timeline),
        "seconds": float((sessions["ended"] - sessions["began"]).sum()),
        "training_seconds": seconds,
        "older_seconds": _length(fitting),
        "older_alone_seconds": _length(fitting + lanes) - _length(lanes),
        "networks_seconds": None if ended != ended else float(ended - last["began"]),  # of the last session
        "forecast_seconds": forecast,
        "useful_flops": total["useful_flops"],
        "padding": total["padding_flops"] / computed if computed else None,
        "planned_padding": plan["padding"] / planned if planned else None,
        "idle": total["idle_seconds"] / total["lane_seconds"] if total["lane_seconds"] else None,
        "planned_idle": plan["idle"] / (planned + plan["idle"]) if planned else None,
        "speed": total["useful_flops"] / seconds if seconds else None,
        "peak": peak,
    }


_MAYBE = "forecast_seconds", "peak_flops"


def _busy(spans: Frame) -> list[tuple[float, float]]:
    """Return from when to when there was a trial."""
    ended = spans[spans["ended"].notna()]
    return list(zip(ended["began"].tolist(), ended["ended"].tolist(), strict=True))


def _length(intervals: Sequence[tuple[float, float]]) -> float:
    """Return how long any of some intervals holds."""
    total, latest = 0.0, -math.inf
    for began, ended in sorted(intervals):
        total += max(0.0, ended - max(began, latest))
        latest = max(latest, ended)
    return total


def ran_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Say how a sweep ran.

    Args:
        facts: as returned by `ran_facts`.
    """
    where = f"{number_of(facts['devices'], 'device')} ({facts['device']})"
    several = f", in {number_of(facts['sessions'], 'session')}" if facts["sessions"] > 1 else ""
    older = facts["older_seconds"]
    fitted = f"classical baselines were fitted on host cores for {duration(older)}" if older else ""
    if not facts["training_seconds"]:
        others = f"; {fitted} of them" if older else ""
        return [f"The sweep ran for {duration(facts['seconds'])}{several}{others}, and no network was trained."]
    rest = "the rest went into loading, compiling and writing"
    beside = f", and {fitted}, {duration(facts['older_alone_seconds'])} of these alone" if older else ""
    trained = f"lanes trained for {duration(facts['training_seconds'])} of them{beside}: {rest}"
    return [
        f"The sweep ran for {duration(facts['seconds'])} on {where}{several}; {trained}.",
        *_forecast(facts),
        *_waste(facts),
        *_speed(facts),
    ]


def _forecast(facts: Mapping[str, Any]) -> list[str]:
    """Compare the forecast with the last session, unless that was cut short; it is one of the networks alone."""
    forecast, took = facts["forecast_seconds"], facts["networks_seconds"]
    if not forecast or took is None or facts["interrupted"]:
        return []
    networks, they = (" for the networks", "they") if facts["older_seconds"] else ("", "it")
    whole = f"The plan's forecast{networks}"
    if facts["sessions"] > 1:
        whole = (
            f"The forecast{networks} in what the last session had to do"
            if networks
            else ("The forecast for what the last session had to do")
        )
    if abs(took - forecast) <= CLOSE * forecast:
        return [f"{whole} was {duration(forecast)}, and {they} took {duration(took)}."]
    return [f"{whole} was {duration(forecast)}; {they} took {duration(took)}, {took / forecast:.1f} times as long."]


def _waste(facts: Mapping[str, Any]) -> list[str]:
    parts = {}
    for name in ("padding", "idle"):
        planned = facts[f"planned_{name}"]
        parts[name] = percent(facts[name]) + ("" if planned is None else f" (planned: {percent(planned)})")
    padding, idle = parts["padding"], parts["idle"]
    return [f"Padding was {padding} of the FLOPs, and lanes were without a trial for {idle} of their time."]


def _speed(facts: Mapping[str, Any]) -> list[str]:
    speed, peak = facts["speed"], facts["peak"]
    if not speed:
        return []
    said = f"While lanes trained they did {quantity(speed, 'FLOP/s')} of useful work"
    if peak is None:
        return [f"{said}; what matrix products reach on this device is not known; scalejax bench measures it."]
    return [f"{said}, {percent(speed / peak, 1)} of the {quantity(peak, 'FLOP/s')} that matrix products reach."]
