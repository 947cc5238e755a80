"""Tables and sentences as text, and as HTML in a notebook."""

from itertools import groupby

from rich.console import Console
from rich.table import Table

from scalejax.text import html_table, html_text

PLAIN_WIDTH = 120  # characters of a table where there is no terminal


def rendered(*parts: Table | str, terminal: bool = False) -> str:
    """Return tables and sentences as text.

    Args:
        parts: one after the other.
        terminal: whether it goes to one: then all is wrapped at its width, and styled. A file, a pipe or a notebook
            has no width: tables are whole there, and a sentence stays on its line.
    """
    console = Console(width=None if terminal else PLAIN_WIDTH, force_terminal=terminal, force_jupyter=False)
    with console.capture() as captured:
        for part in parts:
            console.print(part, markup=False, highlight=False, soft_wrap=not terminal)
    return captured.get().removesuffix("\n")


def as_html(*parts: Table | str) -> str:
    """Return tables and sentences as HTML for a notebook."""
    shown = []
    for kind, together in groupby(parts, key=type):
        if kind is str:
            shown.append(html_text("\n".join(map(str, together))))
            continue
        for table in together:
            assert isinstance(table, Table)
            cells = ([str(cell) for cell in column.cells] for column in table.columns)
            headings = [str(column.header) for column in table.columns]
            shown.append(html_table(headings, list(zip(*cells, strict=True)), title=str(table.title or "")))
            shown += [html_text(str(table.caption))] if table.caption else []
    return "".join(shown)
