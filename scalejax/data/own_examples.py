"""A trial's own training examples, the features that are fitted on them, and what these make of all inputs."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from scalejax.data.features import Chain, Fitted, as_seen, fit, program, title, transform
from scalejax.data.host_shuffle import own_rows
from scalejax.data.source import DataSet
from scalejax.errors import SweepError

KEPT_BYTES = 2**28  # of what is fitted; beyond that it is fitted again


class OwnExamples(NamedTuple):
    """A trial's own training examples, which its features are fitted on, and the bits that a fit may draw from."""

    examples: int
    subset_key: int
    features_key: int


class FeatureFits:
    """Fits features on trials' own examples, each fit once. In memory are those used last, as many as `KEPT_BYTES`.

    Args:
        data: in memory.
    """

    def __init__(self, data: DataSet):
        self._data = data
        self._lock = threading.Lock()  # also while fitting: others would wait for the same fit, or for the same cores
        self._kept: OrderedDict[Any, tuple[Fitted, ...]] = OrderedDict()
        self._compiled = functools.cache(program)  # for as long as this object is there, and no longer

    def fitted(self, chain: Chain, own: OwnExamples) -> tuple[Fitted, ...]:
        """Return what each step fits.

        Raises:
            SweepError: see `features.fit`.
        """
        with self._lock:
            if (chain, own) not in self._kept:
                inputs = self._inputs(own)
                self._kept[chain, own] = fit(chain, inputs, own.features_key, compiled=self._compiled)
            self._kept.move_to_end((chain, own))
            while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return self._kept[chain, own]

    def transformed(self, chain: Chain, own: OwnExamples) -> dict[str, np.ndarray]:
        """Return the inputs after the steps, float32: "train", the own examples alone, "validation" and "test".

        Raises:
            SweepError: see `features.fit` and `features.transform`.
        """
        fitted = self.fitted(chain, own)
        held_out = {"validation": self._data.validation, "test": self._data.test}
        inputs = {"train": self._inputs(own)} | {name: as_seen(split.inputs) for name, split in held_out.items()}
        return {name: self._transform(chain, fitted, each) for name, each in inputs.items()}

    def check(self, wanted: Iterable[tuple[Chain, OwnExamples | None]]) -> None:
        """Try the features of a sweep on the fewest and on the most examples of its first seed.

        Args:
            wanted: of each trial the features, and what they are fitted on; None without any.

        Raises:
            SweepError: a step fails, or makes numbers that are not finite, or of an example what depends on those
                beside it.
        """
        groups: dict[Chain, dict[OwnExamples, None]] = {}
        for chain, own in wanted:
            if own:
                groups.setdefault(chain, {})[own] = None
        for chain, group in groups.items():
            seed = next(iter(group)).features_key
            first = [own for own in group if own.features_key == seed]
            for own in dict.fromkeys((min(first), max(first))):
                fitted, examples = self.fitted(chain, own), self._inputs(own)
                self._transform(chain, fitted, examples)
                validation = as_seen(self._data.validation.inputs)
                unseen, alone = (self._transform(chain, fitted, each) for each in (validation, validation[:1]))
                if not np.allclose(unseen[:1], alone, rtol=1e-3, atol=1e-3 * np.abs(unseen).max()):
                    why = "make something else of an example when others are beside it in a batch"
                    raise SweepError(
                        f"the features {title(chain)} {why}; treat each example by itself, and fit in `fit`"
                    )

    def _transform(self, chain: Chain, fitted: Sequence[Fitted], inputs: np.ndarray) -> np.ndarray:
        return transform(chain, fitted, inputs, compiled=self._compiled)

    def _inputs(self, own: OwnExamples) -> np.ndarray:
        pool = self._data.train.inputs
        return as_seen(pool[own_rows(own.examples, pool=len(pool), key=own.subset_key)])


def _bytes(fitted: Sequence[Fitted]) -> int:
    return sum(array.nbytes for arrays in fitted for array in arrays.values())
