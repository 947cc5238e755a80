from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from scalejax.report.figures.canvas import save_figure, spread
from scalejax.report.figures.learning_curves import plot_learning_curves

SIZES = np.array([20, 200, 2000, 20000, 1_000_000])


def make_curves(models=4, *, sizes=SIZES, logistic=True, edge="", floor=0.05):
    """Curves as learning_curves returns them: `models` widths and, if wanted, a logistic regression."""
    names = [("logistic", "logistic", 100)] if logistic else []
    names += [("mlp", f"mlp width {2 ** (k + 3)}", 1000 * 4**k) for k in range(models)]
    tables = []
    for place, (family, model, params) in enumerate(names):
        value = floor + 0.8 * (sizes / sizes[0]) ** (-0.05 * (place + 1))
        tables.append(pd.DataFrame({
            "model": model, "family": family, "params": params, "train_examples": sizes, "value": value,
            "low": 0.95 * value, "high": 1.05 * value, "standard_error": 0.02 * value, "seeds": 3, "diverged": 0,
            "pending": 0, "excluded_elsewhere": 0, "learning_rate": 1e-3, "learning_rates": 3, "edge": edge,
            "band": "smallest to largest seed", "metric": "test_error",
        }))  # fmt: skip
    return pd.concat(tables, ignore_index=True)


def model_lines(ax):
    return {line.get_label(): line for line in ax.lines if not str(line.get_label()).startswith("_")}


def label_boxes(ax, names):
    ax.figure.canvas.figure.draw_without_rendering()
    # An annotation's own extent includes its leader line; the words are what must not overlap.
    return [Text.get_window_extent(text) for text in ax.texts if text.get_text() in names]


@pytest.mark.parametrize("models", [1, 4, 12])
def test_one_line_a_model_with_its_data_on_logarithmic_axes(models):
    curves = make_curves(models)
    ax = plot_learning_curves(curves)
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    lines = model_lines(ax)
    assert list(lines) == list(dict.fromkeys(curves["model"]))
    for model, line in lines.items():
        expected = curves[curves["model"] == model]
        np.testing.assert_array_equal(line.get_xdata(), expected["train_examples"])
        np.testing.assert_array_equal(line.get_ydata(), expected["value"])
    assert len({line.get_color() for line in lines.values()}) == models + 1
    assert len(ax.collections) == models + 1  # one band each


def test_larger_models_are_darker_and_the_traditional_family_is_dashed():
    lines = model_lines(plot_learning_curves(make_curves(5)))
    brightness = [sum(to_rgb(line.get_color())) for line in lines.values()]
    assert brightness[1:] == sorted(brightness[1:], reverse=True)
    assert lines["logistic"].is_dashed()
    assert not lines["mlp width 8"].is_dashed()


@pytest.mark.parametrize("models", [2, 12, 40])
def test_labels_never_overlap_and_stay_on_the_page(models):
    curves = make_curves(models)
    curves["value"] = curves["value"].where(curves["train_examples"] < 1_000_000, 0.3)  # all lines meet
    ax = plot_learning_curves(curves, title="All meet")
    boxes = sorted(label_boxes(ax, set(curves["model"])), key=lambda box: box.y0)
    assert len(boxes) == models + 1
    assert all(lower.y1 <= upper.y0 + 0.5 for lower, upper in pairwise(boxes))
    page = ax.figure.bbox
    assert all(box.x1 <= page.x1 and box.y0 >= 0 and box.y1 <= page.y1 for box in boxes)


def test_labels_stand_in_the_order_of_the_line_ends():
    curves = make_curves(6)
    ax = plot_learning_curves(curves)
    last = [end["model"] for end in curves.to_dict("records") if end["train_examples"] == SIZES[-1]]
    last = last[::-1]  # the larger, the lower
    height = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert sorted(last, key=lambda model: height[model]) == last


