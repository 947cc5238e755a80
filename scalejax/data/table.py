"""A table of columns (pandas) as examples: which column is the target, and which become inputs, and how."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scalejax.data.encoding import Column, plain_values
from scalejax.data.examples import (
    NO_GROUPS,
    ONE_HOT,
    Examples,
    Options,
    absent,
    as_parts,
    brief,
    fault,
    is_number,
    printable,
    separated,
    strays,
    without_separators,
)
from scalejax.errors import SweepError
from scalejax.rules import SpecError
from scalejax.text import number_of

if TYPE_CHECKING:
    import pandas as pd

MOST_CATEGORIES = 1_000  # of one column; a column of names or keys has more
_DATE = re.compile(r"\s*\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([ T]\d{1,2}:\d{2}.*)?\s*")
_NAMED = 8  # columns that a sentence lists
_LOOKED_AT = 100  # values of a column, to tell what it holds


def from_table(
    table: "pd.DataFrame",
    options: Options,
    place: str,
    *,
    target: Any = None,
    parts: np.ndarray | None = None,
) -> Examples:
    """Make examples of the rows of a table.

    Args:
        table: one example a row.
        options: which columns are what.
        place: what it was read from, for sentences.
        target: the targets, where they stand beside the table.
        parts: int [rows], the split of each row, where that is declared outside the table.

    Returns:
        Inputs are float32 [rows, inputs], in the order of the columns; a column of categories becomes one input for
        each of its values, in sorted order, a missing value among them.

    Raises:
        SpecError: a column is missing, or is no number, or numbers are missing in it; the first such column by name.
    """
    import pandas as pd

    table = table.rename(columns=str)
    if len(table.columns) != len(set(table.columns)):
        twice = next(name for name in table.columns if list(table.columns).count(name) > 1)
        raise fault(place, f"there are two columns {twice}; rename one of them")
    if table.empty:
        raise fault(place, "there is no example in it; expected a row of column names and one row an example")
    if target is None:
        if options.target is None:
            example = f'target = "{table.columns[-1]}"'
            there = ", ".join(table.columns[:8]) + (", ..." if len(table.columns) > 8 else "")
            raise fault(place, f"say which column is the target, as in {example}; there are {there}", "target")
        _require(table, options.target, "target", place)
        target, name = table[options.target], f"column {options.target}"
    else:
        if options.target is not None:
            raise fault(place, "the targets are given beside the table; drop this key", "target")
        name = "y"
    roles = {"target": options.target, "group": options.group, "split": options.split}
    for key in ("group", "split"):
        if roles[key] is not None:
            _require(table, roles[key], key, place)
    for column in options.columns or ():
        _require(table, column, "columns", place)
        for key, role in roles.items():
            if role == column:
                raise fault(place, f"column {column} is the {key} and cannot be an input", "columns")
    names = list(options.columns) if options.columns else [each for each in table if each not in roles.values()]
    if not names:
        raise fault(place, "no column is left as an input", "columns")
    for column in options.categories if options.categories != ONE_HOT else ():
        _require(table, column, "categories", place)
        if column not in names:
            raise fault(place, f"column {column} is no input", "categories")
    if options.columns is None and re.fullmatch(r"Unnamed: \d+", names[0]):
        remedy = "choose the inputs with columns = [...], or write the file without row numbers"
        raise fault(place, f"column {list(table).index(names[0]) + 1} has no name, as row numbers have; {remedy}")
    named = functools.partial(_named_categories, table, names, options)
    read = [_inputs(table[column], options, place, named) for column in names]
    inputs = np.concatenate([array for array, _ in read], axis=1)
    groups = None
    if options.group is not None:
        _complete(table[options.group].notna().to_numpy(bool), f"column {options.group}", "group", place)
        try:
            groups = pd.factorize(table[options.group], sort=True)[0]
        except TypeError:
            raise fault(place, f"column {options.group}: {NO_GROUPS}", "group") from None
    if options.split is not None:
        if parts is not None:
            raise fault(place, "the splits are declared already; drop this key", "split")
        parts = as_parts(table[options.split].to_numpy(), len(table), place)
    columns = tuple(column for _, column in read)
    return Examples(place, inputs, _targets(target, name, place), name, groups, parts, columns)


def encoded(table: "pd.DataFrame", columns: Sequence[Column], place: str, *, first: int = 0) -> np.ndarray:
    """Make inputs of the rows of another table as those of the first one were made.

    Args:
        table: one example a row; columns that are no inputs are left out.
        columns: that became inputs.
        place: what it is called in sentences.
        first: the number of its first row, for sentences.

    Returns:
        float32 [rows, inputs].

    Raises:
        SweepError: a column is missing, a number is, or a column of categories has one that the first table had not.
    """
    table = table.rename(columns=str)
    for column in columns:
        there = list(table.columns).count(column.name)
        if there != 1:
            says = f"there are two columns {column.name}" if there else absent(column.name, table.columns)
            raise SweepError(printable(f"{place}: {brief(says)}"))
    return np.concatenate([_encoded(table[column.name], column, place, first) for column in columns], axis=1)


def _encoded(found: Any, column: Column, place: str, first: int) -> np.ndarray:
    """Return what another column contributes to the inputs."""
    import pandas as pd

    def fault_at(row: int, says: str) -> SweepError:
        return SweepError(printable(f"{place}: column {column.name}, row {first + row + 1:,}: {brief(says)}"))

    missing = found.isna().to_numpy(bool)
    if column.values is None:
        with np.errstate(over="ignore", invalid="ignore"):
            numbers: Any = pd.to_numeric(found, errors="coerce")
            small = numbers.to_numpy(np.float64, na_value=np.nan).astype(np.float32)
        if (bad := ~np.isfinite(small)).any():
            row = int(bad.argmax())
            value = "nothing" if missing[row] else repr(found.iloc[[row]].tolist()[0])
            raise fault_at(row, f"expected a number, as in the training data, found {value}")
        return small[:, None]
    places = {value: number for number, value in enumerate(column.values)}
    texts = all(isinstance(value, str | None) for value in column.values)
    named = [None if gap else str(each) if texts else each for each, gap in zip(found.tolist(), missing, strict=True)]
    codes = np.array([places.get(value, -1) for value in named], int)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        value = "nothing" if missing[row] else repr(named[row])
        names = ["nothing" if each is None else str(each) for each in column.values[:8]]
        few = ", ".join([*names, *["..."] * (len(column.values) > 8)])
        raise fault_at(row, f"found {value}, which no row of the training data has; it has {few}")
    inputs = np.zeros((len(codes), len(places)), np.float32)
    inputs[np.arange(len(codes)), codes] = 1
    return inputs


def _require(table: "pd.DataFrame", column: str | None, key: str, place: str) -> None:
    if column not in table.columns:
        raise fault(place, absent(str(column), table.columns), key)


def _complete(there: np.ndarray, what: str, key: str, place: str) -> None:
    if not there.all():
        count = number_of(len(there), "row")
        remedy = "fill them in or leave these rows out"
        raise fault(place, f"{what}: missing in {int((~there).sum()):,} of {count}; {remedy}", key)


def _holds_texts(column: Any) -> bool:
    from pandas.api import types

    return not (types.is_numeric_dtype(column) or types.is_bool_dtype(column))


def _slips(column: Any) -> list[int]:
    """Return the rows of the few cells that are no numbers in a column of texts where all others are."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):  # the user says that these are categories
        return []
    rows = np.flatnonzero(column.notna())
    return [int(rows[place]) for place in strays(_texts(column))]


