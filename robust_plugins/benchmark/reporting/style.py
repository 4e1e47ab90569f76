"""Colours, marks and sizes of the pictures of a report: told apart without colours, too, and without red and green."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from robust_plugins.harness.pictures import svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5195")
"""Okabe and Ito's palette without its yellow, which paper swallows, and one more."""

MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")

VERDICTS = {
    "certified": ("#0072B2", ""),
    "falsified": ("#D55E00", "////"),
    "unknown": ("#D9D9D9", ""),
    "timeout": ("#E69F00", "\\\\"),
    "error": ("#000000", ""),
    "unsupported": ("#8C8C8C", "xxxx"),
}
"""The fill and the hatching of each verdict."""

KNOWN = "#DCE6EE"
"""The fill of what is not decided: between what attacks reached and certifiers proved."""

PANEL = (4.6, 3.1)
"""The size of a panel in inches; panels stand side by side where the page is wide enough."""

SMALL = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.6}


@dataclass(frozen=True)
class Look:
    """How one component, or one model, is drawn in every picture of a report."""

    name: str
    colour: str
    mark: str
    line: str
    word: str = ""
    """What the legend says behind the name."""

    @property
    def drawn(self) -> dict[str, Any]:
        """Its line as arguments of a plot."""
        return {"color": self.colour, "marker": self.mark, "linestyle": self.line, "markersize": 4, "linewidth": 1.2}


def looks_of_components(components: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """Attacks are dashed with triangles that point down, certifiers drawn through with those that point up."""
    found = {}
    for index, (name, kind) in enumerate(dict.fromkeys(components)):
        attack = kind == "attack"
        found[name] = Look(
            name, COLOURS[index % len(COLOURS)], "v" if attack else "^", "--" if attack else "-",
            "attacked" if attack else "certified",
        )  # fmt: skip
    return found


def looks_of_models(models: Sequence[str]) -> dict[str, Look]:
    """Each model has a colour and a mark of its own."""
    return {
        name: Look(name, COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)], "-")
        for i, name in enumerate(dict.fromkeys(models))
    }


def legend(looks: Sequence[Look]) -> str:
    """The names beside their lines as HTML, which wraps where a picture's own legend would cover something."""
    items = []
    for look in looks:
        dash = ' stroke-dasharray="4 3"' if look.line == "--" else ""
        shape = _SHAPES[look.mark].replace("FILL", look.colour)
        line = f'<line x1="1" x2="29" y1="7" y2="7" stroke="{look.colour}" stroke-width="1.6"{dash}/>'
        drawing = f'<svg class="key" width="30" height="14" aria-hidden="true">{line}{shape}</svg>'
        items.append(f"<li>{drawing} {escape(look.name)}{f' <small>{look.word}</small>' if look.word else ''}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def patches(entries: Sequence[tuple[str, str, str]]) -> str:
    """A legend of filled areas: for each its name, fill and hatching."""
    items = []
    for name, fill, hatch in entries:
        lines = _HATCHES.get(hatch[:1], "")
        rectangle = f'<rect x=".5" y=".5" width="21" height="13" fill="{fill}" stroke="#555"/>'
        drawing = f'<svg class="key" width="22" height="14" aria-hidden="true">{rectangle}{lines}</svg>'
        items.append(f"<li>{drawing} {escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def drawing(drawn: Figure, name: str) -> str:
    """The picture as an SVG element, without what only matplotlib needs: names of groups, and who made it.

    Names that something refers to stay; they are other ones in every picture.
    """
    text = svg(drawn, name)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    return re.sub(r"\n\s*", "\n", text)


def figure(size: tuple[float, float] = PANEL, *, words: bool = False) -> tuple[Figure, Axes]:
    """An empty picture with one pair of axes, which leave room for numbers, or with `words` for names of any length.

    Fixed margins take half the time of those that are found by drawing.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawn

    width, height = size
    with mpl.rc_context(SMALL):
        drawn = Drawn(figsize=size, layout="constrained" if words else None)
        # On the left for numbers of six characters, such as -100.0, and what they count beside them.
        room = (0.8 / width, 0.46 / height, (width - 1.04) / width, (height - 0.56) / height)
        axes: Axes = drawn.subplots() if words else drawn.add_axes(room)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return drawn, axes


_SHAPES = {
    "o": '<circle cx="15" cy="7" r="3.6" fill="FILL"/>',
    "s": '<rect x="11.5" y="3.5" width="7" height="7" fill="FILL"/>',
    "D": '<path d="M15 2.5 19.5 7 15 11.5 10.5 7Z" fill="FILL"/>',
    "^": '<path d="M15 2.5 19 10.5 11 10.5Z" fill="FILL"/>',
    "v": '<path d="M15 11.5 19 3.5 11 3.5Z" fill="FILL"/>',
    "P": '<path d="M13 3h4v2h2v4h-2v2h-4v-2h-2v-4h2z" fill="FILL"/>',
    "X": '<path d="M11 3 19 11M19 3 11 11" stroke="FILL" stroke-width="2.6"/>',
    "*": '<path d="M15 2 16.5 5.7 20 6 17.3 8.4 18.2 12 15 10 11.8 12 12.7 8.4 10 6 13.5 5.7Z" fill="FILL"/>',
}
_HATCHES = {
    "/": '<path d="M2 13 13 1M9 13 20 1" stroke="#fff" stroke-width=".8"/>',
    "\\": '<path d="M2 1 13 13M9 1 20 13" stroke="#fff" stroke-width=".8"/>',
    "x": '<path d="M2 13 13 1M9 13 20 1M2 1 13 13M9 1 20 13" stroke="#fff" stroke-width=".6"/>',
}
