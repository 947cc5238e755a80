"""Learning curves from the table of trials: a metric against data, and what the curves say.

Rows in, tables and sentences out; everything is a pure function of a pandas DataFrame. Metrics are better the lower.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.special import stdtr, stdtrit

from scalejax.analysis.curves.tenfold import LEVEL, forecast_fall, in_window
from scalejax.analysis.curves.tuning import ERROR, Cell, Row, cells_of, headline, known, model_key, require
from scalejax.text import listing, number_of, short

CURVE_COLUMNS = (
    *("model", "family", "params", "train_examples", "fraction", "value", "low", "high", "standard_error", "seeds"),
    *("diverged", "pending", "stopped", "excluded_elsewhere", "learning_rate", "learning_rates", "edge", "band"),
    *("metric", "drawn"),
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
CONFIDENCE = 0.95
MOST_IN_COMMON = (
    0.5  # of the training examples of two seeds, beyond which a note says that their spread lacks the data's part
)

# Ten times the data is a large price. A curve that returns less than a twentieth of its error for it has flattened;
# the smallest exponents reported for whole curves (language-model loss, c = 0.05 to 0.1) are a fall of 10 to 20 %.
FLAT_FALL = 0.05
SURE = 0.80  # probability that a verdict asks for
FEWEST_POINTS = 3  # two lie on every law: a forecast from them would be the prior's
# A last point that lies above an earlier one by so many standard errors, and by this share, is no part of a law that
# falls or flattens: its training has not settled, or its learning rates do not reach.
RISEN_ERRORS, RISEN_SHARE = 3.0, 0.05
DECADE = 10.0
FEATURES, NO_FEATURES = "features", "none"  # the knob that says what stands before a model, and its word for nothing
VERBS = {"flattened": "has flattened", "still falling": "still falls", "unclear": "is unclear"}


def learning_curves(rows: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """Return a metric against the number of training examples, one row per (model, train_examples), tuned cell by cell.

    The band `low`, `high` follows one convention for the whole table, named in the column `band`: the range of the
    seeds while no point has 5 seeds, otherwise the 95 % interval of the mean (Student's t; a point with one seed has a
    band of no height). `low` of an interval may be below zero.

    Args:
        rows: the trial table, as for `tuned`.
        metric: the column to show; a row counts if it and validation_loss are finite and its status is "done". None:
            the headline metric of the task, which is the test error of classification.

    Returns:
        Columns: model (str: the family and its knobs that vary within the family), family, params, train_examples,
        fraction (of the pool; NaN if the table does not say), value (arithmetic mean over seeds; NaN if no row counts),
        low, high, standard_error (of the mean; NaN for one seed), seeds (count used), diverged, pending, stopped,
        excluded_elsewhere (counts, see `tuned`), learning_rate, learning_rates, edge, band, metric (its name, such as
        "test_error" or "test_RMSE"), drawn (examples that a trial draws in its planned steps, the fewest of the seeds:
        steps x batch_size; NaN where the table does not say, as of algorithms without batches). Ordered by params,
        smallest first, then by train_examples.

    Raises:
        ValueError: as `tuned`.
    """
    column, name = headline(rows) if metric is None else (metric, metric)
    cells = cells_of(rows, column)
    measured = rows[column].to_numpy(dtype=float)
    fractions, steps, batch_sizes = (
        rows[name].to_numpy(dtype=float, na_value=math.nan) if name in rows.columns else np.full(len(rows), math.nan)
        for name in ("fraction", "steps", "batch_size")
    )
    draws = steps * batch_sizes
    # Most seeds are done at every point or at none; one convention for the whole figure, that of its best point.
    band = BAND_INTERVAL if max(len(cell.places) for cell in cells) >= SEEDS_FOR_INTERVAL else BAND_RANGE
    records = [
        cell.record
        | {"model": label, "band": band, "metric": name}
        | {"fraction": max(fractions[list(cell.places)], default=math.nan)}
        | {"drawn": min(draws[list(cell.places)], default=math.nan)}
        | _statistics(measured[list(cell.places)], band)
        | cell.choice
        for cell, label in zip(cells, model_labels(cells), strict=True)
    ]
    first_seen = {label: place for place, label in enumerate(dict.fromkeys(record["model"] for record in records))}

    def order(record: Row) -> tuple[float, ...]:
        params = known(record["params"])  # models of unknown size come last
        return (math.inf if params is None else float(params), first_seen[record["model"]], record["train_examples"])

    return pd.DataFrame(sorted(records, key=order), columns=list(CURVE_COLUMNS))


def _statistics(values: npt.NDArray[np.float64], band: str) -> dict[str, Any]:
    """Return mean, band and standard error of one point's seeds, of shape (seeds,)."""
    seeds = len(values)
    if seeds == 0:
        return dict.fromkeys(("value", "low", "high", "standard_error"), math.nan) | {"seeds": 0}
    mean, low, high = float(values.mean()), float(values.min()), float(values.max())
    error = float(values.std(ddof=1)) / math.sqrt(seeds) if seeds > 1 else math.nan
    if band == BAND_INTERVAL and seeds > 1:
        half = error * float(stdtrit(seeds - 1, (1 + CONFIDENCE) / 2))
        low, high = mean - half, mean + half
    return {"value": mean, "low": low, "high": high, "standard_error": error, "seeds": seeds}


