"""Words for numbers and errors, and what shows itself."""

import pytest

from scalejax.text import (
    Shown,
    column_title,
    duration,
    exact,
    first_line,
    listing,
    number_of,
    quantity,
    short,
    short_count,
)


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


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.9, "0.9"), (1e-8, "1e-08"), (1.0, "1"), (1e6, "1e+06"), (2_000_000, "2000000"), (0.1234567, "0.1234567")],
)
def test_a_number_is_written_so_that_it_can_be_read_back(number: float, text: str):
    assert exact(number) == text
    assert type(number)(text) == number


class Named(Shown):
    def __str__(self) -> str:
        return "a < b"


def test_what_shows_itself_is_text_in_a_terminal_and_in_a_notebook():
    assert repr(Named()) == "a < b"
    assert Named()._repr_html_() == "<pre>a &lt; b</pre>"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (1.26, "1.3 s"),
        (9.94, "9.9 s"),
        (45.4, "45 s"),
        (59.6, "1 min 0 s"),
        (725, "12 min 5 s"),
        (3599.7, "1 h 0 min"),
        (12_000, "3 h 20 min"),
        (360_000, "100 h 0 min"),
    ],
)
def test_duration(seconds: float, words: str):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (3_210_000, "3.21 MB"),
        (999_400, "999 kB"),
        (999_999, "1 MB"),
        (2**40, "1.1 TB"),
        (5.76e23, "576 ZB"),
    ],
)
def test_quantity(number: float, words: str):
    assert quantity(number, "B") == words


def test_short_numbers_keep_their_digits_and_counts_their_units():
    assert [short(number) for number in (0.1, 12, 1.5e-5)] == ["0.10", "12", "1.5e-05"]
    numbers = (20, 200, 1500, 20_000, 999_999, 1e6, 3e9, 1.5e13)
    assert " ".join(map(short_count, numbers)) == "20 200 1.5k 20k 1M 1M 3B 15T"


def test_words_are_listed_and_columns_get_titles():
    assert [listing("abc"[:count]) for count in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert [column_title(name) for name in ("test_error", "test_RMSE")] == ["Test error", "Test RMSE"]
