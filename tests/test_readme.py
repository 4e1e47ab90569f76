"""Every block of the README runs, and prints what the README says it prints."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from support import onnx_files

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.testing import attack_checks, certifier_checks, fresh_registry  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


def _normal(text: str) -> list[str]:
    """Lines without what differs from run to run (seconds), rules and trailing blanks."""
    lines = [line.rstrip() for line in text.strip().splitlines()]
    return [re.sub(r"\d+(\.\d+)? s\b", "# s", re.sub(r"[─ ]+", " ", line)) for line in lines]


def test_python_blocks_run_and_print_what_is_written(tmp_path, monkeypatch, fresh_registry, request) -> None:  # noqa: F811
    """In one namespace, in order, as a reader would type them; a `text` block right after one is its output.

    The README's own tests of its plugin are then run too.
    """
    monkeypatch.chdir(tmp_path)
    _verification_files(tmp_path)
    namespace: dict[str, object] = {"__name__": "readme"}
    sys.modules["readme"] = type(sys)("readme")  # dataclasses look their module up
    compared = 0
    for (language, code), (following, expected) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language != "python":
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "README.md", "exec"), namespace)
        if following == "text":
            assert _normal(out.getvalue()) == _normal(expected), out.getvalue()
            compared += 1
    assert compared >= 2, "the README shows no output"
    request.getfixturevalue("unchecked")  # conformance checks give wrong arguments, and watch all random states
    assert _run_tests(namespace) == {"test_corners": len(attack_checks), "test_lipschitz": len(certifier_checks)}


def _run_tests(namespace: dict[str, Any]) -> dict[str, int]:
    """Runs the test functions of the README for all of their parameters, and counts these."""
    counts = {}
    for name, function in namespace.items():
        if name.startswith("test_"):
            (mark,) = function.pytestmark
            counts[name] = len([function(**{mark.args[0]: value}) for value in mark.args[1]])
    return counts


def _consoles() -> list[list[str]]:
    """The commands of each block."""
    texts = [text for language, text in BLOCKS if language == "console"]
    return [[line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")] for text in texts]


def _verification_files(folder: Path) -> None:
    """The network, the property, the list and the proof that the README's commands name."""
    onnx_files.mlp(folder / "net.onnx", (2, 4, 1))
    names = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0"))
    box = "".join(f"(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in range(2))
    (folder / "prop.vnnlib").write_text(f"{names}{box}(assert (>= Y_0 100))")
    (folder / "instances.csv").write_text("net.onnx,prop.vnnlib,60\n")
    model, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    verifier = rp.certifier("interval:branch-and-bound", proof=str(folder / "run.proof"))
    verifier(model, x, model(x).argmax(1), rp.Linf(eps=1e-3, clip=None))


def test_there_are_commands() -> None:
    kinds = {command.split()[0] for console in _consoles() for command in console}
    assert {"make", "pip", "robust-plugins"} <= kinds


OURS = [console for console in _consoles() if console[0].startswith("robust-plugins ")]
OTHERS = [command for console in _consoles() for command in console if console not in OURS]


@pytest.mark.parametrize("console", OURS, ids=lambda console: console[0].split()[1])
def test_commands_work(console, tmp_path, monkeypatch) -> None:
    """In this process, which has imported everything, and with one epoch where training is concerned."""
    monkeypatch.chdir(tmp_path)
    _verification_files(tmp_path)
    for command in console:
        done = CliRunner().invoke(commands, shlex.split(re.sub(r"--epochs \d+", "--epochs 1", command))[1:])
        assert done.exit_code == 0, done.output
        assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("console", OURS, ids=lambda console: console[0].split()[1])
def test_commands_work_as_written(console, tmp_path) -> None:
    _verification_files(tmp_path)
    for command in console:
        words = [sys.executable, "-m", "robust_plugins", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.strip()


@pytest.mark.parametrize("command", OTHERS)
def test_installations_and_targets_exist(command) -> None:
    """They are not run, but checked for what they name."""
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert words[:2] == ["pip", "install"], f"the README has a command that no test knows: {command}"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extras in re.findall(r"\[(.*?)\]", command):
            for extra in extras.split(","):
                assert extra in project["optional-dependencies"], f"no extra {extra!r}"
