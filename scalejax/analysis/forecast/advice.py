"""More data, or a bigger model, and what will it buy: what the rows of a sweep say about what was not trained.

Everything is read from one posterior of the loss over size and data (`extrapolate.py`): draws of it, taken together at
all points that a question compares, answer what a fall, a target, a budget or a next trial comes to.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalejax.analysis.forecast.extrapolate import LEAST_POINTS, extrapolate, measured, posterior
from scalejax.analysis.forecast.posterior import Posterior
from scalejax.analysis.forecast.surfaces import robust_fit
from scalejax.analysis.forecast.threads import on_one_thread
from scalejax.text import Shown, number_of, short

Floats = npt.NDArray[np.float64]
Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is

DRAWS = 2000
SPARE = 8  # times as many are drawn, of which those that make sense are kept
LEAST_FALLING = 0.02  # share of them; fewer, and the rows say that the loss rises
FACTORS = (2.0, 10.0)  # of data and of parameters that are always asked about
WORTH = 0.05  # tenfold data or parameters that take away less than this share of the loss do not help
# Before any row the laws expect with probability 0.6 that more data help, and a bigger model alike: a verdict asks for
# odds 3.6 times as large, either way.
SURE = 0.85  # probability that it asks for that something helps
LIKELY = 0.7  # probability that it asks for that something does not, or that one helps more than the other
MUCH_MORE = 2.0  # where both help, one of them wins if its fall is so many times as large
CLEAR = 2.0  # standard errors by which a model is clearly better than another
CHANCE = 0.8  # rows above this share of the highest loss may be those of models that are still at chance
MUCH_BETTER = 1.5  # by so many times the law's misfit must shrink without them
LAW_PARAMETERS = 6  # of a law of size and data: two exponents, two shares, their interaction, the height
FARTHEST = 1e4  # times what was measured: no target is looked for beyond
GRID = 25  # points of the grids along which targets and budgets are looked for
CANDIDATES = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the largest model's parameters, and its data
TRIALS = 3  # that are suggested
OVERHEAD = 0.05  # of the largest trial's FLOPs: a trial costs that even where it trains nothing
DATA, SIZE, BOTH, NEITHER, UNSURE = "more data", "a bigger model", "both", "neither", "cannot tell"


@dataclass(frozen=True)
class Statement:
    """One thing that is said about the sweep.

    Attributes:
        name: what it is about, such as "10x data".
        sentence: in words.
        value: the number, NaN where there is none.
        low: lower end of its interval.
        high: upper end.
        facts: further numbers by name.
    """

    name: str
    sentence: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Observed:
    """What advice is made from.

    Attributes:
        rows: one row a run: model (its name), family, params (NaN: no fixed number), data, loss, flops, seed.
        data: what the data are counted in: "examples" or "tokens".
        noun: what the loss is called: "error", "RMSE", "loss".
        curves: a row a model and amount of data, as `learning_curves` returns.
        trends: one row a model, as `trends` returns; empty where there are no curves.
        most_data: the most that the data set has; infinite where more can be had.
        knobs: columns of size knobs, where the rows have them.
    """

    rows: Table
    data: str
    noun: str
    curves: Table
    trends: Table
    most_data: float = math.inf
    knobs: tuple[str, ...] = ()

    @property
    def knob(self) -> tuple[str | None, float]:
        """The size knob that makes its models larger, and the power of it with which their parameters grow."""
        for name in self.knobs:
            column = np.asarray(pd.to_numeric(self.own[name], errors="coerce"), float)
            if np.isfinite(column).all() and (column > 0).all() and np.ptp(column) > 0:
                power = float(np.polyfit(np.log(column), np.log(self.own["params"].to_numpy(float)), 1)[0])
                if power > 0.1:
                    return name, power
        return None, math.nan

    @property
    def family(self) -> str:
        """The family that the question is about: of those with parameters the one of the lowest mean loss anywhere."""
        sized = self.rows[self.rows["params"].notna()]
        if sized.empty:
            raise ValueError("No model has a number of parameters: advice about their size needs the column params.")
        return str(sized.groupby(["family", "params", "data"])["loss"].mean().idxmin()[0])

    @property
    def own(self) -> Table:
        """The rows of that family."""
        rows = self.rows
        return rows[(rows["family"] == self.family) & rows["params"].notna()]


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


@dataclass(frozen=True)
class Corner:
    """The largest model on the most data that it was trained on, and what is known around it.

    Attributes:
        params: its parameters.
        data: what it was trained on.
        flops: of its training.
        powers: FLOPs grow as params^a data^b, (2,).
        sizes: whether several sizes were measured, so that size is a predictor.
        largest: of the rows, the logarithms that positions are relative to, (predictors, 1).
        posterior: of the loss.
        offset: added to the losses, so that a zero has a logarithm.
        left_out: rows near the highest loss that are not used.
        level: probability of the intervals.
        seed: of the draws.
    """

    params: float
    data: float
    flops: float
    powers: tuple[float, float]
    sizes: bool
    largest: Floats
    posterior: Posterior
    offset: float
    left_out: int
    level: float
    seed: int

    def positions(self, params: npt.ArrayLike, data: npt.ArrayLike) -> Floats:
        """Return positions (predictors, points) of times as many parameters and times as much data, (points,)."""
        factors = np.broadcast_arrays(np.asarray(params, float), np.asarray(data, float))
        logs = np.log(np.stack([factors[0] * self.params, factors[1] * self.data]))
        return logs[-len(self.largest) :] - self.largest

    def draws(self, params: npt.ArrayLike, data: npt.ArrayLike) -> Floats:
        """Draw the mean loss of runs at some points together, (DRAWS, points); see `falling_draws`."""
        before, after = self.positions([1.0], [1.0]), self.positions(*self.tenfold)
        points = self.positions(params, data)
        return falling_draws(self.posterior, points, before=before, after=after, offset=self.offset, seed=self.seed)

    def curve(self, params: float, data: Floats) -> Floats:
        """Return median, low and high of one new run of a model on amounts of data beyond its last, the first of them.

        As for all draws, the loss at the corner does not rise; nor does that of this model, with ten and a hundred
        times its data.

        Args:
            params: in times the corner's.
            data: in times the corner's, (points,).
        """
        ones = np.ones(len(self.tenfold[0]))
        own = data[0] * np.array([1.0, 10.0, 100.0])
        before = self.positions([*ones, params, params], [*ones, own[0], own[0]])
        after = self.positions([*self.tenfold[0], params, params], [*self.tenfold[1], *own[1:]])
        points = self.positions(np.full(len(data), params), data)
        draws = falling_draws(self.posterior, points, before=before, after=after, offset=self.offset, seed=self.seed)
        return self.interval(one_run(draws, self.posterior, offset=self.offset, seed=self.seed))

    @property
    def tenfold(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Ten times the data; and, with several sizes, ten times the parameters, and both: factors of each."""
        return ((1.0, 10.0, 10.0), (10.0, 1.0, 10.0)) if self.sizes else ((1.0,), (10.0,))

    def forecast(self, params: npt.ArrayLike, data: npt.ArrayLike) -> Floats:
        """Return median, low and high of one new run at some points, (3, points)."""
        return self.interval(one_run(self.draws(params, data), self.posterior, offset=self.offset, seed=self.seed))

    def cost(self, params: npt.ArrayLike, data: npt.ArrayLike) -> Floats:
        """Return the FLOPs of training at some points."""
        a, b = self.powers
        return self.flops * np.asarray(params, float) ** a * np.asarray(data, float) ** b

    def interval(self, draws: Floats) -> Floats:
        """Return median, low and high of draws (DRAWS, ...)."""
        return np.quantile(draws, (0.5, (1 - self.level) / 2, (1 + self.level) / 2), axis=0)


