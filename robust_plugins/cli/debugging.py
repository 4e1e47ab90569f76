"""Whole tracebacks, for those who ask for them: `--debug`, or the environment variable ROBUST_PLUGINS_DEBUG."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable

import click

VARIABLE = "ROBUST_PLUGINS_DEBUG"


def debugging() -> bool:
    """Whether the present command shows tracebacks."""
    context = click.get_current_context(silent=True)
    asked = context is not None and bool(context.find_root().params.get("debug"))
    return asked or os.environ.get(VARIABLE, "0") not in ("", "0")


def exceptions_shown(errors: Iterable[BaseException | None]) -> None:
    """Prints the traceback of each exception to standard error, where that is asked for."""
    if debugging():
        for error in errors:
            if error is not None:
                click.echo("".join(traceback.format_exception(error)), err=True)
