"""A report as Markdown, its pictures beside it: for a pull request."""

import re

from scalejax.report.page.section import Chapter, Code, Grid, Section

SPECIAL = re.compile(r"([\\`*_\[\]<>|#])")


def markdown_of(chapter: Chapter, *, figures: str) -> str:
    """Return what a report says of a run as Markdown. All texts are escaped: they come from the user's data.

    Args:
        chapter: as described.
        figures: the folder of the PNG of each picture, as the text's place sees it.
    """
    first, *more = chapter.sentences
    parts = [f"# {_text(chapter.title)}", _text(chapter.about), f"**{_text(chapter.headline)}.** {_text(first)}"]
    parts += [_text(sentence) for sentence in more]
    parts += [f"> **Note.** {_text(chapter.caution)}"] if chapter.caution else []
    if chapter.gains is not None:
        parts += [_grid(chapter.gains), _text(chapter.gains.caption)]
    for section in chapter.sections:
        parts += _section(section, figures)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, figures: str) -> list[str]:
    parts = [f"## {_text(section.title)}", *(_text(sentence) for sentence in section.sentences)]
    parts += [f"> **Note.** {_text(warning)}" for warning in section.warnings]
    parts += [f"![{_text(each.picture.alt)}]({figures}/{each.picture.name}.png)" for each in section.pictures]
    for grid in section.grids:
        parts += [_grid(grid), _text(grid.caption)]
    if section.points:
        parts.append("\n".join(f"- {_text(point)}" for point in section.points))
    for code in section.codes:
        parts += [f"{_text(code.title)}:", _code(code)]
    return parts


def _grid(grid: Grid) -> str:
    width = len(grid.rows[0]) if grid.rows else len(grid.header)
    header = grid.header or ("",) * width
    rules = [":--" if column in grid.left or not grid.header else "--:" for column in range(width)]
    lines = [header, rules, *grid.rows]
    return "\n".join(f"| {' | '.join(cells if cells is rules else map(_text, cells))} |" for cells in lines)


def _code(code: Code) -> str:
    ticks = max((len(run) for run in re.findall(r"`+", code.text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}{code.language}\n{code.text}\n{fence}"


def _text(text: str) -> str:
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))
