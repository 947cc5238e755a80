"""The work that every contestant does, what it is given beforehand, and what it hands back.

`prepare` needs scalejax and writes plain NumPy files; contestants read those and need nothing of scalejax.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, INPUTS, DEPTH = 10, 40, 2
POOL, HELD_OUT = 20_000, 2_000  # training examples; validation and test examples, each
BLOCK_STEPS = 32  # steps whose rows one call of scalejax's stream of batches returns

Layers = list[tuple[np.ndarray, np.ndarray]]  # (kernel [in, out], bias [out]) of every layer


@dataclass(frozen=True)
class Workload:
    """A sweep of networks of two hidden layers on mnist1d: AdamW without decay at a constant rate.

    `bars` are the ratios "time of the peer / time of scalejax" that are to be reached, by contestant.
    """

    name: str
    widths: tuple[int, ...]
    fractions: tuple[float, ...]
    seeds: int
    rates: tuple[float, ...]
    steps: int
    batch_size: int
    bars: dict[str, float]


TENTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
SIXTHS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
RATES = (1e-3, 3e-3, 1e-2)
SMALL_BARS = {"nnx": 20, "scan": 2.5, "torch_vmap": 3, "ray_doc": 20, "ray_reused": 3}
MIXED_BARS = {"nnx": 4, "scan": 1.5, "torch_vmap": 1.5, "ray_doc": 6, "ray_reused": 1.5}
WORKLOADS = {
    each.name: each
    for each in (
        Workload("small", (8, 16, 32, 64), TENTHS, 5, RATES, 1_000, 64, SMALL_BARS),
        Workload("mixed", (16, 32, 64, 128, 256, 512), SIXTHS, 3, (1e-3,), 2_000, 128, MIXED_BARS),
        Workload("single", (128,), (1.0,), 1, (1e-3,), 2_000, 128, {"scan": 0.95}),
        Workload("tiny", (8, 16), (0.1, 1.0), 1, (1e-3, 3e-3), 200, 64, {}),  # checks that everything runs
    )
}


@dataclass(frozen=True)
class PeerTrial:
    """One trial as the peers see it: `group` is its row in the batches, `member` in the initial weights."""

    trial_id: str
    width: int
    train_examples: int
    seed: int
    learning_rate: float
    group: int
    member: int


@dataclass(frozen=True)
class Prepared:
    """All that a peer is given before its clock starts.

    inputs float32 [n, 40], labels int32 [n], rows int32 [groups, steps, batch]: the rows of the pool in each batch.
    """

    inputs: np.ndarray
    labels: np.ndarray
    validation_inputs: np.ndarray
    validation_labels: np.ndarray
    rows: np.ndarray
    weights: dict[int, Layers]  # by width, every array with a leading axis of members
    trials: tuple[PeerTrial, ...]

    def initial(self, trial: PeerTrial) -> Layers:
        """Return a trial's initial weights."""
        return [(kernel[trial.member], bias[trial.member]) for kernel, bias in self.weights[trial.width]]

    def by_width(self, chosen: Sequence[int]) -> dict[int, list[int]]:
        """Return the chosen trials, as positions, by width."""
        groups: dict[int, list[int]] = {}
        for position in chosen:
            groups.setdefault(self.trials[position].width, []).append(position)
        return groups


@dataclass
class Result:
    """What a contestant hands back.

    `seconds` is for all trials of the workload: `fixed` (compilation and start, once) plus `training`, which is scaled
    from the trials that ran to all, width by width. Losses are [trial], NaN where a trial did not run.
    """

    contestant: str
    threads: str
    seconds: float
    training: float
    measured: float
    fixed: float
    ran: int
    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)


class Tally:
    """Collects the seconds and the losses of a contestant's trials."""

    def __init__(self, prepared: Prepared):
        self._trials = prepared.trials
        self.losses = np.full((2, len(prepared.trials)), np.nan)
        self.fixed = 0.0
        self._seconds: dict[int, float] = {}
        self._ran: dict[int, int] = {}

    def add(self, chosen: Sequence[int], seconds: float, losses: Any) -> None:
        """Note trials of one width that took `seconds` together; losses [2, trials]: training, validation."""
        width = self._trials[chosen[0]].width
        self._seconds[width] = self._seconds.get(width, 0.0) + seconds
        self._ran[width] = self._ran.get(width, 0) + len(chosen)
        self.losses[:, list(chosen)] = np.asarray(losses, float).reshape(2, -1)

    def result(self, contestant: str, *, threads: str) -> Result:
        """Return the times scaled to all trials, and the losses."""
        scaled = 0.0
        for width, seconds in self._seconds.items():
            scaled += seconds * sum(trial.width == width for trial in self._trials) / self._ran[width]
        measured = self.fixed + sum(self._seconds.values())
        ran = sum(self._ran.values())
        return Result(
            contestant, threads, self.fixed + scaled, scaled, measured, self.fixed, ran, *self.losses.tolist()
        )


def sweep_of(workload: Workload):
    """Return the workload as a sweep of scalejax: one evaluation, at the end."""
    from scalejax import DataSpec, ModelGrid, Sweep, TrainSpec

    return Sweep(
        name=workload.name,
        seeds=tuple(range(workload.seeds)),
        data=DataSpec(
            source="mnist1d",
            examples=POOL,
            fractions=workload.fractions,
            validation_examples=HELD_OUT,
            test_examples=HELD_OUT,
        ),
        models=(ModelGrid("mlp", width=workload.widths, depth=DEPTH),),
        train=TrainSpec(
            optimizer="adamw",
            learning_rate=workload.rates,
            batch_size=(workload.batch_size,),
            steps=workload.steps,
            schedule="constant",
            evaluate_every=workload.steps,
        ),
    )


