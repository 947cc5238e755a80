"""Fits of laws: the objective, the search from a cold start, and what comes with a fit."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scalejax.analysis.laws.identifiability import Ended, status
from scalejax.analysis.laws.law import Law
from scalejax.analysis.laws.laws import find_law
from scalejax.analysis.laws.likelihood import Profile, profile_of
from scalejax.analysis.laws.problem import Problem, make_problem
from scalejax.analysis.laws.search import search
from scalejax.analysis.laws.uncertainty import KINDS, Resample, Spread, draws, resampled, rescaled, spread_of
from scalejax.errors import FitError
from scalejax.text import Shown, html_table, html_text, number_of

Array = Any
DELTA = 1e-3
MOST_RESAMPLES = 1_000_000
DRAWS = 4000  # from the normal approximation, where there is no bootstrap
MOST_VALUES = 4_000_000  # predictions held at a time, 32 MB


@dataclass(frozen=True)
class Prediction:
    """Predicted losses with an interval of the law, not of a single run; all of the shape of the predictors."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Shown):
    """A fitted law.

    Attributes:
        law: the law.
        params: the parameters by name, in the caller's units; "c[small]" for the curve "small"'s own.
        objective: sum over rows of weight times Huber(delta) of log predicted - log observed loss.
        status: "ok", or what is wrong, as "kind: reason". The kinds: "too few points", "no law fits",
            "at a bound", "not identifiable".
        rows: number of rows fitted.
        excluded: reason -> number of rows left out.
        duplicates: rows that repeat another exactly; they count in the objective, and resamples keep them together.
        replicates: parameters by name, each (B,): of the resamples, or, without a bootstrap, of draws from the normal
            approximation (a sandwich covariance). Standard errors are theirs, as in the literature.
        samples: the replicates drawn together so far that intervals cover what they say (see `rescaled`); the same
            of residuals and without a bootstrap. Intervals of parameters, predictions and allocations are theirs.
        failed_resamples: resamples whose fit did not converge; they are not among the replicates.
        agreeing_starts: share of the cold starts that ended in this minimum, to a millionth of the objective.
        residuals: log predicted - log observed loss of the fitted rows, shape (rows,).
    """

    law: Law
    params: Mapping[str, float]
    objective: float
    status: str
    rows: int
    excluded: Mapping[str, int]
    duplicates: int
    replicates: Mapping[str, np.ndarray]
    samples: Mapping[str, np.ndarray]
    failed_resamples: int
    agreeing_starts: float
    residuals: np.ndarray
    _problem: Problem = field(repr=False)
    _theta: np.ndarray = field(repr=False)
    _spread: Spread = field(repr=False)
    _ceiling: float | None = field(repr=False)

    def __str__(self) -> str:
        errors, intervals = self.standard_errors, self.intervals(0.9)
        width = max(map(len, self.params))
        lines = [
            f"  {name:{width}}  {value:.5g} ± {errors[name]:.2g}  (90 %: {low:.4g} to {high:.4g})"
            for (name, value), (low, high) in zip(self.params.items(), intervals.values(), strict=True)
        ]
        return "\n".join([f"{self.law.name}: {self.law.formula}", *lines, self._ending()])

    def _repr_html_(self) -> str:
        errors, intervals = self.standard_errors, self.intervals(0.9)
        meanings = {parameter.name: parameter.meaning for parameter in self.law.parameters}
        rows = [
            (
                name, f"{value:.5g}", f"{errors[name]:.3g}", f"{intervals[name][0]:.4g} to {intervals[name][1]:.4g}",
                meanings.get(name.partition("[")[0], ""),
            )
            for name, value in self.params.items()
        ]  # fmt: skip
        headings = "parameter", "value", "standard error", "90 % interval", "meaning"
        return html_table(headings, rows, title=f"{self.law.name}: {self.law.formula}") + html_text(self._ending())

    def _ending(self) -> str:
        return f"{self.status} ({number_of(self.rows, 'row')}, objective {self.objective:.6g})"

    @property
    def ok(self) -> bool:
        """Whether the status is "ok"."""
        return self.status == "ok"

    @property
    def curves(self) -> tuple[Hashable, ...]:
        """The labels of the curves that were fitted at once; empty without `curves=`."""
        return self._problem.labels

    @property
    def standard_errors(self) -> dict[str, float]:
        """Standard deviations of the replicates by parameter; zero for a fixed one."""
        with np.errstate(over="ignore", invalid="ignore"):
            return {n: float(np.std(v, ddof=1)) if np.ptp(v) > 0 else 0.0 for n, v in self.replicates.items()}

    def intervals(self, level: float = 0.9) -> dict[str, tuple[float, float]]:
        """Return the percentile interval of each parameter over the samples.

        Raises:
            ValueError: level is not between 0 and 1.
        """
        tails = _tails(level)
        return {name: tuple(np.quantile(values, tails).tolist()) for name, values in self.samples.items()}

    def predict(
        self, predictors: Mapping[str, Array], level: float = 0.9, *, curve: Hashable | None = None
    ) -> Prediction:
        """Return the law's loss at new predictors, with its percentile interval over the samples.

        Args:
            predictors: by the names of the fit, numbers or arrays that broadcast, in the fit's units.
            level: of the interval.
            curve: which curve, where several were fitted.

        Raises:
            ValueError: wrong predictors, curve or level.
        """
        tails, names = _tails(level), self._problem.predictors
        if set(predictors) != set(names):
            raise ValueError(f"The fit's predictors are {', '.join(names)}; given: {', '.join(map(str, predictors))}.")
        columns = {}
        for name, own in zip(names, self.law.predictors, strict=True):
            columns[own] = np.asarray(predictors[name], np.float64)
            if not (np.isfinite(columns[own]) & (columns[own] > 0)).all():
                raise ValueError(f"{name} must be positive and finite to predict from.")
        shape = np.broadcast_shapes(*(column.shape for column in columns.values()))
        flat = {name: np.broadcast_to(column, shape).ravel() for name, column in columns.items()}
        value = self.law(self._of_curve(self.params, curve), flat)
        samples = {name: sample[:, None] for name, sample in self._of_curve(self.samples, curve).items()}
        # A block of points at a time, so that memory stays bounded.
        size = max(1, MOST_VALUES // max(1, len(next(iter(samples.values())))))
        ends = np.zeros((2, len(value)))
        for first in range(0, len(value), size):
            part = {name: column[None, first : first + size] for name, column in flat.items()}
            ends[:, first : first + size] = np.quantile(self.law(samples, part), tails, axis=0)
        low, high = ends
        if self._ceiling is not None:
            value, low, high = self._ceiling - value, self._ceiling - high, self._ceiling - low
        return Prediction(value.reshape(shape), low.reshape(shape), high.reshape(shape))

    def profile(self, name: str, values: Sequence[float] | None = None) -> Profile:
        """Return the lowest objective at each value of one parameter, all others fitted anew (profile likelihood).

        Args:
            name: of a parameter that is neither fixed nor a single curve's own.
            values: in the caller's units; None: 33 values around the fit.

        Raises:
            ValueError: no such parameter, or it has no single value.
        """
        return profile_of(self._problem, self._theta, self._spread, self.objective, name=name, values=values)

    def _of_curve(self, named: Mapping[str, Any], curve: Hashable | None) -> dict[str, Any]:
        """Return the law's parameters for one curve."""
        if len(self.curves) > 1 and curve not in self.curves:
            raise ValueError(f"There is no curve {curve!r}: give curve=, one of {', '.join(map(repr, self.curves))}.")
        own = {name: f"{name}[{curve}]" if self._problem.layout.own(name) else name for name in self.law.names}
        return {name: named[key] for name, key in own.items()}


def fit_law(
    law: str | Law,
    predictors: Mapping[str, Array],
    loss: Array,
    *,
    bootstrap: int = 0,
    seed: int = 0,
    resample: Resample = "rows",
    groups: Array | None = None,
    weights: Array | None = None,
    fixed: Mapping[str, float] | None = None,
    curves: Array | None = None,
    shared: Sequence[str] = (),
    delta: float = DELTA,
    starts: int | None = None,
    ceiling: float | None = None,
) -> Fit:
    """Fit a law by minimising the sum of weight x Huber(delta) of log predicted - log observed loss.

    The search is cold: starts come from the data alone, by variable projection; the best are polished by damped Newton
    steps in float64. Nothing depends on units. Rows whose loss is NaN or infinite (diverged) are left out and counted.

    Args:
        law: a name of `LAWS`, or a `Law` of your own.
        predictors: name -> shape (rows,), positive, any units; a law in one predictor takes any name.
        loss: shape (rows,), positive.
        bootstrap: number of resamples; 0 takes the normal approximation, which costs nothing.
        seed: of the resamples.
        resample: "rows", "residuals" or "groups" (see `uncertainty.resampled`).
        groups: label of each row for resample="groups": rows that stay together, such as the seeds of one cell.
        weights: of the rows; zero leaves a row out.
        fixed: known parameters in the caller's units, such as {"e_0": 0.9} for chance on ten classes.
        curves: label of each row where several curves are fitted at once.
        shared: the parameters that all curves share, such as ("c",): one exponent for several curves.
        delta: of the Huber losses; infinity gives least squares of log residuals.
        starts: how many starting points are polished; None: 32, and more for a law with breaks.
        ceiling: for a target that rises towards at most this, such as accuracy (1.0): ceiling - loss is fitted.

    Raises:
        ValueError: the caller's mistake, such as an unknown law, lengths that differ, or a negative loss.
        FitError: the law cannot be fitted to these rows at all.
    """
    law = find_law(law)
    if bootstrap < 0 or bootstrap == 1 or bootstrap > MOST_RESAMPLES:
        raise ValueError(
            f"bootstrap is {bootstrap}: give 0, or a number of resamples from 2 to {MOST_RESAMPLES}, such as 1000."
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}: it must not be negative.")
    if resample not in KINDS:
        raise ValueError(f"There is no resample {resample!r}: take one of {', '.join(map(repr, KINDS))}.")
    if resample == "groups" and groups is None:
        raise ValueError("resample='groups' needs groups=, the label of each row's group, such as its cell.")
    if groups is not None and resample != "groups":
        raise ValueError(f"groups has no meaning with resample={resample!r}: add resample='groups', or leave it out.")
    if not delta > 0:
        raise ValueError(f"delta is {delta}: it must be positive; 1e-3 is nearly absolute values, inf least squares.")
    if starts is not None and starts < 1:
        raise ValueError(f"starts is {starts}: at least one starting point is needed.")
    if ceiling is not None:
        if not np.isfinite(ceiling):
            raise ValueError(f"ceiling is {ceiling}: it must be a finite number, such as 1 for an accuracy.")
        loss = ceiling - np.asarray(loss, np.float64)
        if (loss <= 0).any():
            row = int(np.argmax(loss <= 0))
            raise ValueError(f"loss of row {row} is not below the ceiling {ceiling:g}: leave the row out, or raise it.")
    problem = make_problem(
        law, predictors, loss=loss, weights=weights, groups=groups, curves=curves, shared=shared, fixed=fixed,
        delta=delta,
    )  # fmt: skip
    found = search(problem, starts)
    spread = spread_of(problem, found.theta)
    resamples, failed = None, 0
    if bootstrap:
        ends = resampled(problem, found.theta, spread.residuals, bootstrap=bootstrap, seed=seed, resample=resample)
        resamples = ends.theta[ends.converged]
        failed = bootstrap - len(resamples)
        if len(resamples) < 2:
            raise FitError(f"Of {bootstrap} resamples {len(resamples)} could be fitted: fix parameters, or add runs.")
    thetas = draws(problem, found.theta, spread.covariance, DRAWS) if resamples is None else resamples
    crossings = resamples is not None and resample != "residuals"
    return Fit(
        law=law,
        params={name: float(value[0]) for name, value in _named(problem, found.theta[None]).items()},
        objective=found.objective,
        status=status(Ended(problem, found, spread, resamples)),
        rows=problem.count,
        excluded=problem.excluded,
        duplicates=problem.duplicates,
        replicates=_named(problem, thetas),
        samples=_named(problem, rescaled(problem, found.theta, spread, thetas) if crossings else thetas),
        failed_resamples=failed,
        agreeing_starts=found.agreeing,
        residuals=spread.residuals,
        _problem=problem,
        _theta=found.theta,
        _spread=spread,
        _ceiling=ceiling,
    )


def _named(problem: Problem, thetas: np.ndarray) -> dict[str, np.ndarray]:
    """Return the parameters of coordinates (B, size) by name, each (B,); a curve's own as name[label]."""
    result = {}
    values = problem.public(thetas)
    for name in problem.layout.law.names:
        if values[name].ndim == 1:
            result[name] = values[name]
        else:
            result |= {f"{name}[{label}]": values[name][:, i] for i, label in enumerate(problem.labels)}
    return result


def _tails(level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must be between 0 and 1, such as 0.9.")
    return (1 - level) / 2, (1 + level) / 2
