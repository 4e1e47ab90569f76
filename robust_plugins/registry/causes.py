"""The sentences about plugins that offer less than they seem to: hooks without a mark, backends that are missing."""

from __future__ import annotations

from collections.abc import Sequence

from robust_plugins.registry.hookspecs import Backend


def unmarked(names: Sequence[str]) -> str:
    """Functions that have the name of a hook without being marked as one, in half a sentence."""
    if len(names) == 1:
        return f"function {names[0]} has the name of a hook and is not marked with @rp.hookimpl: it registers nothing"
    return f"functions {', '.join(names)} have the names of hooks and no @rp.hookimpl: they register nothing"


def needed_by(components: Sequence[tuple[str, Sequence[Backend]]]) -> list[str]:
    """A sentence for every backend that is missing: which of the components need it, and what installs it.

    `components` are the names of all components of a plugin, each with the backends that it lacks.
    """
    found = []
    for backend in sorted({b for _, lacking in components for b in lacking}):
        names = [name for name, lacking in components if backend in lacking]
        who = f"{', '.join(names)} need{'s' if len(names) == 1 else ''}"
        if 1 < len(components) == len(names):
            who = "each of its components needs"
        found.append(f"{who} {f'{backend.module} {backend.at_least}'.strip()}; install it: {backend.install}")
    return found
