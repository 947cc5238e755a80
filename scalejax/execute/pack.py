"""A pack: the lanes of one bucket running on one group of devices, and which trial is in which lane."""

import functools
import math
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from scalejax.execute import hosts
from scalejax.execute.host_start import started, starts_on_host
from scalejax.execute.initial_weights import Weights
from scalejax.execute.pace import Pace
from scalejax.execute.programs import Programs
from scalejax.execute.refusal import unless_memory_is_short, warn_of_no_checkpoint
from scalejax.execute.roster import Crew, Roster
from scalejax.execute.slot import Evaluation, Finished, Paused, Slot
from scalejax.execute.snapshot import Snapshot, bits, keyed
from scalejax.execute.stream import Stream
from scalejax.planning.packing import STATIC, Bucket
from scalejax.planning.placement import ALONE, Placement
from scalejax.planning.trial import Trial
from scalejax.status import Status
from scalejax.train.cost import lane_bytes
from scalejax.train.lanes import Commands, DeviceData, Outcome, empty
from scalejax.train.padding import crop, stack_padded
from scalejax.train.recipe import Leaf, Settings
from scalejax.train.step import Best, TrialState

# On the device: the next call uses the lanes up, and must not wait for the host to have read them.
_copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))
COPIED_BYTES = 2**28  # that take a CPU less time than compiling one more program
Part = TypeVar("Part")  # of the state of a lane, or all of it


@dataclass(frozen=True)
class CallPlan:
    """What the next call shall do.

    Attributes:
        count: steps of every lane.
        due: lanes that are evaluated after them.
        ending: lanes whose best parameters are tested.
        owed: lanes for whose evaluation or test it has no time: the next call comes to them first.
        in_turn: lanes that a device trains one after the other.
        examples: that the busiest device evaluates; of each lane, where all are evaluated side by side.
    """

    count: int
    due: frozenset[int]
    ending: frozenset[int]
    owed: frozenset[int]
    in_turn: int
    examples: int


@dataclass(frozen=True)
class PendingCall:
    """A call that was launched: which trial was in which lane, and the outcome, which may still be computed."""

    plan: CallPlan
    steps: np.ndarray  # [lanes], after the call
    crew: Crew
    newcomers: Sequence[Slot]  # that were not in the call before
    paused: dict[int, TrialState]  # by lane: [1, ...], on its device
    outcome: Outcome
    began: float
    probing: bool  # the first of its kind: how far calls may go is known once it has landed
    copied: TrialState | dict[int, TrialState] | None = None  # if a snapshot was asked for: all lanes, or by lane
    best: dict[int, Best] = field(default_factory=dict)  # by lane, of those that end: [1, ...], where it is kept

    @property
    def slots(self) -> Mapping[int, Slot]:
        """Its trials, by lane."""
        return self.crew.slots

    @property
    def reached(self) -> dict[str, int]:
        """The step of each of its trials after the call, by id."""
        return dict(zip(self.crew.ids, self.steps[self.crew.lanes].tolist(), strict=True))

    @property
    def decisive(self) -> bool:
        """Whether its outcome decides what the next call does, so that nothing may be launched before it has landed."""
        return self.probing or not self.crew.patient.isdisjoint(self.plan.due)


@dataclass(frozen=True)
class CallResult:
    """What a call has brought, on the host.

    Attributes:
        steps: that each trial took, by id.
        ended: trials that have.
        paused: trials that have come to a rung and left their lanes.
        snapshot: of the trials that are still in lanes, as they were when the call ended, if it was asked for.
    """

    steps: dict[str, int]
    ended: list[Finished]
    paused: list[Paused]
    snapshot: Snapshot | None


