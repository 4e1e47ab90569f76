"""The lecture's table and pictures of attacks, and the comparison of attacks of smallest norm, on a small network."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.scripts import script
from torch import nn


def small(module: ModuleType) -> object:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 10)).requires_grad_(False)
    x = torch.rand(4, 1, 4, 4)
    return module.Subject("a small network", model, x, model(x).argmax(1))


def test_the_table_resumes_and_says_what_was_found(tmp_path: Path, monkeypatch, capsys) -> None:
    table = script("lecture/attacks.py")
    monkeypatch.setattr(table, "subject", lambda *given, **settings: small(table))
    short = {
        "C&W L-infinity": "rp:cw-linf(targets=0, steps=10, rounds=10)",
        "FGS": "rp:fgsm",
        "IGS": "rp:minimal(attack=\"rp:pgd(start='none', steps=5, step_size=0.1)\")",
        "margin PGD, bisected": "rp:minimal(attack='rp:margin-pgd(steps=5)')",
    }
    monkeypatch.setattr(table, "ATTACKS", short)
    table.main(["--out", str(tmp_path)])
    first = capsys.readouterr()
    assert len(first.err.splitlines()) == 12
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    whole = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "part.json").unlink()
    (tmp_path / "records.jsonl").write_text("".join(whole.splitlines(keepends=True)[:5]) + '{"name": "FG')
    table.main(["--out", str(tmp_path)])
    again = capsys.readouterr()
    assert len(again.err.splitlines()) == 7, "five cells were kept, and the torn line is dropped"
    rows = list(csv.reader((tmp_path / "attacks.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == list(short)
    found = [d for d in records[0]["distances"] if d is not None]
    assert rows[1][1] == f"{sum(found) / len(found):.3f}"
    assert rows[1][2] == f"{100 * len(found) / 4:.0f} %"
    assert "| C&W L-infinity | " in (tmp_path / "attacks.md").read_text()


def test_no_success_is_no_distance() -> None:
    table = script("lecture/attacks.py")
    record = table.Record(name="FGS", attack="rp:fgsm", goal="untargeted", weights="", seed=0,
                          distances=[None, None], seconds=0.1, version="")  # fmt: skip
    assert table.cells(record) == ("-", "0 %")


def test_the_curves_are_drawn(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    pages = script("lecture/assumption.py")
    monkeypatch.setattr(pages, "subject", lambda *given, **settings: small(pages))
    monkeypatch.setattr(pages, "RADII", (0.0, 0.1, 0.3))
    pages.main(["--out", str(tmp_path)])
    assert "They part most at eps" in (tmp_path / "part.json").read_text()
    for name in ("assumption.svg", "tangent.svg"):
        assert (tmp_path / name).stat().st_size > 1000
    rows = list(csv.reader((tmp_path / "assumption.csv").read_text().splitlines()))
    assert [row[0] for row in rows] == ["eps", "0", "0.1", "0.3"]
    margins, tangents = pages.along(small(pages))
    torch.testing.assert_close(margins[:, 0], tangents[:, 0])
    assert (tangents.diff(dim=1) > 0).all(), "FGSM promises that the wrong class gains"


def test_the_slice_is_drawn(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("matplotlib")
    pages = script("lecture/search.py")
    monkeypatch.setattr(pages, "subject", lambda *given, **settings: small(pages))
    pages.main(["--out", str(tmp_path)])
    assert (tmp_path / "search.svg").stat().st_size > 1000
    plane = pages.flat_slice(small(pages), 0, 0.1)
    middle = int(plane.side.abs().argmin())
    assert plane.margins[middle, middle] < 0.01, "the image itself is classified correctly"
    assert plane.inside[middle, middle]
    assert not plane.inside[-1, middle], "the ball ends within the picture"


def test_our_side_of_the_comparison(monkeypatch) -> None:
    norms = script("comparisons/minimal_norms.py")
    attacked = small(norms)
    monkeypatch.setattr(norms, "art_linf", lambda subject, target: torch.tensor([0.5, torch.inf, 0.5, torch.inf]))
    found = norms.compared(attacked, names=("rp:fmn(steps=10)",))
    assert [(row.name, row.goal) for row in found[:2]] == [
        ("ART CarliniLInfMethod", "untargeted"), ("rp:fmn(steps=10)", "untargeted")
    ]  # fmt: skip
    both = found[1].distance[[0, 2]].mean()
    text = norms.table(found)
    assert f"| {both:.4f} | 0.5000 |" in text, "over the images on which both succeed"
    assert "| 2 of 4 |" in text
