"""The data of the tests that train."""

from __future__ import annotations

import pytest

import robust_plugins as rp


@pytest.fixture(scope="session")
def digits() -> rp.Dataset:
    pytest.importorskip("sklearn")
    return rp.dataset("digits")
