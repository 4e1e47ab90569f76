"""`robust-plugins bench report`: the records of studies as a page and as markdown."""

from __future__ import annotations

from pathlib import Path

import click

from robust_plugins.cli.folder import try_page


@click.command(
    short_help="Write a store as a page, and as markdown.",
    epilog="Exit codes: 0 success; 1 a library is missing; 2 wrong usage; 3 the records contradict each other, as the "
    "page says first.",
)
@click.argument("stores", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True)
@click.option(
    "--page", type=click.Path(path_type=Path, dir_okay=False),
    help="The page to write, and markdown beside it. Default: the first store's name with .html.",
)  # fmt: skip
@click.option("--title", default="Robustness study", show_default=True, help="The page's title.")
@click.pass_context
def report(ctx: click.Context, stores: tuple[Path, ...], page: Path | None, title: str) -> None:
    """Write what is in STORES as one page that needs no other file, and as markdown; several stores are one study.

    The page begins with whether anything contradicts anything, and with what is known of each model's robust accuracy.
    Then: accuracies against the radius, intervals, radii, models compared, where certifiers stop deciding, margins,
    time, failures, and what is needed to do it again.
    """
    from robust_plugins.benchmark.reporting import write_study_report

    target = page or stores[0].with_suffix(".html")
    try_page(target)
    findings = write_study_report(target, stores, title=title)
    click.echo(f"{target} and {target.with_suffix('.md').name}: {findings.summary}")
    ctx.exit(3 if findings.violations else 0)
