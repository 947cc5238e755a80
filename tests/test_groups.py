"""Several groups of devices: which takes which bucket and which programs come first; and groups_of_four.py."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_helpers import planned, program
from hypothesis import given
from hypothesis import strategies as st
from many_devices import assert_passed, inner_tests, told_by

from scalejax.errors import RunError
from scalejax.execute.programs import Compiler
from scalejax.execute.scheduler import Observer, Scheduler
from scalejax.execute.successive_halving import SuccessiveHalving
from scalejax.planning.halving import expected_stops, steps_left
from scalejax.planning.packing import Bucket
from scalejax.planning.trial import Counted

pytestmark = pytest.mark.usefixtures("compile_quickly")
FOUR = Path(__file__).with_name("groups_of_four.py")


def bucket(count, *, batch_size=16, lanes=2, rungs=(), steps=40):
    """Return a bucket of so many trials: as many learning rates as are needed, four seeds."""
    trials = tuple(
        replace(
            planned(
                "logistic", seed=index % 4, learning_rate=1e-3 * (1 + index // 4), batch_size=batch_size, steps=steps
            ),
            rungs=rungs,
        )
        for index in range(count)
    )
    return Bucket(program(trials[0]), tuple(map(Counted, trials)), lanes=lanes, seconds=1.0, makespan=1, call_steps=50)


class Idle:
    """A worker that trains nothing; it writes down which programs it is to prepare, and with which bucket it begins."""

    def __init__(self, orders):
        self.orders, self.first = orders, None

    def lanes(self, bucket):
        return bucket.lanes

    def prepare(self, bucket):
        self.orders.append((bucket.program, self))

    def run(self, bucket, feed, report):
        del feed, report
        self.first = bucket.program
        raise RunError("it has begun")


def begin(wanted, data, monkeypatch, *, workers=4, reduction=None):
    """Return the bucket with which each worker begins, and (bucket, worker) in the order of compilation."""
    monkeypatch.setattr(Compiler, "initialiser", lambda *_: None)
    orders: list = []
    idle = [Idle(orders) for _ in range(workers)]
    trials = [each for one in wanted for each in one.trials]
    halving = SuccessiveHalving(trials, reduction=reduction, histories={}) if reduction else None
    observer = Observer(lambda _: None, lambda _: None, lambda _: None)
    scheduler = Scheduler(wanted, {each.trial_id for each in trials}, data=data, observer=observer, halving=halving)
    with pytest.raises(RunError, match="it has begun"):
        scheduler.run_on(idle)
    places = {None: None} | {one.program: number for number, one in enumerate(wanted)}
    return [places[one.first] for one in idle], [(places[made], idle.index(worker)) for made, worker in orders]


def test_groups_spread_over_the_buckets_and_what_they_begin_with_is_compiled_first(data, monkeypatch):
    wanted = [bucket(16, batch_size=4), bucket(32, batch_size=8), bucket(64, batch_size=16)]
    first, orders = begin(wanted, data, monkeypatch)
    # Each group takes two trials at once: 62 / 2 < 32, but 62 / 2 > 30 / 2, and 60 / 3 > 16.
    assert first == [2, 1, 2, 2]
    assert orders[:4] == [(2, 0), (1, 1), (2, 2), (2, 3)]
    assert orders[4:] == [(0, 0)]  # 64 / 3 < 32: one of the groups at the large bucket is free first


def test_one_group_has_all_programs_compiled_in_the_order_of_their_work(data, monkeypatch):
    wanted = [bucket(16, batch_size=4), bucket(32, batch_size=8), bucket(64, batch_size=16)]
    assert begin(wanted, data, monkeypatch, workers=1) == ([2], [(2, 0), (1, 0), (0, 0)])


def test_groups_for_which_there_is_no_work_get_none(data, monkeypatch):
    assert begin([bucket(3, lanes=8)], data, monkeypatch) == ([0, None, None, None], [(0, 0)])


def test_halving_is_expected_when_groups_are_spread(data, monkeypatch):
    """Of eight rates one goes on to the end: their bucket has less work than one of half as many trials, all whole."""
    halved, whole = bucket(32, rungs=(4, 8, 12)), bucket(16, batch_size=8)
    assert begin([halved, whole], data, monkeypatch, workers=1, reduction=2)[0] == [1]
    assert begin([bucket(32), whole], data, monkeypatch, workers=1)[0] == [0]


@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 99), max_size=4, unique=True).map(lambda each: tuple(sorted(each))),
    st.integers(2, 5),
)
def test_the_steps_that_are_expected_are_those_that_a_plan_counts(count, rungs, reduction):
    stops = expected_stops(count, rungs, reduction=reduction)
    total = sum(100 if stop is None else stop for stop in stops)
    assert count * steps_left(count, rungs, 100, step=0, reduction=reduction) == pytest.approx(total)


def test_the_steps_that_are_left_count_from_the_step_that_a_trial_has_come_to():
    assert steps_left(4, (10, 20), 40, step=0, reduction=2) == pytest.approx((10 + 10 + 20 + 40) / 4)
    assert steps_left(2, (20,), 40, step=10, reduction=2) == pytest.approx((10 + 30) / 2)
    assert steps_left(1, (), 40, step=25, reduction=2) == 15


@pytest.fixture(scope="module")
def told_by_four() -> SimpleNamespace:
    """What pytest says of the tests that need four devices, in a process that has them."""
    return told_by(FOUR, devices=4, seconds=600)


@pytest.mark.slow
@pytest.mark.parametrize("name", inner_tests(FOUR))
def test_four_groups(name: str, told_by_four: SimpleNamespace):
    assert_passed(name, told_by_four)
