"""Hashes of source code that no version stands for: of checkouts, editable installations and the user's own modules."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path

from robust_plugins.benchmark.records import digest

WITHOUT = ("benchmark", "brackets", "cli", "proof_check", "testing")
"""The rooms of this package in which no component computes its answers."""


@cache
def unreleased(module: str) -> tuple[str, str]:
    """A name and a hash stand for the source of a module that is no part of a release.

    The whole package, where the module is in one; both empty for an installed release, which its version stands for.
    """
    package = module.partition(".")[0]
    path = _path(package)
    if path is None or package in sys.stdlib_module_names or _released(path):
        return "", ""
    files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    if package == "robust_plugins":
        files = [file for file in files if file.relative_to(path.parent).parts[0] not in WITHOUT]
    parts = [part for file in files for part in (str(file.relative_to(path.parent)), file.read_bytes())]
    return package, digest(*parts)[:12]


def _path(package: str) -> Path | None:
    """The file of a module, or `__init__.py` of a package; None where there is none, as for what was typed in."""
    loaded = sys.modules.get(package)
    name = getattr(loaded, "__file__", None)
    if name is None and loaded is None:
        spec = importlib.util.find_spec(package)
        name = None if spec is None else spec.origin
    path = Path(name) if name is not None else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _released(path: Path) -> bool:
    """Whether a file was installed, with a version: a checkout, also an editable one, lies elsewhere."""
    return bool({"site-packages", "dist-packages"} & set(path.parts))
