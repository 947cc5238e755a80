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

from scalejax.analysis.tuning import Cell, cells_of, known, listing, pool_notes, require, short, tuned
from scalejax.text import number_of as _count

__all__ = ["learning_curves", "notes", "order_at_smallest", "trends", "tuned"]

CURVE_COLUMNS = (
    *("model", "family", "params", "train_examples", "fraction", "value", "low", "high", "standard_error", "seeds"),
    *("diverged", "pending", "stopped", "excluded_elsewhere", "learning_rate", "learning_rates", "edge", "band"),
    "metric",
)

# With fewer seeds than this the range of the seeds is shown, which hides nothing; the range grows with every further
# seed, so from here on the 95 % interval of the mean is the fairer band.
SEEDS_FOR_INTERVAL = 5
BAND_RANGE = "smallest to largest seed"
BAND_INTERVAL = "95 % interval of the mean over seeds"

# Ten times the data is a large price. A curve that returns less than a twentieth of its error for it has flattened;
# the smallest exponents reported for whole curves (language-model loss, c = 0.05 to 0.1) are a fall of 10 to 20 %.
FLAT_FALL = 0.05
# Without a spread over seeds there is no interval to compare with FLAT_FALL, so a fall must be twice as large to count.
CLEAR_FALL = 0.10
CONFIDENCE = 0.95
DECADE = 10.0


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
    """Return what each model's curve does at its largest training sets, in a number and in words.

    Over the last decade of training-set sizes (at least the last two) the local exponent c of error ~ n^-c is the
    negative slope of an unweighted least-squares line through the logarithms. Its standard error takes the points as
    independent, with one relative spread per seed pooled over those points: a few seeds say too little point by point.

    Args:
        curves: as returned by `learning_curves`.

    Returns:
        One row a model, in the order of `curves`: model, params, exponent and standard_error (NaN if unknown), points
        (used for the fit), verdict, at (largest number of examples with a value), value (there), sentence. The verdict
        is "flattened" or "still falling" if the 95 % interval of the fall per decade lies below or above 5 %, else
        "unclear". Without repeated seeds it goes by size alone (below 5 %, above 10 %), and the sentence says so.

    Raises:
        ValueError: the table has no rows or lacks a column.
    """
    require(curves, ["model", "params", "train_examples", "value", "standard_error", "seeds"])
    noun = _noun(curves)
    blank = dict.fromkeys(("exponent", "standard_error", "at", "value"), math.nan)
    records = []
    for model, points in _by_model(curves).items():
        records.append(blank | {"model": model, "params": points[0]["params"]} | _trend(model, points, noun))
    columns = ["model", "params", "exponent", "standard_error", "points", "verdict", "at", "value", "sentence"]
    return pd.DataFrame(records, columns=columns)


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
        return f"{where} {them} cannot be told apart: {lowest}, within the spread of the seeds."
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
    where, now = _count(at, "example"), short(value)
    record = {"points": len(window), "verdict": "unclear", "at": at, "value": value}
    if len(window) < 2:
        why = f"was trained on {where} only ({noun} {now}): one point shows no trend."
    elif value <= 0:
        why = f"has {noun} {now} at {where}, which has no logarithm: only a larger test set could show a further fall."
    elif min(point["value"] for point in window) <= 0:
        why = f"had {noun} 0 on its way to {where} ({now} there), which has no logarithm: no trend can be fitted."
    else:
        exponent, error, freedom = _local_exponent(window)
        quantile = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) if freedom else math.nan
        falls = [_fall(exponent + shift) for shift in (-quantile * error, 0.0, quantile * error)]
        verdict = _verdict(falls)
        why = _words(verdict, falls, where=where, now=now, noun=noun)
        record |= {"exponent": exponent, "standard_error": error, "verdict": verdict}
    return record | {"sentence": f"{model} {why}"}


def _local_exponent(window: Sequence[dict[Hashable, Any]]) -> tuple[float, float, int]:
    """Return the exponent c of value ~ n^-c, its standard error and degrees of freedom (NaN and 0 with single seeds).

    With weights w of the least-squares slope, var c = sum w_i^2 s^2 / k_i: k_i seeds at point i, and s^2 the relative
    variance of one seed, pooled over the points with k_i - 1 degrees of freedom each.
    """
    columns = ("train_examples", "value", "standard_error", "seeds")
    sizes, values, errors, seeds = np.array([[point[name] for name in columns] for point in window], dtype=float).T
    logs = np.log(sizes)
    centred = logs - logs.mean()
    weights = centred / (centred @ centred)
    exponent = -float(weights @ np.log(values))
    freedom = int((seeds - 1).sum())
    if freedom == 0:
        return exponent, math.nan, 0
    per_seed = np.nan_to_num(errors) ** 2 * seeds / values**2
    pooled = float(((seeds - 1) * per_seed).sum() / freedom)
    return exponent, math.sqrt(pooled * float((weights**2 / seeds).sum())), freedom


def _fall(exponent: float) -> float:
    """Return the share of the error that ten times the data takes away."""
    return 1 - DECADE**-exponent


def _verdict(falls: Sequence[float]) -> str:
    """Return the verdict on the fall per decade: its low end, estimate and high end (the ends may be NaN)."""
    low, fall, high = falls
    if math.isnan(low):
        return "flattened" if fall < FLAT_FALL else "still falling" if fall >= CLEAR_FALL else "unclear"
    return "flattened" if high < FLAT_FALL else "still falling" if low > FLAT_FALL else "unclear"


def _words(verdict: str, falls: Sequence[float], *, where: str, now: str, noun: str) -> str:
    """Return the sentence of a trend, without its subject."""
    low, fall, high = falls
    if verdict == "still falling":
        words = f"still falls at {where}: at this rate ten times the data cuts its {noun} by about {100 * fall:.0f} %"
    elif verdict == "flattened" and fall < 0:
        words = f"has flattened at {where}: over its last sizes its {noun} did not fall"
    elif verdict == "flattened":
        words = f"has flattened at {where}: at this rate ten times the data cuts its {noun} by about {100 * fall:.1f} %"
    elif math.isnan(low):
        words = f"may have flattened at {where}: ten times the data changes its {noun} by about {-100 * fall:+.0f} %"
    else:
        span = f"{-100 * high:+.0f} % to {-100 * low:+.0f} %"
        words = f"is unclear at {where}: ten times the data changes its {noun} by {span}"
    return f"{words} ({now} now{'; one seed, spread unknown' if math.isnan(low) else ''})."


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
