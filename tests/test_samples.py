"""Maps, images and texts as the kept models of a run see them, and their pictures. No model trains."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import scalejax as sx
from scalejax.data import describe, land, load
from scalejax.data.encoding import encoding_of
from scalejax.errors import SweepError
from scalejax.execute import kept
from scalejax.planning.trial import expand
from scalejax.report.figures.land import land_picture, wrong_share
from scalejax.report.figures.samples import WRONG, samples_picture
from scalejax.run import samples
from scalejax.run.rows import trial_row
from scalejax.run.samples import image_samples, land_maps, text_samples
from scalejax.run.store import ResultRow, Store
from scalejax.spec.file import sweep_to_toml
from scalejax.status import Status
from scalejax.train.padding import initial_weights

pytestmark = pytest.mark.usefixtures("compile_quickly")


def run_of(
    folder: Path, data: sx.DataSpec, grid: sx.ModelGrid, *, seeds: Any = (0,), without: int | None = None
) -> sx.Run:
    """Return a run whose trials are done and whose models were kept as they were drawn; `without` one, by place."""
    sweep = sx.Sweep("s", data, (grid,), sx.TrainSpec((0.1,), (4,), steps=5), seeds=seeds, keep_weights="all")
    (folder / "sweep.toml").write_text(sweep_to_toml(sweep))
    card = describe(sweep.data)
    plan: Any = SimpleNamespace(card=card)
    trials = [one.trial for one in expand(sweep, card)]
    with Store(folder / "results.sqlite", write=True) as store:
        store.plan([trial_row(trial, plan) for trial in trials])
        for place, trial in enumerate(trials):
            if place != without:
                weights: Any = jax.device_get(initial_weights(trial.architecture, trial.key("initialise")))
                found = kept.kept_model(trial, weights, card, encoding=encoding_of(sweep.data, card.sizes))
                kept.set_aside(folder / "models", found)
            known = {"train_loss": 1.0, "validation_loss": 1.0, "test_loss": 1.0, "test_metric": 0.5}
            end = ResultRow(
                trial.trial_id, Status.DONE, "", **known, best_step=5, seconds=1.0, steps_taken=5, mode="map",
                device="", versions="", program="", metric="error",
            )  # fmt: skip
            store.finish(end, [])
    return sx.Run(folder)


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> sx.Run:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("the cat sat on the mat,\nand the dog on the log. " * 30)
    options: Any = {"path": str(folder / "text.txt"), "sequence_length": 16}
    data = sx.DataSpec("bytes", train_examples=(20,), **options)
    return run_of(folder, data, sx.ModelGrid("transformer", {"heads": 1, "depth": 1, "head_size": 4}))


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> sx.Run:
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    labels = np.array(["cat", "dog"])[np.arange(80) % 2]
    np.savez(folder / "i.npz", x=random.integers(0, 256, (80, 5, 6), np.uint8), y=labels)
    data = sx.DataSpec(str(folder / "i.npz"), validation_examples=10, test_examples=30, train_examples=(20, 40))
    return run_of(folder, data, sx.ModelGrid("mlp", {"width": (2, 3), "depth": 1}))


def test_maps_are_those_of_the_first_seed_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    northern = np.zeros((21_600, 5_400), np.uint8)
    northern[10_800:] = 255  # sea in the south
    monkeypatch.setattr(land, "mask_checksum", lambda: 0)
    monkeypatch.setattr(samples, "packed_mask", lambda: northern)
    data = sx.DataSpec("land", train_examples=(20, 60), validation_examples=5, test_examples=5)
    run = run_of(tmp_path, data, sx.ModelGrid("logistic"), seeds=(0, 1), without=0)
    found = land_maps(run.directory, given=run.sweep)
    assert found is not None
    assert list(found.maps) == [("logistic", 20), ("logistic", 60)]
    assert found.truth.shape == (90, 180)
    assert found.truth[:45].all()
    assert not found.truth[45:].any()
    rows = run.results()
    second = rows[(rows["train_examples"] == 20) & (rows["seed"] == 1)].iloc[0]
    corner = land.Land().inputs(np.array([89.0, -89.0]), np.array([-179.0, 179.0]))
    np.testing.assert_allclose(corner, [[89 / 90, -179 / 180], [-89 / 90, 179 / 180]], rtol=1e-6)
    expected: Any = run.predict(second, corner, probabilities=True)
    drawn = found.maps["logistic", 20]
    np.testing.assert_allclose([drawn[0, 0], drawn[-1, -1]], expected.to_numpy()[:, 1], rtol=1e-5)


def test_the_inputs_of_a_map_are_those_of_the_data():
    source = land.Land(fourier_features=4)
    frequencies = land.draw_frequencies(2, scale=land.DEFAULT_FOURIER_SCALE)
    points = np.array([10.0, -20.0]), np.array([30.0, 170.0])
    np.testing.assert_array_equal(source.inputs(*points), land.embed(*points, frequencies).astype(np.float32))


def test_a_map_is_wrong_by_the_surface_and_not_by_cells():
    truth = np.zeros((18, 36))
    pole, equator = truth.copy(), truth.copy()
    pole[0], equator[9] = 1, 1
    assert wrong_share(truth, truth) == 0
    assert wrong_share(1 - truth, truth) == pytest.approx(1)
    assert wrong_share(pole, truth) < wrong_share(equator, truth) / 10
    picture: Any = land_picture({("small", 20): pole, ("large", 20): truth}, truth)
    assert "large on 20 examples has 0.0 % of the surface wrong" in picture.alt
    assert picture.data.columns.tolist()[3:] == ["small, 20 examples", "large, 20 examples"]
    assert land_picture({}, truth) is None
    gap: Any = land_picture({("small", 20): pole, ("large", 60): truth}, truth)
    assert any("no model of that cell was kept" in text.get_text() for text in gap.figure.texts)
    with pytest.raises(ValueError, match=r"small on 20 examples has the shape \[1, 36\]"):
        land_picture({("small", 20): pole[:1]}, truth)


def test_images_have_the_classes_of_the_data_and_of_both_models(image_run: sx.Run):
    found = image_samples(image_run.directory, given=image_run.sweep)
    assert found is not None
    test = load(sx.load_sweep(image_run.directory / "sweep.toml").data).test
    np.testing.assert_array_equal(found.examples[:7], test.inputs[:7])
    assert set(found.truth) == {"cat", "dog"}
    assert list(found.predictions) == ["mlp width 2", "mlp width 3"]
    rows = image_run.results().query("train_examples == 40 and seed == 0")
    for (model, said), trial in zip(found.predictions.items(), rows["trial_id"], strict=True):
        expected = image_run.predict(trial, test.inputs)
        np.testing.assert_array_equal(said[:7], expected[:7], err_msg=model)
    small, large = (said[7:] for said in found.predictions.values())
    assert (small != large).all()
    assert text_samples(image_run.directory, given=image_run.sweep) is None
    assert land_maps(image_run.directory, given=image_run.sweep) is None


def test_models_of_other_data_are_not_shown(image_run: sx.Run):
    path = image_run.directory / "i.npz"
    before = path.read_bytes()
    np.savez(path, x=np.zeros((80, 5, 6), np.uint8), y=np.arange(80) % 2)
    try:
        with pytest.raises(SweepError, match="was trained on other data than the sweep has now; bring back the data"):
            image_samples(image_run.directory, given=image_run.sweep)
    finally:
        path.write_bytes(before)


def test_texts_go_on_with_the_likeliest_token(text_run: sx.Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(samples, "CONTINUED", 3)
    table: Any = text_samples(text_run.directory, given=text_run.sweep)
    assert len(table) == 4
    assert table.columns.tolist() == ["context", "next", "transformer", "transformer: probability of the next"]
    test = load(sx.load_sweep(text_run.directory / "sweep.toml").data).test
    assert {len(text) for text in table["transformer"]} == {3}
    assert table["context"].iloc[0] == bytes(test.inputs[0].tolist()).decode().replace("\n", "↵")
    trial = text_run.results().query("seed == 0")["trial_id"].iloc[0]
    odds: Any = text_run.predict(trial, np.asarray(test.inputs[:1]), probabilities=True)
    assert table["transformer: probability of the next"].iloc[0] == pytest.approx(
        odds.iloc[0, int(test.targets[0])], rel=1e-5
    )
    first = chr(int(odds.iloc[0].to_numpy().argmax()))
    assert table["transformer"].iloc[0][0] == (first if first.isprintable() else {"\n": "↵"}.get(first, "�"))
    assert image_samples(text_run.directory, given=text_run.sweep) is None


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3), (3, 4, 5, 1), (3, 20)])
def test_a_wrong_class_is_marked_by_more_than_a_colour(shape: tuple[int, ...]):
    examples = np.random.default_rng(0).random(shape)
    picture: Any = samples_picture(examples, [0, 1, 2], {"small": [0, 0, 0], "large": [0, 1, 0]})
    words = [text for ax in picture.figure.axes for text in ax.texts]
    wrong = [text for text in words if WRONG in text.get_text()]
    assert [text.get_text() for text in wrong] == [f"a: 0 {WRONG}", f"a: 0 {WRONG}", f"b: 0 {WRONG}"]
    assert all(text.get_fontweight() == "bold" for text in wrong)
    assert picture.alt.endswith("small has 1 right and large has 2 right.")
    assert picture.data["large"].tolist() == [0, 1, 0]
    assert min(float(text.get_fontsize()) for text in words) >= 7.5


def test_samples_that_are_no_picture():
    assert samples_picture(np.zeros((0, 4, 5)), [], {"small": []}) is None
    assert samples_picture(np.zeros((1, 4, 5)), [0], {}) is None
    with pytest.raises(ValueError, match="give images or signals"):
        samples_picture(np.zeros(3), [0, 1, 2], {"small": [0, 0, 0]})
    with pytest.raises(ValueError, match="small has 2 classes for 3 examples"):
        samples_picture(np.zeros((3, 4, 5)), [0, 1, 2], {"small": [0, 0]})