def falling_draws(
    known: Posterior, points: Floats, *, before: Floats, after: Floats, offset: float, seed: int
) -> Floats:
    """Draw the mean loss of runs at points (predictors, points) together, (DRAWS, points).

    A larger tuned model and more data do not make the loss much worse: draws in which the loss at any place of `after`
    (predictors, n) is more than a little above that at its place of `before` (predictors, n or 1) are left out, unless
    the rows say that it is.
    """
    logs = known.sample(np.concatenate([before, after, points], axis=1), count=SPARE * DRAWS, seed=seed)
    first, last = before.shape[1], before.shape[1] + after.shape[1]
    falling = np.flatnonzero((logs[:, first:last] - logs[:, :first] <= WORTH).all(axis=1))
    chosen = falling if len(falling) >= LEAST_FALLING * len(logs) else np.arange(len(logs))
    return np.maximum(np.exp(logs[np.resize(chosen, DRAWS), last:]) - offset, 0.0)


def one_run(draws: Floats, known: Posterior, *, offset: float, seed: int) -> Floats:
    """Add the noise of one run to draws of the mean loss (DRAWS, points)."""
    noise = np.random.default_rng(seed).standard_normal(draws.shape) * noise_of(known)
    return np.maximum((draws + offset) * np.exp(noise) - offset, 0.0)


def noise_of(known: Posterior) -> float:
    """Return the standard deviation of the log loss of one run, in the mean over what the rows leave open."""
    return float(known.weights @ known.drift.noises[known.combination])


