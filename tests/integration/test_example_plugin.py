"""A third-party plugin, installed as one: found, listed, compared, and conforming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "integration" / "example_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process in which the plugin is installed, in a folder of its own, without any download."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(PLUGIN)], check=True)
    return {**os.environ, "PYTHONPATH": str(target)}


def _run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=PLUGIN)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_its_version(environment) -> None:
    listed = json.loads(_run(environment, "-m", "robust_plugins", "plugins", "list", "--json"))
    text = json.dumps(listed)
    assert "robust-plugins-example" in text or "robust_plugins_example" in text
    assert "example:lipschitz" in text


def test_it_shows_up_in_a_comparison(environment) -> None:
    code = """
import torch, robust_plugins as rp
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 3))
x = torch.rand(20, 4)
print(rp.compare(model, x, model(x).argmax(1), rp.L2(eps=0.02, clip=(0, 1)), ["example:corners", "example:lipschitz"]))
"""
    text = _run(environment, "-c", code)
    assert "example:corners     attacked" in text
    assert "No attack contradicts a certificate." in text


def test_it_conforms(environment) -> None:
    text = _run(environment, "-m", "pytest", "-p", "no:cacheprovider", "tests")
    assert "[100%]" in text
    assert "failed" not in text
