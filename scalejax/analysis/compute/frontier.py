"""The compute-optimal frontier: the minima of profiles, whether each is bracketed, and the power laws through them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from scalejax.analysis.compute.profiles import (
    Minima,
    Profiles,
    basis,
    fit_profiles,
    minima,
    noise,
    resample_profiles,
)
from scalejax.text import Shown, html_table, html_text, number_of

Array = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
FLOPS_PER_PARAMETER_TOKEN = 6.0
FEWEST_FOR_LOSS = 4  # optima: floor, height and exponent, and one to spare
# Exponents of the loss in compute; published ones lie between 0.03 and 0.2.
SMALLEST_DECAY, LARGEST_DECAY = 0.005, 2.0
TRIES, ZOOMS = 41, 12
CHUNK = 200_000  # numbers in the largest temporary array
FEWEST_SIZES = 3  # a profile's own unknowns: height, curvature and place of its minimum
CLEAR_RISE = 2.0  # standard errors by which the loss must rise on either side of a minimum
NO_LAW = "no law fits"
SCATTERED = 0.01  # p of the scatter of the optima about their power law


@dataclass(frozen=True)
class Rows:
    """Columns [rows]: params, flops, loss, index of the profile, index of the group."""

    params: Array
    flops: Array
    loss: Array
    profile: Numbers
    group: Numbers


@dataclass(frozen=True)
class Bounds:
    """One end of intervals; each shaped like the estimates it belongs to, NaN where unknown."""

    params: Array
    tokens: Array
    loss: Array


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; `low` and `high` are NaN where unknown."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Path:
    """log N* = log_params + exponent x and L* = floor + height e^{-decay x} with x = log C - centre.

    `centre` is a number; the others are [fits]. NaN where there are too few optima: 2 for the size, 4 for the loss.
    """

    centre: float
    log_params: Array
    exponent: Array
    floor: Array
    height: Array
    decay: Array


@dataclass(frozen=True, repr=False)
class Frontier(Shown):
    """Compute-optimal sizes and losses at the computes of the data, and the laws through them.

    Attributes:
        approach: "isoflop" or "envelope".
        flops: compute of each profile [profiles].
        params: optimal number of parameters there; NaN where the profile was refused.
        tokens: flops / (6 params).
        loss: loss at the optimum.
        low: lower ends of the intervals.
        high: upper ends. NaN without resamples, or where so many resamples have no minimum that the end is unknown.
        statuses: "ok" or why the profile was refused.
        params_exponent: a of N* = G C^a.
        tokens_exponent: 1 - a.
        shape: exponents alpha and beta that the profiles share. They are a means to find the minima: narrow or noisy
            profiles hardly determine them, and may leave one at its bound (0.01 or 2) without harm to the minima.
        path: the laws through the optima, one fit.
        samples: the same for each resample.
        scatter: spread of the optima about their power law over that expected from the noise of the profiles; where it
            is too large for chance, the status says so and the intervals of the law are widened by it (Birge 1932). NaN
            where unknown.
        level: probability of the intervals.
        excluded: rows left out because they are not finite.
        status: "ok" or a sentence.
    """

    approach: str
    flops: Array
    params: Array
    tokens: Array
    loss: Array
    low: Bounds
    high: Bounds
    statuses: tuple[str, ...]
    params_exponent: Interval
    tokens_exponent: Interval
    shape: tuple[float, float]
    path: Path
    samples: Path
    scatter: float
    level: float
    excluded: int
    status: str

    def __str__(self) -> str:
        found = f"optima found at {sum(map('ok'.__eq__, self.statuses))} of {len(self.statuses)} computes"
        ends = [self.params_exponent, self.tokens_exponent]
        params, tokens = (f"{end.value:.3f} ({self.level:.0%}: {end.low:.3f} to {end.high:.3f})" for end in ends)
        return f"{self.approach}: {found}\n  params grow as C^{params}\n  tokens grow as C^{tokens}\n{self.status}"

    def _repr_html_(self) -> str:
        columns = self.flops, self.params, self.low.params, self.high.params, self.tokens, self.loss
        rows = [
            (f"{flops:.3g}", f"{params:.3g}", f"{low:.3g} to {high:.3g}", f"{tokens:.3g}", f"{loss:.4g}")
            for flops, params, low, high, tokens, loss in zip(*columns, strict=True)
        ]
        headings = "FLOPs", "best parameters", f"{self.level:.0%} interval", "tokens", "loss"
        return html_text(str(self)) + html_table(headings, rows)


def frontier(
    rows: Rows, *, approach: Literal["isoflop", "envelope"], excluded: int, bootstrap: int, level: float, seed: int
) -> Frontier:
    """Fit all profiles that have enough sizes, and the laws through their minima."""
    if bootstrap < 0 or not 0 < level < 1:
        raise ValueError("bootstrap must not be negative and level must lie between 0 and 1.")

    # 1. The profiles, fitted at once; those of too few sizes are left out.
    places = [np.flatnonzero(rows.profile == one) for one in range(int(rows.profile.max()) + 1)]
    flops = np.array([math.exp(np.log(rows.flops[place]).mean()) for place in places])
    sizes = [len(np.unique(rows.params[place])) for place in places]
    full = np.flatnonzero(np.array(sizes) >= FEWEST_SIZES)
    statuses = [
        f"too few points: {number_of(count, 'size')} at {at:.3g} FLOPs; train at least 4"
        for count, at in zip(sizes, flops, strict=True)
    ]
    profiles = _pack(rows, [places[one] for one in full], flops[full])
    if int((profiles.weights > 0).sum()) < 3 * len(full) + 3:
        status = "too few points: the profiles have 3 unknowns each and 2 in common; train at least 4 sizes a profile"
        return refused(approach, excluded, level, status)
    shapes, weights = fit_profiles(profiles)
    found = minima(shapes, profiles.centres)
    inverse, deviation = noise(profiles, shapes, weights=weights)

    # 2. Standard errors of log N* and of L* [profiles], the shared exponents held fixed. dL/dw = 0 at the minimum, so a
    # change of the coefficients moves it by -(change of the slope)/(curvature). Where there is no minimum any place
    # will do, for that profile does not count.
    best = found.log_params[0] - profiles.centres
    values = basis(shapes.exponents, np.nan_to_num(best)[None, :, None])[0, :, 0]
    slope = np.stack([np.zeros(len(values)), values[:, 3], values[:, 1]], axis=-1)
    place_errors = np.sqrt(np.einsum("pk,pkl,pl->p", slope, inverse, slope)) / found.curvature[0]
    loss_errors = np.sqrt(np.einsum("pk,pkl,pl->p", values[:, :3], inverse, values[:, :3]))
    errors = np.nan_to_num(place_errors, nan=1.0) * deviation, loss_errors * deviation

    # 3. A profile counts if its loss clearly rises from its minimum to both ends.
    for place, one in enumerate(full):
        ends = profiles.sizes[place][profiles.weights[place] > 0]
        lacking = []
        for end, words, inside in (
            (ends.min(), "smaller", best[place] > ends.min()),
            (ends.max(), "larger", best[place] < ends.max()),
        ):
            span = np.array([best[place] if math.isfinite(best[place]) else 0.0, end])[None]
            start, stop = basis(shapes.exponents, span)[0, 0, :, :3]
            error = deviation * math.sqrt((stop - start) @ inverse[place] @ (stop - start))
            if not inside or (stop - start) @ shapes.coefficients[0, place] <= CLEAR_RISE * error:
                lacking.append(words)
        at, side = f"at {profiles.flops[place]:.3g} FLOPs", " or ".join(lacking)
        rise = f"not bracketed: {at} the loss does not clearly rise towards {side} models; train {side} ones there"
        statuses[one] = rise if lacking else "ok"
    good = np.array([statuses[one] == "ok" for one in full])

    # 4. The laws through the minima, of the fit and of each resample.
    path = fit_path(profiles.flops, found.log_params, found.loss, errors=errors, use=good)
    again, samples = found, path
    if bootstrap:
        refits = resample_profiles(profiles, shapes, weights=weights, resamples=bootstrap, seed=seed)
        again = minima(refits, profiles.centres)
        samples = fit_path(profiles.flops, again.log_params, again.loss, errors=errors, use=good)

    # 5. The scatter of the optima about their line: the root of chi^2 per degree of freedom. Slices through the same
    # training curves share their noise: their scatter is no measure of it.
    count, scatter, status = int(good.sum()), math.nan, "ok"
    if approach == "isoflop" and count > 2:
        x = np.log(profiles.flops) - path.centre
        residuals = ((found.log_params[0] - path.log_params[0] - path.exponent[0] * x) / errors[0])[good]
        scatter = math.sqrt(float((residuals**2).sum()) / (count - 2))
    if count < 2:
        status = "not identifiable: fewer than two profiles bracket their minimum, see statuses; nothing to extrapolate"
    elif chdtrc(count - 2, scatter**2 * (count - 2)) < SCATTERED:
        status = (
            f"{NO_LAW}: the optima scatter about a power law {scatter:.1f} times as much as the noise of their "
            "profiles explains; intervals of the law are widened by that, its extrapolation remains in doubt"
        )
        samples = replace(  # the deviations of the size from the fit
            samples,
            log_params=path.log_params + scatter * (samples.log_params - path.log_params),
            exponent=path.exponent + scatter * (samples.exponent - path.exponent),
        )

    def optima(found: Minima) -> Bounds:
        """Return params, tokens and loss [fits, all profiles] of the minima, NaN in profiles that do not count."""
        log_params, loss = np.full((2, len(found.loss), len(flops)), np.nan)
        log_params[:, full[good]], loss[:, full[good]] = found.log_params[:, good], found.loss[:, good]
        params = np.exp(log_params)
        return Bounds(params, flops / FLOPS_PER_PARAMETER_TOKEN / params, loss)

    at, (low, high) = optima(found), bounds(optima(again), level)
    value, (least, most) = float(path.exponent[0]), map(float, central(samples.exponent, level))
    return Frontier(
        approach=approach,
        flops=flops,
        params=at.params[0],
        tokens=at.tokens[0],
        loss=at.loss[0],
        low=low,
        high=high,
        statuses=tuple(statuses),
        params_exponent=Interval(value, least, most),
        tokens_exponent=Interval(1 - value, 1 - most, 1 - least),
        shape=(float(shapes.exponents[0, 0]), float(shapes.exponents[0, 1])),
        path=path,
        samples=samples,
        scatter=scatter,
        level=level,
        excluded=excluded,
        status=status,
    )


def refused(approach: Literal["isoflop", "envelope"], excluded: int, level: float, status: str) -> Frontier:
    """Return a frontier without optima."""
    none, unknown = np.empty(0), Interval(math.nan, math.nan, math.nan)
    path = Path(0.0, *[np.array([math.nan])] * 5)
    ends = Bounds(none, none, none)
    return Frontier(
        approach, none, none, none, none, ends, ends, (), unknown, unknown, (math.nan, math.nan), path, path, math.nan,
        level, excluded, status,
    )  # fmt: skip


def _pack(rows: Rows, places: Sequence[Numbers], flops: Array) -> Profiles:
    """Return the rows of each profile, padded, with weights 1 / loss: residuals are relative."""
    shape = len(places), max(map(len, places), default=0)
    sizes, loss, weights, groups = np.zeros(shape), np.ones(shape), np.zeros(shape), np.zeros(shape, np.int64)
    centres = np.array([np.log(rows.params[place]).mean() for place in places])
    for row, place in enumerate(places):
        used = slice(len(place))
        sizes[row, used], loss[row, used] = np.log(rows.params[place]) - centres[row], rows.loss[place]
        weights[row, used], groups[row, used] = 1 / rows.loss[place], rows.group[place]
    return Profiles(flops, centres, sizes, loss, weights, groups)


def fit_path(flops: Array, log_params: Array, loss: Array, *, errors: tuple[Array, Array], use: npt.ArrayLike) -> Path:
    """Fit the laws of the size and of the loss through optima, by weighted least squares.

    Args:
        flops: [profiles].
        log_params: [fits, profiles]; NaN where a fit has no minimum, which it then does without.
        loss: [fits, profiles], likewise.
        errors: standard errors of both [profiles], up to a factor that all profiles share.
        use: which profiles count [profiles].
    """
    logs = np.log(flops)
    centre = float(logs[np.asarray(use)].mean()) if np.any(use) else 0.0
    x = logs - centre
    there = np.isfinite(log_params) & np.isfinite(loss) & np.asarray(use)
    line = _line(x, np.where(there, log_params, 0.0), np.where(there, 1 / errors[0] ** 2, 0.0))
    decline = _falling(x, np.where(there, loss, 0.0), np.where(there, 1 / errors[1] ** 2, 0.0))
    enough = there.sum(-1) >= 2, there.sum(-1) >= FEWEST_FOR_LOSS
    line = (np.where(enough[0], parameter, np.nan) for parameter in line)
    return Path(centre, *line, *(np.where(enough[1], parameter, np.nan) for parameter in decline))


def path_at(path: Path, flops: Array) -> Bounds:
    """Return optimal params, tokens and loss [fits, ...] at computes [...]."""
    x = np.log(flops) - path.centre
    level, slope, floor, height, decay = (
        parameter.reshape(-1, *(1 for _ in x.shape))
        for parameter in (path.log_params, path.exponent, path.floor, path.height, path.decay)
    )
    params = np.exp(level + slope * x)
    return Bounds(params, flops / FLOPS_PER_PARAMETER_TOKEN / params, floor + height * np.exp(-decay * x))


def bounds(samples: Bounds, level: float) -> tuple[Bounds, Bounds]:
    """Return the ends of the central intervals of samples [fits, ...]."""
    ends = [central(values, level) for values in (samples.params, samples.tokens, samples.loss)]
    return Bounds(*(low for low, _ in ends)), Bounds(*(high for _, high in ends))


def central(samples: Array, level: float) -> tuple[Array, Array]:
    """Return the ends of the central interval [...] of samples [fits, ...]; NaN where too many of them are NaN."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; it is {level}.")
    tail = (1 - level) / 2
    # A resample without a minimum lies beyond one of the ends; which one is unknown.
    known = (~np.isnan(samples)).sum(0) > max((1 - tail) * len(samples), 1)
    # "nearest" never subtracts two infinite samples.
    ends = np.nanquantile(np.where(known, samples, 0.0), [tail, 1 - tail], axis=0, method="nearest")
    return np.where(known, ends[0], np.nan), np.where(known, ends[1], np.nan)


