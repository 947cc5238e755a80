"""`scalejax fit`: on a table and on a run, as words, as data and as a figure."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ledgers import TRIAL, write_run
from test_curves import power_rows

from scalejax.analysis import learning_curves
from scalejax.analysis.laws.fit import fit_law
from scalejax.analysis.laws.laws import LAWS
from scalejax.analysis.tables import Observations, fit_table, from_trials
from scalejax.cli import main
from scalejax.report.figures.laws import plot_fits
from scalejax.report.figures.learning_curves import plot_learning_curves
from scalejax.report.fit import fit_facts, fit_tables
from scalejax.run import Run
from scalejax.run.store import TrialRow

pytestmark = pytest.mark.usefixtures("compile_quickly")
PLANTED = {"E": 1.7, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.31}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    n, d = (10 ** rng.uniform(6, 9, 40), 10 ** rng.uniform(8, 11, 40))
    loss = LAWS["chinchilla"](PLANTED, {"params": n, "tokens": d})
    path = tmp_path / "runs.csv"
    pd.DataFrame({"N": n, "D": d, "loss": loss}).to_csv(path, index=False)
    return path


def test_a_table_is_fitted_printed_given_as_data_and_drawn(table, tmp_path, capsys):
    call = ["fit", str(table), "--law", "chinchilla", "--columns", "params=N", "tokens=D", "--bootstrap", "50"]
    assert main([*call, "--figures", str(tmp_path / "figures")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("chinchilla: E + A / params^alpha + B / tokens^beta")
    assert "irreducible loss" in out
    assert "\nok (40 rows, " in out
    assert (tmp_path / "figures" / "fit_chinchilla.png").stat().st_size > 10_000
    shown: Any = pd.read_csv(tmp_path / "figures" / "fit_chinchilla.csv")
    assert list(shown) == ["curve", "params", "tokens", "loss", "law", "low", "high"]
    assert (shown["low"] <= shown["law"]).all()
    assert (shown["law"] <= shown["high"]).all()
    assert shown["loss"].to_numpy() == pytest.approx(shown["law"].to_numpy(), rel=0.1)
    assert main([*call, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (found,) = facts["fits"]
    assert facts["figures"] == []
    assert found["params"] == pytest.approx(PLANTED, rel=1e-6)
    assert found["intervals"].keys() == found["standard_errors"].keys() == PLANTED.keys()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run of one model on three sizes, the last of which is the whole pool, with three seeds."""
    rng = np.random.default_rng(2)
    trials = [
        replace(
            TRIAL, trial_id=f"{n}-{seed}", knobs={"width": 4}, train_examples=n, fraction=n / 2700, seed=seed
        )
        for n in (100, 300, 900, 2700) for seed in range(3)
    ]  # fmt: skip

    def noisy(trial: TrialRow) -> float:
        return 2 * trial.train_examples**-0.3 * float(np.exp(0.01 * rng.standard_normal()))

    return write_run(tmp_path / "run", trials, loss_of=noisy, metric_of=lambda loss: loss / 4)


