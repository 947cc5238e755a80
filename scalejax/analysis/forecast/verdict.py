"""The verdict: which of ten times the data and ten times the parameters help."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.anchor import WORTH, Anchor

Floats = npt.NDArray[np.float64]

DATA, SIZE, BOTH, NEITHER, UNSURE = "more data", "a bigger model", "both", "neither", "cannot tell"
# Before any row a fall of more than WORTH has probability 0.56, of tenfold data and of tenfold parameters alike; both
# together have 0.21. That one helps asks for odds 7 times as large as these, that both do for odds 15 times as large,
# and that one does not for odds 3 times as large as theirs.
SURE = 0.9  # probability that it asks for that something helps
BOTH_SURE = 0.8  # probability that it asks for that data and size both help
WINS = 0.8  # probability that it asks for that one helps more than the other
LIKELY = 0.7  # probability that it asks for that something does not help
MUCH_MORE = 2.0  # where both help, one of them wins if its fall is so many times as large


def falls_of(anchor: Anchor) -> dict[str, Floats]:
    """Draw the shares of the loss that ten times the data, the parameters, and both take away, (DRAWS,) each."""
    times = 10.0
    draws = (
        anchor.draws([1, 1, times, times], [1, times, 1, times]) if anchor.sizes else anchor.draws([1, 1], [1, times])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.nan_to_num(1 - draws / draws[:, :1])
    names = (DATA, SIZE, BOTH) if anchor.sizes else (DATA,)
    return {name: shares[:, place + 1] for place, name in enumerate(names)}


def verdict_of(falls: Mapping[str, Floats], *, sizes: bool) -> str:
    """Return which of ten times the data and ten times the parameters help."""

    def holds(condition: npt.NDArray[np.bool_], level: float) -> bool:
        return float(condition.mean()) >= level

    data = falls[DATA]
    if not sizes:
        return DATA if holds(data > WORTH, SURE) else NEITHER if holds(data < WORTH, LIKELY) else UNSURE
    size = falls[SIZE]
    if holds((data > WORTH) & (size > WORTH), BOTH_SURE):
        # Both help; one of them wins if it surely helps, and more probably than not much more.
        if holds(data > WORTH, SURE) and holds(data > MUCH_MORE * size, 0.5):
            return DATA
        return SIZE if holds(size > WORTH, SURE) and holds(size > MUCH_MORE * data, 0.5) else BOTH
    if holds(data > WORTH, SURE) and holds(data > size, WINS):
        return DATA
    if holds(size > WORTH, SURE) and holds(size > data, WINS):
        return SIZE
    return NEITHER if holds(data < WORTH, LIKELY) and holds(size < WORTH, LIKELY) else UNSURE
