"""`make demo` replaces the page of an earlier run, of any version, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import robust_plugins as rp
from robust_plugins.brackets.pages import check_page
from robust_plugins.demo import main

FIRST = "<!doctype html>\n<title>A small CNN</title>\n<footer>Seed 0; robust_plugins 0.1.0, torch 2.13.0.</footer>\n"


def test_pages_of_the_first_versions_are_known(tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    for text in (FIRST, '<meta name="generator" content="robust_plugins">', ""):
        page.write_text(text)
        check_page(page)
    for text in ("<footer>Seed of sunflowers</footer>", "about robust_plugins 0.1.0", "Seed 0; robust_plugins 0.1.0"):
        page.write_text(text)
        with pytest.raises(rp.ArgumentError, match=r"holds something else.*Move that file away"):
            check_page(page)


def test_a_file_of_somebody_else_stops_it_at_once_with_one_line(tmp_path: Path) -> None:
    page = tmp_path / "demo.html"
    page.write_text("<html>mine</html>")
    found = CliRunner().invoke(main, ["--out", str(tmp_path)])
    assert (found.exit_code, found.stdout, page.read_text()) == (2, "", "<html>mine</html>")
    assert found.stderr.startswith("Error: `page` is")
    assert found.stderr.count("\n") == 1
    assert "Move that file away" in found.stderr
