"""The scheduler: keeps every lane of every device busy until no trial is left."""

import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from heapq import heapify, heapreplace

import jax

from scalejax.data import DataSet
from scalejax.errors import RunError
from scalejax.execute.checkpoint import Checkpoints, Shelf
from scalejax.execute.devices import Device, Group, groups
from scalejax.execute.modes import program_key
from scalejax.execute.nursery import Nursery
from scalejax.execute.observer import Observer, Progress, guarded, left_over
from scalejax.execute.pack import Flight, Pack
from scalejax.execute.programs import Workshop, short_of_memory
from scalejax.execute.refusal import Refusals, broke_off, reason_of
from scalejax.execute.slot import Finished, Parked, failed, stopped
from scalejax.execute.snapshot import Snapshot
from scalejax.execute.successive_halving import Decision, Tournament
from scalejax.execute.work import Crew, Waiting, Work, all_steps_left, planned_of, step_of
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Trial
from scalejax.train.lanes import DeviceData, blocks
from scalejax.train.numerics import Numerics, current, hold
from scalejax.train.step import Examples

STOP_SECONDS = 8.0  # for calls to end and checkpoints to be written once a run is told to stop
ROUSE_SECONDS = 1.0  # to wait for a worker that tells what it has done, before those that sleep are told to end