def model_labels(cells: Sequence[Cell]) -> list[str]:
    """Return the label of each cell's model: its family and the knobs that vary within it; as many words as needed.

    Features that vary over the models are also those of a family that has one choice of them, unless that is none.
    Models and labels are one to one.
    """
    values: dict[tuple[str, str], set[Any]] = {}
    for cell in cells:
        for knob in cell.knobs:
            values.setdefault((cell.record["family"], knob), set()).add(known(cell.record[knob]))

    def label(record: Row, knobs: Sequence[str], words: Callable[[Any], str]) -> str:
        parts = [str(record["family"])]
        for knob in knobs:
            value = known(record[knob])
            if value is not None:
                # A knob that some family lacks is a float column: width 32.0 means 32.
                whole = int(value) if isinstance(value, float) and value.is_integer() else value
                parts.append(f"{knob} {words(whole)},")
        return " ".join(parts).rstrip(",")

    behind = {known(cell.record.get(FEATURES)) for cell in cells}

    def tells(cell: Cell, knob: str) -> bool:
        compared = knob == FEATURES and len(behind) > 1 and cell.record[knob] != NO_FEATURES
        return compared or len(values[cell.record["family"], knob]) > 1

    varying = [[knob for knob in cell.knobs if tells(cell, knob)] for cell in cells]
    brief = [label(cell.record, knobs, str) for cell, knobs in zip(cells, varying, strict=True)]
    # Two models may differ in a way the short words hide (a knob 1 and a knob "1"); then everything is said.
    one_to_one = len(set(brief)) == len({cell.model for cell in cells})
    return brief if one_to_one else [label(cell.record, cell.knobs, repr) for cell in cells]


def models_of(rows: pd.DataFrame, *, among: pd.DataFrame | None = None) -> list[str]:
    """Return the label of each row's model, as `learning_curves` has it.

    Args:
        rows: trials.
        among: the whole trial table, which says what varies; None: these rows.

    Raises:
        ValueError: as `tuned`.
    """
    cells = cells_of(rows if among is None else among)
    labels = dict(zip((cell.model for cell in cells), model_labels(cells), strict=True))
    return [labels[model_key(row, cells[0].knobs)] for row in rows.to_dict("records")]


