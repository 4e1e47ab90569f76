"""Two things that had one name at different times are two in a report."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from support.studies import data, network

import robust_plugins as rp

pytest.importorskip("pydantic")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

import torch

from robust_plugins.benchmark.auditing import Findings
from robust_plugins.benchmark.columns import read_columns
from robust_plugins.benchmark.reporting import write_study_report
from robust_plugins.benchmark.reporting.names import named_apart, trainings_apart


def ran(folder: Path, **changes: Any) -> Path:
    keys: dict[str, Any] = {
        "models": [{"name": "net", "source": network()}],
        "data": [{"name": "points", "source": data(), "samples": 12}],
        "balls": [{"eps": [0.05]}],
        "components": [{"use": "interval:ibp", "name": "proof"}],
        "store": str(folder / "s.sqlite"),
        "run": {"isolate": False},
    }
    rp.Study(**keys | changes).run()
    return folder / "s.sqlite"


def report(store: Path) -> tuple[Findings, str]:
    findings = write_study_report(store.with_suffix(".html"), store)
    return findings, store.with_suffix(".md").read_text()


def test_what_is_one_keeps_its_name(tmp_path: Path) -> None:
    columns = read_columns(ran(tmp_path))
    apart = named_apart(columns)
    for name in ("model", "data", "component"):
        assert list(apart[name]) == list(columns[name])


def test_a_model_that_was_trained_again_is_another_one(tmp_path: Path) -> None:
    """One that is wrong everywhere, and then one that is right everywhere: no bracket of both together."""
    right = network()
    x, y = data().x_test, data().y_test
    with torch.no_grad():  # its first output is the largest, but where it ought to be another one
        torch.nn.init.zeros_(right[2].weight)
        torch.nn.init.zeros_(right[2].bias)
        right[2].bias[int(y.mode().values)] = 9.0
    wrong = copy.deepcopy(right)
    with torch.no_grad():
        wrong[2].bias.neg_()
    ran(tmp_path, models=[{"name": "net", "source": wrong}])
    store = ran(tmp_path, models=[{"name": "net", "source": right}])
    columns = read_columns(store)
    assert set(columns["model"]) == {"net"}
    apart = named_apart(columns)
    names = {f"net #{name[:6]}" for name in columns["model_hash"]}
    assert len(names) == 2
    assert set(apart["model"]) == names
    findings, text = report(store)
    assert not findings.violations
    assert "2 models" in text
    assert "crosses" not in text
    assert all(name in text for name in names)
    (first, second) = ({"model": "net", "model_hash": name} for name in dict.fromkeys(columns["model_hash"]))
    assert {t["model"] for t in trainings_apart([first, second], apart)} == names
    assert len(x) == 12


def test_a_component_that_was_changed_is_another_one(tmp_path: Path) -> None:
    ran(tmp_path, components=[{"use": "rp:pgd(steps=1)", "name": "attack"}])
    store = ran(tmp_path, components=[{"use": "rp:pgd(steps=2)", "name": "attack"}])
    found = set(named_apart(read_columns(store))["component"])
    assert len(found) == 3
    assert "clean" in found
    assert all(name == "clean" or name.startswith("attack #") for name in found)


def test_a_data_set_that_was_changed_is_another_one(tmp_path: Path) -> None:
    ran(tmp_path)
    other = data()
    other.x_test[:5] = other.x_test[:5].flip(0)[:, [1, 0, 2, 3]]
    store = ran(tmp_path, data=[{"name": "points", "source": other, "samples": 12}])
    apart = named_apart(read_columns(store))
    assert set(apart["data"]) == {"points", "points, changed"}
    changed = apart["data"] == "points, changed"
    assert set(apart["sample"][changed]) == {0.0, 1.0, 2.0, 3.0, 4.0}
    findings, _ = report(store)
    assert not findings.violations


def test_fewer_samples_than_asked_for_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = rp.Study(
        models=[{"name": "net", "source": network()}], data=[{"name": "points", "source": data(), "samples": 99}],
        balls=[{"eps": [0.05]}], components=[{"use": "interval:ibp"}], store=str(tmp_path / "s.sqlite"),
        run={"isolate": False},
    )  # fmt: skip
    study.run(progress=True)
    assert "data.points: 12 samples are there of the 99 that are asked for" in capsys.readouterr().err
