"""The lecture's certification table: nine networks, a run that is killed and goes on, rows of missing files."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from support.scripts import INTEGRATION, script
from support.toys import Plugin
from torch import Tensor, nn

import robust_plugins as rp
from robust_plugins.testing import fresh_registry  # noqa: F401 (a fixture)

CONV = "mnist-conv-small"


@pytest.fixture
def table(fresh_registry: object, monkeypatch: pytest.MonkeyPatch) -> ModuleType:  # noqa: F811
    rp.register(Plugin(), "toys")
    module = script("lecture/certification.py")
    monkeypatch.setattr(module, "ATTACK", "toy:sign-step")
    return module


def images(folder: Path, labels: list[int]) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "X_eran.npy", rng.random((len(labels), 1, 28, 28), dtype=np.float32))
    np.save(folder / "y_eran.npy", np.array(labels))
    rows = [[label, *rng.integers(0, 256, 3072)] for label in labels]
    (folder / "cifar10_test.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))


def steady(folder: Path, table: ModuleType) -> None:
    """A network that says 3 wherever it is asked, but for a trace of its input; images of which the third is no 3."""
    torch.manual_seed(0)
    net = table.load.__globals__["architecture"](CONV)
    with torch.no_grad():
        for layer in (net[0], net[2], net[5]):  # every unit is positive: there is nothing to search
            layer.weight.mul_(0.05)
            layer.bias.fill_(0.5)
        net[-1].weight.mul_(0.05)
        net[-1].bias[3] += 1
    torch.save({"acc": 0.5, "state_dict": [net.state_dict()]}, folder / "mnist_conv_small_nat.pth")
    images(folder, [3, 3, 1])


def test_a_run_that_is_killed_goes_on(table: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steady(tmp_path, table)
    out, certified = tmp_path / "out", table.certified
    arguments = ["--models", str(tmp_path), "--images", "3", "--timeout", "5", "--clock", "cpu", "--out", str(out),
                 "--network", CONV, "mlp-8x200"]  # fmt: skip
    asked: list[int] = []

    def dies(name: str, subject: object, image: int, *rest: object) -> object:
        asked.append(image)
        if len(asked) in (2, 5):
            raise KeyboardInterrupt
        return certified(name, subject, image, *rest)

    monkeypatch.setattr(table, "certified", dies)
    with pytest.raises(KeyboardInterrupt):
        table.main(arguments)
    with (out / "records.jsonl").open("a") as file:
        file.write('{"network": "mnist-conv')  # killed while writing
    table.main(arguments)
    assert asked == [0, 1, 1, 2]
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["image"] for record in records] == [0, 1, 2]
    assert [record["verdict"] for record in records] == ["certified", "certified", "falsified"]
    (out / "part.json").unlink()
    table.main(arguments)
    assert len(asked) == 4, "all is known"
    found, missing = list(csv.DictReader((out / "certification.csv").read_text().splitlines()))
    assert (found["clean %"], found["verified %"], found["upper bound %"]) == ("66.7", "66.7", "66.7")
    assert (found["images"], found["open"], found["contradictions"]) == ("3", "0", "0")
    assert found["beta-CROWN % (s), published"] == "72.7 (7)"
    assert missing["images"].startswith("not run: mnist_9_200_nat.pth is not in")
    assert missing["upper bound %, published"] == "91.1"
    assert (out / "certification.md").read_text().count("\n") == 6
    assert "MNIST ConvSmall" in (out / "cactus.svg").read_text()
    assert len((out / "images.csv").read_text().splitlines()) == 4
    with pytest.raises(KeyboardInterrupt):  # another timeout is another question
        table.main([*arguments, "--timeout", "6"])


def test_the_earlier_table_says_how_long_it_was_given(table: ModuleType) -> None:
    found = table.earlier()
    (seconds,) = re.findall(r"--timeout (\d+) --clock cpu", table.EARLIER.read_text())
    assert f"{seconds} seconds of CPU time for each image" in found.caption
    assert not re.search(r"first \d+ images", found.caption), "the column of images says how many"


def test_without_files_the_earlier_table_is_shown(table: ModuleType, tmp_path: Path, capsys) -> None:
    table.main(["--models", str(tmp_path / "none"), "--out", str(tmp_path)])
    assert re.search(r"\| MNIST ConvSmall \| 0\.12 \| [1-9]\d* \|", capsys.readouterr().out)


def test_what_contradicts_is_counted(table: ModuleType) -> None:
    same = {"network": CONV, "weights": "", "eps": 0.1, "timeout": 1.0, "clock": "cpu", "correct": True,
            "margin": None, "seconds": 1.0, "version": ""}  # fmt: skip
    cases = [("certified", True, False), ("falsified", False, True), ("certified", False, True),
             ("timeout", False, False), ("timeout", True, False)]  # fmt: skip
    records = [
        table.Record(image=i, verdict=verdict, attacked=attacked, crown=crown, **same)
        for i, (verdict, attacked, crown) in enumerate(cases)
    ]
    cells = dict(zip(table.COLUMNS, table.row(CONV, records, ""), strict=True))
    assert (cells["contradictions"], cells["open"]) == ("2", "1")
    assert (cells["verified %"], cells["upper bound %"]) == ("40.0", "40.0")


def residual(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The published residual network, written down once more by the names of its file."""

    def conv(name: str, z: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return nn.functional.conv2d(z, weight, bias, stride=stride, padding=padding)

    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), 0.225
    z = conv("0", (x - mean) / std).relu()
    for at, stride in ((2, 1), (6, 1), (10, 2), (14, 2)):
        inner = conv(f"{at}.Ws.0", z, stride).relu()
        z = (conv(f"{at + 2}.Ws.0", z, stride, 0) + conv(f"{at + 2}.Ws.2", inner)).relu()
    z = nn.functional.linear(z.flatten(1), state["19.weight"], state["19.bias"]).relu()
    return nn.functional.linear(z, state["21.weight"], state["21.bias"])


