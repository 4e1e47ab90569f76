"""The package's explanation certifiers pass every conformance check, and find what they should."""

from __future__ import annotations

import pytest

import robust_plugins as rp
from robust_plugins.testing import explanation_certifier_checks

CERTIFIERS = [
    "interval:ibp",
    "interval:crown",
    "interval:relaxed",
    pytest.param("interval:relaxed(effort=2)", marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("check", explanation_certifier_checks, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CERTIFIERS)
def test_conformance(name, check) -> None:
    check(rp.explanation_certifier(name))
