"""How a sweep ran, as plain data and in sentences: time, waste and speed, against what was planned."""

from collections.abc import Mapping
from typing import Any

from scalejax.text import duration, number_of, quantity

Frame = Any  # pandas.DataFrame, of which type checkers do not know what a selection is
CLOSE = 0.1  # of a forecast, within which it is said to have come true


def ran_facts(sessions: Frame, timeline: Frame) -> dict[str, Any] | None:
    """Return how a sweep ran over all its sessions; None where nothing was recorded.

    Times are in seconds, shares in [0, 1], speeds in FLOP/s. What is not known is None. A session that still runs, and
    trials that are still in their lanes, are left out.

    Args:
        sessions: as `Run.sessions` returns it.
        timeline: as `Run.timeline` does.
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
    return {
        "sessions": len(sessions),
        "interrupted": len(cut) > 0,
        "device": str(last["device"]),
        "devices": int(last["devices"]),
        "spans": len(timeline),
        "seconds": float((sessions["ended"] - sessions["began"]).sum()),
        "training_seconds": seconds,
        "last_seconds": float(last["ended"] - last["began"]),
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


def ran_sentences(facts: Mapping[str, Any]) -> list[str]:
    """Say how a sweep ran.

    Args:
        facts: as returned by `ran_facts`.
    """
    where = f"{number_of(facts['devices'], 'device')} ({facts['device']})"
    several = f", in {number_of(facts['sessions'], 'session')}" if facts["sessions"] > 1 else ""
    if not facts["training_seconds"]:
        return [f"The sweep ran for {duration(facts['seconds'])}{several}, and no network was trained."]
    rest = "the rest went into loading, compiling and writing"
    trained = f"lanes trained for {duration(facts['training_seconds'])} of them: {rest}"
    return [
        f"The sweep ran for {duration(facts['seconds'])} on {where}{several}; {trained}.",
        *_forecast(facts),
        *_waste(facts),
        *_speed(facts),
    ]


def _forecast(facts: Mapping[str, Any]) -> list[str]:
    """Compare the forecast with the last session, unless that was cut short."""
    forecast, took = facts["forecast_seconds"], facts["last_seconds"]
    if not forecast or facts["interrupted"]:
        return []
    whole = "The plan's forecast" if facts["sessions"] == 1 else "The forecast for what the last session had to do"
    if abs(took - forecast) <= CLOSE * forecast:
        return [f"{whole} was {duration(forecast)}, and it took {duration(took)}."]
    return [f"{whole} was {duration(forecast)}; it took {duration(took)}, {took / forecast:.1f} times as long."]


def _waste(facts: Mapping[str, Any]) -> list[str]:
    parts = {}
    for name in ("padding", "idle"):
        planned = facts[f"planned_{name}"]
        parts[name] = f"{facts[name]:.0%}" + ("" if planned is None else f" (planned: {planned:.0%})")
    padding, idle = parts["padding"], parts["idle"]
    return [f"Padding was {padding} of the FLOPs, and lanes were without a trial for {idle} of their time."]


def _speed(facts: Mapping[str, Any]) -> list[str]:
    speed, peak = facts["speed"], facts["peak"]
    if not speed:
        return []
    said = f"While lanes trained they did {quantity(speed, 'FLOP/s')} of useful work"
    if peak is None:
        return [f"{said}; what matrix products reach on this device is not known (`scalejax bench` measures it)."]
    return [f"{said}, {speed / peak:.1%} of the {quantity(peak, 'FLOP/s')} that matrix products reach."]
