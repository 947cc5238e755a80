"""Lane programs on a small scale, for the tests of the engine."""

import functools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
import pytest

from scalejax.data import DataCard, DataSet
from scalejax.execute.pack import Pack
from scalejax.execute.programs import Programs, compiled_programs
from scalejax.execute.slot import Finished
from scalejax.models import FAMILIES, Architecture, architecture
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Group, Placement
from scalejax.planning.trial import Counted, Trial, random_bits
from scalejax.train.lanes import DeviceData, blocks
from scalejax.train.padding import initial_weights
from scalejax.train.recipe import LaneProgram, Recipe, Settings
from scalejax.train.step import Examples

INPUTS, CLASSES = 12, 3
EXACT_SOLO = 1e-5  # relative, over at most ten steps; never relaxed
FIRST: Group = (jax.local_devices()[0],)

# What the fixture `compile_quickly` leaves out: options of a compilation, and `XLA_FLAGS` for a process of its own.
OPTIMISED = os.environ.get("SCALEJAX_TEST_OPTIMISED", "") not in ("", "0")
QUICK: dict[str, Any] = {} if OPTIMISED else {"xla_cpu_use_fusion_emitters": False}
UNOPTIMISED = (
    ""
    if OPTIMISED
    else "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)

RECIPE = Recipe(optimizer="adamw", schedule="cosine", clip_norm=None, batch_size=16)
NUMBERS = {"learning_rate": 1e-2, "weight_decay": 1e-2, "steps": 10, "warmup_steps": 2, "train_examples": 100}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def slow(*cases: Any) -> list[Any]:
    """Return cases of a parametrized test that the long form alone runs; a tuple is one case of several parameters."""
    return [pytest.param(*(each if isinstance(each, tuple) else (each,)), marks=pytest.mark.slow) for each in cases]


def planned(family: str = "mlp", knobs: Mapping[str, int] | None = None, **changes) -> Trial:
    """Return a trial; `changes` are fields of `Trial`, of its recipe or of its settings."""
    sizes = dict(knobs if knobs is not None else {"width": 4, "depth": 2} if family == "mlp" else {})
    return trial_of(architecture(FAMILIES[family], sizes, shape=(INPUTS,), outputs=CLASSES), family, sizes, **changes)


def trial_of(built: Architecture, family: str = "own", knobs: Mapping[str, Any] | None = None, **changes) -> Trial:
    """Return a trial of an architecture; `changes` as of `planned`, `numbers` of the optimizer and schedule by name."""
    own = dict(changes.pop("numbers", {}))
    recipe = {each.name: changes.pop(each.name) for each in fields(Recipe) if each.name in changes}
    numbers = NUMBERS | {name: changes.pop(name) for name in NUMBERS if name in changes}
    data, seed = changes.pop("data", "fingerprint"), changes.pop("seed", 0)
    keys = {f"{purpose}_key": random_bits(data, seed, purpose) for purpose in ("subset", "shuffle")}
    return Trial(
        architecture=built,
        family=family,
        knobs=tuple(sorted((knobs or {}).items())),
        builder=changes.pop("builder", None),
        data=data,
        recipe=replace(RECIPE, **recipe, numbers=tuple(own)),
        settings=Settings(**numbers, **keys, numbers=tuple(own.values())),
        seed=seed,
        evaluate_every=changes.pop("evaluate_every", 5),
        patience=changes.pop("patience", None),
        **changes,
    )


def changed(trial: Trial, **changes) -> Trial:
    """Return a trial with other settings."""
    return replace(trial, settings=replace(trial.settings, **changes))


def device_data(data: DataSet, group: Group = FIRST) -> DeviceData:
    """Put a data set on the devices of a group."""
    return jax.device_put(
        DeviceData(
            Examples(data.train.inputs, data.train.targets),
            blocks(data.validation.inputs, data.validation.targets),
            blocks(data.test.inputs, data.test.targets),
        ),
        Placement(group, 1).replicated,
    )


def program(largest: Trial) -> LaneProgram:
    """Return the program in which `largest` and smaller ones run."""
    return largest.program


def pack_of(
    trials: Sequence[Trial | None],
    data: DataSet,
    *,
    largest: Trial | None = None,
    call_steps: int = 50,
    group: Group = FIRST,
    mode: str = "vmap",
    keep_weights: bool = False,
) -> Pack:
    """Return a pack with one lane for each of `trials`, placed in this order; None leaves a lane idle."""
    present = [each for each in trials if each is not None]
    largest = largest or max(present, key=lambda each: each.architecture.parameter_count)
    placement = Placement(group, len(trials) // len(group))
    bucket = Bucket(
        replace(program(largest), mode=mode), tuple(map(Counted, present)), placement.lanes_each, 1.0, 1, call_steps
    )
    programs = ready(bucket.program, placement, data.card)
    pack = Pack(bucket, placement, data=device_data(data, group), programs=programs, keep_weights=keep_weights)
    for number, each in enumerate(trials):
        if each is not None:
            place(pack, number, each)
    pack.fill_idle()
    return pack


@functools.cache
def ready(program: LaneProgram, placement: Placement, card: DataCard) -> "Future[Programs]":
    """Return the programs of a pack, compiled once for all tests that share them."""
    future: Future[Programs] = Future()
    future.set_result(compiled_programs(program, placement, card=card))
    return future


def place(pack: Pack, number: int, each: Trial) -> None:
    """Put a trial into a lane."""
    pack.place([(number, each, initial_weights(each.architecture, each.key("initialise")))])


def go_on(pack: Pack) -> tuple[dict[str, int], list[Finished]]:
    """Launch a call and wait for it; return the steps taken and the trials that have ended."""
    result = pack.land(pack.launch())
    return result.steps, result.ended


def finish(pack: Pack) -> dict[str, Finished]:
    """Run a pack until its lanes are empty."""
    found = {}
    while pack.occupied:
        found |= {one.trial.trial_id: one for one in go_on(pack)[1]}
    return found


def numbers(end: Finished) -> tuple:
    """Return every number that a trial has produced, timings apart."""
    return end.status, end.reason, end.evaluations, end.best_step, end.test_loss, end.test_metric


def params_of(pack: Pack, number: int) -> list[np.ndarray]:
    """Return the parameters in one lane, at the padded size."""
    return [np.array(leaf[number]) for leaf in jax.tree.leaves(pack.lanes.learner.params)]


def summed_losses(pack: Pack, steps: int) -> np.ndarray:
    """Take steps in all lanes, one a call; return the loss of every lane summed up to each of them, [steps, lanes]."""
    losses = []
    for _ in range(steps):
        pack.call(1, due=[], ending=[])
        losses.append(np.asarray(pack.lanes.learner.loss_sum))
        pack.moved(1)
    return np.array(losses)
