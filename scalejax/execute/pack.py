"""A pack: the lanes of one bucket running on one group of devices, and which trial is in which lane."""

import functools
import time
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scalejax.execute.checkpoint import LEFT_OUT
from scalejax.execute.devices import Group
from scalejax.execute.pace import Pace
from scalejax.execute.programs import Programs, short_of_memory
from scalejax.execute.slot import Evaluation, Finished, Parked, Slot
from scalejax.execute.snapshot import Snapshot, bits, keyed
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Trial
from scalejax.status import Status
from scalejax.train.lanes import DeviceData, Order, Outcome, empty
from scalejax.train.padding import stack_padded
from scalejax.train.recipe import Leaf
from scalejax.train.step import Cursor, TrialState

Weights = tuple[nnx.State, nnx.State]

# On the device: the next call uses the lanes up, and must not wait for the host to have read them.
_copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))


@dataclass(frozen=True)
class Call:
    """What the next call shall do.

    Attributes:
        count: steps of every lane.
        due: lanes that are evaluated after them.
        ending: lanes whose best parameters are tested.
        in_turn: lanes that a device trains one after the other.
        examples: that the busiest device evaluates.
    """

    count: int
    due: frozenset[int]
    ending: frozenset[int]
    in_turn: int
    examples: int


@dataclass(frozen=True)
class Flight:
    """A call that was launched: who was in which lane at which step, and the outcome, which may still be computed."""

    call: Call
    steps: dict[int, int]  # by lane: the step after the call
    slots: dict[int, Slot]
    parked: dict[int, TrialState]  # by lane: [1, ...], on its device
    outcome: Outcome
    began: float
    probing: bool  # the first of its kind: how far calls may go is known once it has landed
    copied: TrialState | dict[int, TrialState] | None = None  # if a snapshot was asked for: all lanes, or by lane

    @property
    def reached(self) -> dict[str, int]:
        """The step of each of its trials after the call, by id."""
        return {slot.trial.trial_id: self.steps[number] for number, slot in self.slots.items()}

    @property
    def decisive(self) -> bool:
        """Whether its outcome decides what the next call does, so that nothing may be launched before it has landed."""
        patient = (self.slots[number].trial.patience is not None for number in self.call.due)
        return self.probing or any(patient)


@dataclass(frozen=True)
class Landing:
    """What a call has brought: the steps that each trial took, who has ended, and who waits at a rung.

    `snapshot` is of the trials that are still in lanes, as they were when the call ended, if it was asked for.
    """

    steps: dict[Trial, int]
    ended: list[Finished]
    parked: list[Parked]
    snapshot: Snapshot | None


