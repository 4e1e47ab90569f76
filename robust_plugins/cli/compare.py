"""`robust-plugins compare`: the bracket of one model on one data set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from robust_plugins.brackets import Comparison
from robust_plugins.brackets import compare as run_comparison
from robust_plugins.brackets.comparison import comparison_table, conclusion
from robust_plugins.cli.printing import as_json, print_json
from robust_plugins.cli.subject import Subject, available, with_subject
from robust_plugins.decisions.results import Certificate, Verdict
from robust_plugins.errors import PluginError
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry


@click.command(
    epilog="Exit codes: 0 success; 1 a component failed; 2 wrong usage; 3 an attack contradicts a certificate."
)
@with_subject
@click.option(
    "--component",
    "components",
    multiple=True,
    help="An attack or a certifier, with parameters: 'art:pgd(steps=20)'; repeatable. Default: all that are there, but "
    "those that search until a timeout, and cascades of others.",
)
@as_json
@click.pass_context
def compare(
    ctx: click.Context,
    load: Callable[[], Subject],
    seed: int,
    components: tuple[str, ...],
    as_json: bool,
) -> None:
    """Attack and certify one model on the same samples, and report whether the answers contradict each other."""
    for name in components:
        registry().kind_of(name, [Kind.ATTACK, Kind.CERTIFIER])  # a misspelt name is found before training
    subject = load()
    progress = not as_json and sys.stderr.isatty()
    names = list(components) or _available()
    tables = [
        run_comparison(subject.model, subject.x, subject.y, ball, names, seed=seed, progress=progress)
        for ball in subject.balls
    ]
    if as_json:
        print_json(subject.to_dict() | {"comparisons": [table.to_dict() for table in tables]})
    else:
        click.echo(f"{comparison_table(tables)}\n\n{conclusion(tables)}")
    ctx.exit(_exit_code(tables))


def _available() -> list[str]:
    certifiers = registry().components(Kind.CERTIFIER)
    searches = {info.name for info in certifiers if "timeout" in info.parameters}
    repeating = {info.name for info in certifiers if "stages" in info.parameters}  # what others have answered already
    names = []
    for name in available([Kind.ATTACK, Kind.CERTIFIER]):
        if name in repeating:
            continue
        if name in searches:
            click.echo(
                f"left out: {name}, which may take its timeout for each sample; name it with --component", err=True
            )
        else:
            names.append(name)
    if not names:
        raise PluginError("no attack or certifier is available; see `robust-plugins plugins list`")
    return names


def _exit_code(tables: Sequence[Comparison]) -> int:
    if any(table.crossings for table in tables):
        return 3
    failed = any(
        row.error or (isinstance(row.result, Certificate) and Verdict.ERROR in row.result.verdicts)
        for table in tables
        for row in table.rows
    )
    return 1 if failed else 0
