"""More data, or a bigger model, and what will it buy: what the rows of a sweep say about what was not trained.

Everything is read from one posterior of the loss over size and data (`extrapolate.py`): draws of it, taken together at
all points that a question compares, answer what a fall, a target, a budget or a next trial comes to.
"""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalejax.analysis.forecast.anchor import CHANCE, Anchor, anchor_of, bands_of, curve_draws
from scalejax.analysis.forecast.back_test import back_test
from scalejax.analysis.forecast.budget import FARTHEST, allocation, target_statements
from scalejax.analysis.forecast.crossings import flattened, overtaking
from scalejax.analysis.forecast.extrapolate import LEAST_POINTS
from scalejax.analysis.forecast.next_trials import next_trials, trials_named
from scalejax.analysis.forecast.observed import Observed, Table
from scalejax.analysis.forecast.statement import Advice, Statement
from scalejax.analysis.forecast.threads import on_one_thread
from scalejax.analysis.forecast.verdict import BOTH, DATA, NEITHER, SIZE, UNSURE, falls_of, verdict_of
from scalejax.text import number_of, short

Floats = npt.NDArray[np.float64]

Part = Literal["forecasts", "curves", "budgets", "back-test"]
PARTS: tuple[Part, ...] = get_args(Part)
SAME = 1.05  # times the FLOPs, below which a run is said to take no more of them
SHORTER = 2.5  # times more than the steps of training the data must grow: steps rounded up grow up to twice too little
FACTORS = (2.0, 10.0)  # of data and of parameters that are always asked about


@on_one_thread
def advise_rows(
    observed: Observed,
    *,
    target: float | None,
    compute: float,
    level: float,
    seed: int,
    parts: Collection[Part] = PARTS,
) -> Advice:
    """Say what more data and a bigger model would bring, and which trials would tell more.

    Args:
        observed: the rows.
        target: a loss that is asked for.
        compute: a budget, in times the FLOPs of the run with the most compute.
        level: probability of the intervals.
        seed: of the draws.
        parts: what is said beside the answer and the next trials: "forecasts" of two and ten times as much, the ends,
            crossings and bands of "curves", "budgets", and the "back-test", which takes as long as all the rest.

    Raises:
        ValueError: too few rows, a target that is not positive, a budget that is not above zero.
    """
    if target is not None and not target > 0:
        raise ValueError(f"target is {target:g}: give a loss above zero.")
    if not 0 < compute <= FARTHEST:
        most = f"give how many times that of the run with the most, such as 10, and at most {FARTHEST:,.0f}"
        raise ValueError(f"compute is {compute:g}: {most}.")
    anchor = anchor_of(observed.own, level=level, seed=seed)
    falls = falls_of(anchor)
    verdict = verdict_of(falls, sizes=anchor.sizes)
    trials = next_trials(anchor, observed)
    statements = [
        _answer(verdict, falls, anchor, observed),
        *_better_elsewhere(anchor, observed),
        *_what_would_tell(verdict, trials),
        _now(anchor, observed),
        *_left_out(anchor, observed),
        *_shorter_training(anchor, observed),
        *_at_edges(observed),
    ]
    if "forecasts" in parts:
        statements += [*_scaled(anchor, observed), *_odds(falls, anchor, observed)]
    if "curves" in parts:
        statements += [*flattened(observed), *overtaking(observed, anchor)]
    if "budgets" in parts:
        statements += target_statements(target, anchor, observed) if target is not None else []
        statements += allocation(compute, anchor, observed)
    if "back-test" in parts:
        statements += back_test(observed, level=level, seed=seed)
    statements += trials_named(trials, observed)
    bands = bands_of(observed, anchor) if "curves" in parts else pd.DataFrame()
    columns = {"data": observed.data, "loss": observed.noun}
    return Advice(verdict, tuple(statements), trials, bands, level, columns)