def test_all_nine_networks_are_read(tmp_path: Path) -> None:
    networks = script("lecture/certification_networks.py")
    images(tmp_path, [1, 2])
    assert len(networks.NETWORKS) == 9
    for name, published in networks.NETWORKS.items():
        with pytest.raises(networks.MissingFileError, match=published.file):
            networks.load(name, tmp_path, 2)
        state = networks.architecture(name).state_dict()
        if name == "cifar-resnet":
            theirs = {ours: file for file, ours in networks.resnet_names().items()}
            state = {f"{theirs[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": t for key, t in state.items()}
        torch.save({"state_dict": [state]}, tmp_path / published.file)
        subject = networks.load(name, tmp_path, 2)
        assert subject.x.shape == (2, *((3, 32, 32) if published.colour else (1, 28, 28)))
        assert subject.y.tolist() == [1, 2]
        logits = subject.model(subject.x)
        assert logits.shape == (2, 10)
        if name == "cifar-resnet":
            torch.testing.assert_close(logits, residual(state, subject.x))
        (tmp_path / published.file).unlink()
    hidden = [m for m in networks.architecture("mlp-8x200") if isinstance(m, nn.Linear)]
    assert [m.out_features for m in hidden] == [200] * 8 + [10]


@pytest.mark.slow
def test_the_command_survives_a_kill(table: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("art")
    steady(tmp_path, table)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "integration.lecture.certification", "--models", str(tmp_path), "--images", "2",
               "--timeout", "20", "--out", str(out), "--network", CONV]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(INTEGRATION.parent)}
    first = subprocess.Popen(command, cwd=INTEGRATION.parent, env=environment)
    store, deadline = out / "records.jsonl", time.monotonic() + 300
    while not (store.exists() and store.read_text().count("\n")) and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = store.read_text()
    assert before.count("\n") >= 1
    again = subprocess.run(command, cwd=INTEGRATION.parent, env=environment, capture_output=True, text=True, check=True)
    assert store.read_text().startswith(before[: before.rindex("\n") + 1])
    assert [json.loads(line)["image"] for line in store.read_text().splitlines()] == [0, 1]
    assert "| 2 | 100.0 |" in again.stdout
