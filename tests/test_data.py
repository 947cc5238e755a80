"""The data room: what is described, made, kept, healed and refused."""

import builtins
import importlib.util
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scalejax.data import DataSet, describe, digits, land, load, mnist1d
from scalejax.spec import DataSpec

MNIST = DataSpec("mnist1d", train_examples=(20, 200), validation_examples=50, test_examples=60)
LAND = DataSpec("land", train_examples=(500,), validation_examples=50, test_examples=60)
DIGITS = DataSpec("digits", fractions=(0.1, 1.0))

needs_mask = pytest.mark.skipif(importlib.util.find_spec("global_land_mask") is None, reason="needs scalejax[land]")
needs_digits = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="needs scalejax[digits]")


@pytest.fixture(scope="session")
def mask(tmp_path_factory: pytest.TempPathFactory):
    """The packed mask, packed once for all tests, and the cache folder that holds it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEJAX_CACHE", str(folder))
        land.packed_mask()
        return land.packed_mask(), folder  # the second one comes from the disk


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("SCALEJAX_CACHE", str(tmp_path))
    return tmp_path / "data"


@pytest.fixture
def land_cache(mask, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that holds the packed mask."""
    monkeypatch.setenv("SCALEJAX_CACHE", str(mask[1]))
    return mask[1] / "data"


def check_form(data: DataSet) -> None:
    card = data.card
    sizes = (card.examples, card.validation_examples, card.test_examples)
    for split, size in zip((data.train, data.validation, data.test), sizes, strict=True):
        assert split.inputs.shape == (size, *card.shape)
        assert split.inputs.dtype == np.float32
        assert split.targets.shape == (size,)
        assert split.targets.dtype == np.int32
        assert split.targets.min() >= 0
        assert split.targets.max() < card.classes
        assert np.isfinite(split.inputs).all()


GOLDEN_LABELS = [7, 5, 4]  # of the first three examples of seed 0
GOLDEN_INPUTS = [
    [1.62567, -0.34492, -0.41066, 0.05289],
    [1.57455, 0.537, -1.55978, -1.94002],
    [-0.54442, 0.20255, -2.01194, 2.11974],
]

# --- cards ---------------------------------------------------------------------------------------------------------


def test_defaults_of_sizes():
    card = describe(DataSpec("mnist1d", train_examples=(20, 200, 60)))
    assert (card.examples, card.validation_examples, card.test_examples) == (200, 2_000, 10_000)
    assert (card.shape, card.classes) == ((40,), 10)


@needs_digits
def test_digits_default_to_all_that_remain():
    card = describe(DIGITS)
    assert (card.examples, card.validation_examples, card.test_examples) == (1_197, 300, 300)
    assert (card.shape, card.classes) == ((64,), 10)


def test_examples_is_the_pool():
    assert describe(replace(MNIST, examples=1_000)).examples == 1_000
    assert describe(DataSpec("mnist1d", fractions=(0.1, 1.0), examples=1_000)).examples == 1_000


@needs_mask
def test_land_columns():
    assert describe(LAND).shape == (2,)
    assert describe(replace(LAND, fourier_features=0)).shape == (2,)
    assert describe(replace(LAND, fourier_features=48)).shape == (51,)


def test_fingerprint_follows_the_numbers():
    changed = [
        MNIST,
        replace(MNIST, seed=1),
        replace(MNIST, examples=201),
        replace(MNIST, validation_examples=51),
        replace(MNIST, test_examples=61),
    ]
    assert len({describe(spec).fingerprint for spec in changed}) == len(changed)


def test_fingerprint_ignores_what_does_not_change_the_numbers():
    assert describe(MNIST).fingerprint == describe(replace(MNIST, train_examples=(200,))).fingerprint
    assert (
        describe(MNIST).fingerprint
        == describe(replace(MNIST, train_examples=None, fractions=(0.5,), examples=200)).fingerprint
    )


def test_fingerprint_follows_the_generator_version(monkeypatch: pytest.MonkeyPatch):
    before = describe(MNIST).fingerprint
    monkeypatch.setattr(mnist1d, "VERSION", mnist1d.VERSION + 1)
    assert describe(MNIST).fingerprint != before


@needs_mask
def test_fingerprint_follows_the_fourier_options():
    specs = [
        LAND,
        replace(LAND, fourier_features=8),
        replace(LAND, fourier_features=10),
        replace(LAND, fourier_features=8, fourier_scale=0.7),
    ]
    assert len({describe(spec).fingerprint for spec in specs}) == len(specs)
    default = replace(LAND, fourier_features=8, fourier_scale=land.DEFAULT_FOURIER_SCALE)
    assert describe(default).fingerprint == describe(specs[1]).fingerprint


