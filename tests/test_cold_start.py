"""What a run does once before its first step and after its last: no program is compiled that is not needed."""

import gc
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from engine_helpers import FIRST, device_data, planned, program

from scalejax.execute import host_start, programs
from scalejax.execute.host_start import started, starts_on_host
from scalejax.execute.pack import Pack
from scalejax.execute.programs import CompiledInBackground, CompiledOnDemand, Compiler
from scalejax.planning.packing import Bucket
from scalejax.planning.placement import Placement
from scalejax.planning.trial import Counted
from scalejax.report.figures.canvas import spread
from scalejax.run.watch import Preparation
from scalejax.train.optimizers import OPTIMIZERS
from scalejax.train.padding import stack_padded
from scalejax.train.step import Cursor, batch_indices, start
from scalejax.train.tracing import garbage_collection_paused, tracing

GROUP = tuple(jax.local_devices())


def weights_of(trial, seed: int = 0) -> Any:
    """Return random weights of a trial's true size, on the host."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: generator.normal(size=leaf.shape).astype(leaf.dtype), trial.architecture.abstract[1:]
    )


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for found, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert found.dtype == expected.dtype
        assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_laid_out_on_the_host_is_what_a_program_would_make(optimizer):
    trial = planned(optimizer=optimizer)
    own, scalars = program(trial), trial.settings.scalars()
    assert starts_on_host(own, 2)
    weights = weights_of(trial)
    settings = jax.tree.map(lambda leaf: np.stack([leaf, leaf + leaf]), scalars)
    both: Any = tuple(stack_padded([part, part], part) for part in weights)
    expected = jax.jit(jax.vmap(partial(start, own.recipe)))(settings, both)
    assert_same_bits(started(own, settings, both, rows=[0, 1]), expected)


def counting() -> optax.GradientTransformation:
    """Return an optimizer that begins with numbers that it computes."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(lambda leaf: 2 * leaf, params), optax.identity().update
    )


def test_what_has_to_be_computed_is_left_to_a_program():
    own = program(planned(optimizer=counting))
    assert not starts_on_host(own, 1)
    with pytest.raises(ValueError, match="computes the state that it begins with"):
        started(own, planned().settings.scalars(), weights_of(planned()), rows=[0])


def test_large_lanes_are_not_laid_out_on_the_host(monkeypatch):
    monkeypatch.setattr(host_start, "MOST_BYTES", 1)
    assert not starts_on_host(program(planned()), 1)


def test_what_is_known_of_a_large_start_takes_no_memory():
    large = program(planned(knobs={"width": 3000, "depth": 2}))
    assert starts_on_host(large, 0)  # the optimizer's zeros alone are 73 MB
    found: Any = host_start._plan(large)
    constants = [source for source in found[1] if isinstance(source, np.ndarray) and source.ndim]
    assert all(set(each.strides) == {0} for each in constants)
    assert sum(each.nbytes for each in constants) > 7e7


def test_the_first_trials_of_a_pack_need_no_compiled_program(data):
    trials = [planned(seed=seed, learning_rate=10.0**-seed) for seed in range(1, 4)]
    bucket = Bucket(program(trials[0]), tuple(map(Counted, trials)), 3, 1.0, 1, 50)
    ready: Future[Any] = Future()
    ready.set_result(SimpleNamespace())  # nothing of it is asked for
    pack = Pack(bucket, Placement(GROUP, 3), data=device_data(data, GROUP), programs=ready)
    own = [weights_of(each, seed) for seed, each in enumerate(trials)]
    places = pack.free[:3]
    pack.fill(list(zip(trials, own, strict=True)))
    assert dict(pack.occupied).keys() == set(places)
    fresh = jax.jit(partial(start, bucket.program.recipe))
    lanes = jax.device_get(pack.lanes)
    for lane in range(pack.placement.lanes):
        # An idle lane has a copy of the last trial.
        row = places.index(lane) if lane in places else len(trials) - 1
        expected = fresh(trials[row].settings.scalars(), own[row])
        assert_same_bits(jax.tree.map(lambda leaf, lane=lane: leaf[lane], lanes), expected)


@pytest.mark.parametrize("refills", [False, True])
def test_the_program_that_places_is_compiled_ahead_only_where_lanes_are_filled_again(data, monkeypatch, refills):
    asked = threading.Event()
    made = SimpleNamespace(placing=asked.set, placing_one=CompiledInBackground(None))
    monkeypatch.setattr(programs, "compiled_programs", lambda *_, **__: made)
    compiler = Compiler(data.card)
    compiler.programs(program(planned()), Placement(FIRST, 2), refills=refills).result()
    compiler.close()
    assert asked.is_set() == refills


def test_a_program_that_training_can_do_without_is_never_waited_for():
    begin, asked = threading.Event(), []

    def compile_it() -> Any:
        asked.append(True)
        begin.wait(10)
        return "program"

    assert CompiledInBackground(None)() is None
    later = CompiledInBackground(compile_it)
    assert later() is None
    assert not asked  # there is no thread for it
    with ThreadPoolExecutor(1) as threads:
        later.compile_in(threads)
        assert [later(), later()] == [None, None]
        begin.set()
    assert later() == "program"
    assert len(asked) == 1
    late = CompiledInBackground(compile_it)
    late.compile_in(threads)  # the run is over
    assert late() is None


def test_a_program_is_compiled_once_however_many_threads_ask():
    made = []

    def compile_it() -> Any:
        time.sleep(0.02)
        made.append(object())
        return made[-1]

    once, found = CompiledOnDemand(compile_it), []
    threads = [threading.Thread(target=lambda: found.append(once())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert set(map(id, found)) == {id(made[0])}


def test_the_shuffle_is_one_loop_in_the_program():
    trial = planned()
    zero = jnp.uint32(0)
    draw = partial(batch_indices, trial.recipe, pool=500, first=jnp.int32(0))
    text = str(jax.make_jaxpr(draw)(trial.settings.scalars(), Cursor(zero, zero)))
    assert text.count("while[") == 1


def test_one_thread_traces_at_a_time_and_garbage_is_looked_for_afterwards():
    order = []

    def trace(name: str) -> None:
        with tracing():
            order.append((name, gc.isenabled()))

    with tracing():
        other = threading.Thread(target=trace, args=("second",))
        other.start()
        time.sleep(0.02)
        order.append(("first", gc.isenabled()))
    other.join()
    assert order == [("first", False), ("second", False)]
    assert gc.isenabled()
    gc.disable()
    with garbage_collection_paused():
        pass
    assert not gc.isenabled()
    gc.enable()


def test_labels_that_are_apart_are_spread_without_scipy(monkeypatch):
    wanted = [0.1, 0.3, 0.31, 0.8]
    steps = 0.005 * np.arange(4)
    expected = (scipy.optimize.isotonic_regression(np.array(wanted) - steps).x + steps).tolist()
    monkeypatch.delattr(scipy.optimize, "isotonic_regression")
    assert spread(wanted, 0.005, low=0.0, high=1.0) == expected
    assert spread([0.4], 0.1, low=0.0, high=1.0) == [0.4]
    with pytest.raises(ImportError):
        spread(wanted, 0.1, low=0.0, high=1.0)


def test_what_is_done_ahead_begins_once_and_fails_silently():
    plan: Any = SimpleNamespace(trials=[None])
    ahead: Any = Preparation(plan)
    for _ in range(2):
        ahead.begin()
    ahead._thread.join(timeout=60)
    assert not ahead._thread.is_alive()
