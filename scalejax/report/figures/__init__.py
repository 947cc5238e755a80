"""Figures: each file draws one, from tables and laws. The only place that knows matplotlib."""