# Trials' ids hash them: if one of these changes, every finished run is orphaned.
FINGERPRINTS = [
    (MNIST, "78b2081d17664c19887920c9e7b79f0821b4774cac40a20b084d4cf31aeb8a11"),
    (replace(MNIST, seed=3), "6bf7025c0d4d9878ea9ea5eab9162bb8cd91792ebdca385ec62090894fec5fa4"),
    (
        DataSpec("mnist1d", fractions=(0.5,), examples=1000),
        "960b36edf15a38bb04afb9e20fa887718b17f0cdeff88aa2fa05900c52712d28",
    ),
    (LAND, "8c74d0494377bfc79e749d7f05ebe65bba2aa606c90595e79f2213a94e015c62"),
    (replace(LAND, fourier_features=48), "23dbf9294c8186eb9622f779f55572d8240eed4b531b4d31245837c95d9620ec"),
    (
        replace(LAND, fourier_features=8, fourier_scale=0.7),
        "b6de9ee97194389d6acceb09431a061221993d8b2be55a1b3edddeb5d6d3512f",
    ),
    (
        replace(LAND, fourier_features=8, fourier_scale=1),
        "a47423152d2879dc0dd4b061fab835513086099ac92b1c1338993e0eb7bd6783",
    ),
    (DIGITS, "a6a0110c3ac530a067565736465de88c1cd9525d975945859b43330d3dbbbd4b"),
    (replace(DIGITS, examples=100, seed=2), "9da30ec2448f2e4c65add994fd95f7ab2d27245cff364bcfc5169da480f2b071"),
]


@needs_mask
@needs_digits
@pytest.mark.parametrize(("spec", "fingerprint"), FINGERPRINTS)
def test_fingerprints_stay_what_they_were(spec: DataSpec, fingerprint: str):
    assert describe(spec).fingerprint == fingerprint


@needs_mask
def test_an_object_of_a_source_is_the_named_one_with_its_options():
    named = replace(LAND, fourier_features=8, fourier_scale=0.7)
    assert describe(replace(LAND, source=land.Land(8, 0.7))) == describe(named)
    assert describe(replace(MNIST, source=mnist1d.MNIST1D())) == describe(MNIST)


