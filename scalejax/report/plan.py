"""A plan in the terminal."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalejax.text import Shown, duration, html_table, html_text, number_of, percent, quantity

PROGRAM_COLUMNS = "sizes", "trials", "lanes", "mode", "steps", "padding", "packing", "time"


@dataclass(frozen=True, repr=False)
class SweepPlan(Shown):
    """What a sweep will do; it shows itself as `scalejax plan` prints it.

    Attributes:
        facts: what `scalejax plan --json` prints: FLOPs and bytes are whole numbers, times are seconds, shares are in
            [0, 1].
    """

    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return "\n".join(plan_lines(self.facts))

    def _repr_html_(self) -> str:
        programs, (heading, *lines) = self.facts["programs"], plan_lines(self.facts)
        in_table = {_program_line(program) for program in programs}
        rows = [
            (
                program["sizes"], f"{program['trials']:,}", f"{program['lanes']:,}", program["mode"],
                f"{program['steps']:,}", percent(program['padding']), program["packing"], _about(program),
            )
            for program in programs
        ]  # fmt: skip
        table = html_table(PROGRAM_COLUMNS, rows, title=heading) if rows else html_text(heading)
        return table + html_text("\n".join(line for line in lines if line not in in_table))


def plan_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return a plan, given as plain data, in lines of text.

    Args:
        facts: as printed by `scalejax plan --json`.
    """
    older = [f"{each['family']} {each['trials']:,}" for each in facts["older"]]
    heading = f"{facts['name']}: {number_of(facts['trials'], 'trial')} on {facts['devices']:,} x {facts['device_kind']}"
    if older:
        count = sum(each["trials"] for each in facts["older"])
        where = "on host cores, in none of the FLOPs and forecasts"
        older = [f"classical {number_of(count, 'trial')} {where}: {', '.join(older)}"]
    notes = [f"  note: {note}" for note in facts["notes"]]
    if not facts["programs"]:
        return [heading, *notes, *older]
    total = facts["useful_flops"] + facts["padding_flops"] + facts["idle_flops"]
    stopped = facts["stopped_early"]
    unless = f", except the {stopped:,} that halving is expected to stop early" if stopped else ""
    state, data, disk = (quantity(facts[f"{name}_bytes"], "B") for name in ("state", "data", "checkpoint"))
    batches = quantity(2 * facts["stream_bytes"], "B")
    held = f"the host, which holds {batches} of batches for each device"
    streamed = [f"streamed  the training pool stays on {held}"] if facts["stream_bytes"] else []
    computing = [] if facts["precision"] == "float32" else [f"precision {facts['precision']}"]
    lines = [
        heading,
        f"programs  {number_of(facts['lane_programs'], 'lane program')}, each shared by all its trials:",
        *(_program_line(program) for program in facts["programs"]),
        *notes,
        *older,
        *computing,
        f"waste     {percent(facts['waste'], 1)} of {quantity(total, 'FLOP')} "
        f"({percent(facts['padding_flops'] / total, 1)} padding, {percent(facts['idle_flops'] / total, 1)} idle lanes)",
        f"FLOPs     {quantity(facts['useful_flops'], 'FLOP')} useful",
        f"memory    {state} of lane states and {data} of data on each device, without activations",
        *streamed,
        f"disk      at most {disk} of checkpoints, only while trials are running",
        f"forecast  {duration(facts['forecast_seconds'])} if every trial takes all its steps{unless}",
    ]
    if "compiled" in facts:
        lines.append(f"compiler  of {facts['device_kind']}, which need not be here; seconds are estimates")
        lines += [line for compiled in facts["compiled"] for line in _compiled_lines(compiled)]
    if "simulation" in facts:
        lines += _simulation_lines(facts["simulation"], facts["devices"], kind=facts["device_kind"])
    return lines


def _program_line(program: Mapping[str, Any]) -> str:
    grounds = f" ({program['packing']})" if program["packing"] else ""
    return (
        f"  {program['sizes']}: {number_of(program['trials'], 'trial')} in {number_of(program['lanes'], 'lane')} "
        f"({program['mode']}), {number_of(program['steps'], 'step')}, {percent(program['padding'])} padding{grounds}, "
        f"about {_about(program)}"
    )


