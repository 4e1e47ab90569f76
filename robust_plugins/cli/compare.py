"""`robust-plugins compare`: the bracket of one model on one data set."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from robust_plugins.brackets import BallsComparison, Comparison, write_report
from robust_plugins.brackets import compare as run_comparison
from robust_plugins.brackets.comparison import comparison_table, sampling
from robust_plugins.cli.debugging import exceptions_shown
from robust_plugins.cli.folder import try_page
from robust_plugins.cli.invocation import called
from robust_plugins.cli.printing import as_json, fitted, print_json
from robust_plugins.cli.subject import Subject, available, with_subject
from robust_plugins.decisions.results import Certificate, Verdict
from robust_plugins.errors import PluginError
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry


@click.command(
    short_help="Attack and certify one model on the same samples.",
    epilog="Exit codes: 0 success; 1 a component failed; 2 wrong usage; 3 an attack contradicts a certificate.",
)
@with_subject
@click.option(
    "--component",
    "components",
    multiple=True,
    help="An attack or a certifier, with parameters: 'art:pgd(steps=20)'; repeatable. Default: all that are there, but "
    "those that search until a timeout, and cascades of others.",
)
@click.option("--page", type=click.Path(path_type=Path), help="Write a page with table and pictures to this file.")
@as_json
@click.pass_context
def compare(
    ctx: click.Context,
    load: Callable[[], Subject],
    seed: int,
    components: tuple[str, ...],
    page: Path | None,
    as_json: bool,
) -> None:
    """Attack and certify one model on the same samples, and report whether the answers contradict each other."""
    for name in components:
        registry().kind_of(name, [Kind.ATTACK, Kind.CERTIFIER])  # a misspelt name is found before training
    if page is not None:
        try_page(page)
    subject = load()
    progress = not as_json and sys.stderr.isatty()
    names = list(components) or _available()
    tables = run_comparison(subject.model, subject.x, subject.y, subject.balls, names, seed=seed, progress=progress)
    if page is not None:
        title = f"Decisions of {subject.spec} on {subject.data.name}"
        write_report(page, tables, title=title, about=subject.about() | {"command": called(ctx)})
    if as_json:
        print_json(subject.to_dict() | tables.to_dict())
    else:
        click.echo(
            f"{fitted(comparison_table(tables.comparisons))}\n\n{tables.conclusion()}\n{sampling(tables.comparisons)}"
        )
        if page is not None:
            click.echo(f"The page with the pictures: {page}")
    exceptions_shown(row.exception for table in tables for row in table.rows)
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


def _exit_code(tables: BallsComparison[Comparison]) -> int:
    if tables.crossings:
        return 3
    failed = any(
        row.error or (isinstance(row.result, Certificate) and Verdict.ERROR in row.result.verdicts)
        for table in tables
        for row in table.rows
    )
    return 1 if failed else 0
