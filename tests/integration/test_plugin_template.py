"""The template makes a project whose plugin is found and conforms."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "integration" / "plugin_template"
ANSWERS = {"provider": "acme-lab", "module": "robust_plugins_acme", "description": "Two components of Acme"}


def rendered(folder: Path) -> Path:
    """The project, rendered as copier does, whose templates are jinja2's in names and contents."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    root = TEMPLATE / "template"
    for path in sorted(root.rglob("*.jinja")):
        target = folder / environment.from_string(str(path.relative_to(root)).removesuffix(".jinja")).render(ANSWERS)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(environment.from_string(path.read_text(encoding="utf-8")).render(ANSWERS), encoding="utf-8")
    return folder


def test_it_renders_to_code(tmp_path) -> None:
    project = rendered(tmp_path)
    files = {str(path.relative_to(project)) for path in project.rglob("*") if path.is_file()}
    assert {"pyproject.toml", "robust_plugins_acme/__init__.py", "tests/test_conformance.py"} <= files
    for name in files:
        text = (project / name).read_text(encoding="utf-8")
        assert "{{" not in text
        if name.endswith(".py"):
            ast.parse(text)


@pytest.mark.slow
def test_its_plugin_is_found_and_conforms(tmp_path) -> None:
    project, site = rendered(tmp_path / "project"), tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(project)], check=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
    done = subprocess.run(
        [sys.executable, "-m", "robust_plugins", "plugins", "check", "--conformance", "acme-lab", "--json"],
        capture_output=True, text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout)
    assert {outcome["component"] for outcome in outcomes} == {"acme-lab:random", "acme-lab:boxes"}
    assert not [outcome for outcome in outcomes if outcome["error"] or outcome["skipped"]]


@pytest.mark.slow
def test_copier_makes_the_same_project(tmp_path) -> None:
    copier = pytest.importorskip("copier", reason="copier is not installed")
    copier.run_copy(str(TEMPLATE), str(tmp_path / "copied"), data=ANSWERS, quiet=True, defaults=True)
    ours = rendered(tmp_path / "rendered")
    for path in (p for p in ours.rglob("*") if p.is_file()):
        assert (tmp_path / "copied" / path.relative_to(ours)).read_text() == path.read_text()
