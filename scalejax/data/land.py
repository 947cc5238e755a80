"""Is there land at this point of the Earth? Any number of real labelled examples, from a mask of one-kilometre cells.

The mask is that of the PyPI package global-land-mask (MIT), made from NOAA's GLOBE elevation tiles: 21,600 rows of
latitude by 43,200 columns of longitude, one byte each. Importing that package takes 933 MB of memory. It is therefore
never imported: its file is found, streamed and packed to one bit a cell once, and the packed mask is memory-mapped.
"""

import importlib.util
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from scalejax.data.source import Facts, Split, drawn
from scalejax.data.storage import recall
from scalejax.errors import SweepError
from scalejax.files import cache_directory
from scalejax.rules import Rule, SpecError, strict

VERSION = 1  # raise it whenever the numbers change: fingerprints contain it
CLASSES = 2  # 0 ocean, 1 land; lakes mostly count as land
BLOCK = 10_000  # examples that share a random generator
DEFAULT_FOURIER_SCALE = 0.5  # with 48 features: logistic regression is flat near an error of 0.095 from 2,000 examples

_PACKAGE = "global_land_mask"
_FILE = "globe_combined_mask_compressed.npz"
_MEMBER = "mask.npy"  # True is ocean
_ROWS, _COLUMNS = 21_600, 43_200  # from latitude 90 downwards, from longitude -180 upwards
_CELLS_PER_DEGREE = 120
_ROWS_AT_A_TIME = 240  # 10 MB of the unpacked mask
# A constant, because the features belong to the source, not to one draw of its data. Of eight constants tried, this one
# gave logistic regression the flattest curve at 48 features.
_FREQUENCY_SEED = 6


