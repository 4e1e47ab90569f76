"""Every block of the README and of the pages in `docs/` runs, and prints what the page says it prints."""

from __future__ import annotations

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
from support.pages import PAGES, ROOT, Page, normal, run

import robust_plugins as rp
from robust_plugins.cli import commands
from robust_plugins.testing import attack_checks, certifier_checks, fresh_registry  # noqa: F401 (a fixture)

LONG = ("docs/gallery.md",)
"""Pages that take as long as their pictures; `make docs` runs them, too."""
WITH_CODE = [
    pytest.param(page, id=page.name, marks=[pytest.mark.slow] if page.name in LONG else [])
    for page in PAGES
    if page.of("python")
]
CHECKS = {"test_corners": len(attack_checks), "test_lipschitz": len(certifier_checks)}
"""The tests that pages write of their own plugins, and how many cases each has."""


@pytest.mark.parametrize("page", WITH_CODE)
def test_python_blocks_run_and_print_what_is_written(page, tmp_path, monkeypatch, fresh_registry, request) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    _verification_files(tmp_path)
    namespace, printed = run(page)
    for block, said in printed:
        if block.output is not None:
            assert normal(said) == normal(block.output), said
    request.getfixturevalue("unchecked")  # conformance checks give wrong arguments, and watch all random states
    for name, count in _run_tests(namespace).items():
        assert count == CHECKS[name]


def test_pages_show_output_and_tests() -> None:
    assert sum(block.output is not None for page in PAGES for block in page.of("python")) > 10
    written = "\n".join(block.text for page in PAGES for block in page.of("python"))
    assert all(f"def {name}(" in written for name in CHECKS)


def _run_tests(namespace: dict[str, Any]) -> dict[str, int]:
    """Runs the test functions that a page has written for all of their parameters, and counts these."""
    counts = {}
    for name, function in namespace.items():
        if name.startswith("test_"):
            (mark,) = function.pytestmark
            counts[name] = len([function(**{mark.args[0]: value}) for value in mark.args[1]])
    return counts


def _consoles() -> list[tuple[Page, list[str]]]:
    """The commands of each block of each page."""
    return [
        (page, [line.removeprefix("$ ") for line in _whole_lines(block.text) if line.startswith("$ ")])
        for page in PAGES
        for block in page.of("console")
    ]


def _whole_lines(text: str) -> list[str]:
    """Lines that end on a backslash go on in the next one."""
    return re.sub(r"\\\n *", "", text).splitlines()


def _verification_files(folder: Path) -> None:
    """The network, the property, the list and the proof that the commands name."""
    onnx_files.mlp(folder / "net.onnx", (2, 4, 1))
    names = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0"))
    box = "".join(f"(assert (<= X_{i} 1))(assert (>= X_{i} 0))" for i in range(2))
    (folder / "prop.vnnlib").write_text(f"{names}{box}(assert (>= Y_0 100))")
    (folder / "instances.csv").write_text("net.onnx,prop.vnnlib,60\n")
    model, x = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    verifier = rp.certifier("interval:branch-and-bound", proof=str(folder / "run.proof"))
    verifier(model, x, model(x).argmax(1), rp.Linf(eps=1e-3, clip=None))


def test_there_are_commands() -> None:
    kinds = {command.split()[0] for _, console in _consoles() for command in console}
    assert {"make", "pip", "robust-plugins"} <= kinds


OURS = {
    tuple(console): pytest.param(console, id=f"{page.name} {console[0].split()[1]}")
    for page, console in reversed(_consoles())
    if console[0].startswith("robust-plugins ")
}.values()
"""Those that two pages show are run once."""
OTHERS = [
    pytest.param(command, id=f"{page.name} {command}")
    for page, console in _consoles()
    for command in console
    if not console[0].startswith("robust-plugins ")
]


@pytest.mark.parametrize("console", OURS)
def test_commands_work(console, tmp_path, monkeypatch) -> None:
    """In this process, which has imported everything, and with one epoch where training is concerned."""
    monkeypatch.chdir(tmp_path)
    _verification_files(tmp_path)
    for command in console:
        done = CliRunner().invoke(commands, shlex.split(re.sub(r"--epochs \d+", "--epochs 1", command))[1:])
        assert done.exit_code == 0, done.output
        assert done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("console", OURS)
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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[0] == "python":
        assert words[1] == "-m", command
        assert (ROOT / (words[2].replace(".", "/") + ".py")).exists(), f"no module {words[2]}"
    else:
        assert words[0] == "pip", f"a page has a command that no test knows: {command}"
        assert words[1] in ("install", "wheel"), command
        for extras in re.findall(r"\[(.*?)\]", command):
            for extra in extras.split(","):
                assert extra in project["optional-dependencies"], f"no extra {extra!r}"
        assert not re.search(r"install '?robust_plugins\b", command), "it is on no package index"


MADE = ("reference/", "pictures/")
"""What the build of the pages makes."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page) -> None:
    """Those to files of the repository: a page that is moved or renamed takes its links along."""
    text = page.path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if "://" not in link and not link.startswith(MADE):
            assert (page.path.parent / link).exists(), f"{page.name} links {link}"


def test_the_extras_that_are_explained_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "installing.md").read_text(), flags=re.MULTILINE)
    explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert explained <= set(extras)
    assert set(extras) - explained <= {"test", "check", "lightning", "transformers"}, (
        "explain them in docs/installing.md"
    )
