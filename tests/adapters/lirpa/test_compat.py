"""Importing auto_LiRPA leaves the process as it was, whichever version it is."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import robust_plugins as rp
from robust_plugins.adapters.lirpa import AlphaCROWN, Jacobian, compat
from robust_plugins.registry.backends import available, imported_version


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout.strip()


def test_a_certificate_leaves_the_process_untouched(tmp_path: Path) -> None:
    out = run(
        """
        import logging, os, sys, warnings
        import numpy as np, numpy.fft, numpy.random, sympy, torch  # torch imports these when it traces
        import torch.onnx.symbolic_helper as helper

        def profiling():
            found = []
            for setter in (torch._C._jit_set_profiling_executor, torch._C._jit_set_profiling_mode):
                found.append(setter(True))
                setter(found[-1])
            return found

        def process():
            root = logging.getLogger()
            return (
                list(warnings.filters), list(root.handlers), root.level, profiling(),
                logging.getLogger("auto_LiRPA.utils").level, logging.getLogger("auto_LiRPA").level,
                dict(np.__dict__).keys(),
                "numpy.lib.arraysetops" in sys.modules, dict(torch._C.Node.__dict__).keys(),
                dict(helper.__dict__).keys(), hasattr(torch, "_six"), torch.get_default_dtype(),
                torch.get_rng_state().tolist(), torch.is_grad_enabled(), os.getcwd(),
            )

        import robust_plugins as rp
        import torch.jit, torch.onnx.utils
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ELU(), torch.nn.Linear(5, 3))
        good = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).double()
        before = process()
        ball = rp.Linf(eps=0.1, clip=None)
        for name in ("lirpa:ibp", "lirpa:alpha-crown"):
            rp.certifier(name)(model, torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), ball)
            rp.certifier(name).bounds(good, torch.zeros(2, 4).double(), ball)
        after = process()
        print([a == b for a, b in zip(before, after)], before == after)
        """,
        XDG_DATA_HOME=str(tmp_path),
    )
    assert out.endswith(" True"), out
    assert "\n" not in out  # nothing else was printed
    assert not list(tmp_path.iterdir())  # no folder was made


@pytest.mark.skipif(not compat.load().legacy, reason="0.3 is the one that needs help")
def test_the_help_that_0_3_needs_is_lent_while_tracing_only() -> None:
    held = "__getitem__" in torch._C.Node.__dict__
    with compat.load().tracing([]):
        assert "__getitem__" in torch._C.Node.__dict__
    assert ("__getitem__" in torch._C.Node.__dict__) == held


FAKE = """
import logging, sys, warnings
from torch import nn, Tensor
warnings.simplefilter("once")
logging.basicConfig(stream=sys.stdout)
print("hello")
__version__ = "{version}"
class BoundedModule(nn.Module): pass
class BoundedTensor: pass
class PerturbationLpNorm: pass
"""


@pytest.mark.parametrize(("version", "legacy"), [("0.7.1", False)])
def test_newer_versions_get_no_loans(version: str, legacy: bool, tmp_path: Path) -> None:
    package = tmp_path / "auto_LiRPA"
    (package / "operators").mkdir(parents=True)
    # It must find the process without what 0.3 is lent.
    lent = "assert 'numpy.lib.arraysetops' not in sys.modules"
    (package / "__init__.py").write_text(FAKE.format(version=version) + lent + "\n")
    (package / "utils.py").write_text('import appdirs\nuser_data_dir = appdirs.user_data_dir("auto_LiRPA")\n')
    (package / "operators" / "__init__.py").write_text("")
    (package / "operators" / "base.py").write_text("class Bound: pass\n")
    info = tmp_path / "auto_LiRPA-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: auto_LiRPA\nVersion: {version}\n")
    out = run(
        """
        import sys, warnings, logging, torch
        filters = list(warnings.filters)
        from robust_plugins.adapters.lirpa import compat
        before = list(warnings.filters)
        lirpa = compat.load()
        import auto_LiRPA
        with lirpa.tracing([]):
            lent = "__getitem__" in torch._C.Node.__dict__
        print(lirpa.legacy, lirpa.module_class is auto_LiRPA.BoundedModule, lent,
              before == list(warnings.filters), logging.getLogger().handlers)
        """,
        PYTHONPATH=str(tmp_path),
    )
    assert out == f"{legacy} True False True []"


def test_versions_are_compared_as_numbers() -> None:
    assert compat.parse_version("0.10.2.dev1+abc") == (0, 10, 2)
    assert compat.is_legacy(compat.parse_version("0.3"))
    assert not compat.is_legacy(compat.parse_version("0.10"))


def test_a_missing_backend_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    monkeypatch.setattr(compat, "_loaded", None)
    with pytest.raises(rp.PluginError, match=r"pip install --no-deps auto_LiRPA==0\.3") as caught:
        compat.load()
    assert isinstance(caught.value.__cause__, ImportError)


def test_the_version_is_that_of_the_module_that_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "checked_out"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "9.8"\nraise ImportError("not to be imported for it")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported_version("checked_out") == "9.8"
    assert available(rp.Backend("checked_out", "get it", "9.8"))
    assert not available(rp.Backend("checked_out", "get it", "9.9"))
    info = tmp_path / "checked_out-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: checked_out\nVersion: 1.0\n")
    assert imported_version("checked_out") == "9.8"
    assert imported_version("not_there_at_all") == ""


def test_the_list_of_plugins_shows_the_version_of_the_backend() -> None:
    found = {info.name: info for info in rp.plugins()}["lirpa"]
    version = ".".join(map(str, compat.load().version))
    assert any(shown.startswith(f"auto_LiRPA {version}") for shown in found.backends)


@pytest.mark.skipif(not compat.is_legacy(compat._installed_version()), reason="a newer auto_LiRPA")
def test_tables_of_tangents_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from auto_LiRPA.operators.activation import BoundTanh

    computed = []
    compute = BoundTanh.precompute_relaxation
    monkeypatch.setattr(compat, "_tangents", {})
    monkeypatch.setattr(
        BoundTanh,
        "precompute_relaxation",
        lambda node, name, *rest: computed.append(name) or compute(node, name, *rest),
    )
    x, ball = torch.rand(2, 3), rp.Linf(eps=0.1, clip=None)
    layers = (torch.nn.Linear(3, 3), torch.nn.Tanh(), torch.nn.Linear(3, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 2))
    first, again = (rp.certifier("lirpa:crown").bounds(torch.nn.Sequential(*layers), x, ball) for _ in range(2))
    assert sorted(computed) == ["sigmoid", "tanh"]
    assert torch.equal(first.lower, again.lower)
    monkeypatch.undo()
    fresh = rp.certifier("lirpa:crown").bounds(torch.nn.Sequential(*layers), x, ball)
    assert torch.equal(first.lower, fresh.lower)


@pytest.mark.parametrize("component", [AlphaCROWN(), Jacobian()])
def test_components_import_it_when_they_are_asked_to(component, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    monkeypatch.setattr(compat, "load", lambda: loaded.append(True))
    component.import_backend()
    assert loaded == [True]
