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

from scalejax.train.sharding import BATCH_AXIS, LANE_AXIS, PARAMETER_AXIS, parameter_axis

ACCELERATOR_MULTIPLE = 128

Device = Any  # jax.Device, which type checkers take for a variable; it need not be of this machine
Group = tuple[Device, ...]  # run one program together, each its share: the cores of a CPU, or one accelerator


@dataclass(frozen=True)
class Spread:
    """Over how many devices each trial of a program is spread; each lane has batch * parameters of them.

    Attributes:
        batch: parts of the batch, each device with all parameters.
        parameters: parts of the parameters, of what the optimizer keeps of them and of the best ones; the batch is cut
            as often again.
    """

    batch: int = 1
    parameters: int = 1

    @property
    def devices(self) -> int:
        """Devices that share a lane."""
        return self.batch * self.parameters


ALONE = Spread()


@dataclass(frozen=True)
class Placement:
    """The lanes of one program on one group of devices: a mesh with the axes lane, batch and parameters.

    Lanes are numbered in the order of the leading axis of a state: those of the first devices, then those of the next.

    Attributes:
        devices: of the group; each row of them, as many as share a lane, holds an equal share of the lanes.
        lanes_each: lanes on one device.
        spread: over how many devices each lane is.
    """

    devices: Group
    lanes_each: int
    spread: Spread = ALONE

    @property
    def rows(self) -> int:
        """How many sets of devices have lanes of their own."""
        return len(self.devices) // self.spread.devices

    @property
    def lanes(self) -> int:
        """Number of lanes on all devices together."""
        return self.lanes_each * self.rows

    @functools.cached_property
    def here(self) -> bool:
        """Whether all its devices are of this process; else other hosts have some of them."""
        return all(device.process_index == jax.process_index() for device in self.devices)

    @property
    def own_device(self) -> Device:
        """A device of it that is of this process: what the others have to tell only their own can hear."""
        return next(device for device in self.devices if device.process_index == jax.process_index())

    def is_here(self, lane: int) -> bool:
        """Say whether a lane is on a device of this process."""
        first = self.row(lane) * self.spread.devices
        of_lane = self.devices[first : first + self.spread.devices]
        return any(device.process_index == jax.process_index() for device in of_lane)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The devices along the axis of the lanes, and along those over which each lane is spread, if it is."""
        devices = np.array(self.devices)
        if self.spread == ALONE:
            return Mesh(devices, (LANE_AXIS,))
        shape = self.rows, self.spread.batch, self.spread.parameters
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
            lanes: whether the array has the axis of the lanes, all of which are here; else one of trials that every
                row of devices has.
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

    def row(self, lane: int) -> int:
        """Return which set of devices holds a lane."""
        return lane // self.lanes_each

    def slot(self, lane: int) -> int:
        """Return the number of a lane among those of its devices."""
        return lane % self.lanes_each

    def by_turns(self, lanes: Iterable[int]) -> list[int]:
        """Return lanes in the order in which trials get them: from each device in turn, so that few spread over all."""
        return sorted(lanes, key=lambda lane: (self.slot(lane), lane))

    def busiest(self, lanes: Iterable[int]) -> int:
        """Return how many of some lanes are on the devices that have most of them."""
        return max(Counter(map(self.row, lanes)).values(), default=0)

    def own_slots(self, lanes: jax.Array) -> jax.Array:
        """Return, inside of `jax.shard_map`, the slots of lanes int32 [n] on this device; `lanes_each` for others'."""
        slots = lanes - lax.axis_index(LANE_AXIS) * self.lanes_each
        return jnp.where(slots < 0, self.lanes_each, slots)  # a negative index would count from the end