@on_one_thread
def advise_rows(
    observed: Observed, *, target: float | None, compute: float, level: float, seed: int, tested: bool = True
) -> Advice:
    """Say what more data and a bigger model would bring, and which trials would tell more.

    Args:
        observed: the rows.
        target: a loss that is asked for.
        compute: a budget, in times of that of the largest model on the most data.
        level: probability of the intervals.
        seed: of the draws.
        tested: whether to forecast what was measured as well, the back-test, which takes as long as all the rest.

    Raises:
        ValueError: too few rows, a target that is not positive, a budget that is not above zero.
    """
    if target is not None and not target > 0:
        raise ValueError(f"target is {target:g}: give a loss above zero.")
    if not (compute > 0 and math.isfinite(compute)):
        raise ValueError(f"compute is {compute:g}: give how many times the largest trial's, such as 10.")
    corner = corner_of(observed, level=level, seed=seed)
    falls = _falls(corner)
    verdict = _verdict(falls, sizes=corner.sizes)
    trials = next_trials(corner, observed)
    statements = [
        _answer(verdict, falls, corner, observed, trials),
        _now(corner, observed),
        *_left_out(corner, observed),
        *_scaled(corner, observed),
        *_odds(falls, corner, observed),
        *flattened(observed),
        *overtaking(observed, corner),
        *(_target(target, corner, observed) if target is not None else ()),
        *_allocation(compute, corner, observed),
        *(back_test(observed, level=level, seed=seed) if tested else ()),
        *_next(trials, observed),
    ]
    columns = {"data": observed.data, "loss": observed.noun}
    return Advice(verdict, tuple(statements), trials, bands_of(observed, corner), level, columns)


def corner_of(observed: Observed, *, level: float, seed: int) -> Corner:
    """Return what is known around the largest model on the most data."""
    whole = observed.own
    own = falling(whole)
    sizes = own["params"].nunique() > 1
    names = ("params", "data") if sizes else ("data",)
    predictors = {name: own[name].to_numpy(float) for name in names}
    rows = measured(predictors, own["loss"].to_numpy(float))
    # The largest by what its training takes; where all took the same, the one with most parameters.
    place = own.assign(scale=own["params"] * own["data"]).sort_values(["scale", "params"]).iloc[-1]
    return Corner(
        params=float(place["params"]),
        data=float(place["data"]),
        flops=float(place["flops"]),
        powers=_powers(own),
        sizes=sizes,
        largest=rows.largest,
        posterior=posterior(rows, seed=seed),
        offset=rows.offset,
        left_out=len(whole) - len(own),
        level=level,
        seed=seed,
    )


def falling(own: Table) -> Table:
    """Leave out the rows near the highest loss if one law then fits the others much better: at chance nothing falls.

    Args:
        own: the rows of a family: params, data, loss.
    """
    unique, place = np.unique(own[["params", "data"]].to_numpy(float), axis=0, return_inverse=True)
    place = place.ravel()
    means = np.bincount(place, own["loss"].to_numpy(float)) / np.bincount(place)
    below = means < CHANCE * means.max()
    enough = below.sum() >= max(below.size / 2, 2 * LAW_PARAMETERS)
    if below.all() or not enough or (means <= 0).any() or np.ptp(unique[below, 0]) == 0:
        return own
    positions, logs = np.log(unique / unique.max(axis=0)).T, np.log(means)
    everywhere, there = robust_fit(positions, logs)[1], robust_fit(positions[:, below], logs[below])[1]
    whole, part = ((misses**2).sum() / (misses.size - LAW_PARAMETERS) for misses in (everywhere, there))
    return own if whole < MUCH_BETTER**2 * part else own.loc[below[place]]


def _powers(own: Table) -> tuple[float, float]:
    """Return how the FLOPs of training grow with parameters and data: as power laws, by least squares."""
    columns = np.log(own[["params", "data", "flops"]].to_numpy(float))
    columns -= columns.mean(axis=0)
    # The least departure from 6 N D that the rows ask for: of what does not vary, or only with the other, they say
    # nothing.
    departure = columns[:, 2] - columns[:, 0] - columns[:, 1]
    a, b = 1 + np.linalg.lstsq(columns[:, :2], departure, rcond=1e-9)[0]
    return max(float(a), 0.0), max(float(b), 0.0)


