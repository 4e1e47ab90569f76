"""The command line `robust-plugins`."""

from __future__ import annotations

import errno
import os
import sys
from difflib import get_close_matches
from typing import Any

import click

from robust_plugins.cli import audit_results, bench, check_proof, compare, explain, poison, train, verify
from robust_plugins.cli.debugging import VARIABLE, exceptions_shown
from robust_plugins.cli.describe import describe
from robust_plugins.cli.invocation import CALLED, called
from robust_plugins.cli.listings import attacks, certifiers, data, models, plugins, recipes
from robust_plugins.cli.printing import forget_output, plain_warnings
from robust_plugins.errors import PluginError, RobustPluginsError, UnknownNameError
from robust_plugins.harness.failures import told
from robust_plugins.interruption import COMMAND, INTERRUPTED, NOTHING, imported
from robust_plugins.registry.information import Kind, Status
from robust_plugins.registry.registry import registry

__all__ = ["commands", "main"]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The errors of a disk that holds no more."""

RESUMING = ("train", "poison")
"""The commands that go on where they stopped; `bench run` says so itself."""


class _Commands(click.Group):
    """The built-in commands, and those that plugins register; built-in names come first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        own = super().list_commands(ctx)
        return own + sorted(_plugin_commands().keys() - set(own))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in _plugin_commands():
            return own
        try:
            found = registry().create(Kind.COMMAND, cmd_name)
            if not isinstance(found, click.Command):
                raise PluginError(f"its factory returned {found!r}, which is no click.Command")
        except Exception as error:  # one plugin's broken command must not take the others down
            return _broken(cmd_name, error)
        return found

    def make_context(self, *given: Any, **options: Any) -> click.Context:
        try:
            return super().make_context(*given, **options)
        except KeyboardInterrupt:  # while plugins are loaded, whose names are looked up
            click.echo(NOTHING, err=True)
            raise click.exceptions.Exit(INTERRUPTED) from None

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[CALLED] = list(args)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            failed = [info for info in registry().plugins() if info.status is Status.FAILED]
            causes = "; ".join(f"{info.name}: {info.error}" for info in failed)
            further = f" It may be one of a plugin that failed: {causes}" if failed else ""
            near = [] if failed else get_close_matches(args[0], self.list_commands(ctx), n=1)
            meant = f" Did you mean '{near[0]}'?" if near and "Did you mean" not in error.message else ""
            raise click.UsageError(error.message + meant + further, ctx) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with plain_warnings():
                return super().invoke(ctx)
        except RobustPluginsError as error:
            exceptions_shown([error])
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2 if isinstance(error, ValueError | UnknownNameError) else 1)
        except KeyboardInterrupt as error:
            exceptions_shown([error])
            goes_on = str(ctx.invoked_subcommand) in RESUMING
            click.echo(f"interrupted; {f'go on with: {called(ctx)}' if goes_on else 'nothing was kept'}", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except OSError as error:
            if error.errno not in FULL or error.filename is not None:
                raise
            exceptions_shown([error])
            forget_output()
            click.echo(f"Error: the output cannot be written: {error.strerror}; write it where there is room", err=True)
            ctx.exit(1)
        except Exception as error:
            if ctx.invoked_subcommand in self.commands:
                raise  # ours, and a bug: the traceback is what helps
            exceptions_shown([error])
            click.echo(f"Error: {_failure(str(ctx.invoked_subcommand), error)}", err=True)
            ctx.exit(1)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 success; 1 a component or a plugin failed; 2 wrong usage; "
    "3 an attack contradicts a certificate, so one of the two is wrong; 130 interrupted.",
)
@click.version_option(package_name="robust_plugins")
@click.option(
    "--debug", is_flag=True,
    help=f"Print the whole traceback of every error, also of components; so does {VARIABLE}=1 in the environment.",
)  # fmt: skip
def commands(debug: bool) -> None:
    """Attacks, certificates and robust training for PyTorch models, behind one interface."""


for _command in (
    compare.compare,
    explain.explain,
    train.train,
    poison.poison,
    verify.verify,
    audit_results.audit_results,
    check_proof.check_proof,
    bench.bench,
    plugins,
    attacks,
    certifiers,
    data,
    models,
    recipes,
    describe,
):
    commands.add_command(_command)


def main() -> None:
    """Runs the command line and leaves with its exit code. Import paths are also looked for in the working folder."""
    imported()
    sys.path.append(os.getcwd())
    commands(prog_name=COMMAND)


def _plugin_commands() -> dict[str, str]:
    """The plugin of every registered command, by the command's name."""
    return {info.name: info.plugin for info in registry().components(Kind.COMMAND)}


def _broken(name: str, error: Exception) -> click.Command:
    message = _failure(name, error)

    def report() -> None:
        raise PluginError(message) from error

    return click.Command(name, callback=report, short_help=f"(failed: {error})")


def _failure(name: str, error: Exception) -> str:
    return f"command {name!r} of plugin {_plugin_commands().get(name)!r} failed: {told(error)}"
