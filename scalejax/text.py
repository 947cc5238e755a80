"""Words for numbers and errors, and how an object shows itself by its text."""

import abc
import html
from typing import final


class Shown(abc.ABC):
    """An object that shows itself by its text: in a terminal, and in a notebook in letters of one width."""

    @abc.abstractmethod
    def __str__(self) -> str: ...

    @final
    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def number_of(number: int, noun: str) -> str:
    """Return a number of things in words, for example "1 lane", "2 lanes" or "12,000 trials".

    Args:
        number: how many.
        noun: what one of them is called; several of them are called the same with an s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return what an error says in one line: the first, or the last where a whole traceback was wrapped into it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "Traceback" in lines[0] else lines[0]
