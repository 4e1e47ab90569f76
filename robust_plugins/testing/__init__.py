"""Checks that a plugin author runs against a new plugin: conformance as parametrisations, and a fresh registry.

    import pytest
    import robust_plugins as rp
    from robust_plugins.testing import attack_checks, certifier_checks, fresh_registry

    @pytest.mark.parametrize("check", attack_checks)
    def test_my_attack(check):
        check(rp.attack("mylab:corners"))

    @pytest.mark.parametrize("check", certifier_checks)
    def test_my_certifier(check):
        check(rp.certifier("mylab:boxes"))

`explanation_certifier_checks` do the same for explanation certifiers, `poisoning_attack_checks` for attacks on training
data.

Needs pytest.
"""

from robust_plugins.testing.attacks import attack_checks
from robust_plugins.testing.certifiers import certifier_checks
from robust_plugins.testing.explanations import adversarial_gradients, explanation_certifier_checks
from robust_plugins.testing.fixtures import fresh_registry
from robust_plugins.testing.poisoning import poisoning_attack_checks
from robust_plugins.testing.soundness import adversarial_points, assert_inside

__all__ = [
    "adversarial_gradients",
    "adversarial_points",
    "assert_inside",
    "attack_checks",
    "certifier_checks",
    "explanation_certifier_checks",
    "fresh_registry",
    "poisoning_attack_checks",
]
