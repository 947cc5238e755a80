"""Programs timed on this machine, and what is remembered of them per kind of device."""

import hashlib
import json
import time
from concurrent.futures import Future
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np

from scalejax.data import DataCard
from scalejax.execute.devices import device_kind, groups, versions
from scalejax.execute.pack import Pack
from scalejax.execute.programs import Programs, compiled_programs
from scalejax.execute.snapshot import bits, keyed
from scalejax.execute.stream import sample_stream
from scalejax.files import cache_directory, write_atomically
from scalejax.planning.forecast import Timing
from scalejax.planning.packing import STATIC, Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.plan import Plan
from scalejax.planning.trial import Trial
from scalejax.train.lanes import DeviceData, abstract_lane, block_shape, empty
from scalejax.train.numerics import current
from scalejax.train.step import Blocks, Examples, TrialState
from scalejax.train.traced import program_digest

GUESSED_STEPS = 8  # timed first, to know how many to time
TIMED_SECONDS = 0.25  # of steps in each repetition
REPETITIONS = 3
TIMED_BYTES = 2e9  # of data, beyond which nothing is timed: a plan must not fill the memory


def timings_of(plan: Plan, *, patience_seconds: float) -> list[Timing | None]:
    """Time the programs of a plan, those of the highest cost first; what was timed before is remembered on disk.

    Args:
        plan: for the devices of this machine.
        patience_seconds: after which no further program is compiled for timing; the first one always is.
    """
    began = time.perf_counter()
    timings: list[Timing | None] = []
    for bucket in plan.packing.buckets:
        timing = remembered(bucket, plan.card, group_size=plan.group_size)
        patient = not any(timings) or time.perf_counter() - began < patience_seconds
        if timing is None and plan.data_bytes <= TIMED_BYTES and patient:
            timing = timed(bucket, plan.card, group_size=plan.group_size)
        timings.append(timing)
    return timings


def remembered(bucket: Bucket, card: DataCard, *, group_size: int = 1) -> Timing | None:
    """Return what an earlier process on this machine measured of a bucket's program, or None; see `timed`."""
    try:
        return Timing(**json.loads(_path(bucket, card, group_size).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # never timed, or damaged: it is timed again


def timed(bucket: Bucket, card: DataCard, *, group_size: int = 1) -> Timing | None:
    """Time a bucket's program here and now, and remember it; None where it does not run here as it is.

    A run takes fewer lanes where memory is short. Where a module fails on made-up numbers, it may not on real ones; if
    it does, its trials fail, with their reason in the table.

    Args:
        bucket: of the program.
        card: of the data.
        group_size: accelerators that work on a bucket together.
    """
    try:
        timing = _time(bucket, card, group_size=group_size)
    except (MemoryError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    write_atomically(_path(bucket, card, group_size), json.dumps(asdict(timing)))
    return timing


def _time(bucket: Bucket, card: DataCard, *, group_size: int) -> Timing:
    """Run a bucket's own program on numbers of the right shapes; what it compiles, the run will find again."""
    pack = ready_pack(bucket, card, group_size=group_size)

    def seconds(steps: int, *, due: list[int], ending: list[int]) -> float:
        began = time.perf_counter()
        pack.call(steps, due=due, ending=ending)
        return time.perf_counter() - began

    few = min(GUESSED_STEPS, bucket.call_steps)
    guess = seconds(few, due=[], ending=[]) / few
    steps = int(np.clip(TIMED_SECONDS / guess, few, bucket.call_steps))
    measured = pack.placement.lanes if bucket.program.mode == STATIC else 1  # at a time, however many are due
    return Timing(
        step=float(np.median([seconds(steps, due=[], ending=[]) for _ in range(REPETITIONS)])) / steps,
        evaluation=seconds(0, due=[0], ending=[]) / measured,
        test=seconds(0, due=[], ending=[0]) / measured,
    )


def ready_pack(bucket: Bucket, card: DataCard, *, group_size: int = 1) -> Pack:
    """Return a pack on the first group of local devices, with a full set of lanes, that has run once."""
    placement = bucket.placement(groups(jax.local_devices(), size=group_size)[0])
    state, trial = sample_state(bucket, card)
    ready: Future[Programs] = Future()
    ready.set_result(compiled_programs(bucket.program, placement, card=card))
    stream = sample_stream(card, bucket.program) if bucket.program.stream_steps else None
    data = sample_data(card, placement, pool=stream is None)
    pack = Pack(bucket, placement, data=data, programs=ready, stream=stream)
    pack.adopt(jax.tree.map(lambda leaf: keyed(np.stack([bits(leaf)] * placement.lanes), leaf), state), trial)
    pack.call(1, due=[], ending=[])
    return pack


def sample_state(bucket: Bucket, card: DataCard) -> tuple[TrialState, Trial]:
    """Return the state of one lane, on the host, and its trial.

    Made up, so that nothing but the program itself is compiled: small random parameters and a rate so low that no
    number overflows or vanishes while it is timed.
    """
    first = bucket.trials[0]
    trial = replace(first, settings=replace(first.settings, learning_rate=1e-6, train_examples=card.examples))
    generator = np.random.default_rng(0)

    def sample(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return generator.normal(0, 0.05, leaf.shape).astype(leaf.dtype)

    state = jax.tree.map(lambda leaf: leaf[0], empty(bucket.program, 1))
    params = jax.tree.map(sample, abstract_lane(bucket.program).learner.params)
    learner = replace(state.learner, params=params)
    return replace(state, settings=trial.settings.scalars(), learner=learner), trial


def sample_data(card: DataCard, placement: Placement, *, pool: bool = True) -> DeviceData:
    """Return a data set of the card's shapes on every device; without its pool for a program that is streamed."""

    def examples(*count: int) -> tuple[np.ndarray, np.ndarray]:
        some = 0.5 if card.inputs == "float32" else 1
        return np.full((*count, *card.shape), some, card.inputs), np.zeros((*count, *card.target_shape), card.targets)

    def cut(count: int) -> Blocks:
        pieces, size = block_shape(count, multiple=placement.block_multiple)
        return Blocks(*examples(pieces, size), np.ones((pieces, size), np.float32))

    count = card.examples if pool else 0
    data = DeviceData(Examples(*examples(count)), cut(card.validation_examples), cut(card.test_examples))
    return jax.device_put(data, placement.replicated)


def _path(bucket: Bucket, card: DataCard, group_size: int) -> Path:
    content = [
        bucket.program.identity,
        program_digest(bucket.program.architecture, bucket.program.recipe),
        current(),
        bucket.lanes,
        repr(replace(card, fingerprint="")),
        device_kind(),
        len(jax.local_devices()),
        dict(versions()),
        *([group_size, asdict(bucket.spread)] if group_size > 1 else ()),
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return cache_directory("calibrations") / f"{digest}.json"
