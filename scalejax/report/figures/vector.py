"""A figure as the text of an SVG without a background, to stand inside a page."""

import io

from matplotlib.figure import Figure

from scalejax.report.figures.canvas import styled


@styled()
def svg_of(figure: Figure) -> str:
    """Return a figure as SVG, from its element `<svg` on; the same figure gives the same text.

    Letters are outlines, so that labels keep their widths on every machine. Nothing is drawn behind the axes: the page
    shows through, in whichever colour scheme.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :].rstrip()
