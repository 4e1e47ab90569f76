"""`robust-plugins bench`: studies, from the file that describes one to the report that defends it."""

from __future__ import annotations

import click

from robust_plugins.cli.bench_audit import audit
from robust_plugins.cli.bench_compare import compare
from robust_plugins.cli.bench_report import report
from robust_plugins.cli.bench_study import check, export, init, run, verify


@click.group(short_help="Run studies; audit, compare and report them.")
def bench() -> None:
    """Run studies into a store of records; audit, compare and report what is in it."""


bench.add_command(audit)
bench.add_command(compare)
bench.add_command(report)
for _command in (init, check, run, export, verify):
    bench.add_command(_command)
