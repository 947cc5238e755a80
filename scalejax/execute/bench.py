"""The speed of the engine on this machine: useful FLOP/s against the matrix-multiply peak and against a plain loop."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.data import DataCard
from scalejax.execute.devices import groups
from scalejax.execute.modes import MODES, in_mode
from scalejax.execute.peak import remember_peak
from scalejax.execute.timing import ready_pack, sample_data, sample_state
from scalejax.models import FAMILIES, architecture
from scalejax.models.precision import multiplied
from scalejax.planning.device_specs import local_spec
from scalejax.planning.packing import PROVEN, Bucket, Capacity, Verdict, pack
from scalejax.planning.placement import Device, Placement
from scalejax.planning.trial import Counted, Trial
from scalejax.train.cost import step_flops
from scalejax.train.recipe import Recipe, Settings
from scalejax.train.step import Cursor, Examples, TrialState, train

CARD = DataCard("bench", (40,), 10, 20_000, 1_000, 1_000, "")  # the shapes of mnist1d
DEPTH, TRIALS = 2, 256
PEAK_SIZE = 3072  # of the matrices that measure the peak
SECONDS = 0.4  # of each measurement


@dataclass(frozen=True)
class Speed:
    """One width's useful FLOP/s, padding not counted: in lanes by mode, and in a plain compiled loop of one trial."""

    width: int
    lanes: int
    modes: dict[str, float]
    loop: float


@dataclass(frozen=True)
class Bench:
    """The speeds of all widths and the peak of a float32 matrix product, in FLOP/s, all devices together."""

    batch_size: int
    devices: int
    peak: float
    speeds: tuple[Speed, ...]


def bench(widths: Sequence[int], *, batch_size: int, repetitions: int, progress: Callable[[str], None]) -> Bench:
    """Measure MLPs of two hidden layers, AdamW, on inputs of 40 numbers.

    Contestants take turns within each repetition, and medians are returned: machines drift.

    Args:
        widths: of the hidden layers.
        batch_size: of every model.
        repetitions: measurements of each contestant.
        progress: is called with a line before each width.
    """
    devices = groups(jax.local_devices())[0]
    peaks, speeds = [], []
    for width in widths:
        progress(f"width {width}: compiling and measuring")
        bucket = _bucket(width, batch_size)
        flops = step_flops(bucket.program.architecture, bucket.program.recipe)
        with ThreadPoolExecutor(len(devices)) as threads:
            runs = {"peak": _peak_run(devices, threads), "loop": _loop_run(bucket)}
            runs |= {
                mode: _lanes_run(in_mode(bucket, mode, evaluation_bytes=local_spec().evaluation_bytes))
                for mode in MODES
            }
            amounts = {name: _amount(run) for name, run in runs.items()}
            rates = {name: [] for name in runs}
            for _ in range(repetitions):
                for name, run in runs.items():
                    rates[name].append(amounts[name] / _seconds(run, amounts[name]))
        typical = {name: float(np.median(values)) for name, values in rates.items()}
        peaks.append(typical["peak"] * 2 * PEAK_SIZE**3)
        placement = Placement(devices, bucket.lanes)
        step = flops * placement.lanes
        modes = {mode: typical[mode] * step for mode in MODES}
        speeds.append(Speed(width, bucket.lanes, modes, typical["loop"] * flops))
    peak = float(np.median(peaks))
    remember_peak(peak / len(devices))
    return Bench(batch_size, len(devices), peak, tuple(speeds))


def _bucket(width: int, batch_size: int) -> Bucket:
    """Return the bucket that a sweep of this one width would run in."""
    knobs = {"width": width, "depth": DEPTH}
    trial = Trial(
        architecture=architecture(FAMILIES["mlp"], knobs, shape=CARD.shape, outputs=10),
        family="mlp",
        knobs=tuple(sorted(knobs.items())),
        builder=None,
        data="",
        recipe=Recipe(optimizer="adamw", schedule="constant", clip_norm=None, batch_size=batch_size),
        settings=Settings(1e-6, 0.0, 1000, 0, CARD.examples, 0, 0),
        seed=0,
        evaluate_every=1000,
        patience=None,
    )
    trials = [Counted(replace(trial, seed=seed)) for seed in range(TRIALS)]
    devices = len(groups(jax.local_devices())[0])
    capacity = Capacity(devices=devices, state_bytes=4e9, speed=local_spec().speed)
    return pack(trials, capacity=capacity, judge=lambda *_: Verdict(PROVEN)).buckets[0]


Run = Callable[[int], None]  # do so many steps, or matrix products, and wait for them


def _lanes_run(bucket: Bucket) -> Run:
    pack = ready_pack(bucket, CARD)

    def run(steps: int) -> None:
        pack.call(steps, due=[], ending=[])

    return run


def _loop_run(bucket: Bucket) -> Run:
    """Return the plain loop: one trial, its whole training one compiled program, on all threads of one device."""
    lane_program, alone = bucket.program, Placement((jax.local_devices()[0],), 1)
    pool = sample_data(CARD, alone).pool
    cursor = Cursor(np.uint32(0), np.uint32(0))

    def trained(state: TrialState, pool: Examples, steps: jax.Array) -> TrialState:
        with multiplied(lane_program.architecture.numbers.multiplies):
            return train(lane_program, state, cursor, pool=pool, steps=steps)

    program = jax.jit(trained, donate_argnums=0)
    state = [jax.device_put(sample_state(bucket, CARD)[0], alone.replicated)]

    def run(steps: int) -> None:
        state[0] = jax.block_until_ready(program(state[0], pool, np.int32(steps)))

    return run


def _peak_run(devices: Sequence[Device], threads: ThreadPoolExecutor) -> Run:
    """Return matrix products, an equal share of them on every device."""
    matrices = [jnp.full((PEAK_SIZE, PEAK_SIZE), 1 / PEAK_SIZE, device=device) for device in devices]
    product = jax.jit(lambda matrix: jnp.matmul(matrix, matrix, precision="highest"))  # float32, as in the lanes

    def work(matrix: jax.Array, times: int) -> None:
        for _ in range(times):
            product(matrix).block_until_ready()

    def run(times: int) -> None:
        list(threads.map(lambda matrix: work(matrix, -(-times // len(devices))), matrices))

    return run


def _seconds(run: Run, amount: int) -> float:
    began = time.perf_counter()
    run(amount)
    return time.perf_counter() - began


def _amount(run: Run) -> int:
    """Return how much of it takes about SECONDS, after having compiled it; even, so that two devices share it."""
    run(2)
    amount = 2
    while (seconds := _seconds(run, amount)) < SECONDS / 4:
        amount *= 2
    return 2 * max(1, round(amount * SECONDS / seconds / 2))
