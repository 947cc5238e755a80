"""One fit of a classical baseline, as a sweep asks for it. Nothing here imports JAX."""

import functools
import hashlib
import json
from dataclasses import dataclass

from scalejax.classical.families import FAMILIES
from scalejax.data.features import Chain
from scalejax.data.own_examples import OwnExamples
from scalejax.rules import Knob

# Raise it when a change here changes results: old rows are then never mixed with new.
RESULTS_VERSION = 1


@dataclass(frozen=True)
class OlderTrial:
    """One algorithm with one choice of its options, on one number of examples, with one seed.

    Its id is a hash of what determines its result. Like those of the families of scalejax it is the same over versions
    of the package that computes it; the column `program` says which one did. A field with a default came later: the id
    hashes it only where it differs from that.

    Attributes:
        family: the algorithm.
        hyperparameters: the value of each of its options.
        task: "classification" or "regression".
        metric: its headline metric, by name.
        data: fingerprint of the data set.
        train_examples: how many; the first ones of its seed's permutation of the pool.
        seed: of the sweep.
        inputs, outputs: numbers of an example after the features, and classes of a classification, else 1.
        subset_key: selects the permutation, as of all trials of the seed; follows from data and seed.
        random_state: of the algorithm; follows from data and seed.
        time_limit: seconds after which the fit is given up.
        features: digests of the steps before the algorithm.
        numerics: JAX's settings that change what these compute.
        features_named: what these are called in the rows; None where no model of the sweep names any.
        features_key: 32 bits that their fit may draw from; follows from data and seed.
        chain: the steps; the processes that fit do not get them.
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
    features: tuple[str, ...] = ()
    numerics: tuple[tuple[str, Knob], ...] = ()
    features_named: str | None = None
    features_key: int = 0
    chain: Chain = ()

    @functools.cached_property
    def trial_id(self) -> str:
        """Sixteen hexadecimal digits of a hash of the content."""
        names = "family", "hyperparameters", "task", "metric", "data", "train_examples", "seed"
        hashed = {name: getattr(self, name) for name in names}
        hashed |= {name: getattr(self, name) for name in ("features", "numerics") if getattr(self, name)}
        text = json.dumps(["classical", RESULTS_VERSION, hashed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def knobs(self) -> tuple[tuple[str, Knob], ...]:
        """What tells its model from others in the rows: its features where a sweep names any."""
        return () if self.features_named is None else (("features", self.features_named),)

    @property
    def own_examples(self) -> OwnExamples | None:
        """What its features are fitted on; None without features."""
        if not self.features:
            return None
        return OwnExamples(self.train_examples, self.subset_key, self.features_key)

    @property
    def params(self) -> int:
        """Numbers that a fit determines, 0 where that is not fixed."""
        count = FAMILIES[self.family].params
        return 0 if count is None else count(self.inputs, self.outputs)
