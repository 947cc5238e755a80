"""Where the lanes of a program are: on which devices, how many on each, and how many devices share each."""

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

from scalejax.train.sharding import BATCH_AXIS, LANE_AXIS, NOT_SPREAD, PARAMETER_AXIS, Spread, parameter_axis

ACCELERATOR_MULTIPLE = 128

Device = Any  # jax.Device, which type checkers take for a variable; it need not be of this machine
Group = tuple[Device, ...]  # run one program together, each its share: the cores of a CPU, or one accelerator


@dataclass(frozen=True)
class Placement:
    """The lanes of one program on one group of devices: a mesh with the axes lane, batch and parameters.

    Lanes are numbered in the order of the leading axis of a state: those of the first devices, then those of the next.

    Attributes:
        devices: of the group; each `spread.devices` of them in a row are a shard, and hold an equal share of the lanes.
        lanes_each: lanes on one device.
        spread: over how many devices each lane is.
    """

    devices: Group
    lanes_each: int
    spread: Spread = NOT_SPREAD

    @property
    def lane_shards(self) -> int:
        """Size of the mesh along the axis of the lanes: how many sets of devices have lanes of their own."""
        return len(self.devices) // self.spread.devices

    @property
    def lanes(self) -> int:
        """Number of lanes on all devices together."""
        return self.lanes_each * self.lane_shards

    @functools.cached_property
    def is_fully_addressable(self) -> bool:
        """Whether all its devices are of this process, and not of another host."""
        return all(device.process_index == jax.process_index() for device in self.devices)

    @property
    def local_device(self) -> Device:
        """One of its devices that is of this process: of others the memory cannot be asked for."""
        return next(device for device in self.devices if device.process_index == jax.process_index())

    def is_addressable(self, lane: int) -> bool:
        """Say whether a lane is on a device of this process."""
        first = self.shard_of(lane) * self.spread.devices
        of_lane = self.devices[first : first + self.spread.devices]
        return any(device.process_index == jax.process_index() for device in of_lane)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices along the axis of the lanes, and along those over which each lane is spread, if it is."""
        devices = np.array(self.devices)
        if self.spread == NOT_SPREAD:
            return Mesh(devices, (LANE_AXIS,))
        shape = self.lane_shards, self.spread.batch, self.spread.parameters
        return Mesh(devices.reshape(shape), (LANE_AXIS, BATCH_AXIS, PARAMETER_AXIS))

    @property
    def lane_sharded(self) -> NamedSharding:
        """An equal share of the leading axis on every device."""
        return NamedSharding(self.mesh, PartitionSpec(LANE_AXIS))

    @property
    def replicated(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def state_sharding(self, shape: tuple[int, ...], *, lanes: bool = True) -> NamedSharding:
        """Return how an array of all lanes' states lies on the devices.

        Args:
            shape: of one lane's.
            lanes: whether the leading axis is that of all lanes; else it is of trials, and every shard of lanes has all
                of them.
        """
        axis = parameter_axis(shape, self.spread.parameters)
        inner = [] if axis is None else [*[None] * axis, PARAMETER_AXIS]
        return NamedSharding(self.mesh, PartitionSpec(LANE_AXIS if lanes else None, *inner))

    def shardings(self, states: Any) -> Any:
        """Return a tree of how states, arrays or shapes [lanes, ...], lie on the devices."""
        return jax.tree.map(lambda leaf: self.state_sharding(leaf.shape[1:]), states)

    @property
    def block_multiple(self) -> int:
        """What the size of a block of examples for evaluation is a multiple of, so that it can be cut further."""
        return 1 if self.devices[0].platform == "cpu" else ACCELERATOR_MULTIPLE

    def shard_of(self, lane: int) -> int:
        """Return the coordinate along the lane axis of the devices that hold a lane."""
        return lane // self.lanes_each

    def index_in_shard(self, lane: int) -> int:
        """Return the number of a lane among those of its shard."""
        return lane % self.lanes_each

    def round_robin(self, lanes: Iterable[int]) -> list[int]:
        """Return lanes in the order in which trials get them: from each shard in turn, so that few spread over all."""
        return sorted(lanes, key=lambda lane: (self.index_in_shard(lane), lane))

    def busiest(self, lanes: Iterable[int]) -> int:
        """Return how many of some lanes are in the shard that has most of them."""
        return max(Counter(map(self.shard_of, lanes)).values(), default=0)

    def indices_in_shard(self, lanes: jax.Array) -> jax.Array:
        """Return `index_in_shard` of lanes int32 [n], in `jax.shard_map`; `lanes_each` or more if in other shards."""
        indices = lanes - lax.axis_index(LANE_AXIS) * self.lanes_each
        return jnp.where(indices < 0, self.lanes_each, indices)  # a negative index would count from the end
