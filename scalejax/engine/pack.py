"""A pack: the lanes of one bucket running on one device, and which trial is in which lane."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np
from flax import nnx

from scalejax.engine.device import Device
from scalejax.engine.lanes import DeviceData, Order, Outcome, advance_program, empty, place_program
from scalejax.engine.packing import Bucket
from scalejax.engine.padding import pad
from scalejax.engine.step import Cursor, Settings, TrialState
from scalejax.engine.trial import PlannedTrial


@dataclass(frozen=True)
class Evaluation:
    """One measurement along a trial's training."""

    step: int
    examples_seen: int
    train_loss: float
    validation_loss: float
    validation_error: float


@dataclass(frozen=True)
class Finished:
    """A trial that has ended, and all that is known of it; losses are of its best step.

    `status` is "done", "diverged" or "failed"; `reason` says why in words if it is not "done".
    """

    planned: PlannedTrial
    status: str
    reason: str
    evaluations: tuple[Evaluation, ...]
    best_step: int | None
    test_loss: float | None
    test_error: float | None
    seconds: float  # the lane's share of the program's time
    mode: str

    @property
    def best(self) -> Evaluation | None:
        """The evaluation at the best step."""
        return next((each for each in self.evaluations if each.step == self.best_step), None)


@dataclass
class Slot:
    """A trial in a lane."""

    planned: PlannedTrial
    step: int = 0
    seconds: float = 0.0
    stale: int = 0  # evaluations since the best
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def next_stop(self) -> int:
        """The step of the next evaluation, at the latest the horizon."""
        trial = self.planned.trial
        return min((self.step // trial.evaluate_every + 1) * trial.evaluate_every, trial.steps)


class Pack:
    """The lanes of one bucket on one device, and which trial is in which."""

    def __init__(self, bucket: Bucket, *, device: Device, data: DeviceData):
        self.bucket = bucket
        self._device = device
        self._data = data
        self._slots: list[Slot | None] = [None] * bucket.lanes
        self._blank = set(range(bucket.lanes))  # lanes that were never written
        self._example: tuple | None = None  # what an idle lane is filled with
        self.lanes = jax.device_put(empty(bucket.recipe, bucket.lanes), device)

    @property
    def free(self) -> list[int]:
        """Lanes without a trial."""
        return [number for number, slot in enumerate(self._slots) if slot is None]

    @property
    def occupied(self) -> list[tuple[int, Slot]]:
        """Lanes with their trials."""
        return [(number, slot) for number, slot in enumerate(self._slots) if slot is not None]

    def place(self, number: int, planned: PlannedTrial, weights: tuple[nnx.State, nnx.State]) -> None:
        """Write a trial into a lane."""
        self._write(number, planned, weights)
        self._example = (planned, weights)
        self._slots[number] = Slot(planned)

    def adopt(self, lanes: TrialState, planned: PlannedTrial) -> None:
        """Take over a ready state of all lanes, each with a trial like `planned` at its start."""
        self.lanes = jax.device_put(lanes, self._device)
        self._slots = [Slot(planned) for _ in self._slots]

    def fill_idle(self) -> None:
        """Give lanes that never had a trial something harmless to compute: the zeros there are no valid settings."""
        if self._example is not None:
            for number in list(self._blank):
                self._write(number, *self._example)

    def advance(self) -> tuple[dict[PlannedTrial, int], list[Finished]]:
        """Go on to the next step at which any lane has an evaluation, or as far as one call goes.

        Returns:
            The steps taken by each trial, and the trials that have ended, whose lanes are now free.
        """
        occupied = self.occupied
        count = min(self.bucket.call_steps, *(slot.next_stop - slot.step for _, slot in occupied))
        due = [number for number, slot in occupied if slot.step + count == slot.next_stop]
        ending = [number for number, slot in occupied if slot.step + count == slot.planned.trial.steps]
        began = time.perf_counter()
        outcome = self.call(count, due=due, ending=ending)
        for number, slot in occupied:
            slot.step += count
            if number in due:
                self._note(slot, number, outcome)
        # Whoever ran out of patience is known only now, and is tested in a call of no steps.
        impatient = [
            number for number, slot in occupied if number in due and number not in ending and _is_impatient(slot)
        ]
        late = self.call(0, due=[], ending=impatient) if impatient else outcome
        share = (time.perf_counter() - began) / len(occupied)
        ended = []
        for number, slot in occupied:
            slot.seconds += share
            diverged = _diverged(slot, outcome, number) if number in due else ""
            if diverged or number in ending or number in impatient:
                ended.append(self._end(slot, diverged, (late if number in impatient else outcome), number))
                self._slots[number] = None
        return {slot.planned: count for _, slot in occupied}, ended

    def _write(self, number: int, planned: PlannedTrial, weights: tuple[nnx.State, nnx.State]) -> None:
        recipe = self.bucket.recipe
        like = recipe.architecture.abstract[1:]
        padded = pad(weights[0], like[0]), pad(weights[1], like[1])
        self.lanes = place_program(recipe)(self.lanes, np.int32(number), settings_of(planned), padded)
        self._blank.discard(number)

    def call(self, steps: int, *, due: Sequence[int], ending: Sequence[int]) -> Outcome:
        """Run the program once and bring its outcome to the host."""
        lanes = range(len(self._slots))
        cursors = [_cursor(slot) for slot in self._slots]
        order = Order(
            steps=np.int32(steps),
            cursor=Cursor(
                np.array([epoch for epoch, _ in cursors], np.uint32),
                np.array([position for _, position in cursors], np.uint32),
            ),
            busy=np.array([slot is not None for slot in self._slots]),
            due=np.array([number in due for number in lanes]),
            ending=np.array([number in ending for number in lanes]),
        )
        self.lanes, outcome = advance_program(self.bucket.recipe)(self.lanes, self._data, order)
        return jax.device_get(outcome)

    @staticmethod
    def _note(slot: Slot, number: int, outcome: Outcome) -> None:
        measured = outcome.measurement
        slot.evaluations.append(
            Evaluation(
                step=slot.step,
                examples_seen=slot.step * slot.planned.trial.batch_size,
                train_loss=float(measured.train_loss[number]),
                validation_loss=float(measured.validation_loss[number]),
                validation_error=float(measured.validation_error[number]),
            )
        )
        slot.stale = 0 if int(measured.best_step[number]) == slot.step else slot.stale + 1

    def _end(self, slot: Slot, diverged: str, outcome: Outcome, number: int) -> Finished:
        best, test = None, (None, None)
        if not diverged:
            best = slot.evaluations[-1 - slot.stale].step
            test = float(outcome.test_loss[number]), float(outcome.test_error[number])
        return Finished(
            planned=slot.planned,
            status="diverged" if diverged else "done",
            reason=diverged,
            evaluations=tuple(slot.evaluations),
            best_step=best,
            test_loss=test[0],
            test_error=test[1],
            seconds=slot.seconds,
            mode=self.bucket.recipe.mode,
        )


def failed(planned: PlannedTrial, reason: str, *, mode: str) -> Finished:
    """Return the end of a trial that could not be trained."""
    return Finished(planned, "failed", reason, (), None, None, None, 0.0, mode)


def _is_impatient(slot: Slot) -> bool:
    patience = slot.planned.trial.patience
    return patience is not None and slot.stale >= patience


def _diverged(slot: Slot, outcome: Outcome, number: int) -> str:
    """Say at which step a trial's loss ceased to be finite; empty if it is."""
    step = int(outcome.measurement.diverged_step[number])
    if step:
        return f"the training loss was not finite at step {step}"
    if not np.isfinite(slot.evaluations[-1].validation_loss):
        return f"the validation loss was not finite at step {slot.step}"
    return ""


def _cursor(slot: Slot | None) -> tuple[int, int]:
    """Return the epoch and the position in it of a trial's next example, in the integers of the host."""
    if slot is None:
        return 0, 0
    return divmod(slot.step * slot.planned.trial.batch_size, slot.planned.trial.train_examples)


def settings_of(planned: PlannedTrial) -> Settings:
    """Return what a trial is trained with, as scalars of the program's types."""
    trial = planned.trial
    return Settings(
        learning_rate=np.float32(trial.learning_rate),
        weight_decay=np.float32(trial.weight_decay),
        steps=np.int32(trial.steps),
        warmup_steps=np.int32(trial.warmup_steps),
        train_examples=np.uint32(trial.train_examples),
        subset_key=np.uint32(trial.key("subset")),
        shuffle_key=np.uint32(trial.key("shuffle")),
    )
