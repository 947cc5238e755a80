"""The run that advice starts from, what is known around it, and draws of the loss of other runs."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from scalejax.analysis.forecast.extrapolate import LEAST_POINTS, measured, posterior
from scalejax.analysis.forecast.observed import Observed, Table
from scalejax.analysis.forecast.posterior import Posterior
from scalejax.analysis.forecast.surfaces import robust_fit

Floats = npt.NDArray[np.float64]

DRAWS = 2000
SPARE = 2  # times as many are drawn, of which those that make sense are kept: enough where half of them do
MOST_RISE = 0.3  # of the log loss in a draw that makes sense: a larger tuned model and more data do little harm
LEAST_FALLING = 0.5  # share of them; fewer, and it is the rows that say that the loss rises
HIGHEST_LOG = 600.0  # of a drawn loss: its exponential, times noise, is still a number
WORTH = 0.05  # tenfold data or parameters that take away less than this share of the loss do not help
CHANCE = 0.8  # rows above this share of the highest loss may be those of models that are still at chance
# By so many times the law's misfit must shrink without them: its variance by 2.25 times, which chance does in one of 20
# cases with 18 degrees of freedom on either side (F test).
MUCH_BETTER = 1.5
LAW_PARAMETERS = 6  # of a law of size and data: two exponents, two shares, their interaction, the height
GRID = 25  # points of the grids along which targets and budgets are looked for


@dataclass(frozen=True)
class Anchor:
    """The run with the most compute, of those the one on the most data, and what is known around it.

    Attributes:
        params: of its model.
        data: that it was trained on.
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

        As in all draws, the loss at the anchor rises by little at most; so does that of this model, with ten and a
        hundred times its data.

        Args:
            params: in times the anchor's.
            data: in times the anchor's, (points,).
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


def anchor_of(whole: Table, *, level: float, seed: int) -> Anchor:
    """Return what is known around the run with the most compute, from the rows of one family that fall."""
    own = falling(whole)
    return anchor_among(own, left_out=len(whole) - len(own), level=level, seed=seed)


def anchor_among(own: Table, *, left_out: int = 0, level: float, seed: int) -> Anchor:
    """Return what is known around the run with the most compute.

    Args:
        own: the rows of one family, as `Observed.own` has them.
        left_out: further rows of it that are not used.
        level: probability of the intervals.
        seed: of the draws.
    """
    sizes = own["params"].nunique() > 1
    names = ("params", "data") if sizes else ("data",)
    predictors = {name: own[name].to_numpy(float) for name in names}
    rows = measured(predictors, own["loss"].to_numpy(float))
    powers = _powers(own)
    # By what its training takes, which one law gives, as a run may have ended early; among equals the largest.
    compute = np.round(np.log(own[["params", "data"]].to_numpy(float)) @ powers, 9)
    place = own.assign(compute=compute, scale=own["params"] * own["data"])
    place = place.sort_values(["compute", "scale", "params"]).iloc[-1]
    return Anchor(
        params=float(place["params"]),
        data=float(place["data"]),
        flops=float(place["flops"]),
        powers=powers,
        sizes=sizes,
        largest=rows.largest,
        posterior=posterior(rows, seed=seed),
        offset=rows.offset,
        left_out=left_out,
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
    falling = np.flatnonzero((logs[:, first:last] - logs[:, :first] <= MOST_RISE).all(axis=1))
    chosen = falling if len(falling) >= LEAST_FALLING * len(logs) else np.arange(len(logs))
    return np.maximum(np.exp(np.minimum(logs[np.resize(chosen, DRAWS), last:], HIGHEST_LOG)) - offset, 0.0)


def one_run(draws: Floats, known: Posterior, *, offset: float, seed: int) -> Floats:
    """Add the noise of one run to draws of the mean loss (DRAWS, points), the same at all points: a band is smooth."""
    noise = known.draw_noise(len(draws), seed=seed)[:, None]
    return np.maximum((draws + offset) * np.exp(noise) - offset, 0.0)


def curve_draws(rows: Table, data: Floats, *, seed: int) -> tuple[Floats, Posterior, float]:
    """Draw the mean loss of one model at amounts of data from its own rows, (DRAWS, amounts).

    Returns:
        The draws, what the rows leave of laws and drifts, and the offset of the losses.
    """
    found = measured({"data": rows["data"].to_numpy(float)}, rows["loss"].to_numpy(float))
    known = posterior(found, seed=seed)
    points, here = np.log(data)[None] - found.largest, np.zeros((1, 1))
    draws = falling_draws(known, points, before=here, after=here + math.log(10), offset=found.offset, seed=seed)
    return draws, known, found.offset


def bands_of(observed: Observed, anchor: Anchor) -> Table:
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
        if anchor.sizes and rows["family"].iloc[0] == observed.family and math.isfinite(params):
            found = anchor.curve(params / anchor.params, data / anchor.data)
        else:
            draws, known, offset = curve_draws(rows, data, seed=anchor.seed)
            found = anchor.interval(one_run(draws, known, offset=offset, seed=anchor.seed))
        for values in zip(data, *found, strict=True):
            record = dict(zip(("data", "value", "low", "high"), map(float, values), strict=True))
            records.append({"model": name, "params": params, **record})
    return pd.DataFrame(records, columns=["model", "params", "data", "value", "low", "high"])
