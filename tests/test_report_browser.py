"""Pages of reports in a real browser, narrow and wide, light and dark: one start of a headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reports import planted_advice, planted_facts, planted_run

import scalejax as sx
from scalejax.report.page.html import page_of
from scalejax.report.page.section import Report
from scalejax.report.sections import chapter_of, compared

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS, SCHEMES = (400, 1400), ("light", "dark")
LARGEST = 5_000_000  # bytes of a page
READABLE = 4.5  # contrast of text, WCAG 2.2, level AA
SECONDS = 120.0

# What each frame is looked at for; a frame's colour scheme is that of the element that holds it.
PROBE = """
function channel(value) { value /= 255; return value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4; }
function parts(colour) { return colour.match(/[\\d.]+/g).map(Number); }
function luminance(colour) {
  const [r, g, b] = parts(colour).map(channel);
  return .2126 * r + .7152 * g + .0722 * b;
}
function behind(element, view) {
  for (; element; element = element.parentElement) {
    const colour = view.getComputedStyle(element).backgroundColor;
    if (parts(colour)[3] !== 0) return colour;
  }
  return "rgb(255, 255, 255)";
}
function contrast(element, view) {
  const colours = [view.getComputedStyle(element).color, behind(element, view)];
  const [high, low] = colours.map(luminance).sort((a, b) => b - a);
  return (high + .05) / (low + .05);
}
function looked(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
  const texts = [...page.body.querySelectorAll("*")].filter(
    each => !each.closest("svg") && !each.closest(".skip") && own(each) && each.getClientRects().length);
  return {
    ...frame.dataset,
    room: root.clientWidth,
    takes: root.scrollWidth,
    background: view.getComputedStyle(page.body).backgroundColor,
    figures: [...page.querySelectorAll("figure svg")].map(each => each.getBoundingClientRect()).filter(
      box => box.width).map(
      box => ({left: box.left, right: box.right, width: box.width, height: box.height})),
    marks: page.querySelectorAll("svg use title").length,
    faint: texts.filter(each => contrast(each, view) < READABLE).map(
      each => `${each.tagName}.${each.className}: ${each.textContent.trim().slice(0, 40)}`),
    small: texts.filter(each => parseFloat(view.getComputedStyle(each).fontSize) < 12).map(each => each.outerHTML),
    texts: texts.length,
  };
}
addEventListener("load", () => {
  document.getElementById("seen").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(looked));
});
"""


ROOT = Path(__file__).parents[1]
SHORT = {"seeds": 2, "data.train_examples": [20, 60, 200, 600, 2000], "data.validation_examples": 500}
SHORTER = {"data.examples": 10000, "data.test_examples": 1000, "train.min_steps": 50, "train.max_steps": 200}
# The sweeps that the package brings, with what makes them short, and one of a table and one of text.
SWEEPS = {
    "quickstart": {**SHORT, "train.steps": 200, "train.learning_rate": [1e-3, 1e-2]},
    "ml_yearning": SHORT | SHORTER,
    "land": SHORT | SHORTER,
    "houses": {},
    "text": {},
}
TRAIN = """
[train]
learning_rate = [3e-3, 1e-2]
batch_size = 32
steps = 200
"""
HOUSES = f"""
name = "houses"
task = "regression"
seeds = 2
keep_weights = "best"
[data]
source = "houses.csv"
target = "price"
categories = "one-hot"
standardise_target = true
train_examples = [100, 200, 400, 800, 1600]
features.steps = ["standardise"]
[[models]]
family = "ridge"
[[models]]
family = "mlp"
width = [8, 64]
depth = 2
{TRAIN}"""
TEXT = f"""
name = "text"
task = "next_token"
keep_weights = "best"
[data]
source = "bytes"
fractions = [0.03, 0.1, 0.3, 1.0]
validation_examples = 100
test_examples = 200
[data.bytes]
path = "words.txt"
sequence_length = 32
[[models]]
family = "transformer"
heads = [1, 2]
head_size = 16
depth = 1
{TRAIN}"""


@pytest.fixture(scope="module", params=["planted", pytest.param("measured", marks=pytest.mark.slow)])
def pages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages by name: of planted rows, one run and two side by side with every section; or of sweeps, each trained."""
    folder = tmp_path_factory.mktemp(request.param)
    return planted(folder) if request.param == "planted" else measured(folder)


