"""Where a curve goes beyond its data."""
