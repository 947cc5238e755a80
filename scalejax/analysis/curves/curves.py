"""Learning curves from the table of trials: error against data, and what the curves say.

Rows in, tables and sentences out; everything is a pure function of a pandas DataFrame.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtr, stdtrit

from scalejax.analysis.curves.tuning import Cell, cells_of, known, listing, pool_notes, require, short, tuned
from scalejax.analysis.forecast.tenfold import LEVEL, Forecast, forecast_fall, in_window
from scalejax.text import number_of as _count

__all__ = ["learning_curves", "notes", "order_at_smallest", "trends", "tuned"]

CURVE_COLUMNS = (
    *("model", "family", "params", "train_examples", "fraction", "value", "low", "high", "standard_error", "seeds"),
    *("diverged", "pending", "stopped", "excluded_elsewhere", "learning_rate", "learning_rates", "edge", "band"),
    "metric",
)
TREND_COLUMNS = (
    *("model", "params", "exponent", "standard_error", "points", "verdict", "at", "value", "sentence"),
    *("fall", "fall_low", "fall_high"),
)

# With fewer seeds than this the range of the seeds is shown, which hides nothing; the range grows with every further
# seed, so from here on the 95 % interval of the mean is the fairer band.
SEEDS_FOR_INTERVAL = 5
BAND_RANGE = "smallest to largest seed"
BAND_INTERVAL = "95 % interval of the mean over seeds"

# Ten times the data is a large price. A curve that returns less than a twentieth of its error for it has flattened;
# the smallest exponents reported for whole curves (language-model loss, c = 0.05 to 0.1) are a fall of 10 to 20 %.
FLAT_FALL = 0.05
SURE = 0.80  # probability that a verdict asks for
FEWEST_POINTS = 3  # two lie on every law: a forecast from them would be the prior's
CONFIDENCE = 0.95
# A last point that lies above an earlier one by so many standard errors, and by this share, is no part of a law that
# falls or flattens: its training has not settled, or its learning rates do not reach.
RISEN_ERRORS, RISEN_SHARE = 3.0, 0.05
DECADE = 10.0
VERBS = {"flattened": "has flattened", "still falling": "still falls", "unclear": "is unclear"}


def learning_curves(rows: pd.DataFrame, metric: str = "test_error") -> pd.DataFrame:
    """Return error against number of training examples, one row per (model, train_examples), tuned cell by cell.

    The band `low`, `high` follows one convention for the whole table, named in the column `band`: the range of the
    seeds while no point has 5 seeds, otherwise the 95 % interval of the mean (Student's t; a point with one seed has a
    band of no height). `low` of an interval may be below zero.

    Args:
        rows: the trial table, as for `tuned`.
        metric: the column to show; a row counts if it and validation_loss are finite and its status is "done".

    Returns:
        Columns: model (str: the family and its knobs that vary within the family), family, params, train_examples,
        fraction (of the pool; NaN if the table does not say), value (arithmetic mean over seeds; NaN if no row counts),
        low, high, standard_error (of the mean; NaN for one seed), seeds (count used), diverged, pending, stopped,
        excluded_elsewhere (counts, see `tuned`), learning_rate, learning_rates, edge, band, metric. Ordered by params,
        smallest first, then by train_examples.

    Raises:
        ValueError: as `tuned`.
    """
    cells = cells_of(rows, metric)
    measured = rows[metric].to_numpy(dtype=float)
    fractions = rows["fraction"].to_numpy(dtype=float) if "fraction" in rows.columns else np.full(len(rows), math.nan)
    # Most seeds are done at every point or at none; one convention for the whole figure, that of its best point.
    band = BAND_INTERVAL if max(len(cell.places) for cell in cells) >= SEEDS_FOR_INTERVAL else BAND_RANGE
    records = [
        cell.record
        | {
            "model": label,
            "band": band,
            "metric": metric,
            "fraction": max(fractions[list(cell.places)], default=math.nan),
        }
        | _statistics(measured[list(cell.places)], band)
        | cell.choice
        for cell, label in zip(cells, model_labels(cells), strict=True)
    ]
    first_seen = {label: place for place, label in enumerate(dict.fromkeys(record["model"] for record in records))}
    records.sort(key=lambda record: (_or_last(record["params"]), first_seen[record["model"]], record["train_examples"]))
    return pd.DataFrame(records, columns=list(CURVE_COLUMNS))


def trends(curves: pd.DataFrame) -> pd.DataFrame:
    """Return what each model's curve does at its largest training sets, in numbers and in words.

    What ten times the data would bring is a forecast: laws with and without a floor, averaged over (`tenfold.py`), see
    the last 2.5 decades of sizes (at least the last 4 points). The verdict is "flattened" or "still falling" if the
    fall lies below or above 5 % with a probability of at least 0.8, else "unclear". An error that is no lower than at
    half the examples is never "still falling", whatever a law says, and two points are always "unclear". Without
    repeated seeds the spread is learned from the misfit alone, and the sentence says that it is unknown.

    The local exponent c of error ~ n^-c is the negative slope of an unweighted least-squares line through the
    logarithms over the last decade of sizes (at least the last two). Its standard error takes the points as
    independent: one relative spread per seed pooled over them, or the misfit of the line where that is larger.

    Args:
        curves: as returned by `learning_curves`.

    Returns:
        One row a model, in the order of `curves`: model, params, exponent and standard_error (NaN if unknown), points
        (used for the exponent), verdict, at (largest number of examples with a value), value (there), sentence; and the
        share of the error there that ten times the data would take away: fall (median), fall_low and fall_high (90 %
        interval), NaN where nothing can be forecast.

    Raises:
        ValueError: the table has no rows or lacks a column.
    """
    require(curves, ["model", "params", "train_examples", "value", "standard_error", "seeds"])
    noun = _noun(curves)
    blank = dict.fromkeys(("exponent", "standard_error", "at", "value", "fall", "fall_low", "fall_high"), math.nan)
    records = []
    for model, points in _by_model(curves).items():
        records.append(blank | {"model": model, "params": points[0]["params"]} | _trend(model, points, noun))
    return pd.DataFrame(records, columns=list(TREND_COLUMNS))


def order_at_smallest(curves: pd.DataFrame) -> str:
    """Say in one sentence whether the models can be told apart at the smallest training set.

    Each model is compared with the best one by Welch's t-test on the means over seeds, at 5 % over all comparisons
    (Bonferroni): the range of a few seeds is no interval, and the best of several models is best partly by luck.

    Args:
        curves: as returned by `learning_curves`.

    Raises:
        ValueError: the table has no rows, lacks a column or holds no value.
    """
    require(curves, ["model", "train_examples", "value", "standard_error", "seeds"])
    measured = [point for point in curves.to_dict("records") if math.isfinite(point["value"])]
    if not measured:
        raise ValueError("The curves hold no value: every trial is unfinished or diverged; finish the sweep first.")
    smallest = min(point["train_examples"] for point in measured)
    there = sorted(
        (point for point in measured if point["train_examples"] == smallest), key=lambda point: point["value"]
    )
    best, others = there[0], there[1:]
    where, noun = f"At {_count(smallest, 'example')}", _noun(curves)
    if not others:
        return f"{where} there is one model only, {best['model']} ({noun} {short(best['value'])}): nothing to compare."
    lowest = f"{best['model']} has the lowest {noun} ({short(best['value'])})"
    if min(point["seeds"] for point in there) < 2:
        return f"{where} the order is unclear: {lowest}, but with a single seed the spread is unknown."
    level = (1 - CONFIDENCE) / len(others)
    rivals = [point["model"] for point in others if _difference_p(best, point) >= level]
    if len(rivals) == len(others):
        them = "the two models" if len(there) == 2 else f"the {len(there)} models"
        many = _count(min(point["seeds"] for point in there), "seed")
        return f"{where} {them} cannot be told apart by {many}: {lowest}, but no difference is significant."
    if rivals:
        return f"{where} the order is partly clear: {lowest}, but {listing(rivals)} cannot be told from it."
    return f"{where} the best is clear: {lowest}, and every other model is worse beyond the spread of the seeds."


def _difference_p(one: dict[Hashable, Any], other: dict[Hashable, Any]) -> float:
    """Return the two-sided p of Welch's t-test (1947) that two points have the same mean."""
    parts = [(point["standard_error"] ** 2, point["seeds"] - 1) for point in (one, other)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return float(one["value"] == other["value"])
    freedom = variance**2 / sum(part**2 / seeds for part, seeds in parts)
    return 2 * float(stdtr(freedom, -abs(one["value"] - other["value"]) / math.sqrt(variance)))


def notes(curves: pd.DataFrame) -> list[str]:
    """Return what a reader of the curves must know, one sentence each: the band and what it leaves out, edges of grids,
    excluded trials.

    Args:
        curves: as returned by `learning_curves`.
    """
    points = curves.to_dict("records")
    fewest, most = min(point["seeds"] for point in points if point["seeds"]), max(point["seeds"] for point in points)
    many = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    lines = [f"Mean over {many}; band: {points[0]['band']}." if most > 1 else "One seed: no band."]
    lines += pool_notes((point["train_examples"], point.get("fraction", math.nan), point["seeds"]) for point in points)
    at_edge = [point for point in points if point["edge"]]
    if at_edge:
        two = any(point["learning_rates"] == 2 for point in at_edge)
        remedy = "widen the grid (of two values every choice is an edge)." if two else "widen the grid."
        lines.append(f"Best learning rate at an edge of its grid in {_count(len(at_edge), 'point')}: {remedy}")
    names = ("diverged", "pending", "stopped", "excluded_elsewhere")
    counts = {name: sum(point.get(name, 0) for point in points) for name in names}
    if counts["diverged"]:
        lines.append(f"Excluded at the chosen settings: {_count(counts['diverged'], 'diverged or failed trial')}.")
    if counts["pending"]:
        lines.append(f"Not yet run at the chosen settings: {_count(counts['pending'], 'trial')}.")
    if counts["stopped"]:
        lines.append(f"Stopped early by halving and not counted: {_count(counts['stopped'], 'trial')}.")
    if counts["excluded_elsewhere"]:
        trials = _count(counts["excluded_elsewhere"], "trial")
        lines.append(f"Not counted at other settings: {trials} (diverged, failed or not run).")
    empty = sum(point["seeds"] == 0 for point in points)
    if empty:
        lines.append(f"No trial counts in {_count(empty, 'point')}, left empty.")
    return lines


def _statistics(values: npt.NDArray[np.float64], band: str) -> dict[str, Any]:
    """Return mean, band and standard error of one point's seeds, of shape (seeds,)."""
    seeds = len(values)
    if seeds == 0:
        return {"value": math.nan, "low": math.nan, "high": math.nan, "standard_error": math.nan, "seeds": 0}
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    error = float(values.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    if band == BAND_INTERVAL and seeds > 1:
        half = error * float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))
        low, high = mean - half, mean + half
    return {"value": mean, "low": low, "high": high, "standard_error": error, "seeds": seeds}


