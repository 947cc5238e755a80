"""Words for numbers."""

import pytest

from scalejax.text import number_of


@pytest.mark.parametrize(("number", "words"), [(0, "0 lanes"), (1, "1 lane"), (2, "2 lanes"), (12_000, "12,000 lanes")])
def test_one_thing_is_counted_without_an_s(number: int, words: str):
    assert number_of(number, "lane") == words
