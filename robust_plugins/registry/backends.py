"""Whether the backend of a component is installed, and in which version."""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from itertools import takewhile

from robust_plugins.registry.hookspecs import Backend


def available(backend: Backend) -> bool:
    """Whether `backend` can be imported, in a version that is new enough."""
    if not importable(backend.module) or not backend.at_least:
        return importable(backend.module)
    version = version_of(backend.module)
    return not version or _numbers(version) >= _numbers(backend.at_least)


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
