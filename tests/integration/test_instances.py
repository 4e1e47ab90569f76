"""The script that sweeps benchmarks of verification: what it counts, and some published instances."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.onnx_files import published, sum_of_relus
from support.scripts import script

pytest.importorskip("onnxruntime")


def test_a_folder_is_swept_and_contradictions_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    instances = script("comparisons/instances.py")
    sum_of_relus(tmp_path, {"safe": "(>= Y_0 1.2)", "unsafe": "(>= Y_0 1.05)", "bad": "(xor (>= Y_0 1))"})
    monkeypatch.setattr(sys, "argv", ["instances.py", str(tmp_path), "--json"])
    instances.main()
    (found,) = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("instances", "solved", "contradictions")} == {
        "instances": 3, "solved": 2, "contradictions": 0,
    }  # fmt: skip
    assert 0 < found["CPU s of the solved"] <= found["CPU s"] < 30
    rows = [("safe", "sat"), ("unsafe", "sat")]
    lines = [f"net.onnx,{name}.vnnlib,30,{answer},1.5" for name, answer in rows]
    (tmp_path / "answers.csv").write_text("\n".join(["onnx,vnnlib,timeout_s,answer,fastest_s", *lines]))
    found = instances.sweep(tmp_path, slice(None), 5.0)
    assert found["contradictions"] == ["net.onnx safe.vnnlib: unsat, published sat"]
    assert found["fastest published tool on these"] == 3.0


@pytest.mark.parametrize(("name", "only"), [("acasxu", slice(0, 180, 60)), ("collins_rul_cnn", slice(0, 40, 20))])
def test_published_instances_are_solved(name: str, only: slice) -> None:
    folder = published() / name
    found = script("comparisons/instances.py").sweep(folder, only, 20.0)
    assert found["solved"] == found["instances"] >= 2
    assert found["contradictions"] == 0
