"""Bars where they can move: in terminals, and in notebooks that have widgets."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from robust_plugins.harness.progress import shows_bars


@pytest.mark.parametrize("widgets", [True, False])
def test_bars_in_terminals_and_in_notebooks_with_widgets(widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    there = object() if widgets else None
    monkeypatch.setattr(sys.modules["robust_plugins.harness.progress"], "find_spec", lambda module: there)
    plain, terminal, notebook = (
        Console(file=io.StringIO(), force_terminal=t, force_jupyter=j)
        for t, j in ((False, False), (True, False), (False, True))
    )
    assert not shows_bars(plain)
    assert shows_bars(terminal)
    assert shows_bars(notebook) is widgets
