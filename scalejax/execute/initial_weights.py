"""Initial weights, drawn beside the training shortly before their trials are placed; and the features before them."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

import jax
from flax import nnx

from scalejax.data.features import Chain
from scalejax.data.own_examples import FeatureFits, OwnExamples
from scalejax.execute.refusal import short_of_memory
from scalejax.models import Architecture
from scalejax.models.behind import with_fitted
from scalejax.planning.trial import Trial
from scalejax.train.numerics import current, hold

KEPT_BYTES = 2**28  # of weights that more trials are to share; beyond that they are drawn again
THREADS = 2  # that draw; more would only take the cores of the training

Weights = tuple[nnx.State, nnx.State]  # parameters, and the rest of the state
# What initial weights depend on: the size, and 32 random bits; behind features also what these are fitted on.
Identity = tuple[Architecture, int] | tuple[Architecture, int, OwnExamples]


def behind_features(weights: Weights, fits: FeatureFits, chain: Chain, own: OwnExamples) -> Weights:
    """Return the weights of a model behind features with what these are fitted to."""
    return weights[0], with_fitted(weights[1], fits.fitted(chain, own))


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
