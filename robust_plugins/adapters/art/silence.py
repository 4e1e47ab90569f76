"""Keeping ART quiet: its attacks draw progress bars, print and log, and not all of them can be asked not to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing that ART or its progress bars write through Python is shown, and ART logs nothing."""
    log = logging.getLogger("art")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)  # of all of its modules, as long as they have no level of their own
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        log.setLevel(before)
