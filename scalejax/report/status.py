"""How far a run is, as plain data and in the terminal."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalejax.status import Status
from scalejax.text import Shown, duration, number_of

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 20  # trials of a kind that the terminal lists; the data have all


@dataclass(frozen=True, repr=False)
class RunStatus(Shown):
    """How far a run is; it shows itself as `scalejax status` prints it.

    Attributes:
        facts: what `scalejax status --json` prints; times are in seconds.
    """

    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(status_lines(self.facts))


def status_facts(table: "pd.DataFrame", heartbeat: Any) -> dict[str, Any]:
    """Return how far a run is; times are in seconds.

    Args:
        table: the trial table.
        heartbeat: of the process that runs it or was killed while it did, None if there is none; with the attributes
            pid, host, began, beat, eta_seconds and alive.
    """
    trials = table.to_dict("records")
    counts = {status.value: 0 for status in Status}
    for trial in trials:
        counts[trial["status"]] += 1
    facts: dict[str, Any] = {
        "trials": counts,
        "running": [_begun(trial) for trial in trials if trial["status"] == Status.RUNNING],
        "begun": [_begun(trial) for trial in trials if trial["status"] == Status.PENDING and _taken(trial)],
        "reasons": {
            trial["trial_id"]: f"{trial['status']}: {trial['reason']}"
            for trial in trials
            if trial["status"] in (Status.DIVERGED, Status.FAILED)
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
        if process["alive"]:
            left = "not known yet" if eta is None else duration(eta)
            lines.append(f"{name}, running for {duration(process['seconds'])}, ETA {left}")
        else:
            heard = f"last heard of {duration(process['silent_seconds'])} ago"
            lines.append(f"{name} is gone, {heard}; the same `scalejax run` resumes from its checkpoints")
    elif facts["begun"]:
        lines.append("interrupted; the same `scalejax run` resumes from its checkpoints")
    for name in ("running", "begun"):
        lines += _shown(
            f"  {trial['trial_id']} {name}, step {trial['step']:,} of {trial['steps']:,}: {trial['what']}"
            for trial in facts[name]
        )
    lines += _shown(f"  {trial_id} {reason}" for trial_id, reason in facts["reasons"].items())
    return lines


def counted(counts: Mapping[str, int]) -> str:
    """Return numbers of trials by status in one line, for example "12 trials: 10 done, 2 failed"."""
    parts = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
    return f"{number_of(sum(counts.values()), 'trial')}: {parts}" if parts else "no trials yet"


def _shown(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    rest = [f"  ... and {len(lines) - SHOWN} more; --json lists all"] if len(lines) > SHOWN else []
    return [*lines[:SHOWN], *rest]


def _taken(trial: Mapping[str, Any]) -> int:
    """Return the steps that a trial has taken; none if the table has no number there."""
    taken = trial["steps_taken"]
    return taken if isinstance(taken, int) else 0


def described(trial: Mapping[str, Any]) -> str:
    """Return what a trial is in words: family, sizes, what is chosen for it, seed."""
    sizes = f"{number_of(trial['params'], 'parameter')}, " if trial["params"] else ""
    sizes += number_of(trial["train_examples"], "example")
    rate, others = trial["learning_rate"], trial.get("hyperparameters")
    chosen = [f"learning rate {rate:g}"] if rate == rate else []  # NaN where there is none
    chosen += [others] if isinstance(others, str) else []
    return f"{trial['family']}, {', '.join([sizes, *chosen])}, seed {trial['seed']}"


def _begun(trial: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "trial_id": trial["trial_id"],
        "step": _taken(trial),
        "steps": trial["steps"],
        "what": described(trial),
    }
