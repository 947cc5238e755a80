"""From rows to a frontier: the minima of isoFLOP profiles, whether each is bracketed, and the laws through them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import chdtrc

from scalejax.analysis.compute.frontier import (
    FLOPS_PER_PARAMETER_TOKEN,
    Bounds,
    Frontier,
    Interval,
    Path,
    bounds,
    fit_path,
    interval,
    widened,
)
from scalejax.analysis.compute.profiles import (
    Minima,
    Profiles,
    Shapes,
    basis,
    fit_profiles,
    minima,
    noise,
    resample_profiles,
)
from scalejax.text import number_of

__all__ = ["Rows", "Settings", "frontier", "read_rows", "refused"]

Array = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
Flags = npt.NDArray[np.bool_]
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
class Settings:
    """How intervals are made: resamples, probability, seed."""

    bootstrap: int
    level: float
    seed: int


def read_rows(
    points: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike, labels: Sequence[Any] | Array | None
) -> tuple[Array, Array, Array, Numbers, int]:
    """Return params, flops, loss and label numbers of the rows with a finite loss, and how many had none."""
    params, flops = _params_and_flops(points)
    losses = np.asarray(loss, np.float64)
    if losses.ndim != 1 or not params.shape == flops.shape == losses.shape:
        raise ValueError(f"Columns must have one length: {params.shape}, {flops.shape} and a loss of {losses.shape}.")
    if labels is not None and len(labels) != len(losses):
        found = f"{number_of(len(labels), 'label')} for {number_of(len(losses), 'row')}"
        raise ValueError(f"Found {found}: give one a row.")
    finite = np.isfinite(losses)
    if not finite.any():
        raise ValueError("No row has a finite loss; every run diverged or none is finished.")
    if (losses[finite] <= 0).any():
        raise ValueError("Every loss must be positive; a loss law in logarithms knows no other.")
    numbers = np.arange(len(losses)) if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    return params[finite], flops[finite], losses[finite], numbers[finite], int((~finite).sum())


def _params_and_flops(points: Mapping[str, npt.ArrayLike]) -> tuple[Array, Array]:
    if set(points) not in ({"params", "flops"}, {"params", "tokens"}):
        raise ValueError(
            f"points must have params and one of flops or tokens; it has {', '.join(points) or 'nothing'}."
        )
    columns = {name: np.asarray(column, np.float64) for name, column in points.items()}
    for name, column in columns.items():
        if not (np.isfinite(column) & (column > 0)).all():
            raise ValueError(f"Every value of {name} must be positive and finite.")
    if "flops" in columns:
        return columns["params"], columns["flops"]
    if columns["params"].shape != columns["tokens"].shape:
        raise ValueError(
            f"params has the shape {columns['params'].shape}, tokens {columns['tokens'].shape}; align them."
        )
    return columns["params"], FLOPS_PER_PARAMETER_TOKEN * columns["params"] * columns["tokens"]


def frontier(rows: Rows, settings: Settings, *, approach: str, excluded: int) -> Frontier:
    """Fit all profiles that have enough sizes, and the laws through their minima."""
    if settings.bootstrap < 0 or not 0 < settings.level < 1:
        raise ValueError("bootstrap must not be negative and level must lie between 0 and 1.")
    budgets = [rows.flops[rows.profile == one] for one in range(int(rows.profile.max()) + 1)]
    flops = np.array([math.exp(np.log(each).mean()) for each in budgets])
    sizes = np.array([len(np.unique(rows.params[rows.profile == one])) for one in range(len(flops))])
    full = np.flatnonzero(sizes >= FEWEST_SIZES)
    statuses = [
        f"too few points: {number_of(count, 'size')} at {at:.3g} FLOPs; train at least 4"
        for count, at in zip(sizes, flops, strict=True)
    ]
    profiles = _pack(rows, full, flops)
    if int((profiles.weights > 0).sum()) < 3 * len(full) + 3:
        status = "too few points: the profiles have 3 unknowns each and 2 in common; train at least 4 sizes a profile"
        return refused(approach, excluded, settings.level, status)
    shapes, weights = fit_profiles(profiles)
    found, errors = minima(shapes, profiles.centres), _errors(profiles, shapes, weights)
    for place, one in enumerate(full):
        statuses[one] = _bracketed(profiles, shapes, weights, place)
    good = np.array([statuses[one] == "ok" for one in full])
    path = fit_path(profiles.flops, found.log_params, found.loss, errors=errors, use=good)
    again, samples = found, path
    if settings.bootstrap:
        refits = resample_profiles(profiles, shapes, weights=weights, resamples=settings.bootstrap, seed=settings.seed)
        again = minima(refits, profiles.centres)
        samples = fit_path(profiles.flops, again.log_params, again.loss, errors=errors, use=good)
    # Slices through the same training curves share their noise: their scatter about a line is no measure of it.
    scatter = (
        _scatter(path, found.log_params[0], errors[0], good, profiles.flops) if approach == "isoflop" else math.nan
    )
    status = _status(good, scatter)
    samples = widened(path, samples, scatter if status.startswith(NO_LAW) else 1.0)
    at = _optima(found, good, full, flops)
    low, high = bounds(_optima(again, good, full, flops), settings.level)
    value = float(path.exponent[0])
    exponent = interval(value, samples.exponent, settings.level)
    return Frontier(
        approach=approach,
        flops=flops,
        params=at.params[0],
        tokens=at.tokens[0],
        loss=at.loss[0],
        low=low,
        high=high,
        statuses=tuple(statuses),
        params_exponent=exponent,
        tokens_exponent=Interval(1 - value, 1 - exponent.high, 1 - exponent.low),
        shape=(float(shapes.exponents[0, 0]), float(shapes.exponents[0, 1])),
        path=path,
        samples=samples,
        scatter=scatter,
        level=settings.level,
        excluded=excluded,
        status=status,
    )


def _optima(found: Minima, good: Flags, full: Numbers, flops: Array) -> Bounds:
    """Return params, tokens and loss [fits, all profiles] of the minima of the full ones, NaN where not good."""
    log_params, loss = np.full((2, len(found.loss), len(flops)), np.nan)
    log_params[:, full[good]], loss[:, full[good]] = found.log_params[:, good], found.loss[:, good]
    params = np.exp(log_params)
    return Bounds(params, flops / FLOPS_PER_PARAMETER_TOKEN / params, loss)


def _errors(profiles: Profiles, shapes: Shapes, weights: Array) -> tuple[Array, Array]:
    """Return standard errors [profiles] of log N* and of L*, the shared exponents held fixed."""
    inverse, deviation = noise(profiles, shapes, weights=weights)
    found = minima(shapes, profiles.centres)
    # Where there is no minimum any place will do: that profile does not count.
    place = np.nan_to_num(found.log_params - profiles.centres)
    values = basis(shapes.exponents, place[..., None])[0, :, 0]
    # dL/dw = 0 at the minimum, so a change of the coefficients moves it by -(change of the slope)/(curvature).
    slope = np.stack([np.zeros(len(values)), values[:, 3], values[:, 1]], axis=-1)
    errors = np.sqrt(np.einsum("pk,pkl,pl->p", slope, inverse, slope)) / found.curvature[0]
    losses = np.sqrt(np.einsum("pk,pkl,pl->p", values[:, :3], inverse, values[:, :3]))
    return np.nan_to_num(errors, nan=1.0) * deviation, losses * deviation


def _bracketed(profiles: Profiles, shapes: Shapes, weights: Array, place: int) -> str:
    """Return "ok", or on which side the loss of a profile does not clearly rise from its minimum."""
    inverse, deviation = noise(profiles, shapes, weights=weights)
    sizes = profiles.sizes[place][profiles.weights[place] > 0]
    coefficients = shapes.coefficients[0, place]
    best = float(minima(shapes, profiles.centres).log_params[0, place] - profiles.centres[place])
    lacking = []
    for end, words in ((sizes.min(), "smaller"), (sizes.max(), "larger")):
        inside = best > end if words == "smaller" else best < end
        span = np.array([best if math.isfinite(best) else 0.0, end])[None]
        values = basis(shapes.exponents, span)[0, 0, :, :3]
        change = values[1] - values[0]
        error = deviation * math.sqrt(change @ inverse[place] @ change)
        if not inside or change @ coefficients <= CLEAR_RISE * error:
            lacking.append(words)
    if not lacking:
        return "ok"
    at, side = f"at {profiles.flops[place]:.3g} FLOPs", " or ".join(lacking)
    return f"not bracketed: {at} the loss does not clearly rise towards {side} models; train {side} ones there"


def _scatter(path: Path, log_params: Array, errors: Array, good: Flags, flops: Array) -> float:
    """Return the root of chi^2 per degree of freedom of the optima about their line; NaN for two or fewer."""
    if good.sum() < 3:
        return math.nan
    x = np.log(flops) - path.centre
    residuals = ((log_params - path.log_params[0] - path.exponent[0] * x) / errors)[good]
    return math.sqrt(float((residuals**2).sum()) / (len(residuals) - 2))


def _status(good: Flags, scatter: float) -> str:
    """Return the status of a frontier from the gravest trouble on."""
    count = int(good.sum())
    if count < 2:
        return "not identifiable: fewer than two profiles bracket their minimum, see statuses; nothing to extrapolate"
    if count > 2 and chdtrc(count - 2, scatter**2 * (count - 2)) < SCATTERED:
        return (
            f"{NO_LAW}: the optima scatter about a power law {scatter:.1f} times as much as the noise of their "
            "profiles explains; intervals of the law are widened by that, its extrapolation remains in doubt"
        )
    return "ok"


def refused(approach: str, excluded: int, level: float, status: str) -> Frontier:
    """Return a frontier without optima."""
    none, unknown = np.empty(0), Interval(math.nan, math.nan, math.nan)
    blank = np.array([math.nan])
    path = Path(0.0, blank, blank, blank, blank, blank)
    ends = Bounds(none, none, none)
    return Frontier(
        approach, none, none, none, none, ends, ends, (), unknown, unknown, (math.nan, math.nan), path, path, math.nan,
        level, excluded, status,
    )  # fmt: skip


def _pack(rows: Rows, full: Numbers, flops: Array) -> Profiles:
    """Return the rows of the full profiles, padded, with weights 1 / loss: residuals are relative."""
    places = [np.flatnonzero(rows.profile == one) for one in full]
    longest = max((len(each) for each in places), default=0)
    sizes, loss, weights = np.zeros((3, len(full), longest))
    loss += 1
    groups = np.zeros((len(full), longest), np.int64)
    centres = np.zeros(len(full))
    for row, each in enumerate(places):
        logs = np.log(rows.params[each])
        centres[row] = logs.mean()
        sizes[row, : len(each)], loss[row, : len(each)] = logs - centres[row], rows.loss[each]
        weights[row, : len(each)], groups[row, : len(each)] = 1 / rows.loss[each], rows.group[each]
    return Profiles(flops[full], centres, sizes, loss, weights, groups)
