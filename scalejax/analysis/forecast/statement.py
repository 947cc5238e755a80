"""What advice consists of: statements, and all of them together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scalejax.text import Shown

Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is


@dataclass(frozen=True)
class Statement:
    """One thing that is said about the sweep.

    Attributes:
        name: what it is about, such as "10x data".
        sentence: in words.
        value: the number, NaN where there is none. Of "now" the mean loss; of "2x data" to "10x both" the median loss
            of one new run there; of "data beats size" a probability; of "flattened: ..." the share of the loss that ten
            times the data would take away; of "... overtakes ..." the amount of data from which on; of "target by ..."
            tokens, examples, parameters or FLOPs; of "compute-optimal" the median loss of one new run; of "back-test:
            ..." the median miss of the log loss; of "left out" a number of rows; of "shorter training" the steps on
            the most data over those where they last grew with it; of "learning rates" a share of curves; of "next
            trials" the share of the variance of the forecasts that they take away.
        low: lower end of the interval of the value with the advice's level. NaN where there is none: what was counted
            or measured, a probability, a share, and what is not reached.
        high: upper end.
        facts: further numbers by name, such as the "lowest" and "highest" seed of "now", the amount of data at which a
            measured overtaking is "not_yet" clear, and the "interval_90" of a flattened curve, always of 90 %.
    """

    name: str
    sentence: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Advice(Shown):
    """What a sweep says about data and size that were not trained; it shows itself as `scalejax advise` prints it.

    Attributes:
        verdict: "more data", "a bigger model", "both", "neither" or "cannot tell": which of ten times the data and
            ten times the parameters help.
        statements: all that is said, the answer first.
        trials: the next trials that would narrow the answer most: params, data, flops, and the share of the variance of
            the forecasts that each takes away, one after the other.
        bands: forecasts for the picture: model, params, data, value, low, high.
        level: probability of the intervals.
        columns: what the data and the loss are called.
    """

    verdict: str
    statements: tuple[Statement, ...]
    trials: Table
    bands: Table
    level: float
    columns: Mapping[str, str]

    def __getitem__(self, name: str) -> Statement:
        """Return the statement of a name.

        Raises:
            KeyError: there is none.
        """
        for statement in self.statements:
            if statement.name == name:
                return statement
        raise KeyError(f"{name!r}: the statements are {', '.join(s.name for s in self.statements)}")

    def __str__(self) -> str:
        return "\n".join(statement.sentence for statement in self.statements)

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain data, as `scalejax advise --json` prints it."""
        return {
            "verdict": self.verdict,
            "level": self.level,
            "columns": dict(self.columns),
            "statements": [
                {"name": s.name, "sentence": s.sentence, "value": _plain(s.value), "low": _plain(s.low),
                 "high": _plain(s.high), **s.facts}
                for s in self.statements
            ],
            "trials": [{key: _plain(value) for key, value in row.items()} for row in self.trials.to_dict("records")],
            "bands": [{key: _plain(value) for key, value in row.items()} for row in self.bands.to_dict("records")],
        }  # fmt: skip


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
