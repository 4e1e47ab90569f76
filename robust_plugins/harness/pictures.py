"""A picture as part of a page."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element to be set into a page; `name` keeps its ids apart from other pictures'."""
    import matplotlib as mpl

    out = StringIO()
    # Text stays text; the salt keeps the ids of two pictures on one page apart, and pages reproducible.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
