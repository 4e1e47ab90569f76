"""`robust-plugins audit-results`: finds the tools that are wrong among published answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from robust_plugins.adapters.onnx.auditing import Audited, Examined, audit
from robust_plugins.adapters.onnx.claims import read_claims
from robust_plugins.adapters.onnx.instances import read_instances
from robust_plugins.adapters.onnx.reproducers import write_reproducer
from robust_plugins.cli.printing import as_json, print_json, print_table

STANDINGS = ("exact", "moved", "border", "none", "unreadable", "missing")


@click.command(
    short_help="Find who is wrong among verification tools.",
    epilog="Exit codes: 0 no contradiction; 1 a network or a property failed; 2 wrong usage; 3 a contradiction.",
)
@click.option(
    "--instances", type=click.Path(path_type=Path, dir_okay=False), required=True,
    help="A file of lines NETWORK,PROPERTY,TIMEOUT, whose paths are relative to its folder.",
)  # fmt: skip
@click.option(
    "--answers", "answers", type=click.Path(path_type=Path, dir_okay=False), multiple=True, required=True,
    help="A tool's answers, repeatable: lines category,network,property,seconds,answer,seconds as the competition "
    "publishes them, or columns onnx, vnnlib, answer. Counterexamples are looked for beside it, in a folder of its "
    "name without the suffix.",
)  # fmt: skip
@click.option(
    "--attack", type=click.FloatRange(min=0), default=2.0, show_default=True,
    help="Seconds of a search for a counterexample to each `unsat` that no tool's counterexample refutes.",
)  # fmt: skip
@click.option(
    "--decide", type=click.FloatRange(min=0), default=0.0, show_default=True,
    help="Seconds of our own verifier for each instance that is disputed still.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="A folder: for each contradiction one with the files, the claims, and a script that replays them.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The seed of the searches."
)
@as_json
@click.pass_context
def audit_results(
    ctx: click.Context,
    instances: Path,
    answers: tuple[Path, ...],
    attack: float,
    decide: float,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Find who is wrong among verification tools: replay every counterexample, attack every unsat.

    Counterexamples are run in onnxruntime and compared exactly: exact (unsafe as written), moved (unsafe once it is
    moved into its box by at most 0.0001), border (misses by at most 0.0001, which the competition lets pass), none
    (misses by more), unreadable or missing. A tool is wrong where it says unsat and a counterexample holds exactly, or
    where its own counterexample is none.
    """
    claims = read_claims(answers, read_instances(instances))
    found = []
    for audited in audit(claims, instances.parent, attack=attack, decide=decide, seed=seed):
        found.append(audited)
        if audited.contradictory:
            if not as_json:
                click.echo(_line(audited))
            if out is not None:
                write_reproducer(out / audited.instance.name, instances.parent, audited)
    if as_json:
        print_json({"tools": _by_tool(found), "contradictions": [_entry(a) for a in found if a.contradictory]})
    else:
        rows = _by_tool(found)
        names = list(next(iter(rows.values()))) if rows else []
        click.echo()
        print_table(("tool", *names), [(tool, *map(str, row.values())) for tool, row in rows.items()])
    ctx.exit(3 if any(audited.contradictory for audited in found) else 0)


def _line(audited: Audited) -> str:
    wrong = [f"  {e.claim.tool}: {e.wrong}" for e in audited.claims if e.wrong]
    if not wrong:
        by_answer = [
            f"  {word}: " + ", ".join(_claim(e) for e in audited.claims if e.claim.answer == word)
            for word in ("sat", "unsat")
        ]
        wrong = ["  undecided", *by_answer]
    return "\n".join([f"{audited.instance.onnx} {audited.instance.vnnlib}", *wrong])


def _claim(examined: Examined) -> str:
    note = f" ({examined.standing})" if examined.standing else ""
    return examined.claim.tool + note


def _entry(audited: Audited) -> dict[str, Any]:
    return {
        "onnx": audited.instance.onnx, "vnnlib": audited.instance.vnnlib, "truth": audited.truth or None,
        "witness_of": audited.source or None,
        "claims": [
            {"tool": e.claim.tool, "answer": e.claim.answer, "counterexample": e.standing, "wrong": e.wrong or None}
            for e in audited.claims
        ],
    }  # fmt: skip


def _by_tool(found: Iterable[Audited]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for audited in found:
        for e in audited.claims:
            count = counts.setdefault(e.claim.tool, Counter())
            count[e.claim.answer] += 1
            count[e.standing or ""] += 1
            count["wrong unsat"] += bool(e.wrong) and e.claim.answer == "unsat"
            count["wrong sat"] += bool(e.wrong) and e.claim.answer == "sat"
    columns = ("unsat", "sat", *STANDINGS, "wrong unsat", "wrong sat")
    return {tool: {name: counts[tool][name] for name in columns} for tool in sorted(counts)}