def _answer(verdict: str, falls: Mapping[str, Floats], anchor: Anchor, observed: Observed) -> Statement:
    def cut(name: str, verb: str = "") -> str:
        middle, low, high = anchor.interval(100 * falls[name])
        interval = f"{100 * anchor.level:.0f} % interval {low:z.0f} to {high:z.0f} %"
        what = observed.data if name == DATA else "parameters"
        return f"ten times the {what} {verb}by {middle:z.0f} % ({interval})"

    would = f"would cut the {observed.noun} "
    data = cut(DATA, would)
    if not anchor.sizes:
        unknown = "one size was measured, so nothing is known about a bigger model"
        words = {
            DATA: f"More data: {data}; {unknown}.",
            NEITHER: f"More data does not help much: {data}; {unknown}.",
            UNSURE: f"These results cannot tell whether more data helps: {data}; one size was measured.",
        }
    else:
        size = cut(SIZE)
        words = {
            DATA: f"More data: {data}; {size}.",
            SIZE: f"A bigger model: {cut(SIZE, would)}; {data}.",
            BOTH: f"Both help: {data}, {size}.",
            NEITHER: f"Neither more data nor a bigger model helps much: {data}, {size}.",
            UNSURE: f"These results cannot tell whether data or size helps: {data}, {size}.",
        }
    return Statement("answer", words[verdict], facts={"verdict": verdict})


def _what_would_tell(verdict: str, trials: Table) -> list[Statement]:
    if verdict != UNSURE or trials.empty:
        return []
    return [Statement("what would tell", "The trials named last would tell most.")]


def _better_elsewhere(anchor: Anchor, observed: Observed) -> list[Statement]:
    """Name the model of another family that is best on the most data, and what more data would bring it."""
    rows = observed.rows
    means = rows[rows["data"] == rows["data"].max()].groupby(["family", "model"])["loss"].mean()
    family, model = means.idxmin()
    if family == observed.family or not means.min() < means.get(observed.family, means).min():
        return []
    curve, most = rows[rows["model"] == model], float(rows["data"].max())
    sentence = f"The lowest {observed.noun} on {most:,.0f} {observed.data} is that of {model}, {short(means.min(), 3)}"
    if curve["data"].nunique() < LEAST_POINTS or not means.min() > 0:
        return [Statement("best model", f"{sentence}.", float(means.min()), facts={"model": model})]
    draws = curve_draws(curve, most * np.array([1.0, 10.0]), seed=anchor.seed)[0]
    middle, low, high = anchor.interval(1 - draws[:, 1] / np.maximum(draws[:, 0], 1e-300)).tolist()
    interval = f"{100 * anchor.level:.0f} % interval {100 * low:z.0f} to {100 * high:z.0f} %"
    sentence += f"; ten times the {observed.data} would cut it by {100 * middle:z.0f} % ({interval})."
    facts = {"model": model, "fall": [low, middle, high]}
    return [Statement("best model", sentence, float(means.min()), facts=facts)]


def _now(anchor: Anchor, observed: Observed) -> Statement:
    here = observed.own.query("params == @anchor.params and data == @anchor.data")["loss"]
    mean, low, high = float(here.mean()), float(here.min()), float(here.max())
    runs = f"mean of {number_of(len(here), 'run')}" if len(here) > 1 else "one run"
    sentence = (
        f"Now: the run with the most compute, {anchor.params:,.0f} parameters on {anchor.data:,.0f} {observed.data}, "
        f"has {observed.noun} {short(mean, 3)} ({runs})."
    )
    facts = {"params": anchor.params, "data": anchor.data, "flops": anchor.flops, "lowest": low, "highest": high}
    return Statement("now", sentence, mean, facts=facts)


