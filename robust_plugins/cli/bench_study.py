"""`robust-plugins bench init`, `check`, `run`, `export` and `verify`: from the file of a study to its records."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from robust_plugins.benchmark.auditing import audit
from robust_plugins.benchmark.example import EXAMPLE
from robust_plugins.benchmark.exporting import export as write_export
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.study import load_study
from robust_plugins.cli.bench_audit import in_words
from robust_plugins.errors import UnknownNameError
from robust_plugins.interruption import INTERRUPTED

STUDY = click.argument("path", metavar="STUDY.TOML", type=click.Path(path_type=Path))
STORE = click.argument("path", metavar="STORE.SQLITE", type=click.Path(path_type=Path))


@click.command(short_help="Write an example study to start from.")
@click.argument("path", metavar="[STUDY.TOML]", type=click.Path(path_type=Path), default=Path("study.toml"))
def init(path: Path) -> None:
    """Write an example study, with comments, that runs offline in a minute."""
    try:
        with path.open("x") as file:
            file.write(EXAMPLE.format(name=shlex.quote(str(path))))
    except FileExistsError:
        raise click.UsageError(f"{path} is there already: name another file.") from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error}. Name another file.") from None
    click.echo(f"{path} written; look at it, and run it: robust-plugins bench run {shlex.quote(str(path))}")


@click.command(
    short_help="Say whether a study can run, and what is missing.",
    epilog="Exit codes: 0 it can run; 1 something is missing; 2 wrong usage.",
)
@STUDY
@click.option(
    "--measure", "measured", is_flag=True,
    help="Train what is to be trained, which the run then need not, and time each component on a few samples.",
)  # fmt: skip
@click.pass_context
def check(ctx: click.Context, path: Path, measured: bool) -> None:
    """Say whether a study can run, what is missing, how many records it has and how long it may take.

    Models, data and components are read and built, and nothing else is run without --measure. How long it takes is
    then known from records in the store alone.
    """
    from robust_plugins.benchmark.checking import check as checking

    study = load_study(path)
    where = (study.configuration, study.folder, study.cache, study.store_path)
    found = checking(*where)
    if measured and not found.problems:
        study.subjects(lambda text: click.echo(text, err=True))
        found = checking(*where, measured=True)
    click.echo(f"{found}")
    ctx.exit(1 if found.problems else 0)


@click.command(
    short_help="Run a study, or what its store lacks of it.",
    epilog="Exit codes: 0 every record is there, also where time ran out; 1 some components failed, and the store "
    "has the causes; 2 wrong usage; 3 two records contradict each other; 130 interrupted.",
)
@STUDY
@click.option("--retry", is_flag=True, help="Compute again what failed or ran out of time before.")
@click.option("--quiet", is_flag=True, help="No display, and no lines, of progress.")
@click.pass_context
def run(ctx: click.Context, path: Path, retry: bool, quiet: bool) -> None:
    """Run a study, or what its store does not have of it yet.

    Each batch is written when it is complete. Ctrl-C drops the batches that are running. At the end all records of the
    store are audited.
    """
    try:
        outcome = load_study(path).run(retry=retry, progress=not quiet)
        click.echo(f"{outcome}")
        findings = None if outcome.interrupted else audit(outcome.store)
    except KeyboardInterrupt:  # while models are read or trained, or records are audited
        findings = None
    if findings is None:
        click.echo(f"interrupted; go on with: {_again(path, retry)}", err=True)
        ctx.exit(INTERRUPTED)
    click.echo(in_words(findings, every=False))
    if findings.violations:
        ctx.exit(3)
    ctx.exit(1 if outcome.errors else 0)


@click.command(short_help="Write records as Parquet or CSV.")
@STORE
@click.argument("out", metavar="OUT.PARQUET|OUT.CSV", type=click.Path(path_type=Path))
@click.option("--component", "components", multiple=True, help="Records of this component alone; repeatable.")
@click.option("--model", "models", multiple=True, help="Records of this model alone; repeatable.")
def export(path: Path, out: Path, components: tuple[str, ...], models: tuple[str, ...]) -> None:
    """Write the records of a store as Parquet or CSV, as the suffix says."""
    where = {name: list(values) for name, values in (("component", components), ("model", models)) if values}
    with Store(path) as store:
        for column, names in where.items():
            known = set(store.columns(column)[column])
            for name in names:
                if name not in known:
                    raise UnknownNameError(f"{column} of {path}", name, known)
        count = write_export(store, out, where=where)
    click.echo(f"{count} records: {out}")


@click.command(
    short_help="Derive random records again, and compare them.",
    epilog="Exit codes: 0 all agree; 1 some could not be derived; 2 wrong usage; 3 some differ.",
)
@STORE
@click.option("--sample", "count", type=click.IntRange(min=1), default=20, show_default=True, help="How many records.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="The seed of the choice.")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="What paths in the study are relative to, where it ran elsewhere.",
)  # fmt: skip
@click.pass_context
def verify(ctx: click.Context, path: Path, count: int, seed: int, folder: Path | None) -> None:
    """Derive random records of a store again, from what the store says, and compare them.

    An import path in the study runs the code that it names.
    """
    from robust_plugins.benchmark.verifying import verify as verifying

    with Store(path) as store:
        found = verifying(store, count, seed=seed, folder=folder, say=lambda text: click.echo(text, err=True))
    for verified in found:
        if not verified.agrees:
            click.echo(f"{verified}")
    differing = sum(bool(v.differences) for v in found)
    lost = sum(bool(v.obstacle) for v in found)
    agreeing = len(found) - differing - lost
    click.echo(f"{len(found)} records: {agreeing} the same, {differing} differ, {lost} could not be derived again")
    ctx.exit(3 if differing else 1 if lost else 0)


def _again(path: Path, retry: bool) -> str:
    return f"robust-plugins bench run {shlex.quote(str(path))}{' --retry' if retry else ''}"
