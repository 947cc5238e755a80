"""The notebooks do what they show: every cell runs, and what a cell shows can be shown."""

import ast
import json
import re
import shutil
from pathlib import Path

import matplotlib
import pytest
from engine_helpers import slow

pytestmark = pytest.mark.usefixtures("compile_quickly")
FOLDER = Path(__file__).parents[1] / "notebooks"
NAMES = "01_picture_of_scale", "02_your_own_data_and_model", "03_fit_and_forecast", "04_compute_optimal"
NOTEBOOKS = [FOLDER / f"{name}.ipynb" for name in NAMES]
LARGEST = 300_000  # bytes of a notebook with its outputs
LESS = ("steps=600,", "steps=150,")  # of training, in the tests


def cells(notebook: Path) -> list[str]:
    return [
        "".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"
    ]


def test_there_is_no_other_notebook():
    assert sorted(FOLDER.glob("*.ipynb")) == NOTEBOOKS


@pytest.mark.parametrize("notebook", [NOTEBOOKS[0], *slow(NOTEBOOKS[1]), *NOTEBOOKS[2:]], ids=lambda path: path.stem)
def test_every_cell_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    matplotlib.use("Agg")
    shutil.copytree(notebook.parents[1] / "sweeps", tmp_path / "sweeps")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names = {"__name__": "notebook"}
    for cell in cells(notebook):
        *statements, last = ast.parse(cell.replace(*LESS)).body
        shown = isinstance(last, ast.Expr)
        exec(compile(ast.Module(statements if shown else [*statements, last], []), notebook.name, "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), notebook.name, "eval"), names)
            assert value is None or getattr(value, "_repr_html_", lambda value=value: repr(value))()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_small_and_name_no_folder_of_a_machine(notebook: Path):
    read = json.loads(notebook.read_text())
    kept = [cell for cell in read["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in kept), "run it from top to bottom, and save it with its outputs"
    assert not any(output["output_type"] == "error" for cell in kept for output in cell["outputs"])
    assert notebook.stat().st_size < LARGEST
    assert not re.search(r"/(home|root|tmp|work|Users)/", notebook.read_text())
