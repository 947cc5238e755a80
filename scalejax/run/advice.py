"""Advice from a run or from any table: more data, or a bigger model, and which trials next."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scalejax.run.directory import LEDGER
from scalejax.run.store import Store

if TYPE_CHECKING:
    import pandas as pd

    from scalejax.analysis.forecast.advice import Advice
    from scalejax.run.run import Run


def advise(
    source: "Run | pd.DataFrame | str | os.PathLike[str]",
    *,
    target: float | None = None,
    compute: float = 10.0,
    columns: Mapping[str, str] | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> "Advice":
    """Say whether more data or a bigger model helps, what each would bring, and which trials would tell more.

    Args:
        source: a run, its directory, a CSV or Parquet file, or a table in memory: one row a run.
        target: a loss (or error) whose price is asked for.
        compute: a budget, in times the FLOPs of the largest model on the most data.
        columns: of a table: "params", "tokens" or "examples", "loss", "flops", "family", "seed" -> their columns, where
            they are called otherwise.
        level: probability of the intervals.
        seed: of the draws.

    Raises:
        ValueError: the caller's mistake, or too few results.
        SweepError: there are no results.
    """
    import pandas as pd

    from scalejax.analysis.forecast.advice import advise_rows
    from scalejax.analysis.forecast.observed import observed_of_run, observed_of_table
    from scalejax.analysis.tables import read_table

    if isinstance(source, pd.DataFrame):
        observed = observed_of_table(source, columns=columns or {})
    else:
        path = Path(source.directory if hasattr(source, "directory") else source)  # pyright: ignore
        if path.is_dir():
            with Store(path / LEDGER, write=False) as store:
                observed = observed_of_run(store.results(), most_data=math.inf)
        else:
            observed = observed_of_table(read_table(path), columns=columns or {})
    return advise_rows(observed, target=target, compute=compute, level=level, seed=seed)
