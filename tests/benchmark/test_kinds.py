"""Models from files, attacks with targets, and poisoned trainings in studies, run, audited and derived again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support.studies import data, network, study

import robust_plugins as rp

pytest.importorskip("pydantic")

from robust_plugins.benchmark.auditing import Rule, audit
from robust_plugins.benchmark.store import Store
from robust_plugins.benchmark.verifying import verify
from robust_plugins.cli import commands


def points(folder: Path) -> list[dict[str, Any]]:
    """The points as a file, so that a store can be verified without what made it."""
    import numpy as np

    made = data()
    content = {name: getattr(made, name).numpy() for name in ("x_train", "y_train", "x_test", "y_test")}
    np.savez(folder / "points.npz", **content)
    return [{"name": "points", "source": str(folder / "points.npz"), "samples": 12}]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_models_of_all_kinds_of_files(tmp_path: Path) -> None:
    """In a process of its own, which gets them by their content: what is recorded is what the file's model is."""
    pytest.importorskip("onnxruntime")
    from support import onnx_files

    from robust_plugins import networks

    module = network().eval()
    x = data().x_test
    onnx_files.mlp(tmp_path / "net.onnx", (4, 8, 3), batch="batch")
    torch.jit.trace(module, x).save(tmp_path / "net.pt")
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    zoo = rp.model("mlp(widths=(8,))", input_shape=(4,), classes=3)
    torch.save(zoo.state_dict(), tmp_path / "weights.pt")
    files = {"onnx": "net.onnx", "script": "net.pt", "program": "net.pt2"}
    models = [{"name": name, "source": str(tmp_path / file)} for name, file in files.items()]
    models += [{"name": "checkpoint", "source": "mlp(widths=(8,))", "weights": str(tmp_path / "weights.pt")}]
    assert networks.is_file(models[0]["source"])
    found = study(
        tmp_path, models=models, data=points(tmp_path), balls=[{"eps": [0.1], "clip": [0.0, 1.0]}],
        components=[{"use": "interval:ibp"}], run={"batch_size": 12},
    )  # fmt: skip
    outcome = found.run()
    assert (outcome.written, outcome.errors) == (96, 0)
    ball = rp.Linf(eps=0.1, clip=(0.0, 1.0))
    with found.store() as store:
        for name, file in files.items():
            model = rp.load_model(str(tmp_path / file), input_shape=(4,), classes=3)
            expected = rp.certifier("interval:ibp")(model, x, data().y_test, ball)
            rows = list(store.records(where={"model": name, "component": "interval:ibp"}))
            assert {r.verdict for r in rows} != {"unsupported"}, name
            assert [r.margin for r in rows] == pytest.approx(expected.margin.tolist(), abs=1e-5)
        assert len(set(store.columns("model_hash")["model_hash"])) == 4
        assert [str(one) for one in verify(store, 12) if not one.agrees] == []


def test_attacks_with_a_target(tmp_path: Path) -> None:
    components = [
        {"use": "rp:margin-pgd(steps=5)", "name": "any"},
        {"use": "rp:margin-pgd(steps=5)", "name": "far", "target": "least_likely"},
        {"use": "interval:ibp"},
    ]
    found = study(tmp_path, balls=[{"eps": [0.05, 0.3]}], components=components)
    found.run()
    with found.store() as store:
        aimed = list(store.records(where={"component": "far"}))
        clean = {r.sample: r.verdict for r in store.records(where={"kind": "clean"})}
    assert len(aimed) == 24
    assert any(r.success for r in aimed)
    assert all(r.verdict == "falsified" for r in aimed if r.success)
    # A sample that is decided wrongly, but not as the target, is no success and no correct decision either.
    missed = [r for r in aimed if clean[r.sample] == "falsified" and not r.success]
    assert missed
    assert all((r.verdict == "falsified") == (r.prediction != r.label) for r in aimed)
    assert not audit(found.store_path).violations
    with pytest.raises(rp.ArgumentError, match="target"):
        study(tmp_path, components=[{"use": "interval:ibp", "target": "random"}]).run()
    with pytest.raises(rp.RobustPluginsError, match="accepted: 'random', 'least_likely'"):
        study(tmp_path, components=[{"use": "rp:margin-pgd", "target": "farthest"}])


def test_poisoned_trainings_are_audited_and_derived_again(tmp_path: Path) -> None:
    training = {
        "name": "labels", "model": "net", "data": "points", "budget": "labels=1", "batch_size": 4, "lr": 0.02,
        "attacks": ["poison:random(count=3)"],
    }  # fmt: skip
    models = [{"name": "net", "source": "mlp(widths=(8,))"}]
    found = study(
        tmp_path, models=models, data=points(tmp_path), components=[], balls=[], poisoning=[training], seed=[0, 1]
    )
    assert found.run().written == 48
    assert not audit(found.store_path).violations
    with Store(found.store_path) as store:
        verified = verify(store, 48)
    assert len(verified) == 48
    assert [str(one) for one in verified if not one.agrees] == []
    with sqlite3.connect(found.store_path) as connection:
        connection.execute("UPDATE records SET verdict = 'certified' WHERE kind = 'poisoning certifier'")
        connection.execute("UPDATE records SET verdict = 'falsified' WHERE kind = 'poisoning attack' AND sample = 3")
    assert {f.rule for f in audit(found.store_path).violations} == {Rule.POISONING}
    result = CliRunner().invoke(commands, ["bench", "verify", str(found.store_path), "--sample", "20"])
    assert result.exit_code == 3
    assert "verdict was certified" in result.output
