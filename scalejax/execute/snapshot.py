"""The trials of a pack at one moment, and how they become plain arrays for a file and trials again.

A file knows nothing of lanes or devices: each array has one row a trial, and a manifest names the trials. So a trial
can continue in any lane, on any number of devices, and in a program that pads it to other shapes.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.execute import hosts
from scalejax.execute.slot import Evaluation, Paused, Slot
from scalejax.planning.trial import Trial
from scalejax.train.lanes import abstract_lane
from scalejax.train.recipe import LaneProgram, Leaf
from scalejax.train.step import TrialState

FORMAT = 1  # of manifest and arrays; another one is not read
NAMES_BEFORE: dict[str, str] = {"validation_error": "validation_metric"}  # as versions up to 0.2 wrote them

Arrays = dict[str, np.ndarray]
Manifest = dict[str, Any]
Homes = Mapping[str, tuple[Trial, LaneProgram]]  # by trial id: the trial, and the program in which it is to continue


@dataclass(frozen=True)
class Snapshot:
    """The trials of a pack at one moment.

    Attributes:
        lanes: their states [lanes, ...], which nothing changes any more; None if there are no slots. They may still
            be on the devices: it is the thread that writes a checkpoint that reads them.
        slots: by lane, those that have a trial.
        paused: trials of the same program that have begun and are in no lane.
    """

    lanes: TrialState | None
    slots: Mapping[int, Slot]
    paused: Sequence[Paused] = ()

    @property
    def steps(self) -> dict[str, int]:
        """The step of each trial in it, by id."""
        slots = (*self.slots.values(), *(each.slot for each in self.paused))
        return {slot.trial.trial_id: slot.step for slot in slots}

    def of_this_host(self) -> "Snapshot":
        """Return what this host writes: the lanes on its devices, and of several hosts the first one all others."""
        if hosts.is_single():
            return self
        if self.lanes is None:
            return self if hosts.is_primary() else Snapshot(None, {})
        here = hosts.addressable_rows(jax.tree.leaves(self.lanes)[0])
        slots = {number: slot for number, slot in self.slots.items() if number in here}
        return Snapshot(self.lanes if slots else None, slots, self.paused if hosts.is_primary() else ())


class UnreadableError(Exception):
    """What was read is not what was written, or was written by another version."""


def pack_up(snapshot: Snapshot) -> tuple[Arrays, Manifest]:
    """Bring a snapshot to the host: arrays by name, [trials, ...] each, and a manifest that JSON can hold.

    There has to be a trial in it.
    """
    rows = sorted(snapshot.slots)
    slots = [*(snapshot.slots[number] for number in rows), *(each.slot for each in snapshot.paused)]
    states = [each.state for each in snapshot.paused]
    in_lanes = [] if snapshot.lanes is None else [jax.tree.map(lambda leaf: _rows(leaf, rows), snapshot.lanes)]
    parts = [*in_lanes, *(jax.tree.map(lambda leaf: bits(leaf)[None], state) for state in states)]
    leaves = zip(*map(jax.tree.leaves, parts), strict=True)
    arrays = {f"{number:04}": np.concatenate(leaf) for number, leaf in enumerate(leaves)}
    manifest: Manifest = {
        "format": FORMAT,
        "leaves": _paths(states[0] if snapshot.lanes is None else snapshot.lanes),
        "trials": [
            {
                "trial_id": slot.trial.trial_id,
                "step": slot.step,
                "seconds": slot.seconds,
                "stale": slot.stale,
                "evaluations": [asdict(each) for each in slot.evaluations],
            }
            for slot in slots
        ],
    }
    return arrays, manifest


def unpack(arrays: Arrays, manifest: Manifest, *, homes: Homes) -> list[Paused]:
    """Return those trials of a file that have a home, each padded to the shapes of the program there.

    Raises:
        UnreadableError: another version wrote it.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UnreadableError("it is of another format")
    trials = []
    for row, entry in enumerate(manifest["trials"]):
        if entry["trial_id"] in homes:
            trial, program = homes[entry["trial_id"]]
            own, like = _abstract(replace(program, architecture=trial.architecture)), _abstract(program)
            if manifest["leaves"] != _paths(own):
                raise UnreadableError("another version of scalejax, Flax or Optax wrote it")
            rows = [array[row] for _, array in sorted(arrays.items())]
            trials.append(Paused(_slot(trial, entry), _padded(rows, own, like=like)))
    return trials


def _rows(leaf: Leaf, rows: Sequence[int]) -> np.ndarray:
    """Return rows of an array on the host, which are on devices of this one."""
    if hosts.is_addressable(leaf):
        return bits(leaf)[rows]
    here = hosts.addressable_rows(leaf)
    parts = {id(part): bits(part) for part, _ in here.values()}
    return np.stack([parts[id(here[row][0])][here[row][1]] for row in rows])


def bits(leaf: Leaf) -> np.ndarray:
    """Return an array on the host; of random keys their bits, with one more axis."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def keyed(data: np.ndarray, like: Leaf) -> Leaf:
    """Return an array as it is, or as random keys where `like` is of keys; undoes `bits`."""
    if not _is_key(like):
        return data
    kind = jax.random.key_impl(jnp.zeros(0, like.dtype))
    return jax.random.wrap_key_data(jnp.asarray(data), impl=kind)


def _is_key(leaf: Leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.cache
def _abstract(program: LaneProgram) -> TrialState:
    return abstract_lane(program)


def _paths(state: TrialState) -> list[str]:
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


def _slot(trial: Trial, entry: Mapping[str, Any]) -> Slot:
    renamed: list[dict[Any, Any]] = [
        {NAMES_BEFORE.get(name, name): value for name, value in each.items()} for each in entry["evaluations"]
    ]
    evaluations = [Evaluation(**each) for each in renamed]
    return Slot(trial, entry["step"], entry["seconds"], entry["stale"], evaluations)


def _padded(rows: Sequence[np.ndarray], own: TrialState, *, like: TrialState) -> TrialState:
    """Cut a trial's arrays to its own shapes, and append zeros to the shapes of another program.

    What is cut off is zero, as padding always is.

    Raises:
        UnreadableError: an array is smaller than the trial's own.
    """

    def one(row: np.ndarray, mine: jax.ShapeDtypeStruct, target: jax.ShapeDtypeStruct) -> Leaf:
        corner = tuple(slice(size) for size in mine.shape)
        further = row.shape[len(mine.shape) :]  # the bits of a random key
        if len(row.shape) < len(mine.shape) or row[corner].shape != (*mine.shape, *further):
            raise UnreadableError(f"an array of shape {row.shape} does not hold one of {mine.shape}")
        padded = np.zeros((*target.shape, *further), row.dtype)
        padded[corner] = row[corner]
        return keyed(padded, target)

    leaves, tree = jax.tree.flatten(like)
    triples = zip(rows, jax.tree.leaves(own), leaves, strict=True)
    return jax.tree.unflatten(tree, [one(*triple) for triple in triples])
