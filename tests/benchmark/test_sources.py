"""What has no release has the hash of its source among the versions, so that edited code is run again."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from support.studies import study

import robust_plugins as rp
from robust_plugins.registry.registry import Registry, using

pytest.importorskip("pydantic")

from robust_plugins.benchmark import planning, sources

CODE = """
from dataclasses import dataclass
import robust_plugins as rp

@dataclass(frozen=True, kw_only=True)
class Still(rp.Attack):
    def perturb(self, model, x, y, ball, *, targeted):
        return {what}

class Plugin:
    @rp.hookimpl
    def register_attacks(self, register):
        register("edited:still", Still)
"""


@pytest.fixture
def forgetful() -> None:
    """As in a new process."""
    sources.unreleased.cache_clear()
    planning.versions.cache_clear()
    planning.backends_of.cache_clear()
    planning._plugins_of.cache_clear()


def test_a_component_whose_code_was_edited_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def written(what: str) -> int:
        (tmp_path / "edited_attack.py").write_text(CODE.format(what=what))
        sys.modules.pop("edited_attack", None)
        importlib.invalidate_caches()
        for cached in (sources.unreleased, planning.versions, planning.backends_of, planning._plugins_of):
            cached.cache_clear()
        with using(Registry(entry_points=False, block=(), load=())):
            rp.register(importlib.import_module("edited_attack").Plugin(), "edited")
            return study(tmp_path, components=[{"use": "edited:still"}]).run().written

    try:
        assert [written("x"), written("x"), written("x + 0")] == [36, 0, 24]
    finally:
        sys.modules.pop("edited_attack", None)


def test_releases_are_told_by_their_versions(forgetful: None) -> None:
    import numpy

    assert sources.unreleased("torch.nn") == sources.unreleased(numpy.__name__) == ("", "")
    assert sources.unreleased("abc") == sources.unreleased("no_such_module") == ("", "")
    found = dict([sources.unreleased("robust_plugins.intervals")])
    if "site-packages" in Path(rp.__file__).parts:
        assert found == {"": ""}
    else:
        here = json.loads(planning.versions("interval:ibp"))
        assert here["source of robust_plugins"] == found["robust_plugins"] != ""
