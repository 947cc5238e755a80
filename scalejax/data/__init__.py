"""Data sets: described for the planner, then generated or read.

What takes long to make is kept in the cache on disk; the user's own files and objects are not.
"""

from scalejax.data.digits import Digits
from scalejax.data.examples import Options
from scalejax.data.features import Features
from scalejax.data.held import Given, Held
from scalejax.data.land import Land
from scalejax.data.mnist1d import MNIST1D
from scalejax.data.opening import FromFile, arrays, as_source, is_path, is_there, of_no_kind
from scalejax.data.source import DataCard, DataSet, Facts, Source, Split, cut, describe, drawn, load, source_name
from scalejax.data.tokens import Bytes, Tokens

# The one table that the sweep file needs: name -> source, whose fields are its options.
SOURCES = {"mnist1d": MNIST1D, "land": Land, "digits": Digits, "bytes": Bytes, "tokens": Tokens}

__all__ = [
    "SOURCES",
    "DataCard",
    "DataSet",
    "Facts",
    "Features",
    "FromFile",
    "Given",
    "Held",
    "Options",
    "Source",
    "Split",
    "arrays",
    "as_source",
    "cut",
    "describe",
    "drawn",
    "is_path",
    "is_there",
    "load",
    "of_no_kind",
    "source_name",
]
