"""The forecast of a sweep's wall time: programs timed on this machine, remembered per kind of device."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace

import jax
import numpy as np

from scalejax.cache import cache_directory
from scalejax.data import DataCard
from scalejax.engine.cost import SPEEDS
from scalejax.engine.device import MODE, Device, device_kind, versions
from scalejax.engine.lanes import DeviceData, blocks
from scalejax.engine.pack import Pack
from scalejax.engine.packing import Bucket
from scalejax.engine.plan import Plan
from scalejax.engine.step import BLOCK_STEPS, Examples

TIMED_SECONDS = 0.25  # of steps in each repetition
REPETITIONS = 3


@dataclass(frozen=True)
class Timing:
    """Seconds that a bucket's program takes on one device: a step and an evaluation of all lanes, a test of one."""

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


def forecast(plan: Plan, *, patience_seconds: float) -> Forecast:
    """Foretell the wall time of a plan if every trial takes all its steps.

    Programs are timed in the order of their cost until `patience_seconds` are over (the first one always); what is
    left is taken from the cost model, corrected by what the timed ones have shown. Timings are remembered on disk.

    Args:
        plan: the sweep's plan for the devices of this machine.
        patience_seconds: after which no further program is compiled for timing.
    """
    began = time.perf_counter()
    timings: list[Timing | None] = []
    for bucket in plan.packing.buckets:
        timing = _recall(bucket, plan.card)
        if timing is None and (not any(timings) or time.perf_counter() - began < patience_seconds):
            timing = _remember(bucket, plan.card, _time(bucket, plan.card))
        timings.append(timing)
    pairs = zip(timings, plan.packing.buckets, strict=True)
    ratios = [timing.step / bucket.seconds for timing, bucket in pairs if timing is not None]
    usual = float(np.median(ratios))
    return Forecast(
        seconds=tuple(
            _bucket_seconds(bucket, timing or Timing(usual * bucket.seconds, 10 * usual * bucket.seconds, 0.0), plan)
            for bucket, timing in zip(plan.packing.buckets, timings, strict=True)
        ),
        timed=tuple(timing is not None for timing in timings),
    )


def _bucket_seconds(bucket: Bucket, timing: Timing, plan: Plan) -> float:
    trials = [planned.trial for planned in bucket.trials]
    # Lanes evaluate together when their horizons agree, so a pack evaluates about as often as its longest chain.
    evaluations = bucket.makespan / min(trial.evaluate_every for trial in trials)
    compiling = SPEEDS.get(jax.default_backend(), SPEEDS["gpu"]).compile * (1 + 0.3 * len(bucket.architectures))
    training = bucket.makespan * timing.step + evaluations * timing.evaluation
    return compiling + training + len(trials) * timing.test / plan.devices


def _time(bucket: Bucket, card: DataCard) -> Timing:
    """Run a bucket's own program on numbers of the right shapes, on all devices at once, as the sweep will.

    What it compiles, the run will find again.
    """
    devices = jax.local_devices()
    with ThreadPoolExecutor(len(devices)) as threads:
        packs = list(threads.map(lambda device: _pack(bucket, device, card), devices))

        def seconds(steps: int, *, due: list[int], ending: list[int]) -> float:
            began = time.perf_counter()
            list(threads.map(lambda pack: pack.call(steps, due=due, ending=ending), packs))
            return time.perf_counter() - began

        guess = seconds(BLOCK_STEPS, due=[], ending=[])
        steps = BLOCK_STEPS * max(1, min(round(TIMED_SECONDS / guess), bucket.call_steps // BLOCK_STEPS))
        return Timing(
            step=float(np.median([seconds(steps, due=[], ending=[]) for _ in range(REPETITIONS)])) / steps,
            evaluation=seconds(0, due=[0], ending=[]),
            test=seconds(0, due=[], ending=[0]),
        )


def _pack(bucket: Bucket, device: Device, card: DataCard) -> Pack:
    """Return a pack that has run once; its rate is so low that no number overflows or vanishes while it is timed."""
    pack = Pack(bucket, device=device, data=_sample_data(card, device))
    generator = np.random.default_rng(0)
    trial = replace(bucket.trials[0].trial, learning_rate=1e-6, train_examples=card.examples)
    weights = jax.tree.map(
        lambda leaf: generator.normal(0, 0.05, leaf.shape).astype(leaf.dtype), bucket.recipe.architecture.abstract[1:]
    )
    for number in pack.free:
        pack.place(number, replace(bucket.trials[0], trial=trial), weights)
    pack.call(1, due=[], ending=[])
    return pack


def _sample_data(card: DataCard, device: Device) -> DeviceData:
    def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((count, *card.shape), 0.5, np.float32), np.zeros(count, np.int32)

    return jax.device_put(
        DeviceData(
            pool=Examples(*examples(card.examples)),
            validation=blocks(*examples(card.validation_examples)),
            test=blocks(*examples(card.test_examples)),
        ),
        device,
    )


def _path(bucket: Bucket, card: DataCard):
    content = [
        repr(bucket.recipe),
        bucket.lanes,
        repr(replace(card, fingerprint="")),
        MODE,
        device_kind(),
        len(jax.local_devices()),
        versions(),
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return cache_directory("calibrations") / f"{digest}.json"


def _recall(bucket: Bucket, card: DataCard) -> Timing | None:
    try:
        return Timing(**json.loads(_path(bucket, card).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # never timed, or damaged: it is timed again


def _remember(bucket: Bucket, card: DataCard, timing: Timing) -> Timing:
    path = _path(bucket, card)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(timing)))
    partial.replace(path)
    return timing
