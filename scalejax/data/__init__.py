"""Data sets: described for the planner, generated or read once, and kept in the cache."""

from scalejax.data.sources import SOURCES, DataCard, DataSet, Split, describe, load

__all__ = ["SOURCES", "DataCard", "DataSet", "Split", "describe", "load"]