def _left_out(anchor: Anchor, observed: Observed) -> list[Statement]:
    """Say how many rows are not used because nothing falls there yet."""
    if not anchor.left_out:
        return []
    rows = f"{number_of(anchor.left_out, 'row')} within {100 * (1 - CHANCE):.0f} % of the highest {observed.noun}"
    sentence = f"Left out: {rows}; one law fits the others much better."
    return [Statement("left out", sentence, float(anchor.left_out))]


def _shorter_training(anchor: Anchor, observed: Observed) -> list[Statement]:
    """Say where the steps of the model with the most compute stop growing with the data, as at a limit of steps."""
    own = observed.own
    steps = own[own["params"] == anchor.params].groupby("data")["steps"].mean()
    if len(steps) < 3 or not (np.isfinite(steps) & (steps > 0)).all():
        return []
    logs = np.log([steps.index.to_numpy(float), steps.to_numpy(float)])
    grew = np.flatnonzero(np.diff(logs[1]) > np.diff(logs[0]) / 2)
    if not len(grew):
        return []  # fixed steps: no data have had more
    since = grew[-1] + 1
    data, times = np.exp(logs[:, -1] - logs[:, since])
    if data < SHORTER * times:
        return []
    before, last = steps.index[[since, -1]]
    more = f"{short(times)} times the steps" if times >= SAME else "no more steps"
    sentence = (
        f"Training: the model with the most compute was trained for more steps on more {observed.data} up to "
        f"{before:,.0f}, and for {more} on {last:,.0f}: its curve may flatten for want of training, not of "
        f"{observed.data}. The costs given are of steps that grow on."
    )
    return [Statement("shorter training", sentence, float(times), facts={"before": float(before), "at": float(last)})]


def _at_edges(observed: Observed) -> list[Statement]:
    """Say where the models in question are not tuned on their most data: the best learning rate ends its grid."""
    curves = observed.curves
    own = curves[curves["model"].isin(observed.own["model"]) & np.isfinite(curves["value"])]
    last = own.sort_values("train_examples").groupby("model", sort=False).tail(1)
    edges = last["edge"].astype(str).str.len() > 0
    if not edges.any():
        return []
    where = f"at {int(edges.sum())} of {number_of(len(last), 'end')} of the curves of {observed.family}"
    sentence = f"Learning rates: {where} the best is the lowest or highest tried: a wider grid may change the answer."
    return [Statement("learning rates", sentence, float(edges.mean()))]


def _scaled(anchor: Anchor, observed: Observed) -> list[Statement]:
    """Say what two and ten times the data, the parameters, and both would bring."""
    asked = [(f"{factor:g}x data", 1.0, factor) for factor in FACTORS]
    if anchor.sizes:
        asked += [(f"{factor:g}x parameters", factor, 1.0) for factor in FACTORS]
        asked += [(f"{factor:g}x both", factor, factor) for factor in FACTORS]
    found = anchor.forecast([params for _, params, _ in asked], [data for _, _, data in asked])
    statements = []
    for (name, params, data), (value, low, high) in zip(asked, found.T.tolist(), strict=True):
        interval = f"{100 * anchor.level:.0f} % interval of one run {short(low)} to {short(high)}"
        there = data * anchor.data <= observed.most_data
        beyond = "" if there else f"; the data set has {observed.most_data:,.0f}"
        sentence = f"{name}: {observed.noun} {short(value)} ({interval}){beyond}."
        facts = {"params": params, "data": data, "flops": float(anchor.cost(params, data))}
        if not there:
            facts["most_data"] = observed.most_data
        statements.append(Statement(name, sentence, value, low, high, facts))
    return statements


def _odds(falls: Mapping[str, Floats], anchor: Anchor, observed: Observed) -> list[Statement]:
    if not anchor.sizes:
        return []
    data, size = falls[DATA], falls[SIZE]
    chance = float((data > size).mean() + (data == size).mean() / 2)  # neither, where both reach zero
    sentence = f"Ten times the {observed.data} helps more than ten times the parameters with probability {chance:.2f}."
    return [Statement("data beats size", sentence, chance)]
