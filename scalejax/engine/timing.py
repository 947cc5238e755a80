"""Programs timed on this machine, and what is remembered of them per kind of device."""

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.cache import cache_directory
from scalejax.data import DataCard
from scalejax.engine.device import Device, device_kind, versions
from scalejax.engine.lanes import DeviceData, abstract_lane, block_shape
from scalejax.engine.pack import Pack, settings_of
from scalejax.engine.packing import Bucket
from scalejax.engine.step import Blocks, Examples, TrialState
from scalejax.engine.trial import PlannedTrial

GUESSED_STEPS = 8  # timed first, to know how many to time
TIMED_SECONDS = 0.25  # of steps in each repetition
REPETITIONS = 3
BUSY_SIZE = 512  # of the matrices that the other devices multiply meanwhile


@dataclass(frozen=True)
class Timing:
    """Seconds that a bucket's program takes on one device: a step of all lanes, an evaluation and a test of one."""

    step: float
    evaluation: float
    test: float


def remembered(bucket: Bucket, card: DataCard) -> Timing | None:
    """Return what an earlier process on this machine measured of a bucket's program, or None."""
    try:
        return Timing(**json.loads(_path(bucket, card).read_text()))
    except (OSError, ValueError, TypeError):
        return None  # never timed, or damaged: it is timed again


def timed(bucket: Bucket, card: DataCard) -> Timing:
    """Time a bucket's program here and now, and remember it."""
    timing = _time(bucket, card)
    path = _path(bucket, card)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(timing)))
    partial.replace(path)
    return timing


def _time(bucket: Bucket, card: DataCard) -> Timing:
    """Run a bucket's own program on numbers of the right shapes; what it compiles, the run will find again.

    It is timed on one device, because every further one would have to compile it too; the others are kept busy, since
    the devices of a CPU share its caches, its memory and its threads.
    """
    device, *others = jax.local_devices()
    pack = ready_pack(bucket, device, card)

    def seconds(steps: int, *, due: list[int], ending: list[int]) -> float:
        began = time.perf_counter()
        pack.call(steps, due=due, ending=ending)
        return time.perf_counter() - began

    with _busy(others):
        guess = seconds(GUESSED_STEPS, due=[], ending=[]) / GUESSED_STEPS
        steps = int(np.clip(TIMED_SECONDS / guess, GUESSED_STEPS, bucket.call_steps))
        return Timing(
            step=float(np.median([seconds(steps, due=[], ending=[]) for _ in range(REPETITIONS)])) / steps,
            evaluation=seconds(0, due=[0], ending=[]),
            test=seconds(0, due=[], ending=[0]),
        )


@contextlib.contextmanager
def _busy(devices: Sequence[Device]) -> Iterator[None]:
    """Let devices multiply matrices until the block is left."""
    done = threading.Event()

    def work(device: Device) -> None:
        matrix = jnp.full((BUSY_SIZE, BUSY_SIZE), 1 / BUSY_SIZE, device=device)
        while not done.is_set():
            jax.block_until_ready(matrix @ matrix)

    with ThreadPoolExecutor(max(1, len(devices))) as threads:
        working = [threads.submit(work, device) for device in devices]
        try:
            yield
        finally:
            done.set()
            for each in working:
                each.result()


def ready_pack(bucket: Bucket, device: Device, card: DataCard) -> Pack:
    """Return a pack with a full set of lanes that has run once."""
    state, planned = sample_state(bucket, card)
    pack = Pack(bucket, device=device, data=sample_data(card, device))
    pack.adopt(jax.tree.map(lambda leaf: np.stack([leaf] * bucket.lanes), state), planned)
    pack.call(1, due=[], ending=[])
    return pack


def sample_state(bucket: Bucket, card: DataCard) -> tuple[TrialState, PlannedTrial]:
    """Return the state of one lane, on the host, and its trial.

    Made up, so that nothing but the program itself is compiled: small random parameters and a rate so low that no
    number overflows or vanishes while it is timed.
    """
    trial = replace(bucket.trials[0].trial, learning_rate=1e-6, train_examples=card.examples)
    planned = replace(bucket.trials[0], trial=trial)
    lane = abstract_lane(bucket.recipe)
    generator = np.random.default_rng(0)

    def sample(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return generator.normal(0, 0.05, leaf.shape).astype(leaf.dtype)

    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), lane)
    params = jax.tree.map(sample, lane.learner.params)
    learner = replace(state.learner, params=params)
    return replace(state, settings=settings_of(planned), learner=learner), planned


def sample_data(card: DataCard, device: Device) -> DeviceData:
    """Return a data set of the card's shapes on a device, made there."""

    def examples(*count: int) -> tuple[jax.Array, jax.Array]:
        inputs = jnp.full((*count, *card.shape), 0.5, jnp.float32, device=device)
        return inputs, jnp.zeros(count, jnp.int32, device=device)

    def cut(count: int) -> Blocks:
        pieces, size = block_shape(count)
        return Blocks(*examples(pieces, size), jnp.ones((pieces, size), jnp.float32, device=device))

    return DeviceData(Examples(*examples(card.examples)), cut(card.validation_examples), cut(card.test_examples))


def _path(bucket: Bucket, card: DataCard) -> Path:
    content = [
        bucket.recipe.identity,
        bucket.lanes,
        repr(replace(card, fingerprint="")),
        device_kind(),
        len(jax.local_devices()),
        dict(versions()),
    ]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return cache_directory("calibrations") / f"{digest}.json"