def planted(folder: Path) -> dict[str, str]:
    facts = planted_facts(planted_run(folder / "run"), advice=planted_advice(), drawn=True)
    chapter = chapter_of(facts)
    assert facts.curves is not None
    few = replace(facts, pictures={"exponents": facts.pictures["exponents"]})
    other = replace(few, name="other", curves=facts.curves.assign(metric="test_RMSE"))
    both = Report("two", (chapter_of(few), chapter_of(other)), before=(compared([few, other], None),))
    return {"one": page_of(Report("one", (chapter,))), "two": page_of(both)}


def measured(folder: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    rooms, area, place = rng.integers(1, 7, 3000), rng.uniform(30, 200, 3000), rng.choice(["town", "village"], 3000)
    prices = 1000 * area * (1 + (place == "town")) + 5000 * rooms + rng.normal(0, 5000, 3000)
    lines = [f"{r},{a:.1f},{p},{c:.0f}.5" for r, a, p, c in zip(rooms, area, place, prices, strict=True)]
    (folder / "houses.csv").write_text("\n".join(["rooms,area,place,price", *lines]))
    words = rng.choice(["more", "data", "or", "a", "bigger", "model"], 20000, p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05])
    (folder / "words.txt").write_text(" ".join(words))
    for name, text in (("houses", HOUSES), ("text", TEXT)):
        (folder / f"{name}.toml").write_text(text)
    texts = {}
    for name, shorter in SWEEPS.items():
        file = ROOT / "sweeps" / f"{name}.toml" if shorter else folder / f"{name}.toml"
        run = sx.run_sweep(sx.load_sweep(file, shorter), out=folder / name, progress=False)
        texts[name] = run.report().path.read_text()
    return texts


@pytest.fixture(scope="module")
def browser(pages: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What each frame looks like, and what the browser had to say."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    frames = "".join(
        f'<iframe data-page="{name}" data-width="{width}" data-scheme="{scheme}" srcdoc="{html.escape(text)}" '
        f'style="width:{width}px;height:900px;border:0;color-scheme:{scheme}"></iframe>'
        for name, text in pages.items() for width in WIDTHS for scheme in SCHEMES
    )  # fmt: skip
    probe = PROBE.replace("READABLE", str(READABLE))
    file = tmp_path_factory.mktemp("probe") / "probe.html"
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>probe</title>{frames}'
        f'<pre id="seen"></pre><script>{probe}</script></html>'
    )
    switches = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom")
    profile = f"--user-data-dir={file.parent / 'profile'}"
    command = [program, *switches, profile, "--virtual-time-budget=2000", file.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    found = re.search(r'<pre id="seen">(.+?)</pre>', ran.stdout, re.DOTALL)
    assert found, ran.stderr
    return json.loads(html.unescape(found[1])), ran.stderr


def test_no_frame_has_an_error_or_is_wider_than_its_screen(
    browser: tuple[list[dict[str, Any]], str], pages: dict[str, str]
) -> None:
    frames, said = browser
    assert "CONSOLE" not in said
    assert len(frames) == len(pages) * len(WIDTHS) * len(SCHEMES)
    for frame in frames:
        assert frame["takes"] <= frame["room"] <= int(frame["width"]), frame["page"]


def test_every_figure_is_seen_whole(browser: tuple[list[dict[str, Any]], str], pages: dict[str, str]) -> None:
    for frame in browser[0]:
        assert len(frame["figures"]) == pages[frame["page"]].count("<figure>") > 0
        for box in frame["figures"]:
            assert min(box["width"], box["height"]) > 100
            assert box["left"] >= 0
            assert box["right"] <= frame["room"]
        assert frame["marks"] > 0


def test_texts_can_be_read_in_both_schemes(browser: tuple[list[dict[str, Any]], str], pages: dict[str, str]) -> None:
    backgrounds = {(frame["page"], frame["width"], frame["scheme"]): frame["background"] for frame in browser[0]}
    for frame in browser[0]:
        assert frame["texts"] > 100
        assert frame["faint"] == []
        assert frame["small"] == []
    for page in pages:
        assert backgrounds[page, "400", "light"] != backgrounds[page, "400", "dark"]


def test_pages_are_small(pages: dict[str, str]) -> None:
    assert all(len(text.encode()) < LARGEST for text in pages.values())


def test_the_style_knows_paper() -> None:
    style = Path(page_of.__globals__["__file__"]).with_name("page.css").read_text()
    assert "@media print" in style
    assert "screen and (prefers-color-scheme: dark)" in style  # paper is never dark
