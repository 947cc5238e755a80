"""Successive halving of competing learning rates, as pure functions of numbers.

Bad learning rates show early. All competing rates start; at a rung, a share of the steps, only the best continue: with
reduction 2 the better half (Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter
optimization", arXiv:1502.07943). A rate is judged over all its seeds, which continue or stop together.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction


def survivors(count: int, reduction: int) -> int:
    """Return how many of `count` learning rates continue beyond a rung: one in `reduction`, rounded up."""
    return -(-count // reduction)


def rung_steps(shares: Sequence[float], steps: int, *, evaluate_every: int) -> tuple[int, ...]:
    """Return the steps at which a trial waits for its competitors, ascending.

    Each share of the steps is rounded up to an evaluation; what falls together, or on the horizon, is left out.

    Args:
        shares: in (0, 1), ascending.
        steps: of the trial.
        evaluate_every: steps between evaluations.
    """
    # A share counts as it is written: 0.07 of 100 steps are 7, though in binary they are a little more.
    exact = (Fraction(repr(share)) * steps / evaluate_every for share in shares)
    ends = (math.ceil(evaluations) * evaluate_every for evaluations in exact)
    return tuple(dict.fromkeys(step for step in ends if step < steps))


def expected_stops(count: int, rungs: Sequence[int], *, reduction: int) -> list[int | None]:
    """Return the rung at which a plan counts each of `count` learning rates as stopped, None for one that continues.

    How many stop at a rung is known beforehand, which ones is not: the first of the sweep file stand for the best.
    """
    stops: list[int | None] = []
    left = count
    for rung in rungs:
        best = survivors(left, reduction)
        stops[:0] = [rung] * (left - best)
        left = best
    return [None] * left + stops


def steps_left(count: int, rungs: Sequence[int], steps: int, *, step: int, reduction: int) -> float:
    """Return the steps that a trial has yet to take, on average over `count` learning rates of which some will stop.

    Args:
        count: rates that still compete.
        rungs: that are still to come, ascending.
        steps: of a trial that continues to its end.
        step: that they have reached.
        reduction: at least 2.
    """
    total, left = 0.0, count
    for rung in rungs:
        total += left * max(0, rung - step)
        step, left = max(step, rung), survivors(left, reduction)
    return (total + left * (steps - step)) / count


def verdict(losses: Mapping[float, Sequence[float]], reduction: int) -> tuple[float, ...]:
    """Return the learning rates that continue beyond a rung, the best first.

    Rates are ranked by the mean over seeds of the lowest validation loss so far. One that has lost seeds comes after
    all that have not, the fewer lost the better, as where a tuned rate is chosen; ties go to the smaller rate.

    Args:
        losses: by learning rate, the lowest validation loss so far of each seed; NaN or infinite if it diverged or
            failed.
        reduction: at least 2.
    """

    def rank(rate: float) -> tuple[int, float, float]:
        kept = [loss for loss in losses[rate] if math.isfinite(loss)]
        # fsum: the mean must not depend on the order in which the seeds arrived.
        return len(losses[rate]) - len(kept), math.fsum(kept) / len(kept) if kept else math.inf, rate

    return tuple(sorted(losses, key=rank)[: survivors(len(losses), reduction)])
