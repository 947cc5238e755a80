"""A plan as plain data: what `plan` prints and gives as JSON."""

from typing import Any

from scalejax.planning.device_specs import LOCAL
from scalejax.planning.forecast import Forecast
from scalejax.planning.packing import Bucket, padding_share
from scalejax.planning.plan import Plan
from scalejax.planning.simulate import Simulation

CHECKPOINTS_KEPT = 2  # of a pack; should the last one be damaged, there is the one before


def outline(
    plan: Plan, forecast: Forecast | Simulation, *, device: str, simulation: Simulation | None = None
) -> dict[str, Any]:
    """Return the facts of a plan; FLOPs and bytes are whole numbers, times are seconds, shares are in [0, 1].

    Args:
        plan: the plan.
        forecast: of its wall time: of programs timed here, or the simulation alone.
        device: what the devices here are called.
        simulation: on other devices than those here, to be told as well.
    """
    simulation = forecast if isinstance(forecast, Simulation) else simulation
    return {
        "name": plan.sweep.name,
        "trials": plan.count,
        "stopped_early": sum(each.copies for each in plan.counted if each.expected_stop is not None),
        "devices": plan.devices,
        "device_kind": simulation.kind if simulation and simulation.kind != LOCAL else device,
        "lane_programs": len(plan.packing.buckets),
        "programs": [
            {
                "sizes": bucket_name(bucket),
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
        "notes": list(plan.packing.notes),
        "waste": plan.waste,
        "useful_flops": plan.useful_flops,
        "padding_flops": plan.padding_flops,
        "idle_flops": plan.idle_flops,
        "state_bytes": plan.state_bytes,
        "data_bytes": plan.data_bytes,
        # Of each device's lanes at most as many as are kept, and one that is being written.
        "checkpoint_bytes": (CHECKPOINTS_KEPT + 1) * plan.devices * plan.state_bytes,
        "forecast_seconds": forecast.total,
    } | ({"simulation": _simulation(simulation)} if simulation else {})


def _simulation(done: Simulation) -> dict[str, Any]:
    return {
        "source": done.source,
        "makespan_seconds": done.total,
        "utilisation": done.utilisation,
        "shares": done.shares,
        "limit": done.limit,
        "floor_seconds": done.floor,
        "twice_the_devices_seconds": done.twice,
        "lanes": done.lanes,
    }


def bucket_name(bucket: Bucket) -> str:
    """Return a bucket's sizes in words, for example "mlp depth 2 width 8, 32"."""
    first = bucket.trials[0]
    sizes = {knob: set() for knob, _ in first.knobs}
    for trial in bucket.trials:
        for knob, value in trial.knobs:
            sizes[knob].add(value)
    words = (f"{knob} {', '.join(str(value) for value in sorted(each, key=_order))}" for knob, each in sizes.items())
    return " ".join([first.family, *words])


def _order(value: object) -> tuple[str, object]:
    """Sort numbers as numbers and names as names."""
    return ("number", value) if isinstance(value, int | float) else ("word", value)
