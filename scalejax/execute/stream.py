"""Batches from the host: for a data set that does not fit on the devices, or is read from disk as it is needed.

The rows are those that a device would draw itself (`data.host_shuffle`), and the numbers the same. While the devices
run one call the batches of the next are gathered.
"""

from collections.abc import Callable, Sequence

import numpy as np

from scalejax.data import DataCard, Split
from scalejax.data.host_shuffle import batch_rows
from scalejax.execute.slot import Slot
from scalejax.train.recipe import LaneProgram
from scalejax.train.step import Examples

# From the lanes' trials and a number of steps to their batches, [lanes, most steps of a call, batch, ...].
Stream = Callable[[Sequence[Slot | None], int], Examples]


def streamed(train: Split, program: LaneProgram) -> Stream:
    """Return the batches of a program's lanes, read from the training pool; beyond the steps asked for, anything.

    Trials that differ in learning rate or size alone see the same examples, which are read once.
    """
    batch, pool = program.recipe.batch_size, len(train.targets)

    def gathered(slots: Sequence[Slot | None], steps: int) -> Examples:
        def room(array: np.ndarray) -> np.ndarray:
            return np.empty((len(slots), program.stream_steps, batch, *array.shape[1:]), array.dtype)

        found = Examples(room(train.inputs), room(train.targets))
        seen: dict[tuple[int, ...], int] = {}  # what a trial sees -> the first lane that sees it
        for lane, slot in enumerate(slots):
            if slot is None or not steps:
                continue
            settings = slot.trial.settings
            own = slot.step, settings.train_examples, settings.subset_key, settings.shuffle_key
            first = seen.setdefault(own, lane)
            if first != lane:
                found.inputs[lane, :steps], found.targets[lane, :steps] = (
                    part[first, :steps] for part in (found.inputs, found.targets)
                )
                continue
            rows = batch_rows(
                slot.step * batch,
                steps * batch,
                train_examples=settings.train_examples,
                pool=pool,
                subset_key=settings.subset_key,
                shuffle_key=settings.shuffle_key,
            ).reshape(steps, batch)
            found.inputs[lane, :steps], found.targets[lane, :steps] = train.inputs[rows], train.targets[rows]
        return found

    return gathered


def sample_stream(card: DataCard, program: LaneProgram) -> Stream:
    """Return batches of the right shapes, for a program that is only timed."""

    def made(slots: Sequence[Slot | None], steps: int) -> Examples:
        count = len(slots), program.stream_steps, program.recipe.batch_size
        inputs = np.full((*count, *card.shape), steps > 0, card.inputs)
        return Examples(inputs, np.zeros((*count, *card.target_shape), card.targets))

    return made
