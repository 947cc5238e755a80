"""How good forecasts are on curves that others measured: `extrapolate`, fits of single laws, and the last value.

    python tests/forecasts.py [FOLDER] [--few N] [--json]    all competitors on all collections
    python tests/forecasts.py [FOLDER] --constants [--json]  what other constants of `extrapolate` would change

FOLDER holds the public tables, else they are looked for in ../shared/data beside the checkout. The ends of the curves
are hidden and forecast. `--few 40` takes 40 curves of each collection, drawn by a seed: the resamples of m4 and bnsl
take seconds a curve, of long ones a minute. Nothing is judged, so that what is worse is seen as well.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from laws_helpers import REFERENCE
from scipy.stats import rankdata

import scalejax as sx
from scalejax.analysis.forecast import curves, drift
from scalejax.analysis.forecast import extrapolate as extrapolating

Floats = np.ndarray
Forecast = tuple[Floats, Floats, Floats]  # medians, lower and upper ends

SEED, LEVEL, RESAMPLES = 7, 0.9, 50
# Error rates are shares of finite test sets: in logarithms all below one error in ten thousand are alike.
LEAST = 1e-4
MOST_HIDDEN = 12  # of a training curve's, evenly over them: neighbours say the same


@dataclass(frozen=True)
class Curve:
    """Rows to forecast from, and hidden ones to score on.

    Attributes:
        predictors: name -> (rows,).
        loss: (rows,).
        new: name -> (hidden,).
        truth: (hidden,).
        last: the loss at the end of the rows; with two predictors the lowest.
    """

    predictors: dict[str, Floats]
    loss: Floats
    new: dict[str, Floats]
    truth: Floats
    last: float

    @property
    def unit(self) -> float:
        """What losses are divided by in interval scores."""
        return self.last or float(self.loss[self.loss > 0].min(initial=1.0))


def learning_curve(rows: pd.DataFrame, size: str, loss: str, seen: int) -> Curve:
    """Hide all but the first `seen` rows in the order of their sizes."""
    rows = rows.sort_values(size, kind="stable")
    x, y = rows[size].to_numpy(float), rows[loss].to_numpy(float)
    hidden = np.unique(np.linspace(seen, len(x) - 1, min(len(x) - seen, MOST_HIDDEN)).round().astype(int))
    return Curve({"examples": x[:seen]}, y[:seen], {"examples": x[hidden]}, y[hidden], float(y[seen - 1]))


def surface(rows: pd.DataFrame, params: str, budget: float) -> Curve:
    """Hide the rows of a table over model sizes and tokens that took `budget` FLOPs or more."""
    n, d, loss, flops = (rows[name].to_numpy(float) for name in (params, "tokens", "loss", "flops"))
    seen, hidden = flops < budget, flops >= budget
    early, late = ({"params": n[part], "tokens": d[part]} for part in (seen, hidden))
    return Curve(early, loss[seen], late, loss[hidden], float(loss[seen].min()))


def lcdb(table: pd.DataFrame) -> Iterator[Curve]:
    """The learners of scikit-learn on OpenML (Mohr et al. 2022), the largest two training sets hidden."""
    for _, rows in table.groupby(["openmlid", "learner"]):
        if len(rows) >= 6:
            yield learning_curve(rows, "size_train", "err_test", len(rows) - 2)


def colpret(table: pd.DataFrame) -> Iterator[Curve]:
    """Training curves of language models (Choshen et al. 2024), the later half hidden."""
    for _, rows in table.groupby("model"):
        yield learning_curve(rows, "tokens", "loss", len(rows) // 2)


def nsl(table: pd.DataFrame) -> Iterator[Curve]:
    """BIG-Bench and language models (Alabdulmohsin et al. 2022), the last 30 % hidden."""
    for _, rows in table.groupby(["domain", "task", "model"]):
        yield learning_curve(rows, "examples", "loss", round(0.7 * len(rows)))


def chinchilla(table: pd.DataFrame) -> Iterator[Curve]:
    """Hoffmann et al. (2022), without the five worst runs, as usual; those of 1e20 or 1e21 FLOPs and more hidden."""
    rows: Any = table[table["loss"] < np.sort(table["loss"])[-5]]
    for budget in (1e20, 1e21):
        yield surface(rows, "params", budget)


def porian(table: pd.DataFrame) -> Iterator[Curve]:
    """The isoFLOP profiles of Porian et al. (2024), the two largest budgets of each configuration hidden."""
    for _, rows in table.groupby(["dataset", "hparams", "warmup", "decay", "param_count", "val"]):
        yield surface(rows, "n", np.unique(rows["flops"])[-2])


COLLECTIONS: dict[str, tuple[str, Callable[[pd.DataFrame], Iterator[Curve]]]] = {
    "lcdb": ("lcdb_even_ids.csv", lcdb),
    "colpret": ("colpret_curves_third.csv", colpret),
    "nsl": ("revisiting_nsl_bb_lm_train.csv", nsl),
    "chinchilla": ("chinchilla_epoch.csv", chinchilla),
    "porian": ("porian_isoflop_points.csv", porian),
}


def collected(folder: Path, names: list[str], few: int | None) -> dict[str, list[Curve]]:
    """Read collections; of each at most `few` curves, drawn without order."""
    found = {}
    for name in names:
        file, read = COLLECTIONS[name]
        if not (folder / file).is_file():
            print(f"{name} is left out: {folder} holds no {file}.", file=sys.stderr)
            continue
        every = list(read(pd.read_csv(folder / file)))
        drawn = np.random.default_rng(SEED).permutation(len(every))[:few]
        found[name] = [every[index] for index in np.sort(drawn)]
    return found


def extrapolated(curve: Curve) -> Forecast:
    """What is to be measured."""
    found = sx.extrapolate(curve.predictors, curve.loss, curve.new, level=LEVEL)
    return found.value, found.low, found.high


def fitted(law: str) -> Callable[[Curve], Forecast]:
    """A single law, with the interval of its resamples."""

    def forecast(curve: Curve) -> Forecast:
        fit = sx.fit_law(law, curve.predictors, curve.loss, bootstrap=RESAMPLES)
        found = fit.predict(curve.new, level=LEVEL)
        return found.value, found.low, found.high

    return forecast


def last_value(curve: Curve) -> Forecast:
    """The last value repeated, and an interval of no width."""
    same = np.full(len(curve.truth), curve.last)
    return same, same, same


@dataclass(frozen=True)
class Score:
    """Of one forecast.

    Attributes:
        misses: squared log forecast - log truth, (hidden,).
        inside: whether the interval holds the truth, (hidden,).
        intervals: interval scores (Gneiting and Raftery 2007) in units of the last loss, (hidden,).
        seconds: of one CPU core.
        failed: whether the last value stands for a forecast that failed.
    """

    misses: Floats
    inside: Floats
    intervals: Floats
    seconds: float
    failed: bool

    @property
    def rmsle(self) -> float:
        """Root mean squared logarithmic error."""
        return float(np.sqrt(self.misses.mean()))


def score(curve: Curve, forecast: Callable[[Curve], Forecast]) -> Score:
    """Forecast the hidden rows and score it; what fails counts as the last value."""
    begun, found = time.process_time(), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = forecast(curve)
    except (ValueError, sx.FitError):
        pass
    failed = found is None or not np.isfinite(found).all()
    value, low, high = last_value(curve) if found is None or failed else found
    seconds = time.process_time() - begun
    misses = (np.log(np.maximum(value, LEAST)) - np.log(np.maximum(curve.truth, LEAST))) ** 2
    outside = np.maximum(low - curve.truth, 0) + np.maximum(curve.truth - high, 0)
    intervals = (high - low + 2 / (1 - LEVEL) * outside) / curve.unit
    return Score(misses, outside == 0, intervals, seconds, failed)


def compare(found: list[Curve], laws: list[str]) -> dict[str, dict[str, float]]:
    """Return the figures of each competitor on one collection."""
    if len(found[0].predictors) == 1:
        competitors = {"extrapolate": extrapolated, **{law: fitted(law) for law in laws}, "last value": last_value}
    else:
        competitors = {"extrapolate": extrapolated, "chinchilla": fitted("chinchilla")}
    scores = {name: [score(curve, forecast) for curve in found] for name, forecast in competitors.items()}
    ranks = rankdata([[one.rmsle for one in several] for several in scores.values()], axis=0).mean(axis=1)
    table = {}
    for (name, several), rank in zip(scores.items(), ranks, strict=True):
        each = np.array([one.intervals.mean() for one in several])
        table[name] = {
            "mean rank": float(rank),
            "median RMSLE": float(np.median([one.rmsle for one in several])),
            "pooled RMSLE": float(np.sqrt(np.concatenate([one.misses for one in several]).mean())),
            "interval score": float(each.mean()),
            "its median": float(np.median(each)),
            "coverage": float(np.concatenate([one.inside for one in several]).mean()),
            "coverage by curve": float(np.mean([one.inside.mean() for one in several])),
            "failed": sum(one.failed for one in several),
            "s per 100": 100 * sum(one.seconds for one in several) / len(several),
        }
    return table


# Other constants of `extrapolate` that one could have begun with.
PRIORS = ("FLAT", "POWER", "FLOOR", "BROKEN")
CONSTANTS: dict[str, list[tuple[Any, dict[str, Any]]]] = {
    "as they are": [],
    "bends from 0.01": [(drift, {"BENDS": drift.BENDS[1:]})],
    "bends to 1.3": [(drift, {"BENDS": (*drift.BENDS, 2 * drift.BENDS[-1])})],
    "no steps": [(drift, {"STEPS": (0.0,)})],
    "laws alike": [(curves, dict.fromkeys(PRIORS, 0.25))],
    "noises from 0.002": [(drift, {"NOISES": drift.NOISES[drift.NOISES > 0.002]})],
    "no twists": [(drift, {"TWISTS": (0.0,)})],
}


@contextmanager
def constants(name: str) -> Iterator[None]:
    """Change constants of `extrapolate` for a while."""
    with ExitStack() as stack:
        for module, values in CONSTANTS[name]:
            stack.enter_context(patch.multiple(module, **values))
        # Intervals alone are compared, and they are the same where the last value is preferred: it is not looked for.
        stack.enter_context(patch.object(extrapolating, "ORIGINS", ()))
        yield


def interval_scores(name: str, collections: Mapping[str, list[Curve]]) -> dict[str, dict[str, float]]:
    """Return the mean interval score and the coverage on each collection with other constants."""
    table = {}
    with constants(name):
        for collection, found in collections.items():
            scores = [score(curve, extrapolated) for curve in found]
            table[collection] = {
                "interval score": float(np.mean([one.intervals.mean() for one in scores])),
                "coverage": float(np.concatenate([one.inside for one in scores]).mean()),
            }
    return table


def chosen(table: Mapping[str, dict[str, dict[str, float]]], without: str) -> str:
    """Return the constants of the lowest geometric mean, over all collections but one, of mean interval scores."""

    def elsewhere(name: str) -> float:
        return sum(np.log(of["interval score"]) for collection, of in table[name].items() if collection != without)

    return min(table, key=elsewhere)


def show_comparison(collection: str, found: list[Curve], table: dict[str, dict[str, float]]) -> None:
    """Print one collection's figures, a competitor a line."""
    print(f"\n{collection}: {len(found)} curves, {sum(len(curve.truth) for curve in found)} hidden points")
    frame = pd.DataFrame(table).T.astype({"failed": int})
    print(frame.to_string(float_format=lambda value: f"{value:.4g}"), flush=True)


