"""The command `describe`: what a component does, and what its parameters are."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import click

from robust_plugins.cli.printing import as_json, print_json, print_table
from robust_plugins.errors import UnknownNameError
from robust_plugins.registry.information import ComponentInfo, Kind
from robust_plugins.registry.registry import registry

WIDEST = 100
"""Lines longer than this are hard to read, however wide the terminal is."""


@click.command(short_help="Describe a component, such as art:pgd.")
@click.argument("name")
@as_json
def describe(name: str, as_json: bool) -> None:
    """Describe the component NAME, such as art:pgd: what it does, and its parameters with defaults and types."""
    kinds = [kind for kind in Kind if kind is not Kind.COMMAND]
    every = [info for kind in kinds for info in registry().components(kind)]
    found = [info for info in every if info.name == name]
    if not found:
        raise UnknownNameError(
            "component", name, {info.name for info in every}, hint="See `robust-plugins plugins list`."
        )
    described = [(info, registry().factory_of(info.kind, name)) for info in found]
    if as_json:
        print_json([asdict(i) | {"text": inspect.getdoc(f), "parameters": list(_parameters(f))} for i, f in described])
        return
    for number, (info, factory) in enumerate(described):
        click.echo(("\n" if number else "") + _headline(info))
        click.echo("\n" + "\n".join(_lines(inspect.getdoc(factory) or "It has no description.")) + "\n")
        rows = [(p["name"], p["default"], p["type"]) for p in _parameters(factory)]
        if rows:
            print_table(("parameter", "default", "type"), rows)
        else:
            click.echo("It has no parameters.")


def _headline(info: ComponentInfo) -> str:
    status = f"{info.status}: {info.missing}" if info.missing else info.status
    return f"{info.name}: {info.kind} of the plugin {info.plugin} {info.version}".rstrip() + f" ({status})"


def _parameters(factory: Callable[..., Any]) -> Iterator[dict[str, str]]:
    """Names, defaults and types, as text: the default is empty where a value must be given."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # some built-in classes have no signature
        return
    for p in parameters:
        kind = "" if p.annotation is p.empty else p.annotation
        yield {
            "name": f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name,
            "default": "" if p.default is p.empty else repr(p.default),
            "type": kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind)),
        }


def _lines(text: str) -> Iterator[str]:
    """The text in lines of the terminal's width; points of lists hang, and examples stay as they are."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    for block in text.split("\n\n"):
        if block.startswith("    "):
            yield block
        else:
            points = block.replace("\n- ", "\n\0- ").split("\n\0")
            for point in points:
                hang = "  " if point.startswith("- ") else ""
                yield textwrap.fill(" ".join(point.split()), width, subsequent_indent=hang, break_on_hyphens=False)
        yield ""
