"""The forecast of a sweep's wall time."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scalejax.planning.device_specs import local_spec
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
    """Seconds of wall time of each bucket, in the order of the packing, and whether its program was timed here.

    `groups` of devices work on different buckets at the same time.
    """

    seconds: tuple[float, ...]
    timed: tuple[bool, ...]
    groups: int = 1

    @property
    def total(self) -> float:
        """Seconds of the whole sweep."""
        return max(*self.seconds, sum(self.seconds) / self.groups, 0.0)


def forecast(plan: Plan, timings: Sequence[Timing | None]) -> Forecast:
    """Forecast the wall time of a plan if every trial takes the steps that the plan counts with.

    Args:
        plan: the sweep's plan for the devices of this machine.
        timings: of the program of each bucket, None where it was never timed: that is taken from the cost model,
            corrected by what the timed ones have shown.
    """
    buckets, spec = plan.packing.buckets, local_spec()
    # The cores of a CPU measure different lanes of a bucket; of accelerators a timing tells what a group of them takes.
    groups, measured = (1, plan.devices) if spec.platform == "cpu" else (plan.devices // plan.group_size, 1)
    estimates = [Timing(bucket.seconds, bucket.seconds, bucket.seconds) for bucket in buckets]
    seconds = []
    for bucket, timing, known in zip(buckets, timings, completed(timings, estimates), strict=True):
        evaluations = sum(math.ceil(counted.steps / counted.trial.evaluate_every) for counted in bucket.counted)
        tests = sum(counted.expected_stop is None for counted in bucket.counted)
        loading = 1 if timing is None else LOADING_SHARE
        compiling = loading * compile_seconds(len(bucket.architectures), speed=spec.speed)
        measuring = evaluations * known.evaluation + tests * known.test
        seconds.append(compiling + bucket.makespan * known.step + measuring / measured)
    return Forecast(tuple(seconds), tuple(timing is not None for timing in timings), groups)


def completed(timings: Sequence[Timing | None], estimates: Sequence[Timing]) -> list[Timing]:
    """Return all timings, the missing ones as estimated, corrected by the median of what the others have shown."""
    pairs = list(zip(timings, estimates, strict=True))
    ratios = [timing.step / estimate.step for timing, estimate in pairs if timing is not None]
    usual = statistics.median(ratios) if ratios else 1.0
    return [
        Timing(usual * estimate.step, usual * estimate.evaluation, usual * estimate.test) if timing is None else timing
        for timing, estimate in pairs
    ]
