"""The components of a comparison: resolved from their names, and run one after the other with a bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from robust_plugins.decisions.attack import Attack
from robust_plugins.decisions.certifier import Certifier
from robust_plugins.errors import ArgumentError
from robust_plugins.harness.progress import shows_bars
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

Components = Iterable[str | Attack | Certifier] | Mapping[str, str | Attack | Certifier] | str | Attack | Certifier
"""What comparisons run: names and components, one alone, or several under names of one's own."""


def resolved(components: object, kinds: Mapping[Kind, type]) -> list[tuple[str, Any]]:
    """Each component with the name that it goes by: registered names, and components themselves, of these kinds.

    One alone is a list of it; a mapping gives its components, by names or themselves, names of one's own. Raises
    ArgumentError for what is neither and for one that is named twice, UnknownNameError for an unknown name.
    """
    if isinstance(components, (str, *kinds.values())):
        components = [components]
    if isinstance(components, Mapping):
        named = [(str(name), _resolved(component, kinds)[1]) for name, component in components.items()]
    elif isinstance(components, Iterable):
        named = [_resolved(component, kinds) for component in components]
    else:
        raise ArgumentError(
            "components", repr(components), accepted="a list of names and components, or a dictionary of them",
            hint='For example ["art:pgd", "lirpa:crown"], or {"mine": component}.',
        )  # fmt: skip
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ArgumentError("components", names, accepted="each component once", hint="Drop the repetition.")
    return named


def _resolved(component: Any, kinds: Mapping[Kind, type]) -> tuple[str, Any]:
    if isinstance(component, tuple(kinds.values())):
        return str(component), component
    if not isinstance(component, str):
        listings = [f"rp.{kind.value.replace(' ', '_')}s()" for kind in kinds]
        raise ArgumentError(
            "components",
            repr(component),
            accepted=f"registered names, {' and '.join(f'{kind.value}s' for kind in kinds)}",
            hint=f"List the names with {' and '.join(listings)}.",
        )
    kind = registry().kind_of(component, list(kinds))
    return component, registry().create(kind, component)


def with_bar(named: list[tuple[str, Any]], progress: bool) -> Iterator[tuple[str, Any]]:
    """`named`, with a bar on standard error where `progress`, or a line for each where that is no terminal."""
    if not progress:
        yield from named
        return
    from rich.console import Console  # here, so that importing the package stays quick
    from rich.progress import Progress, SpinnerColumn

    console = Console(file=sys.stderr)
    bars, columns = shows_bars(console), (SpinnerColumn(), *Progress.get_default_columns())
    with Progress(*columns, console=console, transient=True, disable=not bars) as bar:
        task = bar.add_task("", total=len(named))
        for name, component in named:
            bar.update(task, description=name)
            if not bars:
                console.print(f"comparing: {name}", highlight=False)
            yield name, component
            bar.advance(task)
