"""A plan as plain data: what `plan` prints and gives as JSON."""

from typing import Any

from scalejax.engine.cost import step_flops
from scalejax.engine.device import device_kind
from scalejax.engine.forecast import Forecast
from scalejax.engine.packing import Bucket
from scalejax.engine.plan import Plan


def outline(plan: Plan, forecast: Forecast) -> dict[str, Any]:
    """Return the facts of a plan; FLOPs and bytes are whole numbers, times are seconds, shares are in [0, 1]."""
    return {
        "name": plan.sweep.name,
        "trials": len(plan.trials),
        "devices": plan.devices,
        "device_kind": device_kind(),
        "lane_programs": len(plan.packing.buckets),
        "programs": [
            {
                "sizes": bucket_name(bucket),
                "trials": len(bucket.trials),
                "lanes": bucket.lanes,
                "mode": bucket.recipe.mode,
                "steps": bucket.makespan,
                "padding": padding_share(bucket, plan.card.shape),
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
        "forecast_seconds": forecast.total,
    }


def padding_share(bucket: Bucket, shape: tuple[int, ...]) -> float:
    """Return the share of a bucket's FLOPs that is spent on the zeros of its smaller sizes."""
    batch_size = bucket.recipe.batch_size
    padded = step_flops(bucket.recipe.architecture, batch_size, shape) * sum(p.trial.steps for p in bucket.trials)
    own = sum(step_flops(p.architecture, batch_size, shape) * p.trial.steps for p in bucket.trials)
    return 1 - own / padded


def bucket_name(bucket: Bucket) -> str:
    """Return a bucket's sizes in words, for example "mlp depth 2 width 8, 32"."""
    first = bucket.trials[0].trial
    sizes = {knob: set() for knob, _ in first.knobs}
    for planned in bucket.trials:
        for knob, value in planned.trial.knobs:
            sizes[knob].add(value)
    words = (f"{knob} {', '.join(str(value) for value in sorted(each, key=_order))}" for knob, each in sizes.items())
    return " ".join([first.family, *words])


def _order(value: object) -> tuple[str, object]:
    """Sort numbers as numbers and names as names."""
    return ("number", value) if isinstance(value, int | float) else ("word", value)
