"""The scheduler: keeps every lane of every device busy until no trial is left."""

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import jax

from scalejax.data import DataSet
from scalejax.engine.device import Device, Group, groups
from scalejax.engine.lanes import DeviceData, blocks
from scalejax.engine.pack import Finished, Flight, Pack, Parked, Weights, failed, stopped
from scalejax.engine.packing import Bucket
from scalejax.engine.programs import Workshop
from scalejax.engine.step import Examples
from scalejax.engine.tournament import Decision, Tournament
from scalejax.engine.trial import PlannedTrial

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of XLA's error

Waiting = PlannedTrial | Parked  # to begin, or to go on


@dataclass(frozen=True)
class Progress:
    """What a call of a program has brought: the steps that each trial took in it."""

    steps: dict[PlannedTrial, int]


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
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        waiting: Collection[str],
        *,
        data: DataSet,
        observer: Observer,
        tournament: Tournament | None = None,
    ):
        self._works = [
            Work(bucket, deque(planned for planned in bucket.trials if planned.trial_id in waiting))
            for bucket in buckets
        ]
        self._home = {planned.trial_id: work for work in self._works for planned in work.bucket.trials}
        self._data = data
        self._observer = observer
        self._tournament = tournament
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._weights: dict[tuple, Weights] = {}
        self._workshop = Workshop(data.card)

    def run(self, devices: Sequence[Device]) -> None:
        """Train everything. Returns when all trials have ended.

        Raises:
            BaseException: what a worker raised outside a trial, once the others have stopped.
        """
        teams = groups(devices)
        if self._tournament:
            self._carry_out(self._tournament.begin())
        self._order_programs(teams)
        workers = [threading.Thread(target=self._work, args=(team,), daemon=True) for team in teams]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(timeout=0.2)  # so that the main thread hears an interrupt
        finally:
            self._stopping.set()
            for worker in workers:
                worker.join()
            self._workshop.close()
        if self._errors:
            raise self._errors[0]

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

    def _work(self, team: Group) -> None:
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
            self._errors.append(error)
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
        try:
            programs = self._workshop.order(bucket.recipe, bucket.lanes, group)
            pack = Pack(bucket, group=group, data=data, programs=programs)
            self._draw(list(work.queue))
            while True:
                if not self._stopping.is_set():
                    self._refill(pack, work.queue, flying)
                    if pack.occupied:
                        flights.append(pack.launch())
                        if len(flights) == 1 and not flights[0].decisive:
                            continue
                if not flights:
                    return
                self._land(pack, flights.popleft(), flying)
                while flights and flights[-1].decisive:
                    self._land(pack, flights.popleft(), flying)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            self._refused(work, bucket, flying, error)

    def _land(self, pack: Pack, flight: Flight, flying: dict[str, Waiting]) -> None:
        """Wait for a call, and tell what it has brought."""
        landing = pack.land(flight)
        with self._lock:
            self._observer.progressed(Progress(landing.steps))
            for finished in landing.ended:
                del flying[finished.planned.trial_id]
                self._end(finished)
            for parked in landing.parked:
                del flying[parked.planned.trial_id]
                if self._tournament:
                    self._carry_out(self._tournament.arrive(parked))

    def _end(self, finished: Finished) -> None:
        self._observer.finished(finished)
        if self._tournament:
            self._carry_out(self._tournament.leave(finished))

    def _carry_out(self, decision: Decision) -> None:
        """Queue those whom halving lets go on, before all others, and end those whom it stops."""
        for waiting in decision.go_on:
            planned = waiting.planned if isinstance(waiting, Parked) else waiting
            self._home[planned.trial_id].queue.appendleft(waiting)
        for parked, reason in decision.stop:
            mode = self._home[parked.planned.trial_id].bucket.recipe.mode
            self._observer.finished(stopped(parked, reason, mode=mode))

    def _refused(self, work: Work, bucket: Bucket, flying: dict[str, Waiting], error: Exception) -> None:
        """Answer to a device that refuses: fewer lanes if memory is short, else its trials fail; others may still fit.

        Trials that go back to the queue begin again, or at the rung from which they went on.
        """
        with self._lock:
            if not flying and work.queue:  # refused before any trial was placed
                first = work.queue.popleft()
                flying[_planned(first).trial_id] = first
            if bucket.lanes > 1 and (isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error)):
                work.bucket = replace(bucket, lanes=min(work.bucket.lanes, bucket.lanes // 2))
                work.queue.extendleft(reversed(flying.values()))
                return
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            for waiting in flying.values():
                self._end(failed(_planned(waiting), reason, mode=bucket.recipe.mode))

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

    def _draw(self, queue: Sequence[Waiting]) -> None:
        """Draw all initial weights before the first call: later on an accelerator they would wait behind its work."""
        for waiting in queue:
            if not isinstance(waiting, Parked):
                self._initial(waiting)

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


def _steps_left(waiting: Waiting) -> int:
    return waiting.planned.trial.steps - waiting.slot.step if isinstance(waiting, Parked) else waiting.trial.steps


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