def _trend(model: str, points: Sequence[dict[Hashable, Any]], noun: str) -> dict[str, Any]:
    """Return the trend of one model's curve as a record of `trends`."""
    measured = sorted((point for point in points if math.isfinite(point["value"])), key=lambda p: p["train_examples"])
    if not measured:
        return {"points": 0, "verdict": "unclear", "sentence": f"{model} has no finished trial: nothing can be said."}
    at, value = measured[-1]["train_examples"], measured[-1]["value"]
    first = min(at / DECADE * (1 - 1e-9), measured[-2:][0]["train_examples"])
    window = [point for point in measured if point["train_examples"] >= first]
    used = measured[-int(in_window([point["train_examples"] for point in measured]).sum()) :]
    where, now = _count(at, "example"), short(value)
    record = {"points": len(window), "verdict": "unclear", "at": at, "value": value}
    if len(window) < 2:
        why = f"was trained on {where} only ({noun} {now}): one point shows no trend."
    elif value <= 0:
        why = f"has {noun} {now} at {where}, which has no logarithm: only a larger test set could show a further fall."
    elif min(point["value"] for point in used) <= 0:
        why = f"had {noun} 0 before {where} ({now} there), which has no logarithm: no trend can be fitted."
    else:
        exponent, error = _local_exponent(*_columns(window))
        record |= {"exponent": exponent, "standard_error": error}
        before = _before(measured)
        seen = f"{noun} {short(value, 3)}, from {short(before['value'], 3)} at {before['train_examples']:,}"
        if max(point["seeds"] for point in used) < 2:
            seen += "; one seed, spread unknown"
        if len(used) < FEWEST_POINTS:
            why = f"is unclear at {where} ({seen}): two sizes show no bend, so nothing is forecast."
        elif lower := _clearly_lower(used):
            had = f"{noun} {short(lower['value'], 3)} at {lower['train_examples']:,}"
            why = f"is unclear at {where} ({noun} {short(value, 3)}, above {had}): a curve that rises shows no law."
        else:
            sizes, values, errors, seeds = _columns(used)
            forecast = forecast_fall(sizes, values, standard_errors=errors, seeds=seeds, flat_fall=FLAT_FALL)
            verdict = _verdict(forecast, fell=value < before["value"])
            why = f"{VERBS[verdict]} at {where} ({seen}); {_said(forecast, noun)}."
            record |= {"verdict": verdict, "fall": forecast.fall, "fall_low": forecast.low, "fall_high": forecast.high}
    return record | {"sentence": f"{model} {why}"}


