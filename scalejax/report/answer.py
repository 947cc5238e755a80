"""The answer of a sweep in three sentences: what helps, what ten times of it would bring, and what that costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scalejax.analysis.forecast.advice import SAME
from scalejax.analysis.forecast.statement import Advice, Statement
from scalejax.analysis.forecast.verdict import BOTH, DATA, NEITHER, SIZE, UNSURE
from scalejax.status import Status
from scalejax.text import listing, quantity, short

Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is

NO_ANSWER = "No answer yet"
HEADLINES = {
    DATA: "More data",
    SIZE: "A bigger model",
    BOTH: "Both: more data and a bigger model",
    NEITHER: "Neither more data nor a bigger model",
    UNSURE: "These results cannot tell",
}
ASKED = {"10x data": "ten times the {data}", "10x parameters": "ten times the parameters", "10x both": "ten times both"}


@dataclass(frozen=True)
class Answer:
    """The answer of a sweep.

    Attributes:
        verdict: of the advice; None where there is none.
        headline: the verdict in a few words.
        sentences: three of them; where there is no advice, why not and what to do.
    """

    verdict: str | None
    headline: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Speed:
    """What a device did with the trials of a run.

    Attributes:
        rate: FLOPs of training in a second of a device, padding not counted; NaN where the rows do not say.
        device: what it is called.
    """

    rate: float
    device: str

    def words(self, flops: float) -> str:
        """Return how long so many FLOPs take, behind a comma; nothing where that is not known."""
        return f", about {span(flops / self.rate)}" if self.rate > 0 else ""


def answer_of(advice: Advice, speed: Speed) -> Answer:
    """Return the answer that some advice gives.

    Args:
        advice: as described.
        speed: of the device that trained the rows.
    """
    said = {statement.name: statement for statement in advice.statements}
    asked = {name: words.format(**advice.columns) for name, words in ASKED.items() if name in said}
    helps = said["answer"].sentence
    if "best model" in said:
        helps += f" {said['best model'].sentence}"
    if "what would tell" in said:
        helps += ' The trials under "What to run next" would tell most.'
    sentences = (helps, _brings(said, asked, advice), _costs(said, asked, advice, speed))
    headline = HEADLINES[advice.verdict]
    if "10x parameters" not in said and advice.verdict == NEITHER:
        headline = "More data would not help much"
    return Answer(advice.verdict, headline, sentences)


def without_answer(reason: str) -> Answer:
    """Return what is said where no advice can be given, and why."""
    remedy = "It takes trials that are done at four or more different sizes of the training set, or of it and the model"
    few = "different place" in reason or "no trial" in reason.lower()
    return Answer(None, NO_ANSWER, (f"{reason.rstrip('.')}.", *([f"{remedy}."] if few else [])))


def speed_of(rows: Table, *, params: float = math.nan) -> Speed:
    """Return what the device did with the trials of a model, or with all where it is not among the rows.

    Args:
        rows: the trial table.
        params: of the model.
    """
    ended = rows[(rows["status"] == Status.DONE) & (rows["flops"] > 0) & (rows["seconds"] > 0)]
    own = ended[ended["params"] == params]
    chosen = own if len(own) else ended
    if chosen.empty:
        return Speed(math.nan, "this device")
    devices = [str(name) for name in chosen["device"].dropna().unique() if name]
    rate = float(chosen["flops"].astype("float64").sum() / chosen["seconds"].sum())
    return Speed(rate, listing(devices) if devices else "this device")


def _brings(said: Mapping[str, Statement], asked: Mapping[str, str], advice: Advice) -> str:
    now, noun = said["now"], advice.columns["loss"]
    parts = []
    for name, words in asked.items():
        found = said[name]
        parts.append(f"{short(found.value)} ({short(found.low)} to {short(found.high)}) with {words}")
    level = f"the {100 * advice.level:.0f} % interval of one run"
    return f"From {noun} {short(now.value, 3)} now, a run would come to {listing(parts)}; in brackets {level}."


def _costs(said: Mapping[str, Statement], asked: Mapping[str, str], advice: Advice, speed: Speed) -> str:
    """Say what the runs would take to train, and whether there are the data for them."""
    now, data = float(said["now"].facts["flops"]), advice.columns["data"]
    rate = f" on this device ({speed.device}) at the speed of this sweep" if speed.rate > 0 else ""
    parts = [f"One training run takes {quantity(now, 'FLOP')} now{speed.words(now)}{rate}"]
    for name, words in asked.items():
        flops = float(said[name].facts["flops"])
        takes = f"{quantity(flops, 'FLOP')}{speed.words(flops)}"
        parts.append(f"with {words} " + ("no more, as the steps stay the same" if flops < SAME * now else takes))
    most = said["10x data"].facts.get("most_data")
    if most is not None:
        parts.append(f"the data set ends at {most:,.0f} {data}, so more than these have to be collected first")
    return f"{'; '.join(parts)}."


def span(seconds: float) -> str:
    """Return a time that is known roughly, such as "0.3 s", "4 min", "7 h" or "12 days"."""
    if seconds < 0.1:
        return "0.1 s or less"
    for unit, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * unit:
            rounded = float(f"{seconds / unit:.2g}")
            return f"{rounded:,.0f} {name}" if rounded >= 10 else f"{rounded:g} {name}"
    return f"{float(f'{seconds:.2g}'):g} s"
