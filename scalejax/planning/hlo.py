"""What a compiled program does, read from its text: launches, loops, bytes that pass through memory, collectives.

The text is XLA's, in the dialects of its compilers for GPUs and for TPUs. A GPU's says how often a loop runs; a TPU's
leaves it to the constant that the loop's condition compares with, and adds how many cycles an operation should take.
"""

import functools
import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

# Instructions that launch nothing: they name or group results. Nor does what ends in -done or -update: it waits for
# what has been started.
QUIET = {
    "after-all", "bitcast", "constant", "domain", "get-tuple-element", "opt-barrier", "parameter", "partition-id",
    "replica-id", "tuple",
}  # fmt: skip
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all", "reduce-scatter")
CALLED = ("body", "condition", "calls", "to_apply", "branch_computations", "true_computation", "false_computation")
SLICES = {"dynamic-slice", "gather", "slice"}  # read no more of their first operand than they give
# What a TPU takes for an operation with hardly anything to do, by its compiler's own estimate: 1,832 cycles of a v5e,
# 2,128 of a v5p, 2,124 of a v6e. Counted for those that come without an estimate.
LEAST_CYCLES = 2000


@dataclass(frozen=True)
class Array:
    """One array of a result.

    Attributes:
        shape: its sizes.
        bytes: in memory, with what the tiles of a TPU are padded by.
        near: whether it lies in a memory beside the processor, such as the VMEM of a TPU, and not in the main one.
    """

    shape: tuple[int, ...]
    bytes: int
    near: bool = False


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name, opcode: as written.
        arrays: those of its result, in order.
        operands: names of other instructions.
        called: computations that it runs, each with the attribute that names it.
        value: what stands in the brackets: of a constant its value, of a parameter its number.
        attributes: the rest of the line.
        root: whether it is the result of its computation.
    """

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    called: tuple[tuple[str, str], ...]
    value: str
    attributes: str
    root: bool


@dataclass(frozen=True)
class Work:
    """What running a computation once comes to, loops as often as they run.

    Attributes:
        launches: of kernels, copies and collectives.
        bytes: that pass through the device's main memory.
        cycles: of a TPU, by its compiler's estimates.
        sent: bytes that collectives give.
        waits: for a decision: loops of unknown length, which count as one round, and conditions.
    """

    launches: int = 0
    bytes: int = 0
    cycles: int = 0
    sent: int = 0
    waits: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, count: int) -> "Work":
        return Work(*(count * each for each in astuple(self)))


@dataclass(frozen=True)
class Loop:
    """A loop of a program.

    Attributes:
        trips: rounds; None: not known before it runs.
        launches: in one round, with those of the loops inside it.
        entered: how often a call of the program comes to it.
    """

    trips: int | None
    launches: int
    entered: int = 1


@dataclass(frozen=True)
class Reading:
    """What the text of a compiled program says.

    Attributes:
        launches: outside of all loops.
        loops: each, those inside others too, the one that launches most first.
        collectives: how many of each kind are written; the body of a loop counts once.
        work: of one call.
    """

    launches: int
    loops: tuple[Loop, ...]
    collectives: Mapping[str, int]
    work: Work

    def launches_of_round(self, trips: int) -> int:
        """Return what one round launches of the loop of so many rounds that launches most.

        A loop inside another counts as often as the other comes to it.
        """
        rounds = [loop.entered * loop.launches for loop in self.loops if loop.trips == trips]
        return max(rounds, default=self.work.launches // trips)


def read(text: str) -> Reading:
    """Read the text of a compiled program, that of XLA for GPUs or for TPUs."""
    program = HloProgram(text)
    loops, whole = list(program.loops()), program.work()
    loops.sort(key=lambda loop: -(loop.trips or math.inf) * loop.launches * loop.entered)
    return Reading(program.work(loops=False).launches, tuple(loops), program.collectives(), whole)


class HloProgram:
    """A compiled program by its text.

    Attributes:
        computations: instructions by the name of their computation.
        entry: the name of the computation that it begins with.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        lines: list[Instruction] = []
        for line in text.splitlines():
            plain = _COMMENT.sub("", line)  # in tuples of many parts, such as /*index=5*/
            if head := _HEAD.match(plain):
                lines = self.computations.setdefault(head["name"], [])
                self.entry = head["name"] if head["entry"] else self.entry
            elif instruction := _instruction(plain.strip()):
                lines.append(instruction)

    def work(self, *, loops: bool = True) -> Work:
        """Return what a call comes to; without loops only what is outside of them."""
        return self._work(self.entry, loops)

    def loops(self) -> Iterator[Loop]:
        """Yield the loops in the order in which a call comes to them, outer ones before inner ones."""
        return self._loops(self.entry, entered=1)

    def collectives(self) -> dict[str, int]:
        """Return how often each kind of collective is written."""
        opcodes = (each.opcode.removesuffix("-start") for lines in self.computations.values() for each in lines)
        return dict(sorted(Counter(opcode for opcode in opcodes if opcode in COLLECTIVES).items()))

    def trip_count(self, loop: Instruction) -> int | None:
        """Return how often a loop runs; None: the program does not tell.

        Where the compiler has not noted it, the condition tells: a counter compared with a constant. Those of
        `lax.scan`, and of `lax.fori_loop` from 0, begin at 0 and rise by 1.
        """
        if noted := _TRIPS.search(loop.attributes):
            return int(noted[1])
        lines = self._called(loop, "condition")
        given = {each.name: each for each in lines}
        root = next((each for each in lines if each.root), None)
        if root is not None and root.opcode == "fusion":
            operands = [given.get(name) for name in root.operands]
            lines = self._called(root, "calls")
            given = {each.name: operands[int(each.value)] if each.opcode == "parameter" else each for each in lines}
            root = next((each for each in lines if each.root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, bound = (given.get(name) for name in root.operands)
        known = bound is not None and bound.opcode == "constant" and bound.value.isdigit()
        return int(bound.value) if bound and known and (not counter or counter.opcode != "constant") else None

    def accessed_bytes(self, instruction: Instruction) -> int:
        """Return the bytes that one instruction reads from the main memory and writes there.

        Of what is sliced only the slice is read; of what is updated in its place only the part is written.
        """
        operands = [self._arrays.get(name, ()) for name in instruction.operands]
        opcode = instruction.opcode.removesuffix("-start")
        if opcode != instruction.opcode and opcode not in COLLECTIVES:  # copies its operand; the result has both
            copied = instruction.arrays[:1]
            return _main_bytes(copied) + (0 if _main_bytes(operands[0]) < _bytes(operands[0]) else _bytes(copied))
        if opcode in SLICES:
            return _main_bytes(instruction.arrays) + (_bytes(instruction.arrays) if _main_bytes(operands[0]) else 0)
        if opcode == "dynamic-update-slice":
            return _main_bytes(operands[1]) + (_bytes(operands[1]) if _main_bytes(instruction.arrays) else 0)
        if opcode == "fusion":
            inner = self._called(instruction, "calls")
            read = (min(_main_bytes(arrays), _read(inner, number)) for number, arrays in enumerate(operands))
            return int(sum(read)) + _written(inner, instruction)
        return sum(map(_main_bytes, operands)) + _main_bytes(instruction.arrays)

    @functools.cached_property
    def _arrays(self) -> dict[str, tuple[Array, ...]]:
        return {each.name: each.arrays for lines in self.computations.values() for each in lines}

    def _called(self, instruction: Instruction, attribute: str) -> Sequence[Instruction]:
        return self.computations.get(dict(instruction.called).get(attribute, ""), ())

    @functools.cache  # noqa: B019  a program lives no longer than its reading
    def _work(self, computation: str, loops: bool) -> Work:
        done = (self._work_of(each, loops) for each in self.computations.get(computation, ()))
        return sum(done, Work())

    def _work_of(self, instruction: Instruction, loops: bool) -> Work:
        opcode, called = instruction.opcode, dict(instruction.called)
        if opcode == "while":
            trips = self.trip_count(instruction)
            body = self._work(called.get("body", ""), loops) * (1 if trips is None else trips)
            return body + Work(waits=int(trips is None)) if loops else Work()
        if opcode in ("call", "async-start"):
            return sum((self._work(name, loops) for name in called.values()), Work())
        if opcode == "conditional":
            branches = (self._work(name, loops) for _, name in instruction.called)
            return max(branches, key=lambda branch: branch.launches, default=Work()) + Work(waits=1)
        if opcode in QUIET or opcode.endswith(("-done", "-update")):
            return Work()
        sent = _bytes(instruction.arrays) if opcode.removesuffix("-start") in COLLECTIVES else 0
        return Work(1, self.accessed_bytes(instruction), _cycles(instruction), sent)

    def _loops(self, computation: str, *, entered: int) -> Iterator[Loop]:
        for each in self.computations.get(computation, ()):
            if each.opcode == "while":
                trips, body = self.trip_count(each), dict(each.called).get("body", "")
                yield Loop(trips, self._work(body, True).launches, entered)
                yield from self._loops(body, entered=entered * (1 if trips is None else trips))
            elif each.opcode in ("call", "conditional", "async-start"):
                for _, called in each.called:
                    yield from self._loops(called, entered=entered)


_COMMENT = re.compile(r"/\*.*?\*/")
_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{\s*$")
_NAMED = re.compile(r"^(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(rf"\b({'|'.join(CALLED)})=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TILE = re.compile(r"T\(([\d,]+)\)")


def _instruction(line: str) -> Instruction | None:
    named = _NAMED.match(line)
    if not named:
        return None
    rest = named["rest"]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")  # of the shape
    opcode = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not opcode:
        return None
    start = end + opcode.end() - 1
    stop = start + _closing(rest[start:])
    given, attributes = rest[start + 1 : stop - 1], rest[stop:]
    called = [
        (attribute, name.strip().removeprefix("%"))
        for attribute, several, one in _CALLED.findall(attributes)
        for name in (several or one).split(",")
    ]
    return Instruction(
        name=named["name"],
        opcode=opcode[1],
        arrays=tuple(_array(*written) for written in _ARRAY.findall(rest[:end])),
        operands=tuple(re.findall(r"%([\w.\-]+)", given)),
        called=tuple(called),
        value=given if opcode[1] in ("constant", "parameter") else "",
        attributes=attributes,
        root=bool(named["root"]),
    )


def _closing(text: str) -> int:
    """Return the position after the bracket that closes the one at the beginning of a text."""
    depth = 0
    for bracket in re.finditer(r"[()]", text):
        depth += 1 if bracket[0] == "(" else -1
        if not depth:
            return bracket.end()
    return len(text)


def _array(kind: str, sizes: str, layout: str) -> Array:
    shape = tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size)
    width = re.search(r"\d+", kind)
    bits = int(width[0]) if width else 8 if kind == "pred" else 0  # a token has none
    order, _, memory = layout.partition(":")
    padded = list(shape)
    if (tile := _TILE.search(memory)) and order:
        axes, multiples = (list(map(int, numbers.split(","))) for numbers in (order, tile[1]))
        for axis, multiple in zip(axes, reversed(multiples), strict=False):
            padded[axis] = -(-padded[axis] // multiple) * multiple
    return Array(shape, math.prod(padded) * bits // 8, near=bool(re.search(r"S\([1-9]", memory)))


def _bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays)


def _main_bytes(arrays: Iterable[Array]) -> int:
    return sum(array.bytes for array in arrays if not array.near)


def _read(fused: Sequence[Instruction], number: int) -> float:
    """Return the bytes that a fusion reads of one operand at most: infinite where it may read all of it."""
    parameter = next((each for each in fused if each.opcode == "parameter" and each.value == str(number)), None)
    if parameter is None:
        return math.inf
    total, names = 0, [parameter.name]
    for name in names:
        for user in (each for each in fused if name in each.operands):
            if user.opcode == "bitcast":
                names.append(user.name)
            elif user.opcode in SLICES and user.operands[0] == name:
                total += _bytes(user.arrays)
            elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
                return math.inf
    return total


def _written(fused: Sequence[Instruction], fusion: Instruction) -> int:
    """Return the bytes that a fusion writes into the main memory."""
    given = {each.name: each for each in fused}
    root = next((each for each in fused if each.root), None)
    parts = [root] if root is None or root.opcode != "tuple" else [given.get(name) for name in root.operands]
    if len(parts) != len(fusion.arrays):  # a tuple in a tuple
        return _main_bytes(fusion.arrays)
    total = 0
    for part, array in zip(parts, fusion.arrays, strict=True):
        while part is not None and part.opcode == "bitcast":
            part = given.get(part.operands[0])
        updates = part is not None and part.opcode == "dynamic-update-slice"
        size = _bytes(given[part.operands[1]].arrays) if part and updates else array.bytes
        total += 0 if array.near else size
    return total


def _cycles(instruction: Instruction) -> int:
    """Return a TPU's cycles for one operation; none for a copy beside the rest, or for a single number."""
    if found := _CYCLES.search(instruction.attributes):
        return int(found[1])
    single = all(not array.shape for array in instruction.arrays)
    return 0 if instruction.opcode.endswith("-start") or single else LEAST_CYCLES
