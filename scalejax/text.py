"""Words for numbers, wherever a sentence counts something."""


def number_of(number: int, noun: str) -> str:
    """Return a number of things in words, for example "1 lane", "2 lanes" or "12,000 trials".

    Args:
        number: how many.
        noun: what one of them is called; several of them are called the same with an s.
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
