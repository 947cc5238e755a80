"""What advice is made from: the tuned rows of a run, or any table of sizes, data and losses."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalejax.analysis.curves.curves import BAND_RANGE, learning_curves, models_of, trends
from scalejax.analysis.curves.tuning import headline, knob_columns, tuned
from scalejax.text import listing

Table = Any  # pandas.DataFrame, of which type checkers do not know what a selection is

FLOPS_PER_PARAMETER_AND_TOKEN = 6  # Kaplan et al. 2020
TRIAL_TABLE = {"trial_id", "status", "validation_loss", "train_examples", "learning_rate"}  # columns that tell it
DATA_NAMES = ("tokens", "examples", "train_examples")  # of a table, in this order


@dataclass(frozen=True)
class Observed:
    """What advice is made from.

    Attributes:
        rows: one row a run: model (its name), family, params (NaN: no fixed number), data, loss, flops, seed, and steps
            (of training, as planned, up to a factor of each model; NaN where they are not known or of other batches).
        data: what the data are counted in: "examples" or "tokens".
        noun: what the loss is called: "error", "RMSE", "loss".
        curves: a row a model and amount of data, as `learning_curves` returns.
        trends: one row a model, as `trends` returns; empty where there are no curves.
        most_data: the most that the data set has; infinite where more can be had.
        knobs: columns of size knobs, where the rows have them.
    """

    rows: Table
    data: str
    noun: str
    curves: Table
    trends: Table
    most_data: float = math.inf
    knobs: tuple[str, ...] = ()

    @property
    def knob(self) -> tuple[str | None, float]:
        """The size knob that makes its models larger, and the power of it with which their parameters grow."""
        for name in self.knobs:
            column = np.asarray(pd.to_numeric(self.own[name], errors="coerce"), float)
            if np.isfinite(column).all() and (column > 0).all() and np.ptp(column) > 0:
                power = float(np.polyfit(np.log(column), np.log(self.own["params"].to_numpy(float)), 1)[0])
                if power > 0.1:
                    return name, power
        return None, math.nan

    @property
    def family(self) -> str:
        """The family that the question is about: of those with several sizes the one of the lowest mean loss anywhere.

        Where none has several sizes, of those with a number of parameters.
        """
        sized = self.rows[self.rows["params"].notna()]
        if sized.empty:
            problem = "no model has a number of parameters, so nothing can be said about a bigger one"
            raise ValueError(f"There is no advice: {problem}; what more data would bring is said of each curve.")
        several = sized.groupby("family")["params"].transform("nunique") > 1
        sized = sized[several] if several.any() else sized
        return str(sized.groupby(["family", "params", "data"])["loss"].mean().idxmin()[0])

    @property
    def own(self) -> Table:
        """The rows of that family."""
        rows = self.rows
        return rows[(rows["family"] == self.family) & rows["params"].notna()]


def observed_of_run(rows: pd.DataFrame, *, most_data: float) -> Observed:
    """Return the tuned trials of a run, by the headline metric on the test set.

    Args:
        rows: the trial table.
        most_data: the most examples that a trial can have; infinite where the source makes more.

    Raises:
        ValueError: no trial counts.
    """
    best = tuned(rows)
    column, called = headline(rows)
    knobs, curves = knob_columns(rows), learning_curves(rows)
    params = best["params"].astype("float64")
    batches: Table = best["batch_size"] if "batch_size" in best else best["seed"] * math.nan
    one_batch = batches.groupby(models_of(best, among=rows)).transform("nunique") == 1
    table = pd.DataFrame(
        {
            "model": models_of(best, among=rows),
            "family": best["family"].astype(str),
            "params": params.where(params > 0),
            "data": best["train_examples"].astype("float64"),
            "loss": best[column].astype("float64"),
            "flops": best["flops"].astype("float64"),
            "seed": best["seed"],
            "steps": best["steps"].astype("float64").where(one_batch) if "steps" in best else math.nan,
            **{knob: best[knob] for knob in knobs},
        }
    )
    noun = called.removeprefix("test_").replace("_", " ")
    return Observed(table, "examples", noun, curves, trends(curves), most_data, tuple(knobs))


def observed_of_table(table: pd.DataFrame, *, columns: Mapping[str, str]) -> Observed:
    """Return the rows of any table with a size, an amount of data and a loss.

    Args:
        table: one row a run; further columns that are read where they are there: family, flops, seed.
        columns: "params", "tokens" or "examples", and "loss" -> the column, where it is called otherwise.

    Raises:
        ValueError: a column is missing or is no column of numbers, or a row holds what no run has.
    """
    if not columns.keys() - {"loss"} and set(map(str, table.columns)) >= TRIAL_TABLE:
        return observed_of_run(table, most_data=math.inf)  # as `scalejax export` writes it: tuned first
    known = {"params", "loss", "flops", "family", "seed", *DATA_NAMES}
    if unknown := sorted(columns.keys() - known):
        knows = f"what it knows is {listing(sorted(known))}, such as loss=COLUMN"
        raise ValueError(f"{listing(unknown)} means nothing to advise: {knows}.")
    there = listing(list(map(str, table.columns))) if len(table.columns) else "none"
    data = next((name for name in DATA_NAMES if name in columns or name in table.columns), None)
    if data is None:
        raise ValueError(f"There is no column of data: name one, such as tokens=COLUMN; the table has {there}.")

    def numbers(name: str) -> np.ndarray:
        column = columns.get(name, name)
        if column not in table.columns:
            raise ValueError(
                f"There is no column {column!r} for {name}: the table has {there}; say which, such as {name}=COLUMN."
            )
        try:
            return table[column].to_numpy(dtype="float64", na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The column {column!r} has values that are not numbers; {name} needs numbers.") from error

    params, amounts, loss = numbers("params"), numbers(data), numbers("loss")
    has_flops = columns.get("flops", "flops") in table.columns
    flops = numbers("flops") if has_flops else FLOPS_PER_PARAMETER_AND_TOKEN * params * amounts
    family = columns.get("family", "family")
    seed = columns.get("seed", "seed")
    names = table[family].astype(str).to_numpy() if family in table.columns else np.full(len(table), "model")
    rows: Table = pd.DataFrame(
        {
            "model": [f"{name} {value:,.0f}" for name, value in zip(names, params, strict=True)],
            "family": names,
            "params": params,
            "data": amounts,
            "loss": loss,
            "flops": flops,
            "seed": table[seed].to_numpy() if seed in table.columns else np.zeros(len(table)),
            "steps": flops / params if has_flops else np.nan,
        }
    )
    rows = rows[np.isfinite(rows["loss"])].reset_index(drop=True)
    for name in ("params", "data", "flops"):
        bad = ~(np.isfinite(rows[name]) & (rows[name] > 0))
        if bad.any():
            row = int(np.argmax(bad.to_numpy()))
            raise ValueError(f"{name} of row {row} is {rows[name].iloc[row]:g}: it must be positive and finite.")
    if rows.empty:
        raise ValueError("No row has a finite loss: there is nothing to advise from.")
    curves = _curves(rows)
    return Observed(rows, "tokens" if data == "tokens" else "examples", "loss", curves, trends(curves))


def _curves(rows: Table) -> Table:
    """Return the curve of each size, as `learning_curves` does of trials."""
    groups = rows.groupby(["model", "data"], sort=True)["loss"]
    curves: Table = groups.agg(value="mean", low="min", high="max", standard_error="sem", seeds="count").reset_index()
    curves = curves.rename(columns={"data": "train_examples"})
    for name in ("family", "params"):
        curves[name] = curves["model"].map(rows.groupby("model")[name].first())
    curves = curves.sort_values(["params", "model", "train_examples"], kind="stable", ignore_index=True)
    return curves.assign(metric="loss", band=BAND_RANGE, edge="")