@strict("data")
@dataclass(frozen=True)
class Land:
    """The source: points drawn uniformly on the sphere, with random Fourier features if that is asked for."""

    name = "land"

    fourier_features: int | None = field(default=None, metadata=Rule(int, at_least=0).beside)  # None or 0 is none
    fourier_scale: float | None = field(default=None, metadata=Rule(float, above=0).beside)  # cycles per radian

    def __post_init__(self) -> None:
        features = self.fourier_features or 0
        if features % 2:
            expected = "expected an even number, a cosine and a sine for each frequency"
            message = f"{expected}, found {features}; write {features + 1}"
            raise SpecError(message, table="data", keys=("fourier_features",))
        if self.fourier_scale is not None and not features:
            message = "has nothing to scale without fourier_features; give fourier_features as well, or drop it"
            raise SpecError(message, table="data", keys=("fourier_scale",))

    @property
    def _scale(self) -> float:
        return DEFAULT_FOURIER_SCALE if self.fourier_scale is None else self.fourier_scale

    def facts(self) -> Facts:
        """Describe the data.

        Raises:
            SweepError: global-land-mask is not installed, or is not the package we know.
        """
        features = self.fourier_features or 0
        content = {"version": VERSION, "mask": mask_checksum(), "fourier_features": features}
        scale = {"fourier_scale": self._scale} if features else {}
        return Facts(shape=(columns(features),), classes=CLASSES, content=content | scale, kept=True)

    def splits(self, seed: int, sizes: Mapping[str, int]) -> dict[str, Split]:
        """Return splits from streams of their own."""

        def draw(stream: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
            features = self.fourier_features or 0
            return generate(seed, stream, examples, fourier_features=features, fourier_scale=self._scale)

        return drawn(draw, sizes)

    def inputs(self, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
        """Return what a model sees of points given in degrees north and east [n]: float32 [n, columns]."""
        frequencies = draw_frequencies((self.fourier_features or 0) // 2, scale=self._scale)
        return encode(latitude, longitude, frequencies).astype(np.float32)


def columns(fourier_features: int) -> int:
    """Return the number of input columns: latitude and longitude, or the Fourier features and the unit vector."""
    return fourier_features + 3 if fourier_features else 2


def mask_checksum() -> int:
    """Return the CRC-32 of the unpacked mask, as its archive states it, without reading the mask.

    Raises:
      SweepError: global-land-mask is not installed, or is not the package we know.
    """
    path = _mask_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.getinfo(_MEMBER).CRC
    except (zipfile.BadZipFile, KeyError) as error:
        raise _unreadable(path) from error


def generate(
    seed: int, split: int, examples: int, *, fourier_features: int, fourier_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the first `examples` points of a split, uniformly on the sphere, and look up their labels.

    Args:
      seed: of the data set, at least 0.
      split: number of the split; every split is a stream of its own.
      examples: how many.
      fourier_features: how many columns of random Fourier features, even; 0 for latitude and longitude instead.
      fourier_scale: standard deviation of the features' frequencies, in cycles per radian.

    Returns:
      inputs, float32 [examples, columns(fourier_features)]; labels, int32 [examples], 1 for land.

    Raises:
      SweepError: global-land-mask is not installed, or is not the package we know.
    """
    mask = packed_mask()
    frequencies = draw_frequencies(fourier_features // 2, scale=fourier_scale)
    inputs = np.empty((examples, columns(fourier_features)), np.float32)
    labels = np.empty(examples, np.int32)
    for block, start in enumerate(range(0, examples, BLOCK)):
        end = min(start + BLOCK, examples)
        # The block is always drawn in full: its draws must not depend on how much of it is wanted.
        z, longitude = np.random.default_rng([seed, split, block]).uniform(
            [[-1.0], [-180.0]], [[1.0], [180.0]], (2, BLOCK)
        )
        z, longitude = z[: end - start], longitude[: end - start]
        latitude = np.degrees(np.arcsin(z))
        labels[start:end] = is_land(mask, latitude, longitude)
        inputs[start:end] = encode(latitude, longitude, frequencies)
    return inputs, labels


def encode(latitude: np.ndarray, longitude: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the inputs of points: as `embed` does; where there is no frequency, both angles in [-1, 1]."""
    if len(frequencies):
        return embed(latitude, longitude, frequencies)
    return np.stack([latitude / 90, longitude / 180], axis=1)


def is_land(mask: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Look up points in the packed mask.

    Args:
      mask: uint8 [21600, 5400], as `packed_mask` returns it.
      latitude: degrees north, [n], in [-90, 90].
      longitude: degrees east, [n], in [-180, 180].

    Returns:
      int32 [n], 1 for land, 0 for ocean.
    """
    # Cell (i, j) reaches from its corner (90 - i/120, -180 + j/120) to the south and to the east; the far edges of the
    # grid belong to its last cells.
    row = np.minimum((90.0 - latitude) * _CELLS_PER_DEGREE, _ROWS - 1).astype(np.int64)
    column = np.minimum((longitude + 180.0) * _CELLS_PER_DEGREE, _COLUMNS - 1).astype(np.int64)
    byte = mask[row, column // 8].astype(np.int32)
    return 1 - ((byte >> (7 - column % 8)) & 1)  # packbits puts the first cell into the highest bit; a set bit is ocean


def draw_frequencies(count: int, *, scale: float) -> np.ndarray:
    """Draw angular frequencies, normal with `scale` cycles per radian, in orthogonal triples: float64 [count, 3].

    Each frequency is distributed as in random Fourier features (Rahimi & Recht 2007); that three of them at a time are
    orthogonal (Yu et al. 2016) spreads few of them evenly. More frequencies begin with the same ones.
    """
    draws = np.random.default_rng(_FREQUENCY_SEED).standard_normal((-(-count // 3), 6, 3))
    first = draws[:, 0] / _norm(draws[:, 0])
    second = draws[:, 1] - (draws[:, 1] * first).sum(axis=1, keepdims=True) * first
    second /= _norm(second)
    directions = np.stack([first, second, np.cross(first, second)], axis=1)
    return (2 * np.pi * scale * _norm(draws[:, 3:]) * directions).reshape(-1, 3)[:count]


def _norm(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths along the last axis, which is kept."""
    return np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True))


def embed(latitude: np.ndarray, longitude: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the unit vector and the Fourier features of points: float64 [n, 3 + 2 * len(frequencies)].

    They are functions of the point on the sphere, so there is no seam at the date line and nothing odd at the poles.
    All columns are scaled to about unit variance; cosine and sine of one frequency are neighbours.
    """
    phi, theta = np.radians(longitude), np.radians(latitude)
    vector = np.stack([np.cos(theta) * np.cos(phi), np.cos(theta) * np.sin(phi), np.sin(theta)], axis=1)
    phase = sum(vector[:, axis, None] * frequencies[:, axis] for axis in range(3))  # no BLAS: same bits everywhere
    waves = np.stack([np.cos(phase), np.sin(phase)], axis=2).reshape(len(vector), -1)
    return np.concatenate([np.sqrt(3.0) * vector, np.sqrt(2.0) * waves], axis=1)


def packed_mask() -> np.ndarray:
    """Return the mask with one bit a cell, uint8 [21600, 5400], a set bit for ocean; packed once, then memory-mapped.

    Raises:
      SweepError: global-land-mask is not installed, or is not the package we know.
    """
    path = cache_directory("data") / f"land-mask-v{VERSION}-{mask_checksum():08x}.safetensors"
    return recall(path, lambda: {"mask": _pack()}, mapped=True)["mask"]


def _pack() -> np.ndarray:
    """Stream the package's mask and pack it; never more than a few rows are unpacked at a time."""
    path = _mask_file()
    packed = np.empty((_ROWS, _COLUMNS // 8), np.uint8)
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_MEMBER) as member:
            if _read_layout(member) != ((_ROWS, _COLUMNS), False, np.dtype(bool)):
                raise _unreadable(path)
            for start in range(0, _ROWS, _ROWS_AT_A_TIME):
                cells = np.frombuffer(member.read(_ROWS_AT_A_TIME * _COLUMNS), bool)
                packed[start : start + _ROWS_AT_A_TIME] = np.packbits(cells.reshape(_ROWS_AT_A_TIME, _COLUMNS), axis=1)
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise _unreadable(path) from error
    return packed


def _read_layout(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read an npy header: shape, column order, type."""
    if np.lib.format.read_magic(member) == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _mask_file() -> Path:
    """Find the mask of global-land-mask without importing it: the package loads all of it when imported."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise SweepError(
            '[data] source = "land" needs the package global-land-mask, which is not installed: '
            'run pip install "scalejax[land]".'
        )
    path = Path(found.origin).with_name(_FILE)
    if not path.is_file():
        raise _unreadable(path)
    return path


def _unreadable(path: Path) -> SweepError:
    """Return the refusal for a package whose mask is not the one we know."""
    return SweepError(
        f'[data] source = "land" expects {path} to hold the mask of global-land-mask 1.0 ({_ROWS} x {_COLUMNS} cells), '
        'but it does not: run pip install --force-reinstall "global-land-mask==1.0.0".'
    )
