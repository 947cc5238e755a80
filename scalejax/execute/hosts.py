"""Several hosts of one job: broadcasts and gathers between them, and arrays on the devices of all of them.

A host is a process of `jax.distributed`; the primary one is process 0. Every host runs the same program in lockstep.
Whatever a decision follows from is the same on all of them: outcomes, which are replicated, and what one host alone
knows (times, files, signals), which is broadcast or gathered here. That goes through the key-value store of
`jax.distributed`, not through a collective: it launches nothing on a device, and may be waited for as long as a program
takes to compile. All hosts have to call the functions here in the same order, from one thread at a time.

With one process each function returns what it is given.
"""

import functools
import itertools
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import jax
import numpy as np

from scalejax.errors import HostError, Interrupted, RunError, SweepError
from scalejax.execute.devices import prepare
from scalejax.text import first_line

T = TypeVar("T")

CHUNK_BYTES = 2**20  # of a message, in one value of the store
WAIT_SECONDS = 1.0  # of one blocking call: between two of them Python handles signals
KEPT_BROADCASTS = 1024  # in the store: no host is further behind
BARRIER_POLL_SECONDS = 0.02
EXIT_SECONDS = 20.0  # for the other hosts to come to the end of a run that was broken off


def is_single() -> bool:
    """Say whether this process is the only one of its job."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_primary() -> bool:
    """Say whether this is process 0, which decides, writes and shows."""
    return is_single() or jax.process_index() == 0


def index() -> int:
    """Return the index of this process, from 0 on."""
    return 0 if is_single() else jax.process_index()


def join(coordinator: str | None = None, *, number: int | None = None, count: int | None = None) -> None:
    """Initialise `jax.distributed`, before JAX is used otherwise; what is not given is detected by JAX.

    Args:
        coordinator: address of process 0, "HOST:PORT".
        number: index of this process, from 0 on.
        count: number of processes.

    Raises:
        SweepError: an option is wrong, JAX detects no cluster, or the processes do not connect.
    """
    if coordinator is not None and not _is_address(coordinator):
        raise SweepError(f"--coordinator {coordinator}: expected HOST:PORT, such as 10.0.0.1:8476")
    if number is not None and count is not None and number >= count:
        raise SweepError(f"--host-number {number}: expected a number below --number-of-hosts {count}")
    prepare()
    try:
        jax.distributed.initialize(coordinator, num_processes=count, process_id=number)
    except Exception as error:  # whatever JAX and the cluster raise
        why = first_line(error).rstrip(".")
        remedy = "give --coordinator HOST:PORT, --host-number K and --number-of-hosts N on each of them"
        raise SweepError(f"the hosts do not come together ({why}); {remedy}") from error


def leave() -> None:
    """Shut `jax.distributed` down; waits until all hosts do."""
    if not is_single():
        jax.distributed.shutdown()


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16)


def broadcast(make: Callable[[], T]) -> T:
    """Return on all hosts what the primary one makes. What it raises is raised on the others by `exit_together`."""
    if is_single():
        return make()
    if is_primary():
        value = make()
        _store().broadcast((None, value))
        return value
    return _value_of(_store().receive())


def all_gather(value: T) -> list[T]:
    """Return the values of all hosts, in their order, on all of them."""
    return [value] if is_single() else _all_gather(value)


def _all_gather(value: T) -> list[T]:
    store = _store()
    folder = f"gather/{next(store.gathers)}/"
    if not is_primary():
        store.set(f"{folder}{jax.process_index()}", value)
        return _value_of(store.receive())
    values = [value, *(store.get(f"{folder}{host}") for host in range(1, jax.process_count()))]
    store.broadcast((None, values))
    store.delete(folder)
    return values


def make_on_all(make: Callable[[], T], *, digest: Callable[[T], str] = lambda _: "") -> T:
    """Return what this host makes, once every host has made its own.

    Args:
        make: called on every host.
        digest: of what is made; it has to be the same on all hosts.

    Raises:
        SweepError: another host could not make it, or digests differ.
        Exception: what `make` raises here.
    """
    if is_single():
        return make()
    made, error = None, None
    try:
        made = make()
        outcome = digest(made), ""
    except Exception as raised:
        error, outcome = raised, ("", str(raised) if isinstance(raised, SweepError | RunError) else first_line(raised))
    outcomes = all_gather(outcome)
    if error is not None:
        raise error
    for host, (_, trouble) in enumerate(outcomes):
        if trouble:
            raise SweepError(f"host {host}: {trouble}")
    for host, (found, _) in enumerate(outcomes):
        if found != outcomes[0][0]:
            remedy = "see that all hosts have the same files, packages and kind of devices"
            raise SweepError(f"host {host} plans something else than host 0; {remedy}")
    return made  # pyright: ignore[reportReturnType]  # it was made: nothing was raised


@contextmanager
def exit_together() -> Iterator[None]:
    """Have all hosts leave a block at the same time, with the outcome of the primary one: what it raises, all raise.

    Raises:
        HostError: trouble of this host alone, which the others cannot receive; the job has to end.
    """
    if is_single():
        yield
        return
    store = _store()
    block, error = next(store.blocks), None
    try:
        yield
    except BaseException as raised:
        error = raised
    if isinstance(error, HostError):
        raise error
    try:
        seconds = None if error is None else EXIT_SECONDS
        if is_primary():
            trouble = _encoded(error)
            if trouble is not None:
                store.broadcast((trouble, None))  # the others may be waiting for a value
            store.set(f"exit/{block}", (trouble, store.broadcasts))
        else:
            trouble, store.broadcasts = store.get(f"exit/{block}", seconds=seconds)
            error = error.error if isinstance(error, PrimaryError) else error or _decoded(trouble)
        # The primary host serves the store, so it must not leave before the others have read from it.
        store.barrier(f"left/{block}/", seconds=seconds)
    except TimeoutError:
        what = "the run came to its end" if error is None else first_line(error)
        remedy = "end them, then start the same command on all hosts again"
        says = f"{what}; this is host {jax.process_index()}, and the other hosts do not answer: {remedy}"
        raise HostError(says) from error
    if error is not None:
        raise error


class SharedFlag:
    """A number that any host may set at any time, and that all hosts see at the same poll; 0 until then."""

    def __init__(self) -> None:
        self._name = None if is_single() else f"flag/{next(_store().flags)}/"
        self._sent = False

    def poll(self, code: int) -> int:
        """Return the flag on all hosts alike; one that another host sets may be seen a poll later.

        Args:
            code: that this host sets it to; 0: to nothing.
        """
        if self._name is None:
            return code
        if code and not self._sent and not is_primary():
            _store().set(f"{self._name}{jax.process_index()}", code)
            self._sent = True
        return broadcast(lambda: code or max(_store().values(self._name or ""), default=0))


class PrimaryError(BaseException):
    """Raised on another host in place of a value that the primary one could not broadcast.

    Attributes:
        error: what it raised instead.
    """

    def __init__(self, error: BaseException):
        super().__init__(str(error))
        self.error = error


def _encoded(error: BaseException | None) -> tuple[str, Any] | None:
    if error is None:
        return None
    if isinstance(error, Interrupted):
        return "interrupted", (error.signal, error.lost)
    kind = "sweep" if isinstance(error, SweepError) else "run"
    return kind, str(error) if isinstance(error, SweepError | RunError) else f"host 0 ended: {first_line(error)}"


def _decoded(trouble: tuple[str, Any] | None) -> BaseException | None:
    if trouble is None:
        return None
    kind, what = trouble
    if kind == "interrupted":
        return Interrupted(what[0], lost=what[1])
    return SweepError(what) if kind == "sweep" else RunError(what)


def _value_of(message: tuple[tuple[str, Any] | None, Any]) -> Any:
    trouble, value = message
    if error := _decoded(trouble):
        raise PrimaryError(error)
    return value


class KeyValueStore:
    """The key-value store of `jax.distributed`, in which a message may have any size.

    Attributes:
        broadcasts: how many there have been; the primary host numbers them, and the others read them in order.
        gathers, flags, blocks: numbers for the next ones, the same on all hosts.
    """

    def __init__(self) -> None:
        from orbax.checkpoint import multihost

        self._client: Any = multihost.get_jax_distributed_client()
        self.broadcasts = 0
        self.gathers, self.flags, self.blocks = itertools.count(), itertools.count(), itertools.count()

    def broadcast(self, value: Any) -> None:
        """Send a value to all other hosts; for the primary one."""
        self.set(f"broadcast/{self.broadcasts}", value)
        if self.broadcasts >= KEPT_BROADCASTS:
            self.delete(f"broadcast/{self.broadcasts - KEPT_BROADCASTS}/")
        self.broadcasts += 1

    def receive(self) -> Any:
        """Wait for the next broadcast."""
        self.broadcasts += 1
        return self.get(f"broadcast/{self.broadcasts - 1}")

    def set(self, name: str, value: Any) -> None:
        """Write a value."""
        content = pickle.dumps(value)
        chunks = [content[begin : begin + CHUNK_BYTES] for begin in range(0, len(content), CHUNK_BYTES)]
        for number, chunk in reversed(list(enumerate(chunks))):  # the first one says that all are there
            self._client.key_value_set_bytes(f"scalejax/{name}/{number}", b"%d " % len(chunks) + chunk)

    def get(self, name: str, *, seconds: float | None = None) -> Any:
        """Wait for a value.

        Raises:
            TimeoutError: it has not come within some seconds.
        """
        count, _, content = self._wait(f"scalejax/{name}/0", seconds).partition(b" ")
        rest = [self._wait(f"scalejax/{name}/{number}", None).partition(b" ")[2] for number in range(1, int(count))]
        return pickle.loads(b"".join([content, *rest]))

    def values(self, folder: str) -> list[Any]:
        """Return the values in a folder, of one chunk each, without waiting."""
        entries = self._client.key_value_dir_get_bytes(f"scalejax/{folder}")
        return [pickle.loads(content.partition(b" ")[2]) for _, content in entries]

    def delete(self, folder: str) -> None:
        """Delete the values in a folder."""
        self._client.key_value_delete(f"scalejax/{folder}")

    def barrier(self, folder: str, *, seconds: float | None) -> None:
        """Wait until all hosts have called this.

        Raises:
            TimeoutError: they have not within some seconds.
        """
        began = time.monotonic()
        self.set(f"{folder}{jax.process_index()}", None)
        while len(self.values(folder)) < jax.process_count():
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError
            time.sleep(BARRIER_POLL_SECONDS)

    def _wait(self, key: str, seconds: float | None) -> bytes:
        began = time.monotonic()
        while True:
            try:
                return self._client.blocking_key_value_get_bytes(key, int(1000 * WAIT_SECONDS))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise HostError(f"another host of the run is gone ({first_line(error)}); run it again") from error
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError


@functools.cache
def _store() -> KeyValueStore:
    return KeyValueStore()


def device_put(tree: Any, shardings: Any) -> Any:
    """Copy arrays in memory, equal on all hosts, to devices of all of them; each host copies what its devices hold.

    Args:
        tree: arrays.
        shardings: one for all of them, or a tree of such.
    """
    if all(each.is_fully_addressable for each in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_device_put, tree, shardings)


def _device_put(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def local_replica(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return arrays that are sharded over the devices of all hosts as whole arrays on one device of this host.

    Args:
        tree: arrays.
        sharding: that replicates them on the devices on which they lie.
    """
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _replicating(sharding)(tree))


def local_row(tree: Any, number: int, sharding: jax.sharding.Sharding) -> Any:
    """Return one row [1, ...] of arrays as `local_replica` does, whichever host has it."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _slicing(sharding)(tree, np.int32(number)))


@functools.cache
def _replicating(sharding: jax.sharding.Sharding) -> Callable[..., Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


@functools.cache
def _slicing(sharding: jax.sharding.Sharding) -> Callable[..., Any]:
    def chosen(tree: Any, number: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number, 1), tree)

    return jax.jit(chosen, out_shardings=sharding)


def is_addressable(array: Any) -> bool:
    """Say whether this host can read all of an array."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def addressable_rows(array: jax.Array) -> dict[int, tuple[jax.Array, int]]:
    """Return, for each row of an array that this host can read, the shard that has it and its number there."""
    found = {}
    for shard in array.addressable_shards:
        begin = shard.index[0].start or 0
        found |= {begin + number: (shard.data, number) for number in range(shard.data.shape[0])}
    return found