def _line(x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Return level at x = 0 and slope [fits] of weighted least-squares lines; x [points], the others [fits, points]."""
    total = np.maximum(weights.sum(-1), np.finfo(float).tiny)
    mean_x, mean_y = (weights * x).sum(-1) / total, (weights * y).sum(-1) / total
    offset = x - mean_x[:, None]
    spread = np.maximum((weights * offset**2).sum(-1), np.finfo(float).tiny)
    slope = (weights * offset * (y - mean_y[:, None])).sum(-1) / spread
    return mean_y - slope * mean_x, slope


def _falling(x: Array, y: Array, weights: Array) -> tuple[Array, Array, Array]:
    """Fit y = floor + height e^{-decay x}, floor and height not negative; x [points], the others [fits, points].

    Variable projection over the one exponent: a grid, then finer grids about its best point.
    """
    most = max(1, CHUNK // (TRIES * len(x)))
    if len(y) > most:
        parts = [_falling(x, y[at : at + most], weights[at : at + most]) for at in range(0, len(y), most)]
        floor, height, decay = (np.concatenate(part) for part in zip(*parts, strict=True))
        return floor, height, decay
    low, high = math.log(SMALLEST_DECAY), math.log(LARGEST_DECAY)
    centre, half = np.full(len(y), (low + high) / 2), (high - low) / 2
    y, weights = y[:, None], np.broadcast_to(weights[:, None], (len(y), TRIES, len(x)))
    steps = np.linspace(-1, 1, TRIES)

    def solved(decay: Array) -> tuple[Array, Array, Array]:
        column = np.exp(-decay[..., None] * x)
        floor, height = _on_column(column, y, weights[:, : decay.shape[1]])
        misses = y - floor[..., None] - height[..., None] * column
        return floor, height, (weights[:, : decay.shape[1]] * misses**2).sum(-1)

    for _ in range(ZOOMS):
        tries = np.clip(centre[:, None] + half * steps, low, high)
        best = solved(np.exp(tries))[2].argmin(-1)
        centre = np.take_along_axis(tries, best[:, None], -1)[:, 0]
        half *= 3 / TRIES
    floor, height, _ = solved(np.exp(centre)[:, None])
    return floor[:, 0], height[:, 0], np.exp(centre)


def _on_column(column: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """Return floor and height, neither negative, by least squares on a column: [fits, tries]."""
    total = np.maximum(weights.sum(-1), np.finfo(float).tiny)
    mean, mean_y = (weights * column).sum(-1) / total, (weights * y).sum(-1) / total
    offset = column - mean[..., None]
    spread = np.maximum((weights * offset**2).sum(-1), np.finfo(float).tiny)
    height = np.maximum((weights * offset * (y - mean_y[..., None])).sum(-1) / spread, 0.0)
    floor = mean_y - height * mean
    through = (weights * column * y).sum(-1) / np.maximum((weights * column**2).sum(-1), np.finfo(float).tiny)
    return np.where(floor < 0, 0.0, floor), np.where(floor < 0, through, height)
