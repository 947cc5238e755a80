"""Tables in files as examples: .csv and .parquet."""

import csv
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.data.encoding import Column
from scalejax.data.examples import Examples, Options, absent, fault
from scalejax.data.source import SPLITS
from scalejax.data.table import BadCellError, from_table
from scalejax.rules import SpecError
from scalejax.text import first_line

if TYPE_CHECKING:
    import pandas as pd


def read_tables(paths: Mapping[str, Path], options: Options) -> Examples:
    """Read one file, or several that declare the splits.

    Args:
        paths: by split, "train" first; of one file alone, its rows are divided.
        options: which columns are what.

    Raises:
        SpecError: a file cannot be read, has other columns than the first, or a column is no input or target.
    """
    import pandas as pd

    tables: dict[str, Any] = {name: _READERS[path.suffix.lower()](path, str(path)) for name, path in paths.items()}
    first, *others = tables
    for name in others:
        for column in tables[first].columns:
            if column not in tables[name].columns:
                raise fault(str(paths[name]), absent(str(column), tables[name].columns), f"{name}_source")
        tables[name] = tables[name][tables[first].columns]
    parts = None
    if others:
        parts = np.repeat([SPLITS.index(name) for name in tables], [len(table) for table in tables.values()])
    table = pd.concat(list(tables.values()), ignore_index=True) if others else tables[first]
    try:
        return from_table(table, options, str(paths[first]), parts=parts)
    except BadCellError as error:
        raise _with_line(error, paths, tables) from None


def read_table(path: Path, columns: Sequence[Column]) -> "pd.DataFrame":
    """Read one more file, whose columns are to become the same inputs.

    Raises:
        SpecError: it cannot be read, or is of another kind.
    """
    kind = path.suffix.lower()
    if kind not in _READERS:
        raise fault(str(path), f"expected a file of a table, {' or '.join(_READERS)}")
    # Texts stay what they are: where all of them look like numbers, 007 would be 7.
    texts = [each.name for each in columns if each.values and all(isinstance(one, str | None) for one in each.values)]
    return _read_csv(path, str(path), texts) if kind == ".csv" else _READERS[kind](path, str(path))


def _with_line(error: BadCellError, paths: Mapping[str, Path], tables: "Mapping[str, pd.DataFrame]") -> SpecError:
    """Name the line of a file that a bad cell stands in."""
    row = error.row
    for name, table in tables.items():
        if row < len(table):
            path = paths[name]
            where = f"line {_line(path, row):,}" if path.suffix.lower() == ".csv" else f"row {row + 1:,}"
            return fault(str(path), f"{where}, {error.what}", "columns")
        row -= len(table)
    return error


def _line(path: Path, row: int) -> int:
    """Return the line, counted from 1, on which a row of a CSV file ends; rows are counted from 0, below the header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader, seen = csv.reader(file), -2
            for cells in reader:
                seen += bool(cells)  # blank lines are no rows; the header is row -1
                if seen == row:
                    return reader.line_num
    except (csv.Error, OSError, ValueError):
        pass
    return row + 2


def _read_csv(path: Path, place: str, texts: Sequence[str] = ()) -> "pd.DataFrame":
    import pandas as pd
    from pandas.api import types

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # index_col: no column of a file is taken for row names where its rows are longer than its header
            kinds: Any = dict.fromkeys(texts, str)
            table = pd.read_csv(path, index_col=False, low_memory=False, encoding="utf-8-sig", dtype=kinds)
    except pd.errors.EmptyDataError:
        raise fault(place, "the file is empty; expected a line of column names and one line an example") from None
    except UnicodeDecodeError:
        raise fault(place, "not UTF-8 text; save the file as UTF-8") from None
    except pd.errors.ParserWarning:
        raise fault(place, "its rows have more values than there are names of columns in its first line") from None
    except pd.errors.ParserError as error:
        reason = first_line(error).removeprefix("Error tokenizing data. ").removeprefix("C error: ")
        raise fault(place, f"not a table: {reason[:1].lower()}{reason[1:]}; each row needs a value a column") from None
    except OSError as error:
        raise fault(place, f"cannot be read ({error.strerror or error})") from None
    except Exception as error:  # numbers of thousands of digits, and what else its parser does not expect
        raise fault(place, f"not a CSV file that can be read: {first_line(error)}") from None
    name = str(table.columns[0])
    if len(table.columns) == 1 and (mark := next((each for each in ";\t|" if each in name), None)):
        shown = "tabs" if mark == "\t" else f'"{mark}"'
        raise fault(place, f"its columns are separated by {shown}; save it with commas")
    if not any(map(types.is_numeric_dtype, table.dtypes)):
        again = np.logical_and.reduce([(table[each] == each).to_numpy(bool, na_value=False) for each in table])
        if again.any():
            line = _line(path, int(again.argmax()))
            raise fault(place, f"line {line:,} repeats the names of the columns; take that line out")
    return table


def _read_parquet(path: Path, place: str) -> "pd.DataFrame":
    import pandas as pd

    if importlib.util.find_spec("pyarrow") is None:
        needs = 'a .parquet file needs the package pyarrow, which is not installed: run pip install "scalejax[parquet]"'
        raise fault(place, needs)
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except OSError as error:
        raise fault(place, f"not a Parquet file that can be read: {error.strerror or first_line(error)}") from None
    except Exception as error:
        raise fault(place, f"not a Parquet file that can be read: {first_line(error)}") from None


_READERS = {".csv": _read_csv, ".parquet": _read_parquet}
