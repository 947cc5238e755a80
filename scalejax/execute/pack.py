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
from scalejax.execute.lane_table import LaneTable, Occupancy
from scalejax.execute.pace import Pace
from scalejax.execute.programs import Programs
from scalejax.execute.refusal import unless_memory_is_short, warn_of_no_checkpoint
from scalejax.execute.slot import Evaluation, Finished, Paused, Slot
from scalejax.execute.snapshot import Snapshot, bits, keyed
from scalejax.execute.stream import Stream
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Trial
from scalejax.status import Status
from scalejax.train.cost import lane_bytes
from scalejax.train.lanes import Commands, DeviceData, Outcome, empty
from scalejax.train.padding import crop, stack_padded
from scalejax.train.recipe import MAP, STATIC, Leaf, Settings
from scalejax.train.sharding import NOT_SPREAD
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
        deferred: lanes whose evaluation or test is left to the next call, which does these first.
        in_turn: lanes that a device trains one after the other.
        examples: that the busiest device evaluates; of each lane, where all are evaluated side by side.
    """

    count: int
    due: frozenset[int]
    ending: frozenset[int]
    deferred: frozenset[int]
    in_turn: int
    examples: int


@dataclass(frozen=True)
class PendingCall:
    """A call that was launched: which trial is in which lane, and the outcome, which may still be computed."""

    plan: CallPlan
    steps: np.ndarray  # [lanes], after the call
    occupancy: Occupancy
    new_slots: Sequence[tuple[int, Slot]]  # assigned since the call before, with their lanes
    paused: dict[int, TrialState]  # by lane: [1, ...], on its device
    outcome: Outcome
    began: float
    probing: bool  # the first of its kind: how far calls may go is known once it has landed
    copied: TrialState | dict[int, TrialState] | None = None  # if a snapshot was asked for: all lanes, or by lane
    best: dict[int, Best] = field(default_factory=dict)  # by lane, of those that end: [1, ...], where it is kept

    @property
    def slots(self) -> Mapping[int, Slot]:
        """Its trials, by lane."""
        return self.occupancy.slots

    @property
    def reached(self) -> dict[str, int]:
        """The step of each of its trials after the call, by id."""
        return dict(zip(self.occupancy.ids, self.steps[self.occupancy.lanes].tolist(), strict=True))

    @property
    def decisive(self) -> bool:
        """Whether the next call depends on its outcome, so that nothing may be launched before it has landed."""
        return self.probing or not self.occupancy.with_patience.isdisjoint(self.plan.due)


@dataclass(frozen=True)
class CallResult:
    """What a call has brought, on the host.

    Attributes:
        steps: that each trial took, by id.
        ended: trials that have.
        paused: trials that have come to a rung and left their lanes.
        snapshot: of the trials that are still in lanes, as they were when the call ended, if it was asked for.
        seconds: that the devices were busy with it.
        entered: the lanes of trials for which it is the first call, by id.
    """

    steps: dict[str, int]
    ended: list[Finished]
    paused: list[Paused]
    snapshot: Snapshot | None
    seconds: float = 0.0
    entered: Mapping[str, int] = field(default_factory=dict)


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
        self._table = LaneTable(placement, batch_size=bucket.program.recipe.batch_size)
        self._new_slots: list[tuple[int, Slot]] = []  # assigned since the latest call was launched
        self._ended_in_flight: list[tuple[int, Slot]] = []  # diverged while a later call was launched with them
        self._unwritten = set(range(placement.lanes))  # lanes that were never written
        self._filler: tuple[Trial, Weights] | Paused | None = None  # what an idle lane is filled with
        self._landed = 0.0  # when the latest call did
        self._clock = 0.0  # a trial's share of the seconds of all calls that have landed
        self._pace = Pace()
        self._copied_bytes = 0  # of copies, written out of range
        self._copied_threshold = COPIED_BYTES if placement.devices[0].platform == "cpu" else 0
        self._copy_failed = False  # a copy of all lanes did not fit
        self._multi_host = not placement.is_fully_addressable
        blank = empty(bucket.program, placement.lanes)
        self.lanes = hosts.device_put(blank, placement.shardings(blank))

    @property
    def _starts_on_host(self) -> bool:
        return starts_on_host(self.bucket.program, self.placement.lanes)

    @property
    def free(self) -> list[int]:
        """Lanes without a trial, in the order in which they get one."""
        return self._table.free

    @property
    def occupied(self) -> list[tuple[int, Slot]]:
        """Lanes with their trials, which are brought up to date."""
        return list(self._table.synced().slots.items())

    @property
    def busy(self) -> bool:
        """Whether any lane has a trial."""
        return bool(self._table.occupancy.slots)

    def fill(self, trials: Sequence[tuple[Trial, Weights] | Paused]) -> None:
        """Put trials into the free lanes; lanes that never had one get something harmless to compute."""
        lanes = list(zip(self.free, trials, strict=False))
        fresh = [(number, *each) for number, each in lanes if not isinstance(each, Paused)]
        untouched = len(self._unwritten) == self.placement.lanes
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
        self.lanes = hosts.device_put(states, self.placement.shardings(states))
        self._unwritten.clear()
        for number, trial, weights in trials:
            self._filler = (trial, weights)
            self._assign(number, Slot(trial))

    def place(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write new trials into lanes."""
        self._write(trials)
        for number, trial, weights in trials:
            self._filler = (trial, weights)
            self._assign(number, Slot(trial))

    def resume(self, number: int, paused: Paused) -> None:
        """Write a paused trial into a lane, where it continues."""
        self.lanes = self._programs.result().write_lane(self.lanes, np.int32(number), paused.state)
        self._unwritten.discard(number)
        self._filler = self._filler or paused
        # A copy: should the next call be refused, the paused trial is as it was.
        self._assign(number, paused.slot.copy())
        if paused.slot.unmeasured:
            self._table.deferred.add(number)

    def _assign(self, number: int, slot: Slot) -> None:
        slot.clock = self._clock  # as far as is known before the calls have landed that were launched
        self._new_slots.append((number, slot))
        self._table.assign(number, slot)

    def moved(self, steps: int) -> None:
        """Count steps that `call` has taken in all lanes."""
        self._table.advance(steps)

    def adopt(self, lanes: TrialState, trial: Trial) -> None:
        """Take over a ready state of all lanes, each with `trial` at its start."""
        self.lanes = jax.device_put(lanes, self.placement.shardings(lanes))
        for number in range(self.placement.lanes):
            self._assign(number, Slot(trial))

    def fill_idle(self) -> None:
        """Give lanes that never had a trial something harmless to compute: the zeros there are no valid settings."""
        if isinstance(self._filler, Paused):
            for number in self._unwritten:
                self.lanes = self._programs.result().write_lane(self.lanes, np.int32(number), self._filler.state)
            self._unwritten.clear()
        elif self._filler is not None and self._unwritten:
            self._write([(number, *self._filler) for number in sorted(self._unwritten)])

    def launch(self, *, copy: bool = False) -> PendingCall:
        """Set off to the next step at which any lane has an evaluation, or as far as one call goes.

        Lanes whose trial comes to its horizon or to a rung are free at once: the next trial is written behind the call.

        Args:
            copy: whether its result shall bring a snapshot, if memory suffices.
        """
        occupancy, plan = self._table.occupancy, self._plan()
        probing = (plan.count and not self._pace.knows_steps) or (plan.examples and not self._pace.knows_examples)
        began = time.perf_counter()
        outcome = self._dispatch(plan.count, due=plan.due, ending=plan.ending)
        if self._multi_host:
            outcome = hosts.local_replica(outcome, self.placement.replicated)
        copied = self._copied(occupancy.slots) if copy else None
        # Now, for the next trial is written behind the call.
        best = {number: self._read_lane(self.lanes.best, number) for number in plan.ending if self._keeps}
        self._table.advance(plan.count)
        self._table.deferred = set(plan.deferred)
        steps, new_slots, self._new_slots = self._table.trial_steps(), self._new_slots, []
        at_rungs = [
            n for n in sorted(plan.due & occupancy.with_rungs) if int(steps[n]) in occupancy.slots[n].trial.rungs
        ]
        paused = {number: self._read_lane(self.lanes, number) for number in at_rungs}
        for number in plan.ending | paused.keys():
            self._table.release(number)
        return PendingCall(plan, steps, occupancy, new_slots, paused, outcome, began, bool(probing), copied, best)

    def _plan(self) -> CallPlan:
        """Decide on the next call: measurements that are deferred come before any step."""
        table, occupancy = self._table, self._table.occupancy
        # With "map" a device trains its lanes one after the other, and idle ones cost nothing.
        in_turn = occupancy.busiest if self.bucket.program.mode == MAP else 1
        most = min(self.bucket.call_steps, self._pace.most_steps(in_turn))
        count = 0 if table.deferred else min(most, table.steps_to_stop)
        stops = set(table.deferred or table.stopping(count))
        out_of_patience = {
            number for number in stops & occupancy.with_patience if occupancy.slots[number].out_of_patience
        }
        due = stops - out_of_patience
        ending = out_of_patience | stops & table.finishing(count) if stops else stops
        validation, test = (blocks.weight.size for blocks in (self._data.validation, self._data.test))
        if self.bucket.program.mode == STATIC:
            # All lanes are measured side by side, and it takes as long however many are wanted.
            wanted = [(0, 0, validation * bool(due) + test * bool(ending))] if stops else []
            chosen, examples = self._pace.affordable(wanted, steps=count)
            measured = stops if chosen else set()
        else:
            shards = {n: self.placement.shard_of(n) for n in sorted(stops)}
            wanted = [(n, shard, validation * (n in due) + test * (n in ending)) for n, shard in shards.items()]
            measured, examples = self._pace.affordable(wanted, steps=count * in_turn)
        return CallPlan(
            count,
            due=frozenset(due & measured),
            ending=frozenset(ending & measured),
            deferred=frozenset(stops - measured),
            in_turn=in_turn,
            examples=examples,
        )

    def land(self, call: PendingCall) -> CallResult:
        """Wait for a call and read its outcome; calls land in the order in which they were launched."""
        outcome, plan = jax.device_get(call.outcome), call.plan
        now = time.perf_counter()
        elapsed = now - max(call.began, self._landed)
        self._landed = now
        if self._multi_host:
            elapsed = hosts.broadcast(lambda: elapsed)  # it decides how far calls go
        self._pace.learn(elapsed, steps=plan.count * plan.in_turn, examples=plan.examples)
        for _, slot in call.new_slots:  # what passed before is not theirs
            slot.clock = self._clock
        self._clock += elapsed / len(call.slots)
        self._ended_in_flight = [
            (number, slot) for number, slot in self._ended_in_flight if call.slots.get(number) is slot
        ]
        steps = dict.fromkeys(call.occupancy.ids, plan.count)
        for _, slot in self._ended_in_flight:
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
                    self._ended_in_flight.append((number, slot))
                if self._table.holds(number, slot):
                    self._table.release(number)
            elif number in plan.due and slot.out_of_patience:
                slot.count_to(self._clock)
                slot.step = slot.evaluations[-1].step
                self._assign(number, slot)  # where it has not left: nothing was launched since
                self._table.deferred.add(number)  # its test, which the next call brings
            elif number in call.paused:
                slot.count_to(self._clock)
                paused.append(Paused(slot, _on_host(call.paused[number])))
        entered = {slot.trial.trial_id: number for number, slot in call.new_slots}
        return CallResult(steps, ended, paused, _snapshot(call, self._clock), elapsed, entered)

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
        """Whether the host that writes a lane can read all of it; else the hosts gather the lanes one by one."""
        return not self._multi_host or self.placement.spread == NOT_SPREAD

    def _copied(self, lanes: Iterable[int]) -> TrialState | dict[int, TrialState] | None:
        """Copy all lanes on the devices or, where memory is short, those with a trial to host memory one by one.

        A checkpoint must not cost the training anything: where not even one more lane fits, there is none.
        """
        if self._programs.result().room_for_copy and not self._copy_failed and self._whole_lanes:
            copied = None
            with unless_memory_is_short():
                copied = jax.block_until_ready(_copy(self.lanes))  # so that what does not fit is raised here
            if all(hosts.all_gather(copied is not None)) if self._multi_host else copied is not None:
                return copied
            self._copy_failed = True
        with unless_memory_is_short():
            return {number: _on_host(self._read_lane(self.lanes, number)) for number in lanes}
        warn_of_no_checkpoint()
        return None

    def call(self, steps: int, *, due: Sequence[int], ending: Sequence[int]) -> Outcome:
        """Run the program once and bring its outcome to the host; the trials' own steps are not counted on."""
        return jax.device_get(self._dispatch(steps, due=due, ending=ending))

    def _dispatch(self, steps: int, *, due: Collection[int], ending: Collection[int]) -> Outcome:
        def mask(lanes: Collection[int]) -> np.ndarray:
            chosen = np.zeros(self.placement.lanes, bool)
            chosen[list(lanes)] = True
            return chosen

        table = self._table
        commands = Commands(np.int32(steps), table.cursor, table.busy, due=mask(due), ending=mask(ending))
        data = self._data
        if self._stream:
            slots = table.synced().slots
            own = [
                slots.get(number) if self.placement.is_addressable(number) else None
                for number in range(self.placement.lanes)
            ]
            data = replace(data, pool=hosts.device_put(self._stream(own, steps), self.placement.lane_sharded))
        self.lanes, outcome = self._programs.result().advance(self.lanes, data, commands)
        return outcome

    def _write(self, trials: Sequence[tuple[int, Trial, Weights]]) -> None:
        """Write trials into lanes, `programs.placed` at a time, and the remainder one by one.

        Until the program for a single trial is compiled, the remainder is filled up with copies, whose lane is out of
        range. On a CPU that program is asked for only once the copies have come to so many bytes that it pays:
        compiling takes the cores of the training.
        """
        programs, out_of_range = self._programs.result(), self.placement.lanes
        whole = len(trials) - len(trials) % programs.placed
        remainder = whole < len(trials)
        # Several hosts have to run the same programs, and each compiles in its own time.
        pays = self._copied_bytes >= self._copied_threshold and not self._multi_host
        one = programs.placing_one() if remainder and pays else None
        if remainder and not one:
            self._copied_bytes += (programs.placed - len(trials) + whole) * lane_bytes(self.bucket.program)
        starts = range(0, whole if one else len(trials), programs.placed)
        calls = [(programs.place, list(trials[each : each + programs.placed]), programs.placed) for each in starts]
        calls += [(one, [each], 1) for each in trials[whole:] if one]
        for place, some, count in calls:
            slots = np.full(count, out_of_range, np.int32)
            slots[: len(some)] = [number for number, _, _ in some]
            copies = [some[-1]] * (count - len(some))
            self.lanes = place(self.lanes, slots, *self._stacked([*some, *copies]))
        self._unwritten.difference_update(number for number, _, _ in trials)

    def _stacked(self, trials: Sequence[tuple[int, Trial, Weights]]) -> tuple[Settings, Any]:
        """Return the settings and the padded weights of trials, [trials, ...]."""
        like = self.bucket.program.architecture.abstract[1:]
        settings = jax.tree.map(lambda *each: np.stack(each), *(trial.settings.scalars() for _, trial, _ in trials))
        return settings, tuple(stack_padded([each[n] for *_, each in trials], part) for n, part in enumerate(like))

    def _read_lane(self, lanes: Part, number: int) -> Part:
        """Copy a lane, [1, ...], on the lane's own device; what the other devices have copied is dropped.

        Args:
            lanes: the state of all lanes, or a part of it.
            number: of the lane.
        """
        shard = self.placement.shard_of(number)
        states = self._programs.result().read_lane(lanes, np.int32(self.placement.index_in_shard(number)))

        if self._multi_host:  # all hosts have it, so that each can go on with it
            if self.placement.spread.parameters == 1:
                return hosts.local_row(states, shard, self.placement.replicated)
            # No device may have room for all of it, but the host has.
            replicated = self.placement.replicated
            return jax.tree.map(lambda leaf: _on_host(hosts.local_row(leaf, shard, replicated))[None], states)

        def own(leaf: Leaf) -> Leaf:
            if self.placement.spread != NOT_SPREAD:
                return leaf[shard : shard + 1]  # it stays on all devices of its own
            device = self.placement.devices[shard]
            return next(each.data for each in leaf.addressable_shards if each.device == device)

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
    left = call.plan.ending | {number for number in call.paused if not slots[number].out_of_patience}
    steps = call.steps.tolist()
    # Copies, as they were then: another call may have been launched since.
    staying = {n: replace(slot.copy(), step=steps[n]) for n, slot in slots.items() if n not in left and not slot.ended}
    for slot in staying.values():
        slot.count_to(clock)
    if isinstance(call.copied, dict):
        return Snapshot(None, {}, [Paused(slot, call.copied[number]) for number, slot in staying.items()])
    return Snapshot(call.copied, staying)
