"""The scheduler: keeps every lane of every device busy until no trial is left."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
from flax import nnx

from scalejax.data import DataSet
from scalejax.engine.device import Device
from scalejax.engine.lanes import DeviceData, blocks
from scalejax.engine.pack import Finished, Pack, failed
from scalejax.engine.packing import Bucket
from scalejax.engine.padding import initial_weights
from scalejax.engine.step import Examples
from scalejax.engine.trial import PlannedTrial

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in the message of XLA's error


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
    """A bucket and those of its trials that no device has taken."""

    bucket: Bucket
    queue: deque[PlannedTrial]

    def estimate(self) -> float:
        """Return the seconds that the queue takes on one device, by the cost model."""
        return self.bucket.seconds / self.bucket.lanes * sum(planned.trial.steps for planned in self.queue)


class Scheduler:
    """Hands the trials of the buckets out to the local devices, one worker thread a device."""

    def __init__(self, buckets: Sequence[Bucket], *, data: DataSet, observer: Observer):
        self._works = [Work(bucket, deque(bucket.trials)) for bucket in buckets]
        self._data = data
        self._observer = observer
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._errors: list[BaseException] = []
        self._weights: dict[tuple, tuple[nnx.State, nnx.State]] = {}

    def run(self, devices: Sequence[Device]) -> None:
        """Train everything. Returns when all trials have ended.

        Raises:
            BaseException: what a worker raised outside a trial, once the others have stopped.
        """
        workers = [threading.Thread(target=self._work, args=(device,), daemon=True) for device in devices]
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
        if self._errors:
            raise self._errors[0]

    def _work(self, device: Device) -> None:
        try:
            data = _device_data(self._data, device)
            while not self._stopping.is_set():
                work = self._most_work()
                if not work.queue:
                    return
                self._train(work, device, data)
        except BaseException as error:
            self._errors.append(error)
            self._stopping.set()

    def _most_work(self) -> Work:
        """Return the bucket with the most estimated work left."""
        with self._lock:
            return max(self._works, key=Work.estimate)

    def _train(self, work: Work, device: Device, data: DeviceData) -> None:
        """Run one pack until its queue and its lanes are empty, refilling every lane that becomes free."""
        bucket = work.bucket
        flying: dict[str, PlannedTrial] = {}
        try:
            pack = Pack(bucket, device=device, data=data)
            while not self._stopping.is_set():
                self._refill(pack, work.queue, flying)
                if not pack.occupied:
                    return
                steps, ended = pack.advance()
                with self._lock:
                    self._observer.progressed(Progress(steps))
                    for finished in ended:
                        del flying[finished.planned.trial_id]
                        self._observer.finished(finished)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            self._refused(work, bucket, flying, error)

    def _refused(self, work: Work, bucket: Bucket, flying: dict[str, PlannedTrial], error: Exception) -> None:
        """Answer to a device that refuses: fewer lanes if memory is short, else its trials fail; others may still fit.

        Trials that go back to the queue begin again.
        """
        with self._lock:
            if not flying and work.queue:  # refused before any trial was placed
                first = work.queue.popleft()
                flying[first.trial_id] = first
            if bucket.lanes > 1 and (isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error)):
                work.bucket = replace(bucket, lanes=min(work.bucket.lanes, bucket.lanes // 2))
                work.queue.extendleft(reversed(flying.values()))
                return
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            for planned in flying.values():
                self._observer.finished(failed(planned, reason, mode=bucket.recipe.mode))

    def _refill(self, pack: Pack, queue: deque[PlannedTrial], flying: dict[str, PlannedTrial]) -> None:
        with self._lock:
            taken = list(zip(pack.free, _drain(queue), strict=False))
            flying.update({planned.trial_id: planned for _, planned in taken})
            self._observer.started([planned for _, planned in taken])
        for slot, planned in taken:
            pack.place(slot, planned, self._initial(planned))
        pack.fill_idle()

    def _initial(self, planned: PlannedTrial) -> tuple[nnx.State, nnx.State]:
        """Return a trial's initial weights at its true size, computed once for all trials that share them."""
        key = planned.trial.key("initialise")
        identity = (planned.architecture, key)
        if identity not in self._weights:
            weights = initial_weights(planned.architecture, key)
            with self._lock:
                self._weights[identity] = weights
        return self._weights[identity]


def _drain(queue: deque[PlannedTrial]) -> Iterator[PlannedTrial]:
    while queue:
        yield queue.popleft()


def _device_data(data: DataSet, device: Device) -> DeviceData:
    """Put a data set on a device, once for all its programs."""
    return jax.device_put(
        DeviceData(
            pool=Examples(data.train.inputs, data.train.labels),
            validation=blocks(data.validation.inputs, data.validation.labels),
            test=blocks(data.test.inputs, data.test.labels),
        ),
        device,
    )