def notes(curves: pd.DataFrame) -> list[str]:
    """Return what a reader of the curves must know, one sentence each: the band and what it leaves out, examples that
    no trial saw, edges of grids, excluded trials.

    Args:
        curves: as returned by `learning_curves`.
    """
    points = curves.to_dict("records")
    fewest, most = min(point["seeds"] for point in points if point["seeds"]), max(point["seeds"] for point in points)
    many = f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"
    lines = [f"Mean over {many}; band: {points[0]['band']}." if most > 1 else "One seed: no band."]
    lines += _pass_notes(points)
    # Within its first pass each seed sees others of the examples that all have.
    whole = [point for point in points if not _partly_seen(point)]
    lines += pool_notes((point["train_examples"], point.get("fraction", math.nan), point["seeds"]) for point in whole)
    at_edge = [point for point in points if point["edge"]]
    if at_edge:
        two = any(point["learning_rates"] == 2 for point in at_edge)
        remedy = "widen the grid (of two values every choice is an edge)." if two else "widen the grid."
        lines.append(f"Best learning rate at an edge of its grid in {number_of(len(at_edge), 'point')}: {remedy}")
    for name, noun, sentence in (
        ("diverged", "diverged or failed trial", "Excluded at the chosen settings: {}."),
        ("pending", "trial", "Not yet run at the chosen settings: {}."),
        ("stopped", "trial", "Stopped early by halving and not counted: {}."),
        ("excluded_elsewhere", "trial", "Not counted at other settings: {} (diverged, failed or not run)."),
    ):
        if number := sum(point.get(name, 0) for point in points):
            lines.append(sentence.format(number_of(number, noun)))
    if empty := sum(point["seeds"] == 0 for point in points):
        lines.append(f"No trial counts in {number_of(empty, 'point')}, left empty.")
    return lines


def _partly_seen(point: Row) -> bool:
    """Say whether the trials of a point drew fewer examples than they had, so that they never saw the rest."""
    return point.get("drawn", math.nan) < point["train_examples"]  # False of NaN


def _pass_notes(points: Sequence[Row]) -> list[str]:
    """Say at which sizes trials end within their first pass over the data: what lies beyond it changes nothing."""
    partly = [point for point in points if point["seeds"] and _partly_seen(point)]
    if not partly:
        return []
    sizes = sorted({point["train_examples"] for point in partly})
    drawn = sorted({round(point["drawn"]) for point in partly})
    others = any(point["train_examples"] in sizes and point["seeds"] and not _partly_seen(point) for point in points)
    whose = f" of {listing(list(dict.fromkeys(str(point['family']) for point in partly)))}" if others else ""
    seen = f"{drawn[0]:,}" if len(drawn) == 1 else f"{drawn[0]:,} to {drawn[-1]:,}"
    where = f"{listing([f'{size:,}' for size in sizes])} examples"
    return [f"At {where} a trial{whose} sees only {seen} of them: raise steps, or use epochs."]


