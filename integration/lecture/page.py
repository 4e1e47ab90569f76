"""The lecture's page: the parts that its commands have kept, in the lecture's order, in one file that stands alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from integration.lecture.parts import Kept, read

COMMANDS = {
    "adversarial_example": True,
    "search": True,
    "assumption": True,
    "attacks": True,
    "gaussian_start": True,
    "interval_arithmetic": False,
    "activations": False,
    "ibp_network": True,
    "certification": False,
    "mixed_loss": True,
    "explanations": False,
    "half_moons": False,
    "backdoors": False,
    "poisoning_half_moons": False,
    "poisoning_regression": False,
    "coursework": True,
}
"""The lecture's order, and whether a command takes `--data`, the folder of MNIST."""

BROAD = 470
"""Pictures that are wider, in points, are scrolled on narrow screens instead of shrunk until they cannot be read."""

LEAD = (
    "Every table and figure of the lecture, made by this package: attacks give a lower bound of the damage, "
    "certificates an upper one, and the truth lies between the two."
)


@dataclass(frozen=True, kw_only=True)
class Section:
    """A command's place on the page."""

    name: str
    kept: Kept | None
    cause: str
    """Why nothing is kept."""

    @property
    def title(self) -> str:
        return self.name.replace("_", " ").capitalize() if self.kept is None else self.kept.part.title

    @property
    def command(self) -> str:
        quick = " --quick" if self.kept is not None and self.kept.tiny else ""
        return f"python -m integration.lecture.{self.name}{quick}"


def width(svg: str) -> float:
    """How wide a picture is, in points."""
    found = re.search(r'<svg[^>]* width="([0-9.]+)pt"', svg)
    return BROAD if found is None else float(found[1])


def write_page(out: Path, causes: Mapping[str, str]) -> Path:
    """Writes lecture.html to the folder that holds a folder for each command, and returns its path.

    `causes` says, by command, why one has nothing to show; what an earlier run kept is then left out.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise SystemExit("the page needs jinja2; install: pip install 'robust_plugins[report]'") from None
    sections = [
        Section(name=name, kept=None if name in causes else read(out / name), cause=causes.get(name, "it was not run"))
        for name in COMMANDS
    ]
    seconds = sum(section.kept.seconds for section in sections if section.kept is not None)
    versions = ", ".join(f"{name} {version(name)}" for name in ("robust_plugins", "torch"))
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["width"] = width
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    page = template.render(
        title="Robustness: the lecture in pictures", lead=LEAD, sections=sections, broad=BROAD,
        footer=f"Made in {seconds / 60:.1f} minutes of CPU time; {versions}.",
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    target = out / "lecture.html"
    target.write_text(page, encoding="utf-8")
    return target
