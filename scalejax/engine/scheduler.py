"""The scheduler: keeps every lane of every device busy until no trial is left."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jax

from scalejax.data import DataSet
from scalejax.engine.checkpoint import Checkpoints, Shelf
from scalejax.engine.device import Device, Group, groups
from scalejax.engine.lanes import DeviceData, blocks
from scalejax.engine.mode import program_key
from scalejax.engine.numerics import Numerics, current, hold
from scalejax.engine.pack import Flight, Pack, Weights
from scalejax.engine.packing import Bucket
from scalejax.engine.programs import Workshop, short_of_memory
from scalejax.engine.refusal import Refusals, broke_off, reason_of
from scalejax.engine.slot import Finished, Parked, failed, stopped
from scalejax.engine.snapshot import Snapshot
from scalejax.engine.step import Examples
from scalejax.engine.tournament import Decision, Tournament
from scalejax.engine.trial import PlannedTrial
from scalejax.errors import RunError

STOP_SECONDS = 8.0  # for calls to end and checkpoints to be written once a run is told to stop

Waiting = PlannedTrial | Parked  # to begin, or to go on


@dataclass(frozen=True)
class Progress:
    """What a call of a program has brought: the steps that each trial took in it.

    `back` are trials that a refusal has sent back, and the steps that they go on from.
    """

    steps: dict[PlannedTrial, int]
    back: dict[PlannedTrial, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Observer:
    """Whom the scheduler tells; each is called by one thread at a time."""

    started: Callable[[Sequence[PlannedTrial]], None]
    finished: Callable[[Finished], None]
    progressed: Callable[[Progress], None]


@dataclass
class Work:
    """A bucket and those of its trials that wait for a lane."""

    bucket: Bucket
    queue: deque[Waiting]

    def estimate(self) -> float:
        """Return the seconds that the queue takes on one device, by the cost model."""
        return self.bucket.seconds / self.bucket.lanes * sum(map(_steps_left, self.queue))


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
        self._works = [
            Work(bucket, deque(planned for planned in bucket.trials if planned.trial_id in fresh)) for bucket in buckets
        ]
        self._home = {planned.trial_id: work for work in self._works for planned in work.bucket.trials}
        self._data = data
        self._observer = observer
        self._tournament = tournament
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._over = False  # whoever works still has come too late
        self._reached: dict[str, int] = {}  # steps of the trials that have begun, calls that are under way included
        self._refusals = Refusals()
        self.lost: dict[str, int] = {}
        self._errors: list[RunError] = []
        self._weights: dict[tuple, Weights] = {}
        self._workshop = Workshop(data.card)

    def run(self, devices: Sequence[Device]) -> bool:
        """Train everything. Returns whether all trials have ended; they have not if it was stopped.

        Raises:
            RunError: a worker met with trouble that is not of a trial, once the others have stopped and saved.
        """
        teams = groups(devices)
        self._admit()
        self._order_programs(teams)
        numerics = current()
        workers = [threading.Thread(target=self._work, args=(team, numerics), daemon=True) for team in teams]
        for worker in workers:
            worker.start()
        complete = False
        try:
            while (alive := [worker for worker in workers if worker.is_alive()]) and not self._stopping.is_set():
                alive[0].join(timeout=0.2)  # so that the main thread hears a signal
            complete = not self._stopping.is_set()
        finally:
            self._wind_up(workers, complete=complete)
        return complete

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
        if self._tournament:
            self._carry_out(self._tournament.begin())
        for parked in reversed(list(self._begun.values())):
            if self._tournament and not parked.slot.lacks:  # else its evaluation comes first
                self._carry_out(self._tournament.arrive(parked))
            else:
                self._home[parked.planned.trial_id].queue.appendleft(parked)
        self._begun = {}  # their states are large

    def _order_programs(self, teams: Sequence[Group]) -> None:
        """Have the programs compiled in the background, those first that are needed first.

        On one group they are needed in the order of their work; of several each begins with another bucket.
        """
        busy = [work for work in self._works if work.queue]
        for number, work in enumerate(sorted(busy, key=Work.estimate, reverse=True)):
            for architecture in work.bucket.architectures:
                self._workshop.order_initialiser(architecture)
            team = teams[number % len(teams)]
            self._workshop.order(work.bucket.recipe, work.bucket.lanes, _share(team, work.bucket))

    def _work(self, team: Group, numerics: Numerics) -> None:
        hold(numerics)
        try:
            data: dict[Group, DeviceData] = {}
            while not self._stopping.is_set():
                work = self._most_work()
                if not work.queue:
                    return
                part = _share(team, work.bucket)
                if part not in data:
                    data[part] = _device_data(self._data, part)
                self._train(work, part, data[part])
        except BaseException as error:
            self._errors.append(error if isinstance(error, RunError) else broke_off(error))
            self._stopping.set()

    def _most_work(self) -> Work:
        """Return the bucket with the most estimated work left."""
        with self._lock:
            return max(self._works, key=Work.estimate)

    def _train(self, work: Work, group: Group, data: DeviceData) -> None:
        """Run one pack until its queue and its lanes are empty, refilling every lane that becomes free.

        A call is launched before the outcome of the one before it is read, so that the devices never wait for the
        host; unless that outcome decides who goes on.
        """
        bucket = work.bucket
        flying: dict[str, Waiting] = {}
        flights: deque[Flight] = deque()
        shelf = self._checkpoints.open(program_key(bucket)[:8]) if self._checkpoints else None
        try:
            programs = self._workshop.order(bucket.recipe, bucket.lanes, group)
            pack = Pack(bucket, group=group, data=data, programs=programs)
            self._draw(work)
            while True:
                if not self._stopping.is_set():
                    self._refill(pack, work.queue, flying)
                    if pack.occupied:
                        flights.append(pack.launch(copy=self._due(shelf)))
                        self._reached |= flights[-1].reached
                        if len(flights) == 1 and not flights[0].decisive:
                            continue
                if not flights:
                    break
                self._land(pack, flights.popleft(), flying, work=work, shelf=shelf)
                while flights and flights[-1].decisive:
                    self._land(pack, flights.popleft(), flying, work=work, shelf=shelf)
            self._save(pack.snapshot(), work, shelf)
        except RunError:
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
                outside += [each for each in waiting if self._home[each.planned.trial_id] is work]
        self._checkpoints.save(shelf, replace(snapshot, parked=[*snapshot.parked, *outside]))

    def _land(self, pack: Pack, flight: Flight, flying: dict[str, Waiting], *, work: Work, shelf: Shelf | None) -> None:
        """Wait for a call, and tell what it has brought."""
        landing = pack.land(flight)
        with self._lock:
            if self._over:
                return
            self._observer.progressed(Progress(landing.steps))
            for finished in landing.ended:
                del flying[finished.planned.trial_id]
                self._end(finished)
            for parked in landing.parked:
                del flying[parked.planned.trial_id]
                if self._tournament:
                    self._carry_out(self._tournament.arrive(parked))
        if landing.snapshot:
            self._save(landing.snapshot, work, shelf)

    def _end(self, finished: Finished) -> None:
        if self._over:
            return
        self._reached.pop(finished.planned.trial_id, None)
        self._observer.finished(finished)
        if self._checkpoints:
            self._checkpoints.ended(finished.planned.trial_id)
        if self._tournament:
            self._carry_out(self._tournament.leave(finished))

    def _carry_out(self, decision: Decision) -> None:
        """Queue those whom halving lets go on, before all others, and end those whom it stops."""
        for waiting in decision.go_on:
            planned = waiting.planned if isinstance(waiting, Parked) else waiting
            self._home[planned.trial_id].queue.appendleft(waiting)
        for parked, reason in decision.stop:
            mode = self._home[parked.planned.trial_id].bucket.recipe.mode
            self._reached.pop(parked.planned.trial_id, None)
            self._observer.finished(stopped(parked, reason, mode=mode))
            if self._checkpoints:
                self._checkpoints.ended(parked.planned.trial_id)

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
                flying[_planned(first).trial_id] = first
            back = {name: saved.get(name, waiting) for name, waiting in flying.items()}
            steps = {name: _step(each) for name, each in back.items()}
            if short and bucket.lanes > 1:
                work.bucket = replace(bucket, lanes=min(work.bucket.lanes, bucket.lanes // 2))
            for name in self._refusals.failing(steps, lanes=bucket.lanes, short=short):
                self._end(failed(_planned(back.pop(name)), reason_of(error), mode=bucket.recipe.mode))
            work.queue.extendleft(reversed(back.values()))
            self._reached |= {name: steps[name] for name in back}
            self._observer.progressed(Progress({}, {_planned(each): steps[name] for name, each in back.items()}))

    def _saved(self, flying: Mapping[str, Waiting], bucket: Bucket, shelf: Shelf | None) -> dict[str, Waiting]:
        """Return those trials of a pack that have come further in its checkpoints than where they came into lanes."""
        if not (shelf and self._checkpoints):
            return {}
        found = self._checkpoints.latest(
            shelf, {name: (_planned(each), bucket.recipe) for name, each in flying.items()}
        )
        return {name: each for name, each in found.items() if each.slot.step > _step(flying[name])}

    def _refill(self, pack: Pack, queue: deque[Waiting], flying: dict[str, Waiting]) -> None:
        with self._lock:
            taken = list(zip(pack.free, _drain(queue), strict=False))
            flying.update({_planned(waiting).trial_id: waiting for _, waiting in taken})
            fresh = [(slot, waiting) for slot, waiting in taken if not isinstance(waiting, Parked)]
            self._observer.started([planned for _, planned in fresh])
        for slot, waiting in taken:
            if isinstance(waiting, Parked):
                pack.resume(slot, waiting)
        pack.place([(slot, planned, self._initial(planned)) for slot, planned in fresh])
        pack.fill_idle()

    def _draw(self, work: Work) -> None:
        """Draw all initial weights before the first call: later on an accelerator they would wait behind its work."""
        refused: dict[str, Exception] = {}
        for waiting in list(work.queue):
            if not isinstance(waiting, Parked) and not self._stopping.is_set():
                try:
                    self._initial(waiting)
                except (jax.errors.JaxRuntimeError, MemoryError):
                    raise
                except Exception as error:  # of the module, so of this size alone
                    refused[waiting.trial_id] = error
        with self._lock:
            for planned in [each for each in work.queue if _planned(each).trial_id in refused]:
                work.queue.remove(planned)
                reason = reason_of(refused[_planned(planned).trial_id])
                self._end(failed(_planned(planned), reason, mode=work.bucket.recipe.mode))

    def _initial(self, planned: PlannedTrial) -> Weights:
        """Return a trial's initial weights at its true size, on the host, drawn once for all trials that share them."""
        key = planned.trial.key("initialise")
        identity = (planned.architecture, key)
        if identity not in self._weights:
            weights = self._workshop.initial_weights(planned.architecture, key)
            with self._lock:
                self._weights[identity] = weights
        return self._weights[identity]


def _share(team: Group, bucket: Bucket) -> Group:
    """Return the devices of a group that have work in a bucket: three trials do not keep eight cores busy."""
    return team.first(bucket.count)


def _planned(waiting: Waiting) -> PlannedTrial:
    return waiting.planned if isinstance(waiting, Parked) else waiting


def _step(waiting: Waiting) -> int:
    return waiting.slot.step if isinstance(waiting, Parked) else 0


def _steps_left(waiting: Waiting) -> int:
    return max(1, _planned(waiting).trial.steps - _step(waiting))  # its last test may be left when its steps are not


def _drain(queue: deque[Waiting]) -> Iterator[Waiting]:
    while queue:
        yield queue.popleft()


def _device_data(data: DataSet, group: Group) -> DeviceData:
    """Put a data set on the devices of a group, once for all its programs."""
    return jax.device_put(
        DeviceData(
            pool=Examples(data.train.inputs, data.train.labels),
            validation=blocks(data.validation.inputs, data.validation.labels),
            test=blocks(data.test.inputs, data.test.labels),
        ),
        group.whole,
    )
