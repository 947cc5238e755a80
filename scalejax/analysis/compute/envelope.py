"""Compute-optimal sizes by the envelope of training curves, approach 1 of Hoffmann et al. (2022, arXiv:2203.15556)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator

from scalejax.analysis.compute.frontier import Frontier
from scalejax.analysis.compute.optima import Rows, Settings, frontier, read_rows, refused

__all__ = ["fit_envelope"]

Array = npt.NDArray[np.floating[Any]]
NEIGHBOURS = 3  # sizes on either side of the best one that a slice through training curves keeps
TRIED = 400  # computes tried over the whole range


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
    params, flops, losses, labels, excluded = read_rows(points, loss, curves if curves is not None else by_size)
    table = _slices(params, flops, losses, labels, slices)
    settings = Settings(bootstrap, level, seed)
    if table is None:
        status = (
            "not bracketed: at every compute the lowest loss is that of the smallest or of the largest model trained "
            "so far; add sizes, or longer curves"
        )
        return refused("envelope", excluded, level, status)
    return frontier(table, settings, approach="envelope", excluded=excluded)


def _slices(params: Array, flops: Array, loss: Array, labels: npt.NDArray[np.integer[Any]], slices: int) -> Rows | None:
    """Return profiles at up to `slices` computes at which the best size has rivals on both sides; None without any."""
    sizes, curves = [], []
    for label in range(int(labels.max()) + 1):
        here = labels == label
        if len(np.unique(params[here])) > 1:
            raise ValueError("A training curve has two numbers of parameters; label curves so that each has one.")
        at, repeats = np.unique(flops[here], return_inverse=True)
        if len(at) < 2:
            continue
        logs = np.bincount(repeats, np.log(loss[here])) / np.bincount(repeats)
        sizes.append(float(params[here][0]))
        curves.append(Akima1DInterpolator(np.log(at), logs, method="makima", extrapolate=False))
    tried = np.linspace(np.log(flops.min()), np.log(flops.max()), TRIED)
    order, losses = np.array(sizes), np.exp([curve(tried) for curve in curves])
    chosen = [(place, _neighbours(order, losses[:, place])) for place in range(TRIED)] if len(sizes) else []
    chosen = [(place, kept) for place, kept in chosen if len(kept)]
    if not chosen:
        return None
    spread = np.unique(np.linspace(0, len(chosen) - 1, min(slices, len(chosen))).round().astype(int))
    parts = [chosen[each] for each in spread]
    kept = np.concatenate([kept for _, kept in parts])
    counts = [len(kept) for _, kept in parts]
    places = np.repeat([place for place, _ in parts], counts)
    profile = np.repeat(np.arange(len(parts)), counts)
    return Rows(order[kept], np.exp(tried[places]), losses[kept, places], profile, kept)


def _neighbours(sizes: Array, losses: Array) -> npt.NDArray[np.integer[Any]]:
    """Return which curves lie within a few sizes of the best one; none if it has no rival on one side."""
    there = np.flatnonzero(np.isfinite(losses))
    if not len(there):
        return there
    known = np.unique(sizes[there])
    best = int(np.searchsorted(known, sizes[there[np.argmin(losses[there])]]))
    if not 0 < best < len(known) - 1:
        return there[:0]
    low, high = known[max(best - NEIGHBOURS, 0)], known[min(best + NEIGHBOURS, len(known) - 1)]
    return there[(sizes[there] >= low) & (sizes[there] <= high)]
