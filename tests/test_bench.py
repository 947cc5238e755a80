"""The benchmark measures what it says, in any order of speed."""

import json

import pytest

from scalejax.cli import main
from scalejax.execute import bench as benchmark
from scalejax.report.bench import bench_table
from scalejax.report.console import rendered


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hundredths of a second and small matrices: the numbers mean nothing here, only their place does."""
    monkeypatch.setattr(benchmark, "SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "PEAK_SIZE", 64)


@pytest.mark.slow
def test_the_figures_are_the_same_in_table_and_json(capsys):
    assert main(["bench", "--widths", "4", "--repetitions", "1", "--batch-size", "8", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["widths"]
    assert facts.keys() == {"device_kind", "devices", "batch_size", "peak", "widths"}
    assert row.keys() == {"width", "lanes", "vmap", "map", "loop"}
    assert (row["width"], facts["batch_size"]) == (4, 8)
    assert min(facts["peak"], row["vmap"], row["map"], row["loop"]) > 0
    assert "plain loop" in rendered(bench_table(facts), terminal=False)


@pytest.mark.slow
def test_every_contestant_is_measured_in_every_repetition(monkeypatch):
    amounts = []
    monkeypatch.setattr(benchmark, "_amount", lambda run: run(2) or 2)
    monkeypatch.setattr(benchmark, "_seconds", lambda run, amount: amounts.append(amount) or run(amount) or 0.5)
    found = benchmark.bench([4], batch_size=8, repetitions=3, progress=lambda _: None)
    assert len(amounts) == 3 * 4
    # Two steps in half a second: all lanes of all devices count in the engine, one trial in the loop.
    speed = found.speeds[0]
    assert speed.modes["vmap"] == pytest.approx(speed.loop * speed.lanes * found.devices)
    assert found.peak == pytest.approx(4 * 2 * 64**3)
