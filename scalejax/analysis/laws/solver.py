"""The minimiser of one fit: damped Newton on the sum of Huber losses of log residuals, within bounds. Unbatched.

Huber losses with a small delta are nearly absolute values: few rows have curvature, and which ones changes from step
to step. A plain Newton step therefore jumps, while iteratively reweighted least squares (IRLS) descends surely but
slowly. The damping joins the two: the step solves (H + damping M) step = -gradient, where H is the exact Hessian and M
the Hessian of the IRLS majoriser; where H + damping M is not positive, M takes the place of H. M knows the scale of
every direction, so no coordinate needs scaling, and the path does not depend on units. Fits of `chinchilla` that start
near an optimum end after about seven evaluations, those of the original paper's grid of cold starts after about fifty.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scalejax.analysis.laws.layout import Layout

Array = Any
MOST_STEPS = 400
ROUNDNESS = 1e-4  # of the majoriser's largest pivot, added to all: far away, no coordinate runs off while damped
LONGEST_STEP = 3.0  # in any coordinate: logarithms and exponents of centred data are of order one
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 0.1, 1e-9, 1e9
TOLERANCE = 1e-9  # of the objective, for the decrease that a Newton step still promises
STALLED = 1e-7  # of the objective: what is promised when rounding allows no further decrease and the fit still counts
NOISE_FREE = 1e-26  # mean squared log residual that float64 cannot tell from zero


class Rows(NamedTuple):
    """What all lanes share. Predictors are centred logarithms."""

    log_x: Array  # (predictors, n)
    curve: Array  # (n,) int: which curve a row belongs to
    centres: Array  # (units + 1,) log centre of each unit, the loss's last
    delta: Array  # () of the Huber loss


class Lane(NamedTuple):
    """One fit: a starting point, bounds, fixed parameters, and the weighted losses that it fits."""

    theta: Array  # (p,) starting coordinates
    low: Array  # (p,)
    high: Array  # (p,)
    fixed: Array  # (fixed,) values in the caller's units
    weights: Array  # (n,)
    log_loss: Array  # (n,) centred
    limit: Array  # () int: most evaluations


class Solution(NamedTuple):
    """Where a fit ended."""

    theta: Array  # (p,)
    objective: Array  # ()
    steps: Array  # () int: evaluations
    converged: Array  # () bool


class _Local(NamedTuple):
    """Objective and derivatives at a point."""

    objective: Array
    gradient: Array
    hessian: Array
    majoriser: Array


class State(NamedTuple):
    """A fit that is running."""

    theta: Array  # (p,)
    local: _Local
    damping: Array
    promised: Array  # gain of an undamped step, as of the last one
    done: Array  # () bool
    steps: Array  # () int: evaluations


def log_residuals(layout: Layout, theta: Array, rows: Rows, fixed: Array, log_loss: Array) -> Array:
    """Return log predicted - log observed loss, shape (n,)."""
    return layout.log_value(theta, rows.log_x, rows.curve, rows.centres, fixed) - log_loss


def huber(residuals: Array, delta: Array) -> Array:
    """Return r^2 / 2 within delta and delta (|r| - delta / 2) beyond, elementwise."""
    size = jnp.abs(residuals)
    return jnp.where(size <= delta, 0.5 * residuals**2, delta * (size - 0.5 * delta))


def _local(layout: Layout, theta: Array, rows: Rows, lane: Lane) -> _Local:
    def model(theta: Array) -> Array:
        return log_residuals(layout, theta, rows, lane.fixed, lane.log_loss)

    residuals = model(theta)
    size = jnp.abs(residuals)
    jacobian = jax.jacfwd(model)(theta)
    pull = lane.weights * jnp.clip(residuals, -rows.delta, rows.delta)
    inner = lane.weights * (size <= rows.delta)
    reweighted = lane.weights * jnp.minimum(1.0, rows.delta / jnp.maximum(size, 1e-300))
    bend = jax.jacfwd(jax.grad(lambda theta: jnp.sum(pull * model(theta))))(theta)
    return _Local(
        jnp.sum(lane.weights * huber(residuals, rows.delta)),
        jacobian.T @ pull,
        (jacobian * inner[:, None]).T @ jacobian + bend,
        (jacobian * reweighted[:, None]).T @ jacobian,
    )


def _newton_step(state: State, lane: Lane) -> Array:
    """Return the damped step; coordinates held by a bound stay. Not finite where the damped Hessian is not positive."""
    local = state.local
    held = (lane.low >= lane.high) | ((state.theta <= lane.low) & (local.gradient > 0))
    held = held | ((state.theta >= lane.high) & (local.gradient < 0))
    natural = ROUNDNESS * jnp.max(jnp.diag(local.majoriser))
    majoriser = local.majoriser + natural * jnp.eye(len(held))
    free = ~held

    def solve(matrix: Array) -> Array:
        # A direction that changes no prediction gets the smallest pivot that Cholesky can divide by, and no step.
        diagonal = jnp.where(held, 1.0, jnp.diag(matrix) + 1e-13 * jnp.diag(local.majoriser) + 1e-200)
        matrix = jnp.where(free[:, None] & free[None, :], matrix, 0.0)
        matrix = matrix - jnp.diag(jnp.diag(matrix)) + jnp.diag(diagonal)
        factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
        return -jax.scipy.linalg.cho_solve(factor, jnp.where(held, 0.0, local.gradient))

    newton = solve(local.hessian + state.damping * majoriser)
    return jnp.where(jnp.all(jnp.isfinite(newton)), newton, solve(local.majoriser + state.damping * majoriser))


def begin(lane: Lane) -> State:
    """Return the state of a fit that has not been evaluated yet: its objective is infinite, so the start is taken."""
    size = len(lane.theta)
    blank = jnp.zeros((size, size))
    return State(
        jnp.clip(lane.theta, lane.low, lane.high),
        _Local(jnp.array(jnp.inf), jnp.zeros(size), blank, blank),
        jnp.array(FIRST_DAMPING),
        jnp.array(jnp.inf),
        jnp.array(False),
        jnp.zeros((), jnp.int32),
    )


def advance(layout: Layout, rows: Rows, state: State, lane: Lane) -> State:
    """Return the state after one evaluation."""
    local, damping = state.local, state.damping
    fresh = state.steps == 0
    whole = jnp.where(fresh, 0.0, _newton_step(state, lane))
    step = whole * jnp.minimum(1.0, LONGEST_STEP / jnp.maximum(jnp.max(jnp.abs(whole)), 1e-300))
    solved = jnp.all(jnp.isfinite(step))
    theta = jnp.clip(state.theta + jnp.where(solved, step, 0.0), lane.low, lane.high)
    moved = theta - state.theta
    expected = -(local.gradient @ moved + 0.5 * moved @ (local.hessian @ moved))
    there = _local(layout, theta, rows, lane)
    finite = jnp.all(jnp.isfinite(there.gradient)) & jnp.all(jnp.isfinite(there.hessian))
    better = solved & finite & (there.objective < local.objective)
    ratio = (local.objective - there.objective) / jnp.maximum(expected, 1e-300)
    eased = damping * jnp.where(ratio > 0.8, 0.1, jnp.where(ratio > 0.5, 0.4, jnp.where(ratio > 0.1, 1.0, 3.0)))
    damping = jnp.where(better, eased, 5 * jnp.maximum(damping, 1e-3))
    # What a step with little damping would gain; a strongly damped step gains little anywhere, and proves nothing.
    gain = jnp.where(solved & ~fresh, -(local.gradient @ whole) * (1 + state.damping), jnp.inf)
    least = TOLERANCE * local.objective + NOISE_FREE * jnp.sum(lane.weights)
    ended = jnp.where(fresh, ~better, (gain <= least) | (damping > MOST_DAMPING))
    return State(
        jnp.where(better, theta, state.theta),
        jax.tree.map(lambda new, old: jnp.where(better, new, old), there, local),
        jnp.where(fresh, FIRST_DAMPING, jnp.maximum(damping, LEAST_DAMPING)),
        jnp.where(solved, gain, state.promised),
        ended | (state.steps + 1 >= lane.limit),
        state.steps + 1,
    )


def solution(state: State, lane: Lane) -> Solution:
    """Return where a fit is."""
    objective = state.local.objective
    small = state.promised <= STALLED * objective + NOISE_FREE * jnp.sum(lane.weights)
    return Solution(state.theta, objective, state.steps, small & jnp.isfinite(objective))
