"""What a report is made of, before anything is written: sentences, tables, pictures and blocks of code."""

from collections.abc import Sequence
from dataclasses import dataclass

from scalejax.report.figures.picture import Picture


@dataclass(frozen=True)
class Grid:
    """A table in a report; every cell is a text.

    Attributes:
        header: the names of the columns; none where the first cell of each row says what the second is.
        rows: cells, each row as long as the header.
        caption: what it shows; what a reader must know of it.
        left: columns of words, by number; the others hold numbers, aligned at their right ends.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    left: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Code:
    """Text to copy: commands, or a file.

    Attributes:
        text: as it is.
        title: what it is; a long text is folded behind it.
        language: for the colours of Markdown.
    """

    text: str
    title: str
    language: str = "sh"


@dataclass(frozen=True)
class Drawn:
    """A picture, and the same picture for a screen as narrow as a phone's, where there is one."""

    picture: Picture
    narrow: Picture | None = None


@dataclass(frozen=True)
class Section:
    """One section of a report, in the order in which it is read: sentences, warnings, pictures, tables, code.

    Attributes:
        name: short, for links to it.
        title: its heading.
        sentences: a paragraph each.
        warnings: sentences that a reader must not miss.
        pictures: what it shows.
        grids: its tables.
        codes: its blocks of code.
        points: sentences that stand as a list, behind the pictures.
    """

    name: str
    title: str
    sentences: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    pictures: tuple[Drawn, ...] = ()
    grids: tuple[Grid, ...] = ()
    codes: tuple[Code, ...] = ()
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """All that a report says of one run.

    Attributes:
        title: the name of the sweep.
        about: what was run, in a line.
        headline: the answer in a few words.
        sentences: the answer: which helps, what ten times would bring, what it costs.
        gains: the same as a table.
        sections: what follows it.
        caution: what a reader of the answer must not miss.
    """

    title: str
    about: str
    headline: str
    sentences: tuple[str, ...]
    sections: tuple[Section, ...]
    gains: Grid | None = None
    caution: str = ""


@dataclass(frozen=True)
class Report:
    """A whole page.

    Attributes:
        title: of the page.
        chapters: a run each.
        before: sections that compare the runs, ahead of the first chapter.
        digest: of what it was made from: a page of the same digest need not be made again.
    """

    title: str
    chapters: tuple[Chapter, ...]
    before: tuple[Section, ...] = ()
    digest: str = ""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures, in the order of the page; of each the wide one."""
        sections = [*self.before, *(section for chapter in self.chapters for section in chapter.sections)]
        return [drawn.picture for section in sections for drawn in section.pictures]
