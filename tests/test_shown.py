"""What objects show of themselves in a notebook: tables of HTML, whole and escaped."""

import re

import pandas as pd
import pytest
from rich.table import Table

import scalejax as sx
from scalejax.report.console import as_html
from scalejax.report.plan import SweepPlan, plan_lines
from scalejax.run.store import Store
from scalejax.text import html_table, html_text

PROGRAM = {
    "sizes": "mlp width 8, 64", "trials": 1_200, "lanes": 32, "mode": "vmap", "steps": 2_400, "padding": 0.47,
    "packing": "proven", "seconds": 61.0, "timed": False,
}  # fmt: skip
PLAN = {
    "name": "small", "trials": 1_200, "precision": "float32", "stopped_early": 0, "devices": 2, "device_kind": "cpu",
    "lane_programs": 1, "programs": [PROGRAM], "older": [], "notes": ["a < b"], "waste": 0.5, "useful_flops": 1_000,
    "padding_flops": 900, "idle_flops": 100, "state_bytes": 10, "data_bytes": 10, "stream_bytes": 0,
    "checkpoint_bytes": 30, "forecast_seconds": 61.0,
}  # fmt: skip


def cells(html: str) -> list[list[str]]:
    """Return the texts of the cells of all tables, row by row."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_a_table_is_whole_and_escaped():
    shown = html_table(["law", "value"], [["a < b", "1"], ["c", "2"]], title="R&D")
    assert cells(shown) == [["law", "value"], ["a &lt; b", "1"], ["c", "2"]]
    assert "R&amp;D</caption>" in shown
    assert "caption" not in html_table(["law"], [])
    assert html_text("a < b") == "<pre>a &lt; b</pre>"


def test_tables_and_sentences_stand_in_their_order():
    table = Table("model", "error", title="T", caption="noted")
    table.add_row("mlp", "0.1")
    shown = as_html("one", "two", table, "three")
    assert shown.startswith("<pre>one\ntwo</pre><table>")
    assert shown.endswith("</table><pre>noted</pre><pre>three</pre>")
    assert cells(shown) == [["model", "error"], ["mlp", "0.1"]]


def test_a_plan_shows_its_buckets_as_a_table_and_every_other_line():
    shown = SweepPlan(PLAN)._repr_html_()
    wanted = ["mlp width 8, 64", "1,200", "32", "vmap", "2,400", "47 %", "proven", "1 min 1 s (estimated)"]
    assert cells(shown)[1:] == [wanted]
    heading, _, program, *others = plan_lines(PLAN)
    assert heading in shown
    assert program not in shown
    assert all(html_text(line)[5:-6] in shown for line in others)
    assert "<table>" not in SweepPlan({**PLAN, "programs": []})._repr_html_()


def test_a_run_without_results_shows_itself_all_the_same(tmp_path):
    assert "no results" in sx.Run(tmp_path)._repr_html_()
    with Store(tmp_path / "results.sqlite", write=True):
        pass
    assert sx.Run(tmp_path)._repr_html_() == f"<pre>{sx.Run(tmp_path)}</pre>"


def test_a_run_shows_its_table(tmp_path, monkeypatch: pytest.MonkeyPatch):
    rows = pd.DataFrame({
        "family": "mlp", "width": 8, "params": 100, "train_examples": [20, 200, 2000], "seed": 0,
        "learning_rate": 0.01, "status": "done", "validation_loss": [1.0, 0.8, 0.6], "test_error": [0.6, 0.4, 0.3],
    })  # fmt: skip
    monkeypatch.setattr(sx.Run, "results", lambda _: rows)
    assert cells(sx.Run(tmp_path)._repr_html_())[1][:4] == ["mlp", "0.600", "0.400", "0.300"]
