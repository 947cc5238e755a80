"""How far a run is, as plain data and in the terminal."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scalejax.report.progress import duration
from scalejax.text import number_of

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # trials of a kind that the terminal lists; the data have all


def status_facts(table: "pd.DataFrame", heartbeat: Any) -> dict[str, Any]:
    """Return how far a run is; times are in seconds.

    Args:
        table: the trial table.
        heartbeat: of the process that runs it or was killed while it did, None if there is none; with the attributes
            pid, host, began, beat, eta_seconds and alive.
    """
    trials = table.to_dict("records")
    counts = dict.fromkeys(("pending", "running", "done", "diverged", "stopped", "failed"), 0)
    for each in trials:
        counts[each["status"]] = counts.get(each["status"], 0) + 1
    begun = [each for each in trials if each["status"] in ("running", "pending") and _taken(each)]
    facts: dict[str, Any] = {
        "trials": counts,
        "running": [_on_its_way(each) for each in trials if each["status"] == "running"],
        "begun": [_on_its_way(each) for each in begun if each["status"] == "pending"],
        "reasons": {
            each["trial_id"]: f"{each['status']}: {each['reason']}"
            for each in trials
            if each["status"] in ("diverged", "failed")
        },
        "process": None,
        "eta_seconds": None,
    }
    if heartbeat is not None:
        silent = max(0.0, time.time() - heartbeat.beat)
        facts["process"] = {
            "pid": heartbeat.pid,
            "host": heartbeat.host,
            "alive": heartbeat.alive,
            "seconds": max(0.0, heartbeat.beat - heartbeat.began),
            "silent_seconds": silent,
        }
        if heartbeat.alive and heartbeat.eta_seconds is not None:
            facts["eta_seconds"] = max(0.0, heartbeat.eta_seconds - silent)
    return facts


def status_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return how far a run is, given as plain data, in lines of text."""
    lines = [counted(facts["trials"])]
    process, eta = facts["process"], facts["eta_seconds"]
    if process is not None:
        name = f"process {process['pid']} on {process['host']}"
        since = f"{duration(process['seconds'])} at work"
        if process["alive"]:
            lines.append(f"{name}, {since}, ETA {'not known yet' if eta is None else duration(eta)}")
        else:
            heard = f"last heard of {duration(process['silent_seconds'])} ago"
            lines.append(f"{name} is gone, {heard}; the same `scalejax run` goes on from its checkpoints")
    elif facts["begun"]:
        lines.append("interrupted; the same `scalejax run` goes on from its checkpoints")
    for name, trials in (("running", facts["running"]), ("begun", facts["begun"])):
        lines += _shown(
            f"  {each['trial_id']} {name}, step {each['step']:,} of {each['steps']:,}: {each['what']}"
            for each in trials
        )
    lines += _shown(f"  {trial_id} {reason}" for trial_id, reason in facts["reasons"].items())
    return lines


def counted(counts: Mapping[str, int]) -> str:
    """Return numbers of trials by status in one line, for example "12 trials: 10 done, 2 failed"."""
    parts = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"{number_of(sum(counts.values()), 'trial')}: {parts}" if parts else "no trials yet"


def _shown(lines) -> list[str]:
    found = list(lines)
    rest = [f"  ... and {len(found) - SHOWN} more; --json lists all"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *rest]


def _taken(trial: Mapping[str, Any]) -> int:
    """Return the steps that a trial has taken; none if the table has no number there."""
    taken = trial["steps_taken"]
    return taken if isinstance(taken, int) else 0


def _on_its_way(trial: Mapping[str, Any]) -> dict[str, Any]:
    sizes = f"{number_of(trial['params'], 'parameter')}, {number_of(trial['train_examples'], 'example')}"
    return {
        "trial_id": trial["trial_id"],
        "step": _taken(trial),
        "steps": trial["steps"],
        "what": f"{trial['family']}, {sizes}, learning rate {trial['learning_rate']:g}, seed {trial['seed']}",
    }