def test_a_fit_to_a_run_says_where_seeds_share_their_examples(run, capsys):
    sentence = "All seeds train on the same 2,700 examples, the whole pool"
    call = ["fit", str(run), "--law", "power", "--bootstrap", "20"]
    assert main(call) == 0
    assert f"\nnote: {sentence}" in capsys.readouterr().out
    assert main([*call, "--json"]) == 0
    (note,) = json.loads(capsys.readouterr().out)["notes"]
    assert note.startswith(sentence)
    (seen,) = from_trials(LAWS["power"], Run(run).results(), columns={})
    figure = plot_fits([(seen, fit_law("power", seen.predictors, seen.loss, bootstrap=0))])
    (caption,) = [text.get_text() for text in figure.texts if text.get_text()]
    assert sentence in caption.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--law", "chinchila"], 2, "did you mean 'chinchilla'"),
        (["--law", "chinchilla"], 2, "no column 'params' for params: did you mean params="),
        (["--law", "chinchilla", "--columns", "params"], 2, "is not of the form NAME=COLUMN"),
        (["--law", "power", "--columns", "x=N", "--fix", "c=a"], 2, "expected a number, found 'a'"),
        (["--law", "power", "--columns", "x=N", "--fix", "z=1"], 2, "z"),
        (["--law", "power", "--columns", "x=N", "--bootstrap", "1"], 2, "bootstrap is 1"),
        (["--law", "power", "--columns", "x=N", "--ceiling", "1"], 2, "not below the ceiling"),
        (["--law", "power", "--columns", "x=N", "--seed", "-1"], 2, "seed is -1"),
        (["--law", "power", "--columns", "x=N", "--share", "c"], 2, "give several curves (--curves COLUMN)"),
    ],
)
def test_a_mistake_is_a_sentence(table, capsys, arguments, code, says):
    assert main(["fit", str(table), *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scalejax fit: ")
    assert says in line


@pytest.mark.parametrize(
    "option",
    [
        *(
            "plan --devices",
            "run --checkpoint-seconds",
            "run --host-number",
            "run --number-of-hosts",
            "fit --ceiling",
            "fit --bootstrap",
            "fit --seed",
            "fit --level",
        ),
        *("bench --widths", "bench --batch-size", "bench --repetitions"),
    ],
)
def test_a_word_in_place_of_a_number_is_a_sentence_in_plain_words(capsys, option):
    command, name = option.split()
    needed = {"plan": ["s.toml"], "run": ["s.toml"], "fit": ["t.csv", "--law", "power"], "bench": []}[command]
    with pytest.raises(SystemExit) as ended:
        main([command, *needed, name, "abc"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"scalejax {command}: argument {name}: expected a .*number.*, found 'abc'; see ", line)


def test_the_help_and_the_documentation_name_every_law_by_its_name(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    options = " ".join(capsys.readouterr().out.partition("options:")[2].split())
    listed = options.partition("--law LAW ")[2].partition(" --columns")[0]
    assert re.split(", | or ", listed) == list(LAWS)
    page = (Path(__file__).parents[1] / "docs/laws.md").read_text(encoding="utf-8")
    table = page.split("| law | formula | predictors |")[1].split("\n\n")[0]
    first = [line.split("|")[1] for line in table.splitlines()[2:]]
    assert re.findall("`(.+?)`", " ".join(first)) == list(LAWS)


def test_what_cannot_be_fitted_at_all_is_trouble_and_said(tmp_path, capsys):
    path = tmp_path / "t.csv"
    pd.DataFrame({"x": [1.0, 2.0, 3.0], "loss": [np.nan] * 3}).to_csv(path, index=False)
    assert main(["fit", str(path), "--law", "power"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not fitted" in line


def test_one_curve_that_cannot_be_fitted_does_not_hide_the_others(tmp_path, capsys):
    path, x = tmp_path / "t.csv", np.geomspace(1, 1000, 8)
    good = pd.DataFrame({"x": x, "loss": 2 * x**-0.3, "run": "good"})
    pd.concat([good, good.assign(loss=np.nan, run="bad")]).to_csv(path, index=False)
    assert main(["fit", str(path), "--law", "power", "--curves", "run", "--bootstrap", "0"]) == 1
    out = capsys.readouterr().out
    assert "\ngood: ok (8 rows, " in out
    assert "\nbad: not fitted: " in out


def test_curves_that_share_an_exponent_are_fitted_at_once_and_drawn(tmp_path, capsys):
    path, x = tmp_path / "t.csv", np.geomspace(10, 1e6, 16)
    curves = {"small": (0.3, 4.0), "large": (0.1, 2.0)}
    pd.concat([pd.DataFrame({"x": x, "loss": e + b * x**-0.3, "run": name}) for name, (e, b) in curves.items()]).to_csv(
        path, index=False
    )
    call = ["fit", str(path), "--law", "power_floor", "--share", "c", "--bootstrap", "20"]
    assert main([*call, "--curves", "run", "--figures", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (found,) = facts["fits"]
    planted = {"e[large]": 0.1, "e[small]": 0.3, "b[large]": 2.0, "b[small]": 4.0, "c": 0.3}
    assert found["params"] == pytest.approx(planted, rel=1e-6)
    assert found["rows"] == 32
    assert (tmp_path / "fit_power_floor.png").stat().st_size > 10_000
    shown: Any = pd.read_csv(tmp_path / "fit_power_floor.csv")
    assert set(shown["curve"]) == {"small", "large"}
    assert main(call) == 2
    assert "There is one curve only, with nothing to share c with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "words"), [(1, ("1 row,", "1 row (", "1 row repeats another exactly", "1 resample "))]
)
def test_one_row_and_one_resample_are_not_told_as_several(number, words):
    x = np.geomspace(1, 1000, 8)
    fit = fit_law("power", {"x": x}, 2 * x**-0.3, bootstrap=2)
    facts = fit_facts({"": fit}, {"x": "x", "loss": "loss"}, level=0.9)
    facts["fits"][0] |= dict.fromkeys(("rows", "duplicates", "failed_resamples"), number)
    facts["fits"][0]["excluded"] = {"loss is NaN": number}
    text = "\n".join(part for part in fit_tables(facts) if isinstance(part, str))
    assert all(word in text for word in words)


def test_several_rows_are_told_as_several():
    x = np.tile(np.geomspace(1, 1000, 8), 2)
    fit = fit_law("power", {"x": x}, np.where(np.arange(16) > 13, np.nan, 2 * x**-0.3), bootstrap=2)
    text = "\n".join(str(part) for part in fit_tables(fit_facts({"": fit}, {"x": "x", "loss": "loss"}, level=0.9)))
    assert "(14 rows, " in text
    assert "left out: 2 rows (loss is NaN)" in text
    assert "6 rows repeat others exactly" in text


@pytest.mark.parametrize(
    "name", ["power_floor", "chinchilla", pytest.param("data_constrained", marks=pytest.mark.slow)]
)
def test_every_kind_of_law_is_drawn_with_points_law_interval_and_residuals(name):
    rng, law = np.random.default_rng(1), LAWS[name]
    predictors = {each: 10 ** rng.uniform(3, 6, 30) for each in law.predictors}
    if name == "data_constrained":
        predictors["tokens"] = predictors["unique_tokens"] * 10 ** rng.uniform(0, 1.5, 30)
    loss = 1 + predictors[law.predictors[0]] ** -0.2 + predictors[law.predictors[-1]] ** -0.2
    loss = loss * np.exp(rng.normal(0, 0.01, 30))
    loss[3] = np.nan
    fit = fit_law(law, predictors, loss)
    seen = Observations("", predictors, loss, None, {"loss": "test_loss", **{each: each for each in predictors}})
    top, below = plot_fits([(seen, fit)]).axes
    drawn = sum(np.asarray(line.get_xdata()).size for line in below.lines[:-1])
    drawn += sum(np.asarray(each.get_offsets()).shape[0] for each in below.collections)
    assert drawn == 29
    assert top.collections
    assert law.formula in top.get_title("left")
    assert ("not identifiable" in top.get_title("left")) == ("not identifiable" in fit.status)
    assert top.get_ylabel() == "Test loss"
    assert len(top.get_yticks()) >= 3


def test_a_model_has_one_colour_in_both_figures():
    rows = power_rows({8: 0.3, 64: 0.5, 16: 0.4}).query("width != 16 or train_examples < 200")
    logistic = power_rows({1: 0.1}).assign(family="logistic", width=np.nan, params=410)
    rows = pd.concat([rows, logistic], ignore_index=True).assign(steps_taken=100)
    rows["trial_id"] = [str(place) for place in rows.index]
    curves = {line.get_label(): line.get_color() for line in plot_learning_curves(learning_curves(rows)).lines}
    found = from_trials(LAWS["power"], rows, columns={"loss": "test_error"})
    done = fit_table(LAWS["power"], found, bootstrap=0)
    top, below = plot_fits(done.curves).axes
    fits = {line.get_label(): line.get_color() for line in top.lines if not str(line.get_label()).startswith("_")}
    assert set(fits) == {"mlp width 8", "mlp width 16", "mlp width 64", "logistic"}
    assert fits.items() <= curves.items()
    assert [line.get_color() for line in below.lines[:-1]] == list(fits.values())


def test_nothing_to_draw_is_said():
    with pytest.raises(ValueError, match="no fit"):
        plot_fits([])
