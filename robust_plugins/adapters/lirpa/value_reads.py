"""Finds where a model's Python code reads values of its input: a trace holds only what followed from these values.

A branch on a value (`if x.sum() > 1`), a number made of it (`float(x.max())`) or a shape that depends on it
(`x[x > 0]`) is traced as it was for one input. Shapes are no values, and neither are weights or constants.
"""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TO_PYTHON = {Tensor.tolist, Tensor.numpy, Tensor.__array__, torch.tensor, torch.as_tensor}
# No code of the model. The last two are the run-time type checks, where they are on.
_BETWEEN = {"torch", "robust_plugins", "jaxtyping", "beartype"}


def values_read(model: nn.Module, x: Tensor) -> str | None:
    """The line of code, with its place, at which `model(x)` first reads a value that depends on `x`; None for none."""
    reads = _Reads(x)
    with torch.no_grad(), _Conversions(reads), _Operations(reads):
        model(x)
    return reads.place


class _Reads:
    """Which memory holds what was computed from the input, and where such memory was first read."""

    def __init__(self, x: Tensor) -> None:
        self.place: str | None = None
        # Kept alive, so that no other tensor takes their address.
        self.dependent: dict[int, Tensor] = {_memory(x): x}

    def depends(self, value: Any) -> bool:
        if isinstance(value, Tensor):
            return _memory(value) in self.dependent
        if isinstance(value, dict):
            return any(map(self.depends, value.values()))
        return isinstance(value, (tuple, list)) and any(map(self.depends, value))

    def mark(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.dependent[_memory(value)] = value
        elif isinstance(value, (tuple, list)):
            for part in value:
                self.mark(part)

    def read(self) -> None:
        if self.place is None:
            self.place = _place()


class _Operations(TorchDispatchMode):
    """Follows the input through every operation, and sees those whose result leaves the tensors."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.reads.depends(args) or self.reads.depends(kwargs):
            self.reads.mark(out)
            if torch.Tag.data_dependent_output in func.tags or (
                torch.Tag.dynamic_output_shape in func.tags and self._by_values(func, args)
            ):
                self.reads.read()
        return out

    def _by_values(self, func: Any, args: Any) -> bool:
        """Picking by position gives a shape that is known; picking by a mask does not."""
        if func is not torch.ops.aten.index.Tensor:
            return True
        return any(i is not None and i.dtype in (torch.bool, torch.uint8) and self.reads.depends(i) for i in args[1])


class _Conversions(TorchFunctionMode):
    """Sees the ways from a tensor to numpy and lists, which are no operations."""

    def __init__(self, reads: _Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TO_PYTHON and self.reads.depends(args):
            self.reads.read()
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost line of the model's own code."""
    frame = sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] in _BETWEEN:
        frame = frame.f_back
    name = frame.f_code.co_filename
    return f"'{linecache.getline(name, frame.f_lineno).strip()}' ({Path(name).name}, line {frame.f_lineno})"


def _memory(tensor: Tensor) -> int:
    """The same for all views of the same memory."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