def prepare(workload: Workload, folder: Path) -> None:
    """Write data, batches, initial weights and trials of a workload to a folder."""
    from flax import nnx

    from scalejax.data import describe, load
    from scalejax.planning.trial import expand
    from scalejax.train.cost import step_flops
    from scalejax.train.padding import initial_weights

    sweep = sweep_of(workload)
    card, data = describe(sweep.data), load(sweep.data)
    planned = [counted.trial for counted in expand(sweep, card)]
    groups: dict[tuple[int, int], Any] = {}  # (seed, examples) -> a trial: all such trials see the same batches
    sizes: dict[int, Any] = {}
    for each in planned:
        groups.setdefault((each.seed, each.settings.train_examples), each)
        sizes.setdefault(dict(each.knobs)["width"], each.architecture)
    members = {each.seed: each.key("initialise") for each in planned}
    arrays = {}
    for width, architecture in sizes.items():
        drawn = [nnx.to_pure_dict(initial_weights(architecture, key)[0]) for key in members.values()]
        for number in range(DEPTH + 1):
            layers = [one["hidden"][number] if number < DEPTH else one["output"] for one in drawn]
            for name in ("kernel", "bias"):
                arrays[f"{width} {number} {name}"] = np.stack([layer[name] for layer in layers])
    trials = [
        PeerTrial(
            trial_id=each.trial_id,
            width=dict(each.knobs)["width"],
            train_examples=each.settings.train_examples,
            seed=each.seed,
            learning_rate=each.settings.learning_rate,
            group=list(groups).index((each.seed, each.settings.train_examples)),
            member=list(members).index(each.seed),
        )
        for each in planned
    ]
    np.save(folder / "rows.npy", np.stack([_rows(each, pool=card.examples) for each in groups.values()]))
    np.savez(folder / "weights.npz", **arrays)
    train, held = data.train, data.validation
    np.savez(folder / "data.npz", x=train.inputs, y=train.targets, vx=held.inputs, vy=held.targets)
    flops = sum(step_flops(each.architecture, each.recipe) * workload.steps for each in planned)
    (folder / "trials.json").write_text(json.dumps({"trials": [asdict(each) for each in trials], "flops": flops}))


def _rows(trial: Any, *, pool: int) -> np.ndarray:
    """Return the rows of all batches of a trial, int32 [steps, batch], exactly as scalejax draws them."""
    import functools

    import jax
    import jax.numpy as jnp

    from scalejax.train.step import Cursor, batch_indices

    draw = jax.jit(functools.partial(batch_indices, trial.recipe, pool=pool))
    cursor, settings = Cursor(np.uint32(0), np.uint32(0)), trial.settings.scalars()
    blocks = [draw(settings, cursor, first=jnp.int32(first)) for first in range(0, trial.settings.steps, BLOCK_STEPS)]
    return np.concatenate(jax.device_get(blocks))[: trial.settings.steps]


def read(folder: Path) -> Prepared:
    """Read what `prepare` has written."""
    data, arrays = np.load(folder / "data.npz"), np.load(folder / "weights.npz")
    trials = tuple(PeerTrial(**each) for each in json.loads((folder / "trials.json").read_text())["trials"])
    return Prepared(
        inputs=data["x"].reshape(-1, INPUTS),
        labels=data["y"],
        validation_inputs=data["vx"].reshape(-1, INPUTS),
        validation_labels=data["vy"],
        rows=np.load(folder / "rows.npy"),
        weights={
            width: [(arrays[f"{width} {n} kernel"], arrays[f"{width} {n} bias"]) for n in range(DEPTH + 1)]
            for width in dict.fromkeys(trial.width for trial in trials)
        },
        trials=trials,
    )


def sample(prepared: Prepared, count: int) -> list[int]:
    """Return positions of `count` trials of every width, spread evenly over its list; 0 is all trials."""
    chosen = []
    for positions in prepared.by_width(range(len(prepared.trials))).values():
        keep = min(count or len(positions), len(positions))
        # The middle of each of `keep` equal parts: a stride of 1 / keep would always meet the same seed or rate.
        chosen += [positions[int((part + 0.5) * len(positions) / keep)] for part in range(keep)]
    return chosen


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Contestant = Callable[[Prepared, Sequence[int]], Result]


def contest(contestants: dict[str, Contestant]) -> None:
    """Run one contestant: CONTESTANT FOLDER SAMPLE OUT on the command line; its result goes to OUT as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=contestants)
    parser.add_argument("folder", type=Path)
    parser.add_argument("sample", type=int)
    parser.add_argument("out", type=Path)
    chosen = parser.parse_args()
    prepared = read(chosen.folder)
    result = contestants[chosen.contestant](prepared, sample(prepared, chosen.sample))
    chosen.out.write_text(json.dumps(asdict(result)))


class Clock:
    """Adds up the seconds spent in its `with` blocks."""

    def __init__(self):
        self.seconds = 0.0

    def __enter__(self) -> "Clock":
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
