"""The forecast of a sweep's wall time."""

import math
import time
from dataclasses import dataclass

import numpy as np

from scalejax.engine.cost import compile_seconds
from scalejax.engine.kinds import local_kind
from scalejax.engine.packing import Bucket
from scalejax.engine.plan import Plan
from scalejax.engine.timing import Timing, remembered, timed

TIMED_BYTES = 2e9  # of data, beyond which nothing is timed: a plan must not fill the memory
LOADING_SHARE = 0.25  # of the time to compile a program, if a timing has left it on disk


@dataclass(frozen=True)
class Forecast:
    """Seconds of wall time of each bucket, in the order of the packing, and whether its program was timed here."""

    seconds: tuple[float, ...]
    timed: tuple[bool, ...]

    @property
    def total(self) -> float:
        """Seconds of the whole sweep; devices work on different buckets, or on different trials of one."""
        return sum(self.seconds)


def forecast(plan: Plan, *, patience_seconds: float) -> Forecast:
    """Foretell the wall time of a plan if every trial takes the steps that the plan counts with.

    Programs are timed in the order of their cost until `patience_seconds` are over (the first one always); what is
    left is taken from the cost model, corrected by what the timed ones have shown. Timings are remembered on disk.

    Args:
        plan: the sweep's plan for the devices of this machine.
        patience_seconds: after which no further program is compiled for timing.
    """
    began = time.perf_counter()
    timings: list[Timing | None] = []
    buckets = plan.packing.buckets
    for bucket in buckets:
        timing = remembered(bucket, plan.card)
        if (
            timing is None
            and plan.data_bytes <= TIMED_BYTES
            and (not any(timings) or time.perf_counter() - began < patience_seconds)
        ):
            timing = timed(bucket, plan.card)
        timings.append(timing)
    pairs = zip(timings, buckets, strict=True)
    ratios = [timing.step / bucket.seconds for timing, bucket in pairs if timing is not None]
    usual = float(np.median(ratios)) if ratios else 1.0
    guesses = [Timing(usual * bucket.seconds, usual * bucket.seconds, usual * bucket.seconds) for bucket in buckets]
    return Forecast(
        seconds=tuple(
            _bucket_seconds(bucket, timing or guess, plan, compiled=timing is not None)
            for bucket, timing, guess in zip(buckets, timings, guesses, strict=True)
        ),
        timed=tuple(timing is not None for timing in timings),
    )


def _bucket_seconds(bucket: Bucket, timing: Timing, plan: Plan, *, compiled: bool) -> float:
    evaluations = sum(math.ceil(each.expected_steps / each.trial.evaluate_every) for each in bucket.trials)
    tests = sum(each.expected_stop is None for each in bucket.trials)
    speed = local_kind().speed
    compiling = compile_seconds(len(bucket.architectures), speed=speed) * (LOADING_SHARE if compiled else 1)
    measuring = evaluations * timing.evaluation + tests * timing.test
    return compiling + bucket.makespan * timing.step + measuring / plan.devices
