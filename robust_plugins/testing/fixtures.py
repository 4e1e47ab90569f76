"""Pytest fixtures for plugin authors."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from robust_plugins.registry.registry import Registry, using


@pytest.fixture
def fresh_registry(request: pytest.FixtureRequest) -> Registry:
    """A registry with the built-in plugins and no others, in the place of the process's own for one test.

    What a test registers with `rp.register` goes there and is forgotten with it.
    """
    stack = ExitStack()
    request.addfinalizer(stack.close)  # noqa: PT021 (a run-time type checker would hide a generator from pytest)
    return stack.enter_context(using(Registry(entry_points=False, block=(), load=())))
