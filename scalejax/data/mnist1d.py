"""MNIST-1D, made here: ten short curves, padded, stretched, scaled, shifted, buried in noise and sheared.

The recipe and its default arguments are those of Greydanus, "Scaling down deep learning" (arXiv:2011.14439). Here it
is vectorised and works in independent blocks, so that it yields as many examples as one likes and example i never
depends on how many were asked for. There are no matrix products in it, so that the numbers do not depend on the
machine's BLAS either.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scalejax.data.source import Facts, Split, drawn

VERSION = 1  # raise it whenever the numbers change: fingerprints contain it
LENGTH = 40  # samples of one example
CLASSES = 10
BLOCK = 10_000  # examples that share a random generator; exactly 1,000 of each class

_TEMPLATE_POINTS = 12
_PADDING = (36, 60)  # zeros appended to a template, both ends included
_DILATED = _TEMPLATE_POINTS + _PADDING[1]  # every padded template is stretched to this length
_SCALE = 0.4
_SHIFTS = 48  # circular shifts 0 to 47
_SMOOTH_NOISE = 0.25  # standard deviation before smoothing
_WHITE_NOISE = 0.02
_SHEAR = 0.75
_SIGMA = 2.0  # of the Gaussian that smooths the noise, in samples
_RADIUS = 8  # where that Gaussian is cut off: 4 sigma, as in scipy.ndimage.gaussian_filter

# Mean and standard deviation of all numbers in 1,000,000 examples (seed 0, training split), measured once. The paper's
# code standardises by the set at hand, and then every example depends on the number of examples.
_MEAN = -0.006045
_STANDARD_DEVIATION = 0.154676

# fmt: off
_TEMPLATES = (  # Greydanus (2020), one curve a digit
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
# fmt: on


@dataclass(frozen=True)
class MNIST1D:
    """The source: as many examples of the ten curves as one asks for."""

    name = "mnist1d"

    def facts(self) -> Facts:
        """Describe the data."""
        return Facts(shape=(LENGTH,), classes=CLASSES, content={"version": VERSION}, kept=True)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return splits from streams of their own."""
        return drawn(lambda stream, examples: generate(seed, stream, examples), sizes)


def generate(seed: int, split: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    """Make the first `examples` examples of a split.

    Args:
      seed: of the data set, at least 0.
      split: number of the split; every split is a stream of its own.
      examples: how many.

    Returns:
      inputs, float32 [examples, 40], of about zero mean and unit variance; labels, int32 [examples], 0 to 9.
    """
    inputs = np.empty((examples, LENGTH), np.float32)
    labels = np.empty(examples, np.int32)
    curves = _stretched_templates()
    for block, start in enumerate(range(0, examples, BLOCK)):
        end = min(start + BLOCK, examples)
        # The block is always made in full: its draws must not depend on how much of it is wanted.
        block_inputs, block_labels = _block(np.random.default_rng([seed, split, block]), curves)
        inputs[start:end] = block_inputs.T[: end - start]
        labels[start:end] = block_labels[: end - start]
    return inputs, labels


def _stretched_templates() -> np.ndarray:
    """Return every template at every padding, stretched: float32 [72 samples, 10 digits * 25 paddings].

    Exact zeros mark the padding. The template's own values, zeros at its ends included, are lifted off zero by 1e-8, as
    in the paper's code: there noise replaces exactly what is zero.
    """
    templates = np.array(_TEMPLATES)
    templates -= templates.mean(axis=1, keepdims=True)
    templates /= templates.std(axis=1, keepdims=True)
    templates = (templates - templates[:, :1]) / 6.0 + 1e-8
    stretched = np.linspace(0.0, 1.0, _DILATED)
    curves = []
    for template in templates:
        for padding in range(_PADDING[0], _PADDING[1] + 1):
            padded = np.concatenate([template, np.zeros(padding)])
            curves.append(np.interp(stretched, np.linspace(0.0, 1.0, len(padded)), padded))
    return np.stack(curves, axis=1).astype(np.float32)


def _block(rng: np.random.Generator, curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Make one whole block: inputs, float32 [40, BLOCK], and labels, int32 [BLOCK].

    Examples lie along the last axis: every step below is then a plain operation on long contiguous rows.
    """
    paddings = _PADDING[1] - _PADDING[0] + 1
    labels = rng.permutation(np.arange(BLOCK, dtype=np.int32) % CLASSES)
    padding = rng.integers(paddings, size=BLOCK)
    scale = 1 + _SCALE * (rng.random(BLOCK, np.float32) - np.float32(0.5))
    shift = rng.integers(_SHIFTS, size=BLOCK)
    shear = _SHEAR * (rng.random(BLOCK, np.float32) - np.float32(0.5))
    noise = rng.standard_normal((_DILATED, BLOCK), np.float32)
    white = rng.standard_normal((_DILATED, BLOCK), np.float32)

    row = (np.arange(_DILATED)[:, None] - shift) % _DILATED  # a circular shift to the right
    signal = curves[row, labels * paddings + padding]
    signal = np.where(signal != 0, signal * scale, _SMOOTH_NOISE * _smooth(noise))
    signal += _WHITE_NOISE * white
    signal -= shear * np.linspace(-0.5, 0.5, _DILATED, dtype=np.float32)[:, None]
    return (_resample(signal) - np.float32(_MEAN)) / np.float32(_STANDARD_DEVIATION), labels


def _smooth(noise: np.ndarray) -> np.ndarray:
    """Smooth along the first axis by a Gaussian, mirrored at the ends (the edge sample repeated)."""
    offsets = np.arange(_RADIUS + 1)
    weights = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    weights = (weights / (weights[0] + 2 * weights[1:].sum())).astype(np.float32)
    samples = len(noise)
    padded = np.concatenate([noise[_RADIUS - 1 :: -1], noise, noise[: -_RADIUS - 1 : -1]])
    smoothed = weights[0] * noise
    for offset in range(1, _RADIUS + 1):
        left = padded[_RADIUS - offset : _RADIUS - offset + samples]
        right = padded[_RADIUS + offset : _RADIUS + offset + samples]
        smoothed += weights[offset] * (left + right)
    return smoothed


def _resample(signal: np.ndarray) -> np.ndarray:
    """Interpolate linearly along the first axis to LENGTH samples, ends included."""
    position = np.linspace(0.0, len(signal) - 1, LENGTH)
    left = np.minimum(position.astype(np.int64), len(signal) - 2)
    share = (position - left).astype(np.float32)[:, None]
    return signal[left] * (1 - share) + signal[left + 1] * share
