"""The scripts beside ART run, and their brackets do not cross."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("art", reason="ART is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")
pytestmark = [pytest.mark.usefixtures("unchecked"), pytest.mark.filterwarnings("ignore::UserWarning")]

FOLDER = Path(__file__).resolve().parents[2] / "integration" / "art_alongside"


@pytest.fixture(autouse=True)
def root(monkeypatch) -> None:
    monkeypatch.syspath_prepend(FOLDER.parents[1])


def test_the_script_gets_its_bracket_from_five_lines(capsys) -> None:
    from integration.art_alongside.existing_script import run

    comparison = run(epochs=1, samples=20)
    assert not comparison.crossings
    text = capsys.readouterr().out
    stated = float(text.split("under its PGD ")[1].split()[0])
    assert f"{comparison.rows[0].accuracy:.3f}" == f"{stated:.3f}"  # what ART says of its own attack
    lines = (FOLDER / "existing_script.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line.endswith("# rp")]) == 5


@pytest.mark.slow
def test_the_way_back_holds_between_metrics_and_certificates(capsys) -> None:
    from integration.art_alongside.way_back import run

    for row in run(epochs=10, samples=30, clever=2):
        assert row.proved <= row.pgd
        assert row.proved <= row.ours
        assert row.radius <= row.distance
    assert "our loss" in capsys.readouterr().out
