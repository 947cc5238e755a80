"""The scheduler: keeps every lane of every worker busy until no trial is left.

Here is the policy: which worker trains which bucket, which trial comes next, what halving decides, what follows when a
device refuses, and what is saved. How a pack runs is the worker's matter; the arrays here are on the host.
"""

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heapify, heapreplace

from scalejax.data import DataSet
from scalejax.data.own_examples import FeatureFits, OwnExamples
from scalejax.errors import HostError, RunError
from scalejax.execute import hosts
from scalejax.execute.checkpoint import Checkpoints, PackCheckpoints
from scalejax.execute.devices import groups
from scalejax.execute.initial_weights import InitialWeights, Weights, behind_features
from scalejax.execute.modes import program_key
from scalejax.execute.observer import Leaving, Moves, Observer, Place, Progress, deferred, guarded
from scalejax.execute.pack import CallResult
from scalejax.execute.programs import Compiler
from scalejax.execute.refusal import Refusals, broke_off, reason_of, short_of_memory
from scalejax.execute.slot import Finished, Paused, Waiting, failed, step_of, trial_of
from scalejax.execute.snapshot import Snapshot
from scalejax.execute.successive_halving import Decision, SuccessiveHalving
from scalejax.execute.worker import Feed, LocalWorker, Report, Worker
from scalejax.models import Architecture
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Device
from scalejax.planning.schedule import work_for_one_more
from scalejax.planning.trial import Trial
from scalejax.status import Status
from scalejax.text import number_of

TROUBLE = 255  # the code that stops a run where it is no signal
STOP_SECONDS = 8.0  # for calls to end and checkpoints to be written once a run is told to stop
WAKE_SECONDS = 1.0  # to wait for a worker that reports, before those that sleep are told to end

StepsLeft = Callable[[Trial, int], float]  # that a trial at a step is expected to take


class BucketQueue:
    """A bucket, those of its trials that wait for a lane, and the workers that train it.

    Args:
        bucket: its trials and their program; with fewer lanes once memory turns out to be short.
        waiting: trials in the order in which they get lanes.
        steps_left: of a trial at a step.
    """

    def __init__(self, bucket: Bucket, waiting: Iterable[Waiting], *, steps_left: StepsLeft):
        self.bucket = bucket
        self.waiting = deque(waiting)
        self.assignments: dict[Worker, Assignment] = {}
        self._steps_left = steps_left
        self._step_seconds = bucket.seconds / bucket.lanes  # of one trial; also where lanes become fewer

    def seconds(self, beyond: int = 0) -> float:
        """Return the seconds that all but the first few waiting trials take on one device, by the cost model."""
        # Of a trial whose steps are all taken the last test may be left.
        steps = (
            max(1.0, self._steps_left(trial_of(each), step_of(each)))
            for each in itertools.islice(self.waiting, beyond, None)
        )
        return self._step_seconds * sum(steps)

    def attraction(self) -> float:
        """Return the seconds of work that one more worker would find here; what there are free lanes for is taken."""
        return work_for_one_more(
            self.seconds(sum(each.free for each in self.assignments.values())), len(self.assignments)
        )


@dataclass(eq=False)
class Assignment:
    """A bucket that a worker trains.

    Attributes:
        queue: of the bucket.
        bucket: as the worker took it; that of the queue may have fewer lanes by now.
        lanes: how many trials the worker trains at the same time.
        free: those of its lanes that have no trial.
        taken: the trials that it has, by id, as they were when it took them.
        foreseen: how many trials waited when the weights of the next ones were last asked for.
        checkpoints: of this pack.
        landed: when its latest call did, in seconds since 1970.
    """

    queue: BucketQueue
    bucket: Bucket
    lanes: int
    free: int
    place: Place
    taken: dict[str, Waiting] = field(default_factory=dict)
    foreseen: int = -1
    checkpoints: PackCheckpoints | None = None
    landed: float = 0.0


