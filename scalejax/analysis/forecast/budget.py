"""What a target takes, and how a budget is best shared between parameters and data."""

import math

import numpy as np
import numpy.typing as npt

from scalejax.analysis.forecast.anchor import GRID, Anchor
from scalejax.analysis.forecast.observed import Observed
from scalejax.analysis.forecast.statement import Statement
from scalejax.text import exact, quantity, short, short_count

Floats = npt.NDArray[np.float64]

FARTHEST = 1e4  # times what was measured: no target is looked for beyond


def target_statements(target: float, anchor: Anchor, observed: Observed) -> list[Statement]:
    """Say what a target takes of data alone, of parameters alone, and of compute spent on both at best."""
    means = observed.rows.groupby(["model", "data"], sort=False)["loss"].mean()
    here = float(observed.own.query("params == @anchor.params and data == @anchor.data")["loss"].mean())
    statements = []
    if means.min() <= target:
        model, data = means.idxmin()
        on = f"{model} on {data:,.0f} {observed.data} has {short(means.min(), 3)}"
        statements.append(
            Statement("target", f"{observed.noun} {exact(target)} is reached already: {on}.", means.min())
        )
    if here <= target:
        return statements
    needed, remains = needed_for(target, anchor)
    labels = {"data": observed.data, "parameters": "parameters", "FLOPs": "FLOPs"}
    for name, amounts in needed.items():
        label = f"target by {labels[name]}"
        statements.append(_reached(label, amounts, remains[name], labels[name], target, observed, anchor))
    return statements


def needed_for(target: float, anchor: Anchor) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return what each draw needs to reach a target, and the loss that remains with the most that is looked at.

    Both by "data", "parameters" and "FLOPs", (DRAWS,) each.

    All are read from the same draws on a grid of parameters and data, so that FLOPs are at most those by data or
    parameters alone. Draws that do not reach it on the grid need infinitely much.
    """
    grid = np.geomspace(1, FARTHEST, GRID // 2 + 1)
    params, data = np.meshgrid(grid if anchor.sizes else [1.0], grid, indexing="ij")
    losses = anchor.draws(params.ravel(), data.ravel()).reshape(-1, *params.shape)
    logs = np.log(np.maximum(losses + anchor.offset, 1e-300))
    goal = math.log(target + anchor.offset)
    of_data = FARTHEST ** _first(logs, goal)  # times the data, of each size
    needed, remains = {"data": anchor.data * of_data[:, 0]}, {"data": losses[:, 0, -1]}
    if anchor.sizes:
        of_params = FARTHEST ** _first(logs.swapaxes(1, 2), goal)  # times the parameters, with each amount of data
        needed["parameters"], remains["parameters"] = anchor.params * of_params[:, 0], losses[:, -1, 0]
        if _both_cost(anchor):
            # Where the lines of the grid in both directions cross the target: the cheapest place is between two of
            # those, or at one, and near it the cost hardly changes.
            costs = np.concatenate([anchor.cost(grid, of_data), anchor.cost(of_params, grid)], axis=1)
            needed["FLOPs"], remains["FLOPs"] = costs.min(axis=1), losses[:, -1, -1]
    return needed, remains


def _first(logs: Floats, goal: float) -> Floats:
    """Return where log losses along lines (..., points) first fall to a goal, (...), from 0, the first point, to 1.

    Between two points the log loss is taken as straight. Infinite where none falls to it.
    """
    reached = logs <= goal
    after = reached.argmax(axis=-1)[..., None]
    before = np.maximum(after - 1, 0)
    high, low = (np.take_along_axis(logs, place, axis=-1)[..., 0] for place in (before, after))
    share = np.clip((high - goal) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return np.where(reached.any(axis=-1), (before[..., 0] + share) / (logs.shape[-1] - 1), np.inf)


def _reached(
    label: str, needed: Floats, remains: Floats, noun: str, target: float, observed: Observed, anchor: Anchor
) -> Statement:
    """Say how much of something a target takes, given what each draw needs, (DRAWS,)."""
    chance = float(np.isfinite(needed).mean())
    asked = f"{observed.noun} {exact(target)}"
    if chance < 0.5:
        middle, low, high = anchor.interval(remains).tolist()
        fewer, most = {
            "FLOPs": ("More compute probably does not", "both"),
            "parameters": ("Parameters alone probably do not", "the parameters"),
        }.get(noun, (f"{noun.capitalize()} alone probably do not", f"the {noun}"))
        sentence = (
            f"{fewer} reach {asked} (probability of reaching it {chance:.2f}); with {FARTHEST:,.0f} times {most} the "
            f"{observed.noun} would still be {short(middle)} ({short(low)} to {short(high)})."
        )
        return Statement(label, sentence, facts={"probability": chance, "remains": [low, middle, high]})
    at, low, high = np.quantile(needed, (0.5, (1 - anchor.level) / 2, (1 + anchor.level) / 2), method="lower").tolist()

    def amount(number: float) -> str:
        return quantity(number, "FLOP") if noun == "FLOPs" else short_count(number)

    upper = amount(high) if math.isfinite(high) else "more than can be forecast"
    called = "" if noun == "FLOPs" else f" {noun}"
    interval = f"{100 * anchor.level:.0f} % interval {amount(low)} to {upper}"
    short_of = (
        f"; the data set has {observed.most_data:,.0f}"
        if label.endswith(observed.data) and at > observed.most_data
        else ""
    )
    sentence = f"To reach {asked} takes {amount(at)}{called} ({interval}){short_of}."
    return Statement(label, sentence, at, low, high, {"probability": chance})


def _both_cost(anchor: Anchor) -> bool:
    """Whether parameters and data both cost compute, so that there is something to share; fixed steps see no more."""
    return anchor.sizes and min(anchor.powers) > 0.1


def allocation(compute: float, anchor: Anchor, observed: Observed) -> list[Statement]:
    """Say how a budget of so many times the anchor's FLOPs is best shared between parameters and data."""
    if not _both_cost(anchor):
        why = "more data costs no more compute here, where the number of steps is fixed: there is no budget to share"
        return [Statement("compute-optimal", f"{why[0].upper()}{why[1:]}.")] if anchor.sizes else []
    a, b = anchor.powers
    shares = np.linspace(-0.5, 1.5, 4 * GRID + 1)
    params, data = compute ** (shares / a), compute ** ((1 - shares) / b)
    draws = anchor.draws(params, data)
    # Of shares that all reach zero the one in the middle.
    best = (draws + 1e-9 * draws.max() * np.abs(shares - 0.5)).argmin(axis=1)
    sizes, amounts = anchor.params * params[best], anchor.data * data[best]
    (n, n_low, n_high), (d, d_low, d_high) = anchor.interval(sizes), anchor.interval(amounts)
    middle = int(np.median(best))
    value, low, high = anchor.forecast(params[middle : middle + 1], data[middle : middle + 1])[:, 0].tolist()
    sentence = (
        f"With {compute:g} times the FLOPs of the run with the most compute, best is a model of {short_count(n)} "
        f"parameters ({short_count(n_low)} to {short_count(n_high)}) on {short_count(d)} {observed.data} "
        f"({short_count(d_low)} to {short_count(d_high)}): {observed.noun} {short(value)} ({short(low)} to "
        f"{short(high)}){'' if d <= observed.most_data else f'; the data set has {observed.most_data:,.0f}'}."
    )
    facts = {
        "flops": compute * anchor.flops, "params": [n_low, n, n_high], "data": [d_low, d, d_high]
    }  # fmt: skip
    return [Statement("compute-optimal", sentence, value, low, high, facts)]
