"""The forecast of a sweep's wall time."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scalejax.planning.device_specs import local_kind
from scalejax.planning.packing import Bucket
from scalejax.planning.plan import Plan
from scalejax.train.cost import compile_seconds

LOADING_SHARE = 0.25  # of the time to compile a program, if a timing has left it on disk


@dataclass(frozen=True)
class Timing:
    """Seconds that a bucket's program takes: a step of all lanes of a group, an evaluation and a test of one."""

    step: float
    evaluation: float
    test: float


@dataclass(frozen=True)
class Forecast:
    """Seconds of wall time of each bucket, in the order of the packing, and whether its program was timed here."""

    seconds: tuple[float, ...]
    timed: tuple[bool, ...]

    @property
    def total(self) -> float:
        """Seconds of the whole sweep; devices work on different buckets, or on different trials of one."""
        return sum(self.seconds)


def forecast(plan: Plan, timings: Sequence[Timing | None]) -> Forecast:
    """Foretell the wall time of a plan if every trial takes the steps that the plan counts with.

    Args:
        plan: the sweep's plan for the devices of this machine.
        timings: of the program of each bucket, None where it was never timed: that is taken from the cost model,
            corrected by what the timed ones have shown.
    """
    buckets = plan.packing.buckets
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
    evaluations = sum(math.ceil(each.steps / each.trial.evaluate_every) for each in bucket.counted)
    tests = sum(each.expected_stop is None for each in bucket.counted)
    speed = local_kind().speed
    compiling = compile_seconds(len(bucket.architectures), speed=speed) * (LOADING_SHARE if compiled else 1)
    measuring = evaluations * timing.evaluation + tests * timing.test
    return compiling + bucket.makespan * timing.step + measuring / plan.devices