@pytest.mark.parametrize(
    "spec",
    [
        replace(MNIST, examples=10**9),
        pytest.param(replace(LAND, examples=10**9), marks=needs_mask),
        pytest.param(DIGITS, marks=needs_digits),
    ],
)
def test_describe_makes_nothing_in_memory_or_on_disk(spec: DataSpec, cache: Path):
    describe(spec)  # imports what it needs
    tracemalloc.start()
    try:
        describe(spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200_000  # bytes; a byte for each of 10**9 examples, or the images of the digits, would be more
    assert not cache.exists()


# --- mnist1d -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [1, 7, mnist1d.BLOCK - 1, mnist1d.BLOCK, mnist1d.BLOCK + 1])
def test_mnist1d_examples_do_not_depend_on_the_number_asked_for(examples: int):
    inputs, labels = mnist1d.generate(5, 0, 2 * mnist1d.BLOCK + 3)
    fewer_inputs, fewer_labels = mnist1d.generate(5, 0, examples)
    assert np.array_equal(fewer_inputs, inputs[:examples])
    assert np.array_equal(fewer_labels, labels[:examples])


def test_mnist1d_blocks_seeds_and_splits_differ():
    inputs, _ = mnist1d.generate(5, 0, 2 * mnist1d.BLOCK)
    first = inputs[: mnist1d.BLOCK]
    for other in (inputs[mnist1d.BLOCK :], mnist1d.generate(6, 0, 1_000)[0], mnist1d.generate(5, 1, 1_000)[0]):
        assert not set(other[:, 0].tolist()) >= set(first[:1_000, 0].tolist())
        assert abs(np.corrcoef(first[:1_000].ravel(), other[:1_000].ravel())[0, 1]) < 0.05


def test_mnist1d_is_standardised_and_balanced():
    inputs, labels = mnist1d.generate(1, 0, 2 * mnist1d.BLOCK)
    assert abs(inputs.mean()) < 0.02
    assert abs(inputs.std() - 1) < 0.02
    assert np.bincount(labels).tolist() == [2 * mnist1d.BLOCK // 10] * 10
    assert np.bincount(labels[:1_000], minlength=10).min() > 60  # shuffled, not sorted


def test_mnist1d_numbers_are_the_ones_of_this_version():
    # If this fails, the generator (or NumPy's) makes other numbers: raise mnist1d.VERSION, then renew the values.
    inputs, labels = mnist1d.generate(0, 0, 3)
    assert labels.tolist() == GOLDEN_LABELS
    np.testing.assert_allclose(inputs[:, ::13], GOLDEN_INPUTS, atol=2e-5)


def test_mnist1d_templates_are_stretched_between_exact_zeros():
    curves = mnist1d._stretched_templates()
    assert curves.shape == (72, 250)
    signal = (curves != 0).sum(axis=0)
    # 12 points of 12 + p, stretched to 72: the indices below 12 * 71 / (11 + p) keep some of the template.
    expected = [int(np.ceil(12 * 71 / (11 + p))) for p in range(36, 61)]
    assert signal.tolist() == expected * 10
    assert (np.diff((curves != 0).astype(int), axis=0) <= 0).all()  # one run of signal, at the beginning
    # Without padding's stretch (p = 60) the samples are the template itself, whose end lies at its start's height.
    np.testing.assert_allclose(curves[[0, 11], 24::25], 1e-8, atol=1e-12)


def test_mnist1d_smoothing_is_that_of_scipy():
    ndimage = pytest.importorskip("scipy.ndimage")
    noise = np.random.default_rng(0).standard_normal((72, 5)).astype(np.float32)
    np.testing.assert_allclose(mnist1d._smooth(noise), ndimage.gaussian_filter1d(noise, 2.0, axis=0), atol=1e-6)


def test_mnist1d_resampling_is_linear_interpolation():
    signal = np.random.default_rng(0).standard_normal((72, 3)).astype(np.float32)
    grid = np.linspace(0, 71, 40)
    expected = np.stack([np.interp(grid, np.arange(72), column) for column in signal.T], axis=1)
    np.testing.assert_allclose(mnist1d._resample(signal), expected, atol=1e-6)


def test_mnist1d_can_be_learned():
    # Nearest class mean of the magnitude spectrum, which shifts hardly change: far above the 10 % of chance.
    inputs, labels = mnist1d.generate(0, 0, 10_000)
    features = np.abs(np.fft.rfft(inputs, axis=1))
    means = np.stack([features[:5_000][labels[:5_000] == c].mean(axis=0) for c in range(10)])
    guess = ((features[5_000:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (guess == labels[5_000:]).mean() > 0.25


def test_mnist1d_memory_is_bounded():
    tracemalloc.start()
    inputs, labels = mnist1d.generate(0, 0, 50_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak - inputs.nbytes - labels.nbytes < 100e6


# --- land ----------------------------------------------------------------------------------------------------------


@needs_mask
@pytest.mark.parametrize(
    ("place", "latitude", "longitude", "expected"),
    [
        ("Berlin", 52.52, 13.40, 1),
        ("Sahara", 23.0, 10.0, 1),
        ("Amazon", -5.0, -60.0, 1),
        ("Australia", -25.0, 134.0, 1),
        ("Antarctica", -80.0, 90.0, 1),
        ("South Pole", -90.0, 0.0, 1),
        ("Siberia", 65.0, 110.0, 1),
        ("Pacific", 0.0, -140.0, 0),
        ("Pacific, at the date line, from the east", 0.0, -180.0, 0),
        ("Pacific, at the date line, from the west", 0.0, 180.0, 0),
        ("Atlantic", 30.0, -45.0, 0),
        ("Indian Ocean", -20.0, 80.0, 0),
        ("Tasman Sea", -38.0, 160.0, 0),
        ("North Pole", 90.0, 0.0, 0),
        ("Gulf of Guinea", 0.0, 0.0, 0),
    ],
)
def test_known_places(mask, place: str, latitude: float, longitude: float, expected: int):
    assert land.is_land(mask[0], np.array([latitude]), np.array([longitude])).tolist() == [expected], place


@needs_mask
def test_packed_mask_is_mapped_and_holds_the_share_of_land(mask):
    packed, _ = mask
    assert isinstance(packed, np.memmap)
    assert packed.shape == (21_600, 5_400)
    ocean = np.bitwise_count(packed).sum(axis=1) / 43_200
    weights = np.cos(np.radians(90 - (np.arange(21_600) + 0.5) / 120))
    assert 1 - np.average(ocean, weights=weights) == pytest.approx(0.29, abs=0.01)  # 29 % of the Earth is land


@needs_mask
@pytest.mark.usefixtures("land_cache")
@pytest.mark.parametrize("features", [0, 6])
def test_land_examples_do_not_depend_on_the_number_asked_for(features: int):
    def generate(split: int, examples: int):
        return land.generate(5, split, examples, fourier_features=features, fourier_scale=0.5)

    inputs, labels = generate(0, land.BLOCK + 3)
    for examples in (1, 7, land.BLOCK, land.BLOCK + 1):
        fewer_inputs, fewer_labels = generate(0, examples)
        assert np.array_equal(fewer_inputs, inputs[:examples])
        assert np.array_equal(fewer_labels, labels[:examples])
    assert not np.array_equal(generate(1, 3)[0], inputs[:3])
    assert not np.array_equal(inputs[land.BLOCK :], inputs[:3])


@needs_mask
@pytest.mark.usefixtures("land_cache")
def test_land_points_are_uniform_on_the_sphere_and_labelled_by_their_place(mask):
    inputs, labels = land.generate(0, 0, 20_000, fourier_features=0, fourier_scale=1.0)
    latitude, longitude = 90.0 * inputs[:, 0], 180.0 * inputs[:, 1]
    heights = np.sin(np.radians(latitude))
    assert np.abs(np.histogram(heights, 10, (-1, 1))[0] / 2_000 - 1).max() < 0.1
    assert np.abs(np.histogram(longitude, 10, (-180, 180))[0] / 2_000 - 1).max() < 0.1
    assert labels.mean() == pytest.approx(0.29, abs=0.015)
    # float32 moves a point by up to a metre, across a coast now and then.
    assert (land.is_land(mask[0], latitude.astype(float), longitude.astype(float)) == labels).mean() > 0.999


@needs_mask
@pytest.mark.usefixtures("land_cache")
def test_fourier_features_have_no_seam_and_unit_variance():
    frequencies = land.draw_frequencies(24, scale=land.DEFAULT_FOURIER_SCALE)
    latitude = np.array([10.0, 90.0])
    west = land.embed(latitude, np.array([-180.0, -50.0]), frequencies)
    east = land.embed(latitude, np.array([180.0, 120.0]), frequencies)
    np.testing.assert_allclose(west, east, atol=1e-12)  # the date line, and the pole
    inputs, _ = land.generate(0, 0, 10_000, fourier_features=48, fourier_scale=land.DEFAULT_FOURIER_SCALE)
    assert inputs.shape == (10_000, 51)
    np.testing.assert_allclose(inputs[:, :3].std(axis=0), 1, atol=0.05)
    np.testing.assert_allclose(np.square(inputs[:, 3:]).mean(), 1, atol=1e-5)
    assert np.square(inputs[:, 3:]).mean(axis=0).min() > 0.2


def test_fourier_frequencies_belong_to_the_source():
    few, many = land.draw_frequencies(3, scale=0.5), land.draw_frequencies(9, scale=1.0)
    np.testing.assert_allclose(2 * few, many[:3])
    assert land.draw_frequencies(100_000, scale=1.0).std() == pytest.approx(2 * np.pi, rel=0.01)


@needs_mask
@pytest.mark.usefixtures("land_cache")
def test_land_loads():
    data = load(replace(LAND, fourier_features=4))
    check_form(data)
    assert 0.15 < data.train.targets.mean() < 0.45


# --- digits --------------------------------------------------------------------------------------------------------


@needs_digits
@pytest.mark.usefixtures("cache")
def test_digits_are_divided_without_remainder_or_overlap():
    data = load(DIGITS)
    check_form(data)
    from sklearn.datasets import load_digits

    everything = np.concatenate([data.train.inputs, data.validation.inputs, data.test.inputs])
    original = np.asarray(load_digits(return_X_y=True)[0]) / 16
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, original.tolist()))
    assert np.bincount(data.train.targets).min() > 80


@needs_digits
def test_digits_order_follows_the_data_seed(cache: Path):
    first, again, other = digits.read(0), digits.read(0), digits.read(1)
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0])
    small, large = load(replace(DIGITS, fractions=None, train_examples=(50,), examples=50)), load(DIGITS)
    assert np.array_equal(small.train.inputs, large.train.inputs[:50])
    assert np.array_equal(small.test.inputs, large.test.inputs)
    assert cache.is_dir()


def test_the_room_neither_imports_jax_nor_the_mask_package(cache: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def guarded(name: str, *args):
        assert name.partition(".")[0] not in {"jax", "flax", "global_land_mask"}, name
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", guarded)
    check_form(load(MNIST))
    assert cache.is_dir()


def test_the_pool_of_digits_is_all_that_are_left_whatever_numbers_are_trained_on():
    some = replace(DIGITS, fractions=None, train_examples=(20, 50))
    assert describe(some) == describe(DIGITS)