class Scheduler:
    """Hands the trials of the buckets out to the groups of local devices, one worker thread a group.

    Args:
        buckets: of the sweep.
        waiting: ids of those of their trials that are to be trained.
        data: in memory.
        observer: is told what happens.
        tournament: the halving, if there is one.
        checkpoints: where trials on their way are kept, if they are.
        begun: trials that go on where an earlier run left them, by id.

    Attributes:
        lost: trials that were stopped and whose latest steps are in no checkpoint, and the step since which, by id.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        waiting: Collection[str],
        *,
        data: DataSet,
        observer: Observer,
        tournament: Tournament | None = None,
        checkpoints: Checkpoints | None = None,
        begun: Mapping[str, Parked] | None = None,
    ):
        self._begun = begun or {}
        fresh = {trial_id for trial_id in waiting if trial_id not in self._begun}
        steps_left = tournament.steps_left if tournament else all_steps_left
        self._works = [
            Work(bucket, deque(each for each in bucket.trials if each.trial_id in fresh), steps_left=steps_left)
            for bucket in buckets
        ]
        self._home = {trial.trial_id: work for work in self._works for trial in work.bucket.trials}
        self._data = data
        self._observer = guarded(observer)
        self._tournament = tournament
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there may be work for those that have none, or no more
        self._stopping = threading.Event()
        self._over = False  # whoever works still has come too late
        self._reached: dict[str, int] = {}  # steps of the trials that have begun, calls that are under way included
        self._refusals = Refusals()
        self.lost: dict[str, int] = {}
        self._errors: list[RunError] = []
        self._workshop = Workshop(data.card)
        self._nursery = Nursery(self._workshop.initial_weights)
        left = [each for bucket in buckets for each in bucket.trials if each.trial_id in fresh | self._begun.keys()]
        self._left = {each.trial_id for each in left}
        self._nursery.expect(left)

    def run(self, devices: Sequence[Device]) -> bool:
        """Train everything. Returns whether all trials have ended; they have not if it was stopped.

        Raises:
            RunError: a worker met with trouble that is not of a trial, once the others have stopped and saved.
        """
        teams = groups(devices)
        numerics = current()
        workers: list[threading.Thread] = []
        complete = False
        try:
            self._admit()
            first = self._order_programs(teams)
            workers = [
                threading.Thread(target=self._work, args=(*each, numerics), daemon=True) for each in first.items()
            ]
            for worker in workers:
                worker.start()
            while (alive := [worker for worker in workers if worker.is_alive()]) and not self._stopping.is_set():
                alive[0].join(timeout=0.2)  # so that the main thread hears a signal
            if self._left and not self._stopping.is_set():
                self._errors.append(left_over(len(self._left)))
            complete = not (self._stopping.is_set() or self._errors)
        finally:
            self._stopping.set()
            self._rouse()
            try:
                self._wind_up(workers, complete=complete)
            finally:
                self._nursery.close()
        return complete

    def _rouse(self) -> None:
        """Wake the workers that sleep. Not done by `stop`: a signal may have it called where the lock is held."""
        if self._lock.acquire(timeout=ROUSE_SECONDS):
            self._changed.notify_all()
            self._lock.release()

    def _wind_up(self, workers: Sequence[threading.Thread], *, complete: bool) -> None:
        """Wait for the workers and what they save; not for ever if they were told to stop."""
        self._stopping.set()
        deadline = time.monotonic() + STOP_SECONDS
        for worker in workers:
            worker.join(timeout=max(0.0, deadline - time.monotonic()))
        self._workshop.close(wait=complete)
        try:
            if self._checkpoints:
                left = max(1.0, deadline - time.monotonic())
                self._checkpoints.finish(complete=complete, seconds=None if complete else left)
        finally:
            with self._lock:
                self._over = True
            reached = list(self._reached.items())
            saved = self._checkpoints.steps if self._checkpoints else {}
            self.lost = {name: saved.get(name, 0) for name, step in reached if step > saved.get(name, 0)}
            if self._errors:
                raise self._errors[0]

    def stop(self) -> None:
        """Have the workers save what is running and end; `lost` tells what they had no time to save."""
        self._stopping.set()

    def _admit(self) -> None:
        """Queue the trials that an earlier run has begun before all others, unless halving has them wait or stop."""
        with self._lock:
            if self._tournament:
                self._carry_out(self._tournament.opening)
            for parked in reversed(list(self._begun.values())):
                if self._tournament and not parked.slot.lacks:  # else its evaluation comes first
                    self._carry_out(self._tournament.arrive(parked))
                else:
                    self._home[parked.trial.trial_id].queue.appendleft(parked)
        self._begun = {}  # their states are large

    def _order_programs(self, teams: Sequence[Group]) -> dict[Group, Work]:
        """Return with which bucket each group begins, and have programs compiled in the order of their first use.

        Which group takes which bucket later is a guess by the estimated work. A group is left out if it has none.
        """
        with self._lock:
            found = {team: self._choose(team) for team in teams}
        first = {team: work for team, work in found.items() if work}
        for team, work in first.items():
            self._order(work, team)
        later = [work for work in self._works if work.queue and not work.crews]
        ends = [(work.estimate() / len(work.crews), number) for number, work in enumerate(first.values())]
        heapify(ends)
        for work in sorted(later, key=Work.estimate, reverse=True):
            end, number = ends[0]
            self._order(work, list(first)[number])
            heapreplace(ends, (end + work.estimate(), number))
        return first

    def _order(self, work: Work, team: Group) -> None:
        for architecture in work.bucket.architectures:
            self._workshop.order_initialiser(architecture)
        self._workshop.order(work.bucket.program, work.bucket.lanes, work.share(team))

    def _work(self, team: Group, first: Work, numerics: Numerics) -> None:
        """Train bucket after bucket on a group, beginning with the one that it has joined."""
        hold(numerics)
        data: dict[Group, DeviceData] = {}
        work: Work | None = first
        try:
            while work:
                part = work.share(team)
                if part not in data:
                    data[part] = _device_data(self._data, part)
                self._train(work, part, data[part], crew=work.crews[team])
                work = self._next(team, work)
        except BaseException as error:
            # Once a run has stopped, programs and weights that are still to come are cancelled.
            if not (isinstance(error, CancelledError) and self._stopping.is_set()):
                self._errors.append(error if isinstance(error, RunError) else broke_off(error))
            self._stopping.set()

    def _next(self, team: Group, last: Work) -> Work | None:
        """Let a group leave a bucket and join the next one; None once there is nothing left to do.

        While others are at work trials may come back: from a rung, or from a device whose memory was short. A group
        without work sleeps until then.
        """
        with self._changed:
            del last.crews[team]
            self._changed.notify_all()
            while not self._stopping.is_set():
                if work := self._choose(team):
                    return work
                if not any(each.crews for each in self._works):
                    return None
                self._changed.wait()
            return None

    def _choose(self, team: Group) -> Work | None:
        """Let a group join the bucket with the most estimated work a group, if there is work for one more."""
        work = max(self._works, key=Work.attraction)
        if not work.attraction():
            return None
        work.join(team)
        return work

    def _train(self, work: Work, group: Group, data: DeviceData, *, crew: Crew) -> None:
        """Run one pack until its queue and its lanes are empty, refilling every lane that becomes free.

        A call is launched before the outcome of the one before it is read, so that the devices never wait for the
        host; unless that outcome decides who goes on.
        """
        bucket = work.bucket
        flying = crew.flying
        flights: deque[Flight] = deque()
        shelf = self._checkpoints.open(program_key(bucket)[:8]) if self._checkpoints else None
        try:
            programs = self._workshop.order(bucket.program, bucket.lanes, group)
            pack = Pack(bucket, group=group, data=data, programs=programs)
            while True:
                if not self._stopping.is_set():
                    self._refill(pack, work, crew)
                    if pack.occupied:
                        flights.append(pack.launch(copy=self._due(shelf)))
                        self._reached |= flights[-1].reached
                        crew.room = len(pack.free)
                        if len(flights) == 1 and not flights[0].decisive:
                            continue
                if not flights:
                    break
                self._land(pack, flights.popleft(), flying, work=work, shelf=shelf)
                while flights and flights[-1].decisive:
                    self._land(pack, flights.popleft(), flying, work=work, shelf=shelf)
            self._save(pack.snapshot(), work, shelf)
        except (RunError, CancelledError):
            raise  # trouble of the run, not of a trial
        except Exception as error:  # a device that refuses, or a module that fails
            self._refused(work, bucket, flying, error, shelf=shelf)
        finally:
            if shelf and self._checkpoints and not self._stopping.is_set():
                self._checkpoints.close(shelf)

    def _due(self, shelf: Shelf | None) -> bool:
        return bool(shelf and self._checkpoints and self._checkpoints.due(shelf))

    def _save(self, snapshot: Snapshot, work: Work, shelf: Shelf | None) -> None:
        """Have a pack's trials written, those at a rung and those that wait to go on included."""
        if not (shelf and self._checkpoints):
            return
        with self._lock:
            outside = [waiting for waiting in work.queue if isinstance(waiting, Parked)]
            if self._tournament:
                waiting = self._tournament.waiting
                outside += [each for each in waiting if self._home[each.trial.trial_id] is work]
            known = snapshot.trial_ids | {each.trial.trial_id for each in outside}
            outside += work.taken(but=known)  # into lanes since the snapshot was made, or into those of another group
        self._checkpoints.save(shelf, replace(snapshot, parked=[*snapshot.parked, *outside]))

    def _land(self, pack: Pack, flight: Flight, flying: dict[str, Waiting], *, work: Work, shelf: Shelf | None) -> None:
        """Wait for a call, and tell what it has brought."""
        landing = pack.land(flight)
        with self._lock:
            if self._over:
                return
            self._observer.progressed(Progress(landing.steps))
            for finished in landing.ended:
                del flying[finished.trial.trial_id]
                self._end(finished)
            for parked in landing.parked:
                del flying[parked.trial.trial_id]
                if self._tournament:
                    self._carry_out(self._tournament.arrive(parked))
        if landing.snapshot:
            self._save(landing.snapshot, work, shelf)

    def _end(self, finished: Finished) -> None:
        if self._over:
            return
        self._tell(finished)
        if self._tournament:
            self._carry_out(self._tournament.leave(finished))

    def _carry_out(self, decision: Decision) -> None:
        """Queue those whom halving lets go on, before all others, and end those whom it stops."""
        for waiting in decision.go_on:
            trial = waiting.trial if isinstance(waiting, Parked) else waiting
            self._home[trial.trial_id].queue.appendleft(waiting)
            if not isinstance(waiting, Parked):
                self._left.add(trial.trial_id)
                self._nursery.expect([trial])
        if decision.go_on:
            self._changed.notify_all()
        for parked, reason in decision.stop:
            mode = self._home[parked.trial.trial_id].bucket.program.mode
            self._tell(stopped(parked, reason, mode=mode))

    def _tell(self, finished: Finished) -> None:
        """Tell of a trial that has ended, and forget it."""
        self._observer.finished(finished)
        self._reached.pop(finished.trial.trial_id, None)
        self._left.discard(finished.trial.trial_id)
        self._nursery.ended(finished.trial)
        if self._checkpoints:
            self._checkpoints.ended(finished.trial.trial_id)

    def _refused(
        self, work: Work, bucket: Bucket, flying: dict[str, Waiting], error: Exception, *, shelf: Shelf | None
    ) -> None:
        """Answer to a device that refuses: fewer lanes if memory is short, else its trials fail; others may still fit.

        Where memory is short, trials go back to the queue from where they were last saved, or came into their lanes.
        One that is refused twice at the same step, alone on its device, fails.
        """
        short = short_of_memory(error)
        saved = self._saved(flying, bucket, shelf) if short else {}
        with self._lock:
            if self._stopping.is_set():
                return  # they go on in the next run
            if not flying and work.queue:  # refused before any trial was placed
                first = work.queue.popleft()
                flying[planned_of(first).trial_id] = first
            back = {name: saved.get(name, waiting) for name, waiting in flying.items()}
            steps = {name: step_of(each) for name, each in back.items()}
            if short and bucket.lanes > 1:
                work.bucket = replace(bucket, lanes=min(work.bucket.lanes, bucket.lanes // 2))
            for name in self._refusals.failing(steps, lanes=bucket.lanes, short=short):
                self._end(failed(planned_of(back.pop(name)), reason_of(error), mode=bucket.program.mode))
            work.queue.extendleft(reversed(back.values()))
            self._reached |= {name: steps[name] for name in back}
            self._observer.progressed(Progress({}, {planned_of(each): steps[name] for name, each in back.items()}))

    def _saved(self, flying: Mapping[str, Waiting], bucket: Bucket, shelf: Shelf | None) -> dict[str, Waiting]:
        """Return those trials of a pack that have come further in its checkpoints than where they came into lanes."""
        if not (shelf and self._checkpoints):
            return {}
        found = self._checkpoints.latest(
            shelf, {name: (planned_of(each), bucket.program) for name, each in flying.items()}
        )
        return {name: each for name, each in found.items() if each.slot.step > step_of(flying[name])}

    def _refill(self, pack: Pack, work: Work, crew: Crew) -> None:
        """Give the free lanes to trials that wait; one whose weights cannot be drawn fails and leaves its lane."""
        while refused := self._fill(pack, work, crew):
            with self._lock:
                for trial, error in refused:
                    del crew.flying[trial.trial_id]
                    self._end(failed(trial, reason_of(error), mode=pack.bucket.program.mode))
        pack.fill_idle()
        with self._lock:
            following = list(work.next_fresh(len(pack.free) + len(pack.occupied)))
        self._nursery.ahead(following)

    def _fill(self, pack: Pack, work: Work, crew: Crew) -> list[tuple[Trial, Exception]]:
        """Give the free lanes to trials that wait; return those whose weights cannot be drawn, and why."""
        with self._lock:
            free = pack.free
            taken = list(zip(free, _drain(work.queue), strict=False))
            crew.flying.update({planned_of(waiting).trial_id: waiting for _, waiting in taken})
            crew.room = len(free) - len(taken)
            fresh = [(slot, waiting) for slot, waiting in taken if not isinstance(waiting, Parked)]
            self._observer.started([trial for _, trial in fresh])
        for slot, waiting in taken:
            if isinstance(waiting, Parked):
                pack.resume(slot, waiting)
        weights = self._nursery.take([trial for _, trial in fresh])
        drawn = [(slot, trial, own) for (slot, trial), own in zip(fresh, weights, strict=True)]
        pack.place([(slot, trial, own) for slot, trial, own in drawn if not isinstance(own, Exception)])
        return [(trial, own) for _, trial, own in drawn if isinstance(own, Exception)]


def _drain(queue: deque[Waiting]) -> Iterator[Waiting]:
    while queue:
        yield queue.popleft()


def _device_data(data: DataSet, group: Group) -> DeviceData:
    """Put a data set on the devices of a group, once for all its programs."""
    return jax.device_put(
        DeviceData(
            pool=Examples(data.train.inputs, data.train.targets),
            validation=blocks(data.validation.inputs, data.validation.targets),
            test=blocks(data.test.inputs, data.test.targets),
        ),
        group.whole,
    )
