"""The notebooks run from beginning to end as scripts; what they claim, they assert."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.pages import ROOT
from support.scripts import script

RENDER = script("notebooks/render.py")
NAMES = [path.stem for path in RENDER.NOTEBOOKS]


def test_there_are_six_and_the_page_lists_them() -> None:
    listed = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert len(NAMES) == 6
    assert all(f"`{name}`" in listed for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_its_title_and_asserts_something(name: str) -> None:
    text = (RENDER.FOLDER / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('# %% [markdown]\n"""\n# ')
    assert "\nassert " in text
    compile(text, name, "exec")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, tmp_path) -> None:
    surroundings = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, RENDER.FOLDER / f"{name}.py"], cwd=tmp_path, env=surroundings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip()


@pytest.mark.slow
def test_is_rendered_with_what_it_prints_and_draws(tmp_path) -> None:
    for module in ("jupytext", "nbclient", "nbconvert", "ipykernel"):
        pytest.importorskip(module)
    page = RENDER.rendered(RENDER.FOLDER / "poisoned_data.py", tmp_path).read_text(encoding="utf-8")
    assert "accuracy at least" in page
    assert page.count('<img alt="') >= 2
