"""README and documentation: what they show can be done, what they name is there, and the site can be built.

Each page is tried in a folder of its own, block after block. A block with a title is a file, and is there from the
start, and so are the sweeps of this repository, the houses of the tutorial, and a finished `runs/quickstart`. All of
it is shrunk: to ten steps, a seed, a learning rate or two, and few examples to measure with.
"""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import matplotlib
import pytest

import scalejax as sx
from scalejax.cli import main
from scalejax.cli.main import TOUR
from scalejax.cli.options import parser_of, subparsers
from scalejax.run.advice import NEXT
from scalejax.spec.file import parse_override

pytestmark = pytest.mark.usefixtures("compile_quickly")
ROOT = Path(__file__).parents[1]
if not (ROOT / "docs").is_dir():
    pytest.skip("scalejax is tested without its documentation", allow_module_level=True)
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
MADE = "commands.md", "words.md", "index.md", "changelog.md", "contributing.md"  # pages that docs/pages.py makes

SMALLER = (  # what is tried is shown with more steps, seeds, rates, resamples and examples
    (r"\bsteps( ?= ?)[\d_]+", r"steps\g<1>10"),
    (r"\bseeds( ?= ?)\d+", r"seeds\g<1>1"),
    (r"\bbootstrap=\d+", "bootstrap=20"),
    (r"\blearning_rate=\(([^,]+),[^)]*\)", r"learning_rate=\1"),
    (r"\b(learning_rate = \[[^,\]]+,[^,\]]+)[^\]]*\]", r"\1]"),
    (r"\b((?:validation|test)_examples = )\d+", r"\g<1>100"),
)
SET = ("--set", "train.steps=10")  # behind what is typed, for the same reason
AROUND = {  # a part of a sweep
    "name": 'name = "part"',
    "data": '[data]\nsource = "mnist1d"\ntrain_examples = [20, 200]',
    "models": '[[models]]\nfamily = "mlp"\nwidth = [4, 8]\ndepth = 1',
    "train": "[train]\nlearning_rate = [0.01, 0.03]\nbatch_size = 16\nsteps = 100",
}
# Parsed alone: what needs a compiler, hosts or a tracker that are not here, and the measurement of speed.
NOT_HERE = {"--compile", "--hosts", "--coordinator", "--track", "bench"}
OTHERS = {"pip", "python", "python3", "mkdocs", "gcloud", "srun", ".", "SCALEJAX_TEST_OPTIMISED=1"}  # that pages show
SHOWN = re.compile(r"^class (\w+)\(Shown\):", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    fence = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
    return [Block(*found.groups(default="")) for found in fence.finditer(page.read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(line: str) -> Iterator[list[str]]:
    """Yield the commands of a line, each as its words; what a command starts elsewhere is one too."""
    words: list[str] = []
    for word in [*shlex.split(line, comments=True), "&&"]:
        if word == "&&":
            if words:
                yield words
            words = []
        elif word.startswith("--command="):
            yield from commands(word.removeprefix("--command="))
        elif word == "scalejax" and words:
            yield words
            words = [word]
        else:
            words.append(word)


def typed(page: Path) -> Iterator[list[str]]:
    """Yield the commands of a page's blocks."""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.splitlines():
                yield from commands(line)


def arguments(words: list[str]) -> list[str]:
    """Return what `scalejax` is given: without what the shell does with its output."""
    return words[1 : words.index(">") if ">" in words else None]


def is_table(value: object) -> TypeGuard[dict[str, object]]:
    return isinstance(value, dict)


def smaller(text: str) -> str:
    for pattern, by in SMALLER:
        text = re.sub(pattern, by, text)
    return text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_taken_by_the_parser_and_files_exist(page: Path):
    files = {block.title for each in PAGES for block in blocks(each) if block.title} | {"sweep.toml"}
    for words in typed(page):
        if words[0] != "scalejax":
            assert words[0] in OTHERS
            scripts = [word for word in words[1:] if word.endswith(".py")]
            assert all((ROOT / script).is_file() or script in files for script in scripts), words
            continue
        options = parser_of(TOUR).parse_args(arguments(words))
        for key, value in map(parse_override, getattr(options, "set", [])):
            assert value is not None, key
        sweep = getattr(options, "sweep", None)
        made = sweep is not None and sweep.parent.name == NEXT  # by `scalejax advise`
        assert sweep is None or made or str(sweep) in files or (ROOT / sweep).is_file(), words
    parsers = subparsers(parser_of(TOUR))
    for inline in re.findall(r"`(scalejax [a-z]+[^`]*)`", prose(page)):  # of which some leave out what is needed
        _, command, *words = shlex.split(inline)
        options = {option for action in parsers[command]._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("-")} <= options, inline
    for named in re.findall(r"`((?:scalejax|sweeps|tests|notebooks|docs)/[\w./]*)`", prose(page)):
        assert (ROOT / named).exists(), named


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them of plain words."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        assert "://" not in target, "the documentation needs no network"
        path, _, anchor = target.partition("#")
        if path == "commands.md":
            assert anchor in {"", *subparsers(parser_of(TOUR))}
            continue
        found = page.parent / path if path else page
        assert path in MADE or found.is_file(), target
        assert not anchor or anchor in anchors(found), target


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished quickstart, shrunk."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "quickstart.toml").write_text(smaller((ROOT / "sweeps/quickstart.toml").read_text()))
    assert main(["run", str(folder / "quickstart.toml"), "--out", str(folder / "run"), "--set", "seeds=1"]) == 0
    return folder / "run"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the sweeps and every file that a page shows."""
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sweeps").mkdir()
    for sweep in (ROOT / "sweeps").glob("*.toml"):
        (tmp_path / "sweeps" / sweep.name).write_text(smaller(sweep.read_text()))
    for page in PAGES:
        for block in blocks(page):
            if block.title:
                (tmp_path / block.title).write_text(smaller(block.text))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("page", "block"),
    [(page, block) for page in PAGES for block in blocks(page) if block.language == "toml"],
    ids=lambda value: name_of(value) if isinstance(value, Path) else "",
)
def test_sweeps_and_parts_of_sweeps_are_read(page: Path, block: Block, desk: Path):
    read = tomllib.loads(block.text)
    # A table that has nothing but tables in it, such as [train.halving], is no table of its own.
    given = {
        key for key, value in read.items() if not isinstance(value, dict) or not all(map(is_table, value.values()))
    }
    lacking = [text for table, text in AROUND.items() if table not in given]
    whole = block.text if "name" in read else "\n".join([*lacking, block.text])
    (desk / "read.toml").write_text(whole)
    assert sx.load_sweep("read.toml").models, name_of(page)


def shown_python(page: Path, names: dict[str, object], block: Block) -> None:
    exec(compile(smaller(block.text), name_of(page), "exec"), names)


def test_the_python_of_the_readme_runs(desk: Path, capsys: pytest.CaptureFixture[str]):
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks(ROOT / "README.md"):
        if block.language == "python":
            shown_python(ROOT / "README.md", names, block)
    shown = capsys.readouterr().out
    assert "Gated width 64" in shown
    assert "20000" in shown
    assert (desk / "runs/example/figures/learning_curves.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(typed(page))], ids=name_of)
def test_every_block_of_a_page_runs(page: Path, desk: Path, quickstart: Path):
    for block in blocks(page):
        if block.title:  # the page's own file, should another page have one of its name
            (desk / block.title).write_text(smaller(block.text))
    shutil.copytree(quickstart, desk / "runs/quickstart")
    runpy.run_path("make_houses.py")
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not block.title:
            shown_python(page, names, block)
        for line in block.text.splitlines() if block.language == "sh" else ():
            for words in commands(line):
                if words[0] == "python" and (desk / words[1]).is_file():
                    runpy.run_path(words[1])
                elif words[0] == "scalejax" and not NOT_HERE & set(words):
                    asked = arguments(words)
                    assert main([*asked, *(SET if asked[0] in ("plan", "run") else ())]) == 0, line


def test_halving_saves_in_the_words_of_its_page_what_is_set_on_the_command_line():
    page = ROOT / "docs/resume.md"
    (block,) = (block for block in blocks(page) if block.text.startswith("[train.halving]"))
    override = prose(page).split('--set "train.halving=')[1].split('"')[0]
    (_, value) = parse_override(f"train.halving={override}")
    quickstart = sx.load_sweep(ROOT / "sweeps/quickstart.toml", {"train.halving": value})
    table = tomllib.loads(block.text)["train"]["halving"]
    assert quickstart.train.halving == sx.HalvingSpec(tuple(table["rungs"]), table["reduction"])


def test_the_reference_has_every_public_name():
    page = (ROOT / "docs/python.md").read_text()
    assert sorted(re.findall(r"^::: scalejax\.(\w+)$", page, re.MULTILINE)) == sorted(sx.__all__)


def test_the_reference_has_every_object_that_shows_itself():
    page = (ROOT / "docs/python.md").read_text()
    classes = (found for file in (ROOT / "scalejax").rglob("*.py") for found in SHOWN.findall(file.read_text()))
    assert set(classes) <= set(re.findall(r"^::: scalejax\.(?:\w+\.)*(\w+)$", page, re.MULTILINE))


def made_pages() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.made_pages()


def test_pages_are_made_of_what_stands_elsewhere():
    made = made_pages()
    assert set(made) == set(MADE)
    for name, parser in subparsers(parser_of(TOUR)).items():
        part = made["commands.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert all(f"`{action.option_strings[-1]}" in part for action in parser._actions[1:] if action.option_strings)
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} | set(MADE)
    listed = re.findall(r"^ +- .+: (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(pages)
    for text in made.values():
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            assert target in pages or target.startswith("figures/"), target


def test_the_citation_is_of_this_version():
    cited = (ROOT / "CITATION.cff").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for key, value in (("version", project["version"]), ("license", project["license"]), ("cff-version", "1.2.0")):
        assert f"\n{key}: {value}\n" in f"\n{cited}"


@pytest.mark.slow
def test_the_site_is_built_strictly_and_needs_no_network(tmp_path: Path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers"):
        pytest.importorskip(package, reason='pip install ".[docs]" brings it')
    build = (sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path))
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', text), page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet
    reference = (tmp_path / "python/index.html").read_text(encoding="utf-8")
    assert all(f'id="scalejax.{name}"' in reference for name in sx.__all__)
