"""Pages of the site that are made of what stands elsewhere: the README, the parsers of the command line.

Mkdocs calls `on_files`; a fact is declared once, and the site shows it.
"""

import argparse
import html
import re
from pathlib import Path
from typing import Any

from scalejax.cli.main import TOUR
from scalejax.cli.options import EXAMPLES, parser_of, subparsers

ROOT = Path(__file__).parents[1]
PICTURE = "sweeps/quickstart.png"
PLACES = {PICTURE: "figures/quickstart.png", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to those of the folder."""
    from mkdocs.structure.files import File

    for name, text in made_pages().items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, PLACES[PICTURE], abs_src_path=str(ROOT / PICTURE)))
    return files


def made_pages() -> dict[str, str]:
    """Return the text of each page by its name."""
    readme, changes, contributing = (
        (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in ("README", "CHANGELOG", "CONTRIBUTING")
    )
    home, _, rest = readme.partition("## Where things are")
    words = rest.split("## Words")[1].partition("\n## ")[0]
    return {
        "index.md": linked(home),
        "words.md": linked(f"# Words\n{words}"),
        "changelog.md": linked(changes),
        "contributing.md": linked(contributing),
        "commands.md": commands(),
    }


def linked(text: str) -> str:
    """Return a page of the top folder with its links as they are on the site; a file that is not there is named."""

    def link(found: re.Match[str]) -> str:
        shown, target = found.groups()
        if "://" in target or target.startswith("#"):
            return found.group()
        if target in PLACES or target.startswith("docs/"):
            return f"[{shown}]({PLACES.get(target, target.removeprefix('docs/'))})"
        return shown if target in shown else f"{shown} (`{target.partition('#')[0]}`)"

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", link, text)


def commands() -> str:
    """Return the page of the command line, from its parsers."""
    parser = parser_of(TOUR)
    lines = ["# The command line", "", f"{parser.description}", ""]
    lines += ["| command | what it does |", "|---|---|"]
    parsers = subparsers(parser)
    for group in TOUR.values():
        for function in group:
            name = function.__name__
            lines.append(f"| [`scalejax {name}`](#{name}) | {_paragraphs(parsers[name])[0]} |")
    lines += ["", "Exit codes are those of [Interrupt, resume, extend](resume.md#exit-codes)."]
    for name, command in parsers.items():
        lines += ["", f"## {name}", "", *(f"{part}\n" for part in _paragraphs(command))]
        lines += ["```sh", EXAMPLES[name], "```", "", "| argument | meaning |", "|---|---|"]
        lines += [_argument(action) for action in command._actions if action.dest != "help"]
    return "\n".join([*lines, ""])


def _paragraphs(command: argparse.ArgumentParser) -> list[str]:
    return [" ".join(part.split()) for part in str(command.description).split("\n\n")]


def _argument(action: argparse.Action) -> str:
    """Return a row of the table: how the argument is typed, and its help with the default in it."""
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    value += " ..." if action.nargs == "+" else ""
    typed = f"{action.option_strings[-1]}{value}" if action.option_strings else value.strip()
    said = (action.help or "") % {"default": action.default}
    cells = f"`{typed}`", html.escape(said, quote=False)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
