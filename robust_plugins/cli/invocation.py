"""The command line that was typed, to be printed again."""

from __future__ import annotations

import shlex

import click

CALLED = "robust_plugins.called"
"""Where the arguments of the whole command line are kept in its context."""


def called(ctx: click.Context) -> str:
    """The command line as it can be typed again."""
    return shlex.join(["robust-plugins", *ctx.find_root().meta.get(CALLED, ())])
