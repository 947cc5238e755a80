"""A placement alone knows which lane is where."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import scalejax.execute
from scalejax.planning.placement import Placement
from scalejax.train.sharding import LANE_AXIS

FOLDER = Path(scalejax.execute.__file__).parent
PLACEMENTS = st.builds(
    lambda devices, lanes: Placement(tuple(f"device {number}" for number in range(devices)), lanes),
    st.integers(1, 9),
    st.integers(1, 40),
)


@given(PLACEMENTS)
def test_every_lane_has_a_place_of_its_own_and_the_axis_is_divided_device_by_device(placement):
    places = [(placement.shard_of(lane), placement.index_in_shard(lane)) for lane in range(placement.lanes)]
    assert places == [(d, s) for d in range(len(placement.devices)) for s in range(placement.lanes_each)]


@given(PLACEMENTS, st.data())
def test_lanes_are_handed_out_so_that_no_device_has_two_more_than_another(placement, draw):
    order = placement.round_robin(range(placement.lanes))
    assert sorted(order) == list(range(placement.lanes))
    some = order[: draw.draw(st.integers(0, placement.lanes))]
    counts = [sum(placement.shard_of(lane) == device for lane in some) for device in range(len(placement.devices))]
    assert max(counts) - min(counts) <= 1
    assert placement.busiest(some) == max(counts)


@given(PLACEMENTS, st.data())
def test_any_free_lanes_are_all_handed_out_the_lowest_slots_first(placement, draw):
    free = draw.draw(st.sets(st.integers(0, placement.lanes - 1)))
    order = placement.round_robin(free)
    assert sorted(order) == sorted(free)
    slots = [placement.index_in_shard(lane) for lane in order]
    assert slots == sorted(slots)


@pytest.mark.parametrize("lanes_each", [1, 3])
def test_devices_hold_the_lanes_that_the_placement_says(lanes_each):
    placement = Placement(tuple(jax.local_devices()), lanes_each)
    numbers = jax.device_put(np.arange(placement.lanes, dtype=np.int32), placement.lane_sharded)
    for shard in numbers.addressable_shards:
        for lane in np.asarray(shard.data).tolist():
            assert placement.devices[placement.shard_of(lane)] == shard.device
            assert np.asarray(shard.data)[placement.index_in_shard(lane)] == lane
    # And each device knows its own among numbers that are given to all: the others lie beyond its lanes.
    own = jax.shard_map(
        placement.indices_in_shard, mesh=placement.mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(LANE_AXIS)
    )
    every = np.arange(placement.lanes, dtype=np.int32)
    found = np.asarray(jax.jit(own)(every)).reshape(len(placement.devices), placement.lanes)
    for device, slots in enumerate(found):
        for lane, slot in zip(every.tolist(), slots.tolist(), strict=True):
            mine = placement.shard_of(lane) == device
            assert slot == placement.index_in_shard(lane) if mine else slot >= lanes_each


def names(node: ast.AST) -> set[str]:
    return {getattr(each, "attr", getattr(each, "id", "")) for each in ast.walk(node)}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_no_other_file_calculates_with_lane_numbers(file):
    if file.name == "placement.py":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.BinOp):
            if isinstance(node.op, ast.FloorDiv):  # half of the lanes is no place
                assert not names(node.right) & {"lanes", "lanes_each"}, f"line {node.lineno}"
            if isinstance(node.op, ast.Mod):
                assert not names(node) & {"lanes", "lanes_each"}, f"line {node.lineno}"
            if isinstance(node.op, ast.Mult) and names(node) & {"lanes", "lanes_each"}:
                assert not names(node) & {"devices", "group", "device_count"}, f"line {node.lineno}"