class Pack:
    """The lanes of one bucket on one group of devices, and which trial is in which."""

    def __init__(self, bucket: Bucket, *, group: Group, data: DeviceData, programs: "Future[Programs]"):
        self.bucket = bucket
        self._group = group
        self._data = data
        self._programs = programs
        self._slots: list[Slot | None] = [None] * (bucket.lanes * len(group.devices))
        self._blank = set(range(len(self._slots)))  # lanes that were never written
        self._example: tuple[Trial, Weights] | Parked | None = None  # what an idle lane is filled with
        self._landed = 0.0  # when the latest call did
        self._pace = Pace()
        self._tight = False  # a copy of all lanes did not fit
        self.lanes = jax.device_put(empty(bucket.program, len(self._slots)), group.by_lane)

    @property
    def free(self) -> list[int]:
        """Lanes without a trial, of all devices in turn, so that few trials are spread over the devices."""
        numbers = [number for number, slot in enumerate(self._slots) if slot is None]
        return sorted(numbers, key=lambda number: (number % self.bucket.lanes, number))

    @property
    def occupied(self) -> list[tuple[int, Slot]]:
        """Lanes with their trials."""
        return [(number, slot) for number, slot in enumerate(self._slots) if slot is not None]

    def place(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write new trials into lanes."""
        self._write(trials)
        for number, trial, weights in trials:
            self._example = (trial, weights)
            self._slots[number] = Slot(trial)

    def resume(self, number: int, parked: Parked) -> None:
        """Let a trial that has waited go on in a lane."""
        self.lanes = self._programs.result().restore(self.lanes, np.int32(number), parked.state)
        self._blank.discard(number)
        self._example = self._example or parked
        # A copy: should this call be refused, the parked trial is as it was.
        self._slots[number] = replace(parked.slot.copy(), owed=parked.slot.lacks)

    def adopt(self, lanes: TrialState, trial: Trial) -> None:
        """Take over a ready state of all lanes, each with a trial like `planned` at its start."""
        self.lanes = jax.device_put(lanes, self._group.by_lane)
        self._slots = [Slot(trial) for _ in self._slots]

    def fill_idle(self) -> None:
        """Give lanes that never had a trial something harmless to compute: the zeros there are no valid settings."""
        if isinstance(self._example, Parked):
            for number in self._blank:
                self.lanes = self._programs.result().restore(self.lanes, np.int32(number), self._example.state)
            self._blank.clear()
        elif self._example is not None and self._blank:
            self._write([(number, *self._example) for number in sorted(self._blank)])

    def launch(self, *, copy: bool = False) -> Flight:
        """Set off to the next step at which any lane has an evaluation, or as far as one call goes.

        Lanes whose trial comes to its horizon or to a rung are free at once: the next trial is written behind the call.

        Args:
            copy: whether its landing shall bring a snapshot, if memory suffices.
        """
        slots = dict(self.occupied)
        call = self._plan(slots)
        probing = bool(call.count and not self._pace.knows_steps) or bool(
            call.examples and not self._pace.knows_examples
        )
        began = time.perf_counter()
        outcome = self._dispatch(call.count, due=call.due, ending=call.ending)
        copied = self._copied(slots) if copy else None
        parked = {}
        for number, slot in slots.items():
            slot.step += call.count
            if number in call.due and slot.step in slot.trial.rungs:
                parked[number] = self._extract(number)
            if number in call.ending or number in parked:
                self._slots[number] = None
        steps = {number: slot.step for number, slot in slots.items()}
        return Flight(call, steps, slots, parked, outcome, began, probing, copied)

    def _plan(self, slots: dict[int, Slot]) -> Call:
        """Decide on the next call: measurements that are owed come before any step."""
        in_turn = self._in_turn
        most = min(self.bucket.call_steps, self._pace.most_steps(in_turn))
        stops = {number for number, slot in slots.items() if slot.owed}
        count = 0 if stops else min(most, *(slot.next_stop - slot.step for slot in slots.values()))
        stops = stops or {number for number, slot in slots.items() if slot.step + count == slot.next_stop}
        due = {number for number in stops if not slots[number].impatient}
        ending = {n for n in stops if slots[n].impatient or slots[n].step + count == slots[n].trial.settings.steps}
        validation, test = (blocks.weight.size for blocks in (self._data.validation, self._data.test))
        wanted = [(n, n // self.bucket.lanes, validation * (n in due) + test * (n in ending)) for n in sorted(stops)]
        measured, examples = self._pace.affordable(wanted, steps=count * in_turn)
        for number in stops:
            slots[number].owed = number not in measured
        return Call(count, frozenset(due & measured), frozenset(ending & measured), in_turn, examples)

    def land(self, flight: Flight) -> Landing:
        """Wait for a call and read its outcome; calls land in the order in which they were launched."""
        outcome, call = jax.device_get(flight.outcome), flight.call
        present = {number: slot for number, slot in flight.slots.items() if not slot.ended}
        for number in call.due & present.keys():
            self._note(present[number], number, flight, outcome)
        now = time.perf_counter()
        elapsed = now - max(flight.began, self._landed)
        self._landed = now
        self._pace.learn(elapsed, steps=call.count * call.in_turn, examples=call.examples)
        share = elapsed / len(flight.slots)
        ended, parked = [], []
        for number, slot in present.items():
            slot.seconds += share
            diverged = _diverged(slot, outcome, number, flight) if number in call.due else ""
            if diverged or number in call.ending:
                ended.append(self._end(slot, diverged, outcome, number))
                slot.ended = True
                if self._slots[number] is slot:
                    self._slots[number] = None
            elif number in call.due and slot.impatient:
                slot.owed = True  # its test, which the next call brings
                self._slots[number] = slot  # where it has not left: nothing was launched since
            elif number in flight.parked:
                parked.append(Parked(slot, _landed(flight.parked[number])))
        steps = {slot.trial: call.count for slot in present.values()}
        return Landing(steps, ended, parked, _snapshot(flight, present))

    def snapshot(self) -> Snapshot:
        """Return the trials in lanes as they are; no call may be on its way, and none may follow."""
        return Snapshot(self.lanes, {number: slot.copy() for number, slot in self.occupied})

    @property
    def _in_turn(self) -> int:
        """Lanes that a device trains one after the other; idle ones cost nothing then."""
        if self.bucket.program.mode != "map":
            return 1
        return max(Counter(number // self.bucket.lanes for number, _ in self.occupied).values())

    def _copied(self, slots: dict[int, Slot]) -> TrialState | dict[int, TrialState] | None:
        """Copy all lanes on the devices or, where memory is short, the ones with a trial to the host one by one.

        A checkpoint must not cost the training anything: where even one lane more does not fit, there is none.
        """
        if self._programs.result().room_for_copy and not self._tight:
            try:
                return jax.block_until_ready(_copy(self.lanes))  # so that what does not fit is met with here
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if not short_of_memory(error):
                    raise
                self._tight = True
        try:
            return {number: _landed(self._extract(number)) for number in slots}
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if not short_of_memory(error):
                raise
            warnings.warn(LEFT_OUT, stacklevel=2)
        return None

    def call(self, steps: int, *, due: Sequence[int], ending: Sequence[int]) -> Outcome:
        """Run the program once and bring its outcome to the host; the trials' own steps are not counted on."""
        return jax.device_get(self._dispatch(steps, due=due, ending=ending))

    def _dispatch(self, steps: int, *, due: Collection[int], ending: Collection[int]) -> Outcome:
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
        self.lanes, outcome = self._programs.result().advance(self.lanes, self._data, order)
        return outcome

    def _write(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write trials into lanes, some at a time; what is short of that goes beyond the lanes."""
        programs, beyond = self._programs.result(), len(self._slots)
        like = self.bucket.program.architecture.abstract[1:]
        for begin in range(0, len(trials), programs.placed):
            some = list(trials[begin : begin + programs.placed])
            slots = np.full(programs.placed, beyond, np.int32)
            slots[: len(some)] = [number for number, _, _ in some]
            some += [some[-1]] * (programs.placed - len(some))
            settings = jax.tree.map(lambda *each: np.stack(each), *(trial.settings.scalars() for _, trial, _ in some))
            weights = tuple(stack_padded([each[part] for _, _, each in some], like[part]) for part in range(len(like)))
            self.lanes = programs.place(self.lanes, slots, settings, weights)
            self._blank.difference_update(number for number, _, _ in some)

    def _extract(self, number: int) -> TrialState:
        """Copy the state in a lane, [1, ...], on the lane's own device; what the others have extracted is let go."""
        device = self._group.devices[number // self.bucket.lanes]
        states = self._programs.result().extract(self.lanes, np.int32(number % self.bucket.lanes))

        def own(leaf: Leaf) -> Leaf:
            return next(shard.data for shard in leaf.addressable_shards if shard.device == device)

        return jax.tree.map(own, states)

    @staticmethod
    def _note(slot: Slot, number: int, flight: Flight, outcome: Outcome) -> None:
        measured = outcome.measurement
        step = flight.steps[number]
        slot.evaluations.append(
            Evaluation(
                step=step,
                examples_seen=step * slot.trial.recipe.batch_size,
                train_loss=float(measured.train_loss[number]),
                validation_loss=float(measured.validation_loss[number]),
                validation_metric=float(measured.validation_metric[number]),
            )
        )
        slot.stale = 0 if int(measured.best_step[number]) == step else slot.stale + 1

    def _end(self, slot: Slot, diverged: str, outcome: Outcome, number: int) -> Finished:
        test = (float(outcome.test_loss[number]), float(outcome.test_metric[number]))
        return Finished(
            trial=slot.trial,
            status=Status.DIVERGED if diverged else Status.DONE,
            reason=diverged,
            evaluations=tuple(slot.evaluations),
            best_step=None if diverged else slot.best_step,
            test_loss=None if diverged else test[0],
            test_metric=None if diverged else test[1],
            seconds=slot.seconds,
            mode=self.bucket.program.mode,
        )


def _landed(state: TrialState) -> TrialState:
    """Bring a lane's state [1, ...] to the host."""
    return jax.tree.map(lambda leaf: keyed(bits(leaf)[0], leaf), state)


def _snapshot(flight: Flight, present: dict[int, Slot]) -> Snapshot | None:
    """Return the trials of a call that has landed and that stay in their lanes."""
    if flight.copied is None:
        return None
    left = flight.call.ending | {number for number in flight.parked if not flight.slots[number].impatient}
    staying = {number: slot for number, slot in present.items() if number not in left and not slot.ended}
    # Another call may have been launched since.
    slots = {number: replace(slot.copy(), step=flight.steps[number]) for number, slot in staying.items()}
    if isinstance(flight.copied, dict):
        return Snapshot(None, {}, [Parked(slot, flight.copied[number]) for number, slot in slots.items()])
    return Snapshot(flight.copied, slots)


def _diverged(slot: Slot, outcome: Outcome, number: int, flight: Flight) -> str:
    """Say at which step a trial's loss ceased to be finite; empty if it is."""
    step = int(outcome.measurement.diverged_step[number])
    if step:
        return f"the training loss was not finite at step {step}"
    if not np.isfinite(slot.evaluations[-1].validation_loss):
        return f"the validation loss was not finite at step {flight.steps[number]}"
    return ""


def _cursor(slot: Slot | None) -> tuple[int, int]:
    """Return the epoch and the position in it of a trial's next example, in the integers of the host."""
    if slot is None:
        return 0, 0
    return divmod(slot.step * slot.trial.recipe.batch_size, slot.trial.settings.train_examples)