def test_ticks_read_as_people_write_them():
    ax = plot_learning_curves(make_curves())
    ax.figure.canvas.figure.draw_without_rendering()
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["20", "200", "2k", "20k", "1M"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["0.1", "0.2", "0.5"]
    assert not [tick for tick in ax.yaxis.get_minorticklabels() if tick.get_text()]


@pytest.mark.parametrize(("edge", "marker", "glyph"), [("highest", "^", "△"), ("lowest", "v", "▽")])
def test_an_edge_of_the_grid_is_marked_and_explained(edge, marker, glyph):
    curves = make_curves()
    curves.loc[3, "edge"] = edge
    ax = plot_learning_curves(curves)
    marks = [np.asarray(line.get_xydata()) for line in ax.lines if line.get_marker() == marker]
    assert np.concatenate(marks).tolist() == [[20000, curves["value"][3]]]
    assert any(
        f"edge of its grid ({glyph} {edge}) in 1 point" in text.get_text().replace("\n", " ") for text in ax.texts
    )
    assert not any(glyph in text.get_text() for text in plot_learning_curves(make_curves()).texts)


def test_a_band_that_leaves_out_the_data_is_told_under_the_figure():
    curves = make_curves(1)
    words = "All seeds train on the same 1,000,000 examples, the whole pool"
    for pool, told in ((1_000_000, True), (2_000_000, False)):
        ax = plot_learning_curves(curves.assign(fraction=curves["train_examples"] / pool))
        text = " ".join(text.get_text() for text in ax.texts).replace("\n", " ")
        assert (words in text) == told


def test_zeros_gaps_and_intervals_below_zero():
    curves = make_curves(2)
    curves.loc[[6, 7], ["value", "low", "high"]] = [[0.0, 0.0, 0.0], [np.nan] * 3]
    curves.loc[8, "low"] = -0.1
    curves.loc[7, "seeds"] = 0
    ax = plot_learning_curves(curves)
    drawn = np.asarray(model_lines(ax)["mlp width 8"].get_ydata())
    assert np.isnan(drawn).tolist() == [False, True, True, False, False]
    text = " ".join(text.get_text() for text in ax.texts).replace("\n", " ")
    assert "Not drawn: 1 with value 0" in text
    assert "No trial counts in 1 point" in text
    assert ax.get_ylim()[0] > 0.05
    curves["value"] = 0.0
    with pytest.raises(ValueError, match="no positive value"):
        plot_learning_curves(curves)


def test_another_metric_than_the_error_is_named_on_the_axis_and_may_exceed_one():
    ax = plot_learning_curves(make_curves(floor=20.0).assign(metric="test_RMSE"))
    assert ax.get_ylabel() == "Test RMSE"
    assert ax.get_ylim()[1] > 20
    ax = plot_learning_curves(make_curves().assign(metric="test_RMSE"), unit="km")
    assert ax.get_ylabel() == "Test RMSE (km)"


@pytest.mark.parametrize("logistic", [True, False])
def test_one_size_and_one_model(logistic):
    ax = plot_learning_curves(make_curves(1, sizes=np.array([1500]), logistic=logistic))
    low, high = ax.get_xlim()
    assert low < 1500 < high
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1.5k"]


def test_draws_on_the_axes_it_is_given():
    ax = Figure(figsize=(10, 4)).subplots(1, 2)[1]
    assert plot_learning_curves(make_curves(), ax, title="Mine") is ax
    assert ax.get_title(loc="left") == "Mine"
    assert len(model_lines(ax)) == 5


def test_saving_writes_both_files_and_the_same_bytes_each_time(tmp_path):
    curves = make_curves(3, edge="lowest")
    ax = plot_learning_curves(curves)
    first = save_figure(ax.figure, tmp_path / "new" / "figures", "curves")
    assert [path.name for path in first] == ["curves.png", "curves.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    again = save_figure(ax.figure, tmp_path / "again", "curves")
    anew = save_figure(plot_learning_curves(curves).figure, tmp_path / "anew", "curves")
    for other in (again, anew):
        assert [path.read_bytes() for path in other] == [path.read_bytes() for path in first]
    assert sorted(path.name for path in first[0].parent.iterdir()) == ["curves.png", "curves.svg"]


def test_a_failed_save_leaves_the_old_figure_and_no_scraps(tmp_path, monkeypatch):
    figure = plot_learning_curves(make_curves(1)).figure
    paths = save_figure(figure, tmp_path, "curves")
    before = [path.read_bytes() for path in paths]

    def fail_half_way(_, path, **_options):
        Path(path).write_bytes(b"half a figure")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        save_figure(figure, tmp_path, "curves")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_spread_keeps_what_fits_and_parts_what_meets():
    assert spread([0.1, 0.5, 0.9], 0.2, low=0, high=1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5], 0.2, low=0, high=1) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0, 0.9], 0.2, low=0, high=1) == pytest.approx([0.0, 0.2, 0.9])
    assert spread([0.5] * 11, 0.5, low=0, high=1) == pytest.approx(np.linspace(0, 1, 11))