def pool_notes(points: Iterable[tuple[int, float, int]]) -> list[str]:
    """Say where seeds draw so much of one pool that their spread leaves out what the choice of examples adds to it.

    Two seeds that draw a fraction f of the pool each have that fraction of their examples in common; with the whole
    pool, all. What the choice of examples contributes to an error is then the same for all seeds.

    Args:
        points: training examples, their fraction of the pool (NaN: not known) and number of seeds, in any order.
    """
    shares = {size: share for size, share, seeds in sorted(points) if seeds > 1 and share > MOST_IN_COMMON}
    whole = [f"{size:,} examples" for size, share in shares.items() if share >= 1]
    part = [f"{100 * share:.0f} % of their {size:,} examples" for size, share in shares.items() if share < 1]
    lacks = "what the choice of examples adds"
    lines = []
    if part:
        common = f"Any two seeds have {listing(part)} in common"
        lines.append(f"{common}: their spread there leaves out part of {lacks}.")
    if whole:
        same = f"All seeds train on the same {listing(whole)}, the whole pool"
        lines.append(f"{same}: their spread there leaves out {lacks}.")
    return lines


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
    there = sorted((p for p in measured if p["train_examples"] == smallest), key=lambda point: point["value"])
    best, others = there[0], there[1:]
    where, noun = f"At {number_of(smallest, 'example')}", _noun(curves)
    if not others:
        return f"{where} there is one model only, {best['model']} ({noun} {short(best['value'])}): nothing to compare."
    lowest, fewest = f"{best['model']} has the lowest {noun} ({short(best['value'])})", min(p["seeds"] for p in there)
    if fewest < 2:
        return f"{where} the order is unclear: {lowest}, but with a single seed the spread is unknown."
    level = (1 - CONFIDENCE) / len(others)
    rivals = [point["model"] for point in others if _difference_p(best, point) >= level]
    if len(rivals) == len(others):
        them = "the two models" if len(there) == 2 else f"the {len(there)} models"
        many = number_of(fewest, "seed")
        return f"{where} {them} cannot be told apart by {many}: {lowest}, but no difference is significant."
    if rivals:
        return f"{where} the order is partly clear: {lowest}, but {listing(rivals)} cannot be told apart from it."
    return f"{where} the best is clear: {lowest}, and every other model is worse beyond the spread of the seeds."


def _difference_p(one: Row, other: Row) -> float:
    """Return the two-sided p of Welch's t-test (1947) that two points have the same mean."""
    parts = [(point["standard_error"] ** 2, point["seeds"] - 1) for point in (one, other)]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return float(one["value"] == other["value"])
    freedom = variance**2 / sum(part**2 / seeds for part, seeds in parts)
    return 2 * float(stdtr(freedom, -abs(one["value"] - other["value"]) / math.sqrt(variance)))


def trends(curves: pd.DataFrame) -> pd.DataFrame:
    """Return what each model's curve does at its largest training sets, in numbers and in words.

    What ten times the data would bring is a forecast: laws with and without a floor, averaged over (`tenfold.py`), see
    the last 2.5 decades of sizes (at least the last 4 points). The verdict is "flattened" or "still falling" if the
    fall lies below or above 5 % with a probability of at least 0.8, else "unclear". A value that is no lower than at
    half the examples is never "still falling", whatever a law says, and two points are always "unclear". Without
    repeated seeds the spread is learned from the misfit alone, and the sentence says that it is unknown. A curve whose
    last trials ended within their first pass over the data says nothing about more data: no verdict, no forecast.

    The local exponent c of value ~ n^-c is the negative slope of an unweighted least-squares line through the
    logarithms over the last decade of sizes (at least the last two). Its standard error takes the points as
    independent: one relative spread per seed pooled over them, or the misfit of the line where that is larger.

    Args:
        curves: as returned by `learning_curves`.

    Returns:
        One row a model, in the order of `curves`: model, params, exponent and standard_error (NaN if unknown), points
        (used for the exponent), verdict, at (largest number of examples with a value), value (there), sentence; and the
        share of the value there that ten times the data would take away: fall (median), fall_low and fall_high (90 %
        interval), NaN where nothing can be forecast.

    Raises:
        ValueError: the table has no rows or lacks a column.
    """
    require(curves, ["model", "params", "train_examples", "value", "standard_error", "seeds"])
    blank = dict.fromkeys(("exponent", "standard_error", "at", "value", "fall", "fall_low", "fall_high"), math.nan)
    records = []
    for model, points in curves.groupby(curves["model"].astype(str), sort=False):
        measured = [point for point in points.to_dict("records") if math.isfinite(point["value"])]
        trend = _trend(str(model), sorted(measured, key=lambda point: point["train_examples"]), _noun(curves))
        records.append(blank | {"model": model, "params": points["params"].iloc[0]} | trend)
    return pd.DataFrame(records, columns=list(TREND_COLUMNS))


