"""All conformance checks of all components of a plugin: `robust-plugins plugins check --conformance NAME`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from robust_plugins.errors import RobustPluginsError
from robust_plugins.harness.failures import told
from robust_plugins.losses import recipe
from robust_plugins.registry.information import ComponentInfo, Kind, Status
from robust_plugins.registry.registry import registry
from robust_plugins.testing.attacks import attack_checks
from robust_plugins.testing.certifiers import certifier_checks
from robust_plugins.testing.data_and_models import command_checks, dataset_checks, model_checks
from robust_plugins.testing.explanation_attacks import explanation_attack_checks
from robust_plugins.testing.explanations import explanation_certifier_checks
from robust_plugins.testing.poisoning import poisoning_attack_checks
from robust_plugins.testing.recipes import recipe_checks

CHECKS: dict[Kind, Sequence[Callable[..., None]]] = {
    Kind.ATTACK: attack_checks,
    Kind.CERTIFIER: certifier_checks,
    Kind.DATASET: dataset_checks,
    Kind.MODEL: model_checks,
    Kind.EXPLANATION_CERTIFIER: explanation_certifier_checks,
    Kind.EXPLANATION_ATTACK: explanation_attack_checks,
    Kind.POISONING_ATTACK: poisoning_attack_checks,
    Kind.LOSS: recipe_checks,
    Kind.COMMAND: command_checks,
}
"""The checks of every kind that is registered by name. Those of interval rules and of abstract training, which have no
names, take a layer and a function: `interval_rule_checks`, `abstract_training_checks`."""


@dataclass(frozen=True)
class Outcome:
    """The end of one check of one component."""

    component: str
    kind: Kind
    check: str
    error: str = ""
    """Why it failed; empty where it passed."""
    skipped: str = ""
    """Why it was not run; empty where it was."""


def conformance(components: Iterable[ComponentInfo]) -> Iterator[Outcome]:
    """Runs every check of every component, with its default parameters, one after the other.

    A component that cannot be built without parameters, or whose backend is missing, is one outcome that says so.
    """
    for info in components:
        if info.status is not Status.LOADED:
            yield Outcome(info.name, info.kind, "", skipped=f"{info.status}: {info.missing}")
            continue
        try:
            subject = _subject(info)
        except RobustPluginsError as error:
            yield Outcome(info.name, info.kind, "", skipped=f"it cannot be built without parameters: {error}")
            continue
        except Exception as error:  # whatever a stranger's factory raises is a finding, and not our end
            yield Outcome(info.name, info.kind, "build", error=told(error))
            continue
        for check in CHECKS[info.kind]:
            yield Outcome(info.name, info.kind, check.__name__, error=_error(check, subject))


def _subject(info: ComponentInfo) -> Any:
    """The component itself or a function that makes it, as the checks of its kind take."""
    create = partial(registry().create, info.kind, info.name)
    if info.kind is Kind.LOSS:
        return partial(recipe, info.name)
    if info.kind is Kind.MODEL:
        return create
    built = create()
    return create if info.kind in (Kind.DATASET, Kind.COMMAND) else built


def _error(check: Callable[..., None], subject: Any) -> str:
    from _pytest.outcomes import OutcomeException  # what pytest.raises fails with is no Exception

    try:
        check(subject)
    except AssertionError as error:
        return str(error) or told(error)
    except OutcomeException as error:
        return str(error)
    except Exception as error:  # a check that cannot end says that the component failed
        return told(error)
    return ""
