"""The command that repeats tests on a checkout of auto_LiRPA says so where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "integration" / "newest_lirpa" / "run.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


def test_without_a_checkout_it_says_so(tmp_path: Path) -> None:
    for arguments in ((), ("--checkout", str(tmp_path))):
        done = run(*arguments)
        assert done.returncode == 0
        assert done.stdout.startswith("skipped: no checkout")


def test_a_checkout_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    (tmp_path / "auto_LiRPA").mkdir()
    (tmp_path / "auto_LiRPA" / "__init__.py").write_text('__version__ = "0.7.9"\nimport not_there_at_all\n')
    done = run("--checkout", str(tmp_path))
    assert done.returncode == 0
    assert "cannot be imported" in done.stdout
    assert "not_there_at_all" in done.stdout
