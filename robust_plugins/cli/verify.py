"""`robust-plugins verify`: answers whether networks satisfy properties, one or a folder of them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import click

from robust_plugins.adapters.onnx.instances import ANSWERS, Instance, Outcome, Results, read_instances
from robust_plugins.adapters.onnx.running import GRACE, answer, run_instances
from robust_plugins.cli.printing import as_json, print_json, print_table

TIMEOUT = 60.0
"""Seconds, where neither the option nor a file says."""


@click.command(
    short_help="Say whether a network's outputs can satisfy a property.",
    epilog="Exit codes: 0 answered; 1 an error, whose message is on standard error; 2 wrong usage.",
)
@click.option("--onnx", help="A network: an ONNX file, plain or gzipped.")
@click.option("--vnnlib", help="A property in VNN-LIB 1.0, plain or gzipped: what no output should satisfy.")
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True),
    help=f"Seconds.  [default: {TIMEOUT:g}]  With --instances, at most so many for each of them.",
)  # fmt: skip
@click.option(
    "--counterexample", type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the one of `sat`.  [default: NETWORK_PROPERTY.counterexample, here]",
)  # fmt: skip
@click.option(
    "--proof", type=click.Path(path_type=Path, dir_okay=False),
    help="A file to which the proof of `unsat` is added, for robust-plugins check-proof. With --onnx.",
)  # fmt: skip
@click.option(
    "--instances", type=click.Path(path_type=Path, dir_okay=False),
    help="A file of lines NETWORK,PROPERTY,TIMEOUT, whose paths are relative to its folder.",
)  # fmt: skip
@click.option(
    "--results", type=click.Path(path_type=Path, dir_okay=False),
    help="A CSV file of their answers. What is in it already is not run again. Counterexamples go into a folder of its "
    "name, without the suffix, beside it.",
)  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=1), help="Instances at once, each in a process.  [default: 1]")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The seed of the searches."
)
@as_json
@click.pass_context
def verify(
    ctx: click.Context,
    onnx: str | None,
    vnnlib: str | None,
    timeout: float | None,
    counterexample: Path | None,
    proof: Path | None,
    instances: Path | None,
    results: Path | None,
    jobs: int | None,
    seed: int,
    as_json: bool,
) -> None:
    """Say whether a network's outputs can satisfy a property: unsat, sat, unknown, timeout or error.

    unsat: no input of the property's boxes does, proved. sat: one does; it lies in its box exactly, was run in
    onnxruntime, and is written in the format of the verification competition (VNN-COMP): pairs (X_0 0.5) and (Y_0 1.0).

    With --instances and --results it answers many, one after the other or --jobs at once; an instance whose time is
    over is killed, and an interrupted run goes on where it stopped.
    """
    if instances is None:
        if onnx is None or vnnlib is None:
            raise click.UsageError("give --onnx and --vnnlib, or --instances and --results.")
        if results is not None or jobs is not None:
            raise click.UsageError("--results and --jobs go with --instances.")
        one = Instance(onnx, vnnlib, timeout or TIMEOUT)
        path = counterexample or Path(f"{one.name}.counterexample")
        ctx.exit(_single(one, path, proof, seed, as_json))
    if results is None or any(option is not None for option in (onnx, vnnlib, counterexample, proof)):
        raise click.UsageError(
            "with --instances give --results, and none of --onnx, --vnnlib, --counterexample and --proof."
        )
    ctx.exit(_folder(instances, results, timeout, jobs or 1, seed, as_json))


def _single(instance: Instance, counterexample: Path, proof: Path | None, seed: int, as_json: bool) -> int:
    timer = threading.Timer(instance.timeout + GRACE, _over, [instance, as_json])
    timer.daemon = True
    timer.start()
    found, message = answer(instance, Path(), counterexample, seed=seed, proof=proof)
    timer.cancel()
    written = str(counterexample) if found == "sat" else None
    if as_json:
        print_json(_shown(instance, found) | {"message": message, "counterexample": written})
    else:
        click.echo(found)
        if message:
            click.echo(f"{'Error: ' if found == 'error' else ''}{message}", err=True)
        if written:
            click.echo(f"counterexample: {written}", err=True)
    return 1 if found == "error" else 0


def _over(instance: Instance, as_json: bool) -> None:
    """Says `timeout` and leaves, whatever is being computed."""
    if as_json:
        print_json(_shown(instance, "timeout") | {"message": "killed", "counterexample": None})
    else:
        click.echo("timeout")
    os._exit(0)


def _shown(instance: Instance, found: str) -> dict[str, Any]:
    return {"onnx": instance.onnx, "vnnlib": instance.vnnlib, "timeout": instance.timeout, "answer": found}


def _folder(path: Path, results: Path, timeout: float | None, jobs: int, seed: int, as_json: bool) -> int:
    wanted = [Instance(i.onnx, i.vnnlib, min(i.timeout, timeout or i.timeout)) for i in read_instances(path)]
    kept = Results(results)
    left = [instance for instance in wanted if instance not in kept.outcomes]
    if len(left) < len(wanted):
        click.echo(f"{len(wanted) - len(left)} of {len(wanted)} are in {results} already", err=True)

    def told(outcome: Outcome) -> None:
        kept.add(outcome)
        note = f"  {outcome.message}" if outcome.message else ""
        click.echo(f"{outcome.answer:8}{outcome.seconds:8.1f} s  {outcome.instance.name}{note}", err=True)

    if left:
        folder = results.with_suffix("" if results.suffix else ".counterexamples")
        run_instances(left, path.parent, folder, told, jobs=jobs, seed=seed)
    found = [kept.outcomes[instance] for instance in wanted]
    counts = Counter(outcome.answer for outcome in found)
    seconds = sum(outcome.seconds for outcome in found)
    if as_json:
        rows = [_shown(o.instance, o.answer) | {"seconds": o.seconds, "message": o.message} for o in found]
        print_json({"counts": {word: counts[word] for word in ANSWERS}, "seconds": seconds, "instances": rows})
    else:
        print_table(
            ("instances", *ANSWERS, "seconds"),
            [(str(len(found)), *(str(counts[w]) for w in ANSWERS), f"{seconds:.1f}")],
        )
    return 1 if counts["error"] else 0
