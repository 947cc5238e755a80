"""Tables and sentences as text."""

from rich.console import Console
from rich.table import Table

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
