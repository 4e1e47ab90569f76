"""The conformance checks of plugins, run and printed as they end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import click

from robust_plugins.cli.printing import print_json
from robust_plugins.errors import PluginError
from robust_plugins.registry.information import ComponentInfo, PluginInfo, Status


def check_conformance(plugins: Sequence[PluginInfo], components: Sequence[ComponentInfo], as_json: bool) -> None:
    """Runs the checks of the components, a line for each component and each failure; leaves with 1 where one failed.

    A plugin that is not loaded, or has a function that only looks like a hook, counts as failed too. Raises PluginError
    where pytest, on which the checks depend, is missing.
    """
    try:
        from robust_plugins.testing import conformance
    except ImportError as error:
        raise PluginError("conformance checks need pytest; install it: pip install pytest") from error
    outcomes, current = [], None
    for info in plugins:
        if info.error and not as_json:
            click.echo(f"{info.name}: {info.error}")
    if not components and not as_json:
        click.echo("There is no component to check.")
    for outcome in conformance(components):
        outcomes.append(outcome)
        if as_json:
            continue
        if (heading := f"{outcome.kind} {outcome.component}") != current:
            click.echo(heading)
            current = heading
        if outcome.skipped:
            click.echo(f"  not checked: {outcome.skipped}")
        else:
            click.echo(f"  {'failed' if outcome.error else 'passed'}  {outcome.check}")
        if outcome.error:
            click.echo("".join(f"          {line}\n" for line in outcome.error.splitlines()), nl=False)
    failed = [outcome for outcome in outcomes if outcome.error]
    broken = [info for info in plugins if info.unmarked or info.status in (Status.FAILED, Status.BLOCKED)]
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        run = [outcome for outcome in outcomes if not outcome.skipped]
        click.echo(f"{len(run) - len(failed)} of {len(run)} checks passed.")
    if failed or broken:
        click.get_current_context().exit(1)