def _columns(points: Sequence[dict[Hashable, Any]]) -> npt.NDArray[np.float64]:
    """Return sizes, mean values, standard errors and numbers of seeds of the points, of shape (4, points)."""
    names = ("train_examples", "value", "standard_error", "seeds")
    return np.array([[point[name] for name in names] for point in points], dtype=float).T


def _local_exponent(
    sizes: npt.NDArray[np.float64],
    values: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    seeds: npt.NDArray[np.float64],
) -> tuple[float, float]:
    """Return the exponent c of value ~ n^-c and its standard error (NaN with single seeds).

    With weights w of the least-squares slope, var c = sum w_i^2 s^2 / k_i: k_i seeds at point i, and s^2 the relative
    variance of one seed, pooled over the points with k_i - 1 degrees of freedom each. Where the points miss the line by
    more than that, their mean square takes its place (Birge 1932).
    """
    logs = np.log(sizes)
    centred = logs - logs.mean()
    weights = centred / (centred @ centred)
    exponent = -float(weights @ np.log(values))
    freedom = int((seeds - 1).sum())
    if freedom == 0:
        return exponent, math.nan
    per_seed = np.nan_to_num(errors) ** 2 * seeds / values**2
    pooled = float(((seeds - 1) * per_seed).sum() / freedom)
    misses = np.log(values) - np.log(values).mean() + exponent * centred
    misfit = float(seeds @ misses**2) / (len(sizes) - 2) if len(sizes) > 2 else 0.0
    return exponent, math.sqrt(max(pooled, misfit) * float((weights**2 / seeds).sum()))


