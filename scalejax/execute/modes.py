"""The mode in which a bucket's lanes run: measured where it pays, remembered, and kept for the whole of a run.

"vmap" runs lanes side by side, which hides the overhead of small models; "map" runs them one after the other, which
keeps a large model in a core's cache and skips idle lanes. Which is faster depends on the machine, and the two differ
in the last bits, so a run writes its modes down and a resumed one reads them. Accelerators run lanes side by side too,
in programs without a decision in them: "static".
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace

import jax

from scalejax.execute.timing import remembered, timed
from scalejax.planning.device_specs import local_spec
from scalejax.planning.packing import Bucket, in_mode
from scalejax.planning.plan import Plan
from scalejax.train.recipe import MAP, STATIC, VMAP

TIMED = (VMAP, MAP)  # against each other, on a CPU
MODES = (*TIMED, STATIC)
WORTH_SECONDS = 60.0  # of estimated training; below, compiling a second program costs more than it can save


def with_modes(plan: Plan, kept: Mapping[str, str], *, measure: bool, evaluation_bytes: float | None = None) -> Plan:
    """Return the plan with the mode of every bucket.

    Args:
        plan: any plan; its modes are not looked at.
        kept: modes by the key of the program, that a run has written down.
        measure: whether programs may be compiled and timed to find a mode that no run and no memory tells.
        evaluation_bytes: as of `in_mode`; default: what the memory of a device here allows.
    """
    room = local_spec().evaluation_bytes if evaluation_bytes is None else evaluation_bytes
    buckets = tuple(
        in_mode(
            bucket, kept.get(program_key(bucket)) or choose_mode(bucket, plan, measure=measure), evaluation_bytes=room
        )
        for bucket in plan.packing.buckets
    )
    return replace(plan, packing=replace(plan.packing, buckets=buckets))


def program_key(bucket: Bucket) -> str:
    """Return what a run knows a bucket's program by, whichever its mode and its number of lanes."""
    return hashlib.sha256(in_mode(bucket, "").program.identity.encode()).hexdigest()[:16]


def choose_mode(bucket: Bucket, plan: Plan, *, measure: bool) -> str:
    """Return the faster mode of a bucket, timed on this machine if that is allowed and worth it.

    Accelerators run lanes side by side: one lane alone leaves them idle.
    """
    if jax.default_backend() != "cpu":
        return STATIC
    if bucket.lanes == 1:
        return MAP  # there is nothing to run side by side
    candidates = [in_mode(bucket, mode) for mode in TIMED]
    timings = [remembered(each, plan.card) for each in candidates]
    worth = measure and bucket.seconds * bucket.makespan >= WORTH_SECONDS
    if None in timings and not worth:
        return TIMED[0]
    timings = [timing or timed(each, plan.card) for each, timing in zip(candidates, timings, strict=True)]
    steps = [timing.step if timing else math.inf for timing in timings]
    return TIMED[steps.index(min(steps))]


def kept_modes(environment: object) -> dict[str, str]:
    """Return the modes that a run has written into its environment file, by the key of the program."""
    found = environment.get("modes") if isinstance(environment, dict) else None
    return {key: mode for key, mode in found.items() if mode in MODES} if isinstance(found, dict) else {}


def modes_to_keep(plan: Plan, environment: object) -> dict[str, str]:
    """Return the modes of a plan, and those of the programs that the run had and the plan has not."""
    modes = {program_key(bucket): bucket.program.mode for bucket in plan.packing.buckets}
    return {**kept_modes(environment), **modes}
