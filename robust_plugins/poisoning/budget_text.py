"""`parse_budget`: a poisoning budget as it is written in files and on the command line."""

from __future__ import annotations

from dataclasses import fields

from robust_plugins.errors import ArgumentError
from robust_plugins.poisoning.budget import PoisoningBudget
from robust_plugins.registry.naming import parse_component

CHANGES = ("substitution", "addition", "removal", "privacy")


def parse_budget(text: str, argument: str = "--budget") -> PoisoningBudget:
    """`points=10,eps=0.01` or `substitution(k=5)` as a budget; raises ArgumentError about `argument` for other text."""
    change = next((c for c in CHANGES if text.strip().startswith(c)), None)
    accepted = (
        f"{', '.join(f.name for f in fields(PoisoningBudget)[:-2])}; or {', '.join(f'{c}(k=5)' for c in CHANGES)}"
    )
    try:
        _, values = parse_component(text if change else f"budget({text})")
        return PoisoningBudget(**values) if change is None else getattr(PoisoningBudget, change)(**values)
    except (TypeError, ArgumentError) as error:
        if isinstance(error, ArgumentError) and error.argument != "name":
            raise
        hint = f"For example {argument} 'points=10,eps=0.01,labels=2'."
        raise ArgumentError(argument, repr(text), accepted=accepted, hint=hint) from None
