"""A figure as the text of an SVG without a background, to stand inside a page."""

import io

import matplotlib as mpl
from matplotlib.figure import Figure


def svg_of(figure: Figure) -> str:
    """Return a figure as SVG, from its element `<svg` on; the same figure gives the same text.

    Letters are outlines, so that labels keep their widths on every machine. Nothing is drawn behind the axes: the page
    shows through, in whichever colour scheme.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "scalejax", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None}, bbox_inches=None)
    text = buffer.getvalue()
    return text[text.index("<svg") :].rstrip()
