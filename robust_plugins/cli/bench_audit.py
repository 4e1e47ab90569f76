"""`robust-plugins bench audit`: every contradiction among the records of studies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from robust_plugins.benchmark.auditing import Finding, Findings, Severity
from robust_plugins.benchmark.auditing import audit as find
from robust_plugins.cli.printing import as_json, print_json


@click.command(
    short_help="Hold the records of stores against each other.",
    epilog="Exit codes: 0 no contradiction; 2 wrong usage; 3 two records contradict each other, so one of them is "
    "wrong; with --strict also where a component missed what its own records imply.",
)
@click.argument("stores", type=click.Path(path_type=Path, dir_okay=False), nargs=-1, required=True)
@click.option("--strict", is_flag=True, help="Leave with 3 for weak findings, too.")
@click.option("--all", "every", is_flag=True, help="Every finding, not the worst one of each kind.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="A folder: for each violation one with weights, inputs, components, seeds and a script that shows it again.",
)  # fmt: skip
@as_json
@click.pass_context
def audit(
    ctx: click.Context, stores: tuple[Path, ...], strict: bool, every: bool, out: Path | None, as_json: bool
) -> None:
    """Hold all records of STORES against each other; several stores are held together as one.

    A violation means that one of two records is wrong: an attack inside a ball that was certified, a margin below the
    proved one, certifiers that disagree, an example outside its ball, answers that depend on the batch or the machine.
    What rounding can account for is near; what a component missed although another record of its own implies it is
    weak.
    """
    findings = find(stores)
    if as_json:
        print_json(to_dict(findings))
    else:
        click.echo(in_words(findings, every=every))
    if out is not None and findings.violations:
        worst = findings.violations if every else [f for f, _ in findings.grouped(Severity.VIOLATION)]
        _reproduce(out, findings, worst, stores)
    wrong = bool(findings.violations) or (strict and bool(findings.of(Severity.WEAK)))
    ctx.exit(3 if wrong else 0)


def _reproduce(out: Path, findings: Findings, chosen: list[Finding], stores: tuple[Path, ...]) -> None:
    from robust_plugins.benchmark.reproducing import write_reproducers

    click.echo("", err=True)
    for written in write_reproducers(out, findings, chosen, stores, lambda text: click.echo(text, err=True)):
        how = f"python {shlex.quote(str(written.folder / 'reproduce.py'))}" if written.folder else written.obstacle
        click.echo(f"{written.finding.rule}: {how}", err=True)


TITLES = {
    Severity.VIOLATION: "Violations: one of two records is wrong",
    Severity.NEAR: "Near: the difference is within rounding",
    Severity.WEAK: "Weak: missed, although another record of the same component implies it",
}


def in_words(findings: Findings, *, every: bool) -> str:
    """The findings as lines for people, each kind of severity under its title."""
    lines = [f"{len(findings.columns)} records: {findings.summary}."]
    for severity, title in TITLES.items():
        found = findings.of(severity)
        if not found:
            continue
        lines += ["", f"{title} ({len(found)})"]
        if every:
            lines += [f"  {f.rule}: {findings.sentence(f)}" for f in found]
        else:
            lines += [
                f"  {f.rule}{f' ({count} times; the worst)' if count > 1 else ''}: {findings.sentence(f)}"
                for f, count in findings.grouped(severity)
            ]
    return "\n".join(lines)


def to_dict(findings: Findings) -> dict[str, Any]:
    """All findings with the identities of their two records, ready for JSON."""
    return {
        "records": len(findings.columns),
        "violations": len(findings.violations),
        "findings": [_entry(findings, finding) for finding in findings],
    }


def _entry(findings: Findings, finding: Finding) -> dict[str, Any]:
    identity = findings.columns["identity"]
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "sentence": findings.sentence(finding),
        "excess": finding.excess,
        "records": [identity[finding.first], identity[finding.second]],
    }
