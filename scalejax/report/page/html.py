"""A report as one HTML file that needs nothing else: no network, no script; its style and its pictures are in it."""

import html
import re
from collections.abc import Sequence
from importlib.resources import files

from scalejax.report.figures.picture import Picture
from scalejax.report.figures.vector import svg_of
from scalejax.report.page.figure_svg import inlined
from scalejax.report.page.section import Chapter, Code, Drawn, Grid, Report, Section

FOLDED = 12  # lines of code, from which on they are folded behind their title
LONG = 40  # letters of a cell, from which on its column is wider
DIGEST = '<meta name="scalejax-digest" content="{}">'
HEAD = 4096  # characters of a page within which its digest stands


def page_of(report: Report) -> str:
    """Return the whole page. All texts are escaped: names, reasons and paths come from the user's data."""
    several = len(report.chapters) > 1
    parts = [_section(section, level=2, prefix="") for section in report.before]
    for number, chapter in enumerate(report.chapters, 1):
        parts.append(_chapter(chapter, prefix=f"r{number}-" if several else "", several=several))
    style = files("scalejax.report.page").joinpath("page.css").read_text(encoding="utf-8")
    title = _text(report.title)
    kicker = "scalejax report"
    about = "" if several else f'<p class="about">{_text(report.chapters[0].about)}</p>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="scalejax">
<meta name="description" content="{_text(_described(report))}">
{DIGEST.format(_text(report.digest))}
<link rel="icon" href="data:,">
<title>{title} – {kicker}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the answer</a>
<div class="sheet">
<header class="masthead">
<p class="kicker">{kicker}</p>
<h1>{title}</h1>
{about}
</header>
<div class="columns">
{_contents(report, several=several)}
<main id="main">
{"".join(parts)}
<footer>Made by scalejax. The command <code>scalejax report DIR</code> also writes each figure as SVG and PNG, its data
as CSV, and this page as Markdown.</footer>
</main>
</div>
</div>
</body>
</html>
"""


def digest_of(page: str) -> str:
    """Return the digest of what a page was made from; nothing where the text is no page of ours."""
    before, after = map(re.escape, DIGEST.split("{}"))
    found = re.search(f"{before}(\\w+){after}", page[:HEAD])
    return found[1] if found else ""


def _described(report: Report) -> str:
    chapter = report.chapters[0]
    return f"{chapter.headline}. {chapter.sentences[0]}" if len(report.chapters) == 1 else report.title


def _contents(report: Report, *, several: bool) -> str:
    """Return the list of contents."""

    def link(name: str, title: str) -> str:
        return f'<li><a href="#{_text(name)}">{_text(title)}</a>'

    def listed(sections: Sequence[Section], prefix: str) -> str:
        return "".join(f"{link(prefix + section.name, section.title)}</li>" for section in sections)

    items = listed(report.before, "")
    for number, chapter in enumerate(report.chapters, 1):
        if several:
            prefix = f"r{number}-"
            items += f"{link(f'run-{number}', chapter.title)}<ul>{listed(chapter.sections, prefix)}</ul></li>"
        else:
            items += f"{link('answer', 'The answer')}</li>{listed(chapter.sections, '')}"
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _chapter(chapter: Chapter, *, prefix: str, several: bool) -> str:
    level = 3 if several else 2
    first, *more = chapter.sentences
    answer = (
        f'<section class="answer" id="{prefix}answer"><p class="kicker">The answer</p>'
        f'<h{level} class="verdict">{_text(chapter.headline)}</h{level}><p class="first">{_prose(first)}</p>'
        f"{''.join(f'<p>{_prose(sentence)}</p>' for sentence in more)}{_warning(chapter.caution)}"
        f"{'' if chapter.gains is None else _grid(chapter.gains, 'The answer')}</section>\n"
    )
    body = answer + "".join(_section(section, level=level, prefix=prefix) for section in chapter.sections)
    if not several:
        return body
    number = prefix[1:-1]
    return (
        f'<article class="chapter" id="run-{number}"><h2>{_text(chapter.title)}</h2>'
        f'<p class="about">{_text(chapter.about)}</p>\n{body}</article>\n'
    )


def _section(section: Section, *, level: int, prefix: str) -> str:
    name = prefix + section.name
    parts = [f'<section id="{_text(name)}"><h{level}>{_text(section.title)}</h{level}>\n']
    parts += [f"<p>{_prose(sentence)}</p>\n" for sentence in section.sentences]
    parts += map(_warning, section.warnings)
    parts += [_figure(drawn, f"{name}-{place}") for place, drawn in enumerate(section.pictures)]
    parts += [_grid(grid, section.title) for grid in section.grids]
    if section.points:
        points = "".join(f"<li>{_prose(point)}</li>" for point in section.points)
        parts.append(f'<ul class="points">{points}</ul>\n')
    parts += [_code(code) for code in section.codes]
    return "".join([*parts, "</section>\n"])


def _warning(text: str) -> str:
    return f'<p class="warning"><strong>Note.</strong> {_prose(text)}</p>\n' if text else ""


def _figure(drawn: Drawn, name: str) -> str:
    def plot(picture: Picture, kind: str) -> str:
        svg = inlined(svg_of(picture.figure), prefix=f"{name}-{kind[0]}-", alt=picture.alt, tips=picture.tips)
        return f'<div class="plot {kind}">{svg}</div>'

    narrow = "" if drawn.narrow is None else plot(drawn.narrow, "narrow")
    title, zoom = _text(drawn.picture.title), f"{name}-zoom"
    return (
        f'<figure><input type="checkbox" class="zoom" id="{zoom}" aria-label="Enlarge: {title}">'
        f"{plot(drawn.picture, 'wide' if narrow else 'only')}{narrow}<figcaption><span>{title}</span>"
        f'<label for="{zoom}" aria-hidden="true"></label></figcaption></figure>\n'
    )


def _grid(grid: Grid, title: str) -> str:
    def cell(text: str, column: int, *, tag: str, scope: str = "") -> str:
        long = " long" if len(text) > LONG else ""
        word = f' class="word{long}"' if column in grid.left or not grid.header else ""
        return f"<{tag}{word}{scope}>{_text(text)}</{tag}>"

    head = "".join(cell(text, column, tag="th", scope=' scope="col"') for column, text in enumerate(grid.header))
    rows = "".join(
        "<tr>"
        + cell(row[0], 0, tag="th", scope=' scope="row"')
        + "".join(cell(text, column, tag="td") for column, text in enumerate(row[1:], 1))
        + "</tr>"
        for row in grid.rows
    )
    head = f"<thead><tr>{head}</tr></thead>" if grid.header else ""
    caption = f'<p class="caption">{_prose(grid.caption)}</p>\n' if grid.caption else ""
    kind = "scroll" if grid.header else "scroll facts"
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="Table: {_text(title)}"><table>{head}'
        f"<tbody>{rows}</tbody></table></div>\n{caption}"
    )


def _code(code: Code) -> str:
    block = f'<pre tabindex="0"><code>{_text(code.text)}</code></pre>'
    if code.text.count("\n") >= FOLDED:
        return f"<details><summary>{_text(code.title)}</summary>{block}</details>\n"
    return f'<p class="code-title">{_text(code.title)}</p>{block}\n'


def _prose(text: str) -> str:
    """Return a sentence: what stands between backticks is code, and a number stays with its percent sign."""
    return re.sub(r"`([^`<>]+)`", r"<code>\1</code>", _text(text)).replace(" %", "\u00a0%")


def _text(text: str) -> str:
    return html.escape(text, quote=True)