def _falls(corner: Corner) -> dict[str, Floats]:
    """Draw the shares of the loss that ten times the data, the parameters, and both take away, (DRAWS,) each."""
    times = 10.0
    draws = (
        corner.draws([1, 1, times, times], [1, times, 1, times]) if corner.sizes else corner.draws([1, 1], [1, times])
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.nan_to_num(1 - draws / draws[:, :1])
    names = (DATA, SIZE, BOTH) if corner.sizes else (DATA,)
    return {name: shares[:, place + 1] for place, name in enumerate(names)}


def _verdict(falls: Mapping[str, Floats], *, sizes: bool) -> str:
    """Return which of ten times the data and ten times the parameters help."""

    def holds(condition: npt.NDArray[np.bool_], level: float) -> bool:
        return float(condition.mean()) >= level

    data = falls[DATA]
    if not sizes:
        return DATA if holds(data > WORTH, SURE) else NEITHER if holds(data < WORTH, LIKELY) else UNSURE
    size = falls[SIZE]
    if holds((data > WORTH) & (size > WORTH), SURE):
        # Both help; one of them wins if it more probably than not helps much more.
        return DATA if holds(data > MUCH_MORE * size, 0.5) else SIZE if holds(size > MUCH_MORE * data, 0.5) else BOTH
    if holds(data > WORTH, SURE) and holds(data > size, LIKELY):
        return DATA
    if holds(size > WORTH, SURE) and holds(size > data, LIKELY):
        return SIZE
    return NEITHER if holds(data < WORTH, LIKELY) and holds(size < WORTH, LIKELY) else UNSURE


def _answer(verdict: str, falls: Mapping[str, Floats], corner: Corner, observed: Observed, trials: Table) -> Statement:
    cuts = {name: corner.interval(100 * share) for name, share in falls.items()}

    def cut(name: str) -> str:
        middle, low, high = cuts[name]
        return f"{middle:z.0f} % ({100 * corner.level:.0f} % interval {low:z.0f} to {high:z.0f} %)"

    data = f"ten times the {observed.data} would cut the {observed.noun} by {cut(DATA)}"
    size = f"ten times the parameters by {cut(SIZE)}" if corner.sizes else "one size was measured"
    words = {
        DATA: f"More data: {data}; {size}.",
        SIZE: f"A bigger model: {size.replace(' by ', f' would cut the {observed.noun} by ', 1)}; {data}.",
        BOTH: f"Both help: {data}, {size}.",
        NEITHER: f"Neither more data nor a bigger model helps much: {data}, {size}.",
        UNSURE: f"These results cannot tell whether data or size helps: {data}, {size}.",
    }
    if not corner.sizes:
        words[NEITHER] = f"More data do not help much: {data}; {size}, so nothing is known about a bigger model."
        words[DATA] = f"More data: {data}; {size}, so nothing is known about a bigger model."
        words[UNSURE] = f"These results cannot tell whether more data help: {data}; {size}."
    sentence = words[verdict]
    if verdict == UNSURE and len(trials):
        sentence += " The trials named last would tell most."
    return Statement("answer", sentence, facts={"verdict": verdict})


def _now(corner: Corner, observed: Observed) -> Statement:
    here = observed.own.query("params == @corner.params and data == @corner.data")["loss"]
    mean, low, high = float(here.mean()), float(here.min()), float(here.max())
    runs = f"mean of {number_of(len(here), 'run')}" if len(here) > 1 else "one run"
    sentence = (
        f"Now: the largest model, {corner.params:,.0f} parameters, on {corner.data:,.0f} {observed.data} has "
        f"{observed.noun} {short(mean, 3)} ({runs})."
    )
    facts = {"params": corner.params, "data": corner.data, "flops": corner.flops}
    return Statement("now", sentence, mean, low, high, facts)


def _left_out(corner: Corner, observed: Observed) -> list[Statement]:
    """Say how many rows are not used because nothing falls there yet."""
    if not corner.left_out:
        return []
    sentence = (
        f"Left out: {number_of(corner.left_out, 'row')} within {100 * (1 - CHANCE):.0f} % of the highest "
        f"{observed.noun}; there it does not fall yet, and one law fits the others much better."
    )
    return [Statement("left out", sentence, float(corner.left_out))]


def _scaled(corner: Corner, observed: Observed) -> list[Statement]:
    """Say what two and ten times the data, the parameters, and both would bring."""
    asked = [(f"{factor:g}x data", 1.0, factor) for factor in FACTORS]
    if corner.sizes:
        asked += [(f"{factor:g}x parameters", factor, 1.0) for factor in FACTORS]
        asked += [(f"{factor:g}x both", factor, factor) for factor in FACTORS]
    found = corner.forecast([params for _, params, _ in asked], [data for _, _, data in asked])
    statements = []
    for (name, params, data), (value, low, high) in zip(asked, found.T.tolist(), strict=True):
        interval = f"{100 * corner.level:.0f} % interval of one run {short(low)} to {short(high)}"
        there = data * corner.data <= observed.most_data
        beyond = "" if there else f"; the data set has {observed.most_data:,.0f}"
        sentence = f"{name}: {observed.noun} {short(value)} ({interval}){beyond}."
        facts = {"params": params, "data": data, "flops": float(corner.cost(params, data))}
        if not there:
            facts["most_data"] = observed.most_data
        statements.append(Statement(name, sentence, value, low, high, facts))
    return statements


def _odds(falls: Mapping[str, Floats], corner: Corner, observed: Observed) -> list[Statement]:
    if not corner.sizes:
        return []
    chance = float((falls[DATA] > falls[SIZE]).mean())
    sentence = f"Ten times the {observed.data} beats ten times the parameters with probability {chance:.2f}."
    return [Statement("data beats size", sentence, chance)]


def flattened(observed: Observed) -> list[Statement]:
    """Say which learning curves have flattened, and from which size on."""
    statements = []
    for trend in observed.trends.to_dict("records"):
        if trend["verdict"] != "flattened":
            continue
        curve = observed.rows[observed.rows["model"] == trend["model"]].groupby("data")["loss"].mean()
        last = float(curve.iloc[-1])
        steep = curve[(curve / last - 1).abs() > WORTH]
        since = curve.index[0] if steep.empty else curve.index[curve.index > steep.index[-1]][0]
        fall, low, high = (100 * trend[name] for name in ("fall", "fall_low", "fall_high"))
        sentence = (
            f"{trend['model']} has flattened: {observed.noun} {short(float(curve.loc[since]), 3)} at {since:,.0f} "
            f"{observed.data} and {short(last, 3)} at {curve.index[-1]:,.0f}; ten times more would cut it by "
            f"{fall:.0f} % ({low:.0f} to {high:.0f} %)."
        )
        facts = {"model": trend["model"], "since": float(since)}
        statements.append(Statement(f"flattened: {trend['model']}", sentence, fall / 100, low / 100, high / 100, facts))
    return statements


def overtaking(observed: Observed, corner: Corner) -> list[Statement]:
    """Say from how much data on the largest model is better than each of the others, measured or forecast."""
    curves = {str(name): part.groupby("data")["loss"] for name, part in observed.rows.groupby("model", sort=False)}
    own = observed.own
    largest = str(own.loc[own["params"] == corner.params, "model"].iloc[0])
    statements = []
    for name, curve in curves.items():
        if name == largest:
            continue
        large, other = (part.agg(["mean", "sem"]).fillna(0.0) for part in (curves[largest], curve))
        both = large.add_suffix("_large").join(other.add_suffix("_other"), how="inner")
        if len(both) < 2:
            continue
        spread = np.hypot(both["sem_large"], both["sem_other"])
        better = both["mean_large"] < both["mean_other"] - CLEAR * spread
        label, sizes = f"{largest} overtakes {name}", both.index.to_numpy(float)
        doubtful = sizes[~better.to_numpy()]
        if not len(doubtful):
            sentence = (
                f"{largest} is better than {name} at all sizes measured, from {sizes[0]:,.0f} {observed.data} on."
            )
            statements.append(Statement(label, sentence, float(sizes[0])))
        elif doubtful[-1] < sizes[-1]:
            after = float(sizes[sizes > doubtful[-1]][0])
            where = f"from {after:,.0f} {observed.data} on, not yet at {doubtful[-1]:,.0f}"
            sentence = f"{largest} is clearly better than {name} {where}."
            statements.append(Statement(label, sentence, after, float(doubtful[-1]), after))
        else:
            statements += _forecast_crossing(label, largest, name, observed, corner)
    return statements


def _forecast_crossing(label: str, largest: str, other: str, observed: Observed, corner: Corner) -> list[Statement]:
    """Say where a curve that is still above another one would cross it; each is forecast by its own rows."""
    factors = np.geomspace(1, 100, GRID)
    draws = []
    for number, name in enumerate((largest, other)):
        rows = observed.rows[observed.rows["model"] == name]
        if rows["data"].nunique() < LEAST_POINTS:
            return []
        draws.append(_curve_draws(rows, factors * corner.data, seed=corner.seed + number)[0])
    crossed = draws[0] < draws[1]
    chance = float(crossed.any(axis=1).mean())
    if chance < 1 - SURE:
        sentence = (
            f"{largest} does not overtake {other} within 100 times the {observed.data} (probability {chance:.2f})."
        )
        return [Statement(label, sentence, facts={"probability": chance})]
    first = corner.data * factors[crossed[crossed.any(axis=1)].argmax(axis=1)]
    at, low, high = corner.interval(first)
    sentence = (
        f"{largest} overtakes {other} within 100 times the {observed.data} with probability {chance:.2f}, then near "
        f"{at:,.0f} ({low:,.0f} to {high:,.0f})."
    )
    return [Statement(label, sentence, float(at), float(low), float(high), {"probability": chance})]


def _target(target: float, corner: Corner, observed: Observed) -> list[Statement]:
    """Say what a target takes of data alone, of parameters alone, and of compute spent on both at best."""
    factors = np.concatenate([[1.0], np.geomspace(1, FARTHEST, 4 * GRID)[1:]])
    ones = np.ones(len(factors))
    along = {observed.data: (ones, factors)} | ({"parameters": (factors, ones)} if corner.sizes else {})
    statements = []
    for name, (params, data) in along.items():
        reached = corner.draws(params, data) <= target
        start = corner.data if name == observed.data else corner.params
        # Draws that never reach it need more than was looked at.
        needed = np.where(reached.any(axis=1), start * factors[reached.argmax(axis=1)], np.inf)
        statements.append(_reached(f"target by {name}", needed, name, target, observed, corner))
    if _both_cost(corner):
        needed = _cheapest(target, corner)
        statements.append(_reached("target by FLOPs", needed, "FLOPs", target, observed, corner))
    return statements


def _cheapest(target: float, corner: Corner) -> Floats:
    """Return the fewest FLOPs by which each draw reaches a target, (DRAWS,), infinite where none on the grid does."""
    grid = np.geomspace(1, FARTHEST, GRID // 2)
    params, data = np.meshgrid(grid, grid, indexing="ij")
    logs = np.log(np.maximum(corner.draws(params.ravel(), data.ravel()), 1e-300)).reshape(-1, *params.shape)
    # Of each size, from the first data that reach it back to where a straight line in logarithms does.
    after = (logs <= math.log(target)).argmax(axis=2, keepdims=True)
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(logs, place, axis=2)[..., 0] for place in (before, after))
    share = np.clip((high - math.log(target)) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    steps = np.log(grid)
    amounts = np.exp(steps[before[..., 0]] + share * (steps[after] - steps[before])[..., 0])
    return np.where(low <= math.log(target), corner.cost(grid, amounts), np.inf).min(axis=1)


def _reached(label: str, needed: Floats, noun: str, target: float, observed: Observed, corner: Corner) -> Statement:
    """Say how much of something a target takes, given what each draw needs, (DRAWS,)."""
    chance = float(np.isfinite(needed).mean())
    asked = f"{observed.noun} {short(target)}"
    if chance < 0.5:
        low, middle, high = _limit(corner, size=noun == "parameters", both=noun == "FLOPs")
        limit = f"the law's limit is {short(middle)} ({short(low)} to {short(high)})"
        alone = "by any compute" if noun == "FLOPs" else f"by {noun} alone"
        sentence = f"{asked} is not reachable {alone} (probability {chance:.2f}): {limit}."
        return Statement(label, sentence, facts={"probability": chance, "irreducible": [low, middle, high]})
    at, low, high = np.quantile(needed, (0.5, (1 - corner.level) / 2, (1 + corner.level) / 2), method="lower").tolist()
    upper = f"{high:.3g}" if math.isfinite(high) else "more than can be forecast"
    sentence = f"{asked} takes {at:.3g} {noun} ({100 * corner.level:.0f} % interval {low:.3g} to {upper})."
    return Statement(label, sentence, at, low, high, {"probability": chance})


def _limit(corner: Corner, *, size: bool, both: bool) -> tuple[float, float, float]:
    """Return low, median and high of the loss that the laws fall to with endless data, parameters, or both."""
    endless = 1e30
    params, data = (endless if size or both else 1.0), (1.0 if size else endless)
    mixture = corner.posterior
    here, there = (mixture.laws.at(corner.positions([p], [d]))[mixture.law, 0] for p, d in ((1, 1), (params, data)))
    start = np.log(np.maximum(corner.forecast([1.0], [1.0])[0, 0] + corner.offset, 1e-300))
    order = np.argsort(values := np.exp(start + there - here) - corner.offset)
    share = np.cumsum(mixture.weights[order])
    tails = ((1 - corner.level) / 2, 0.5, (1 + corner.level) / 2)
    low, middle, high = (float(values[order][min(np.searchsorted(share, tail), len(order) - 1)]) for tail in tails)
    return max(low, 0.0), max(middle, 0.0), max(high, 0.0)


def _both_cost(corner: Corner) -> bool:
    """Whether parameters and data both cost compute, so that there is something to share; fixed steps see no more."""
    return corner.sizes and min(corner.powers) > 0.1


def _allocation(compute: float, corner: Corner, observed: Observed) -> list[Statement]:
    """Say how a budget of so many times the largest trial's FLOPs is best shared between parameters and data."""
    if not _both_cost(corner):
        return []
    a, b = corner.powers
    shares = np.linspace(-0.5, 1.5, 4 * GRID + 1)
    params, data = compute ** (shares / a), compute ** ((1 - shares) / b)
    draws = corner.draws(params, data)
    best = draws.argmin(axis=1)
    sizes, amounts = corner.params * params[best], corner.data * data[best]
    (n, n_low, n_high), (d, d_low, d_high) = corner.interval(sizes), corner.interval(amounts)
    middle = int(np.median(best))
    value, low, high = corner.forecast(params[middle : middle + 1], data[middle : middle + 1])[:, 0].tolist()
    sentence = (
        f"With {compute:g} times the FLOPs of that trial, best is a model of {n:,.0f} parameters ({n_low:,.0f} to "
        f"{n_high:,.0f}) on {d:,.0f} {observed.data} ({d_low:,.0f} to {d_high:,.0f}): {observed.noun} {short(value)} "
        f"({short(low)} to {short(high)})."
    )
    facts = {
        "flops": compute * corner.flops, "params": [n_low, n, n_high], "data": [d_low, d, d_high]
    }  # fmt: skip
    return [Statement("compute-optimal", sentence, value, low, high, facts)]


def back_test(observed: Observed, *, level: float, seed: int) -> list[Statement]:
    """Forecast the largest scale from the others, as the advice forecasts beyond it: the error, and what the intervals
    held. The sizes of the family in question inform each other; the curves of all others are forecast by themselves.
    """
    asked = {"level": level, "seed": seed}
    own = observed.own
    statements, tested = [], []
    if (together := _hidden_data(own, **asked)) is not None:
        tested.append(together)
    others = observed.rows if together is None else observed.rows[observed.rows["family"] != observed.family]
    for _, curve in others.groupby(["model", "seed"], sort=False, dropna=False):
        hidden = curve["data"] == curve["data"].max()
        seen = curve[~hidden]
        if seen["data"].nunique() >= LEAST_POINTS and (curve["loss"] > 0).all():
            tested.append(_compared(seen, curve[hidden], ("data",), **asked))
    if tested:
        where = f"the most {observed.data} of each curve and seed"
        statements.append(_tested("back-test: data", where, np.concatenate(tested, axis=1), level))
    hidden = own["params"] == own["params"].max()
    seen = own.loc[~hidden]
    seen = falling(seen) if len(seen) else seen
    if seen["params"].nunique() >= 3 and len(seen.drop_duplicates(["params", "data"])) >= LEAST_POINTS:
        found = _compared(seen, own.loc[hidden & (own["loss"] > 0)], ("params", "data"), **asked)
        statements.append(_tested("back-test: size", "the largest model", found, level))
    return statements


def _hidden_data(own: Table, *, level: float, seed: int) -> Floats | None:
    """Compare what the other rows of a family say of its largest data, (2, runs); None if they are too few."""
    hidden = own["data"] == own.groupby("params")["data"].transform("max")
    if not hidden.any() or hidden.all():
        return None
    seen, rest = falling(own.loc[~hidden]), own.loc[hidden & (own["loss"] > 0)]
    enough = len(seen.drop_duplicates(["params", "data"])) >= 2 * LAW_PARAMETERS
    if seen["params"].nunique() < 2 or seen["data"].nunique() < LEAST_POINTS or not enough or rest.empty:
        return None
    return _compared(seen, rest, ("params", "data"), level=level, seed=seed)


def _compared(seen: Table, hidden: Table, names: tuple[str, ...], *, level: float, seed: int) -> Floats:
    """Return by how much the log loss of hidden runs is missed, and whether their intervals held it, (2, runs)."""
    given, new = ({name: rows[name] for name in names} for rows in (seen, hidden))
    found = extrapolate(given, seen["loss"], new, level=level, seed=seed)
    truth = hidden["loss"].to_numpy(float)
    return np.stack([np.abs(np.log(found.value / truth)), (truth >= found.low) & (truth <= found.high)])


def _tested(name: str, hidden: str, found: Floats, level: float) -> Statement:
    misses, held = found
    miss, share = float(np.median(misses)), float(np.mean(held))
    runs = number_of(len(held), "run")
    sentence = (
        f"Back-test: hiding {hidden} and forecasting it from the rest misses by {100 * math.expm1(miss):.0f} % in the "
        f"median; {int(held.sum())} of {runs} lie in their {100 * level:.0f} % interval."
    )
    return Statement(name, sentence, miss, facts={"held": share, "runs": len(held)})


def candidates_of(corner: Corner, observed: Observed) -> Floats:
    """Return the trials to choose from: times the corner's parameters, and its data, (candidates, 2)."""
    sizes = CANDIDATES if corner.sizes else (1.0,)
    grid = [(p, d) for p in sizes for d in CANDIDATES if d * corner.data <= observed.most_data]
    if not corner.sizes:
        grid += [(0.25, 1.0), (4.0, 1.0)]  # another size, without which nothing is known of size
    return np.array(grid)


def next_trials(corner: Corner, observed: Observed) -> Table:
    """Return the trials that narrow the forecasts of ten times the data and the parameters most for their FLOPs.

    The draws of log loss at candidates and at what is asked for have a covariance; a trial at a candidate shrinks the
    variance of what is asked for as an observation of a normal variable with a run's noise does (MacKay 1992). The
    trials are chosen one after the other, each by the variance that it takes away over its FLOPs.
    """
    grid = candidates_of(corner, observed)
    asked = [(1.0, 10.0), (10.0, 1.0)] if corner.sizes else [(1.0, 10.0)]
    points = np.array([*grid, *asked])
    predicted = [place for place, (p, _) in enumerate(grid) if corner.sizes or p == 1]
    draws = corner.posterior.sample(corner.positions(*points.T), count=DRAWS, seed=corner.seed)
    cov = np.cov(draws, rowvar=False)
    targets = np.arange(len(grid), len(points))
    noise = noise_of(corner.posterior) ** 2
    costs = corner.cost(*points[: len(grid)].T)
    records, whole = [], float(np.diag(cov)[targets].sum())
    if not corner.sizes:
        place = len(grid) - 1
        records.append(
            {"params": 4 * corner.params, "data": corner.data, "flops": float(costs[place]), "narrows": math.nan}
        )
    while len(records) < TRIALS and predicted:
        shrink = (cov[predicted][:, targets] ** 2).sum(axis=1) / (np.diag(cov)[predicted] + noise)
        best = predicted[int(np.argmax(shrink / (costs[predicted] + OVERHEAD * corner.flops)))]
        predicted.remove(best)  # a second file of the same trials would train nothing
        gain = float((cov[best, targets] ** 2).sum() / (cov[best, best] + noise))
        records.append(
            {
                "params": float(points[best, 0] * corner.params),
                "data": float(points[best, 1] * corner.data),
                "flops": float(costs[best]),
                "narrows": gain / whole if whole > 0 else 0.0,
            }
        )
        cov = cov - np.outer(cov[:, best], cov[best]) / (cov[best, best] + noise)
    return pd.DataFrame(records)


def _next(trials: Table, observed: Observed) -> list[Statement]:
    if trials.empty:
        return []
    named = "; ".join(
        f"{row['params']:,.0f} parameters on {row['data']:,.0f} {observed.data}" for row in trials.to_dict("records")
    )
    share = float(np.nansum(trials["narrows"]))
    sentence = (
        f"Next: {named}: of the trials considered these narrow the forecasts most for their FLOPs, by "
        f"{100 * share:.0f} % of their variance."
    )
    return [Statement("next trials", sentence, share)]


def bands_of(observed: Observed, corner: Corner) -> Table:
    """Return the forecast of each curve to a hundred times its data, for the picture.

    Those of the family in question are of the law of size and data, as all that is said about it; the others have
    their own points alone.
    """
    records = []
    for name, rows in observed.rows.groupby("model", sort=False):
        if rows["data"].nunique() < LEAST_POINTS:
            continue
        params, most = float(rows["params"].iloc[0]), float(rows["data"].max())
        data = np.geomspace(most, 100 * most, GRID)
        if corner.sizes and rows["family"].iloc[0] == observed.family and math.isfinite(params):
            found = corner.curve(params / corner.params, data / corner.data)
        else:
            draws, known, offset = _curve_draws(rows, data, seed=corner.seed)
            found = corner.interval(one_run(draws, known, offset=offset, seed=corner.seed))
        for values in zip(data, *found, strict=True):
            record = dict(zip(("data", "value", "low", "high"), map(float, values), strict=True))
            records.append({"model": name, "params": params, **record})
    return pd.DataFrame(records, columns=["model", "params", "data", "value", "low", "high"])


def _curve_draws(rows: Table, data: Floats, *, seed: int) -> tuple[Floats, Posterior, float]:
    """Draw the mean loss of one model at amounts of data from its own rows, (DRAWS, amounts).

    Returns:
        The draws, what the rows leave of laws and drifts, and the offset of the losses.
    """
    found = measured({"data": rows["data"].to_numpy(float)}, rows["loss"].to_numpy(float))
    known = posterior(found, seed=seed)
    points, here = np.log(data)[None] - found.largest, np.zeros((1, 1))
    draws = falling_draws(known, points, before=here, after=here + math.log(10), offset=found.offset, seed=seed)
    return draws, known, found.offset
