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


def test_none_is_forgotten() -> None:
    """A component that is registered later must be added here, or be tested in a file of its own."""
    of_their_own = {"lirpa:jacobian", "gradient:corner-pgd"}
    kinds = rp.explanation_certifiers(), rp.explanation_attacks()
    tested = {name for name in CERTIFIERS if isinstance(name, str)} | of_their_own
    assert tested == {info.name for infos in kinds for info in infos}
