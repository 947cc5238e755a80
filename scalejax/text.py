"""Words for numbers, names and errors, and how an object shows itself by its text."""

import abc
import html
from collections.abc import Sequence
from typing import final


class Shown(abc.ABC):
    """An object that shows itself by its text: in a terminal, and in a notebook in letters of one width."""

    @abc.abstractmethod
    def __str__(self) -> str: ...

    @final
    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_text(str(self))


def html_text(text: str) -> str:
    """Return lines of text as HTML, in letters of one width."""
    return f"<pre>{html.escape(text)}</pre>"


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> str:
    """Return a table as HTML, plain enough for every notebook.

    Args:
        headings: of the columns.
        rows: their cells, each row as long as the headings; the first of a row names it.
        title: above the table.
    """
    name, *others = (html.escape(heading) for heading in headings)
    right = ' style="text-align: right"'
    lines = ["<table>", f'<caption style="text-align: left">{html.escape(title)}</caption>' if title else ""]
    lines += [f'<thead><tr><th style="text-align: left">{name}</th>', *(f"<th{right}>{each}</th>" for each in others)]
    lines.append("</tr></thead><tbody>")
    for row in rows:
        name, *others = (html.escape(cell) for cell in row)
        lines.append(f'<tr><th style="text-align: left">{name}</th>')
        lines += [f"<td{right}>{each}</td>" for each in others]
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


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


def listing(words: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def column_title(column: str) -> str:
    """Return the name of a column as a heading: "Test error" for test_error, "Test RMSE" for test_RMSE."""
    words = column.replace("_", " ")
    return words[:1].upper() + words[1:]


def exact(number: float) -> str:
    """Return a number so that it can be read back: in six digits where these suffice, else in as many as it takes."""
    brief = f"{number:g}"
    return brief if not isinstance(number, int) and float(brief) == number else repr(number)


def short(number: float, digits: int = 2) -> str:
    """Return a number to that many digits, trailing zeros included: 0.10, 12, 1.5e-05."""
    return f"{number:#.{digits}g}".rstrip(".")


def short_count(number: float) -> str:
    """Return 20, 200, 2k, 20k, 1M, 3B, 15T."""
    rounded = float(f"{number:.3g}")  # first, so that 999,999 is 1M and not 1e+03k
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= unit:
            return f"{rounded / unit:.3g}{name}"
    return f"{rounded:.3g}"


def quantity(number: float, unit: str) -> str:
    """Return a number with a decimal prefix, for example "3.2 GFLOP"."""
    rounded = float(f"{number:.3g}")  # first, so that 999,999 is 1 M and not 1e+03 k
    for power, prefix in ((21, "Z"), (18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if rounded >= 10**power:
            return f"{rounded / 10**power:.3g} {prefix}{unit}"
    return f"{rounded:.3g} {unit}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in [0, 1] in hundredths, for example "68 %"."""
    return f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Return seconds in words, for example "45 s", "12 min 5 s" or "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
