"""Tables in files as examples: .csv and .parquet."""

import csv
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.data.encoding import Column
from scalejax.data.examples import Examples, Options, absent, fault
from scalejax.data.source import SPLITS
from scalejax.data.table import BadCellError, from_table
from scalejax.rules import SpecError
from scalejax.text import first_line, number_of

if TYPE_CHECKING:
    import pandas as pd


SUFFIXES = ".csv", ".parquet"
_Line = Callable[[Path, int], str]
# What stands for a missing number, as pandas has it. In a column of texts it is a text: only an empty cell is missing.
_GAPS = (
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip
_TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def read_csv(paths: Mapping[str, Path], options: Options, place: str) -> Examples:
    """Read one .csv file, or several that declare the splits.

    Args:
        paths: by split, "train" first; of one file alone, its rows are divided.
        options: which columns are what.
        place: what is read, for sentences.

    Raises:
        SpecError: a file cannot be read, has other columns than the first, or a column is no input or target.
    """
    return _read(paths, options, place, one=_read_csv, where=lambda path, row: f"line {_line(path, row):,}")


def read_parquet(paths: Mapping[str, Path], options: Options, place: str) -> Examples:
    """Read one .parquet file, or several that declare the splits; arguments and errors are those of `read_csv`."""
    return _read(paths, options, place, one=_read_parquet, where=lambda _, row: f"row {row + 1:,}")


def _read(
    paths: Mapping[str, Path],
    options: Options,
    place: str,
    *,
    one: "Callable[[Path, str], pd.DataFrame]",
    where: _Line,
) -> Examples:
    """Read files by `one`; `where` names the place of a row in a file."""
    import pandas as pd

    tables: dict[str, Any] = {name: one(path, str(path)) for name, path in paths.items()}
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
        return from_table(table, options, place, parts=parts)
    except BadCellError as error:
        raise _with_place(error, paths, tables, where) from None


def read_table(path: Path, columns: Sequence[Column]) -> "pd.DataFrame":
    """Read one more file, whose columns are to become the same inputs.

    Raises:
        SpecError: it cannot be read, or is of another kind.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise fault(str(path), f"expected a file of a table, {' or '.join(SUFFIXES)}")
    # Texts stay what they are: where all of them look like numbers, 007 would be 7.
    texts = [each.name for each in columns if each.values and all(isinstance(one, str | None) for one in each.values)]
    csv_file = path.suffix.lower() == SUFFIXES[0]
    return _read_csv(path, str(path), texts) if csv_file else _read_parquet(path, str(path))


def _with_place(
    error: BadCellError, paths: Mapping[str, Path], tables: "Mapping[str, pd.DataFrame]", where: _Line
) -> SpecError:
    """Name the line or the row of a file that a bad cell stands in."""
    row = error.row
    for name, table in tables.items():
        if row < len(table):
            return fault(str(paths[name]), f"{where(paths[name], row)}, {error.what}", "columns")
        row -= len(table)
    return error


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row of a CSV file, the header first, and the line on which it ends, counted from 1.

    Blank lines are no rows. It ends early where the file is none of the standard library's reader.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                if len(cells) > 1 or "".join(cells).strip():
                    yield reader.line_num, cells
    except (csv.Error, OSError, ValueError):
        pass


def _line(path: Path, row: int) -> int:
    """Return the line, counted from 1, on which a row of a CSV file ends; rows are counted from 0, below the header."""
    return next((line for seen, (line, _) in enumerate(_lines(path), start=-1) if seen == row), row + 2)


def _once(names: Sequence[str], place: str) -> None:
    """Refuse two columns of one name: pandas would rename the second, and it would be an input beside the target."""
    for name in names:
        if name and names.count(name) > 1:
            raise fault(place, f"there are two columns {name}; rename one of them")


def _same_length(path: Path, place: str) -> None:
    """Refuse rows that are shorter than the header."""
    count = 0
    for line, cells in _lines(path):
        count = count or len(cells)
        if len(cells) < count:
            found = f"line {line:,}: expected {number_of(count, 'value')}, one a column, found {len(cells)}"
            raise fault(place, f"{found}; complete that line, or take it out")


def _with_gaps(column: Any) -> Any:
    """Return a column of numbers or truth values with what stands for missing ones missing; of texts, as it is."""
    import pandas as pd

    gaps = column.isin(_GAPS)
    if not gaps.any():
        return column
    others = column.mask(gaps)
    try:
        return pd.to_numeric(others)
    except (ValueError, TypeError):
        present = others.dropna()
        return others.astype(object).map(_TRUTHS) if present.isin(list(_TRUTHS)).all() else column


def _read_csv(path: Path, place: str, texts: Sequence[str] = ()) -> "pd.DataFrame":
    import pandas as pd
    from pandas.api import types

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # index_col: no column of a file is taken for row names where its rows are longer than its header
            kinds: Any = dict.fromkeys(texts, str)
            table = pd.read_csv(
                path, index_col=False, low_memory=False, encoding="utf-8-sig", keep_default_na=False, na_values=[""],
                dtype=kinds,
            )  # fmt: skip
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
    _once(next((cells for _, cells in _lines(path)), []), place)
    if table.iloc[:, -1].isna().any():  # pandas completes a row that is too short
        _same_length(path, place)
    for column in table.columns:
        if not types.is_numeric_dtype(table[column]):
            table[column] = _with_gaps(table[column])
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
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]  # an extra

    try:
        names = parquet.read_schema(path).names
        _once(names, place)
        return pd.read_parquet(path, engine="pyarrow")
    except SpecError:
        raise
    except OSError as error:
        raise fault(place, f"not a Parquet file that can be read: {error.strerror or first_line(error)}") from None
    except Exception as error:
        raise fault(place, f"not a Parquet file that can be read: {first_line(error)}") from None
