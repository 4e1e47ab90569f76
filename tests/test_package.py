"""What importing the package costs and brings along."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import robust_plugins as rp


def test_import_brings_no_backend() -> None:
    code = (
        "import sys, robust_plugins; "
        "print([m for m in ('art', 'auto_LiRPA', 'sklearn', 'mlxtend', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_first_certificate_imports_no_compiler() -> None:
    """Neither torch's, which a guard of its dispatch modes imports, nor sympy: one and a half and half a second."""
    code = (
        "import sys, torch, robust_plugins as rp\n"
        "from torch import nn\n"
        "model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()\n"
        "ball = rp.Linf(eps=0.1, clip=None)\n"
        "rp.certifier('interval:crown')(model, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), ball)\n"
        "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_subpackage_hides_behind_a_function() -> None:
    """`import robust_plugins.x as y` gives the subpackage, whatever is public."""
    functions = {name for name in rp.__all__ if inspect.isroutine(getattr(rp, name))}
    assert len(functions) > 20
    for info in pkgutil.walk_packages(rp.__path__, "robust_plugins."):
        parent, _, name = info.name.rpartition(".")
        if parent == "robust_plugins":
            assert name not in functions, info.name
        if (info.ispkg or parent == "robust_plugins") and name != "__main__":
            module = importlib.import_module(info.name)
            assert getattr(importlib.import_module(parent), name) is module


def test_every_public_name_is_in_the_glossary() -> None:
    """And the glossary has no public name that there is none of."""
    assert not set(rp.__all__) - _glossary(), "add them to the table under Words in CONTRIBUTING.md"
    known = {name for name in _glossary() if name.isidentifier()}
    assert known - set(rp.__all__) <= FIELDS, "they are no public names any more"


FIELDS = {"attribute", "certify", "clip", "clip_gradient", "delta", "eps", "gamma"}
"""What the glossary names besides public names: fields and methods of theirs."""


def _glossary() -> set[str]:
    """All that stands in backticks in the table of words."""
    text = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    words = text.split("\n## Words\n")[1].split("\n## ")[0]
    rows = [line for line in words.splitlines() if line.startswith("|")]
    return set(re.findall(r"`(.+?)`", "\n".join(rows)))


def test_the_parts_of_the_package_are_those_in_the_table() -> None:
    text = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = text.split("| part | holds |\n")[1].split("\n\n")[0].splitlines()[1:]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    parts = {info.name for info in pkgutil.iter_modules(rp.__path__) if info.name != "__main__"}
    assert named == parts