class Pack:
    """The lanes of one bucket on one group of devices, and which trial is in which.

    Args:
        bucket: its program and trials.
        placement: of the lanes.
        data: on the devices.
        programs: compiled.
        stream: of batches from the host, for a streamed program.
        keep_weights: whether trials that are done bring their best parameters.
    """

    def __init__(
        self,
        bucket: Bucket,
        placement: Placement,
        *,
        data: DeviceData,
        programs: "Future[Programs]",
        stream: Stream | None = None,
        keep_weights: bool = False,
    ):
        self.bucket = bucket
        self.placement = placement
        self._data = data
        self._stream = stream
        self._programs = programs
        self._keeps = keep_weights
        self._roster = Roster(placement, batch_size=bucket.program.recipe.batch_size)
        self._newcomers: list[Slot] = []  # that no call was launched with
        self._surprised: list[tuple[int, Slot]] = []  # have ended, and calls with them may have been launched
        self._blank = set(range(placement.lanes))  # lanes that were never written
        self._example: tuple[Trial, Weights] | Paused | None = None  # what an idle lane is filled with
        self._landed = 0.0  # when the latest call did
        self._clock = 0.0  # a trial's share of the seconds of all calls that have landed
        self._pace = Pace()
        self._copied_bytes = 0  # written beyond the lanes
        self._free_bytes = COPIED_BYTES if placement.devices[0].platform == "cpu" else 0
        self._tight = False  # a copy of all lanes did not fit
        self._shared = not placement.here
        blank = empty(bucket.program, placement.lanes)
        self.lanes = hosts.placed(blank, placement.shardings(blank))

    @property
    def _starts_on_host(self) -> bool:
        return starts_on_host(self.bucket.program, self.placement.lanes)

    @property
    def free(self) -> list[int]:
        """Lanes without a trial, in the order in which they get one."""
        return self._roster.free

    @property
    def occupied(self) -> list[tuple[int, Slot]]:
        """Lanes with their trials, which are brought up to date."""
        return list(self._roster.settle().slots.items())

    @property
    def busy(self) -> bool:
        """Whether any lane has a trial."""
        return bool(self._roster.crew.slots)

    def fill(self, trials: Sequence[tuple[Trial, Weights] | Paused]) -> None:
        """Put trials into the free lanes; lanes that never had one get something harmless to compute."""
        lanes = list(zip(self.free, trials, strict=False))
        fresh = [(number, *each) for number, each in lanes if not isinstance(each, Paused)]
        untouched = len(self._blank) == self.placement.lanes
        if fresh and len(fresh) == len(lanes) and untouched and self._starts_on_host:
            self._begin(fresh)
            return
        for number, each in lanes:
            if isinstance(each, Paused):
                self.resume(number, each)
        self.place(fresh)
        self.fill_idle()

    def _begin(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Lay out the first state of all lanes on the host; idle ones get a copy of the last trial."""
        self._programs.result()  # a program that was refused is so before anything is taken
        row_of = {number: row for row, (number, _, _) in enumerate(trials)}
        rows = [row_of.get(number, len(trials) - 1) for number in range(self.placement.lanes)]
        states = started(self.bucket.program, *self._stacked(trials), rows=rows)
        self.lanes = hosts.placed(states, self.placement.shardings(states))
        self._blank.clear()
        for number, trial, weights in trials:
            self._example = (trial, weights)
            self._seat(number, Slot(trial))

    def place(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write new trials into lanes."""
        self._write(trials)
        for number, trial, weights in trials:
            self._example = (trial, weights)
            self._seat(number, Slot(trial))

    def resume(self, number: int, paused: Paused) -> None:
        """Write a paused trial into a lane, where it continues."""
        self.lanes = self._programs.result().write_lane(self.lanes, np.int32(number), paused.state)
        self._blank.discard(number)
        self._example = self._example or paused
        # A copy: should the next call be refused, the paused trial is as it was.
        self._seat(number, paused.slot.copy())
        if paused.slot.lacks:
            self._roster.owed.add(number)

    def _seat(self, number: int, slot: Slot) -> None:
        slot.clock = self._clock  # as far as is known before the calls have landed that were launched
        self._newcomers.append(slot)
        self._roster.seat(number, slot)

    def moved(self, steps: int) -> None:
        """Count steps that `call` has taken in all lanes."""
        self._roster.advance(steps)

    def adopt(self, lanes: TrialState, trial: Trial) -> None:
        """Take over a ready state of all lanes, each with `trial` at its start."""
        self.lanes = jax.device_put(lanes, self.placement.shardings(lanes))
        for number in range(self.placement.lanes):
            self._seat(number, Slot(trial))

    def fill_idle(self) -> None:
        """Give lanes that never had a trial something harmless to compute: the zeros there are no valid settings."""
        if isinstance(self._example, Paused):
            for number in self._blank:
                self.lanes = self._programs.result().write_lane(self.lanes, np.int32(number), self._example.state)
            self._blank.clear()
        elif self._example is not None and self._blank:
            self._write([(number, *self._example) for number in sorted(self._blank)])

    def launch(self, *, copy: bool = False) -> PendingCall:
        """Set off to the next step at which any lane has an evaluation, or as far as one call goes.

        Lanes whose trial comes to its horizon or to a rung are free at once: the next trial is written behind the call.

        Args:
            copy: whether its result shall bring a snapshot, if memory suffices.
        """
        crew, plan = self._roster.crew, self._plan()
        probing = (plan.count and not self._pace.knows_steps) or (plan.examples and not self._pace.knows_examples)
        began = time.perf_counter()
        outcome = self._dispatch(plan.count, due=plan.due, ending=plan.ending)
        if self._shared:
            outcome = hosts.replicated(outcome, self.placement.replicated)
        copied = self._copied(crew.slots) if copy else None
        # Now, for the next trial is written behind the call.
        best = {number: self._read_lane(self.lanes.best, number) for number in plan.ending if self._keeps}
        self._roster.advance(plan.count)
        self._roster.owed = set(plan.owed)
        steps, newcomers, self._newcomers = self._roster.reached(), self._newcomers, []
        at_rungs = [n for n in sorted(plan.due & crew.rungs) if int(steps[n]) in crew.slots[n].trial.rungs]
        paused = {number: self._read_lane(self.lanes, number) for number in at_rungs}
        for number in plan.ending | paused.keys():
            self._roster.leave(number)
        return PendingCall(plan, steps, crew, newcomers, paused, outcome, began, bool(probing), copied, best)

    def _plan(self) -> CallPlan:
        """Decide on the next call: measurements that are owed come before any step."""
        roster, crew = self._roster, self._roster.crew
        # With "map" a device trains its lanes one after the other, and idle ones cost nothing.
        in_turn = crew.busiest if self.bucket.program.mode == "map" else 1
        most = min(self.bucket.call_steps, self._pace.most_steps(in_turn))
        count = 0 if roster.owed else min(most, roster.left)
        stops = set(roster.owed or roster.stopping(count))
        impatient = {number for number in stops & crew.patient if crew.slots[number].impatient}
        due = stops - impatient
        ending = impatient | stops & roster.through(count) if stops else stops
        validation, test = (blocks.weight.size for blocks in (self._data.validation, self._data.test))
        if self.bucket.program.mode == STATIC:
            # All lanes are measured side by side, and it takes as long however many are wanted.
            wanted = [(0, 0, validation * bool(due) + test * bool(ending))] if stops else []
            chosen, examples = self._pace.affordable(wanted, steps=count)
            measured = stops if chosen else set()
        else:
            wanted = [(n, self.placement.row(n), validation * (n in due) + test * (n in ending)) for n in sorted(stops)]
            measured, examples = self._pace.affordable(wanted, steps=count * in_turn)
        return CallPlan(
            count,
            due=frozenset(due & measured),
            ending=frozenset(ending & measured),
            owed=frozenset(stops - measured),
            in_turn=in_turn,
            examples=examples,
        )

    def land(self, call: PendingCall) -> CallResult:
        """Wait for a call and read its outcome; calls land in the order in which they were launched."""
        outcome, plan = jax.device_get(call.outcome), call.plan
        now = time.perf_counter()
        elapsed = now - max(call.began, self._landed)
        self._landed = now
        if self._shared:
            elapsed = hosts.told(lambda: elapsed)  # it decides how far calls go
        self._pace.learn(elapsed, steps=plan.count * plan.in_turn, examples=plan.examples)
        for slot in call.newcomers:  # what passed before is not theirs
            slot.clock = self._clock
        self._clock += elapsed / len(call.slots)
        self._surprised = [(number, slot) for number, slot in self._surprised if call.slots.get(number) is slot]
        steps = dict.fromkeys(call.crew.ids, plan.count)
        for _, slot in self._surprised:
            steps.pop(slot.trial.trial_id, None)
        measured = _measurements(call, outcome)
        ended, paused = [], []
        for number in sorted(plan.due | plan.ending):
            slot = call.slots[number]
            if slot.ended:
                continue
            diverged = ""
            if number in plan.due:
                evaluation, best_step, diverged_step = measured[number]
                slot.note(evaluation, best_step=best_step)
                diverged = _diverged(evaluation, diverged_step)
            if diverged or number in plan.ending:
                test = None if diverged else (float(outcome.test_loss[number]), float(outcome.test_metric[number]))
                status = Status.DIVERGED if diverged else Status.DONE
                weights = None if diverged or number not in call.best else _true_size(call.best[number], slot.trial)
                slot.count_to(self._clock)
                ended.append(slot.end(status, diverged, test, mode=self.bucket.program.mode, weights=weights))
                if diverged:
                    self._surprised.append((number, slot))
                if self._roster.has(number, slot):
                    self._roster.leave(number)
            elif number in plan.due and slot.impatient:
                slot.count_to(self._clock)
                slot.step = slot.evaluations[-1].step
                self._seat(number, slot)  # where it has not left: nothing was launched since
                self._roster.owed.add(number)  # its test, which the next call brings
            elif number in call.paused:
                slot.count_to(self._clock)
                paused.append(Paused(slot, _on_host(call.paused[number])))
        return CallResult(steps, ended, paused, _snapshot(call, self._clock))

    def snapshot(self) -> Snapshot:
        """Return the trials in lanes as they are; no call may be pending, and none may follow."""
        slots = {number: slot.copy() for number, slot in self.occupied}
        for slot in slots.values():
            slot.count_to(self._clock)
        if self._whole_lanes:
            return Snapshot(self.lanes, slots)
        return Snapshot(None, {}, [Paused(slot, _on_host(self._read_lane(self.lanes, n))) for n, slot in slots.items()])

    @property
    def _whole_lanes(self) -> bool:
        """Whether the host that writes a lane has all of it; else the hosts bring lanes together one by one."""
        return not self._shared or self.placement.spread == ALONE

    def _copied(self, lanes: Iterable[int]) -> TrialState | dict[int, TrialState] | None:
        """Copy all lanes on the devices or, where memory is short, the ones with a trial to the host one by one.

        A checkpoint must not cost the training anything: where not even one more lane fits, there is none.
        """
        if self._programs.result().room_for_copy and not self._tight and self._whole_lanes:
            copied = None
            with unless_memory_is_short():
                copied = jax.block_until_ready(_copy(self.lanes))  # so that what does not fit is raised here
            if all(hosts.everyone(copied is not None)) if self._shared else copied is not None:
                return copied
            self._tight = True
        with unless_memory_is_short():
            return {number: _on_host(self._read_lane(self.lanes, number)) for number in lanes}
        warn_of_no_checkpoint()
        return None

    def call(self, steps: int, *, due: Sequence[int], ending: Sequence[int]) -> Outcome:
        """Run the program once and bring its outcome to the host; the trials' own steps are not counted on."""
        return jax.device_get(self._dispatch(steps, due=due, ending=ending))

    def _dispatch(self, steps: int, *, due: Collection[int], ending: Collection[int]) -> Outcome:
        def these(lanes: Collection[int]) -> np.ndarray:
            chosen = np.zeros(self.placement.lanes, bool)
            chosen[list(lanes)] = True
            return chosen

        roster = self._roster
        commands = Commands(np.int32(steps), roster.cursor, roster.busy, due=these(due), ending=these(ending))
        data = self._data
        if self._stream:
            slots = roster.settle().slots
            own = [
                slots.get(number) if self.placement.is_here(number) else None for number in range(self.placement.lanes)
            ]
            data = replace(data, pool=hosts.placed(self._stream(own, steps), self.placement.lane_sharded))
        self.lanes, outcome = self._programs.result().advance(self.lanes, data, commands)
        return outcome

    def _write(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write trials into lanes, some at a time, and what is short of that one by one.

        As long as no program writes a single one, some of them are copies that go beyond the lanes. On a CPU that
        program is only asked for once these have come to so much that it pays: it takes its cores to compile it.
        """
        programs, beyond = self._programs.result(), self.placement.lanes
        whole = len(trials) - len(trials) % programs.placed
        short = whole < len(trials)
        pays = self._copied_bytes >= self._free_bytes and not self._shared  # hosts have to run the same programs
        one = programs.placing_one() if short and pays else None
        if short and not one:
            self._copied_bytes += (programs.placed - len(trials) + whole) * lane_bytes(self.bucket.program)
        starts = range(0, whole if one else len(trials), programs.placed)
        calls = [(programs.place, list(trials[each : each + programs.placed]), programs.placed) for each in starts]
        calls += [(one, [each], 1) for each in trials[whole:] if one]
        for place, some, count in calls:
            slots = np.full(count, beyond, np.int32)
            slots[: len(some)] = [number for number, _, _ in some]
            copies = [some[-1]] * (count - len(some))
            self.lanes = place(self.lanes, slots, *self._stacked([*some, *copies]))
        self._blank.difference_update(number for number, _, _ in trials)

    def _stacked(self, trials: Sequence[tuple[int, Trial, Weights]]) -> tuple[Settings, Any]:
        """Return the settings and the padded weights of trials, [trials, ...]."""
        like = self.bucket.program.architecture.abstract[1:]
        settings = jax.tree.map(lambda *each: np.stack(each), *(trial.settings.scalars() for _, trial, _ in trials))
        return settings, tuple(stack_padded([each[n] for *_, each in trials], part) for n, part in enumerate(like))

    def _read_lane(self, lanes: Part, number: int) -> Part:
        """Copy a lane, [1, ...], on the lane's own device; what the others have copied is let go.

        Args:
            lanes: the state of all lanes, or a part of it.
            number: of the lane.
        """
        row = self.placement.row(number)
        states = self._programs.result().read_lane(lanes, np.int32(self.placement.slot(number)))

        if self._shared:  # all hosts have it, so that each can go on with it
            if self.placement.spread.parameters == 1:
                return hosts.row(states, row, self.placement.replicated)
            # No device may have room for all of it, but the host has.
            return jax.tree.map(lambda leaf: _on_host(hosts.row(leaf, row, self.placement.replicated))[None], states)

        def own(leaf: Leaf) -> Leaf:
            if self.placement.spread != ALONE:
                return leaf[row : row + 1]  # it stays on all devices of its own
            device = self.placement.devices[row]
            return next(shard.data for shard in leaf.addressable_shards if shard.device == device)

        return jax.tree.map(own, states)


def _on_host(state: Part) -> Part:
    """Bring a lane's state [1, ...] to the host."""
    return jax.tree.map(lambda leaf: keyed(bits(leaf)[0], leaf), state)


def _true_size(best: Best, trial: Trial) -> Weights:
    """Bring the best parameters and rest in a lane [1, ...] to the host, without the padding."""
    return crop((_on_host(best.params), _on_host(best.rest)), trial.architecture.abstract[1:])


def _measurements(call: PendingCall, outcome: Outcome) -> dict[int, tuple[Evaluation, int, int]]:
    """Return what a call has measured of the lanes that were due, with the best step and the one that diverged."""
    lanes, slots, seen = sorted(call.plan.due), call.slots, outcome.measurement
    losses = seen.train_loss, seen.validation_loss, seen.validation_metric
    columns = [each[lanes].tolist() for each in (call.steps, *losses, seen.best_step, seen.diverged_step)]
    found = {}
    for lane, step, train_loss, loss, metric, best_step, diverged_step in zip(lanes, *columns, strict=True):
        examples = step * slots[lane].trial.recipe.batch_size
        found[lane] = Evaluation(step, examples, train_loss, loss, metric), best_step, diverged_step
    return found


def _diverged(last: Evaluation, step: int) -> str:
    """Say at which step a trial's loss ceased to be finite; empty if it is.

    Args:
        last: its latest evaluation.
        step: at which its training loss was not finite, 0 if it was.
    """
    if step:
        return f"the training loss was not finite at step {step}"
    finite = math.isfinite(last.validation_loss)
    return "" if finite else f"the validation loss was not finite at step {last.step}"


def _snapshot(call: PendingCall, clock: float) -> Snapshot | None:
    """Return the trials of a call that has landed and that stay in their lanes."""
    if call.copied is None:
        return None
    slots = call.slots
    left = call.plan.ending | {number for number in call.paused if not slots[number].impatient}
    steps = call.steps.tolist()
    # Copies, as they were then: another call may have been launched since.
    staying = {n: replace(slot.copy(), step=steps[n]) for n, slot in slots.items() if n not in left and not slot.ended}
    for slot in staying.values():
        slot.count_to(clock)
    if isinstance(call.copied, dict):
        return Snapshot(None, {}, [Paused(slot, call.copied[number]) for number, slot in staying.items()])
    return Snapshot(call.copied, staying)