def _texts(column: Any) -> list[str]:
    return [str(each) for each in column.dropna().tolist()]


def _named_categories(table: "pd.DataFrame", names: Sequence[str], options: Options) -> list[str]:
    """Return the columns for `categories` to name: those that it names already, and all others of texts."""
    given = options.categories if options.categories != ONE_HOT else ()

    def of_texts(column: Any) -> bool:
        return _holds_texts(column) and not (_is_dates(column) or _slips(column) or separated(_texts(column)))

    return [name for name in names if name in given or of_texts(table[name])]


def _inputs(column: Any, options: Options, place: str, named: Callable[[], list[str]]) -> tuple[np.ndarray, Column]:
    """Return what a column contributes to the inputs, [rows, 1] or [rows, categories], and what that is.

    Args:
        column: of the table.
        options: whether it is one of categories.
        place: for sentences.
        named: returns the columns for `categories` to name, for sentences.
    """
    import pandas as pd
    from pandas.api import types

    texts = _holds_texts(column)
    what = f"column {column.name}"
    if types.is_complex_dtype(column):
        raise fault(
            place, f"{what}: expected real numbers, found complex ones; leave it out with columns = [...]", "columns"
        )
    if texts and _is_dates(column):
        first = column.dropna().iloc[0]
        says = f"holds dates, such as {str(first)[:20].strip()}"
        raise fault(place, f"{what} {says}; turn it into numbers, or leave it out with columns = [...]", "columns")
    one_hot = column.name in options.categories if options.categories != ONE_HOT else texts
    if one_hot:
        if options.categories == ONE_HOT:
            _no_slips(column, what, place, named)
        try:
            # Without missing values, sorted; then those.
            codes, values = pd.factorize(column, sort=True, use_na_sentinel=True)
        except TypeError:  # texts and numbers in one column
            codes, values = pd.factorize(column.astype("str"), sort=True, use_na_sentinel=True)
        codes = np.where(codes < 0, len(values), codes)
        count = len(values) + int(codes.max() == len(values))
        if count > MOST_CATEGORIES:
            slips = _text_fault(column, what, place, named)
            if options.categories == ONE_HOT and isinstance(slips, BadCellError):
                raise slips
            says = f"has {count:,} different values, too many for one input each; leave it out with columns = [...]"
            raise fault(place, f"{what} {says}", "categories")
        found = np.zeros((len(codes), count), np.float32)
        found[np.arange(len(codes)), codes] = 1
        return found, Column(str(column.name), (*plain_values(values), *[None] * (count - len(values))))
    if texts:
        raise _text_fault(column, what, place, named)
    numbers = column.to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(numbers).all():
        missing = np.isnan(numbers)
        count = number_of(len(numbers), "row")
        if missing.any():
            _complete(~missing, what, "columns", place)
        raise fault(place, f"{what}: infinite in {int((~np.isfinite(numbers)).sum()):,} of {count}", "columns")
    with np.errstate(over="ignore", invalid="ignore"):
        small = numbers.astype(np.float32)
    if not np.isfinite(small).all():
        raise fault(place, f"{what}: numbers too large for float32; give them in a larger unit", "columns")
    return small[:, None], Column(str(column.name))


