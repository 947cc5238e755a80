"""Several hosts of one slice: what they agree on, and arrays that lie on the devices of all of them.

Every host runs the same program in lockstep. Whatever a decision follows from is the same on all of them: outcomes,
which are replicated, and what one host alone knows (times, files, signals), which it tells the others here. That goes
through the key-value store of `jax.distributed`: it launches nothing on a device, and may be waited for as long as a
program takes to compile. All hosts have to come to the same sentences in the same order, from one thread at a time.

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

PIECE_BYTES = 2**20  # of what is told, in one value of the store
WAIT_SECONDS = 1.0  # after which a host that waits looks whether it was sent a signal
KEPT = 1024  # sentences in the store: no host is further behind
MEETING_SECONDS = 0.02  # between two looks at who is there
END_SECONDS = 20.0  # for the other hosts to come to the end of a run that did not come to its own


def alone() -> bool:
    """Say whether this process is the only one of its job."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def first() -> bool:
    """Say whether this is the host that decides, writes and shows."""
    return alone() or jax.process_index() == 0


def number() -> int:
    """Return the number of this host, from 0 on."""
    return 0 if alone() else jax.process_index()


def join(coordinator: str | None = None, *, number: int | None = None, count: int | None = None) -> None:
    """Join the other hosts, before JAX is used: by what is given, or else by what the cluster tells.

    Args:
        coordinator: host and port of the first one, "HOST:PORT".
        number: of this host, from 0 on.
        count: of hosts.

    Raises:
        SweepError: neither tells which hosts there are, or they do not come together.
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
    """Leave the other hosts, once all of them are about to."""
    if not alone():
        jax.distributed.shutdown()


def _is_address(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    return bool(host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 2**16)


def told(make: Callable[[], T]) -> T:
    """Return on all hosts what the first one makes; what it raises instead, `ending` tells them."""
    if alone():
        return make()
    if first():
        value = make()
        _line().tell((None, value))
        return value
    return _heard(_line().hear())


def everyone(value: T) -> list[T]:
    """Return what each host gives, in their order, on all of them."""
    return [value] if alone() else _everyone(value)


def _everyone(value: T) -> list[T]:
    line, number = _line(), next(_line().rounds)
    if not first():
        line.put(f"given/{number}/{jax.process_index()}", value)
        return _heard(line.hear())
    others = [line.get(f"given/{number}/{host}") for host in range(1, jax.process_count())]
    values = [value, *others]
    line.tell((None, values))
    line.drop(f"given/{number}/")
    return values


def together(make: Callable[[], T], *, alike: Callable[[T], str] = lambda _: "") -> T:
    """Return what each host makes for itself, if all of them can.

    Args:
        make: as described.
        alike: what has to be the same on all hosts.

    Raises:
        SweepError: another host could not make it, or made something else.
        Exception: why this one could not.
    """
    if alone():
        return make()
    made, error = None, None
    try:
        made = make()
        given = alike(made), ""
    except Exception as raised:
        error, given = raised, ("", str(raised) if isinstance(raised, SweepError | RunError) else first_line(raised))
    all_given = everyone(given)
    if error is not None:
        raise error
    for host, (_, trouble) in enumerate(all_given):
        if trouble:
            raise SweepError(f"host {host}: {trouble}")
    for host, (mine, _) in enumerate(all_given):
        if mine != all_given[0][0]:
            remedy = "see that all hosts have the same files, packages and kind of devices"
            raise SweepError(f"host {host} plans something else than host 0; {remedy}")
    return made  # pyright: ignore[reportReturnType]  # it was made: nothing was raised


@contextmanager
def ending() -> Iterator[None]:
    """Have all hosts leave a block together, and as the first one does: what it raises is raised on all of them.

    Raises:
        HostError: trouble of this host alone, which the others cannot hear of; the job has to end.
    """
    if alone():
        yield
        return
    line = _line()
    block, error = next(line.blocks), None
    try:
        yield
    except BaseException as raised:
        error = raised
    if isinstance(error, HostError):
        raise error
    try:
        seconds = None if error is None else END_SECONDS
        if first():
            trouble = _described(error)
            if trouble is not None:
                line.tell((trouble, None))  # they may be waiting for something else
            line.put(f"ended/{block}", (trouble, line.sentence))
        else:
            trouble, line.sentence = line.get(f"ended/{block}", seconds=seconds)
            error = error.error if isinstance(error, Told) else error or _raised(trouble)
        # So that the first host, by which the others hear of each other, does not go first.
        line.meet(f"left/{block}/", seconds=seconds)
    except TimeoutError:
        what = "the run came to its end" if error is None else first_line(error)
        says = f"{what}; this is host {jax.process_index()}, and the others do not hear of it"
        raise HostError(says) from error
    if error is not None:
        raise error


class Asked:
    """A question that any host may raise at any time, such as to stop, and that all of them hear at the same moment."""

    def __init__(self) -> None:
        self._name = None if alone() else f"asked/{next(_line().questions)}/"
        self._said = False

    def any_of(self, code: int) -> int:
        """Return what some host has asked for, 0 if none has; a question of another host may be heard a call later."""
        if self._name is None:
            return code
        if code and not self._said and not first():
            _line().put(f"{self._name}{jax.process_index()}", code)
            self._said = True
        return told(lambda: code or max(_line().found(self._name or ""), default=0))


class Told(BaseException):
    """What the first host has raised: `error` is the same here."""

    def __init__(self, error: BaseException):
        super().__init__(str(error))
        self.error = error


def _described(error: BaseException | None) -> tuple[str, Any] | None:
    if error is None:
        return None
    if isinstance(error, Interrupted):
        return "interrupted", (error.signal, error.lost)
    kind = "asked" if isinstance(error, SweepError) else "run"
    return kind, str(error) if isinstance(error, SweepError | RunError) else f"host 0 ended: {first_line(error)}"


def _raised(trouble: tuple[str, Any] | None) -> BaseException | None:
    if trouble is None:
        return None
    kind, what = trouble
    if kind == "interrupted":
        return Interrupted(what[0], lost=what[1])
    return SweepError(what) if kind == "asked" else RunError(what)


def _heard(message: tuple[tuple[str, Any] | None, Any]) -> Any:
    trouble, value = message
    if error := _raised(trouble):
        raise Told(error)
    return value


class Line:
    """The key-value store by which the hosts of this job hear of each other."""

    def __init__(self) -> None:
        from orbax.checkpoint import multihost

        self._client: Any = multihost.get_jax_distributed_client()
        self.sentence = 0  # the number of the next one
        self.rounds, self.questions, self.blocks = itertools.count(), itertools.count(), itertools.count()

    def tell(self, value: Any) -> None:
        """Tell all other hosts."""
        self.put(f"told/{self.sentence}", value)
        if self.sentence >= KEPT:
            self.drop(f"told/{self.sentence - KEPT}/")
        self.sentence += 1

    def hear(self) -> Any:
        """Wait for what the first host tells next."""
        self.sentence += 1
        return self.get(f"told/{self.sentence - 1}")

    def put(self, name: str, value: Any) -> None:
        """Write a value."""
        content = pickle.dumps(value)
        pieces = [content[begin : begin + PIECE_BYTES] for begin in range(0, len(content), PIECE_BYTES)]
        for number, piece in reversed(list(enumerate(pieces))):  # the first one says that all are there
            self._client.key_value_set_bytes(f"scalejax/{name}/{number}", b"%d " % len(pieces) + piece)

    def get(self, name: str, *, seconds: float | None = None) -> Any:
        """Wait for a value.

        Raises:
            TimeoutError: it has not come within some seconds.
        """
        count, _, content = self._wait(f"scalejax/{name}/0", seconds).partition(b" ")
        rest = [self._wait(f"scalejax/{name}/{number}", None).partition(b" ")[2] for number in range(1, int(count))]
        return pickle.loads(b"".join([content, *rest]))

    def found(self, folder: str) -> list[Any]:
        """Return the small values in a folder, without waiting."""
        entries = self._client.key_value_dir_get_bytes(f"scalejax/{folder}")
        return [pickle.loads(content.partition(b" ")[2]) for _, content in entries]

    def drop(self, folder: str) -> None:
        """Delete the values in a folder."""
        self._client.key_value_delete(f"scalejax/{folder}")

    def meet(self, folder: str, *, seconds: float | None) -> None:
        """Wait until all hosts are here.

        Raises:
            TimeoutError: they are not within some seconds.
        """
        began = time.monotonic()
        self.put(f"{folder}{jax.process_index()}", None)
        while len(self.found(folder)) < jax.process_count():
            if seconds is not None and time.monotonic() - began > seconds:
                raise TimeoutError
            time.sleep(MEETING_SECONDS)

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
def _line() -> Line:
    return Line()


def placed(tree: Any, shardings: Any) -> Any:
    """Copy arrays of the host, the same on all hosts, to devices; each host copies what its own hold.

    Args:
        tree: arrays.
        shardings: one for all of them, or a tree of such.
    """
    if all(each.is_fully_addressable for each in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(_placed, tree, shardings)


def _placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])


def replicated(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return arrays on all devices of all hosts as each host can read them: whole, and on a device of its own.

    Args:
        tree: arrays.
        sharding: that replicates them on the devices on which they lie.
    """
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _copying(sharding)(tree))


def row(tree: Any, number: int, sharding: jax.sharding.Sharding) -> Any:
    """Return one row [1, ...] of arrays as `replicated` does, wherever it lies."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), _choosing(sharding)(tree, np.int32(number)))


@functools.cache
def _copying(sharding: jax.sharding.Sharding) -> Callable[..., Any]:
    return jax.jit(lambda tree: tree, out_shardings=sharding)


@functools.cache
def _choosing(sharding: jax.sharding.Sharding) -> Callable[..., Any]:
    def chosen(tree: Any, number: jax.Array) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number, 1), tree)

    return jax.jit(chosen, out_shardings=sharding)


def has(array: Any) -> bool:
    """Say whether all of an array is on this host."""
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def rows_here(array: jax.Array) -> dict[int, tuple[jax.Array, int]]:
    """Return where the rows of an array are that lie on this host: the part of it that has a row, and where there."""
    found = {}
    for shard in array.addressable_shards:
        begin = shard.index[0].start or 0
        found |= {begin + number: (shard.data, number) for number in range(shard.data.shape[0])}
    return found
