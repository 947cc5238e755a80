"""From runs to a frontier: isoFLOP profiles, and the envelope of training curves.

They are approaches 2 and 1 of Hoffmann et al. (2022, arXiv:2203.15556). Both end in profiles, loss against parameters
at one compute, whose minima `frontier.py` finds.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator

from scalejax.analysis.compute.frontier import FLOPS_PER_PARAMETER_TOKEN, Frontier, Rows, frontier, refused
from scalejax.text import number_of

Array = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
NEAREST = 2  # sizes on either side of the best one that a profile always keeps
NEIGHBOURS = 3  # sizes on either side of the best one that a slice through training curves keeps
TRIED = 400  # computes tried over the whole range


def fit_isoflop(
    points: Mapping[str, npt.ArrayLike],
    loss: npt.ArrayLike,
    *,
    groups: Sequence[Any] | None = None,
    window: float = 8.0,
    tolerance: float = 0.05,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Frontier:
    """Fit the compute-optimal frontier through the minima of isoFLOP profiles (approach 2).

    No parabola: see `profiles`. A profile may be off-centre and asymmetric. If its loss does not clearly rise on both
    sides of the fitted minimum it is refused: its optimum is NaN, `statuses` says why, and the frontier does without.

    Args:
        points: "params" and one of "flops" or "tokens", each [rows]; flops = 6 params tokens.
        loss: final loss [rows], positive; rows that are not finite are excluded and counted.
        groups: labels [rows]; rows of a group (seeds of one cell) share their noise. None: every row its own.
        window: rows whose params are more than this factor from their profile's lowest loss are left out, except the
            two nearest sizes on either side: runs that are hardly trained leave the law and would bend the fit.
        tolerance: relative gap in FLOPs that separates two profiles.
        bootstrap: wild-bootstrap resamples for the intervals; 0: none.
        level: probability of the intervals.
        seed: of the resamples.

    Returns:
        Frontier; pass it to `compute_optimal` for other computes. Its status is "ok" or a sentence.

    Raises:
        ValueError: lengths that differ, values that are not positive, no finite loss, or rows not on profiles.
    """
    if not window > 1 or not 0 < tolerance < 1:
        raise ValueError(f"window must exceed 1 and tolerance lie between 0 and 1; they are {window} and {tolerance}.")
    params, flops, losses, labels, excluded = _read_rows(points, loss, groups)
    # Rows of a profile have nearly the same compute.
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    number = np.concatenate([[0], np.cumsum(np.diff(logs) > math.log1p(tolerance))])
    profile = np.empty(len(flops), np.int64)
    profile[order] = number
    kept = np.zeros(len(params), bool)
    for one in range(int(number[-1]) + 1):
        here = logs[number == one]
        if here[-1] - here[0] > 2 * math.log1p(tolerance):
            raise ValueError(
                f"The rows are not isoFLOP profiles: from {math.exp(here[0]):.3g} to {math.exp(here[-1]):.3g} FLOPs "
                f"there is no gap of {100 * tolerance:.3g} %; lower tolerance, or fit a law to the rows instead."
            )
        rows = np.flatnonzero(profile == one)
        best, sizes = params[rows][np.argmin(losses[rows])], np.unique(params[rows])
        low, high = _around(sizes, int(np.searchsorted(sizes, best)), NEAREST)
        near = np.abs(np.log(params[rows] / best)) <= math.log(window) + 1e-9
        kept[rows] = near | ((params[rows] >= low) & (params[rows] <= high))
    table = Rows(params[kept], flops[kept], losses[kept], profile[kept], labels[kept])
    return frontier(table, approach="isoflop", excluded=excluded, bootstrap=bootstrap, level=level, seed=seed)


def fit_envelope(
    points: Mapping[str, npt.ArrayLike],
    loss: npt.ArrayLike,
    *,
    curves: Sequence[Any] | None = None,
    slices: int = 40,
    bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
) -> Frontier:
    """Fit the compute-optimal frontier under training curves of several sizes (approach 1).

    The envelope is the lowest loss at each compute over all curves. Read off as it is, it jumps from size to size, and
    at both ends the smallest and largest models win for want of a rival. So it is read only where the best size has
    rivals on both sides, and between sizes: at each of a number of computes the interpolated losses of the best size
    and its neighbours make a profile, the minimum of which is found as in `fit_isoflop`. Losses along a curve are those
    of a run that would end there only if the learning rate is constant or was cooled down; a longer cosine schedule
    makes small budgets look worse than they are.

    Args:
        points: "params" and one of "flops" or "tokens" [rows], along training.
        loss: [rows], positive; rows that are not finite are excluded and counted.
        curves: labels of training curves [rows], each of one size. None: one curve a size, repeats averaged.
        slices: largest number of computes.
        bootstrap: wild-bootstrap resamples, whole curves at a time; 0: no intervals.
        level: probability of the intervals.
        seed: of the resamples.

    Returns:
        Frontier, one entry a slice.

    Raises:
        ValueError: as `fit_isoflop`; a curve with two sizes.
    """
    if slices < 2:
        raise ValueError(f"slices must be at least 2; it is {slices}.")
    by_size = np.atleast_1d(np.asarray(points.get("params", ()), np.float64))
    params, flops, losses, labels, excluded = _read_rows(points, loss, curves if curves is not None else by_size)
    sizes, interpolated = [], []
    for label in range(int(labels.max()) + 1):
        here = labels == label
        if len(np.unique(params[here])) > 1:
            raise ValueError("A training curve has two numbers of parameters; label curves so that each has one.")
        at, repeats = np.unique(flops[here], return_inverse=True)
        if len(at) < 2:
            continue
        logs = np.bincount(repeats, np.log(losses[here])) / np.bincount(repeats)
        sizes.append(float(params[here][0]))
        interpolated.append(Akima1DInterpolator(np.log(at), logs, method="makima", extrapolate=False))
    tried = np.linspace(np.log(flops.min()), np.log(flops.max()), TRIED)
    order, at_tried = np.array(sizes), np.exp([curve(tried) for curve in interpolated]).reshape(-1, TRIED)
    found = [(place, _rivals(order, at_tried[:, place])) for place in range(TRIED)]
    found = [(place, curves) for place, curves in found if len(curves)]
    if not found:
        status = (
            "not bracketed: at every compute the lowest loss is that of the smallest or of the largest model trained "
            "so far; add sizes, or longer curves"
        )
        return refused("envelope", excluded, level, status)
    spread = np.unique(np.linspace(0, len(found) - 1, min(slices, len(found))).round().astype(int))
    found = [found[place] for place in spread]
    kept, counts = np.concatenate([curves for _, curves in found]), [len(curves) for _, curves in found]
    places, profile = np.repeat([place for place, _ in found], counts), np.repeat(np.arange(len(found)), counts)
    table = Rows(order[kept], np.exp(tried[places]), at_tried[kept, places], profile, kept)
    return frontier(table, approach="envelope", excluded=excluded, bootstrap=bootstrap, level=level, seed=seed)


def _rivals(sizes: Array, losses: Array) -> Numbers:
    """Return which curves lie within a few sizes of the best one; none if it has no rival on one side."""
    there = np.flatnonzero(np.isfinite(losses))
    if not len(there):
        return there
    distinct = np.unique(sizes[there])
    best = int(np.searchsorted(distinct, sizes[there[np.argmin(losses[there])]]))
    if not 0 < best < len(distinct) - 1:
        return there[:0]
    low, high = _around(distinct, best, NEIGHBOURS)
    return there[(sizes[there] >= low) & (sizes[there] <= high)]


def _around(sizes: Array, place: int, steps: int) -> tuple[float, float]:
    """Return the sizes that many steps below and above a place of the ascending sizes, as far as there are any."""
    return sizes[max(place - steps, 0)], sizes[min(place + steps, len(sizes) - 1)]


def _read_rows(
    points: Mapping[str, npt.ArrayLike], loss: npt.ArrayLike, labels: Sequence[Any] | Array | None
) -> tuple[Array, Array, Array, Numbers, int]:
    """Return params, flops, loss and label numbers of the rows with a finite loss, and how many had none."""
    if set(points) not in ({"params", "flops"}, {"params", "tokens"}):
        has = ", ".join(points) or "nothing"
        raise ValueError(f"points must have params and one of flops or tokens; it has {has}.")
    columns = {name: np.asarray(column, np.float64) for name, column in points.items()}
    for name, column in columns.items():
        if not (np.isfinite(column) & (column > 0)).all():
            raise ValueError(f"Every value of {name} must be positive and finite.")
    losses = np.asarray(loss, np.float64)
    shapes = {name: column.shape for name, column in (columns | {"loss": losses}).items()}
    if losses.ndim != 1 or len(set(shapes.values())) > 1:
        raise ValueError(f"Columns must have one length; the shapes are {shapes}.")
    if labels is not None and len(labels) != len(losses):
        found = f"{number_of(len(labels), 'label')} for {number_of(len(losses), 'row')}"
        raise ValueError(f"Found {found}: give one a row.")
    finite = np.isfinite(losses)
    if not finite.any():
        raise ValueError("No row has a finite loss; every run diverged or none is finished.")
    if (losses[finite] <= 0).any():
        raise ValueError("Every loss must be positive: the laws are fitted to logarithms.")
    params = columns["params"]
    flops = columns["flops"] if "flops" in columns else FLOPS_PER_PARAMETER_TOKEN * params * columns["tokens"]
    numbers = np.arange(len(losses)) if labels is None else np.unique(np.asarray(labels), return_inverse=True)[1]
    return params[finite], flops[finite], losses[finite], numbers[finite], int((~finite).sum())
