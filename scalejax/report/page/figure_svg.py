"""The SVG of a figure made ready for a page: names of its own, texts for marks, a size that follows the page."""

import html
import re
from collections.abc import Mapping, Sequence

MARK = re.compile(r"<use\b([^>]*?)/>")
MARK_STYLE = re.compile(r'<use\b[^>]*?( style="[^"]*")')
METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
PLACES = re.compile(r'\b(?:d|x|y)="[^"]*"')
DIGITS = re.compile(r"(?<=\d\.\d{2})\d+")


def inlined(svg: str, *, prefix: str, alt: str, tips: Mapping[str, Sequence[str]]) -> str:
    """Return the SVG of a figure as it stands inside a page.

    Args:
        svg: from its element `<svg` on, as matplotlib writes it.
        prefix: put before all its ids: those of several figures meet in one page.
        alt: what it shows, for who cannot see it.
        tips: the gid of a group of marks -> a text for each of its marks, in their order; shown to who points at one.
    """
    head, body = re.split(r"(?<=>)", METADATA.sub("", svg), maxsplit=1)
    box = re.search(r'viewBox="([^"]*)"', head)
    # A hundredth of a point is enough; the page is a third smaller.
    body = PLACES.sub(lambda place: DIGITS.sub("", place[0]), body)
    for gid, texts in tips.items():
        body = _told(body, gid, texts)
    body = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", body)
    label = html.escape(alt, quote=True)
    seen = f'viewBox="{box[1]}"' if box else ""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {seen} role="img" '
        f'aria-label="{label}">{body}'
    )


def _told(body: str, gid: str, texts: Sequence[str]) -> str:
    """Give the marks of a group their texts; a group without marks of its own takes the first text as a whole."""
    start = body.find(f'<g id="{gid}"')
    if start < 0 or not texts:
        return body
    inside = body.index(">", start) + 1
    end = _end(body, inside)
    given = iter(texts)

    def titled(mark: re.Match[str]) -> str:
        text = next(given, None)
        return mark[0] if text is None else f"<use{mark[1]}><title>{html.escape(text)}</title></use>"

    group, marks = MARK.subn(titled, body[inside:end])
    if not marks:
        group = f"<title>{html.escape(texts[0])}</title>{group}"
    head, styles = body[start : inside - 1], MARK_STYLE.findall(group)
    if len(styles) == marks and len(set(styles)) == 1:  # said once, for all of them
        head, group = head + styles[0], group.replace(styles[0], "")
    return f"{body[:start]}{head}>{group}{body[end:]}"


def _end(body: str, inside: int) -> int:
    """Return where the group ends that `inside` lies in."""
    depth = 1
    for tag in re.finditer(r"<(/?)g\b[^>]*?(/?)>", body[inside:]):
        depth += -1 if tag[1] else 0 if tag[2] else 1
        if depth == 0:
            return inside + tag.start()
    return len(body)
