"""What the rows of a sweep say: learning curves, trends and scaling laws. Sees only tables, never the engine."""

from scalejax.analysis.curves.curves import learning_curves, notes, order_at_smallest, trends
from scalejax.analysis.curves.tuning import tuned

__all__ = ["learning_curves", "notes", "order_at_smallest", "trends", "tuned"]
