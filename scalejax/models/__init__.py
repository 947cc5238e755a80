"""Sized families of models, and the door for the user's own Flax modules."""

from scalejax.models.architecture import Architecture, architecture
from scalejax.models.logistic import Logistic
from scalejax.models.mlp import MLP

# The one table that the sweep file needs: family name -> builder with keyword-only size knobs.
FAMILIES = {"logistic": Logistic, "mlp": MLP}

__all__ = ["FAMILIES", "MLP", "Architecture", "Logistic", "architecture"]
