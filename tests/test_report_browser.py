"""The page of a report in a real browser, narrow and wide, light and dark: one start of a headless Chromium."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reports import planted_advice, planted_facts, planted_run

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


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The page of one run, and that of two side by side, every section in it."""
    facts = planted_facts(planted_run(tmp_path_factory.mktemp("browser") / "run"), advice=planted_advice(), drawn=True)
    chapter = chapter_of(facts)
    assert facts.curves is not None
    few = replace(facts, pictures={"exponents": facts.pictures["exponents"]})
    other = replace(few, name="other", curves=facts.curves.assign(metric="test_RMSE"))
    both = Report("two", (chapter_of(few), chapter_of(other)), before=(compared([few, other], None),))
    return {"one": page_of(Report("one", (chapter,))), "two": page_of(both)}


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


def test_no_frame_has_an_error_or_is_wider_than_its_screen(browser: tuple[list[dict[str, Any]], str]) -> None:
    frames, said = browser
    assert "CONSOLE" not in said
    assert len(frames) == 2 * len(WIDTHS) * len(SCHEMES)
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


def test_texts_can_be_read_in_both_schemes(browser: tuple[list[dict[str, Any]], str]) -> None:
    backgrounds = {(frame["page"], frame["width"], frame["scheme"]): frame["background"] for frame in browser[0]}
    for frame in browser[0]:
        assert frame["texts"] > 100
        assert frame["faint"] == []
        assert frame["small"] == []
    for page in ("one", "two"):
        assert backgrounds[page, "400", "light"] != backgrounds[page, "400", "dark"]


def test_pages_are_small(pages: dict[str, str]) -> None:
    assert all(len(text.encode()) < LARGEST for text in pages.values())


def test_the_style_knows_paper() -> None:
    style = Path(page_of.__globals__["__file__"]).with_name("page.css").read_text()
    assert "@media print" in style
    assert "screen and (prefers-color-scheme: dark)" in style  # paper is never dark
