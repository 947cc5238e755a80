"""Where the lanes of a program are: on which devices, and how many on each."""

import functools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LANE_AXIS = "lane"
ACCELERATOR_MULTIPLE = 128

Device = Any  # jax.Device, which type checkers take for a variable; it need not be of this machine
Group = tuple[Device, ...]  # run one program together, each its share: the cores of a CPU, or one accelerator


@dataclass(frozen=True)
class Placement:
    """The lanes of one program on one group of devices.

    Lanes are numbered in the order of the leading axis of a state: those of the first device, then those of the next.

    Attributes:
        devices: of the group; each holds an equal share of the lanes.
        lanes_each: lanes on one device.
    """

    devices: Group
    lanes_each: int

    @property
    def lanes(self) -> int:
        """Number of lanes on all devices together."""
        return self.lanes_each * len(self.devices)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices along the axis of the lanes."""
        return Mesh(np.array(self.devices), (LANE_AXIS,))

    @property
    def lane_sharded(self) -> NamedSharding:
        """An equal share of the leading axis on every device."""
        return NamedSharding(self.mesh, PartitionSpec(LANE_AXIS))

    @property
    def replicated(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def block_multiple(self) -> int:
        """What the size of a block of examples for evaluation is a multiple of, so that it can be cut further."""
        return 1 if self.devices[0].platform == "cpu" else ACCELERATOR_MULTIPLE

    def device(self, lane: int) -> int:
        """Return the position in `devices` of the device that holds a lane."""
        return lane // self.lanes_each

    def slot(self, lane: int) -> int:
        """Return the number of a lane among those of its device."""
        return lane % self.lanes_each

    def by_turns(self, lanes: Iterable[int]) -> list[int]:
        """Return lanes in the order in which trials get them: from each device in turn, so that few spread over all."""
        return sorted(lanes, key=lambda lane: (self.slot(lane), lane))

    def busiest(self, lanes: Iterable[int]) -> int:
        """Return how many of some lanes are on the device that has most of them."""
        return max(Counter(map(self.device, lanes)).values(), default=0)

    def own_slots(self, lanes: jax.Array) -> jax.Array:
        """Return, inside of `jax.shard_map`, the slots of lanes int32 [n] on this device; `lanes_each` for others'."""
        slots = lanes - lax.axis_index(LANE_AXIS) * self.lanes_each
        return jnp.where(slots < 0, self.lanes_each, slots)  # a negative index would count from the end
