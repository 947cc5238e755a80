"""What compiled programs take of a device's memory, by their compiler's own account."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Memory:
    """Bytes of one program on each device.

    Attributes:
        argument_bytes: of what it is given.
        temporary_bytes: of what it makes on its way.
        output_bytes: of what it returns.
        aliased_bytes: of what it returns where an argument was.
    """

    argument_bytes: int
    temporary_bytes: int
    output_bytes: int
    aliased_bytes: int

    @property
    def beyond(self) -> int:
        """Bytes that it takes beside its arguments."""
        return self.temporary_bytes + self.output_bytes - self.aliased_bytes


def memory_of(compiled: Any) -> Memory | None:
    """Return what a compiled program takes; None where its compiler does not tell."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    return Memory(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        analysis.output_size_in_bytes,
        analysis.alias_size_in_bytes,
    )


def needed_bytes(advancing: Sequence[Memory], placing: Memory) -> int:
    """Return the most that is in memory at the same time.

    Lanes and data set are always there, and while lanes advance the next trials wait to be written. To read or write a
    lane takes less than to place one.

    Args:
        advancing: programs that train, evaluate or test lanes; not all of them need be given all data.
        placing: the program that writes trials into lanes, which come out where they were.
    """
    lanes = placing.aliased_bytes
    data = max((each.argument_bytes - lanes for each in advancing), default=0)
    return placing.argument_bytes + max(0, data) + max(each.beyond for each in (*advancing, placing))
