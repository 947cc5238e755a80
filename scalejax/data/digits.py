"""The 1,797 handwritten digits of scikit-learn (UCI, 8 x 8 pixels): small, real, and on every disk that has it."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalejax.data.source import Facts, Split, cut
from scalejax.errors import SweepError

VERSION = 1  # raise it whenever the numbers change: fingerprints contain it
PIXELS = 64
CLASSES = 10
EXAMPLES = 1_797


@dataclass(frozen=True)
class Digits:
    """The source: all digits, in an order drawn from the seed."""

    name = "digits"

    def facts(self) -> Facts:
        """Describe the data.

        Raises:
            SweepError: scikit-learn is not installed.
        """
        require_package()
        return Facts(
            shape=(PIXELS,),
            classes=CLASSES,
            examples=EXAMPLES,
            validation_examples=300,
            test_examples=300,
            content={"version": VERSION},
            kept=True,
        )

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return disjoint parts."""
        return cut(*read(seed), sizes)


def require_package() -> None:
    """Refuse if scikit-learn is missing, without importing it.

    Raises:
      SweepError: scikit-learn is not installed.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise SweepError(
            '[data] source = "digits" needs the package scikit-learn, which is not installed: '
            'run pip install "scalejax[digits]".'
        )


def read(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all digits in an order drawn from `seed`.

    Returns:
      inputs, float32 [1797, 64], pixels in [0, 1]; labels, int32 [1797], 0 to 9.

    Raises:
      SweepError: scikit-learn is not installed.
    """
    require_package()
    from sklearn.datasets import load_digits

    inputs, labels = map(np.asarray, load_digits(return_X_y=True))
    order = np.random.default_rng(seed).permutation(EXAMPLES)
    return (inputs[order] / 16.0).astype(np.float32), labels[order].astype(np.int32)
