"""The rules of the house: which room may import which, linter and type checker."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scalejax

PACKAGE = Path(scalejax.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

# The rooms from the ground up, each with those that it may import: all of them stand before it. Analysis knows nothing
# of the engine and the engine nothing of analysis.
BASE = {"text", "errors", "status", "files", "builders", "code_text", "rules"}
ROOMS = {
    "text": set(),
    "errors": {"text"},
    "status": set(),
    "files": set(),
    "builders": {"errors", "text"},
    "code_text": set(),
    "rules": {"errors", "text"},
    "data": BASE,
    "classical": {*BASE, "data"},
    "spec": {*BASE, "data", "classical"},
    "models": {*BASE, "data"},
    "train": {*BASE, "data", "models"},
    "planning": {*BASE, "data", "classical", "spec", "models", "train"},
    "execute": {*BASE, "data", "spec", "models", "train", "planning"},
    "analysis": BASE,
    "report": {*BASE, "analysis"},
    "run": {*BASE, "data", "classical", "spec", "models", "train", "planning", "execute", "analysis", "report"},
    "cli": {*BASE, "data", "spec", "models", "train", "planning", "execute", "analysis", "report", "run"},
    "__init__": {*BASE, "data", "spec", "analysis", "train", "run"},
}
# Package -> the rooms, folders or files that alone may import it.
KEEPERS = {
    "jax": {"files", "models", "data", "train", "planning", "execute", "analysis", "run"},
    "flax": {"models", "train", "planning", "execute"},
    "optax": {"train"},
    "orbax": {"execute/checkpoint.py", "execute/hosts.py"},
    "sqlite3": {"run/store.py"},
    "tomllib": {"spec/file.py"},
    "pandas": {"data", "analysis", "report", "run"},
    "threadpoolctl": {"analysis", "classical"},
    "scipy": {"analysis", "report/figures"},
    "rich": {"report", "cli"},
    "shtab": {"cli"},
    "sklearn": {"data", "classical"},
    "matplotlib": {"report/figures"},
}
ANY_KEYWORDS = {
    "spec/sweep.py": {"__init__"},
    "rules.py": {"init"},
    "analysis/forecast/threads.py": {"alone"},
}  # ModelGrid; what `strict` and `on_one_thread` wrap


def room(path: str) -> str:
    """Return the room of a path in the package such as "train/step.py" or of a module such as "train.step"."""
    return path.replace("/", ".").removesuffix(".py").split(".")[0]


def within(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def nodes(file: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(file.read_text(encoding="utf-8")))


def imports(file: Path) -> Iterator[str]:
    """Yield the full names of the modules that a file imports, anywhere in it."""
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{within(file)}:{node.lineno} imports relatively"
            assert node.module is not None
            own = node.module == "scalejax"  # from scalejax import store
            yield from (f"{node.module}.{alias.name}" for alias in node.names) if own else (node.module,)


def functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in nodes(file) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("file", FILES, ids=within)
def test_each_room_imports_only_the_rooms_that_it_may(file: Path):
    here = room(within(file))
    allowed = ROOMS[here] | {here}
    inside = {room(name.removeprefix("scalejax.")) for name in imports(file) if name.startswith("scalejax")}
    assert inside <= allowed
    for name in imports(file):
        keepers = KEEPERS.get(name.split(".")[0])
        places = {here, within(file), Path(within(file)).parent.as_posix()}
        assert keepers is None or keepers & places, f"{within(file)} imports {name}"


def test_every_room_of_the_table_exists():
    assert {room(within(file)) for file in FILES} == ROOMS.keys()


def test_the_picture_in_the_readme_is_the_folders():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    picture = readme.split("## Where things are")[1].split("```")[1]
    shown, parents = set(), []
    for line in picture.strip().splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        parents[depth:] = [name] if name.endswith("/") else []
        shown.add("".join(parents[: depth + 1]))
        for file in re.findall(r"(\w+\.py)", line):
            assert (ROOT / "".join(parents[: depth + 1]) / file).is_file(), line
    folders = {
        f"{path.relative_to(ROOT).as_posix()}/"
        for top in ("scalejax", "docs", "sweeps", "notebooks", "tests")
        for path in [ROOT / top, *(ROOT / top).rglob("*")]
        if path.is_dir() and path.name not in ("__pycache__", ".hypothesis", ".pytest_cache")
    }
    assert shown == folders
    listed = [line.split()[0].removesuffix("/") for line in picture.splitlines() if re.match(r"  \w+/", line)]
    rooms = [room for room in listed if room in ROOMS]
    assert rooms == [room for room in ROOMS if room in rooms]  # in the order of their imports


def test_no_room_is_imported_from_below_and_no_file_in_a_circle():
    names = list(ROOMS)
    assert all(names.index(other) < names.index(here) for here, allowed in ROOMS.items() for other in allowed)
    modules = {within(file).removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
    uses = {
        name: {used.removeprefix("scalejax.") for used in imports(file)} & modules.keys()
        for name, file in modules.items()
    }
    packages = {name for name, file in modules.items() if file.name == "__init__.py"}  # which only pass names on
    order = TopologicalSorter({name: used - packages for name, used in uses.items() if name not in packages})
    order.prepare()  # raises at a circle


def test_only_lanes_lifts_over_lanes():
    users = {
        within(file)
        for file in FILES
        if room(within(file)) in ("train", "planning", "execute")
        for node in nodes(file)
        if "vmap" in (getattr(node, "attr", ""), getattr(node, "id", ""))
    }
    assert users == {"train/lanes.py"}


@pytest.mark.parametrize("file", FILES, ids=within)
def test_no_keywords_pass_through(file: Path):
    takers = {node.name for node in functions(file) if node.args.kwarg}
    assert takers == ANY_KEYWORDS.get(within(file), set())


def test_the_public_names_are_spelled_out_and_there():
    assert isinstance(scalejax.__all__, list)
    assert len(set(scalejax.__all__)) == len(scalejax.__all__)  # the linter keeps their order
    assert all(hasattr(scalejax, name) for name in scalejax.__all__)


def test_what_fits_the_older_algorithms_never_imports_jax():
    code = "import sys, scalejax.classical.child; print({'jax', 'flax'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_importing_the_package_stays_light():
    heavy = "jax", "flax", "pandas", "matplotlib", "rich", "sklearn"
    code = f"import sys, scalejax, scalejax.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [("ruff", "check"), ("ruff", "format", "--check"), ("pyright", "--pythonpath", sys.executable)],
    ids=lambda command: " ".join(command[:2]) if command[0] == "ruff" else command[0],
)
def test_the_linter_and_the_type_checker_are_content(command: tuple[str, ...]):
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f'{command[0]} is not installed; pip install -e ".[test]" brings it')
    if not (ROOT / "pyproject.toml").is_file():
        pytest.skip("scalejax is installed without its sources, which these tools check")
    found = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
