"""The libraries of ONNX, imported when they are first needed."""

from __future__ import annotations

import importlib
from typing import Any

from robust_plugins.errors import PluginError


def library(name: str) -> Any:
    """The module `onnx` or `onnxruntime`, or a part of it. Raises PluginError with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise PluginError(
            f"ONNX files need {name.partition('.')[0]}, which cannot be imported ({error}); "
            'install it: pip install "robust_plugins[onnx]"'
        ) from error
