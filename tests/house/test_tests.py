"""The test suite's own house: it mirrors the package, and what several tests use is in `tests/support` alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PACKAGE = TESTS.parent / "robust_plugins"
FILES = sorted(TESTS.rglob("test_*.py"))
OF_THEIR_OWN = {"support", "house", "fuzz", "integration", "docs"}
"""Folders that belong to no part of the package."""
LONGEST = 400


def test_folders_are_those_of_the_package() -> None:
    folders = {path.parent.relative_to(TESTS) for path in FILES}
    strangers = [
        f for f in folders if f.parts and f.parts[0] not in OF_THEIR_OWN and not (PACKAGE / f / "__init__.py").exists()
    ]
    assert not strangers, f"no such part of the package: {sorted(map(str, strangers))}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(TESTS)))
def test_no_test_imports_a_test(path: Path) -> None:
    imported = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    tests = sorted(n for n in imported if n.split(".")[-1].startswith("test_") or n.split(".")[0] == "tests")
    assert not tests, f"move what is shared to tests/support: {tests}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(TESTS)))
def test_files_are_split_by_behaviour(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST, f"{lines} lines: split the file by behaviour"
