"""The plan of a sweep: its trials, programs and costs, before anything is trained."""

import fnmatch
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np

from scalejax.classical.families import FAMILIES as OLDER_FAMILIES
from scalejax.classical.trial import OlderTrial
from scalejax.data import DataCard, describe
from scalejax.models import FAMILIES
from scalejax.planning import limits
from scalejax.planning.arrangement import arrange, spread_words
from scalejax.planning.device_specs import LOCAL, DeviceSpec, local_spec
from scalejax.planning.older import expand_older
from scalejax.planning.packing import Bucket, Capacity, Packing, Verdict, pack, skeletons, waste
from scalejax.planning.proof.prove import prove
from scalejax.planning.trial import Counted, Trial, expand, expand_counted, family_name
from scalejax.rules import SpecError, nearest, shown
from scalejax.spec import Sweep, check_models
from scalejax.spec.sweep import PROBED, PROVEN
from scalejax.train.cost import SPEEDS, data_bytes, lane_bytes
from scalejax.train.recipe import LaneProgram
from scalejax.train.task import Task, task_of
from scalejax.train.tracing import garbage_collection_paused

STATE_SHARE = 0.25  # of a device's memory may be taken by the lanes of one program; activations need the rest
STEP_SHARE = 0.25  # of it by the largest array of a step of all lanes
STREAM_BYTES = 2**26  # of the batches of one call on each device, where they come from the host

