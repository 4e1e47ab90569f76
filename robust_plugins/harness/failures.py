"""How an exception of somebody's component is told: what it is, and in which file and line."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

from robust_plugins.errors import RobustPluginsError

_OURS = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)


def named(error: BaseException) -> str:
    """The exception's type and message, also where its message cannot be had."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # a class of somebody else's, of which anything may fail
        return f"{type(error).__name__}, whose message cannot be read"


def told(error: BaseException) -> str:
    """The exception's type and message, and the place in the code where it was raised.

    The place is the innermost one outside this package and torch, where there is any: that of a plugin. Errors that
    this package raises on purpose say what to do, and have none.
    """
    text = named(error)
    if isinstance(error, RobustPluginsError) or not (frames := traceback.extract_tb(error.__traceback__)):
        return text
    theirs = [frame for frame in frames if not frame.filename.startswith((_OURS, _TORCH, "<"))]
    frame = (theirs or frames)[-1]
    return f"{text} (in {frame.name}, {frame.filename}:{frame.lineno})"