def _listed(names: Sequence[str]) -> str:
    """Write the option that makes columns ones of categories."""
    return "categories = [" + ", ".join(f'"{name}"' for name in names) + "]"


def _no_slips(column: Any, what: str, place: str, named: Callable[[], list[str]]) -> None:
    """Refuse a column of numbers that a few cells turn into one of texts: nobody wants an input for each number."""
    if slips := _slips(column):
        count, others = len(slips), int(column.notna().sum()) - len(slips)
        more = f" (and a text in {number_of(count - 1, 'further row')})" if count > 1 else ""
        numbers = f"all other {others:,} cells are numbers"
        says = f'{what} holds "{str(column.iloc[slips[0]])[:40]}"{more}, and {numbers}'
        mend = "mend that cell or take out its row" if count == 1 else "mend those cells or take out their rows"
        raise BadCellError(
            place, says, row=slips[0], remedy=f"{mend}, or name the column: {_listed([*named(), str(column.name)])}"
        )
    if first := separated(_texts(column)):
        raise fault(place, f"{what} holds {without_separators(first)}", "columns")


def _text_fault(column: Any, what: str, place: str, named: Callable[[], list[str]]) -> SpecError:
    """Say why a column is none of numbers: it holds texts, or there are a few in between."""
    import pandas as pd

    if first := separated(_texts(column)):
        return fault(place, f"{what} holds {without_separators(first)}", "columns")
    present = column.dropna()
    numbers: Any = pd.to_numeric(present, errors="coerce")
    wrong = present[numbers.isna()]
    if 0 < len(wrong) < len(present) / 2:
        more = f" (and in {number_of(len(wrong) - 1, 'more row')})" if len(wrong) > 1 else ""
        row = int(np.flatnonzero(column.notna())[numbers.isna().to_numpy().argmax()])
        return BadCellError(place, f"{what}: expected a number, found {str(wrong.iloc[0])[:40]!r}{more}", row=row)
    shown = _texts(present)
    example = next((each for each in shown if not is_number(each)), shown[0] if shown else "")[:40]
    listed = named()
    way = _listed(listed) if len(listed) <= _NAMED else f'categories = "{ONE_HOT}"'
    each = "each value of these columns" if len(listed) > 1 else "each value"
    remedy = f"{way} makes one input of {each}, columns = [...] leaves it out"
    return fault(place, f'{what} holds texts, such as "{example}"; {remedy}', "categories")


class BadCellError(SpecError):
    """A cell that is no number, with its row, counted from 0, for the reader of a file to name the line."""

    def __init__(self, place: str, says: str, *, row: int, remedy: str = "correct it there"):
        self.row, self.what = row, f"{says}; {remedy}"
        super().__init__(printable(f"{place}: {brief(self.what)}"), table="data", keys=("columns",))


def _is_dates(column: Any) -> bool:
    from pandas.api import types

    if types.is_datetime64_any_dtype(column) or types.is_timedelta64_dtype(column):
        return True
    first = column.dropna().iloc[:_LOOKED_AT]
    return len(first) > 0 and all(
        _DATE.fullmatch(each) if isinstance(each, str) else hasattr(each, "isoformat") for each in first
    )


def _targets(target: Any, name: str, place: str) -> np.ndarray:
    """Return targets as numbers or texts, complete."""
    import pandas as pd
    from pandas.api import types

    key = "target" if name.startswith("column ") else "source"
    _complete(target.notna().to_numpy(bool), name, key, place)
    if isinstance(target.dtype, pd.CategoricalDtype):
        target = target.astype(target.cat.categories.dtype)
    if types.is_unsigned_integer_dtype(target) and target.max() > np.iinfo(np.int64).max:
        return target.to_numpy(np.uint64)
    if types.is_bool_dtype(target) or types.is_integer_dtype(target):
        return target.to_numpy(np.int64)
    if types.is_float_dtype(target):
        return target.to_numpy(np.float64)
    if _is_dates(target):
        raise fault(place, f"{name} holds dates, which are neither classes nor numbers", key)
    values: Any = target.to_numpy(object)
    if not all(isinstance(each, str) for each in values):
        raise fault(place, f"{name}: expected numbers or texts, found a mixture of types", key)
    return values.astype(str)
