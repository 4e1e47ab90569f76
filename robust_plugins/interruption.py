"""Ctrl-C while the command `robust-plugins` still imports what it needs: one line, and the exit code 130.

The package imports this before everything else. In every other program it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import PurePath
from typing import Any

COMMAND = "robust-plugins"

INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, as shells have it."""

NOTHING = "interrupted; nothing was done"


def imported() -> None:
    """Gives Ctrl-C back to Python: the imports are over."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: Any) -> None:
    # Not an exception: what is imported in that moment could take it for a reason of its own to fail.
    os.write(2, f"{NOTHING}\n".encode())
    os._exit(INTERRUPTED)


def _is_command() -> bool:
    """Whether this process runs the command, as a script or by `python -m robust_plugins`."""
    begun = sys.argv[0] if sys.argv else ""
    if begun == "-m":  # as Python has it until the module is found
        given = sys.orig_argv
        return "-m" in given and given[given.index("-m") + 1 :][:1] == [__package__]
    return PurePath(begun).stem == COMMAND


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