def show_constants(table: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print interval scores and coverages, and what is chosen without each collection."""
    for figure in ("interval score", "coverage"):
        frame = pd.DataFrame({name: {c: of[figure] for c, of in row.items()} for name, row in table.items()}).T
        print(f"\n{figure}\n{frame.to_string(float_format=lambda value: f'{value:.4f}')}")
    now, rows = table["as they are"], {}
    for collection in now:
        name = chosen(table, collection)
        there = {other: row[collection]["interval score"] for other, row in table.items()}
        best = min(there, key=lambda other: there[other])
        rows[collection] = {"chosen on the others": name, "score": there[name], "as they are": there["as they are"]} | {
            "best here": best,
            "its score": there[best],
        }
    print(f"\nleave one collection out\n{pd.DataFrame(rows).T.to_string(float_format=lambda value: f'{value:.4f}')}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=REFERENCE, help="of the public tables")
    parser.add_argument("--few", type=int, metavar="N", help="curves of each collection; all without it")
    parser.add_argument("--collections", nargs="+", choices=COLLECTIONS, default=list(COLLECTIONS))
    parser.add_argument("--laws", nargs="*", default=["power_floor", "m4", "bnsl"], help="of one predictor")
    parser.add_argument("--constants", action="store_true", help="leave-one-collection-out choice of constants")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"The public tables are not at hand: there is no folder {options.folder}; give theirs.")
        return
    collections = collected(options.folder, options.collections, options.few)
    if options.constants:
        table: dict[str, Any] = {name: interval_scores(name, collections) for name in CONSTANTS}
        if not options.json:
            show_constants(table)
    else:
        table = {}
        for collection, found in collections.items():
            table[collection] = compare(found, options.laws)
            if not options.json:
                show_comparison(collection, found, table[collection])
    if options.json:
        print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
