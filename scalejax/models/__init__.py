"""Sized families of models, and the door for the user's own Flax modules."""

from scalejax.models.architecture import Architecture, architecture
from scalejax.models.cnn import CNN
from scalejax.models.logistic import Logistic
from scalejax.models.mlp import MLP
from scalejax.models.transformer import Transformer

# The one table that the sweep file needs: family name -> builder with keyword-only size knobs.
FAMILIES = {"logistic": Logistic, "mlp": MLP, "cnn": CNN, "transformer": Transformer}

# Family name -> knob -> the largest value: building a network of a thousand layers takes minutes, and none without
# residual connections learns anything long before that.
LARGEST_KNOBS = {"mlp": {"depth": 100}, "cnn": {"depth": 100}, "transformer": {"depth": 1000}}

__all__ = ["CNN", "FAMILIES", "LARGEST_KNOBS", "MLP", "Architecture", "Logistic", "Transformer", "architecture"]