def _before(measured: Sequence[dict[Hashable, Any]]) -> dict[Hashable, Any]:
    """Return the latest point with at most half the examples of the last one, or the first point if there is none."""
    halves = [point for point in measured if 2 * point["train_examples"] <= measured[-1]["train_examples"]]
    return (halves or measured[:1])[-1]


def _clearly_lower(points: Sequence[dict[Hashable, Any]]) -> dict[Hashable, Any] | None:
    """Return the lowest point if the last one lies above it by more than the spread explains, else None."""
    lowest, last = min(points, key=lambda point: point["value"]), points[-1]
    errors = [point["standard_error"] for point in (lowest, last)]
    spread = math.hypot(*(0.0 if math.isnan(error) else error for error in errors))
    margin = max(RISEN_ERRORS * spread, RISEN_SHARE * lowest["value"])
    return lowest if last["value"] - lowest["value"] > margin else None


def _verdict(forecast: Forecast, *, fell: bool) -> str:
    if forecast.flat >= SURE:
        return "flattened"
    return "still falling" if forecast.flat <= 1 - SURE and fell else "unclear"


def _said(forecast: Forecast, noun: str) -> str:
    fall, low, high = (f"{100 * share:.0f}" for share in (forecast.fall, forecast.low, forecast.high))
    about = f"{fall} %" if forecast.fall >= 0.01 else "less than 1 %"
    return f"forecast: 10x the data would cut its {noun} by {about} ({100 * LEVEL:.0f} % interval {low} to {high} %)"


def model_labels(cells: Sequence[Cell]) -> list[str]:
    """Return the label of each cell's model: its family and the knobs that vary within it; as many words as needed.

    Models and labels are one to one.
    """
    values: dict[tuple[str, str], set[Any]] = {}
    for cell in cells:
        for knob in cell.knobs:
            values.setdefault((cell.record["family"], knob), set()).add(known(cell.record[knob]))
    models = {cell.model for cell in cells}
    varying = [[knob for knob in cell.knobs if len(values[cell.record["family"], knob]) > 1] for cell in cells]
    brief = [_label(cell.record, knobs, str) for cell, knobs in zip(cells, varying, strict=True)]
    # Two models may differ in a way the short words hide (a knob 1 and a knob "1"); then everything is said.
    return brief if len(set(brief)) == len(models) else [_label(cell.record, cell.knobs, repr) for cell in cells]


def _label(record: dict[Hashable, Any], knobs: Sequence[str], words: Callable[[Any], str]) -> str:
    parts = [str(record["family"])]
    for knob in knobs:
        value = known(record[knob])
        if value is not None:
            # A knob that some family lacks is a float column: width 32.0 means 32.
            parts.append(f"{knob} {words(int(value) if isinstance(value, float) and value.is_integer() else value)},")
    return " ".join(parts).rstrip(",")


def _or_last(params: Any) -> float:
    """Return the number of parameters as a sorting key: models of unknown size come last."""
    return math.inf if known(params) is None else float(params)


def _by_model(curves: pd.DataFrame) -> dict[str, list[dict[Hashable, Any]]]:
    """Return the points of each model, in the order of the table."""
    models: dict[str, list[dict[Hashable, Any]]] = {}
    for point in curves.to_dict("records"):
        models.setdefault(str(point["model"]), []).append(point)
    return models


def _noun(curves: pd.DataFrame) -> str:
    """Return what the values are called in a sentence: "error" for test_error, "loss" for test_loss."""
    metric = str(curves["metric"].iloc[0]) if "metric" in curves.columns else "test_error"
    return metric.removeprefix("test_").replace("_", " ")
