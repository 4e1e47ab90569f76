"""What every plugin author should run."""

from __future__ import annotations

import pytest

import robust_plugins as rp
from robust_plugins.testing import attack_checks, certifier_checks


@pytest.mark.parametrize("check", attack_checks)
def test_corners(check) -> None:
    check(rp.attack("example:corners", tries=5))


@pytest.mark.parametrize("check", certifier_checks)
def test_lipschitz(check) -> None:
    check(rp.certifier("example:lipschitz"))