def _about(program: Mapping[str, Any]) -> str:
    return duration(program["seconds"]) + ("" if program["timed"] else " (estimated)")


def _compiled_lines(compiled: Mapping[str, Any]) -> list[str]:
    """Say what a device's compiler says of a bucket's programs."""
    spread = f" on {number_of(compiled['devices'], 'device')} together" if compiled["devices"] > 1 else ""
    heading = f"  {compiled['sizes']}: {number_of(compiled['lanes'], 'lane')} a device{spread}"
    if compiled["refused"]:
        return [f"{heading}: the compiler refuses it: {compiled['refused']}"]
    needs, room = compiled["needed_bytes"], compiled["room_bytes"]
    left = f"{quantity(abs(room - needs), 'B')} {'to spare' if compiled['fits'] else 'too much'}"
    timing, counts, launches = compiled["timing"], Counter(), {"step": compiled["step_launches"]}
    for program in compiled["programs"]:
        counts.update(program["reading"]["collectives"])
        launches[program["name"]] = program["reading"]["work"]["launches"]
    lanes = compiled["lanes_together"]
    parts = [
        f"a training step {launches['step']:,} launches and {_brief(timing['step'])}",
        f"an evaluation {launches['validate']:,} and {_brief(lanes * timing['evaluation'])}",
        f"a test {launches['test']:,} and {_brief(lanes * timing['test'])}",
    ]
    spoken = [number_of(count, kind) for kind, count in sorted(counts.items())] or ["none"]
    waits, measuring = compiled["waits"], percent(compiled["measuring_share"], 1)
    loops = f"{waits:,} whose end only the device knows: where it is a GPU, the host waits for it each time"
    return [
        f"{heading}, {number_of(len(compiled['programs']), 'program')} compiled in {_compiling(compiled)}",
        f"    memory  {quantity(needs, 'B')} of {quantity(room, 'B')}, {left}; {_memory(compiled['programs'][0])}",
        f"    time    of all lanes: {', '.join(parts)}; {measuring} of a trial is not training",
        f"    loops   {loops if waits else 'all of known length'}; collectives: {', '.join(spoken)}",
    ]


def _compiling(compiled: Mapping[str, Any]) -> str:
    return duration(sum(program["compile_seconds"] for program in compiled["programs"]))


def _memory(program: Mapping[str, Any]) -> str:
    """Return what the longest program of training takes."""
    memory = program["memory"]
    parts = (f"{quantity(memory[f'{kind}_bytes'], 'B')} of {shown}" for kind, shown in _KINDS_OF_MEMORY.items())
    return f"a call of {number_of(int(program['name']), 'step')} takes {' and '.join(parts)}"


def _brief(seconds: float) -> str:
    """Return a short time, for example "62.1 us" or "3.2 ms"."""
    return quantity(1e6 * seconds, "us") if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


_KINDS_OF_MEMORY = {"argument": "arguments", "temporary": "temporaries"}


def _simulation_lines(done: Mapping[str, Any], devices: int, *, kind: str) -> list[str]:
    shares = ", ".join(
        f"{percent(share, 1)} {name.replace('_', ' ')}" for name, share in done["shares"].items() if share
    )
    used = percent(done["utilisation"], 1)
    makespan, floor, twice = (duration(done[f"{name}_seconds"]) for name in ("makespan", "floor", "twice_the_devices"))
    compiling = percent(done["shares"]["compilation"] / (1 - done["shares"]["idle_devices"]))
    limits = {
        "horizon": f"one trial's horizon: no more devices make it shorter than {floor}, unless they share a trial",
        "compilation": f"compilation, {compiling} of the time that devices are busy: fewer programs or devices",
        "idle_devices": f"the end: devices idle while the last trials run; twice the devices take {twice}",
        "memory": f"memory: no more than {number_of(done['lanes'], 'lane')} of the largest program on a device",
        "work": f"the work itself: twice the devices take {twice}",
    }
    return [
        f"simulated {makespan} on {devices:,} x {kind} at {used} utilisation, {done['source']}",
        f"time      {shares}",
        f"limit     {limits[done['limit']]}",
    ]