def _trend(model: str, measured: Sequence[Row], noun: str) -> dict[str, Any]:
    """Return the trend of one model's curve, its points with a value in ascending order, as a record of `trends`."""
    if not measured:
        return {"points": 0, "verdict": "unclear", "sentence": f"{model} has no finished trial: nothing can be said."}
    names = ("train_examples", "value", "standard_error", "seeds")
    sizes, values, errors, seeds = np.array([[point[name] for name in names] for point in measured], dtype=float).T
    last, value = measured[-1], measured[-1]["value"]
    at, now = last["train_examples"], short(value)
    near = sizes >= min(at / DECADE * (1 - 1e-9), sizes[-2:][0])  # the points of the exponent
    used = in_window(sizes)  # and those of the forecast
    where = number_of(at, "example")
    record = {"points": int(near.sum()), "verdict": "unclear", "at": at, "value": value}

    if _partly_seen(last):
        record["points"] = 0
        why = f"was not trained on all of its {where} ({noun} {now}): no verdict."
    elif record["points"] < 2:
        why = f"was trained on {where} only ({noun} {now}): one point shows no trend."
    elif value <= 0:
        further = "only a larger test set could show a further fall" if noun == "error" else "no trend can be fitted"
        why = f"has {noun} {now} at {where}, which has no logarithm: {further}."
    elif values[used].min() <= 0:
        lowest = f"{values[used].min():.2g}"
        why = f"had {noun} {lowest} before {where} ({now} there), which has no logarithm: no trend can be fitted."
    else:
        exponent, error = _local_exponent(sizes[near], values[near], errors[near], seeds[near])
        record |= {"exponent": exponent, "standard_error": error}
        halves = [point for point in measured if 2 * point["train_examples"] <= at]
        before = (halves or measured)[-1 if halves else 0]
        seen = f"{noun} {short(value, 3)}, from {short(before['value'], 3)} at {before['train_examples']:,}"
        if seeds[used].max() < 2:
            seen += "; one seed, spread unknown"
        lowest = min((point for point, kept in zip(measured, used, strict=True) if kept), key=lambda p: p["value"])
        spread = math.hypot(*np.nan_to_num([lowest["standard_error"], last["standard_error"]]))
        if used.sum() < FEWEST_POINTS:
            why = f"is unclear at {where} ({seen}): two sizes show no bend, so nothing is forecast."
        elif value - lowest["value"] > max(RISEN_ERRORS * spread, RISEN_SHARE * lowest["value"]):
            had = f"{noun} {short(lowest['value'], 3)} at {lowest['train_examples']:,}"
            why = f"is unclear at {where} ({noun} {short(value, 3)}, above {had}): a curve that rises shows no law."
        else:
            forecast = forecast_fall(
                sizes[used], values[used], standard_errors=errors[used], seeds=seeds[used], flat_fall=FLAT_FALL
            )
            if forecast.flat >= SURE:
                verdict = "flattened"
            else:
                verdict = "still falling" if forecast.flat <= 1 - SURE and value < before["value"] else "unclear"
            record |= {"verdict": verdict, "fall": forecast.fall, "fall_low": forecast.low, "fall_high": forecast.high}
            fall, low, high = (f"{100 * share:.0f}" for share in (forecast.fall, forecast.low, forecast.high))
            about = f"{fall} %" if forecast.fall >= 0.01 else "less than 1 %"
            interval = f"{100 * LEVEL:.0f} % interval {low} to {high} %"
            would = f"10x the data would cut its {noun} by {about} ({interval})"
            why = f"{VERBS[verdict]} at {where} ({seen}); forecast: {would}."
    return record | {"sentence": f"{model} {why}"}


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


def _noun(curves: pd.DataFrame) -> str:
    """Return what the values are called in a sentence: "error" for test_error, "RMSE" for test_RMSE."""
    metric = str(curves["metric"].iloc[0]) if "metric" in curves.columns else ERROR
    return metric.removeprefix("test_").replace("_", " ")
