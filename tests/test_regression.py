"""Regression from the data to the sentence: root mean squared errors, in tables, figures and laws."""

from pathlib import Path

import numpy as np
import pytest

import scalejax as sx

pytestmark = pytest.mark.usefixtures("compile_quickly")


def generated(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs [rows, 6] and targets [rows] with noise of standard deviation 0.1."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, 6))
    return x, np.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3] + generator.normal(0, 0.1, rows)


@pytest.mark.slow
def test_two_hundred_thousand_rows_from_the_picture_to_the_law(tmp_path: Path):
    x, y = generated(210_000)
    sweep = sx.Sweep(
        name="rows",
        seeds=tuple(range(2)),
        data=sx.DataSpec(
            source=sx.arrays(x, y),
            train_examples=(200, 2_000, 20_000, 200_000),
            validation_examples=4_000,
            test_examples=6_000,
        ),
        models=(sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=[16, 64], depth=2)),
        train=sx.TrainSpec(learning_rate=(3e-3, 1e-2), batch_size=(64,), steps=1_500, warmup_fraction=0.05),
    )
    run = sx.run_sweep(sweep, tmp_path, progress=False)
    table = run.results()
    assert set(table["metric"]) == {"RMSE"}
    assert all(table["test_error"].isna())
    np.testing.assert_allclose(table["test_metric"] ** 2, table["test_loss"], rtol=1e-4)
    table = run.curves()
    curves = dict(zip(zip(table["model"], table["train_examples"], strict=True), table["value"], strict=True))
    assert set(run.curves()["metric"]) == {"test_RMSE"}
    linear = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    residual = np.sqrt(np.mean((np.c_[x, np.ones(len(x))] @ linear - y) ** 2))
    assert curves["logistic", 200_000] == pytest.approx(residual, rel=0.05)  # a linear model, which flattens
    assert 0.1 < curves["mlp width 64", 200_000] < 0.35 < curves["mlp width 64", 200]
    words = " ".join(run.summary())
    assert "RMSE" in words
    assert "error" not in words
    picture = (tmp_path / "figures" / "learning_curves.svg").read_text(encoding="utf-8")
    assert len(picture) > 10_000
    fits = run.fit("power_floor", columns={"loss": "test_metric"}, bootstrap=20)
    assert fits.facts["columns"]["loss"] == "test_RMSE"
    floor = {curve: fit.params["e"] for curve, fit in fits.fits.items()}
    assert floor["logistic"] > 5 * 0.1  # what a linear model cannot explain, not the noise
    assert Path(fits.facts["figures"][0]).is_file()


@pytest.mark.slow
def test_diabetes_is_no_better_than_least_squares(tmp_path: Path):
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_diabetes(return_X_y=True)
    x, y = x / x.std(axis=0), (y - y.mean()) / y.std()
    data = sx.DataSpec(
        source=sx.arrays(x, y), train_examples=(20, 40, 70, 120, 200), validation_examples=90, test_examples=140
    )
    train = sx.TrainSpec(learning_rate=(3e-3, 1e-2), batch_size=(20,), steps=600)
    models = (sx.ModelGrid("logistic"), sx.ModelGrid("mlp", width=[4, 16], depth=1))
    run = sx.run_sweep(
        sx.Sweep(name="diabetes", seeds=tuple(range(5)), data=data, models=models, train=train),
        tmp_path,
        progress=False,
    )
    table = run.curves()
    curves = dict(zip(zip(table["model"], table["train_examples"], strict=True), table["value"], strict=True))
    assert 0.6 < curves["logistic", 200] < 0.85  # least squares leaves about 0.72 of one standard deviation
    assert curves["logistic", 200] < curves["logistic", 20]
    assert "RMSE" in " ".join(run.summary())
    fits = run.fit("power_floor", columns={"loss": "test_metric"}, bootstrap=0).fits
    assert 0.4 < fits["logistic"].params["e"] < 0.75
