"""Initial weights, drawn beside the training shortly before their trials are placed; and the features before them."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import nnx

from scalejax.data import DataSet
from scalejax.data.features import Chain, Fitted, as_seen, fit, title, transform
from scalejax.data.host_shuffle import own_rows
from scalejax.errors import SweepError
from scalejax.execute.refusal import short_of_memory
from scalejax.models import Architecture
from scalejax.models.behind import with_fitted
from scalejax.planning.trial import OwnExamples, Trial
from scalejax.train.numerics import current, hold

KEPT_BYTES = 2**28  # of weights that more trials are to share; beyond that they are drawn again
THREADS = 2  # that draw; more would only take the cores of the training

Weights = tuple[nnx.State, nnx.State]  # parameters, and the rest of the state
# What initial weights depend on: the size, and 32 random bits; behind features also what these are fitted on.
Identity = tuple[Architecture, int] | tuple[Architecture, int, OwnExamples]


class FeatureFits:
    """Fits features on trials' own examples, each fit once. In memory are those used last, as many as `KEPT_BYTES`.

    Args:
        data: in memory.
    """

    def __init__(self, data: DataSet):
        self._data = data
        self._lock = threading.Lock()  # also while fitting: others would wait for the same fit, or for the same cores
        self._kept: OrderedDict[Any, tuple[Fitted, ...]] = OrderedDict()

    def fill(self, weights: Weights, architecture: Architecture, own: OwnExamples) -> Weights:
        """Return the weights of a model behind features with what these are fitted to."""
        return weights[0], with_fitted(weights[1], self._fitted(architecture.features, own))

    def check(self, trials: Iterable[Trial]) -> None:
        """Try the features of a sweep on the fewest and on the most examples of its first seed.

        Raises:
            SweepError: a step makes numbers that are not finite, or of an example what depends on those beside it.
        """
        groups: dict[Any, list[Trial]] = {}
        for trial in trials:
            if trial.own_examples:
                groups.setdefault(trial.architecture.features, []).append(trial)
        for chain, group in groups.items():
            first = [trial.own_examples for trial in group if trial.seed == group[0].seed and trial.own_examples]
            for own in dict.fromkeys((min(first), max(first))):
                fitted, examples = self._fitted(chain, own), self._inputs(own)
                transform(chain, fitted, examples)
                validation = as_seen(self._data.validation.inputs)
                unseen, alone = transform(chain, fitted, validation), transform(chain, fitted, validation[:1])
                if not np.allclose(unseen[:1], alone, rtol=1e-3, atol=1e-3 * np.abs(unseen).max()):
                    why = "make something else of an example when others are beside it in a batch"
                    raise SweepError(
                        f"the features {title(chain)} {why}; treat each example by itself, and fit in `fit`"
                    )

    def _inputs(self, own: OwnExamples) -> np.ndarray:
        pool = self._data.train.inputs
        return as_seen(pool[own_rows(own.examples, pool=len(pool), key=own.subset_key)])

    def _fitted(self, chain: Chain, own: OwnExamples) -> tuple[Fitted, ...]:
        with self._lock:
            if (chain, own) not in self._kept:
                self._kept[chain, own] = fit(chain, self._inputs(own), own.features_key)
            self._kept.move_to_end((chain, own))
            while len(self._kept) > 1 and sum(map(_bytes, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return self._kept[chain, own]


def _bytes(fitted: Sequence[Fitted]) -> int:
    return sum(array.nbytes for arrays in fitted for array in arrays.values())


class InitialWeights:
    """Draws the initial weights of trials. In memory are those of the next trials, and as many shared ones as fit.

    Args:
        draw: returns weights at their true size, on the host, from an architecture and 32 random bits and, behind
            features, from what these are fitted on.
    """

    def __init__(self, draw: Callable[..., Weights]):
        self._draw = draw
        self._threads = ThreadPoolExecutor(THREADS, "draw", initializer=hold, initargs=(current(),))
        self._lock = threading.Lock()
        self._needed: Counter[Identity] = Counter()  # by trials that have not ended
        self._drawn: dict[Identity, Future[Weights]] = {}
        self._kept: dict[Identity, int] = {}  # bytes of those that stay because more trials share them

    @property
    def count(self) -> int:
        """Number of weights in memory, those that are being drawn included."""
        with self._lock:
            return len(self._drawn)

    def expect(self, trials: Iterable[Trial]) -> None:
        """Take note of trials that will need weights."""
        with self._lock:
            self._needed.update(map(_identity, trials))

    def ahead(self, trials: Iterable[Trial]) -> None:
        """Have the weights of trials drawn that are placed next; returns at once."""
        for trial in trials:
            self._order(_identity(trial))

    def take(self, trials: Sequence[Trial]) -> list[Weights | Exception]:
        """Return the weights of trials that are placed now, or what their module has raised.

        Raises:
            MemoryError: or what else a device raises that is out of memory.
            CancelledError: the run ends.
        """
        orders = {identity: self._order(identity) for identity in map(_identity, trials)}
        drawn = {identity: _outcome(order) for identity, order in orders.items()}
        placed = Counter(map(_identity, trials))
        with self._lock:
            for identity, weights in drawn.items():
                if identity in self._kept or isinstance(weights, Exception):
                    continue  # what a module raises, it raises for all trials of this size and seed
                size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
                if self._needed[identity] > placed[identity] and sum(self._kept.values()) + size <= KEPT_BYTES:
                    self._kept[identity] = size
                else:
                    self._drop(identity)
        return [drawn[_identity(trial)] for trial in trials]

    def ended(self, trial: Trial) -> None:
        """Take note of a trial that needs no weights any more."""
        identity = _identity(trial)
        with self._lock:
            self._needed[identity] -= 1
            if self._needed[identity] <= 0:
                del self._needed[identity]
                self._drop(identity)

    def close(self) -> None:
        """Draw nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _order(self, identity: Identity) -> "Future[Weights]":
        with self._lock:
            if identity not in self._drawn:
                self._drawn[identity] = self._threads.submit(self._draw, *identity)
            return self._drawn[identity]

    def _drop(self, identity: Identity) -> None:
        self._drawn.pop(identity, None)
        self._kept.pop(identity, None)


def _identity(trial: Trial) -> Identity:
    drawn, fitted_on = (trial.architecture, trial.key("initialise")), trial.own_examples
    return drawn if fitted_on is None else (*drawn, fitted_on)


def _outcome(order: "Future[Weights]") -> Weights | Exception:
    try:
        return order.result()
    except CancelledError:
        raise
    except Exception as error:
        if short_of_memory(error):
            raise
        return error
