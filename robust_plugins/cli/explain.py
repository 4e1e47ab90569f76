"""`robust-plugins explain`: the bracket of one model's explanations on one data set."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import click
import torch

from robust_plugins.brackets import (
    BallsComparison,
    ExplanationComparison,
    compare_explanations,
    write_explanation_report,
)
from robust_plugins.brackets.ball_names import ball_name
from robust_plugins.brackets.explanation_comparison import explanation_table
from robust_plugins.cli.debugging import exceptions_shown
from robust_plugins.cli.folder import try_page
from robust_plugins.cli.invocation import called
from robust_plugins.cli.printing import as_json, fitted, print_json
from robust_plugins.cli.subject import Subject, available, with_subject
from robust_plugins.decisions.results import Verdict
from robust_plugins.explanations.explained import Of
from robust_plugins.harness.evaluation import evaluating
from robust_plugins.registry.information import Kind
from robust_plugins.registry.registry import registry

KINDS = [Kind.EXPLANATION_ATTACK, Kind.EXPLANATION_CERTIFIER]


@click.command(
    short_help="Attack and certify one model's explanations.",
    epilog="Exit codes: 0 success; 1 a component failed; 2 wrong usage; 3 an attack contradicts a certificate.",
)
@with_subject
@click.option(
    "--of",
    type=click.Choice(get_args(Of)),
    default="logit",
    show_default=True,
    help="The explanation is the gradient of this number, for the class that the model predicts.",
)
@click.option(
    "--top", "k", type=click.IntRange(min=1), default=5, show_default=True, help="How many features to keep on top."
)
@click.option("--delta", type=click.FloatRange(min=0), help="The width that every feature's gradient may have.")
@click.option(
    "--radius",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="The relative amount by which each of the model's parameters may change, too.",
)
@click.option(
    "--component",
    "components",
    multiple=True,
    help="An attack or a certifier of explanations, with parameters: 'interval:relaxed(effort=3)'; repeatable. "
    "Default: all that are there.",
)
@click.option("--page", type=click.Path(path_type=Path), help="Write a page with tables and pictures to this file.")
@as_json
@click.pass_context
def explain(
    ctx: click.Context,
    load: Callable[[], Subject],
    seed: int,
    of: Of,
    k: int,
    delta: float | None,
    radius: float,
    components: tuple[str, ...],
    page: Path | None,
    as_json: bool,
) -> None:
    """Attack and certify one model's explanations: how far can they change, and how far can they change at most?"""
    for name in components:
        registry().kind_of(name, KINDS)  # a misspelt name is found before training
    if page is not None:
        try_page(page)
    subject = load()
    with torch.no_grad(), evaluating(subject.model):
        predicted = subject.model(subject.x).argmax(1)
    tables = compare_explanations(
        subject.model,
        subject.x,
        predicted,
        subject.balls,
        list(components) or available(KINDS),
        of=of,
        k=k,
        delta=delta,
        radius=radius,
        seed=seed,
        progress=not as_json and sys.stderr.isatty(),
    )
    if page is not None:
        title = f"Explanations of {subject.spec} on {subject.data.name}"
        write_explanation_report(
            page, tables, title=title, feature_names=subject.data.feature_names,
            about=subject.about() | {"command": called(ctx)},
        )  # fmt: skip
    if as_json:
        print_json(subject.to_dict() | tables.to_dict())
    else:
        for table in tables:
            click.echo(f"{ball_name(table.ball)}\n{fitted(explanation_table(table))}\n")
        click.echo(tables.conclusion())
        if page is not None:
            click.echo(f"The page with the pictures: {page}")
    exceptions_shown(row.exception for table in tables for row in table.rows)
    ctx.exit(_exit_code(tables))


def _exit_code(tables: BallsComparison[ExplanationComparison]) -> int:
    if tables.crossings:
        return 3
    rows = [row for table in tables for row in table.rows]
    errors = any(Verdict.ERROR in getattr(result, "verdicts", ()) for row in rows for result in row.results)
    return 1 if errors or any(row.error for row in rows) else 0
