"""The commands that say what there is: plugins, attacks, certifiers, data sets, models, recipes."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import asdict

import click

from robust_plugins.cli.conformance import check_conformance
from robust_plugins.cli.printing import as_json, print_json, print_table, terminal_width
from robust_plugins.errors import UnknownNameError
from robust_plugins.registry.hookspecs import PROJECT
from robust_plugins.registry.information import ComponentInfo, Kind, PluginInfo, Status
from robust_plugins.registry.registry import registry

ROOMY = 50
"""Characters that a sentence of a list needs to be understood."""


@click.group(short_help="List plugins, and find out why one fails.")
def plugins() -> None:
    """List plugins, and find out why one does not work."""


@plugins.command("list")
@as_json
def list_plugins(as_json: bool) -> None:
    """List every plugin: status, origin, components, and the error of those that failed."""
    found = registry().plugins()
    if as_json:
        print_json([asdict(info) for info in found])
        return
    rows = [(info.name, info.status, _origin(info), ", ".join(info.components)) for info in found]
    print_table(("plugin", "status", "from", "components"), rows)
    for info in found:
        if info.error:
            click.echo(f"{info.name}: {info.error}")


@plugins.command("check")
@click.argument("name", required=False)
@click.option("--conformance", is_flag=True, help="Run every conformance check of every component. Needs pytest.")
@as_json
def check_plugin(name: str | None, conformance: bool, as_json: bool) -> None:
    """Show what became of the plugin NAME: status, error, hooks, components and their parameters.

    The exit code is 1 where it failed, is blocked, where a component lacks its backend, or where a function is named
    like a hook without being one; with --conformance, where a check failed. Without NAME --conformance checks every
    plugin that does not come with this package.
    """
    found = {info.name: info for info in registry().plugins()}
    if name is None and not conformance:
        raise click.UsageError("NAME is missing; only --conformance goes without.")
    if name is not None and name not in found:
        raise UnknownNameError("plugin", name, found)
    every = [c for kind in Kind for c in registry().components(kind)]
    if conformance:
        names = [name] if name else [n for n, info in found.items() if info.distribution != PROJECT]
        check_conformance([found[n] for n in names], [c for c in every if c.plugin in names], as_json)
        return
    info = found[str(name)]
    components = [c for c in every if c.plugin == name]
    if as_json:
        print_json(asdict(info) | {"components": [asdict(c) for c in components]})
    else:
        click.echo(f"{info.name}: {info.status}, from {_origin(info)}")
        if info.error:
            click.echo(info.error)
        click.echo(f"hooks: {', '.join(info.hooks) or 'none'}")
        if components:
            _print_components(components, with_kind=True)
    if info.unmarked or info.status is not Status.LOADED or any(c.status is not Status.LOADED for c in components):
        click.get_current_context().exit(1)


@click.group(short_help="List the attacks.")
def attacks() -> None:
    """List the attacks: on decisions, on explanations, on training data."""


@attacks.command("list")
@as_json
def list_attacks(as_json: bool) -> None:
    """List the attacks of every kind, a line each."""
    _list_kinds((Kind.ATTACK, Kind.EXPLANATION_ATTACK, Kind.POISONING_ATTACK), as_json)


@click.group(short_help="List the certifiers.")
def certifiers() -> None:
    """List the certifiers: of decisions and of explanations."""


@certifiers.command("list")
@as_json
def list_certifiers(as_json: bool) -> None:
    """List the certifiers of every kind, a line each."""
    _list_kinds((Kind.CERTIFIER, Kind.EXPLANATION_CERTIFIER), as_json)


@click.group()
def data() -> None:
    """List the data sets."""


@data.command("list")
@as_json
def list_data(as_json: bool) -> None:
    """List the data sets that --data accepts, with their parameters."""
    _list(Kind.DATASET, as_json)


@click.group()
def models() -> None:
    """List the networks of the zoo."""


@models.command("list")
@as_json
def list_models(as_json: bool) -> None:
    """List the networks that --model accepts by name, with their parameters."""
    _list(Kind.MODEL, as_json)


@click.group()
def recipes() -> None:
    """List the recipes of robust training."""


@recipes.command("list")
@as_json
def list_recipes(as_json: bool) -> None:
    """List the recipes that train --recipe accepts, with their parameters."""
    _list(Kind.LOSS, as_json)


def _list_kinds(kinds: tuple[Kind, ...], as_json: bool) -> None:
    """A line or two each, with what it does as far as the terminal is wide: there are too many for all of it."""
    components = [info for kind in kinds for info in registry().components(kind)]
    if as_json:
        print_json([asdict(info) for info in components])
        return
    names, named = (max((len(text) for text in texts), default=0) for texts in
                    ([c.name for c in components], [c.kind for c in components]))  # fmt: skip
    width = terminal_width()
    room = None if width is None else max(width - names - named - 8, 20)
    print_table(("name", "kind", "what it does"), [(c.name, c.kind, _summary(c, room)) for c in components])
    for install in sorted({c.missing for c in components if c.missing}):
        click.echo(f"Not installed: {install}")
    click.echo("robust-plugins describe NAME shows the parameters of one.")


def _summary(info: ComponentInfo, room: int | None) -> str:
    """The first paragraph of its description, as far as it fits a line of the room, or two lines of little room."""
    first = (inspect.getdoc(registry().factory_of(info.kind, info.name)) or "").split("\n\n")[0]
    text = " ".join((("(not installed) " if info.missing else "") + first).split())
    if room is None:
        return text
    return textwrap.shorten(text, room if room >= ROOMY else 2 * room - 8, placeholder=" ...")


def _list(kind: Kind, as_json: bool) -> None:
    components = registry().components(kind)
    if as_json:
        print_json([asdict(info) for info in components])
    else:
        _print_components(components)


def _print_components(components: list[ComponentInfo], *, with_kind: bool = False) -> None:
    print_table(
        ("kind" if with_kind else "plugin", "name", "status", "parameters"),
        [
            (
                c.kind if with_kind else c.plugin,
                c.name,
                f"{c.status}: {c.missing}" if c.missing else c.status,
                ", ".join(c.parameters),
            )
            for c in components
        ],
    )


def _origin(info: PluginInfo) -> str:
    own = f"{info.distribution} {info.version}".strip() or "unknown"
    return f"{own}, with {', '.join(info.backends)}" if info.backends else own
