"""The pictures of the report: what they draw, what they say, and what they leave out."""

import math
import re
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from scalejax.analysis import learning_curves
from scalejax.analysis.curves.curves import models_of
from scalejax.analysis.forecast.statement import Advice, Statement
from scalejax.report.figures.canvas import NARROW, number_text, save_figure, styled
from scalejax.report.figures.compute import compute_picture
from scalejax.report.figures.exponents import exponents_picture
from scalejax.report.figures.learning_curves import plot_learning_curves, scale_picture
from scalejax.report.figures.parameters import parameters_picture
from scalejax.report.figures.picture import Picture
from scalejax.report.figures.rates import rates_picture
from scalejax.report.figures.training import training_picture
from scalejax.text import short

WIDTHS, SIZES, RATES, SEEDS = (8, 32, 128), (100, 1000, 10000), (1e-3, 1e-2, 1e-1), (0, 1)
SMALLEST = 7.5  # points of a letter
Pictures = dict[str, Any]  # by name


def trials() -> pd.DataFrame:
    """A logistic regression and three widths on three sizes: three rates, two seeds; the largest rate diverges."""
    records = []
    grid = [("logistic", math.nan, 50), *(("mlp", width, 20 * width) for width in WIDTHS)]
    for (family, width, params), size, rate, seed in product(grid, SIZES, RATES, SEEDS):
        loss = (0.2 + 4 / params) + 3 * size**-0.4 + 0.1 * (rate == 1e-3) + 0.01 * seed
        diverged = rate == 1e-1 and family == "mlp"
        records.append({
            "trial_id": f"{family}{width}-{size}-{rate}-{seed}", "family": family, "width": width, "params": params,
            "train_examples": size, "fraction": size / 1e5, "seed": seed, "learning_rate": rate, "weight_decay": 0.0,
            "batch_size": 10, "steps": size, "flops": 60 * params * size, "status": "diverged" if diverged else "done",
            "train_loss": loss, "validation_loss": math.nan if diverged else loss, "test_loss": loss,
            "test_error": math.nan if diverged else loss / 4, "steps_taken": size,
        })  # fmt: skip
    return pd.DataFrame(records)


def measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Four measurements along each trial; the loss of the third is the lowest."""
    records = [
        {
            "trial_id": row["trial_id"], "step": step, "examples_seen": 10 * step, "train_loss": 1.0,
            "validation_loss": row["test_loss"] * excess, "validation_metric": row["test_loss"] / 4 * excess,
        }
        for row in rows.to_dict("records")
        for step, excess in zip((10, 20, 50, 100), (3.0, 2.0, 1.0, 1.2), strict=True)
    ]  # fmt: skip
    return pd.DataFrame(records)


def advised(curves: pd.DataFrame) -> Advice:
    """A forecast of every model, and a trial of the largest one and two of a larger one at the same place."""
    bands = [
        {"model": model, "params": own["params"].iloc[0], "data": data, "value": value, "low": value / 2,
         "high": 2 * value}
        for model, own in curves.groupby("model", sort=False)
        for data, value in ((1e4, float(own["value"].iloc[-1])), (1e6, float(own["value"].iloc[-1]) / 3))
    ]  # fmt: skip
    next_trials = pd.DataFrame({"params": [1000.0, 5000.0, 6000.0], "data": 1e4, "flops": 1.0, "narrows": 0.1})
    columns = {"data": "examples", "loss": "error"}
    return Advice("both", (Statement("answer", "Both help."),), next_trials, pd.DataFrame(bands), 0.9, columns)


# Tables of pandas, of which the type checker does not know what a selection is.
ROWS: Any = trials()
CURVES: Any = learning_curves(ROWS)
MEASURED: Any = measured(ROWS)


def settings() -> dict[str, Any]:
    return {name: value for name, value in mpl.rcParams.items() if name != "backend"}  # found out when looked at


def all_pictures() -> Pictures:
    found: dict[str, Picture | None] = {
        "plain": scale_picture(CURVES),
        "scale": scale_picture(CURVES, advised(CURVES), title="Both help."),
        "parameters": parameters_picture(CURVES),
        "compute": compute_picture(ROWS, MEASURED),
        "exponents": exponents_picture(CURVES),
        "rates": rates_picture(ROWS),
        "training": training_picture(ROWS, MEASURED),
    }
    return {name: picture for name, picture in found.items() if picture is not None}


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    before = settings()
    found = all_pictures()
    assert settings() == before  # the style is nobody else's
    return found


NAMES = ("plain", "scale", "parameters", "compute", "exponents", "rates", "training")
each_picture = pytest.mark.parametrize("name", NAMES)


def marks(figure: Figure) -> dict[str, Line2D]:
    return {str(line.get_gid()): line for line in figure.findobj(Line2D) if line.get_gid()}


def words(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def caption(figure: Figure) -> str:
    return " ".join(text.get_text() for text in words(figure)).replace("\n", " ")


@each_picture
def test_a_picture_says_what_it_shows_and_holds_its_numbers(pictures: Pictures, name: str):
    picture = pictures[name]
    assert picture.name == ("scale" if name == "plain" else name)
    assert re.fullmatch(r"[A-Z].*[a-z]", picture.title)
    assert re.fullmatch(r"[A-Z].*\.", picture.alt)
    assert "nan" not in picture.alt + " ".join(sum(picture.tips.values(), ()))
    assert len(picture.data)
    assert not picture.data["model"].isna().all()


@each_picture
def test_every_mark_has_its_own_words(pictures: Pictures, name: str):
    picture = pictures[name]
    found = marks(picture.figure)
    assert set(found) == set(picture.tips)
    for gid, tips in picture.tips.items():
        drawn = np.asarray(found[gid].get_xydata(), float)
        assert drawn.shape == (len(tips), 2)
        ax: Any = found[gid].axes
        assert np.isfinite(drawn).all()
        for axis, scale, limits in ((0, ax.get_xscale(), ax.get_xlim()), (1, ax.get_yscale(), ax.get_ylim())):
            assert scale != "log" or (drawn[:, axis] > 0).all()
            low, high = sorted(limits)
            assert ((low <= drawn[:, axis]) & (drawn[:, axis] <= high)).all()


def test_the_marks_of_a_file_are_as_many_as_the_words(pictures: Pictures, tmp_path: Path):
    picture = pictures["scale"]
    text = save_figure(picture.figure, tmp_path, "scale")[1].read_text(encoding="utf-8")
    for gid, tips in picture.tips.items():
        group = text.split(f'<g id="{gid}">')[1]
        depth, end = 1, 0
        for tag in re.finditer(r"<(/?)g\b", group):
            depth += -1 if tag[1] else 1
            if depth == 0:
                end = tag.start()
                break
        assert group[:end].count("<use ") == len(tips)


@each_picture
def test_letters_are_large_enough_and_ticks_of_one_style(pictures: Pictures, name: str):
    with styled():
        look = settings()
    figure = pictures[name].figure
    assert min(float(text.get_fontsize()) for text in words(figure)) >= SMALLEST
    for ax in figure.axes:
        if not ax.get_visible() or ax.get_label() == "<colorbar>":
            continue
        assert not ax.spines["top"].get_visible()
        for tick in (*ax.xaxis.get_major_ticks(), *ax.yaxis.get_major_ticks()):
            assert to_rgb(str(tick.label1.get_color())) == to_rgb(look["xtick.labelcolor"])
            assert to_rgb(str(tick.tick1line.get_color())) == to_rgb(look["xtick.color"])
            assert not tick.tick2line.get_visible()


@pytest.mark.parametrize("name", ["scale", "rates"])
def test_a_picture_fits_a_phone(name: str):
    advice = advised(CURVES)
    picture = scale_picture(CURVES, advice, width=NARROW) if name == "scale" else rates_picture(ROWS, width=NARROW)
    assert picture is not None
    assert picture.figure.get_figwidth() == NARROW
    page = picture.figure.bbox
    for text in words(picture.figure):
        box = Text.get_window_extent(text)
        assert page.x0 - 3 <= box.x0 < box.x1 <= page.x1 + 3, text


def test_a_model_has_one_colour_in_every_picture(pictures: Pictures):
    colours: dict[str, set[Any]] = {}
    for name in ("scale", "compute", "exponents", "training"):
        picture = pictures[name]
        for gid, line in marks(picture.figure).items():
            for model in CURVES["model"].unique():
                if any(tip.startswith((f"{model},", f"{model}:")) for tip in picture.tips[gid]):
                    colours.setdefault(model, set()).add(to_rgb(str(line.get_color())))
    assert {model: len(found) for model, found in colours.items()} == dict.fromkeys(CURVES["model"].unique(), 1)
    assert len(set.union(*colours.values())) == 4


@each_picture
def test_no_mark_hides_a_point(pictures: Pictures, name: str):
    figure = pictures[name].figure
    drawn = [
        line
        for line in figure.findobj(Line2D)
        if line.get_marker() not in ("None", "", " ", "x", "$1$", "$2$", "$3$", None)
    ]
    inside = [line for line in drawn if line.axes is not None and line.get_alpha() != 0]
    ticks = {tick for ax in figure.axes for tick in (*ax.get_xticklines(), *ax.get_yticklines())}
    assert all(line.get_markerfacecolor() == "none" for line in inside if line not in ticks)


def test_the_forecast_goes_on_where_the_points_end(pictures: Pictures):
    picture = pictures["scale"]
    data = picture.data
    assert data["what"].value_counts().to_dict() == {"measured": 12, "forecast": 8, "suggested trial": 3}
    assert {"scale-next-0", "scale-next-1", "scale-next-2"} <= set(picture.tips)
    (ax,) = picture.figure.axes
    assert ax.get_xlim()[1] > 1e6
    assert "90 % interval of one run" in caption(picture.figure)
    ends = [end for end in data[data["what"] == "forecast"].to_dict("records") if end["train_examples"] == 1e6]
    assert f"{ends[-1]['value']:.2g}" in picture.alt
    places = [marks(picture.figure)[f"scale-next-{k}"] for k in (1, 2)]
    heights = [line.get_transform().transform(np.asarray(line.get_xydata()))[0, 1] for line in places]
    assert abs(heights[0] - heights[1]) > 10  # two trials at one place stand apart


def test_suggested_trials_have_numbers_that_hide_no_point_and_no_other(pictures: Pictures):
    figure = pictures["scale"].figure
    pixels = figure.dpi / 72
    (ax,) = figure.axes
    found = [marks(figure)[f"scale-next-{k}"] for k in range(3)]
    circles = np.concatenate([line.get_transform().transform(np.asarray(line.get_xydata())) for line in found])
    points = ax.transData.transform(CURVES[["train_examples", "value"]].to_numpy(float))
    apart = np.hypot(*(circles[:, None] - circles[None]).transpose(2, 0, 1)) / pixels
    assert (apart[~np.eye(3, dtype=bool)] > found[0].get_markersize()).all()
    assert (np.hypot(*(circles[:, None] - points[None]).transpose(2, 0, 1)) / pixels > 9).all()
    numbers = [line.get_marker() for line in figure.findobj(Line2D) if str(line.get_marker()).startswith("$")]
    assert numbers == ["$1$", "$2$", "$3$"]
    assert pictures["scale"].tips["scale-next-1"][0].startswith("Suggested trial 2: 5,000 parameters")


def test_a_long_title_stays_on_the_page():
    answer = (
        "These results cannot tell whether data or size helps: ten times the examples would cut the error by 67 % (90 "
        "% interval 31 to 84 %), ten times the parameters by 42 % (90 % interval 7 to 65 %)."
    )
    picture = scale_picture(CURVES, advised(CURVES), title=answer)
    assert picture is not None
    (ax,) = picture.figure.axes
    title = ax.get_title(loc="left")
    assert title.replace("\n", " ") == answer
    assert not any(line.startswith("%") for line in title.splitlines())
    box = ax._left_title.get_window_extent()  # pyright: ignore[reportAttributeAccessIssue]
    assert picture.figure.bbox.x0 <= box.x0 < box.x1 <= picture.figure.bbox.x1


def test_no_caption_speaks_of_light_and_dark(pictures: Pictures):
    for picture in pictures.values():  # a page in the dark scheme inverts them
        assert not re.search(r"\b(dark|light|pale)", caption(picture.figure) + picture.alt)


def test_a_point_says_what_it_is(pictures: Pictures):
    tip = pictures["scale"].tips["scale-3"][-1]
    point = CURVES.iloc[-1]
    value, low, high = (short(point[name], 3) for name in ("value", "low", "high"))
    assert tip == f"mlp width 128, 10,000 examples: test error {value} ({low} to {high}), learning rate 0.01"


def test_zeros_and_gaps_are_counted_and_never_drawn():
    curves = CURVES.copy()
    curves.loc[4, ["value", "low", "high"]] = 0.0  # of width 8
    curves.loc[7, ["value", "low", "high"]] = math.nan
    curves.loc[7, "seeds"] = 0
    scale: Any = scale_picture(curves)
    sizes: Any = parameters_picture(curves)
    assert [len(scale.tips[f"scale-{k}"]) for k in range(4)] == [3, 2, 2, 3]
    assert "1 with value 0" in caption(scale.figure)
    assert "1 point with value 0" in caption(sizes.figure)
    assert sum(map(len, sizes.tips.values())) == 10
    assert (scale.data["what"] == "measured, not drawn").sum() == 2


def test_the_frontier_is_the_lowest_mean_of_tuned_cells(pictures: Pictures):
    data = pictures["compute"].data
    assert (data["what"] == "trial").sum() == (ROWS["status"] == "done").sum()  # a diverged trial is no point
    assert "18 diverged" in caption(pictures["compute"].figure)
    cells = [(row["params"] * row["train_examples"] * 60, row["value"]) for row in CURVES.to_dict("records")]
    expected = {(c, v) for c, v in cells if not any(c2 <= c and v2 <= v and (c2, v2) != (c, v) for c2, v2 in cells)}
    found = data[data["what"] == "frontier"]
    np.testing.assert_allclose(found[["flops", "value"]].to_numpy(float), sorted(expected))


def test_what_has_no_flops_or_no_parameters_is_named():
    rows = ROWS.assign(
        flops=ROWS["flops"].where(ROWS["family"] == "mlp", 0), params=ROWS["params"].where(ROWS["family"] == "mlp", 0)
    )
    compute: Any = compute_picture(rows)
    sizes: Any = parameters_picture(learning_curves(rows))
    assert "for want of a count of FLOPs: logistic" in caption(compute.figure)
    assert "for want of a number of parameters: logistic" in caption(sizes.figure)
    assert "logistic" not in set(compute.data["model"]) | set(sizes.data["model"])


def test_rates_are_compared_with_the_best_of_their_column(pictures: Pictures):
    data = pictures["rates"].data
    assert len(data) == 4 * 3 * 3
    best = data[data["best"]]
    assert len(best) == 12
    np.testing.assert_allclose(best["ratio"].astype(float), 1)
    network = data[data["model"] == "mlp width 8"]
    assert set(network.loc[network["learning_rate"] == 1e-1, "state"]) == {"not finite"}
    assert "a seed diverged or failed" in caption(pictures["rates"].figure)
    at = network[(network["learning_rate"] == 1e-3) & (network["train_examples"] == 100)].iloc[0]
    loss = 0.205 + 4 / 160 + 3 * 100**-0.4
    assert at["ratio"] == pytest.approx((loss + 0.1) / loss)


def test_an_edge_of_the_rates_is_warned_of_and_a_stopped_trial_is_no_full_one():
    rows = ROWS[ROWS["learning_rate"] < 1e-1].copy()
    first = (rows["learning_rate"] == 1e-3) & (rows["train_examples"] == 100)
    rows.loc[first, "status"] = "stopped"
    rows.loc[first, "validation_loss"] = 0.01  # low, but of few steps
    picture: Any = rates_picture(rows)
    assert (picture.data["edge"] == "highest").sum() == 12
    assert "△ highest) in 12 cells: widen the grid" in caption(picture.figure)
    assert "12 of 12 are at an edge" in picture.alt
    stopped = picture.data[picture.data["state"] == "stopped"]
    assert not stopped["best"].any()
    assert "Small square" in caption(picture.figure)
    assert any(tip.endswith("when it was stopped early") for tip in picture.tips["rates-0"])


def test_training_shows_the_best_step_of_the_best_seed(pictures: Pictures):
    picture = pictures["training"]
    assert sorted(picture.data["train_examples"].unique()) == list(SIZES)
    assert all("-0.01-0" in trial for trial in picture.data["trial_id"])
    assert "of mlp width 128 at step 50" in picture.alt
    rings = [line for line in picture.figure.findobj(Line2D) if line.get_markersize() == 8 and line.axes is not None]
    assert len(rings) == 12
    assert {float(np.asarray(ring.get_xdata())[0]) for ring in rings} == {500.0}
    broken = MEASURED.assign(validation_loss=MEASURED["validation_loss"].where(MEASURED["step"] != 20))
    gaps = training_picture(ROWS, broken)
    assert gaps is not None
    assert {len(tips) for tips in gaps.tips.values()} == {3}
    assert "12 measurements not finite" in caption(gaps.figure)


def test_exponents_have_their_interval_and_their_verdict(pictures: Pictures):
    picture = pictures["exponents"]
    assert list(picture.data["model"]) == ["logistic", "mlp width 8", "mlp width 32", "mlp width 128"]
    half = (picture.data["high"] - picture.data["low"]) / 2
    np.testing.assert_allclose(half, 2 * picture.data["standard_error"])
    shown = caption(picture.figure)
    assert all(verdict in shown for verdict in picture.data["verdict"])
    single = exponents_picture(learning_curves(ROWS[ROWS["seed"] == 0]))
    assert single is not None
    assert "One seed, so no interval" in caption(single.figure)


def test_there_is_no_picture_where_there_is_nothing_to_show():
    assert scale_picture(CURVES.assign(value=0.0)) is None
    assert scale_picture(CURVES.head(0)) is None
    assert parameters_picture(CURVES[CURVES["model"] == "logistic"]) is None
    assert rates_picture(ROWS[ROWS["learning_rate"] == 1e-2]) is None
    assert compute_picture(ROWS.assign(flops=0)) is None
    assert training_picture(ROWS, MEASURED[MEASURED["step"] == 10]) is None
    assert exponents_picture(CURVES[CURVES["train_examples"] == 100]) is None


def test_rows_have_the_labels_of_their_curves():
    chosen = ROWS[ROWS["width"] == 32]
    assert set(models_of(chosen, among=ROWS)) == {"mlp width 32"}
    assert set(models_of(ROWS)) == set(CURVES["model"])


def test_axes_of_the_users_own_get_the_style():
    ax = Figure(figsize=(8, 5)).add_subplot()
    ax.plot([1, 2], [1, 2])
    plot_learning_curves(CURVES, ax)
    assert not ax.spines["right"].get_visible()
    assert not any(tick.tick2line.get_visible() for tick in ax.yaxis.get_major_ticks())
    assert ax.xaxis.get_major_ticks()[0].gridline.get_visible()


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "0.5"), (1e-5, "1e-5"), (2e-4, "0.0002"), (20_000, "20k"), (0, "0"), (-5, "-5")]
)
def test_a_tick_reads_as_people_write_it(value: float, text: str):
    assert number_text(value) == text
