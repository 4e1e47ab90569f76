"""The wheel and the source distribution: what is in them, and the wheel alone in an environment of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

import robust_plugins as rp

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, made from the source distribution, and with that."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("dist")
    code = (
        "import os, sys, tarfile\nfrom hatchling import build\nout = sys.argv[1]\n"
        "name = build.build_sdist(out)\ntarfile.open(os.path.join(out, name)).extractall(out, filter='data')\n"
        "os.chdir(os.path.join(out, name.removesuffix('.tar.gz')))\nbuild.build_wheel(out)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, cwd=ROOT, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_source_distribution_has_all_that_readme_links(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    links = [link for link in re.findall(r"\]\(([^)#]+)", README) if not link.startswith("http")]
    assert len(links) > 3
    for link in [*links, "SECURITY.md", "CITATION.cff", "Makefile", "tests/conftest.py"]:
        assert link in names or any(name.startswith(f"{link.rstrip('/')}/") for name in names), link


@pytest.mark.slow
def test_the_wheel_says_what_it_needs(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
        (place,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = message_from_string(opened.read(place).decode())
    assert {name.split("/")[0] for name in names} == {"robust_plugins", f"robust_plugins-{rp.__version__}.dist-info"}
    assert "robust_plugins/py.typed" in names
    assert any(name.endswith(".html") for name in names)  # templates of the pages
    assert said["Version"] == rp.__version__
    needed = [line for line in said.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.split(r"[^\w-]", line)[0] for line in needed) == sorted(
        re.split(r"[^\w-]", line)[0] for line in PROJECT["dependencies"]
    )
    assert {"art", "lirpa", "onnx", "plots", "report", "dask", "compare", "docs"} <= set(said.get_all("Provides-Extra"))


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["rp:pgd", "art:pgd"])
def test_the_first_block_runs_from_the_wheel(built: Path, tmp_path: Path, attack: str) -> None:
    """In a process that sees the wheel and torch, not this checkout; with ART, or with none of the optional parts."""
    if attack.startswith("art"):
        pytest.importorskip("art", reason="ART is not installed")
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    block = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", README, re.DOTALL)
    assert block is not None
    hidden = (
        ""
        if attack.startswith("art")
        else (
            "import sys\nfor name in ('art', 'auto_LiRPA', 'torchattacks', 'foolbox', 'matplotlib', 'pandas'):\n"
            "    sys.modules[name] = None\n"
        )
    )
    code, text = (part.replace('rp:pgd"', f'{attack}"').replace("rp:pgd ", f"{attack} ") for part in block.groups())
    shown = "\nimport sys\nassert rp.__file__.startswith(sys.argv[1]), rp.__file__\n"
    done = subprocess.run(
        [sys.executable, "-c", hidden + code + shown, str(target)], capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == text.split()


def test_versions_and_interpreters_agree() -> None:
    """The hosted workflow runs what the classifiers name, from the oldest that is required."""
    assert "version" in PROJECT["dynamic"]
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    listed = ", ".join(f'"{version}"' for version in named)
    assert f"python: [{listed}]" in workflow
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_every_extra_names_its_users() -> None:
    """Messages and pages name no extra that there is not."""
    extras = set(PROJECT["optional-dependencies"])
    texts = [*(ROOT / "robust_plugins").rglob("*.py"), *(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    for path in texts:
        for found in re.findall(r"(?:robust_plugins|'\.|\"\.)\[([\w, ]+)\]", path.read_text(encoding="utf-8")):
            assert {name.strip() for name in found.split(",")} <= extras, f"{path}: [{found}]"
