"""A plan in the terminal."""

from collections.abc import Mapping
from typing import Any

from scalejax.report.progress import duration, quantity


def plan_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return a plan, given as plain data, in lines of text.

    Args:
        facts: as printed by `scalejax plan --json`.
    """
    lines = [
        f"{facts['name']}: {facts['trials']:,} trials on {facts['devices']} x {facts['device_kind']}",
        f"programs  {facts['lane_programs']} lane programs, each compiled once for all its trials:",
    ]
    for program in facts["programs"]:
        lines.append(
            f"  {program['sizes']}: {program['trials']:,} trials in {program['lanes']} lanes ({program['mode']}), "
            f"{program['steps']:,} steps, {program['padding']:.0%} padding, about {duration(program['seconds'])}"
            + ("" if program["timed"] else " (estimated)")
        )
    lines.extend(f"  note: {note}" for note in facts["notes"])
    total = facts["useful_flops"] + facts["padding_flops"] + facts["idle_flops"]
    state, data = (quantity(facts[name], "B") for name in ("state_bytes", "data_bytes"))
    lines += [
        f"waste     {facts['waste']:.1%} of {quantity(total, 'FLOP')} "
        f"({facts['padding_flops'] / total:.1%} padding, {facts['idle_flops'] / total:.1%} idle lanes)",
        f"FLOPs     {quantity(facts['useful_flops'], 'FLOP')} useful",
        f"memory    {state} of lane states and {data} of data on each device, activations apart",
        f"forecast  {duration(facts['forecast_seconds'])} if every trial takes all its steps",
    ]
    return lines
