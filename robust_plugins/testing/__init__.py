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

Each kind of component has its list. The component itself is what `attack_checks`, `certifier_checks`,
`explanation_attack_checks`, `explanation_certifier_checks` and `poisoning_attack_checks` take. `recipe_checks`,
`dataset_checks`, `model_checks` and `command_checks` take what makes it (for a recipe `partial(rp.recipe, name)`),
`abstract_training_checks` a function that is called as `rp.abstract_gradient_training`, and `interval_rule_checks` a
layer and the shape of its input.

`robust-plugins plugins check --conformance NAME` runs those of everything that a plugin has registered by name.

Needs pytest.
"""

from robust_plugins.testing.abstract_training import abstract_training_checks
from robust_plugins.testing.attacks import attack_checks
from robust_plugins.testing.certifiers import certifier_checks
from robust_plugins.testing.conformance import Outcome, conformance
from robust_plugins.testing.data_and_models import command_checks, dataset_checks, model_checks
from robust_plugins.testing.explanation_attacks import explanation_attack_checks
from robust_plugins.testing.explanations import adversarial_gradients, explanation_certifier_checks
from robust_plugins.testing.fixtures import fresh_registry
from robust_plugins.testing.interval_rules import interval_rule_checks
from robust_plugins.testing.poisoning import poisoning_attack_checks
from robust_plugins.testing.recipes import recipe_checks
from robust_plugins.testing.soundness import adversarial_points, assert_inside

__all__ = [
    "Outcome",
    "abstract_training_checks",
    "adversarial_gradients",
    "adversarial_points",
    "assert_inside",
    "attack_checks",
    "certifier_checks",
    "command_checks",
    "conformance",
    "dataset_checks",
    "explanation_attack_checks",
    "explanation_certifier_checks",
    "fresh_registry",
    "interval_rule_checks",
    "model_checks",
    "poisoning_attack_checks",
    "recipe_checks",
]