# Trains a size in a larger one's program, and says what padding changes; empty if nothing was found.
Probe = Callable[[LaneProgram, LaneProgram], str]


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        sweep: the question.
        card: its data set.
        counted: its trials in the order of the sweep file.
        older: those of the classical baselines, which run on host cores: neither packed nor counted below.
        packing: the buckets, and why some sizes are apart.
        devices: number of devices planned for.
        useful_flops, padding_flops, idle_flops: of all trials, of zeros, of lanes without a trial; all of them with
            the steps that trials are expected to take.
        state_bytes: of the largest program's lanes on one device.
        data_bytes: of the data set on each device.
        stream_bytes: of the batches of one call for each device, where the training pool stays on the host; else 0.
        group_size: accelerators that work on a bucket together; the cores of a CPU always do.
    """

    sweep: Sweep
    card: DataCard
    counted: tuple[Counted, ...]
    older: tuple[OlderTrial, ...]
    packing: Packing
    devices: int
    useful_flops: int
    padding_flops: int
    idle_flops: int
    state_bytes: int
    data_bytes: int
    stream_bytes: int = 0
    group_size: int = 1

    @functools.cached_property
    def trials(self) -> tuple[Trial, ...]:
        """Its trials, in the order of the sweep file."""
        return tuple(counted.trial for counted in self.counted)

    @property
    def task(self) -> Task:
        """What its models are trained to do."""
        return task_of(self.sweep.task, self.card, metric=self.sweep.metric)

    @property
    def count(self) -> int:
        """Number of trials, those of the classical baselines included."""
        return sum(counted.copies for counted in self.counted) + len(self.older)

    @property
    def waste(self) -> float:
        """Share of all FLOPs that is spent on padding and on idle lanes."""
        extra = self.padding_flops + self.idle_flops
        return extra / max(1, self.useful_flops + extra)


def check_sweep(sweep: Sweep, *, spec: DeviceSpec | None = None) -> None:
    """Hold a sweep against the families and the data sources that there are, and against what a machine can do.

    Args:
        sweep: the question.
        spec: of devices that are not here, as for `make_plan`.

    Raises:
        SweepError: it asks for what they do not have, for absurdly much, or two builders go by one name.
    """
    check_models(sweep, FAMILIES)
    card = describe(sweep.data)
    limits.check_counts(sweep, card, counted=spec is not None)
    limits.check_data(card, spec, asked=sweep.data.stream)
    names: dict[str, object] = {**FAMILIES, **OLDER_FAMILIES}
    for index, grid in enumerate(sweep.models):
        name = family_name(grid)
        if not isinstance(grid.family, str) and names.setdefault(name, grid.family) is not grid.family:
            why = f"another family is called {name} too, and their rows could not be told apart; rename the builder"
            raise SpecError(why, table="models", keys=("family",), index=index)


def make_plan(
    sweep: Sweep, *, devices: int | None = None, spec: DeviceSpec | None = None, probe: Probe | None = None
) -> Plan:
    """Expand a sweep into trials and pack them.

    Args:
        sweep: the question.
        devices: how many to plan for; default: those of this machine, and of all hosts where there are several.
        spec: of devices that are not here. Such a plan is for simulation: it counts trials and does not spell them out.
        probe: tries sizes for which there is no proof, if the sweep asks for that; without one they are not packed.

    Raises:
        SweepError: the sweep asks for what its data or its families do not have, or for halving that halves nothing.
    """
    check_sweep(sweep, spec=spec)
    with garbage_collection_paused():
        return _planned(sweep, devices=devices, spec=spec, probe=probe)


def _planned(sweep: Sweep, *, devices: int | None, spec: DeviceSpec | None, probe: Probe | None) -> Plan:
    card, train = describe(sweep.data), sweep.train
    trials = expand_counted(sweep, card) if spec else expand(sweep, card)
    older = tuple(expand_older(sweep, card))
    if trials and train.halving and not any(counted.trial.rungs for counted in trials):
        why = "no rung comes before the end of any trial; expected smaller rungs, or a smaller train.evaluate_every"
        raise SpecError(why, table="train", keys=("halving",))
    sizes = {counted.trial.architecture: None for counted in trials}
    parameters = dict.fromkeys(name for size in sizes for name in size.parameter_names) if train.weight_decay_on else ()
    for pattern in train.weight_decay_on or ():
        if not fnmatch.filter(parameters, pattern):
            why = f"{shown(pattern)} is the name of no parameter; {nearest(pattern, parameters)}"
            raise SpecError(why, table="train", keys=("weight_decay_on",))
    if (spec or local_spec()).platform == "cpu":
        limits.check_models(trials, card, spec)  # elsewhere a model may be spread over several devices

    one_group = devices is None and spec is None and jax.process_count() > 1  # hosts train in lockstep
    devices, spec = devices or len(jax.devices()), spec or local_spec()
    capacity = Capacity(
        devices=devices,
        state_bytes=STATE_SHARE * spec.memory,
        step_bytes=STEP_SHARE * spec.memory,
        speed=SPEEDS[spec.platform],  # as a run there would: its packing depends on no finer figures
    )
    judge = functools.partial(_judge, probe if sweep.packing == PROBED else None)
    streamed = limits.streams(card, spec if spec.name != LOCAL else None, asked=sweep.data.stream)
    data = data_bytes(card, sum(card.sizes.values()) - (card.examples if streamed else 0))
    beside = replace(spec, memory=max(0.0, spec.memory - data))  # each device holds the data too
    packed = pack(trials, capacity=capacity, judge=judge)
    packing, group_size = arrange(packed, devices=devices, spec=beside, capacity=capacity, one_group=one_group)
    if streamed:
        packing = replace(packing, buckets=tuple(_streamed(bucket, card) for bucket in packing.buckets))
    packing = replace(packing, notes=(*packing.notes, *spread_words(packing.buckets)))
    together = devices if spec.platform == "cpu" else group_size
    useful, padding, idle = waste(packing.buckets, devices=together)
    return Plan(
        sweep=sweep,
        card=card,
        counted=tuple(trials),
        older=older,
        packing=packing,
        devices=devices,
        useful_flops=useful,
        padding_flops=padding,
        idle_flops=idle,
        state_bytes=max((_state_bytes(bucket) for bucket in packing.buckets), default=0),
        data_bytes=data,
        stream_bytes=max((_call_bytes(bucket, card) for bucket in packing.buckets), default=0) if streamed else 0,
        group_size=group_size,
    )


def _streamed(bucket: Bucket, card: DataCard) -> Bucket:
    """Return a bucket whose calls are given their batches, in calls as long as these fit into STREAM_BYTES."""
    fitting = STREAM_BYTES // (bucket.lanes * _batch_bytes(bucket, card))
    longest = max(counted.trial.evaluate_every for counted in bucket.counted)  # no call goes beyond an evaluation
    steps = int(np.clip(fitting, 1, min(bucket.call_steps, longest)))
    return replace(bucket, program=replace(bucket.program, stream_steps=steps), call_steps=steps)


def _state_bytes(bucket: Bucket) -> int:
    return bucket.lanes * lane_bytes(bucket.program) // bucket.spread.parameters


def _batch_bytes(bucket: Bucket, card: DataCard) -> int:
    return data_bytes(card, bucket.program.recipe.batch_size)


def _call_bytes(bucket: Bucket, card: DataCard) -> int:
    return bucket.lanes * bucket.call_steps * _batch_bytes(bucket, card)


def _judge(probe: Probe | None, small: LaneProgram, large: LaneProgram) -> Verdict:
    """Say whether a size may run in the program of a larger one: if that is proven or, by request, not refuted."""
    proof = prove(small, large)
    if proof.proven:
        return Verdict(PROVEN)
    alike = len({skeletons(program.architecture, program.recipe) for program in (small, large)}) == 1
    if probe is None or not alike:  # what is known to compute something else is not tried
        return Verdict("", proof.reason)
    refuted = probe(small, large)
    return Verdict("", f"{proof.reason}, and {refuted}") if refuted else Verdict(PROBED)
