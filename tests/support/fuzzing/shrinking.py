"""Makes a failing case small: steps are left out, and samples, as long as the same component fails in the same way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from support.fuzzing.checks import Violation
from support.fuzzing.source import Recipe

Find = Callable[[Recipe, int, int], tuple[Violation, ...]]
"""The violations on the recipe's model, with so many samples, in the ball of a seed."""


def shrunk(recipe: Recipe, batch: int, violation: Violation, find: Find) -> tuple[Recipe, int, Violation]:
    """The smallest recipe and batch found that still fail, and how."""

    def fails(candidate: Recipe, batch: int) -> Violation | None:
        try:
            found = find(candidate, batch, violation.seed)
        except Exception:  # the search, not the component, cannot run it
            return None
        return next((v for v in found if (v.component, v.kind) == (violation.component, violation.kind)), None)

    again = True
    while again:
        again = False
        candidates = [replace(recipe, steps=recipe.steps[:i] + recipe.steps[i + 1 :]) for i in range(len(recipe.steps))]
        if recipe.head[0] != "linear_head":
            candidates.append(replace(recipe, head=("linear_head", recipe.head[1])))
        for candidate in candidates:
            if (found := fails(candidate, batch)) is not None:
                recipe, violation, again = candidate, found, True
                break
    for fewer in range(1, batch):
        if (found := fails(recipe, fewer)) is not None:
            return recipe, fewer, found
    return recipe, batch, violation
