"""The report: its three sentences, its sections, what is written where, and what it says where something is missing."""

import contextlib
import html
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from ledgers import write_run
from reports import SWEEP, loss_of, planted_advice, planted_facts, planted_run, planted_trials
from test_public import REPORT, keys, spelled

import scalejax as sx
from scalejax.analysis.forecast.verdict import NEITHER
from scalejax.cli import main
from scalejax.report.answer import Speed, answer_of, span, speed_of
from scalejax.report.figures.compare import compare_picture
from scalejax.report.figures.vector import svg_of
from scalejax.report.page.figure_svg import inlined
from scalejax.report.page.html import page_of
from scalejax.report.page.markdown import markdown_of
from scalejax.report.page.section import Chapter, Code, Drawn, Grid, Report, Section
from scalejax.report.sections import Facts, chapter_of, compared, not_counted
from scalejax.run.report import _together, is_current, report_at_end
from scalejax.run.store import Heartbeat, Recorded, SessionRow, Store
from scalejax.status import Status

CURVE = pd.DataFrame(
    {"model": "m", "train_examples": [10, 100, 1000], "value": [0.5, 0.4, 0.3], "low": 0.2, "high": 0.6,
     "metric": "test_error"}
)  # fmt: skip
FIGURES = "scale", "parameters", "compute", "exponents", "rates", "training"  # of a run that recorded no sessions
HOSTILE = '<script>alert("1")</script> & <b>'


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A planted run; while it is there, advice is planted too, for a forecast takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scalejax.analysis.forecast.advice.advise_rows", lambda *_, **__: planted_advice())
        patch.setattr("scalejax.run.report.FOR_PHONES", 0)  # the browser looks at those
        yield planted_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def facts(run: Path) -> Facts:
    return planted_facts(run, advice=planted_advice())


@pytest.fixture(scope="module")
def said(run: Path) -> dict[str, Any]:
    """What the command prints of that run."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["report", str(run), "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def written(run: Path, said: dict[str, Any]) -> Path:
    assert said["report"] == str(run / "report.html")
    return run


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes longest, left out where nobody looks at it."""
    monkeypatch.setattr("scalejax.report.pictures.pictures_of", lambda *_, **__: ({}, ()))


