"""One fit of an older algorithm, as a sweep asks for it. Nothing here imports JAX."""

import functools
import hashlib
import json
from dataclasses import dataclass

from scalejax.classical.families import FAMILIES
from scalejax.rules import Knob

# Raise it when a change here changes results: old rows are then never mixed with new.
RESULTS_VERSION = 1


@dataclass(frozen=True)
class OlderTrial:
    """One algorithm with one choice of its options, on one number of examples, with one seed.

    Its id is a hash of what determines its result. Like those of the families of scalejax it is the same over versions
    of the package that computes it; the column `program` says which one did.

    Attributes:
        family: the algorithm.
        hyperparameters: the value of each of its options.
        task: "classification" or "regression".
        metric: its headline metric, by name.
        data: fingerprint of the data set.
        train_examples: how many; the first ones of its seed's permutation of the pool.
        seed: of the sweep.
        inputs, outputs: numbers of an example, and classes of a classification, else 1; the data say both.
        subset_key: selects the permutation, as of all trials of the seed; follows from data and seed.
        random_state: of the algorithm; follows from data and seed.
        time_limit: seconds after which the fit is given up.
    """

    family: str
    hyperparameters: tuple[tuple[str, Knob], ...]
    task: str
    metric: str
    data: str
    train_examples: int
    seed: int
    inputs: int
    outputs: int
    subset_key: int
    random_state: int
    time_limit: float

    @functools.cached_property
    def trial_id(self) -> str:
        """Sixteen hexadecimal digits of a hash of the content."""
        names = "family", "hyperparameters", "task", "metric", "data", "train_examples", "seed"
        hashed = {name: getattr(self, name) for name in names}
        text = json.dumps(["classical", RESULTS_VERSION, hashed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def params(self) -> int:
        """Numbers that a fit determines, 0 where that is not fixed."""
        count = FAMILIES[self.family].params
        return 0 if count is None else count(self.inputs, self.outputs)
