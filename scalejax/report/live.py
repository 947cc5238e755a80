"""A run as it goes on: a view of a terminal that follows it, and lines for a pipe."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scalejax.report.status import counted, described, status_facts, status_lines
from scalejax.status import ENDED, Status
from scalejax.text import duration, percent, short

RUNNING_SHOWN = 5
BAR_WIDTH = 40  # characters
CLOCKS = ("eta_seconds", "process")  # what changes with every look

Facts = Mapping[str, Any]


def waiting_facts(directory: str) -> dict[str, Any]:
    """Return the state of a run that has not begun."""
    says = f"{directory}: no results yet; waiting for `scalejax run` to begin there"
    return {"directory": directory, "waiting": says, "over": False}


def live_facts(directory: str, table: Any, heartbeat: Any, *, last: Sequence[str], over: bool) -> dict[str, Any]:
    """Return the state of a run: what `status_facts` says, and what follows.

    `share` of the trials that has ended, those that run counted by their steps; `finished`, the trials that ended last,
    the latest first; `best`, the one of the lowest validation loss, or None; `over`, whether the run has ended;
    `waiting`, empty.

    Args:
        directory: of the run.
        table: the trial table.
        heartbeat: as for `status_facts`.
        last: ids of the trials that ended last.
        over: whether the run has ended.
    """
    facts = status_facts(table, heartbeat)
    trials = {trial["trial_id"]: trial for trial in table.to_dict("records")}
    done = [trial for trial in trials.values() if trial["status"] == Status.DONE and _known(trial, "validation_loss")]
    best = min(done, key=lambda trial: trial["validation_loss"], default=None)
    ended = sum(facts["trials"][status] for status in ENDED)
    begun = sum(trial["step"] / max(1, trial["steps"]) for trial in (*facts["running"], *facts["begun"]))
    return {
        "directory": directory,
        "waiting": "",
        "over": over,
        **facts,
        "share": (ended + begun) / max(1, len(trials)),
        "finished": [_ended(trials[trial_id]) for trial_id in last],
        "best": None if best is None else _ended(best),
    }


def _ended(trial: Facts) -> dict[str, Any]:
    return {
        "trial_id": trial["trial_id"],
        "what": described(trial),
        "status": trial["status"],
        "reason": trial["reason"],
        "validation_loss": _known(trial, "validation_loss"),
        "metric": trial["metric"],
        "test_metric": _known(trial, "test_metric"),
    }


def _known(trial: Facts, name: str) -> float | None:
    value = trial[name]
    return None if value is None or value != value else float(value)


def show(states: Iterable[Facts], *, as_json: bool, console: Console) -> None:
    """Show states as they come: a view that changes in a terminal, elsewhere lines.

    Args:
        states: of a run.
        as_json: one line of JSON for each change instead.
        console: where.
    """
    if as_json or not console.is_terminal:
        for line in json_lines(states) if as_json else plain_lines(states):
            console.file.write(f"{line}\n")
            console.file.flush()
        return
    with Live(console=console, auto_refresh=False) as live:
        for facts in states:
            live.update(live_view(facts), refresh=True)


def json_lines(states: Iterable[Facts]) -> Iterator[str]:
    """Yield a line of JSON for each state that differs from the one before in more than times."""
    before = None
    for facts in states:
        now = {name: value for name, value in facts.items() if name not in CLOCKS}
        if now != before:
            yield json.dumps(facts)
        before = now


def plain_lines(states: Iterable[Facts]) -> Iterator[str]:
    """Yield the first state as `scalejax status` prints it, then a line whenever a trial has begun or ended."""
    before = None
    for facts in states:
        now = facts["waiting"] or (facts["trials"], facts["over"])
        if now == before:
            continue
        if before is None or isinstance(before, str):
            yield facts["waiting"] if facts["waiting"] else "\n".join(status_lines(facts))
        else:
            yield live_line(facts)
        before = now


def live_line(facts: Facts) -> str:
    """Return a state in one line: numbers of trials, the time left or how it ended, the trial that ended last."""
    parts = [counted(facts["trials"]), _standing(facts)]
    if facts["finished"] and not facts["over"]:
        last = facts["finished"][0]
        parts.append(f"last {last['trial_id']} {_outcome(last)}")
    return "; ".join(parts)


def live_view(facts: Facts) -> Group | Text:
    """Return a state for a terminal: a bar, numbers of trials, those that run and those that ended last."""
    if facts["waiting"]:
        return Text(facts["waiting"])
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=1.0, completed=facts["share"], width=BAR_WIDTH),
        f"{percent(facts['share']):>5}",
        _standing(facts),
    )
    parts: list[Any] = [Text(facts["directory"], style="bold"), bar, Text(counted(facts["trials"]))]
    if running := facts["running"]:
        rows = [
            (trial["trial_id"], f"{trial['step']:,} of {trial['steps']:,}", trial["what"])
            for trial in running[:RUNNING_SHOWN]
        ]
        rest = len(running) - RUNNING_SHOWN
        parts += [_table("running", rows), *([Text(f"  ... and {rest:,} more", style="dim")] if rest > 0 else [])]
    if facts["finished"]:
        rows = [(trial["trial_id"], _outcome(trial), trial["what"]) for trial in facts["finished"]]
        parts.append(_table("ended last", rows))
    if best := facts["best"]:
        parts.append(_table("best so far", [(best["trial_id"], _outcome(best), best["what"])]))
    return Group(*parts)


def _table(title: str, rows: Sequence[Sequence[str]]) -> Group:
    grid = Table.grid(padding=(0, 2))
    for _ in range(3):
        grid.add_column(no_wrap=True, overflow="ellipsis")
    for row in rows:
        grid.add_row(*(Text(f"  {cell}" if place == 0 else cell) for place, cell in enumerate(row)))
    return Group(Text(title, style="dim"), grid)


def _standing(facts: Facts) -> str:
    """Say how long it will take, or how it has ended."""
    if facts["over"]:
        unfinished = facts["trials"][Status.PENDING] + facts["trials"][Status.RUNNING]
        return "not running; the same `scalejax run` resumes" if unfinished else "ended"
    eta = facts["eta_seconds"]
    return "ETA not known yet" if eta is None else f"ETA {duration(eta)}"


def _outcome(trial: Facts) -> str:
    """Say how a trial has ended, with its losses."""
    if trial["validation_loss"] is None:
        return f"{trial['status']}: {trial['reason']}" if trial["reason"] else str(trial["status"])
    parts = [f"{trial['status']}, validation loss {short(trial['validation_loss'], 3)}"]
    if trial["test_metric"] is not None:
        parts.append(f"test {trial['metric']} {short(trial['test_metric'], 3)}")
    return ", ".join(parts)