class Seen(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def test_the_page_needs_nothing_else_and_tells_what_it_is(written: Path) -> None:
    text = (written / "report.html").read_text()
    seen = Seen(text)
    assert len(text) < 5_000_000
    assert seen.named("html")[0]["lang"] == "en"
    assert {"viewport", "color-scheme", "description"} <= {each.get("name") for each in seen.named("meta")}
    assert "<title>planted – scalejax report</title>" in text
    assert not seen.named("script", "iframe", "object")
    addresses = [
        value for _, all_ in seen.tags for name, value in all_.items() if name in ("src", "href", "xlink:href")
    ]
    assert all(value and value.startswith(("#", "data:")) for value in addresses)
    assert "@import" not in text
    assert "url(http" not in text


def test_its_ids_are_unique_and_its_links_lead_somewhere(written: Path) -> None:
    seen = Seen((written / "report.html").read_text())
    ids = [each["id"] for _, each in seen.tags if each.get("id")]
    assert len(ids) == len(set(ids))
    links = {each["href"] for each in seen.named("a") if each.get("href")}
    assert {link.removeprefix("#") for link in links if link} <= set(ids)
    used = {each.get("xlink:href") for each in seen.named("use")}
    assert {link.removeprefix("#") for link in used if link} <= set(ids)


def test_its_headings_are_in_order_and_its_figures_have_words(written: Path) -> None:
    seen = Seen((written / "report.html").read_text())
    levels = [int(tag[1]) for tag, _ in seen.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    figures = seen.named("svg")
    assert figures
    assert all(each["role"] == "img" and each["aria-label"] for each in figures)


def test_the_answer_comes_first_then_the_sections_in_order(facts: Facts) -> None:
    chapter = chapter_of(facts)
    assert chapter.headline == "Both: more data and a bigger model"
    assert len(chapter.sentences) == 3
    names = [section.name for section in chapter.sections]
    wanted = (
        *("scale", "parameters", "compute", "exponents", "back-test", "rates", "training", "trials", "ran", "next"),
        "reproduce",
    )
    assert names == [name for name in wanted if name in names]
    assert {"scale", "exponents", "back-test", "trials", "ran", "next", "reproduce"} <= {*names}


def test_what_is_written_beside_the_page(written: Path, said: dict[str, Any]) -> None:
    assert keys(said, REPORT) == spelled(REPORT)
    (one,) = said["runs"]
    assert (one["name"], one["verdict"], len(one["sentences"])) == ("planted", "both", 3)
    markdown = (written / "report.md").read_text()
    assert said["markdown"] == str(written / "report.md")
    pictures = re.findall(r"!\[[^\]]+\]\((figures/[\w-]+\.png)\)", markdown)
    assert pictures == [f"figures/{name}.png" for name in FIGURES]
    assert all((written / picture).stat().st_size > 5_000 for picture in pictures)
    for picture in pictures:
        assert len(pd.read_csv((written / picture).with_suffix(".csv"))) > 0
        assert (written / picture).with_suffix(".svg").is_file()
    assert sorted(said["figures"]) == sorted(
        str((written / picture).with_suffix(suffix)) for picture in pictures for suffix in (".svg", ".png", ".csv")
    )


def test_what_ten_times_costs() -> None:
    said = answer_of(planted_advice(), Speed(1e6, "cpu")).sentences[2]
    assert said == (
        "One training run takes 52 MFLOP now, about 52 s on this device (cpu) at the speed of this sweep; with ten "
        "times the examples 520 MFLOP, about 8.7 min; with ten times the parameters 520 MFLOP, about 8.7 min; with ten "
        "times both 5.2 GFLOP, about 87 min."
    )
    unknown = answer_of(planted_advice(), Speed(float("nan"), "cpu")).sentences[2]
    assert "about" not in unknown
    assert "device" not in unknown


def test_data_that_cannot_be_had_are_said_to_be_missing() -> None:
    said = answer_of(planted_advice(most_data=10_000), Speed(1e6, "cpu")).sentences[2]
    assert said.endswith("; the data set ends at 10,000 examples, so more than these have to be collected first.")


def test_fixed_steps_cost_no_more_with_more_data() -> None:
    advice = planted_advice()
    fixed = [
        replace(each, facts={**each.facts, "flops": 5.2e7}) if each.name == "10x data" else each
        for each in advice.statements
    ]
    said = answer_of(replace(advice, statements=tuple(fixed)), Speed(1e6, "cpu")).sentences[2]
    assert "; with ten times the examples no more, as the steps stay the same;" in said


def test_one_size_says_nothing_of_a_bigger_model() -> None:
    advice = planted_advice(verdict=NEITHER)
    kept = tuple(each for each in advice.statements if "parameters" not in each.name and "both" not in each.name)
    answer = answer_of(replace(advice, statements=kept), Speed(1e6, "cpu"))
    assert answer.headline == "More data would not help much"
    assert not any("parameters" in sentence for sentence in answer.sentences)


def test_the_speed_is_that_of_the_largest_model(facts: Facts) -> None:
    rows = facts.rows
    own = rows[(rows["params"] == 3200) & (rows["status"] == "done")]
    assert speed_of(rows, params=3200.0).rate == pytest.approx(own["flops"].sum() / own["seconds"].sum())
    assert speed_of(rows, params=3200.0).device == "cpu"
    assert np.isnan(speed_of(rows.assign(seconds=0.0)).rate)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.01, "0.1 s or less"),
        (63.2, "63 s"),
        (150, "2.5 min"),
        (9000, "2.5 h"),
        (1e6, "12 days"),
        (1e9, "12,000 days"),
    ],
)
def test_times_that_are_known_roughly(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_alike_reasons_are_one_line(facts: Facts) -> None:
    (grid,) = not_counted(facts).grids
    assert grid.rows[0][:3] == ("failed", "1", "out of memory")
    diverged = [row for row in grid.rows if row[0] == "diverged"]
    assert sum(int(row[1]) for row in diverged) == 8
    assert not_counted(facts).sentences == ("9 of 96 trials enter no curve: 8 diverged and 1 failed.",)
    one = facts.rows.assign(status=["stopped", *["done"] * 95])
    assert not_counted(replace(facts, rows=one)).sentences == ("1 of 96 trials enters no curve: 1 stopped early.",)
    many = facts.rows.assign(
        status=Status.DIVERGED, reason=[f"its loss was not finite at step {place}" for place in range(len(facts.rows))]
    )
    (grid,) = not_counted(replace(facts, rows=many)).grids
    ((_, number, reason, families, rates),) = grid.rows
    assert (number, families, rates) == ("96", "logistic, mlp", "0.01 to 0.1")
    assert reason == "its loss was not finite at step 0 (and 95 alike)"


def test_learning_rates_at_an_edge_and_intervals_that_did_not_hold_are_warnings(facts: Facts) -> None:
    edge = facts.curves.assign(edge="highest") if facts.curves is not None else None
    sections = {section.name: section for section in chapter_of(replace(facts, curves=edge)).sections}
    assert "the highest of its grid" in sections["rates"].warnings[0]
    assert "only 60 % of the runs lie in their 90 % interval" in sections["back-test"].warnings[0]


def test_without_advice_the_page_says_why(run: Path) -> None:
    chapter = chapter_of(planted_facts(run))
    assert (chapter.headline, chapter.gains) == ("No answer yet", None)
    assert chapter.sentences[0] == "Too few rows."
    assert {"scale", "trials", "reproduce"} <= {section.name for section in chapter.sections}


def test_a_run_without_a_trial_that_is_done_has_a_page(tmp_path: Path) -> None:
    trials = planted_trials()[:3]
    ends = {trial.trial_id: (Status.FAILED, "out of memory") for trial in trials}
    write_run(tmp_path / "run", trials, loss_of=loss_of, ends=ends)
    page, note = report_at_end(tmp_path / "run", None)
    assert page is not None
    assert (page, note) == (tmp_path / "run" / "report.html", "")
    assert "No trial of the table counts (found: 3 failed)" in page.read_text()


@pytest.mark.usefixtures("run", "without_pictures")
def test_the_end_of_a_run_makes_the_page_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = planted_run(tmp_path / "run")
    assert not is_current(other)
    assert report_at_end(other, None) == (other / "report.html", "")
    assert not (other / "report.md").exists()
    assert "here the intervals of this page are too narrow" in (other / "report.html").read_text()
    monkeypatch.setattr("scalejax.run.report.report", lambda *_, **__: pytest.fail("made again"))
    assert report_at_end(other, None) == (other / "report.html", "")
    write_run(other, [replace(planted_trials()[0], trial_id="another")], loss_of=loss_of)
    assert not is_current(other)


@pytest.mark.usefixtures("without_pictures")
def test_the_page_is_made_again_when_its_name_its_sweep_or_its_sessions_change(written: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(written, tmp_path / "run"))
    assert is_current(run)
    (run / "sweep.toml").write_text(SWEEP.replace("planted", "renamed"))
    assert not is_current(run)
    (run / "sweep.toml").write_text(SWEEP)
    assert is_current(run)
    with Store(run / "results.sqlite", write=True) as store:
        session = SessionRow(1, 0.0, 5.0, "h", "cpu", 1, 1, None, None, 0.0, 0.0, 0.0)
        store.beat(Heartbeat(1, "h", 0.0, 5.0, None), {}, Recorded(session, []))
    assert not is_current(run)


@pytest.mark.usefixtures("without_pictures")
def test_a_full_report_is_written_in_full_again_at_the_end_of_a_run(written: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(written, tmp_path / "run"))
    (run / "sweep.toml").write_text(SWEEP.replace("planted", "renamed"))
    assert report_at_end(run, None) == (run / "report.html", "")
    assert (run / "report.md").read_text().startswith("# renamed")
    assert is_current(run)


@pytest.mark.usefixtures("run", "without_pictures")
def test_a_page_elsewhere_is_all_that_is_written(tmp_path: Path) -> None:
    planted = planted_run(tmp_path / "run")
    before = {path.name for path in planted.rglob("*")}
    sx.Run(planted).report(output=tmp_path / "page.html")
    assert {path.name for path in planted.rglob("*")} == before
    assert "next_trials" not in (tmp_path / "page.html").read_text()
    sx.Run(planted).report(brief=True)
    assert "scalejax run " + str(planted / "next_trials" / "planted_next_1.toml") in (
        html.unescape((planted / "report.html").read_text())
    )


def test_a_picture_without_a_section_is_a_mistake(facts: Facts) -> None:
    with pytest.raises(ValueError, match="the report has no section ratez: it has scale, seen, "):
        chapter_of(replace(facts, pictures={"ratez": ()}))
    with pytest.raises(ValueError, match="no section elsewhere"):
        facts.drawn("elsewhere")


def test_a_back_test_that_failed_is_told_under_the_answer(facts: Facts) -> None:
    chapter = chapter_of(facts)
    assert chapter.caution == (
        "In the back-test only 60 % of the runs lie in their intervals: those given here are too narrow."
    )
    assert chapter.caution in markdown_of(chapter, figures="figures").replace("\\", "")
    page = page_of(Report("one", (chapter,))).replace("\u00a0", " ")
    assert page.index("verdict") < page.index(chapter.caution) < page.index('id="scale"')


def test_the_file_of_a_suggested_trial_has_its_own_cost(facts: Facts) -> None:
    (section,) = (each for each in chapter_of(facts).sections if each.name == "next")
    said = dict(zip(section.grids[0].header, section.grids[0].rows[0], strict=True))
    assert said[""] == "1"  # as in the picture of scale
    assert said["one run on cpu"].startswith("104 MFLOP, ")
    assert said["its sweep file on cpu"].startswith("6 trials: 624 MFLOP, ")
    (code,) = section.codes
    assert code.text.splitlines()[-1] == f"scalejax advise {facts.directory} runs/planted_next_1"


def test_trouble_with_the_page_is_a_sentence_and_not_the_end_of_a_run(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("this\nand that")

    monkeypatch.setattr("scalejax.run.report.is_current", broken)
    assert report_at_end(run, None) == (None, "no report: RuntimeError: this")


@pytest.mark.usefixtures("without_pictures")
def test_several_runs_are_compared_first(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = Path(shutil.copytree(written, tmp_path / "again"))
    monkeypatch.chdir(again)
    own = Path("report.html").read_bytes()
    assert main(["report", str(written), str(again)]) == 0
    text = Path("comparison.html").read_text()
    assert Path("report.html").read_bytes() == own  # of the run whose directory this is
    ids = [each["id"] for _, each in Seen(text).tags if each.get("id")]
    assert len(ids) == len(set(ids))
    places = [text.index(f'id="{name}"') for name in ("compared", "run-1", "r1-answer", "run-2", "r2-scale")]
    assert places == sorted(places)
    assert 'aria-label="Test error of the best model of each run' in text


def test_runs_of_other_metrics_are_not_drawn_together(facts: Facts) -> None:
    other = replace(facts, curves=facts.curves.assign(metric="test_RMSE") if facts.curves is not None else None)
    section = compared([facts, other], None)
    assert section.warnings == (
        "The runs have the metrics Test error and Test RMSE, so their curves are not drawn together.",
    )
    assert [row[3].split()[0] for row in section.grids[0].rows] == ["error", "RMSE"]


def test_runs_in_other_units_are_not_drawn_together(facts: Facts) -> None:
    scaled = replace(facts, name="other", unit="standard deviations of the targets")
    assert _together([facts, replace(facts, name="other")]) is not None
    assert _together([facts, scaled]) is None
    (warning,) = compared([facts, scaled], None).warnings
    assert warning == (
        "The runs have the Test error in units of their own and standard deviations of the targets, so their curves "
        "are not drawn together."
    )


def test_a_row_of_the_comparison_names_the_model_that_is_forecast_and_no_folders(facts: Facts) -> None:
    curves = facts.curves
    assert curves is not None
    best = curves.assign(value=curves["value"].where(curves["model"] != "logistic", 0.001))
    section = compared([replace(facts, curves=best, data="/home/who/flats.csv"), facts], None)
    (row, other), header = section.grids[0].rows, section.grids[0].header
    said = dict(zip(header, row, strict=True))
    assert (said["best model"], said["forecast of"]) == ("logistic", "mlp width 64")
    assert said["data, at most"] == "flats.csv, 2,700 examples"
    assert dict(zip(header, other, strict=True))["best model"] == "mlp width 64"


def test_names_that_begin_with_an_underscore_have_their_place_in_the_legend() -> None:
    picture = compare_picture({"_one": CURVE, "two": CURVE})  # a warning is an error here
    assert picture is not None
    legend = picture.figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["_one: m", "two: m"]


def test_nothing_of_the_data_is_taken_for_markup() -> None:
    picture = compare_picture({"one": CURVE, HOSTILE: CURVE})
    assert picture is not None
    drawn = Drawn(replace(picture, title=HOSTILE, alt=HOSTILE))
    section = Section(
        "x", HOSTILE, (HOSTILE,), warnings=(HOSTILE,), grids=(Grid((HOSTILE,), ((HOSTILE,),), HOSTILE),),
        codes=(Code(HOSTILE, HOSTILE),), points=(HOSTILE,), pictures=(drawn,),
    )  # fmt: skip
    chapter = Chapter(HOSTILE, HOSTILE, HOSTILE, (HOSTILE,) * 3, (section,))
    for report in (Report(HOSTILE, (chapter,)), Report(HOSTILE, (chapter, chapter), before=(section,))):
        seen = Seen(page_of(report))
        assert not seen.named("script", "b")
    assert not re.search(r"(?<!\\)<(script|b)>", markdown_of(chapter, figures="figures").split("```")[0])


@pytest.mark.usefixtures("without_pictures")
def test_a_hostile_column_stays_a_text(tmp_path: Path) -> None:
    trials = [replace(trial, knobs={"<script>": trial.params}, family="<b>x") for trial in planted_trials()[-36::2]]
    sweep = 'name = "<script>alert(1)</script>"\n'
    run = write_run(tmp_path / "<i>run", trials, loss_of=loss_of, sweep=sweep)
    assert report_at_end(run, None)[1] == ""
    seen = Seen((run / "report.html").read_text())
    assert not seen.named("script", "b", "i")


def test_marks_tell_their_texts_and_figures_keep_apart() -> None:
    picture = compare_picture({"one": CURVE, "<two>": CURVE})
    assert picture is not None
    assert len(picture.data) == 6
    svg = inlined(svg_of(picture.figure), prefix="a-", alt='"<alt>"', tips=picture.tips)
    titles = re.findall(r"<use[^>]*><title>([^<]*)</title></use>", svg)
    assert [html.unescape(title) for title in titles] == [tip for texts in picture.tips.values() for tip in texts]
    assert len(titles) == 6
    assert all(name.startswith("a-") for name in re.findall(r'\bid="([^"]+)"', svg))
    assert all(name.startswith("a-") for name in re.findall(r'href="#([^"]+)"', svg))
    assert 'aria-label="&quot;&lt;alt&gt;&quot;"' in svg
    assert svg_of(picture.figure) == svg_of(picture.figure)


def test_one_curve_is_not_compared() -> None:
    assert compare_picture({}) is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["report", "{}"], "{}/results.sqlite: there are no results here; give the directory of a run, or start one"),
        (["report", "{}/none"], "{}/none/results.sqlite: there are no results here; give the directory of a run"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main([each.format(tmp_path) for each in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence.format(tmp_path) in said


@pytest.mark.usefixtures("without_pictures")
def test_a_page_that_cannot_be_written_is_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sx.SweepError, match="give another place with --output"):
        sx.Run(run).report(output=tmp_path / "file" / "page.html", brief=True)


def test_a_regression_is_told_in_its_own_metric(tmp_path: Path) -> None:
    facts = planted_facts(planted_run(tmp_path / "run", metric="RMSE"))
    assert (facts.metric, facts.noun) == ("Test RMSE", "RMSE")
    chapter = chapter_of(replace(facts, unit="standard deviations of the targets"))
    (scale,) = (section for section in chapter.sections if section.name == "scale")
    assert scale.grids[0].caption.startswith("Test RMSE at the best setting")
    assert scale.points[-1].startswith("The RMSE is in standard deviations of the targets")
    assert not any("error" in point for point in scale.points)


def test_columns_that_say_nothing_are_left_out(facts: Facts) -> None:
    trends = facts.trends
    assert trends is not None
    blank = trends.assign(standard_error=np.nan, fall=np.nan, fall_low=np.nan, fall_high=np.nan)
    (section,) = (each for each in chapter_of(replace(facts, trends=blank)).sections if each.name == "exponents")
    assert section.grids[0].header == ("model", "exponent", "at the end")
