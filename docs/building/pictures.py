"""The pictures of the gallery: its own blocks of code draw them before the pages are read."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from sphinx.application import Sphinx

FENCE = re.compile(r"^```python\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def draw(source: Path) -> None:
    """Runs the Python blocks of `gallery.md` in its folder, unless they have drawn already what they say now."""
    code = "\n".join(FENCE.findall((source / "gallery.md").read_text(encoding="utf-8")))
    (source / "pictures").mkdir(exist_ok=True)
    mark, made = source / "pictures" / "made", hashlib.sha256(code.encode()).hexdigest()
    if mark.exists() and mark.read_text() == made:
        return
    with contextlib.chdir(source):
        exec(compile(code, "gallery.md", "exec"), {"__name__": "gallery"})
    mark.write_text(made)


def setup(app: Sphinx) -> dict[str, bool]:
    """Draws before Sphinx looks for pictures."""
    app.connect("config-inited", lambda app, _: draw(Path(app.srcdir)))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
