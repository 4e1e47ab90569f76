"""A third-party plugin in an environment of its own: found, listed, compared, studied, and conforming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "integration" / "example_plugin"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment that sees this one's packages, with the plugin installed into it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    scripts = "Scripts" if os.name == "nt" else "bin"
    found = folder / scripts / Path(sys.executable).name
    ours = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(ours, "seen.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    install = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--no-build-isolation", str(PLUGIN)], check=True)
    return found


def _run(python: Path, *arguments: str, cwd: Path = PLUGIN, code: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_its_version(python) -> None:
    listed = json.loads(_run(python, "-m", "robust_plugins", "plugins", "list", "--json"))
    (found,) = (info for info in listed if info["name"] == "example")
    assert (found["status"], found["version"], found["error"]) == ("loaded", "0.2.0", "")
    assert set(found["components"]) == {
        "example:corners", "example:lipschitz", "example:chords", "rings", "halves"
    }  # fmt: skip
    assert "register_interval_rules" in found["hooks"]


def test_it_shows_up_in_a_comparison(python) -> None:
    code = """
import torch, robust_plugins as rp
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3))
x = torch.rand(20, 4)
print(rp.compare(model, x, model(x).argmax(1), rp.L2(eps=0.02, clip=(0, 1)), ["example:corners", "example:lipschitz"]))
"""
    text = _run(python, "-c", code)
    assert "example:corners     attacked" in text
    assert "No attack contradicts a certificate." in text


def test_its_command_runs(python) -> None:
    picture = _run(python, "-m", "robust_plugins", "rings")
    assert "." in picture
    assert "o" in picture


@pytest.mark.slow
def test_it_takes_part_in_a_study(python, tmp_path) -> None:
    (tmp_path / "study.toml").write_text("""
store = "rings.sqlite"
seed = 0

[[models]]
name = "mine"
source = "mlp(widths=(16, 16))"
train = { recipe = "halves", eps = 0.05, epochs = 10 }

[[data]]
name = "rings"
samples = 20

[[balls]]
norm = "linf"
eps = [0.01, 0.05]

[[components]]
use = "example:corners"

[[components]]
use = "example:lipschitz"

[[components]]
use = "example:chords(timeout=10.0)"
""")
    _run(python, "-m", "robust_plugins", "bench", "run", "study.toml", cwd=tmp_path)
    audited = _run(python, "-m", "robust_plugins", "bench", "audit", "rings.sqlite", cwd=tmp_path)
    assert "records: no violation" in audited
    shown = json.loads(_run(python, "-m", "robust_plugins", "plugins", "check", "example", "--json", cwd=tmp_path))
    assert {c["status"] for c in shown["components"]} == {"loaded"}


@pytest.mark.slow
def test_it_conforms(python) -> None:
    text = _run(python, "-m", "pytest", "-p", "no:cacheprovider", "tests")
    assert "[100%]" in text
    assert "failed" not in text
