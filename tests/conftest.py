"""Strict numerics for every test, small data sets, and a cache of the tests' own."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

# Before anything imports JAX: the tests' programs and data go to a folder of their own, one for all processes.
if not os.environ.get("SCALEJAX_TEST_CACHE"):
    os.environ["SCALEJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="scalejax-tests-")
os.environ["SCALEJAX_CACHE"] = os.environ["SCALEJAX_TEST_CACHE"]

import jax
import numpy as np
import pytest

from scalejax.data import DataCard, DataSet, Split
from scalejax.execute.devices import prepare

LONG = "test_house.py", "test_notebooks.py", "test_lanes.py", "test_programs.py", "test_checkpoint.py"

prepare()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """All tests of a file run in one process: what they share is compiled once. Files begin in the order collected."""
    from xdist.scheduler import LoadFileScheduling  # the hook is called only where it is installed

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.hookimpl(trylast=True)  # after those that the markers leave out are gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let files of many tests begin first, and before them those of few long ones: no process waits for the other."""
    counts = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONG, -counts[item.path]))


@pytest.fixture(scope="session", autouse=True)
def without_reports() -> Iterator[None]:
    """Spare the many tests that run a sweep on the command line the page at its end; `test_report.py` makes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalejax.run.report.report_at_end", lambda *_, **__: (None, "no report"))
        yield


@pytest.fixture(scope="module")
def compile_quickly() -> Iterator[None]:
    """Spare the compiler its optimisations, in a file that waits for little else and does not ask what they do.

    A program then takes a quarter of the time; one that a test itself gives to `jax.jit` needs `QUICK` for that.
    What compares bits, or reads a compiled program, does without this fixture.
    """
    from engine_helpers import OPTIMISED, QUICK, ready

    if OPTIMISED:
        yield
        return
    usual, compile_it = jax.config.read("jax_disable_most_optimizations"), jax.stages.Lowered.compile

    def quickly(lowered: jax.stages.Lowered, compiler_options: dict[str, Any] | None = None) -> jax.stages.Compiled:
        return compile_it(lowered, {**QUICK, **(compiler_options or {})})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.stages.Lowered, "compile", quickly)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", usual)
    ready.cache_clear()  # another file wants its programs as they are in use
    jax.clear_caches()


@pytest.fixture(scope="session")
def data() -> DataSet:
    """600 examples of 12 inputs in 3 classes that a network can learn, in 500 + 50 + 50."""
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(600, 12)).astype(np.float32)
    labels = (np.abs(inputs[:, :3]) @ np.array([[1.0, 0, 0], [0, 1.2, 0], [0, 0, 0.8]])).argmax(1).astype(np.int32)
    splits = [Split(inputs[part], labels[part]) for part in (slice(500), slice(500, 550), slice(550, 600))]
    card = DataCard("test", (12,), 3, 500, 50, 50, "fingerprint")
    return DataSet(card, *splits)