class Scheduler:
    """Hands the trials of the buckets out to workers, each in a thread of its own.

    Args:
        buckets: of the sweep.
        waiting: ids of those of their trials that are to be trained.
        data: in memory.
        observer: is told what happens.
        halving: of the learning rates, if they are halved.
        checkpoints: where running trials are saved, if they are.
        begun: trials that continue where an earlier run left them, by id.
        keep_weights: whether the observer is given the best parameters of the trials that are done.

    Attributes:
        signal: by which the run was stopped, whichever host has received it; 0 if by none.
        lost: trials that were stopped and whose latest steps are in no checkpoint, and the step since which, by id.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        waiting: Collection[str],
        *,
        data: DataSet,
        observer: Observer,
        halving: SuccessiveHalving | None = None,
        checkpoints: Checkpoints | None = None,
        begun: Mapping[str, Paused] | None = None,
        keep_weights: bool = False,
    ):
        self._keep_weights = keep_weights
        self._begun = begun or {}
        fresh = set(waiting) - self._begun.keys()
        steps_left = halving.steps_left if halving else lambda trial, step: trial.settings.steps - step
        self._queues = [
            BucketQueue(bucket, (trial for trial in bucket.trials if trial.trial_id in fresh), steps_left=steps_left)
            for bucket in buckets
        ]
        self._queue_of = {trial.trial_id: queue for queue in self._queues for trial in queue.bucket.trials}
        self._data = data
        self._errors: list[RunError] = []
        self._observer = guarded(observer) if hosts.is_single() else deferred(guarded(observer), self._defer)
        self._halving = halving
        self._checkpoints = checkpoints
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # there may be work for workers that have none, or no more
        self._packs = itertools.count()
        self._groups: dict[Worker, int] = {}
        self._stopping = threading.Event()
        self._stop_flag = hosts.SharedFlag()
        self._stop_code = 0  # that this host sets the flag to
        self.signal = 0
        self._over = False  # what a worker still reports comes too late
        self._reached: dict[str, int] = {}  # steps of the trials that have begun, pending calls included
        self._refusals = Refusals()
        self.lost: dict[str, int] = {}
        self._compiler = Compiler(data.card)
        self._fits = FeatureFits(data)
        self._weights = InitialWeights(self._draw)
        left = [trial for bucket in buckets for trial in bucket.trials if trial.trial_id in fresh | self._begun.keys()]
        self._left = {trial.trial_id for trial in left}
        self._weights.expect(left)

    def run(self, devices: Sequence[Device], *, group_size: int = 1) -> bool:
        """Train everything on local devices, one worker a group of `group_size`; see `run_on`."""
        workers = [
            LocalWorker(group, data=self._data, compiler=self._compiler, keep_weights=self._keep_weights)
            for group in groups(devices, size=group_size)
        ]
        return self.run_on(workers)

    def run_on(self, workers: Sequence[Worker]) -> bool:
        """Train everything. Returns whether all trials have ended; they have not if it was stopped.

        Raises:
            RunError: a worker met with trouble that is not of a trial, once the others have stopped and saved.
        """
        threads: list[threading.Thread] = []
        complete = False
        try:
            self._groups = {worker: number for number, worker in enumerate(workers)}
            self._admit()
            first = self._assign_first(workers)
            threads = [threading.Thread(target=self._work, args=each, daemon=True) for each in first.items()]
            for thread in threads:
                thread.start()
            while (alive := [thread for thread in threads if thread.is_alive()]) and not self._stopping.is_set():
                alive[0].join(timeout=0.2)  # so that the main thread hears a signal
            if self._left and not self._stopping.is_set():
                says = f"{number_of(len(self._left), 'trial')} did not end, and no other trial is left to wait for"
                remedy = "this is a mistake in scalejax; finished trials are kept, and the same command resumes"
                self._errors.append(RunError(f"{says}; {remedy}"))
            complete = not (self._stopping.is_set() or self._errors)
            if not hosts.is_single():
                complete = self._all_hosts_ended(threads)
        finally:
            self._stopping.set()
            # Wake the workers that sleep. Not done by `stop`: a signal may have it called where the lock is held.
            if self._lock.acquire(timeout=WAKE_SECONDS):
                self._changed.notify_all()
                self._lock.release()
            try:
                self._wind_up(threads, complete=complete)
            finally:
                self._weights.close()
        return complete

    def stop(self, by: int = TROUBLE) -> None:
        """Have the workers save what is running and end; `lost` is what they had no time to save.

        Of several hosts all stop, after the next call that they launch.
        """
        self._stop_code = self._stop_code or by
        if hosts.is_single():
            self.signal = 0 if by == TROUBLE else by
            self._stopping.set()

    def _stops(self) -> bool:
        """Say whether the run stops; on all hosts the same, whichever of them was stopped."""
        if not (hosts.is_single() or self._stopping.is_set()) and (code := self._stop_flag.poll(self._stop_code)):
            self.signal = 0 if code == TROUBLE else code
            self._stopping.set()
        return self._stopping.is_set()

    def _defer(self, error: RunError) -> None:
        """Keep trouble that this host alone knows, and have all hosts stop for it."""
        self._errors.append(error)
        self.stop()

    def _all_hosts_ended(self, threads: Sequence[threading.Thread]) -> bool:
        """Wait for the workers, however long they take, and return whether all hosts have come to the end.

        Raises:
            HostError: trouble of this host, for which the others wait in vain.
        """
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)
        for error in self._errors:
            if isinstance(error, HostError):
                self.signal = 0
                raise error
        troubled = [host for host, trouble in enumerate(hosts.all_gather(bool(self._errors))) if trouble]
        if troubled and not self._errors:
            says = f"training broke off: host {troubled[0]} met with trouble; its own output says which"
            self._errors.append(RunError(f"{says}; finished trials are kept, and the same command resumes"))
        return not (self._stopping.is_set() or self._errors)

    def _wind_up(self, threads: Sequence[threading.Thread], *, complete: bool) -> None:
        """Wait for the workers and what they save; not for ever if they were told to stop."""
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        self._compiler.close(wait=complete)
        try:
            if self._checkpoints:
                left = max(1.0, deadline - time.monotonic())
                self._checkpoints.finish(complete=complete, seconds=None if complete else left)
        finally:
            with self._lock:
                self._over = True
            reached = list(self._reached.items())
            saved = self._checkpoints.steps if self._checkpoints else {}
            if self.signal and not hosts.is_single():  # each host knows what it has saved itself
                of_hosts = hosts.all_gather(saved)
                saved = {name: max(each.get(name, 0) for each in of_hosts) for name in set().union(*of_hosts)}
            self.lost = {name: saved.get(name, 0) for name, step in reached if step > saved.get(name, 0)}
            if self._errors:
                raise self._errors[0]

    def _admit(self) -> None:
        """Queue the trials that an earlier run has begun before all others, unless halving has them wait or stop."""
        with self._lock:
            if self._halving:
                self._carry_out(self._halving.opening)
            for paused in reversed(list(self._begun.values())):
                if self._halving and not paused.slot.unmeasured:  # else its evaluation comes first
                    self._carry_out(self._halving.arrive(paused))
                else:
                    self._queue_of[paused.trial.trial_id].waiting.appendleft(paused)
        self._begun = {}  # their states are large

    def _assign_first(self, workers: Sequence[Worker]) -> dict[Worker, Assignment]:
        """Return the bucket with which each worker begins, and have programs compiled in the order of their first use.

        Which worker takes which bucket later is a guess by the estimated work. A worker is left out if it has none.
        """
        with self._lock:
            chosen = {worker: self._choose(worker) for worker in workers}
        first = {worker: assignment for worker, assignment in chosen.items() if assignment}
        for worker, assignment in first.items():
            self._prepare(worker, assignment.bucket)
        later = [queue for queue in self._queues if queue.waiting and not queue.assignments]
        queues = [assignment.queue for assignment in first.values()]
        ends = [(queue.seconds() / len(queue.assignments), number) for number, queue in enumerate(queues)]
        heapify(ends)
        for queue in sorted(later, key=BucketQueue.seconds, reverse=True):
            end, number = ends[0]
            self._prepare(list(first)[number], queue.bucket)
            heapreplace(ends, (end + queue.seconds(), number))
        return first

    def _prepare(self, worker: Worker, bucket: Bucket) -> None:
        worker.prepare(bucket)  # first, because it takes longest
        for architecture in bucket.architectures:
            self._compiler.initialiser(architecture)

    def _choose(self, worker: Worker) -> Assignment | None:
        """Assign the bucket with the most estimated work a worker, if there is work for one more."""
        queue = max(self._queues, key=BucketQueue.attraction, default=None)
        if queue is None or not queue.attraction():
            return None
        lanes = worker.lanes(queue.bucket)
        place = Place(next(self._packs), self._groups[worker], queue.bucket, lanes)
        queue.assignments[worker] = Assignment(queue, queue.bucket, lanes, free=lanes, place=place)
        return queue.assignments[worker]

    def _work(self, worker: Worker, assignment: Assignment | None) -> None:
        """Train bucket after bucket, beginning with the one that is assigned."""
        try:
            while assignment:
                self._train(worker, assignment)
                assignment = self._next(worker, assignment)
        except BaseException as error:
            # Once a run has stopped, programs and weights that are still to come are cancelled.
            if not (isinstance(error, CancelledError) and self._stopping.is_set()):
                trouble = error if isinstance(error, RunError) else broke_off(error)
                self._errors.append(trouble if hosts.is_single() else HostError(str(trouble)))
            self._stopping.set()

    def _next(self, worker: Worker, last: Assignment) -> Assignment | None:
        """Let a worker leave a bucket and take the next one; None once there is nothing left to do.

        While others are at work trials may come back: from a rung, or from a device whose memory was short. A worker
        without work sleeps until then.
        """
        with self._changed:
            del last.queue.assignments[worker]
            self._changed.notify_all()
            while not self._stopping.is_set():
                if assignment := self._choose(worker):
                    return assignment
                if not any(queue.assignments for queue in self._queues):
                    return None
                self._changed.wait()
            return None

    def _train(self, worker: Worker, assignment: Assignment) -> None:
        """Have a worker run one pack until its queue and its lanes are empty."""
        if self._checkpoints:
            assignment.checkpoints = self._checkpoints.open(program_key(assignment.bucket)[:8])
        feed = Feed(self._stops, partial(self._take, assignment), partial(self._due, assignment))
        report = Report(
            partial(self._launched, assignment), partial(self._landed, assignment), partial(self._save, assignment)
        )
        try:
            worker.run(assignment.bucket, feed, report)
        except (RunError, CancelledError):
            raise  # trouble of the run, not of a trial
        except Exception as error:  # a device that refuses, or a module that fails
            self._withdraw(assignment, Leaving.REFUSED)
            self._refused(assignment, error)
        finally:
            self._withdraw(assignment, Leaving.INTERRUPTED)
            if self._checkpoints and assignment.checkpoints and not self._stopping.is_set():
                self._checkpoints.close(assignment.checkpoints)

    def _draw(self, architecture: Architecture, key: int, own: OwnExamples | None = None) -> Weights:
        weights = self._compiler.initial_weights(architecture, key)
        return weights if own is None else behind_features(weights, self._fits, architecture.features, own)

    def _take(self, assignment: Assignment, lanes: int) -> list[tuple[Trial, Weights] | Paused]:
        """Return the next trials for free lanes; those whose weights cannot be drawn fail, and others come instead."""
        waiting, given = assignment.queue.waiting, []
        while len(given) < lanes and waiting:
            with self._lock:
                taken = [waiting.popleft() for _ in range(min(lanes - len(given), len(waiting)))]
                assignment.taken |= {trial_of(each).trial_id: each for each in taken}
                assignment.free = lanes - len(given) - len(taken)
                fresh = [each for each in taken if not isinstance(each, Paused)]
                if fresh:
                    self._observer.started(fresh)
            weights = iter(self._weights.take(fresh))
            drawn = [each if isinstance(each, Paused) else (each, next(weights)) for each in taken]
            with self._lock:
                for each in drawn:
                    if isinstance(each, tuple) and isinstance(each[1], Exception):
                        del assignment.taken[each[0].trial_id]
                        self._end(failed(each[0], reason_of(each[1]), mode=assignment.bucket.program.mode))
                    else:
                        given.append(each)
        if not lanes and len(waiting) == assignment.foreseen:
            return given  # most calls: the weights of those that wait have been asked for
        with self._lock:
            assignment.free, assignment.foreseen = lanes - len(given), len(waiting)
            following = list(
                itertools.islice((each for each in waiting if not isinstance(each, Paused)), assignment.lanes)
            )
        self._weights.ahead(following)
        return given

    def _due(self, assignment: Assignment) -> bool:
        pack = assignment.checkpoints
        if not (pack and self._checkpoints):
            return False
        try:
            due = self._checkpoints.due(pack)
        except RunError as error:
            if hosts.is_single():
                raise
            self._defer(error)
            due = False
        return hosts.broadcast(lambda: due)

    def _launched(self, assignment: Assignment, steps: Mapping[str, int], free: int) -> None:
        self._reached |= steps
        assignment.free = free

    def _landed(self, assignment: Assignment, result: CallResult) -> None:
        """Tell what a call has brought, and carry out what halving makes of it."""
        with self._lock:
            if self._over:
                return
            self._observer.progressed(Progress(result.steps))
            self._move(assignment, result)
            for finished in result.ended:
                del assignment.taken[finished.trial.trial_id]
                self._end(finished)
            for paused in result.paused:
                del assignment.taken[paused.trial.trial_id]
                if self._halving:
                    self._carry_out(self._halving.arrive(paused))
        if result.snapshot:
            self._save(assignment, result.snapshot)

    def _move(self, assignment: Assignment, result: CallResult) -> None:
        """Tell which trials a call has brought into lanes and which have left them."""
        # By this host's clock: the worker's may be another one. No call begins before the one before it has ended.
        now = time.time()
        began, assignment.landed = max(now - result.seconds, assignment.landed), now
        left = {end.trial.trial_id: end.status for end in result.ended}
        left |= {paused.trial.trial_id: Leaving.RUNG for paused in result.paused}
        steps = next(iter(result.steps.values()), 0)  # all lanes take the same
        self._observer.moved(Moves(assignment.place, min(began, now), now, steps, result.entered, left))

    def _withdraw(self, assignment: Assignment, why: Leaving) -> None:
        """Tell that a worker has left its lanes, with all trials that are still in them."""
        with self._lock:
            if not self._over:
                now = time.time()
                left = dict.fromkeys(assignment.taken, why)
                self._observer.moved(Moves(assignment.place, now, now, 0, entered={}, left=left))

    def _save(self, assignment: Assignment, snapshot: Snapshot) -> None:
        """Have a pack's trials written, those of its bucket that are in no lane included."""
        if not (self._checkpoints and assignment.checkpoints):
            return
        queue = assignment.queue
        with self._lock:
            # Those that wait for a lane, and those that wait at a rung; then those that have been taken into lanes
            # since the snapshot was made, or by another worker, as they were then.
            outside = [each for each in queue.waiting if isinstance(each, Paused)]
            at_rungs = self._halving.waiting if self._halving else []
            outside += [paused for paused in at_rungs if self._queue_of[paused.trial.trial_id] is queue]
            known = snapshot.steps.keys() | {paused.trial.trial_id for paused in outside}
            taken = [each for other in queue.assignments.values() for each in other.taken.values()]
            outside += [each for each in taken if isinstance(each, Paused) and each.trial.trial_id not in known]
        whole = replace(snapshot, paused=[*snapshot.paused, *outside])
        self._checkpoints.save(assignment.checkpoints, whole.of_this_host())

    def _refused(self, assignment: Assignment, error: Exception) -> None:
        """Answer to a device that refuses: fewer lanes if memory is short, else its trials fail; others may still fit.

        Where memory is short, trials go back to the queue from where they were last saved, or came into their lanes.
        One that is refused twice at the same step, alone on its device, fails.
        """
        queue, bucket, taken = assignment.queue, assignment.bucket, assignment.taken
        short, saved = short_of_memory(error), {}
        if short and self._checkpoints and assignment.checkpoints and hosts.is_single():
            homes = {name: (trial_of(each), bucket.program) for name, each in taken.items()}
            saved = self._checkpoints.latest(assignment.checkpoints, homes)
        with self._lock:
            if self._stopping.is_set():
                return  # they continue in the next run
            if not taken and queue.waiting:  # refused before any trial was placed
                first = queue.waiting.popleft()
                taken[trial_of(first).trial_id] = first
            back = {name: max(each, saved.get(name, each), key=step_of) for name, each in taken.items()}
            steps = {name: step_of(each) for name, each in back.items()}
            if short and bucket.lanes > 1:
                queue.bucket = replace(bucket, lanes=min(queue.bucket.lanes, bucket.lanes // 2))
            for name in self._refusals.failing(steps, lanes=bucket.lanes, short=short):
                self._end(failed(trial_of(back.pop(name)), reason_of(error), mode=bucket.program.mode))
            queue.waiting.extendleft(reversed(back.values()))
            self._reached |= {name: steps[name] for name in back}
            self._observer.progressed(Progress({}, {name: steps[name] for name in back}))

    def _end(self, finished: Finished) -> None:
        if self._over:
            return
        self._tell(finished)
        if self._halving:
            self._carry_out(self._halving.leave(finished))

    def _carry_out(self, decision: Decision) -> None:
        """Queue the trials that halving lets continue, before all others, and end those that it stops."""
        for waiting in decision.proceed:
            trial = trial_of(waiting)
            self._queue_of[trial.trial_id].waiting.appendleft(waiting)
            if not isinstance(waiting, Paused):
                self._left.add(trial.trial_id)
                self._weights.expect([trial])
        if decision.proceed:
            self._changed.notify_all()
        for paused, reason in decision.stop:
            mode = self._queue_of[paused.trial.trial_id].bucket.program.mode
            self._tell(paused.slot.end(Status.STOPPED, reason, None, mode=mode))

    def _tell(self, finished: Finished) -> None:
        """Tell of a trial that has ended, and forget it."""
        self._observer.finished(finished)
        self._reached.pop(finished.trial.trial_id, None)
        self._left.discard(finished.trial.trial_id)
        self._weights.ended(finished.trial)
        if self._checkpoints:
            self._checkpoints.ended(finished.trial.trial_id)
