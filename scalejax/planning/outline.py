"""A plan as plain data: what `plan` prints and gives as JSON."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from scalejax.planning.compile_for import CompiledBucket
from scalejax.planning.device_specs import LOCAL
from scalejax.planning.forecast import Forecast
from scalejax.planning.packing import Bucket, padding_share
from scalejax.planning.plan import Plan
from scalejax.planning.simulate import Simulation

CHECKPOINTS_KEPT = 2  # of a pack; should the last one be damaged, there is the one before


def outline(
    plan: Plan,
    forecast: Forecast | Simulation,
    *,
    device: str,
    simulation: Simulation | None = None,
    compiled: Sequence[CompiledBucket] = (),
) -> dict[str, Any]:
    """Return the facts of a plan; FLOPs and bytes are whole numbers, times are seconds, shares are in [0, 1].

    Args:
        plan: the plan.
        forecast: of its wall time: of programs timed here, or the simulation alone.
        device: what the devices here are called.
        simulation: on other devices than those here, also reported.
        compiled: what the compiler of those devices says of each program, if it was asked.
    """
    simulation = forecast if isinstance(forecast, Simulation) else simulation
    facts = {
        "name": plan.sweep.name,
        "trials": plan.count,
        "precision": plan.sweep.train.precision,
        "stopped_early": sum(counted.copies for counted in plan.counted if counted.expected_stop is not None),
        "devices": plan.devices,
        "device_kind": simulation.device if simulation and simulation.device != LOCAL else device,
        "lane_programs": len(plan.packing.buckets),
        "programs": [
            {
                "sizes": sizes_of(bucket),
                "trials": bucket.count,
                "lanes": bucket.lanes,
                "mode": bucket.program.mode,
                "steps": bucket.makespan,
                "padding": padding_share(bucket),
                "packing": bucket.grounds,
                "seconds": seconds,
                "timed": timed,
            }
            for bucket, seconds, timed in zip(plan.packing.buckets, forecast.seconds, forecast.timed, strict=True)
        ],
        "older": [
            {"family": family, "trials": count} for family, count in Counter(each.family for each in plan.older).items()
        ],
        "notes": [*plan.card.notes, *plan.packing.notes],
        "waste": plan.waste,
        "useful_flops": plan.useful_flops,
        "padding_flops": plan.padding_flops,
        "idle_flops": plan.idle_flops,
        "state_bytes": plan.state_bytes,
        "data_bytes": plan.data_bytes,
        # On each device; the host has as much again for each of them, and the batches of the call that runs.
        "stream_bytes": plan.stream_bytes,
        # Of each device's lanes at most as many as are kept, and one that is being written.
        "checkpoint_bytes": (CHECKPOINTS_KEPT + 1) * plan.devices * plan.state_bytes,
        "forecast_seconds": forecast.total,
    }
    if simulation:
        facts["simulation"] = {
            "source": simulation.source,
            "makespan_seconds": simulation.total,
            "utilisation": simulation.utilisation,
            "shares": simulation.shares,
            "limit": simulation.limit,
            "floor_seconds": simulation.floor,
            "twice_the_devices_seconds": simulation.twice,
            "lanes": simulation.lanes,
        }
    if compiled:
        pairs = zip(plan.packing.buckets, compiled, strict=True)
        facts["compiled"] = [{"sizes": sizes_of(bucket), **each.facts()} for bucket, each in pairs]
    return facts


def sizes_of(bucket: Bucket) -> str:
    """Return a bucket's sizes in words, for example "mlp depth 2 width 8, 32"."""
    values: dict[str, set[Any]] = {}
    for knob, value in (chosen for trial in bucket.trials for chosen in trial.named_knobs):
        values.setdefault(knob, set()).add(value)
    # Numbers are sorted as numbers, names as names.
    ranked = {knob: sorted(sizes, key=lambda size: (isinstance(size, str), size)) for knob, sizes in values.items()}
    return " ".join(
        [bucket.trials[0].family, *(f"{knob} {', '.join(map(str, sizes))}" for knob, sizes in ranked.items())]
    )
