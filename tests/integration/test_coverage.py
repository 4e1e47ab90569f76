"""The page of what each certifier bounds is what its script makes of the present code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "integration" / "comparisons"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("coverage_page", FOLDER / "coverage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    """The engine's half is compared; the other half depends on the version of auto_LiRPA."""
    script, page = _script(), (FOLDER / "coverage.md").read_text()
    assert script.table(script.OWN, script.GRADIENTS) in page


def test_the_page_names_every_operator() -> None:
    script, page = _script(), (FOLDER / "coverage.md").read_text()
    for name, _ in script.models():
        assert page.count(f"| {name.replace('|', ' ')} |") == 2, name
