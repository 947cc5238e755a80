"""Where packs run: the loop that keeps the lanes of a bucket busy, and what it exchanges with the scheduler.

Trials, weights and results are host data, so that a worker can be in another process than the scheduler. Only the
arrays of a snapshot may still be on the devices, until the checkpoint's thread reads them.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from scalejax.data import DataSet
from scalejax.errors import HostError, RunError
from scalejax.execute import hosts
from scalejax.execute.initial_weights import Weights
from scalejax.execute.pack import CallResult, Pack, PendingCall
from scalejax.execute.programs import Compiler, Programs
from scalejax.execute.refusal import broke_off, reason_of, short_of_memory
from scalejax.execute.slot import Paused
from scalejax.execute.snapshot import Snapshot
from scalejax.execute.stream import streamed
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Group, Placement
from scalejax.planning.trial import Trial
from scalejax.train.lanes import DeviceData, blocks
from scalejax.train.numerics import current, hold
from scalejax.train.step import Examples


@dataclass(frozen=True)
class Feed:
    """What a worker asks for between two calls.

    Attributes:
        stopping: says whether the run stops: then no call is launched, and pending ones are reported.
        take: returns at most as many trials as lanes are free: new ones with their weights, and paused ones.
        snapshot_due: says whether the result of the next call shall bring a snapshot.
    """

    stopping: Callable[[], bool]
    take: Callable[[int], Sequence[tuple[Trial, Weights] | Paused]]
    snapshot_due: Callable[[], bool]


@dataclass(frozen=True)
class Report:
    """What a worker reports.

    Attributes:
        launched: the step of each trial after a call that is launched, by id, and how many lanes are free now.
        landed: what a call has brought.
        saved: the trials that are in lanes when the worker ends.
    """

    launched: Callable[[Mapping[str, int], int], None]
    landed: Callable[[CallResult], None]
    saved: Callable[[Snapshot], None]


class Worker(Protocol):
    """Devices that train the trials of one bucket at a time."""

    def lanes(self, bucket: Bucket) -> int:
        """Return how many trials of a bucket are trained at the same time."""
        ...

    def prepare(self, bucket: Bucket) -> None:
        """Have a bucket's programs compiled, which will be needed soon; returns at once."""
        ...

    def run(self, bucket: Bucket, feed: Feed, report: Report) -> None:
        """Train the trials of a bucket until there are none, or until the run is told to stop.

        Raises:
            RunError: trouble of the run.
            CancelledError: the run stops, and what the worker was waiting for will not come.
            Exception: whatever a device that refuses or a module that fails raises. What has not been reported of the
                trials that were taken is lost, and it is for the scheduler to decide what becomes of them.
        """
        ...


class LocalWorker:
    """A group of devices of this process, or of all hosts: then each of them has such a worker, in lockstep.

    Args:
        group: the devices.
        data: in memory; copied to the devices when the first bucket runs.
        compiler: of the programs; workers may share it.
        keep_weights: whether trials that are done bring their best parameters.
    """

    def __init__(self, group: Group, *, data: DataSet, compiler: Compiler, keep_weights: bool = False):
        self.group = group
        self._data = data
        self._compiler = compiler
        self._keep_weights = keep_weights
        self._on_devices: dict[Group, DeviceData] = {}
        self._numerics = current()

    def _placement(self, bucket: Bucket) -> Placement:
        return bucket.placement(self.group)

    def lanes(self, bucket: Bucket) -> int:
        """Return the number of lanes on all devices that a bucket has work for."""
        return self._placement(bucket).lanes

    def prepare(self, bucket: Bucket) -> None:
        """Have a bucket's programs compiled in the background."""
        placement = self._placement(bucket)
        self._compiler.programs(bucket.program, placement, refills=bucket.count > placement.lanes)

    def run(self, bucket: Bucket, feed: Feed, report: Report) -> None:
        """Train the trials of a bucket; see `Worker.run`."""
        hold(self._numerics)  # what is set in the thread that made this worker
        placement = self._placement(bucket)
        data = self._device_data(placement, pool=not bucket.program.stream_steps)
        programs = self._compiler.programs(bucket.program, placement)
        if not placement.is_fully_addressable:
            programs = _compiled_on_all(programs)
        stream = streamed(self._data.train, bucket.program) if bucket.program.stream_steps else None
        try:
            pack = Pack(bucket, placement, data=data, programs=programs, stream=stream, keep_weights=self._keep_weights)
            _keep_busy(pack, feed, report)
        except Exception as error:
            if placement.is_fully_addressable or isinstance(error, RunError):
                raise
            # The other hosts may not have failed, and cannot be notified: they wait in a collective for this one.
            raise HostError(str(broke_off(error))) from error

    def _device_data(self, placement: Placement, *, pool: bool) -> DeviceData:
        """Return the data set on the devices of a placement, copied once for all their programs.

        All programs of a sweep are streamed or none is; if they are, the pool stays where it is.
        """
        if placement.devices not in self._on_devices:
            data, own = self._data, (self._data.train.inputs, self._data.train.targets)
            multiple = placement.block_multiple
            try:
                self._on_devices[placement.devices] = hosts.device_put(
                    DeviceData(
                        pool=Examples(*(np.asarray(part[: None if pool else 0]) for part in own)),
                        validation=blocks(data.validation.inputs, data.validation.targets, multiple=multiple),
                        test=blocks(data.test.inputs, data.test.targets, multiple=multiple),
                    ),
                    placement.replicated,
                )
            except Exception as error:  # of no trial: without the data there is nothing to train
                raise broke_off(error) from error
        return self._on_devices[placement.devices]


def _keep_busy(pack: Pack, feed: Feed, report: Report) -> None:
    """Train what a feed gives until there is none, or until the run is told to stop."""
    pending: deque[PendingCall] = deque()  # at most two
    while True:
        if not feed.stopping():
            # Refill: every free lane gets a trial, if there is one.
            pack.fill(feed.take(len(pack.free)))
            if pack.busy:
                # Launch: so that the devices never wait for the host, a call is launched before the result of the
                # one before it is read, unless that result decides what the next one does.
                pending.append(pack.launch(copy=feed.snapshot_due()))
                report.launched(pending[-1].reached, len(pack.free))
                if len(pending) == 1 and not pending[0].decisive:
                    continue
        if not pending:
            break  # no trial is left, or the run stops
        # Land: the older call, and the one just launched as well if the next one depends on it.
        report.landed(pack.land(pending.popleft()))
        while pending and pending[-1].decisive:
            report.landed(pack.land(pending.popleft()))
    # Save: what is still in lanes, for no call follows.
    report.saved(pack.snapshot())


def _compiled_on_all(programs: "Future[Programs]") -> "Future[Programs]":
    """Return programs once all hosts have compiled them; if any host was refused one, raise on all.

    Raises:
        MemoryError: by some host's compiler the lanes do not fit.
        RuntimeError: some host's compiler refuses a program for another reason.
    """
    error = programs.exception()
    reason = "" if error is None else reason_of(error)
    short, room = error is not None and short_of_memory(error), error is None and programs.result().room_for_copy
    found = hosts.all_gather((reason, short, room))
    if error is not None:
        raise error
    for host, (reason, short, _) in enumerate(found):
        if reason:
            raise (MemoryError if short else RuntimeError)(f"host {host}: {reason}")
    same: Future[Programs] = Future()
    same.set_result(replace(programs.result(), room_for_copy=all(room for _, _, room in found)))
    return same
