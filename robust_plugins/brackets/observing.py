"""Telling the observers of a run: that it begins, what each component found, and that it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from robust_plugins.balls import Ball
from robust_plugins.registry.registry import registry


@contextmanager
def observed(components: Sequence[str], ball: Ball, *, seed: int, samples: int) -> Iterator[Callable[[str, Any], None]]:
    """Announces the run and its end, whatever ends it; inside, call what it gives with a name and a result."""
    run = {"components": list(components), "ball": ball, "seed": seed, "samples": samples}
    registry().observe("on_run_start", run=run)
    try:
        yield lambda name, result: registry().observe("on_record", run=run, name=name, result=result)
    except BaseException as error:
        registry().observe("on_run_end", run=run, error=error)
        raise
    registry().observe("on_run_end", run=run, error=None)
