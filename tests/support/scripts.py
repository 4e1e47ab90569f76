"""Loads a script of `integration/` as a module."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

INTEGRATION = Path(__file__).resolve().parents[2] / "integration"
if str(INTEGRATION.parent) not in sys.path:
    sys.path.append(str(INTEGRATION.parent))  # scripts import each other as integration.lecture.NAME


def script(path: str) -> ModuleType:
    """The module that `integration/<path>` is, run once."""
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, INTEGRATION / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
