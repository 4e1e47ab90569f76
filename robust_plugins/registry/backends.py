"""Whether the backend of a component is installed, and in which version."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

from robust_plugins.registry.hookspecs import Backend


def available(backend: Backend) -> bool:
    """Whether `backend` can be imported, in a version that is new enough."""
    if not importable(backend.module) or not backend.at_least:
        return importable(backend.module)
    version = imported_version(backend.module)
    return not version or _numbers(version) >= _numbers(backend.at_least)


def imported_version(module: str) -> str:
    """The version of the module that `import` gives, which is not imported for it; empty where it tells none.

    A checkout before an installed distribution on the path is what counts: the module's own `__version__` comes first,
    then the metadata of the distribution of its name.
    """
    loaded = sys.modules.get(module)
    if isinstance(version := getattr(loaded, "__version__", None), str):
        return version
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return ""
    if spec is None:
        return ""
    if spec.origin is not None and spec.origin.endswith(".py"):
        with suppress(OSError, UnicodeError):
            stated = re.search(r"^__version__\s*=\s*[\"']([^\"']+)[\"']", Path(spec.origin).read_text("utf-8"), re.M)
            if stated:
                return stated[1]
    return version_of(module)


def importable(module: str) -> bool:
    """Whether the import system finds `module`; it is not imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def version_of(distribution: str) -> str:
    """The installed version of `distribution`, empty where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `"0.7.1.dev2"` as (0, 7, 1)."""
    return tuple(int(part) for part in takewhile(str.isdigit, version.split(".")))
