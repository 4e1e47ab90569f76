"""Pytest fixtures for plugin authors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from robust_plugins.plugins import Registry, using


@pytest.fixture
def fresh_registry() -> Iterator[Registry]:
    """A registry with the built-in plugins and no others, in the place of the process's own for one test.

    What a test registers with `rp.register` goes there and is forgotten with it.
    """
    with using(Registry(entry_points=False, block=(), load=())) as registry:
        yield registry
