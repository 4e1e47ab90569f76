"""Pages as files: their template, what they say of where figures come from, and whose file is replaced."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robust_plugins.errors import ArgumentError, PluginError

GENERATOR = '<meta name="generator" content="robust_plugins">'
"""Stands in every page of this package."""

EARLIER = re.compile(r"<footer>Seed [^<]*\brobust_plugins \d")
"""The end of pages from before that line was in them."""


def check_page(path: Path) -> None:
    """Raises ArgumentError where the file exists and is no page of this package: it would be replaced."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        text = path.read_text(encoding="utf-8")
        ours = GENERATOR in text[:2000] or EARLIER.search(text) is not None
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise ArgumentError(
            "page", f"{path}, which holds something else", accepted="a new file, or a page of an earlier run",
            hint="Move that file away, or name another one.",
        )  # fmt: skip


def write_page(path: str | Path, template: str, *, about: Mapping[str, str], **content: Any) -> Path:
    """Fills the template and writes it, into folders that are made; returns the path.

    `about` is said at the end of the page: the model, the data, the command. Raises PluginError where jinja2 or
    matplotlib is missing, ArgumentError where the file holds something else.
    """
    target = Path(path)
    check_page(target)
    needed()
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("robust_plugins.brackets"), autoescape=True)
    versions = {name: version(name) for name in ("robust_plugins", "torch")}
    page = environment.get_template(template).render(about=about, versions=versions, generator=GENERATOR, **content)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(target)  # an interruption leaves the older page, or none
    finally:
        part.unlink(missing_ok=True)
    return target


def needed() -> None:
    """Raises PluginError where what pages are made with is not installed."""
    missing = [module for module in ("jinja2", "matplotlib") if find_spec(module) is None]
    if missing:
        raise PluginError(f"a report needs {' and '.join(missing)}; install: pip install 'robust_plugins[report]'")
