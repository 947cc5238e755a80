"""Words for numbers and errors, and what shows itself."""

import pytest

from scalejax.text import Shown, first_line, number_of


@pytest.mark.parametrize(("number", "words"), [(0, "0 lanes"), (1, "1 lane"), (2, "2 lanes"), (12_000, "12,000 lanes")])
def test_one_thing_is_counted_without_an_s(number: int, words: str):
    assert number_of(number, "lane") == words


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("what\nand why"), "what"),
        (ValueError(""), "ValueError"),
        (RuntimeError('Traceback (most recent call last):\n  File "a.py"\nValueError: what'), "ValueError: what"),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str):
    assert first_line(error) == line


class Named(Shown):
    def __str__(self) -> str:
        return "a < b"


def test_what_shows_itself_is_text_in_a_terminal_and_in_a_notebook():
    assert repr(Named()) == "a < b"
    assert Named()._repr_html_() == "<pre>a &lt; b</pre>"
